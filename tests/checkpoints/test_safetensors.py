"""Reading safetensors: values against the `safetensors` package, and every kind of damage."""

import json
import re

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from tests.checkpoints.conftest import safetensors_bytes, same

from longspan.checkpoints.files import open_checkpoint, save_checkpoint
from longspan.checkpoints.formats_safetensors import CHECKSUMS, DESCRIPTION, SafetensorsReader
from longspan.errors import CheckpointError

X = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
Y = {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "model.safetensors"
        path.write_bytes(content)
        return path

    return write


def refused(path, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        SafetensorsReader(path).close()
    assert str(path) in str(caught.value)


def test_values_equal_the_package(tmp_path, tensors):
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "np", "note": "x"})
    with open_checkpoint(tmp_path) as reader:
        assert reader.format == "safetensors"
        assert set(reader.keys()) == set(tensors)
        assert reader.metadata == {"format": "np", "note": "x"}
        for key, value in tensors.items():
            assert key in reader
            assert (reader.shape(key), reader.dtype(key)) == (value.shape, value.dtype.name)
            assert reader.nbytes(key) == value.nbytes
            assert same(reader.read(key), value)
            assert same(reader.read_torch(key).numpy(), value)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bfloat16,
        torch.float16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.uint16,
        torch.uint32,
        torch.complex64,
    ],
)
def test_types_of_torch(tmp_path, dtype):
    value = torch.linspace(-3, 5, 12).abs().to(dtype).reshape(3, 4)
    safetensors.torch.save_file({"x": value}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as reader:
        read = reader.read_torch("x")
        assert reader.dtype("x") == str(dtype).removeprefix("torch.")
        assert read.dtype == dtype
        assert torch.equal(read.view(torch.uint8), value.view(torch.uint8))
        assert reader.read("x").tobytes() == reader.read_raw("x").tobytes() == bytes(value.view(torch.uint8).flatten())


def test_bfloat16_without_ml_dtypes_names_the_package(tmp_path, monkeypatch):
    value = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    save_checkpoint(tmp_path, {"x": value})
    with open_checkpoint(tmp_path) as reader:
        assert same(reader.read("x"), value)
        monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
        with pytest.raises(CheckpointError, match=r"bfloat16 need the package ml_dtypes .* read_raw"):
            reader.read("x")
        assert same(reader.read_raw("x"), value.view(np.uint16))
        assert torch.equal(reader.read_torch("x"), torch.tensor([1.5, -2.0], dtype=torch.bfloat16))


def test_fill_torch_writes_in_place_and_converts(tmp_path, tensors):
    save_checkpoint(tmp_path, tensors)
    key = "encoder.layer.0.weight"
    with open_checkpoint(tmp_path) as reader:
        same_type = torch.zeros(5, 3)
        address = same_type.data_ptr()
        reader.fill_torch(key, same_type)
        assert same_type.data_ptr() == address
        assert same(same_type.numpy(), tensors[key])
        parameter = torch.nn.Parameter(torch.zeros(5, 3, dtype=torch.bfloat16))
        reader.fill_torch(key, parameter)
        assert torch.equal(parameter, torch.from_numpy(tensors[key]).bfloat16())
        transposed = torch.zeros(3, 5).t()
        reader.fill_torch(key, transposed)
        assert same(transposed.contiguous().numpy(), tensors[key])
        with pytest.raises(CheckpointError, match=r"encoder.layer.0.weight has the shape \(5, 3\).*Received: \(3, 5\)"):
            reader.fill_torch(key, torch.zeros(3, 5))


def test_read_into_checks_the_memory(tmp_path, tensors):
    save_checkpoint(tmp_path, tensors)
    key = "encoder.layer.0.weight"
    with open_checkpoint(tmp_path) as reader:
        out = np.zeros((5, 3), np.float32)
        reader.read_into(key, out)
        assert same(out, tensors[key])
        frozen = np.zeros((5, 3), np.float32)
        frozen.flags.writeable = False
        for wrong in (np.zeros(14, np.float32), np.zeros((3, 5), np.float32).T, frozen):
            with pytest.raises(CheckpointError, match="must be read into a writable contiguous array of 60 bytes"):
                reader.read_into(key, wrong)
        with pytest.raises(CheckpointError, match="has no tensor 'nothing'"):
            reader.read("nothing")


def test_empty_file(write):
    refused(write(b""), "it has 0 bytes, empty")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"PK\x03\x04" + bytes(60), "a zip archive, as torch.save writes"),
        (b"\x80\x02}q\x00." + bytes(60), "a Python pickle, as old versions of torch.save write"),
        (b"<!DOCTYPE html><html>not found</html>", "an HTML page, perhaps the error page of a failed download"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a Git LFS pointer.*git lfs pull"),
        (b"\x89HDF\r\n\x1a\n" + bytes(60), r"an HDF5 file \(tf_model.h5\)"),
        (b'{"a": 1, "b": 2}', "a JSON file"),
        (bytes(range(200, 250)), "no format that longspan knows"),
    ],
)
def test_file_of_another_kind_is_named(write, content, kind):
    refused(write(content), kind)


