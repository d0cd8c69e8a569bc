"""The example of film reviews: its data, its folds and its intervals on small cases, and a run at toy size."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest

from examples import evidence
from examples import long_reviews as example


@pytest.fixture
def archive(tmp_path):
    """Forty reviews as NLTK packs them; what they think of the film stands at the end."""
    path = tmp_path / "movie_reviews.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("movie_reviews/README", "about")
        for label, word in (("neg", "dull"), ("pos", "fine")):
            for number in range(0, 1000, 50):
                text = f"the film number {number} begins . " + "and so on " * 30 + f"it is a {word} film ."
                packed.writestr(f"movie_reviews/{label}/cv{number:03}_1.txt", text)
    return path


def test_reviews_are_read_with_their_published_folds(archive):
    reviews = example.read_reviews(archive, 2000)
    assert len(reviews) == 40
    assert [review.fold for review in reviews[:6]] == [0, 0, 0, 0, 1, 1]
    assert [review.label for review in reviews[:4]] == ["neg", "pos", "neg", "pos"]
    assert [review.number for review in example.read_reviews(archive, 1000)] == [100 * (i // 2) for i in range(20)]


def test_what_stands_at_the_end_is_seen_by_who_reads_it_all(archive):
    reviews = example.read_reviews(archive, 2000)
    short, long = example.beginnings(reviews, 20), [review.text for review in reviews]
    assert all(len(text) < 120 and one.text.startswith(text) for text, one in zip(short, reviews, strict=True))
    right = {name: example.cross_validated(texts, reviews, example.of_words) for name, texts in
             (("short", short), ("long", long))}  # fmt: skip
    assert right["long"].all()
    arms = example.compared(right, "short")
    assert arms["long"]["gain"]["interval"][0] > 0
    assert "gain" not in arms["short"]


def test_intervals_are_those_of_a_mean():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    low, high = evidence.interval(values)
    wide = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - wide, abs=0.03)
    assert high == pytest.approx(values.mean() + wide, abs=0.03)
    assert evidence.share(np.ones(5)) == {"mean": 1.0, "interval": [1.0, 1.0]}


def test_a_record_keeps_the_parts_of_the_same_settings(tmp_path):
    path = tmp_path / "results.json"
    with evidence.Record(path).part("one", {"seed": 0}) as values:
        values["answer"] = 42
    record = evidence.Record(path)
    assert record.values["one"]["answer"] == 42
    assert {"command", "seconds", "processor_seconds", "threads", "settings"} < record.values["one"].keys()
    assert record.has("one", {"seed": 0})
    assert not record.has("one", {"seed": 1})
    assert not record.has("two", {"seed": 0})


def test_vectors_of_windows_are_weighted_means():
    encoder = example.SentenceEncoder(max_length=32)
    text = "a film about a dog . " * 20
    review = example.Review("one", text, "pos", 0)
    vectors = example.window_vectors(encoder, [review])[0]
    assert vectors.shape == (5, 384)
    whole = encoder.encode(text, normalize=False)
    np.testing.assert_allclose(vectors[-1], whole, atol=1e-5)
    pieces = encoder.splitter().split([text])[0]
    apart = encoder.encode_pieces(pieces[:2], normalize=False)
    weights = [piece.num_tokens for piece in pieces[:2]]
    np.testing.assert_allclose(vectors[0], apart[0], atol=1e-5)
    np.testing.assert_allclose(vectors[1], np.average(apart, axis=0, weights=weights), atol=1e-5)


def test_a_run_at_toy_size(archive, tmp_path, capsys):
    output, cache = tmp_path / "results.json", tmp_path / "cache"
    words = ["--data", str(archive), "--quick", "--output", str(output), "--cache", str(cache)]
    words += ["--arms", "truncated", "to_long"]
    assert example.main(words) == 0
    results = json.loads(output.read_text())
    assert list(results["words"]["arms"]) == ["254", "510", "all"]
    assert list(results["frozen"]["arms"]) == [
        "1 window",
        "2 windows",
        "3 windows",
        "4 windows",
        "all windows",
        "to_long",
    ]
    assert list(results["tuned"]["arms"]) == ["truncated", "to_long"]
    assert results["tuned to_long 0"]["train_documents"] == 16
    assert len(results["tuned to_long 0"]["right"]) == results["tuned to_long 0"]["test_documents"] == 4
    assert "tuned to_long 0" in capsys.readouterr().out
    assert {path.name for path in cache.iterdir()} == {"windows.npz", "whole.npz"}


def test_without_the_data_it_says_so(tmp_path, capsys):
    assert example.main(["--data", str(tmp_path / "none.zip")]) == 0
    assert "skipped: the reviews are not at" in capsys.readouterr().out
