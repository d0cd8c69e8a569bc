"""Weights, gradients and moments split over processes (FSDP2), and the state of a run as one, however it is split.

accelerate splits models on accelerators alone; `fully_shard` does it on a CPU too, and the loop is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
#: parameters that no loss reaches have no moments
_MOMENTS = StateDictOptions(full_state_dict=True, strict=False)
_WEIGHTS_PREFIX, _MOMENTS_PREFIX = "model.", "optimizer."


def shard(model: nn.Module, layers: Sequence[str], device: torch.device) -> nn.Module:
    """Leave each process its part of every weight; the layers are put together one by one when they are needed.

    Args:
        model: The model, in each process with the same weights; it is changed.
        layers: Names of the classes of its layers.
        device: Where the processes compute.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for module in list(model.modules()):
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """For the time of the block each process has all weights, for code that reads them outside of layers' calls."""
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not model, recurse=False)


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights under the names of the model alone, on the CPU of the first process; all processes call it."""
    weights: dict[str, Any] = get_model_state_dict(model, options=_WHOLE)
    return weights


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Weights and moments, as `whole_weights`, and the optimizer's settings, which JSON can hold."""
    found = {f"{_WEIGHTS_PREFIX}{name}": tensor for name, tensor in whole_weights(model).items()}
    of_optimizer: Any = get_optimizer_state_dict(model, optimizer, options=_WHOLE)
    for name, moments in of_optimizer.get("state", {}).items():
        found |= {f"{_MOMENTS_PREFIX}{name}.{moment}": tensor for moment, tensor in moments.items()}
    return found, of_optimizer.get("param_groups", [])


def restore_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """Take what `state_of` gave, in a run that may be split otherwise; all processes call it with all of it."""
    weights: dict[str, Any] = {}
    moments: dict[str, Any] = {}
    for key, tensor in tensors.items():
        if key.startswith(_WEIGHTS_PREFIX):
            weights[key.removeprefix(_WEIGHTS_PREFIX)] = tensor
        else:
            name, _, moment = key.removeprefix(_MOMENTS_PREFIX).rpartition(".")
            moments.setdefault(name, {})[moment] = tensor
    set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True))
    settings = [{**group, "betas": tuple(group["betas"])} for group in groups]
    set_optimizer_state_dict(model, optimizer, {"state": moments, "param_groups": settings}, options=_MOMENTS)
