"""A sentence encoder learns from pairs, triplets and scores which texts belong together, whatever their lengths."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tests.tiny_encoder import HIDDEN, WORDS, make_sentence_model
from tests.training.conftest import SETTINGS, read_csv, write_lines
from tests.training.test_classify import gradients, loop

from longspan import SentenceEncoder
from longspan.cli.main import app
from longspan.cli.running import run
from longspan.errors import InputError
from longspan.training import metrics
from longspan.training.options import TrainOptions
from longspan.training.runs import finetune, prepare

FAST = SETTINGS | {"learning_rate": 0.01, "batch_tokens": 3000, "epochs": 10}
TOPICS = list(itertools.combinations(range(8), 3))
random.Random(0).shuffle(TOPICS)


def written(words, draw):
    """Words again and again: a text of one to three windows."""
    text = words * draw.randint(2, 30)
    draw.shuffle(text)
    return " ".join(text)


def pairs(topics, *, seed=1):
    """Anchors of three words, and positives of the three other words that these stand for."""
    draw = random.Random(seed)
    found = []
    for topic in topics:
        anchor, positive = ([WORDS[8 * half + place] for place in topic] for half in (0, 1))
        found.append({"anchor": written(anchor, draw), "positive": written(positive, draw)})
    return found


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory):
    """A tiny encoder with a projection after pooling."""
    torch.manual_seed(0)
    settings = {"in_features": HIDDEN, "out_features": 16, "bias": True,
                "activation_function": "torch.nn.modules.activation.Tanh"}  # fmt: skip
    dense = ("Dense", settings, {"linear.weight": torch.randn(16, HIDDEN) * 0.2, "linear.bias": torch.zeros(16)})
    return make_sentence_model(tmp_path_factory.mktemp("embed") / "model", layers=[dense])


def ready(model, data, **settings):
    options = TrainOptions.of({**SETTINGS, "validation_split": 0.0, **settings})
    return prepare("embed", model, data, "unused", validation=None, options=options)


def vectors_of(folder, rows):
    encoder = SentenceEncoder(folder)
    return (encoder.encode([row[name] for row in rows]) for name in ("anchor", "positive"))


def spearman(folder, rows):
    anchors, positives = vectors_of(folder, rows)
    scores = [float(row["score"]) for row in rows]
    return float(spearmanr((anchors * positives).sum(1), scores).statistic)


def accuracy(folder, rows):
    anchors, positives = vectors_of(folder, rows)
    return float(((anchors @ positives.T).argmax(1) == np.arange(len(rows))).mean())


def test_it_learns(sentence_model, tmp_path, capsys):
    held_back = pairs(TOPICS[40:], seed=2)
    assert accuracy(sentence_model, held_back) < 0.3
    report = finetune("embed", sentence_model, pairs(TOPICS[:40]), tmp_path / "out", validation=held_back, **FAST)
    assert report.metrics["accuracy@1"] > 0.6
    assert report.metrics["mrr"] >= report.metrics["accuracy@1"]
    assert accuracy(tmp_path / "out", held_back) == pytest.approx(report.metrics["accuracy@1"])
    rows = [row for row in read_csv(tmp_path / "out" / "log.csv") if row["accuracy@1"]]
    assert len(rows) == FAST["epochs"]
    before, after = (SentenceEncoder(folder) for folder in (sentence_model, tmp_path / "out"))
    assert (after.max_length, after.dimension, after.normalizes) == (before.max_length, 16, True)
    (was,), (now,) = before._modules.layers, after._modules.layers
    assert not np.allclose(was.weight, now.weight)
    (tmp_path / "note.md").write_text(held_back[0]["anchor"])
    arguments = ["embed", tmp_path / "note.md", "--model", tmp_path / "out", "--output", tmp_path / "a.parquet"]
    assert run(app, [str(each) for each in arguments]) == 0, capsys.readouterr().err


def test_a_plain_model_is_lengthened_and_learns_triplets_with_adapters(encoder, tmp_path):
    data = pairs(TOPICS[:8])
    data = [one | {"negative": other["positive"]} for one, other in zip(data, data[1:] + data[:1], strict=True)]
    settings = FAST | {"epochs": 1, "lora": 2, "validation_split": 0.5, "max_length": 80}  # of 64 positions
    report = finetune("embed", encoder, data, tmp_path / "out", **settings)
    assert 0 <= report.metrics["accuracy@1"] <= report.metrics["mrr"] <= 1
    trained = SentenceEncoder(tmp_path / "out")
    assert trained.max_length == 80
    assert trained.encode("open the file").shape == (HIDDEN,)


def test_scores(sentence_model, tmp_path):
    rows = pairs(TOPICS[:24])
    data = [one | {"score": 0.9} for one in rows]
    data += [{**one, "positive": other["positive"], "score": "0.1"}
             for one, other in zip(rows, rows[1:] + rows[:1], strict=True)]  # fmt: skip
    assert spearman(sentence_model, data) < 0.3
    report = finetune("embed", sentence_model, data, tmp_path / "out", validation=data, **FAST | {"epochs": 8})
    assert list(report.metrics) == ["spearman", "step"]
    assert report.metrics["spearman"] > 0.5
    assert spearman(tmp_path / "out", data) == pytest.approx(report.metrics["spearman"])


def test_windows_are_those_of_the_encoder(sentence_model):
    """Vectors of a training pass are those that the encoder gives, for texts of many windows as well."""
    rows = pairs(TOPICS[:4])
    one = loop(sentence_model, rows, "embed", validation_split=0.0)
    one.model.eval()
    assert max(len(sample.rows) for sample in one._prepared.samples) > 2
    with torch.no_grad():
        found = one.task.run(one.model, one.batch(range(4))).numpy()
    texts = [row[name] for row in rows for name in ("anchor", "positive")]
    expected = SentenceEncoder(sentence_model).encode(texts, normalize=True)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-5)


def test_negatives_are_those_of_a_pass(sentence_model):
    """The loss by hand, without copies of the right text; scores, which need no other texts, may be accumulated."""
    rows = pairs(TOPICS[:4])
    rows[2]["positive"], rows[3]["anchor"] = rows[1]["positive"], rows[0]["anchor"]
    one = loop(sentence_model, rows, "embed", validation_split=0.0)
    batch = one.batch(range(4))
    vectors = torch.nn.functional.normalize(torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    left_out = {(1, 2), (2, 1), (0, 3), (3, 0)}
    expected = 0.0
    for row in range(4):
        cosines = {place: 20 * float(vectors[row, 0] @ vectors[place, 1]) for place in range(4)}
        total = sum(np.exp(value) for place, value in cosines.items() if (row, place) not in left_out)
        expected += float(np.log(total)) - cosines[row]
    assert float(one.task.loss(vectors, batch)) == pytest.approx(expected, rel=1e-5)
    scored = [row | {"score": place / 4} for place, row in enumerate(rows)]
    whole, parts = (
        loop(sentence_model, scored, "embed", batch_tokens=10000, micro_tokens=size, validation_split=0.0)
        for size in (10000, 200)
    )
    for each in (whole, parts):
        each.model.eval()
    (step,), (many,) = whole.epoch(0), parts.epoch(0)
    assert len(step.passes) < len(many.passes)
    assert whole.accumulate(step) == pytest.approx(parts.accumulate(many), rel=1e-5)
    found = gradients(parts)
    for name, gradient in gradients(whole).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


def test_bad_records(sentence_model, tmp_path):
    good = pairs(TOPICS[:2])
    bad = [
        {"anchor": "open"},
        {"anchor": "open", "positive": " "},
        good[0] | {"score": 0.5},
        good[0] | {"score": 4},
        good[0] | {"score": "much"},
        good[0] | {"score": 0.5, "negative": "read"},
    ]
    problems = ready(sentence_model, write_lines(tmp_path / "a.jsonl", [*good, *bad])).problems
    assert {problem.line: problem.reason for problem in problems} == {
        3: "column 'positive' is missing; there are anchor",
        4: "column 'positive' must hold text. Received: a blank",
        5: "Records must be alike. Received: one with 'score', the first with 'neither'",
        6: "column 'score' must be a cosine, in [-1, 1] (scale others). Received: 4.0",
        7: "column 'score' must hold a number. Received: 'much'",
        8: "A record must have one of the columns 'negative' and 'score'. Received: both",
    }
    short = {"anchor": "open", "positive": "read"}
    (problem,) = ready(sentence_model, [short, short, *good[:1]], on_long="error").problems
    assert problem.reason.startswith("column '")
    assert "on_long='error'" in problem.reason
    with pytest.raises(InputError, match="must hold two pairs"):
        ready(sentence_model, good[:1])
    with pytest.raises(InputError, match="must hold two pairs"):
        ready(sentence_model, good, micro_tokens=20)
    with pytest.raises(InputError, match="metric must be one of accuracy@1, mrr"):
        ready(sentence_model, good, metric="spearman")


def test_metrics():
    draw = np.random.default_rng(0)
    found, truth = draw.normal(size=40), draw.integers(5, size=40)
    assert metrics.rank_correlation(found, truth)["spearman"] == pytest.approx(spearmanr(found, truth).statistic)
    candidates = np.eye(4)
    anchors = np.array([[0.9, 0.1, 0, 0], [0.5, 0.4, 0.1, 0], [0.5, 0.5, 0, 0], [0.9, 0.1, 0, 0]])
    assert metrics.retrieval(anchors, candidates, [[0], [1, 2], [0], [1]], [[], [], [], [0]]) == {
        "accuracy@1": 0.5,
        "mrr": (1 + 1 / 2 + 1 / 2 + 1) / 4,
    }
