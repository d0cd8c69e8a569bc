"""Under which modes of PyTorch a call is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from longspan.ops.fast_paths import fast_path

Function = TypeVar("Function", bound=Callable[..., object])


def constant_when_traced(function: Function) -> Function:
    """Mark a function whose result a traced graph keeps.

    As `torch.compiler.assume_constant_result`, which imports the compiler, seconds of work, to set this attribute.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


def is_traced(tensor: Tensor) -> bool:
    """True inside torch.compile, torch.export, torch.jit.trace and transforms of torch.func."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]  # not exported by its stubs
        or torch._C._are_functorch_transforms_active()
        or type(tensor) not in (Tensor, torch.nn.Parameter)
    )


def is_intercepted() -> bool:
    """True if a function mode sees each call of PyTorch, other than those of a default device and of export."""
    if torch._C._len_torch_function_stack() == 0 or torch.compiler.is_exporting():
        return False
    return any(type(mode) is not DeviceContext for mode in _get_current_function_mode_stack())


def is_bound_to_thread() -> bool:
    """True under a mode that another thread would not know of: autocast, a profiler, one that sees each call."""
    return (
        torch.is_autocast_enabled("cpu")
        or torch._C._autograd._profiler_enabled()
        or torch._C._len_torch_function_stack() > 0
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
    )


@constant_when_traced
def has_fast_path(name: str) -> bool:
    """True if `fast_path` has an answer; a traced graph keeps it."""
    return fast_path(name) is not None
