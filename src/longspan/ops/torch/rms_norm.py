"""Root-mean-square normalisation (Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

#: entries that the inference path takes at a time: 1 MiB of float32, which stays in the cache of a core
BLOCK_ENTRIES = 2**18
#: entries up to which the number of calls counts and not their memory, as when one token is generated
_FEW_ENTRIES = 2**14


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Weight · x / √(mean(x²) + eps) over the last axis, computed in float32.

    Without gradients on a CPU it goes block by block where there are many entries: PyTorch's own spends most of
    its time on temporaries.

    Args:
        x: (..., H).
        weight: (H,).
        eps: Added to the mean square.

    Returns:
        (..., H) in the dtype of `x`.
    """
    tracks = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if tracks or x.device.type != "cpu" or torch.compiler.is_compiling() or x.numel() <= _FEW_ENTRIES:
        return F.rms_norm(x, weight.shape, weight, eps)
    width = x.shape[-1]
    flat = x.reshape(-1, width)
    normed = torch.empty_like(flat)
    size = max(BLOCK_ENTRIES // width, 1)
    wide = flat.new_empty((min(size, flat.shape[0]), width), dtype=torch.promote_types(x.dtype, torch.float32))
    for rows, target in zip(flat.split(size), normed.split(size), strict=True):
        block = wide[: rows.shape[0]].copy_(rows)
        norms = torch.linalg.vector_norm(block, dim=-1, keepdim=True)
        inverse = norms.square_().div_(width).add_(eps).rsqrt_()
        target.copy_(block.mul_(inverse).mul_(weight))
    return normed.view(x.shape)
