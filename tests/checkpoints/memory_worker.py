"""Measures the memory that loading or saving takes: reads lines `load|save|reference DIRECTORY`.

Prints for each the size of the checkpoint and the growth of the peak of resident memory, both in bytes. Each is done in
a forked process, so that libraries are imported once.
"""

import sys
from pathlib import Path

import torch
from tests import forked

from longspan.checkpoints.files import open_checkpoint, save_checkpoint


def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure(action, directory):
    if action == "save":
        tensors = {f"w{i}": torch.ones(250_000 * (1 + i % 4)) for i in range(20)}
        size = sum(tensor.nbytes for tensor in tensors.values())
        before = status("VmRSS")
        save_checkpoint(directory, tensors, max_shard_size="30MB")
    elif action == "reference":
        import safetensors.torch

        before = status("VmRSS")
        loaded = safetensors.torch.load_file(directory / "model.safetensors")
        loaded = {key: value.clone() for key, value in loaded.items()}
        size = sum(tensor.nbytes for tensor in loaded.values())
    else:
        with open_checkpoint(directory) as reader:
            size = sum(map(reader.nbytes, reader))
            reader.read_torch(min(reader, key=reader.nbytes))
            before = status("VmRSS")
            loaded = {}
            for key in reader:
                loaded[key] = torch.empty(reader.shape(key), dtype=getattr(torch, reader.dtype(key)))
                reader.fill_torch(key, loaded[key])
    print(size, status("VmHWM") - before)
    return 0


if __name__ == "__main__":
    for line in sys.stdin:
        action, directory = line.rstrip("\n").split(" ", 1)
        assert forked.finish(forked.start(lambda do=action, at=Path(directory): measure(do, at))) == 0
