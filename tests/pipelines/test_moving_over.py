"""Code written for sentence-transformers runs with a `SentenceEncoder`, and what it does not know is refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.pipelines.task_models import make_task_model
from tests.tiny_encoder import make_sentence_model

from longspan import SentenceEncoder, pipeline
from longspan.errors import InputError

TEXTS = ["open the file", "read the log", "write a line of text to the log file", "a"]


@pytest.fixture(scope="module")
def theirs(tiny_dir: Path) -> Any:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sentence_transformers.SentenceTransformer(str(tiny_dir), device="cpu")


@pytest.fixture(scope="module")
def ours(tiny_dir: Path) -> SentenceEncoder:
    return SentenceEncoder(tiny_dir)


@pytest.mark.parametrize(
    "arguments",
    [
        {"normalize_embeddings": True, "batch_size": 2, "show_progress_bar": False},
        {"truncate_dim": 5},
        {"truncate_dim": 5, "normalize_embeddings": True},
        {"precision": "int8"},
        {"precision": "uint8"},
        {"precision": "binary"},
        {"precision": "ubinary"},
        {"convert_to_tensor": True},
        {"convert_to_numpy": False},
        {"output_value": "token_embeddings"},
    ],
)
def test_arguments_of_encode(ours: SentenceEncoder, theirs: Any, arguments: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = theirs.encode(TEXTS, **arguments)
    found = ours.encode(TEXTS, **arguments)
    assert type(found) is type(expected) or arguments.get("output_value")
    for one, other in zip(found, expected, strict=True):
        assert np.asarray(one).dtype == np.asarray(other.detach() if hasattr(other, "detach") else other).dtype
        is_rounded = arguments.get("precision", "")[-4:] == "int8"  # a rounding error may cross a border
        np.testing.assert_allclose(
            np.asarray(one, float), np.asarray(other, float), rtol=0, atol=1 if is_rounded else 1e-5
        )
    alone = ours.encode(TEXTS[0], **{**arguments, "precision": "float32"})
    assert np.asarray(alone).ndim == (2 if arguments.get("output_value") else 1)


def test_names_of_sentence_transformers(ours: SentenceEncoder, theirs: Any) -> None:
    assert ours.get_sentence_embedding_dimension() == ours.get_embedding_dimension() == theirs.get_embedding_dimension()
    assert ours.max_seq_length == ours.get_max_seq_length() == theirs.max_seq_length
    vectors = ours.encode(TEXTS)
    np.testing.assert_allclose(
        ours.similarity(vectors, vectors[:2]), theirs.similarity(vectors, vectors[:2]), atol=1e-5
    )
    assert isinstance(ours.similarity(torch.from_numpy(vectors), vectors[0]), torch.Tensor)
    for name in ("dot", "euclidean", "manhattan"):
        ours.similarity_fn_name = theirs.similarity_fn_name = name
        np.testing.assert_allclose(ours.similarity(vectors, vectors), theirs.similarity(vectors, vectors), atol=1e-4)
    ours.similarity_fn_name = theirs.similarity_fn_name = "cosine"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions have another name
        expected = theirs.tokenize(TEXTS)
    for name in ("input_ids", "attention_mask"):
        assert ours.tokenize(TEXTS)[name].tolist() == expected[name].tolist()


def test_max_seq_length_is_read(tiny_dir: Path) -> None:
    encoder = SentenceEncoder(tiny_dir)
    text = " ".join(TEXTS * 3)
    encoder.max_seq_length = 8
    assert encoder.max_length == 8
    np.testing.assert_array_equal(
        encoder.encode(text, on_long="truncate"),
        SentenceEncoder(tiny_dir, max_length=8).encode(text, on_long="truncate"),
    )
    with pytest.raises(InputError, match=r"max_length must lie in \[1, \d+\] for .*Received: max_length=99999"):
        encoder.max_seq_length = 99999


def test_saved_encoders(tmp_path: Path) -> None:
    folder = make_sentence_model(tmp_path / "model", pooling={"pooling_mode": ["max", "mean"], "include_prompt": False})
    encoder = SentenceEncoder(folder)
    encoder.prompts, encoder.max_seq_length = {"query": "read: "}, 16
    encoder.save_pretrained(tmp_path / "saved")
    again = SentenceEncoder(tmp_path / "saved")
    assert (again.max_length, again.prompts, again.normalizes) == (16, encoder.prompts, encoder.normalizes)
    expected = encoder.encode_query(TEXTS)
    np.testing.assert_allclose(again.encode_query(TEXTS), expected, rtol=0, atol=1e-6)
    sentence_transformers = pytest.importorskip("sentence_transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
        np.testing.assert_allclose(theirs.encode(TEXTS, prompt_name="query"), expected, rtol=0, atol=1e-5)
    encoder.save(tmp_path / "second")
    assert (tmp_path / "second" / "modules.json").is_file()


def test_wrong_arguments(ours: SentenceEncoder) -> None:
    with pytest.raises(InputError, match="output_value must be one of sentence_embedding, token_embeddings. Received"):
        ours.encode(TEXTS, output_value="all")
    with pytest.raises(InputError, match="precision must be one of float32, int8, uint8, binary, ubinary. Received"):
        ours.encode(TEXTS, precision="int4")
    with pytest.raises(InputError, match="truncate_dim must be at least 1. Received: truncate_dim=0"):
        ours.encode(TEXTS, truncate_dim=0)
    with pytest.raises(InputError, match=r"a text must fit max_length=\d+ tokens .*Received: a longer one"):
        ours.encode(" ".join(TEXTS * 99), output_value="token_embeddings")


def test_attributes_that_nothing_reads_are_refused(ours: SentenceEncoder, tmp_path: Path, minilm_dir: Path) -> None:
    run = pipeline("token-classification", make_task_model(tmp_path, "token-classification", "wordpiece", minilm_dir))
    with pytest.raises(InputError, match="What may be set on a SentenceEncoder is batch_tokens, .*Received: max_len=8"):
        ours.max_len = 8
    for one in (run, ours, pipeline("zero-shot-classification", candidate_labels=["a", "b"])):
        with pytest.raises(AttributeError, match="Received: batch_sise=8"):
            one.batch_sise = 8
    run.options = run.options.updated({"batch_size": 8}, "tagging")
    assert run.options.batch_size == 8
