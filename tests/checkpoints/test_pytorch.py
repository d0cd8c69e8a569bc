"""Reading `pytorch_model.bin` without PyTorch: values against `torch.load`, and pickles that are refused."""

import os
import pickle
import pickletools
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from longspan.checkpoints.files import open_checkpoint
from longspan.checkpoints.formats_pytorch import PytorchReader
from longspan.errors import CheckpointError, UnsafeCheckpointError

ZIP, LEGACY = True, False


def state_dict():
    torch.manual_seed(3)
    table = torch.randn(6, 5)
    linear = torch.nn.Linear(3, 4)
    linear.register_buffer("steps", torch.tensor(7))
    state = linear.state_dict()  # an OrderedDict with the attribute _metadata
    state.update(
        parameter=torch.nn.Parameter(table),
        table=table,
        transposed=table.t(),
        strided=table[1:5, ::2],
        tail=table[4],
        expanded_axis=torch.arange(5).expand((1, -1)),
        empty=torch.empty(0, 3),
        half=table.half(),
        bfloat16=table.bfloat16(),
        double=table.double(),
        boolean=table > 0,
        byte=torch.arange(4, dtype=torch.uint8),
        short=torch.arange(-2, 3, dtype=torch.int16),
        complex=torch.randn(3, dtype=torch.complex64),
    )
    return state


@pytest.mark.parametrize("container", [ZIP, LEGACY])
def test_values_equal_torch_load(tmp_path, container):
    path = tmp_path / "pytorch_model.bin"
    torch.save(state_dict(), path, _use_new_zipfile_serialization=container)
    expected = torch.load(path, weights_only=True)
    with open_checkpoint(tmp_path) as reader:
        assert reader.format == "pytorch"
        assert reader.keys() == list(expected)
        for key, value in expected.items():
            read = reader.read_torch(key)
            assert (reader.shape(key), read.dtype) == (tuple(value.shape), value.dtype)
            assert torch.equal(read, value), key
            assert reader.read_raw(key).tobytes() == bytes(value.detach().contiguous().view(-1).view(torch.uint8))


@pytest.mark.parametrize("container", [ZIP, LEGACY])
def test_shared_memory_is_known(tmp_path, container):
    torch.save(state_dict(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=container)
    with open_checkpoint(tmp_path) as reader:
        assert reader.share_memory("table", "parameter")
        assert not reader.share_memory("table", "transposed")
        assert not reader.share_memory("table", "double")


def test_types_without_a_storage_class(tmp_path):
    state = {"float8": torch.tensor([1.5, -2]).to(torch.float8_e4m3fn), "wide": torch.tensor([3, 4]).to(torch.uint32)}
    torch.save(state, tmp_path / "pytorch_model.bin")
    with open_checkpoint(tmp_path) as reader:
        for key, value in state.items():
            assert torch.equal(reader.read_torch(key).view(torch.uint8), value.view(torch.uint8))


def test_storage_on_a_gpu(tmp_path):
    """Old files name the class of the device's storage; no PyTorch build is needed to read them."""
    path = tmp_path / "pytorch_model.bin"
    torch.save({"x": torch.arange(3.0)}, path)
    rewrite(path, lambda data: data.replace(b"torch\nFloatStorage", b"torch.cuda\nFloatStorage"))
    with PytorchReader(path, verify=False) as reader:
        assert reader.read("x").tolist() == [0, 1, 2]


def test_neither_format_imports_torch(tmp_path):
    for container in (ZIP, LEGACY):
        torch.save(state_dict(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=container)
        script = (
            "import sys; from longspan.checkpoints.files import open_checkpoint\n"
            f"with open_checkpoint({str(tmp_path)!r}) as reader:\n"
            "    assert reader.read('weight').shape == (4, 3)\n"
            "assert not {'torch', 'jax', 'tensorflow'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", script], check=True)


def rewrite(path, change):
    """Change data.pkl inside an archive of torch.save."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)


class Harmful:
    """Makes a directory when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("wrap", ["zip", "legacy", "bare"])
def test_pickle_that_runs_code_is_refused_and_nothing_runs(tmp_path, wrap, protocol):
    path, trace = tmp_path / "pytorch_model.bin", tmp_path / "trace"
    content = {"weight": Harmful(trace)}
    if wrap == "bare":
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    else:
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=wrap == "zip")
    with pytest.raises(UnsafeCheckpointError, match=r"nothing in it is run\. Received: \w+\.mkdir"):
        open_checkpoint(tmp_path)
    assert not trace.exists()
    if protocol >= 2:  # the file is a live one: the standard reader does run it
        torch.load(path, weights_only=False) if wrap != "bare" else pickle.loads(path.read_bytes())
        assert trace.exists()