def test_header_longer_than_the_file(write):
    refused(
        write((1000).to_bytes(8, "little") + b'{"x":1}'), "cut short or damaged.*Header length: 1000 bytes, file: 15"
    )


def test_header_longer_than_the_format_allows(write):
    path = write((200_000_000).to_bytes(8, "little") + b"{}")
    with path.open("r+b") as file:
        file.truncate(300_000_000)
    refused(path, "Header length: 200000000 bytes.*longest header allowed: 100000000")


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b'{"x": ', b"", "damaged safetensors header: Expecting value"),
        (b'{"x": "\xff"}', b"", "damaged safetensors header: .*utf-8"),
        (b"[" * 100_000, b"", "damaged safetensors header: .*recursion"),
        ([1], b"", "it must be a JSON object"),
        (b'{"x": 1, "x": 2}', b"", "the key 'x' appears twice"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__ must map text to text"),
        ({"__metadata__": [1]}, b"", "__metadata__ must map text to text"),
        ({"x": 1}, b"", "x needs dtype, shape and data_offsets. Received: 1"),
        ({"x": {"dtype": "F32", "shape": [1]}}, b"", "x needs dtype, shape and data_offsets"),
        ({"x": X | {"data_offsets": [0, 4, 8]}}, bytes(8), "x needs dtype, shape and data_offsets"),
        ({"x": X | {"dtype": "F99"}}, bytes(8), "x must have one of the types F64, .* Received: F99"),
        ({"x": X | {"dtype": ["F32"]}}, bytes(8), "x must have one of the types"),
        ({"x": X | {"shape": [-2]}}, bytes(8), "shape and offsets of x must be whole numbers from 0"),
        ({"x": X | {"shape": [2.0]}}, bytes(8), "shape and offsets of x must be whole numbers from 0"),
        ({"x": X | {"shape": [True, 2]}}, bytes(8), "shape and offsets of x must be whole numbers from 0"),
        ({"x": X | {"shape": 2}}, bytes(8), "shape and offsets of x must be whole numbers from 0"),
        ({"x": X | {"data_offsets": [-4, 4]}}, bytes(8), "shape and offsets of x must be whole numbers from 0"),
        ({"x": X | {"shape": [3]}}, bytes(8), r"type F32 and shape \[3\] needs 12 bytes, its offsets hold 8"),
        ({"x": X | {"dtype": "F64"}}, bytes(8), r"type F64 and shape \[2\] needs 16 bytes, its offsets hold 8"),
        ({"x": X | {"data_offsets": [8, 0]}}, bytes(8), "needs 8 bytes, its offsets hold -8"),
        ({"x": X, "y": Y | {"data_offsets": [4, 8]}}, bytes(12), "y overlaps x .it starts at byte 4, expected 8"),
        ({"x": X, "y": Y | {"data_offsets": [12, 16]}}, bytes(16), "y leaves a gap after x"),
        ({"x": X | {"data_offsets": [4, 12]}}, bytes(12), "x leaves a gap after the header"),
        ({"x": X, "y": Y}, bytes(11), "is cut short: its header describes"),
        ({"x": X, "y": Y}, bytes(13), "has extra bytes at its end"),
        ({"__metadata__": {CHECKSUMS: "zz"}, "x": X}, bytes(8), "unreadable checksums"),
        ({"__metadata__": {CHECKSUMS: '{"x": "zz"}'}, "x": X}, bytes(8), "unreadable checksums"),
        ({"__metadata__": {CHECKSUMS: '{"z": "0"}'}, "x": X}, bytes(8), "must have the same keys.*differ in: x, z"),
    ],
)
def test_damaged_header(write, header, data, message):
    refused(write(safetensors_bytes(header, data)), message)


