"""Writing checkpoints: bytes against the `safetensors` package, shards, stale files."""

import json
import stat

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
from tests.checkpoints.conftest import same

from longspan.checkpoints.files import LazyTensor, open_checkpoint, save_checkpoint
from longspan.checkpoints.writer import parse_size, split_into_shards
from longspan.errors import CheckpointError


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_the_package_reads_what_was_written(tmp_path, tensors):
    save_checkpoint(tmp_path, tensors, metadata={"note": "x"})
    assert names(tmp_path) == ["model.safetensors"]
    read = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert read.keys() == tensors.keys()
    assert all(same(read[key], value) for key, value in tensors.items())
    with safetensors.safe_open(tmp_path / "model.safetensors", "np") as file:
        metadata = file.metadata()
    assert (metadata["format"], metadata["note"]) == ("pt", "x")


def test_tensors_are_aligned(tmp_path, tensors):
    """Programs that map the file need every tensor at a multiple of its item size."""
    save_checkpoint(tmp_path, tensors)
    content = (tmp_path / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    assert start % 8 == 0
    for key, value in tensors.items():
        assert header[key]["data_offsets"][0] % value.itemsize == 0


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(6.0).reshape(2, 3).t(),
        torch.nn.Parameter(torch.arange(4.0)),
        torch.tensor(2.5, dtype=torch.bfloat16),
        torch.arange(12, dtype=torch.int16)[::3],
        torch.tensor([1.0, -3]).to(torch.float8_e5m2),
        torch.empty(3, 0),
    ],
    ids=lambda value: f"{value.dtype}{tuple(value.shape)}",
)
def test_torch_tensors(tmp_path, value):
    save_checkpoint(tmp_path, {"x": value})
    with open_checkpoint(tmp_path) as reader:
        read = reader.read_torch("x")
    assert (read.dtype, read.shape) == (value.dtype, value.shape)
    assert torch.equal(read.reshape(-1).view(torch.uint8), value.detach().contiguous().reshape(-1).view(torch.uint8))


def test_numpy_and_jax_arrays(tmp_path):
    values = {
        "big_endian": np.arange(3, dtype=">f4"),
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "bfloat16": np.array([1.5, 2], ml_dtypes.bfloat16),
        "jax": jnp.arange(3, dtype=jnp.bfloat16),
    }
    save_checkpoint(tmp_path, values)
    with open_checkpoint(tmp_path) as reader:
        for key, value in values.items():
            assert np.array_equal(reader.read(key), np.asarray(value)), key
            assert reader.dtype(key) == ("float32" if key == "big_endian" else value.dtype.name)


def test_lazy_tensors_are_made_one_at_a_time(tmp_path):
    alive = []

    class Tracked(np.ndarray):
        def __array_finalize__(self, source):
            alive.append(1)

        def __del__(self):
            alive.pop()

    def make(i):
        array = np.full(4, i, np.float32).view(Tracked)
        assert len(alive) == 1
        return array

    save_checkpoint(tmp_path, {f"x{i}": LazyTensor((4,), "float32", lambda i=i: make(i)) for i in range(3)})
    with open_checkpoint(tmp_path) as reader:
        assert [reader.read(f"x{i}")[0] for i in range(3)] == [0, 1, 2]