@pytest.mark.parametrize(
    ("program", "received"),
    [
        (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", "os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R.", "os.system"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "a call of torch.FloatStorage"),
        (b"\x80\x02}X\x01\x00\x00\x00aR.", "a call of dict"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}b.", "attributes for a Name"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "the instruction NEWOBJ"),
        (b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.", "builtins.eval"),
        (b"\x80\x02(X\x01\x00\x00\x001ios\nsystem\n.", "the instruction INST"),
        (b"\x80\x02\x82\x01.", "the instruction EXT1"),
        (b"\x80\x02ctorch._utils\n_rebuild_device_tensor_from_numpy\n.", "_rebuild_device_tensor_from_numpy"),
    ],
)
def test_instructions_beyond_data_are_refused(tmp_path, program, received):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(program)
    with pytest.raises(UnsafeCheckpointError, match=f"nothing but tensors and plain data.* Received: .*{received}"):
        PytorchReader(path)


def test_functions_of_the_table_cannot_be_changed(tmp_path):
    """Setting attributes of a global is the usual way around a table of allowed names."""
    path = tmp_path / "pytorch_model.bin"
    program = b"\x80\x02ccollections\nOrderedDict\n(dX\x08\x00\x00\x00__call__K\x01sb."
    path.write_bytes(program)
    with pytest.raises(UnsafeCheckpointError, match="attributes for a Name"):
        PytorchReader(path)
    assert OrderedDict() == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "must hold a mapping from names to tensors. Received: list"),
        ({"model": {"x": torch.ones(1)}, "epoch": 3}, "flat mapping.* Received also: 'model': dict, 'epoch': int"),
        ({1: torch.ones(1)}, "Received also: 1: _Tensor"),
        (
            {"x": torch.ones(1).expand(9)},
            r"must lie inside its storage of 4 bytes. Received: shape \(9,\), strides \(0,\)",
        ),
    ],
)
@pytest.mark.parametrize("container", [ZIP, LEGACY])
def test_content_that_is_no_state_dict(tmp_path, content, message, container):
    torch.save(content, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=container)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"K\x02K\x03\x86", b"K\x02K\x09\x86"),  # shape beyond the storage
        (b"K\x00K\x02K\x03\x86", b"K\x05K\x02K\x03\x86"),  # start beyond the storage
        (b"K\x03K\x01\x86", b"K\x09K\x01\x86"),  # strides beyond the storage
        (b"K\x03K\x01\x86", b"K\x01\x85"),  # fewer strides than axes
        (b"K\x02K\x03\x86", b"K\x02J\xff\xff\xff\xff\x86"),  # negative length
        (b"K\x02K\x03\x86", b"K\x02G\x40\x08\x00\x00\x00\x00\x00\x00\x86"),  # a length that is no whole number
    ],
)
def test_views_that_leave_their_storage(tmp_path, old, new):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"x": torch.arange(6.0).reshape(2, 3)}, path)
    assert old in pickletools.optimize(_data_pkl(path))
    rewrite(path, lambda data: pickletools.optimize(data).replace(old, new, 1))
    with pytest.raises(CheckpointError, match="must lie inside its storage of 24 bytes"):
        PytorchReader(path)


