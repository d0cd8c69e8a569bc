"""Whether somebody looks into a module."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.module import _has_any_global_hook


def is_watched(module: nn.Module) -> bool:
    """True if a hook sees what goes into or comes out of this module or one inside it.

    A `forward` that somebody set on a module itself, as accelerate does to bring weights along, counts as one, and so
    does a compiled module.
    """
    return _has_any_global_hook() or _is_changed(module)


def _is_changed(module: nn.Module | None) -> bool:
    if module is None:
        return False
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or module._compiled_call_impl is not None
        or any(map(_is_changed, module._modules.values()))
    )
