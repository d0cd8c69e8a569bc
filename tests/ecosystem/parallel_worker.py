"""Two processes: DDP and FSDP2 give every family the gradients of one process with the whole batch."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import torch
from torch import distributed as dist
from torch import multiprocessing

sys.path.insert(0, str(Path(__file__).parents[2]))


def gradients(model, inputs):
    model(**inputs).loss.backward()
    found = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if gradient is not None:
            found[name.removeprefix("module.")] = (
                gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
            )
    return found


def work(rank, port):
    from tests.ecosystem.models import LANGUAGE_MODELS, batch, make
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import init_device_mesh

    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for name in LANGUAGE_MODELS.values():
        expected = gradients(make(name), batch(name))
        own = {key: value[rank : rank + 1] for key, value in batch(name).items()}
        sharded = make(name)
        for module in sharded.modules():
            if type(module).__name__ in sharded._no_split_modules:
                fully_shard(module, mesh=mesh)
        models = {
            "DDP": torch.nn.parallel.DistributedDataParallel(make(name), find_unused_parameters=True),
            "FSDP2": fully_shard(sharded, mesh=mesh),
        }
        for kind, model in models.items():
            got = gradients(model, own)
            assert got.keys() >= expected.keys(), (name, kind)
            for key, gradient in expected.items():
                error = (got[key] - gradient).abs().max() / gradient.abs().max().clamp_min(1e-6)
                assert error < 1e-4, (name, kind, key, float(error))
            if rank == 0:
                print(name, kind, "equal", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(work, (port,), nprocs=2)
