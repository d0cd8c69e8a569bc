"""Whether calling a module does what its class says, and nobody looks on: the one condition of every fast path."""

from __future__ import annotations

import functools
from collections.abc import Collection

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from longspan.ops.torch.modes import is_intercepted

Kinds = Collection[type[nn.Module]]

#: classes of `torch.nn` that the models consist of
_STOCK = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.BatchNorm1d, nn.Dropout, nn.Identity, nn.ModuleList)
#: what they do, unless somebody patches the class
_FORWARDS: dict[type, object] = {kind: kind.forward for kind in _STOCK}


def is_plain(module: nn.Module, *, kinds: Kinds | None = None, deep: bool = True) -> bool:
    """True if the module and those inside it may be replaced by a function of their parameters.

    Each must be of a class of longspan or a plain layer of `torch.nn`, not of a subclass (adapters, quantisers,
    parametrizations and sharding bring their own); have no hook, and no `forward` of its own (accelerate sets one to
    bring weights along); not be compiled; and hold its parameters as `nn.Parameter` itself, on one device (quantised
    and sharded ones are of other classes).

    Args:
        module: What is to be replaced.
        kinds: The only classes that it and the modules inside it may have.
        deep: Look at the modules inside it too.
    """
    if _has_any_global_hook() or is_intercepted():
        return False
    devices: set[torch.device] = set()
    return _is_plain(module, kinds, devices, deep=deep) and len(devices) <= 1


def _is_plain(module: nn.Module, kinds: Kinds | None, devices: set[torch.device], *, deep: bool = True) -> bool:
    kind = type(module)
    if (
        not _is_known(kind)
        or (kinds is not None and kind not in kinds)
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl is not None
        or "forward" in module.__dict__
    ):
        return False
    for parameter in module._parameters.values():
        if parameter is not None:
            if type(parameter) is not nn.Parameter:
                return False
            devices.add(parameter.device)
    return not deep or all(inner is None or _is_plain(inner, kinds, devices) for inner in module._modules.values())


def _is_known(kind: type[nn.Module]) -> bool:
    forward = _FORWARDS.get(kind)
    return _is_ours(kind.__module__) if forward is None else kind.forward is forward


@functools.cache
def _is_ours(module: str) -> bool:
    return module.startswith("longspan.")
