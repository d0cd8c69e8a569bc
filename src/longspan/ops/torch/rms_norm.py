"""Root-mean-square normalisation (Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from longspan.ops.fast_paths import fast_path
from longspan.ops.torch.modes import is_traced

#: entries up to which the number of calls counts and not their memory, as when one token is generated
_FEW_ENTRIES = 2**14


def rms_norm(x: Tensor, weight: Tensor | float, eps: float) -> Tensor:
    """Weight · x / √(mean(x²) + eps) over the last axis, with the mean and the root in float32.

    Args:
        x: (..., H).
        weight: (H,), or a positive number.
        eps: Added to the mean square.

    Returns:
        (..., H) in the dtype of `x`.
    """
    width = x.shape[-1]
    tracks = torch.is_grad_enabled() and (x.requires_grad or (isinstance(weight, Tensor) and weight.requires_grad))
    usual = tracks or x.device.type != "cpu" or is_traced(x) or x.numel() <= _FEW_ENTRIES
    kernel = None if usual else fast_path("rms_norm.rms_norm")
    if kernel is not None:
        return kernel(x, weight, eps)
    return F.rms_norm(x, (width,), weight if isinstance(weight, Tensor) else x.new_full((width,), weight), eps)
