"""Loading a checkpoint costs its own size and little more; saving one costs little at all."""

import json
import subprocess
import sys
from pathlib import Path

import h5py
import msgpack
import numpy as np
import pytest
import torch

MB = 1 << 20
#: (out, in): a large table of 64 MiB and nine layers of 16 MiB
SHAPES = {"shared": (64 * 1024, 256), **{f"layer.{i}": (4096, 1024) for i in range(9)}}


@pytest.fixture(scope="module")
def measure():
    """What `memory_worker.py` measures of an action on a directory: bytes of a checkpoint, and of the growth."""
    worker = Path(__file__).with_name("memory_worker.py")
    environment = {"PYTHONPATH": str(worker.parents[2]), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, worker], env=environment, **pipes) as process:

        def ask(action, directory):
            print(action, directory, file=process.stdin, flush=True)
            size, growth = map(int, process.stdout.readline().split())
            return size, growth

        yield ask


def write_safetensors(directory):
    """Holes in the file read as zeros, so that it takes no time to write and no room on the disk."""
    begin, header = 0, {}
    for key, shape in SHAPES.items():
        end = begin + 4 * int(np.prod(shape))
        header[f"{key}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + begin)


def write_pytorch(directory, **options):
    state = {f"{key}.weight": torch.zeros(shape) for key, shape in SHAPES.items()}
    torch.save(state, directory / "pytorch_model.bin", **options)


def write_legacy_pytorch(directory):
    write_pytorch(directory, _use_new_zipfile_serialization=False)


def write_flax(directory):
    packer = msgpack.Packer()
    with (directory / "flax_model.msgpack").open("wb") as file:
        file.write(packer.pack_map_header(len(SHAPES)))
        for key, shape in SHAPES.items():
            file.write(packer.pack(key) + packer.pack_map_header(1) + packer.pack("kernel"))
            size = 4 * int(np.prod(shape))
            inner = packer.pack_array_header(3) + packer.pack(shape[::-1]) + packer.pack("float32")
            inner += b"\xc6" + size.to_bytes(4, "big")
            file.write(b"\xc9" + (len(inner) + size).to_bytes(4, "big") + b"\x01" + inner)
            file.truncate(file.tell() + size)
            file.seek(0, 2)


def write_tf(directory):
    with h5py.File(directory / "tf_model.h5", "w") as file:
        group = file.create_group("t5")
        group.attrs["weight_names"] = []
        for key, shape in SHAPES.items():
            group.create_dataset(f"tf/t5/{key}/kernel:0", data=np.ones(shape[::-1], np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_safetensors, write_pytorch, write_legacy_pytorch, write_flax, write_tf])
def test_loading_peaks_close_to_the_size_of_the_checkpoint(measure, tmp_path, write):
    write(tmp_path)
    size, growth = measure("load", tmp_path)
    assert size == 208 * MB
    assert 0.9 * size < growth < 1.1 * size


@pytest.mark.slow
def test_loading_a_larger_one(measure, tmp_path, monkeypatch):
    monkeypatch.setitem(SHAPES, "rest", (12 * 4096, 1024))
    write_safetensors(tmp_path)
    size, growth = measure("load", tmp_path)
    assert size == 400 * MB
    assert 0.9 * size < growth < 1.1 * size


@pytest.mark.slow
def test_the_measure_sees_a_second_copy(measure, tmp_path):
    """The same measure on the `safetensors` package, which maps the file: the copy out of the map is seen."""
    write_safetensors(tmp_path)
    size, growth = measure("reference", tmp_path)
    assert growth > 1.8 * size


@pytest.mark.slow
def test_saving_takes_no_copy(measure, tmp_path):
    size, growth = measure("save", tmp_path)
    assert size == 50 * 10**6
    assert growth < 0.2 * size
