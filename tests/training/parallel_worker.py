"""Two processes under accelerate, DDP and FSDP2: the gradients of a step are those of one process."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import torch
from torch import distributed as dist
from torch import multiprocessing

sys.path.insert(0, str(Path(__file__).parents[2]))


def prepared_loop(encoder):
    from tests.training.conftest import SETTINGS, documents

    from longspan.training.loop import Loop
    from longspan.training.options import TrainOptions
    from longspan.training.runs import prepare

    options = TrainOptions.of(SETTINGS | {"micro_tokens": 130, "batch_tokens": 1200})
    return Loop(
        prepare("classify", encoder, documents(12, seed=3), "unused", validation=[], options=options),
        show_progress=False,
    )


def gradients(encoder):
    loop = prepared_loop(encoder)
    loop.model.eval()  # no dropout
    step = max(loop.epoch(0), key=lambda step: len(step.passes))
    assert len(step.passes) % 2, "one process has a pass less"
    loss = loop.accumulate(step)
    found, kinds = {}, set()
    for name, parameter in loop.model.named_parameters():
        if parameter.grad is not None:
            gradient = parameter.grad
            kinds.add(type(gradient).__name__)
            found[name.removeprefix("module.")] = (
                gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
            )
    return loss, found, kinds


def shard(model):
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import init_device_mesh

    mesh = init_device_mesh("cpu", (2,))
    for module in model.modules():
        if type(module).__name__ in model._no_split_modules:
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def work(rank, port, encoder, folder, kind, expected):
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank),
                   "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}  # fmt: skip
    if kind == "fsdp2":  # accelerate shards on accelerators alone; the loop is the same
        from accelerate import Accelerator

        Accelerator.prepare_model = lambda self, model, **_: shard(model)
    from tests.training.conftest import SETTINGS, documents

    from longspan.training.runs import finetune

    loss, found, kinds = gradients(encoder)
    assert kinds == {"DTensor" if kind == "fsdp2" else "Tensor"}
    assert abs(loss - expected[0]) < 1e-6 * abs(expected[0]), (loss, expected[0])
    assert found.keys() == expected[1].keys(), found.keys() ^ expected[1].keys()
    largest = max(float(each.abs().max()) for each in expected[1].values())
    for name, gradient in expected[1].items():
        assert (found[name] - gradient).abs().max() < 1e-5 * largest, (name, kind)
    if kind == "ddp":
        finetune("classify", encoder, documents(16, seed=4), Path(folder) / kind, epochs=1, **SETTINGS)
    if rank == 0:
        print(kind, "equal", flush=True)
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # PyTorch's threads of a group can end a process by SIGABRT while the interpreter takes it down


if __name__ == "__main__":
    torch.set_num_threads(1)
    expected = gradients(sys.argv[1])
    for kind in ("ddp", "fsdp2"):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        multiprocessing.spawn(work, (port, *sys.argv[1:3], kind, expected), nprocs=2)