def test_no_tensors_is_a_sound_file(write):
    with SafetensorsReader(write(safetensors_bytes({}))) as reader:
        assert reader.keys() == []


def test_file_that_shrinks_after_it_was_opened(write):
    path = write(safetensors_bytes({"x": X}, bytes(8)))
    with SafetensorsReader(path) as reader:
        with path.open("r+b") as file:
            file.truncate(60)
        with pytest.raises(CheckpointError, match="is cut short"):
            reader.read("x")


def test_truncation_anywhere_is_noticed(tmp_path, tensors):
    save_checkpoint(tmp_path, tensors)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 9), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            SafetensorsReader(path)


def test_every_single_flipped_bit_is_noticed_or_harmless(tmp_path):
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
    save_checkpoint(tmp_path, tensors)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    noticed = 0
    for position in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            with SafetensorsReader(path) as reader:
                assert set(reader.keys()) == set(tensors)
                assert all(same(reader.read(key), value) for key, value in tensors.items()), position
        except CheckpointError:
            noticed += 1
    assert noticed > 0.8 * 8 * len(whole)


def test_flipped_bit_in_the_data_names_the_tensor_and_can_be_let_through(tmp_path, tensors):
    save_checkpoint(tmp_path, tensors)
    path = tmp_path / "model.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    last = json.loads(damaged[8 : 8 + int.from_bytes(damaged[:8], "little")])
    key = max((k for k in last if k != "__metadata__"), key=lambda k: last[k]["data_offsets"][1])
    with open_checkpoint(tmp_path) as reader:
        message = (
            rf"{re.escape(str(path))} is damaged: the values of {key} do not match their checksum \(CRC-32 \w{{8}}"
        )
        with pytest.raises(CheckpointError, match=message):
            reader.read(key)
    with open_checkpoint(tmp_path, verify=False) as reader:
        assert not same(reader.read(key), tensors[key])


@pytest.mark.parametrize(
    ("old", "new"), [(b'"F32","shape":[5,3]', b'"I32","shape":[5,3]'), (b"[5,3]", b"[3,5]"), (b".bias", b".bips")]
)
def test_the_header_has_a_checksum_of_its_own(tmp_path, tensors, old, new):
    """Types, shapes and names: bytes that leave the values' own checksums as they are."""
    save_checkpoint(tmp_path, tensors)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    assert old in content
    damaged = content.replace(old, new)
    path.write_bytes(damaged)
    refused(path, "names, types and shapes do not match their checksum")
    SafetensorsReader(path, verify=False).close()


def test_files_without_the_checksum_of_the_header_are_verified_as_far_as_they_go(tmp_path, tensors):
    save_checkpoint(tmp_path, tensors)
    path = tmp_path / "model.safetensors"
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header, data = json.loads(path.read_bytes()[8 : 8 + length]), path.read_bytes()[8 + length :]
    del header["__metadata__"][DESCRIPTION]
    path.write_bytes(safetensors_bytes(header, data))
    with SafetensorsReader(path) as reader:
        assert all(same(reader.read(key), value) for key, value in tensors.items())
    path.write_bytes(safetensors_bytes(header, bytes(len(data))))
    with SafetensorsReader(path) as reader, pytest.raises(CheckpointError, match="do not match their checksum"):
        reader.read("half")
