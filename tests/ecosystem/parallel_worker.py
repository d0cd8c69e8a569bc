"""Two processes: DDP and FSDP2 give every family the gradients of one process with the whole batch, and its tokens."""

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


def shard(model, mesh):
    from torch.distributed.fsdp import fully_shard

    for module in model.modules():
        if type(module).__name__ in model._no_split_modules:
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def generate(rank, mesh):
    """Rows of unequal lengths; the process that ends first must go on for the other."""
    from tests.ecosystem.models import IDS, make

    for name in ("DiffLlamaForCausalLM", "MegaForCausalLM", "BertLMHeadModel", "LongT5ForConditionalGeneration"):
        settings = {"max_new_tokens": 3 + 5 * rank, "do_sample": False, "eos_token_id": None}
        expected = make(name).generate(IDS, **settings)
        model, synced = make(name), {"synced_gpus": True}
        if "LongT5" not in name:  # whose encoder `generate` calls by itself, as the reference does
            model, synced = shard(model, mesh), {}
        for beams in (1, 2):
            got = model.generate(IDS, **settings, **synced, num_beams=beams)
            assert beams == 2 or torch.equal(got, expected), (name, got, expected)
            dist.barrier()
        if rank == 0:
            print(name, "generates the same", flush=True)


def work(rank, port):
    from tests.ecosystem.models import LANGUAGE_MODELS, batch, make
    from torch.distributed.tensor import init_device_mesh

    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for name in LANGUAGE_MODELS.values():
        expected = gradients(make(name), batch(name))
        own = {key: value[rank : rank + 1] for key, value in batch(name).items()}
        models = {
            "DDP": torch.nn.parallel.DistributedDataParallel(make(name), find_unused_parameters=True),
            "FSDP2": shard(make(name), mesh),
        }
        for kind, model in models.items():
            got = gradients(model, own)
            assert got.keys() >= expected.keys(), (name, kind)
            for key, gradient in expected.items():
                error = (got[key] - gradient).abs().max() / gradient.abs().max().clamp_min(1e-6)
                assert error < 1e-4, (name, kind, key, float(error))
            if rank == 0:
                print(name, kind, "equal", flush=True)
    generate(rank, mesh)
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # PyTorch's threads of a group can end a process by SIGABRT while the interpreter takes it down


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(work, (port,), nprocs=2)
