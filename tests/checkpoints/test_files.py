"""Which file holds the weights; shards and their index."""

import json
import re

import numpy as np
import pytest
import safetensors.numpy
import torch
from tests.checkpoints.conftest import same

from longspan.checkpoints.files import open_checkpoint, save_checkpoint
from longspan.checkpoints.hub import Source
from longspan.errors import CheckpointError, CheckpointNotFoundError, UnsafeCheckpointError

INDEX = "model.safetensors.index.json"


def write_index(directory, weight_map, name=INDEX):
    (directory / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.fixture
def shards(tmp_path):
    """A directory with two shards, and its tensors."""
    directory = tmp_path / "model"
    directory.mkdir()
    tensors = {key: np.full(3, i, np.float32) for i, key in enumerate("abc")}
    safetensors.numpy.save_file({"a": tensors["a"], "b": tensors["b"]}, directory / "one.safetensors")
    safetensors.numpy.save_file({"c": tensors["c"]}, directory / "two.safetensors")
    write_index(directory, {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"})
    return directory, tensors


def test_directory_without_weights_says_what_was_sought_and_what_is_there(tmp_path):
    (tmp_path / "vocab.txt").touch()
    (tmp_path / "config.json").touch()
    message = (
        r"must hold its weights in one of the files model\.safetensors, model\.safetensors\.index\.json, "
        r"pytorch_model\.bin, .*flax_model\.msgpack, .*tf_model\.h5, .*\. "
        rf"Received: {re.escape(str(tmp_path))}, which holds config\.json, vocab\.txt"
    )
    with pytest.raises(CheckpointNotFoundError, match=message):
        open_checkpoint(tmp_path)


def test_empty_directory_and_missing_subfolder(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="which holds nothing"):
        open_checkpoint(str(tmp_path))
    with pytest.raises(CheckpointNotFoundError, match="which has no folder 'deep'"):
        open_checkpoint(Source(tmp_path, subfolder="deep"))


def test_safetensors_come_before_pickles_and_formats_restricts(tmp_path):
    save_checkpoint(tmp_path, {"x": np.zeros(1, np.float32)})
    torch.save({"x": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with open_checkpoint(tmp_path) as reader:
        assert (reader.format, reader.read("x")[0]) == ("safetensors", 0)
    with open_checkpoint(tmp_path, formats=["pytorch"]) as reader:
        assert (reader.format, reader.read("x")[0]) == ("pytorch", 1)
    with pytest.raises(CheckpointNotFoundError, match=r"files flax_model.msgpack, flax_model.msgpack.index.json\. "):
        open_checkpoint(tmp_path, formats=["flax"])


def test_variant_and_subfolder(tmp_path):
    (tmp_path / "sub").mkdir()
    value = {"x": np.ones(2, np.float16)}
    safetensors.numpy.save_file(value, tmp_path / "sub" / "model.fp16.safetensors")
    with open_checkpoint(Source(tmp_path, subfolder="sub"), variant="fp16") as reader:
        assert same(reader.read("x"), value["x"])


def test_shards_read_as_one(shards):
    directory, tensors = shards
    with open_checkpoint(directory) as reader:
        assert reader.name == str(directory / INDEX)
        assert reader.keys() == ["a", "b", "c"]
        assert all(same(reader.read(key), value) for key, value in tensors.items())
        assert not reader.share_memory("a", "c")
        assert reader.share_memory("a", "a")


def test_tensor_of_a_shard_that_the_index_does_not_list_is_kept(shards):
    directory, _ = shards
    write_index(directory, {"a": "one.safetensors", "c": "two.safetensors"})
    with open_checkpoint(directory) as reader:
        assert reader.keys() == ["a", "b", "c"]


def test_key_in_two_shards(shards):
    directory, tensors = shards
    safetensors.numpy.save_file({"b": tensors["b"], "c": tensors["c"]}, directory / "two.safetensors")
    message = "must lie in one shard. b lies in one.safetensors and two.safetensors"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(directory)


def test_index_names_a_tensor_that_its_shard_lacks(shards):
    directory, _ = shards
    write_index(directory, {"a": "two.safetensors", "b": "one.safetensors", "z": "one.safetensors"})
    with pytest.raises(CheckpointError, match=r"shards do not hold: a \(two.safetensors\), z \(one.safetensors\)"):
        open_checkpoint(directory)


def test_index_names_a_file_that_is_missing(shards):
    directory, _ = shards
    (directory / "two.safetensors").unlink()
    with pytest.raises(
        CheckpointNotFoundError, match=r"index\.json names the file 'two\.safetensors', which does not exist"
    ):
        open_checkpoint(directory)


@pytest.mark.parametrize("name", ["../outside.safetensors", "sub/../../outside.safetensors", "{absolute}"])
def test_index_names_a_file_outside(shards, tmp_path, name):
    directory, _ = shards
    outside = tmp_path / "outside.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(1, np.float32)}, outside)
    name = name.replace("{absolute}", str(outside))
    write_index(directory, {"a": name})
    with pytest.raises(UnsafeCheckpointError, match=f"names a file outside its directory: {re.escape(repr(name))}"):
        open_checkpoint(directory)


def test_index_names_a_link_that_leads_outside(shards, tmp_path):
    directory, _ = shards
    outside = tmp_path / "outside.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(1, np.float32)}, outside)
    (directory / "linked.safetensors").symlink_to(outside)
    write_index(directory, {"a": "linked.safetensors"})
    message = f"names a file outside its directory: 'linked.safetensors' is {re.escape(str(outside))}"
    with pytest.raises(UnsafeCheckpointError, match=message):
        open_checkpoint(directory)


def test_links_of_the_hub_cache_are_followed(shards, tmp_path):
    directory, tensors = shards
    snapshot = tmp_path / "snapshots" / "abc"
    blobs = tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, path in enumerate(sorted(directory.iterdir())):
        path.rename(blobs / str(i))
        (snapshot / path.name).symlink_to(blobs / str(i))
    with open_checkpoint(snapshot) as reader:
        assert all(same(reader.read(key), value) for key, value in tensors.items())


def test_shard_in_a_folder_inside_is_allowed(shards):
    directory, tensors = shards
    (directory / "deep").mkdir()
    (directory / "two.safetensors").rename(directory / "deep" / "two.safetensors")
    write_index(directory, {"a": "one.safetensors", "c": "deep/two.safetensors"})
    with open_checkpoint(directory) as reader:
        assert same(reader.read("c"), tensors["c"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "is not valid JSON: Expecting value"),
        (
            '{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}',
            "is not valid JSON: the key 'a' appears twice",
        ),
        ("[]", "must hold a JSON object. Received: list"),
        ("{}", "must hold a weight_map from tensor names to file names"),
        ('{"weight_map": {"a": 1}}', "must hold a weight_map"),
    ],
)
def test_damaged_index(shards, content, message):
    directory, _ = shards
    (directory / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(directory)


def test_sharded_pickles(tmp_path):
    torch.save({"a": torch.ones(2), "b": torch.zeros(3)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"c": torch.arange(4)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    write_index(
        tmp_path,
        {key: f"pytorch_model-0000{1 + (key == 'c')}-of-00002.bin" for key in "abc"},
        "pytorch_model.bin.index.json",
    )
    with open_checkpoint(tmp_path) as reader:
        assert reader.keys() == ["a", "b", "c"]
        assert torch.equal(reader.read_torch("c"), torch.arange(4))
