"""Measures the memory that loading or saving takes: `memory_worker.py load|save|reference DIRECTORY`.

Prints the size of the checkpoint and the growth of the peak of resident memory, both in bytes.
"""

import sys
from pathlib import Path

import torch

from longspan.checkpoints.files import open_checkpoint, save_checkpoint


def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main(action, directory):
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


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
