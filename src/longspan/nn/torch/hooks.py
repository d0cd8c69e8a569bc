"""Whether somebody looks into a module."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.module import _has_any_global_hook


def is_watched(module: nn.Module) -> bool:
    """True if a hook sees what goes into or comes out of this module or one inside it."""
    return _has_any_global_hook() or any(
        part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
        for part in module.modules()
    )