def test_lazy_bits_of_bfloat16(tmp_path):
    bits = np.array([0x3FC0, 0xC000], np.uint16)
    save_checkpoint(tmp_path, {"x": LazyTensor((2,), "bfloat16", lambda: bits)})
    with open_checkpoint(tmp_path) as reader:
        assert reader.read("x").tolist() == [1.5, -2]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            torch.empty(2, device="meta"),
            r"dense tensors with values can be saved. Received: x \(torch.strided on meta\)",
        ),
        (torch.eye(2).to_sparse(), r"dense tensors .* Received: x \(torch.sparse_coo on cpu\)"),
        (torch.zeros(2, dtype=torch.complex128), "types float64, .* Received: complex128"),
        (np.array(["text"]), "must have one of the types .* Received: str"),
        (np.array([object()]), "Received: object"),
        (
            LazyTensor((2,), "float32", lambda: np.zeros(3, np.float32)),
            r"announced as float32 \(2,\). Received: float32 \(3,\)",
        ),
        (LazyTensor((2,), "float32", lambda: np.zeros(2)), r"announced as float32 \(2,\). Received: float64 \(2,\)"),
    ],
    ids=["meta", "sparse", "complex128", "text", "object", "lazy shape", "lazy type"],
)
def test_values_that_cannot_be_saved_leave_the_old_checkpoint(tmp_path, value, message):
    save_checkpoint(tmp_path, {"old": np.ones(1)})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(tmp_path, {"x": value})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_reserved_name(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be named __metadata__"):
        save_checkpoint(tmp_path, {"__metadata__": np.ones(1)})


def test_file_in_place_of_the_directory(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is saved into a directory. Received a file: .*file"):
        save_checkpoint(tmp_path / "file", {"x": np.ones(1)})


def test_directories_are_made_and_files_follow_the_umask(tmp_path):
    directory = tmp_path / "a" / "b"
    save_checkpoint(directory, {"x": np.ones(1)}, files={"config.json": b"{}"})
    reference = tmp_path / "reference"
    reference.touch()
    for name in ("model.safetensors", "config.json"):
        assert stat.S_IMODE((directory / name).stat().st_mode) == stat.S_IMODE(reference.stat().st_mode)


def test_shards_load_in_transformers_layout(tmp_path):
    values = {key: np.full(4, i, np.float32) for i, key in enumerate("abcde")}
    save_checkpoint(tmp_path, values, max_shard_size=32)
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert names(tmp_path) == [*shards, "model.safetensors.index.json"]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 80
    assert index["weight_map"] == {key: shards[i // 2] for i, key in enumerate("abcde")}
    for name in shards:
        held = safetensors.numpy.load_file(tmp_path / name)
        assert held.keys() == {key for key, shard in index["weight_map"].items() if shard == name}
        assert all(same(held[key], values[key]) for key in held)


def test_tensor_larger_than_a_shard_gets_its_own():
    assert split_into_shards({"a": 1, "b": 9, "c": 1, "d": 1}, 3) == {
        "model-00001-of-00003.safetensors": ["a"],
        "model-00002-of-00003.safetensors": ["b"],
        "model-00003-of-00003.safetensors": ["c", "d"],
    }
    assert split_into_shards({"a": 9}, 3) == {"model.safetensors": ["a"]}
    assert split_into_shards({}, 3) == {"model.safetensors": []}


@pytest.mark.parametrize(
    ("text", "size"),
    [(7, 7), ("7", 7), ("5GB", 5 * 10**9), ("2 MiB", 2 << 20), ("1kb", 1000), ("3TiB", 3 << 40), ("10B", 10)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "5 apples", "-1", 0, "1.5GB", -3])
def test_no_sizes(text, tmp_path):
    with pytest.raises(
        CheckpointError, match="max_shard_size must be bytes above 0 or a text such as '5GB'. Received: "
    ):
        save_checkpoint(tmp_path, {"x": np.ones(1)}, max_shard_size=text)


STALE = [
    "model.safetensors",
    "model.safetensors.index.json",
    "model-00001-of-00009.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model-00002-of-00003.bin",
]
KEPT = [
    "tf_model.h5",
    "flax_model.msgpack",
    "vocab.txt",
    "adapter_model.safetensors",
    "optimizer.bin",
    "model-final.safetensors",
]


@pytest.mark.parametrize("max_shard_size", ["5GB", 8])
def test_weights_of_the_old_checkpoint_go_and_other_files_stay(tmp_path, max_shard_size):
    for name in [*STALE, *KEPT]:
        (tmp_path / name).write_text("old")
    save_checkpoint(tmp_path, {"a": np.ones(1), "b": np.ones(1)}, max_shard_size=max_shard_size)
    left = [path.name for path in tmp_path.iterdir() if path.read_bytes() == b"old"]
    assert sorted(left) == sorted(KEPT)
    with open_checkpoint(tmp_path) as reader:
        assert reader.keys() == ["a", "b"]


def test_target_that_is_a_link_is_replaced_not_written_through(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("keep")
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "model.safetensors").symlink_to(precious)
    save_checkpoint(directory, {"x": np.ones(1)})
    assert precious.read_text() == "keep"
    assert not (directory / "model.safetensors").is_symlink()
