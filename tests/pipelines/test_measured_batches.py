"""Which batches suit a machine is measured where much is read, kept for the next time, and changes no number."""

import logging

import numpy as np
import pytest
import torch

import longspan
from longspan import SentenceEncoder
from longspan.checkpoints.hub import Source
from longspan.embeddings.embed_files import embed_files
from longspan.pipelines.backends import measured_batches, torch_lanes
from longspan.pipelines.backends.measured_batches import DEFAULT, Batching, choose
from longspan.pipelines.backends.torch import EncoderBackend

TEXTS = [f"a text about number {number} " * (1 + number % 5) for number in range(24)]


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Ways that were tried, on a machine of its own where 8 batches of 64 tokens are fastest; 100 tokens are bulk."""
    tried = []

    def seconds(self, batching):
        tried.append(batching)
        return 1.0 if batching == Batching(512, 8) else 2.0 - batching.lanes / 8

    def path(kind):
        return tmp_path / f"{kind['model']}-{kind['dtype']}-{kind['threads']}.json"

    monkeypatch.setattr(EncoderBackend, "_seconds_of_token", seconds)
    monkeypatch.setattr(measured_batches, "_TOKENS", (64, 128))
    monkeypatch.setattr(measured_batches, "DEFAULT", Batching(128, 2))
    monkeypatch.setattr(EncoderBackend, "_batching", Batching(128, 2))
    monkeypatch.setattr(measured_batches, "IS_BULK", 100)
    monkeypatch.setattr(measured_batches, "WORTH_MEASURING", 300)
    monkeypatch.setattr(measured_batches, "_path", path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    return tried


def test_sizes_are_tried_first_and_then_numbers_of_lanes():
    tried = []

    def seconds(batching):
        tried.append(batching)
        return {4096: 0.5}.get(batching.tokens // batching.lanes, 1.0) / (2.0 if batching.lanes == 4 else 1.0)

    assert choose(4, seconds) == Batching(16384, 4)
    assert {batching.lanes for batching in tried[:5]} == {2}
    assert {batching for batching in tried if batching.lanes != 2} == {Batching(4096, 1), Batching(16384, 4)}
    assert choose(1, lambda batching: 1.0 / batching.tokens) == Batching(4096, 1)


def test_what_is_hardly_faster_is_not_taken():
    assert choose(2, lambda batching: 1.0 - 0.05 * (batching != DEFAULT)) == DEFAULT
    assert choose(8, lambda batching: 1.0 - 0.05 * (batching.lanes == 8)) == DEFAULT
    readings = iter([1.0] + [3.0] * 8)  # one slow round in which others were lucky
    assert choose(1, lambda batching: next(readings, 1.0)) == Batching(DEFAULT.tokens, 1)


def test_what_was_found_is_kept(monkeypatch, tmp_path):
    kind = {"model": "BertModel", "threads": 2}
    monkeypatch.setattr("huggingface_hub.cached_assets_path", lambda *names: tmp_path)
    assert measured_batches.stored(kind) is None
    measured_batches.store(kind, Batching(4096, 2))
    assert measured_batches.stored(kind) == Batching(4096, 2)
    assert measured_batches.stored({**kind, "threads": 4}) is None
    (file,) = tmp_path.iterdir()
    for damaged in ("", "[]", '{"tokens": "many", "lanes": 2}', '{"tokens": 0, "lanes": 2}', '{"tokens": 5}'):
        file.write_text(damaged)
        assert measured_batches.stored(kind) is None
    monkeypatch.setattr("huggingface_hub.cached_assets_path", lambda *names: tmp_path / "is not there")
    measured_batches.store(kind, Batching(4096, 2))
    assert measured_batches.stored(kind) is None


def test_bulk_is_measured_once_and_numbers_stay(calls, caplog, monkeypatch):
    expected = SentenceEncoder(batch_tokens=128).encode(TEXTS)
    assert not calls
    encoder = SentenceEncoder()
    assert encoder.batch_tokens == 128
    encoder.encode(TEXTS[:3])
    encoder.encode(TEXTS[:12])  # bulk, but not yet enough of it
    assert not calls
    with caplog.at_level(logging.INFO, logger="longspan"):
        np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=2e-6)
    assert "512 tokens in 8 batches at a time" in caplog.text
    assert encoder.batch_tokens == 512
    num_calls = len(calls)
    assert num_calls == 3 * (2 + 4)  # rounds, sizes, numbers of lanes
    encoder.encode(TEXTS * 3)
    again = SentenceEncoder()
    lanes = []
    monkeypatch.setattr(torch_lanes, "side_by_side", lambda run, items, number: lanes.append(number) or map(run, items))
    np.testing.assert_allclose(again.encode(TEXTS * 3)[: len(TEXTS)], expected, atol=2e-6)
    assert (lanes, again.batch_tokens) == ([8], 512)
    assert len(calls) == num_calls


def test_what_the_user_says_holds(calls):
    for encoder in (SentenceEncoder(batch_tokens=256), SentenceEncoder()):
        encoder.batch_tokens = 256
        encoder.encode(TEXTS * 3)
        assert encoder.batch_tokens == 256
    SentenceEncoder().encode(TEXTS * 3, batch_tokens=256)
    assert not calls


def test_whoever_looks_into_the_model_is_not_measured(calls):
    encoder = SentenceEncoder()
    encoder._backend.model.encoder.layer[0].register_forward_hook(lambda *args: None)
    encoder.encode(TEXTS * 3)
    assert not calls


def test_a_model_that_needs_more_than_ids_is_not_measured(calls):
    encoder = SentenceEncoder()
    encoder._backend.config.is_encoder_decoder = True
    encoder.encode(TEXTS * 3)
    assert not calls


def test_files_are_bulk_by_their_size(calls, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "texts.txt").write_text("\n\n".join(TEXTS * 3))
    encoder = SentenceEncoder()
    embed_files([tmp_path / "docs"], tmp_path / "index.parquet", encoder=encoder)
    assert calls
    assert encoder.batch_tokens == 512
    calls.clear()
    for found in tmp_path.glob("*.json"):
        found.unlink()
    embed_files([tmp_path / "docs"], tmp_path / "index.parquet", encoder=SentenceEncoder())
    assert not calls  # all is in the index


@pytest.mark.parametrize("family", ["Bert", "Longformer", "Mega", "Roberta"])
def test_a_token_of_every_encoder_takes_time(family, tmp_path):
    settings = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
    settings |= {"attention_window": 8} if family == "Longformer" else {}
    settings |= {"num_attention_heads": 2, "max_position_embeddings": 66} if family != "Mega" else {}
    longspan.AutoModel.from_config(getattr(longspan, f"{family}Config")(**settings)).save_pretrained(tmp_path)
    source = Source(tmp_path)
    backend = EncoderBackend(source, device=None, dtype=None, attn_implementation=None, max_length=None)
    assert 0 < backend._seconds_of_token(Batching(128, 1)) < 1
    assert backend._kind()["model"] == f"{family}Model"
