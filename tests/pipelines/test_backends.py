"""One encoder in three frameworks: equal vectors from the same folder, few programs."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.tiny_encoder import WORDS, make_sentence_model

import longspan
from longspan import SentenceEncoder
from longspan.embeddings.embed_files import embed_files
from longspan.errors import InputError, MissingFrameworkError
from longspan.pipelines.backends import load_task_model, longest_input
from longspan.search.index import open_index

OTHERS = ["flax", "keras"]


def make_texts(count: int, longest: int) -> list[str]:
    draw = random.Random(5)
    return ["", *(" ".join(draw.choices(WORDS, k=draw.randint(1, longest))) for _ in range(count - 1))]


@pytest.mark.parametrize("framework", OTHERS)
def test_equal_vectors(tmp_path: Path, framework: str):
    folder = make_sentence_model(tmp_path, pooling={"pooling_mode": ["max", "cls", "weightedmean", "lasttoken"]})
    texts = make_texts(30, 90)
    expected = SentenceEncoder(folder).encode(texts)
    actual = SentenceEncoder(folder, framework=framework).encode(texts, batch_tokens=300)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("framework", OTHERS)
def test_minilm(framework: str):
    texts = ["How do I open a file?", "", "Rotate log files when they grow too large. " * 40, "日本語 é"]
    expected = SentenceEncoder().encode(texts)
    actual = SentenceEncoder(framework=framework).encode(texts)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("framework", "most"), [("flax", 9), ("keras", 1)])
def test_a_handful_of_programs_serves_all_batches(tiny_dir: Path, framework: str, most: int):
    encoder = SentenceEncoder(tiny_dir, framework=framework, batch_tokens=512)
    for count in (100, 1, 57):
        encoder.encode(make_texts(count, 60))
    assert 1 <= encoder._backend.num_programs <= most  # lengths 16, 24, 32 and 48, each in up to three numbers of rows


@pytest.mark.parametrize("framework", OTHERS)
def test_indexes_of_one_framework_answer_to_another(
    tmp_path: Path, corpus: Path, tiny_dir: Path, tiny: SentenceEncoder, framework: str
):
    embed_files([corpus], tmp_path / "torch.npz", encoder=tiny)
    other = SentenceEncoder(tiny_dir, framework=framework)
    embed_files([corpus], tmp_path / "other.npz", encoder=other)
    left, right = (open_index(tmp_path / f"{name}.npz") for name in ("torch", "other"))
    assert left.info.settings == right.info.settings
    count = left.info.num_passages
    assert left.rows(0, count).text == right.rows(0, count).text
    np.testing.assert_allclose(left.rows(0, count).embedding, right.rows(0, count).embedding, rtol=0, atol=1e-5)


@pytest.mark.parametrize("framework", OTHERS)
def test_bfloat16(tiny_dir: Path, tiny: SentenceEncoder, framework: str):
    texts = make_texts(10, 60)
    half = SentenceEncoder(tiny_dir, framework=framework, dtype="bfloat16").encode(texts)
    assert half.dtype == np.float32
    # bfloat16 keeps 8 bits of each number
    np.testing.assert_allclose(half, tiny.encode(texts), rtol=0, atol=5e-2)
    assert not np.array_equal(half, tiny.encode(texts))


@pytest.mark.parametrize("framework", OTHERS)
def test_devices(tiny_dir: Path, tiny: SentenceEncoder, framework: str):
    encoder = SentenceEncoder(tiny_dir, framework=framework, device="cpu")
    np.testing.assert_allclose(encoder.encode("log"), tiny.encode("log"), rtol=0, atol=1e-5)
    with pytest.raises(InputError, match=r"device must .* machine. Received: device='tpu:7'"):
        SentenceEncoder(tiny_dir, framework=framework, device="tpu:7")


@pytest.mark.parametrize(("framework", "module", "extra"), [("flax", "jax", "flax"), ("keras", "keras", "keras")])
def test_missing_frameworks_name_their_extra(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch, framework: str, module: str, extra: str
):
    monkeypatch.delitem(sys.modules, f"longspan.pipelines.backends.{framework}", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingFrameworkError, match=rf"framework='{framework}' needs .*'longspan\[{extra}\]'"):
        SentenceEncoder(tiny_dir, framework=framework)


@pytest.mark.parametrize("family", ["Roberta", "XLMRoberta"])
def test_rows_of_the_position_table_that_no_token_has_do_not_count(family: str):
    sizes = {
        "vocab_size": 40,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
    }
    config = getattr(longspan, f"{family}Config")(**sizes, max_position_embeddings=20)
    model = getattr(longspan, f"{family}ForTokenClassification")(config)
    backend = load_task_model("torch", model, "token-classification")
    assert backend.max_positions == longest_input(config) == 18
    ids = np.full((2, backend.max_positions), 5)
    assert backend.run({"input_ids": ids, "attention_mask": ids == 5})["logits"].shape == (2, 18, 2)