def _data_pkl(path):
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def test_damaged_archives(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"x": torch.arange(6.0)}, path)
    whole = path.read_bytes()

    def refused(message, content=None, records=None, compression=zipfile.ZIP_STORED):
        if records is None:
            path.write_bytes(content)
        else:
            with zipfile.ZipFile(path, "w", compression) as archive:
                for name, data in records:
                    archive.writestr(name, data)
        with pytest.raises(CheckpointError, match=message):
            PytorchReader(path).read("x")

    program = _data_pkl(path)
    sound = [("m/data.pkl", program), ("m/data/0", bytes(24))]
    refused("no file of torch.save: it looks like a zip archive", whole[: len(whole) // 2])
    refused("one data.pkl", records=[("m/other", b"")])
    refused("one data.pkl", records=[*sound, ("n/data.pkl", program)])
    refused("storage 0 needs 24 bytes, there is nothing", records=sound[:1])
    refused("storage 0 needs 24 bytes, there is 23 bytes", records=[sound[0], ("m/data/0", bytes(23))])
    refused("must hold its files uncompressed. Received: m/data.pkl", records=sound, compression=zipfile.ZIP_DEFLATED)
    refused("must hold little-endian numbers", records=[*sound, ("m/byteorder", b"big")])
    refused("holds a damaged pickle: ", records=[("m/data.pkl", program[:-20]), sound[1]])
    refused("holds a damaged pickle: ", records=[("m/data.pkl", program[:40] + b"\xff" + program[41:]), sound[1]])
    refused("unknown protocol, 9", records=[("m/data.pkl", b"\x80\x09}."), sound[1]])
    refused(
        "must describe a whole storage", records=[("m/data.pkl", b"\x80\x02(K\x01K\x02K\x03K\x04K\x05tQ."), sound[1]]
    )


def test_zip_with_a_file_twice(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02}.")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("m/data.pkl", b"\x80\x02}.")
    with pytest.raises(CheckpointError, match="it must hold each file once"):
        PytorchReader(path)


@pytest.mark.parametrize("with_crc", [True, False])
def test_flipped_bit_in_a_storage(tmp_path, with_crc):
    path = tmp_path / "pytorch_model.bin"
    torch.serialization.set_crc32_options(with_crc)
    try:
        torch.save({"x": torch.arange(50.0), "part": torch.arange(9.0)[2:4]}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    content = bytearray(path.read_bytes())
    content[content.find(np.float32(49).tobytes())] ^= 1
    path.write_bytes(content)
    with PytorchReader(path) as reader:
        assert reader.read("part").tolist() == [2, 3]
        if with_crc:
            with pytest.raises(CheckpointError, match="the values of x do not match their checksum"):
                reader.read("x")
        else:
            assert reader.read("x")[49] != 49
    with PytorchReader(path, verify=False) as reader:
        assert reader.read("x")[49] != 49


def test_truncated_legacy_file(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"x": torch.arange(6.0), "y": torch.arange(3)}, path, _use_new_zipfile_serialization=LEGACY)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            PytorchReader(path)


@pytest.mark.parametrize("extra", [1, 8, 12])
def test_legacy_file_with_extra_bytes(tmp_path, extra):
    """Bytes put between the values shift those behind them; the format has no checksums, so its length must fit."""
    path = tmp_path / "pytorch_model.bin"
    torch.save({"x": torch.arange(6.0)}, path, _use_new_zipfile_serialization=LEGACY)
    content = path.read_bytes()
    for position in (len(content) - 20, len(content)):
        path.write_bytes(content[:position] + bytes(extra) + content[position:])
        with pytest.raises(CheckpointError, match=f"is damaged: {extra} bytes follow the last storage"):
            PytorchReader(path)


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"", "empty"), (b"<html>", "an HTML page"), (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer")],
)
def test_file_of_another_kind(tmp_path, content, kind):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"is no file of torch.save: it looks like {kind}"):
        PytorchReader(path)


def test_claimed_length_takes_no_memory(tmp_path):
    """A pickle may claim a text of an exabyte; only what the file has is read."""
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(b"\x80\x04\x8d" + (1 << 60).to_bytes(8, "little") + b"abc")
    with pytest.raises(CheckpointError, match="no file of torch"):
        PytorchReader(path)


def test_refused_files_are_closed(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(b"junk")
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(5):
        with pytest.raises(CheckpointError):
            PytorchReader(path)
    assert len(list(descriptors.iterdir())) == before
