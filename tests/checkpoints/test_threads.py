"""Large files are read by several threads, and checked as if by one."""

import threading

import pytest
import torch

import longspan
from longspan.checkpoints import torch as loading
from longspan.checkpoints.reader import CheckpointReader
from longspan.errors import CheckpointError


@pytest.fixture
def readers(monkeypatch):
    """Names of the threads that read; small files count as large."""
    names, fill = set(), CheckpointReader.fill_torch

    def recorded(self, key, tensor):
        names.add(threading.current_thread().name)
        fill(self, key, tensor)

    monkeypatch.setattr(loading, "_WORTH_THREADS", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(CheckpointReader, "fill_torch", recorded)
    return names


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = longspan.BertConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    return longspan.BertModel(config)


def in_threads(readers):
    return {name for name in readers if name.startswith("longspan-read")}


@pytest.mark.parametrize("kind", ["one file", "shards", "pickle"])
def test_threads_read_the_same(tmp_path, model, readers, kind):
    model.save_pretrained(tmp_path, max_shard_size="30KB" if kind == "shards" else "5GB")
    if kind == "pickle":
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    loaded = longspan.BertModel.from_pretrained(tmp_path)
    assert in_threads(readers) == readers
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_values_to_convert_are_read_one_at_a_time(tmp_path, model, readers):
    """Each takes memory besides that of the model."""
    model.save_pretrained(tmp_path)
    loaded = longspan.BertModel.from_pretrained(tmp_path, dtype="bfloat16")
    assert not in_threads(readers)
    assert torch.equal(loaded.pooler.dense.weight, model.pooler.dense.weight.bfloat16())


def test_a_flipped_bit_is_noticed(tmp_path, model, readers):
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="the values of .* do not match their checksum"):
        longspan.BertModel.from_pretrained(tmp_path)
    assert in_threads(readers)
