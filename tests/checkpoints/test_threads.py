"""Large files are read by several threads, and checked as if by one."""

import json
import threading

import pytest
import torch

import longspan
from longspan.checkpoints import torch as loading
from longspan.checkpoints.reader import CheckpointReader
from longspan.errors import CheckpointError

THREADS = 3


@pytest.fixture
def readers(monkeypatch):
    """Names of the threads that read; small files count as large."""
    names, fill = set(), CheckpointReader.fill_torch

    def recorded(self, key, tensor):
        names.add(threading.current_thread().name)
        fill(self, key, tensor)

    monkeypatch.setattr(loading, "_WORTH_THREADS", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: THREADS)
    monkeypatch.setattr(CheckpointReader, "fill_torch", recorded)
    return names


@pytest.fixture
def readers_at_once(monkeypatch, readers):
    """The same, where no thread goes on before all have begun: each of them has read a tensor."""
    all_there, fill = threading.Barrier(THREADS), CheckpointReader.fill_torch

    def waiting(self, key, tensor):
        is_first = threading.current_thread().name not in readers
        fill(self, key, tensor)
        if is_first:
            all_there.wait(timeout=30)

    monkeypatch.setattr(CheckpointReader, "fill_torch", waiting)
    return readers


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = longspan.BertConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    return longspan.BertModel(config)


@pytest.mark.parametrize("kind", ["one file", "shards", "pickle"])
def test_threads_read_the_same(tmp_path, model, readers_at_once, kind):
    model.save_pretrained(tmp_path, max_shard_size="30KB" if kind == "shards" else "5GB")
    if kind == "pickle":
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    loaded = longspan.BertModel.from_pretrained(tmp_path)
    assert len(readers_at_once) == THREADS
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_values_to_convert_are_read_one_at_a_time(tmp_path, model, readers):
    """Each takes memory besides that of the model."""
    model.save_pretrained(tmp_path)
    loaded = longspan.BertModel.from_pretrained(tmp_path, dtype="bfloat16")
    assert readers == {threading.current_thread().name}
    assert torch.equal(loaded.pooler.dense.weight, model.pooler.dense.weight.bfloat16())


@pytest.mark.parametrize(
    "damaged", [["pooler.dense.weight"], ["encoder.layer.0.output.dense.weight", "pooler.dense.bias"]]
)
def test_the_first_damaged_tensor_is_named(tmp_path, model, readers, damaged):
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    content = bytearray(file.read_bytes())
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for key in damaged:
        content[8 + length + header[key]["data_offsets"][0]] ^= 1
    file.write_bytes(content)
    order = [key for key in model.state_dict() if key in damaged]
    for _ in range(10):
        with pytest.raises(CheckpointError, match=f"the values of {order[0]} do not match their checksum"):
            longspan.BertModel.from_pretrained(tmp_path)
