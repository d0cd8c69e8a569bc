"""Root-mean-square normalisation (Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

#: entries whose norms are taken at a time: 8 MiB of float32
BLOCK_ENTRIES = 2**21
#: entries of a bfloat16 row whose squares are added up before their root is rounded
PART = 32
#: entries up to which the number of calls counts and not their memory, as when one token is generated
_FEW_ENTRIES = 2**14


def rms_norm(x: Tensor, weight: Tensor | float, eps: float) -> Tensor:
    """Weight · x / √(mean(x²) + eps) over the last axis, with the mean and the root in float32.

    Without gradients on a CPU, many entries go to PyTorch's batch normalisation with known statistics, where each row
    is a channel of mean 0: it reads and writes half precision in one pass, and PyTorch's own root-mean-square norm
    spends most of its time on temporaries. Half precision is then rounded before the weights as well as after them.
    In bfloat16 the lengths of parts of a row are rounded too, since a kernel that gives float32 makes a wide copy
    first: at 1,024 features the root is off by 0.03 %, a tenth of what one rounding of the result may be.

    Args:
        x: (..., H).
        weight: (H,), or a positive number.
        eps: Added to the mean square.

    Returns:
        (..., H) in the dtype of `x`.
    """
    width = x.shape[-1]
    by_feature = weight if isinstance(weight, Tensor) else None
    tracks = torch.is_grad_enabled() and (x.requires_grad or (by_feature is not None and by_feature.requires_grad))
    if tracks or x.device.type != "cpu" or torch.compiler.is_compiling() or x.numel() <= _FEW_ENTRIES:
        return F.rms_norm(x, (width,), weight if isinstance(weight, Tensor) else x.new_full((width,), weight), eps)
    # a number c becomes a part of the root: c · x / √(m + eps) = x / √((m + eps) / c²)
    shrink = 1.0 if isinstance(weight, Tensor) else weight**-2
    rows = x.reshape(-1, width)
    norms = _norms(rows)
    means = torch.zeros_like(norms)
    mean_squares = norms.square_().mul_(shrink / width)
    normed = torch.native_batch_norm(rows[None], None, None, means, mean_squares, False, 0.0, shrink * eps)[0]
    return (normed if by_feature is None else normed.mul_(by_feature)).view(x.shape)


def _norms(rows: Tensor) -> Tensor:
    """The length of each row, (R, H) -> (R,), at least in float32."""
    wide, width = torch.promote_types(rows.dtype, torch.float32), rows.shape[1]
    if rows.dtype == torch.bfloat16 and width % PART == 0:
        parts = torch.linalg.vector_norm(rows.unflatten(1, (-1, PART)), dim=-1)
        return torch.linalg.vector_norm(parts, dim=-1, dtype=wide)
    # in blocks, since PyTorch makes a wide copy of what it gets
    blocks = rows.split(max(BLOCK_ENTRIES // width, 1))
    norms = [torch.linalg.vector_norm(block, dim=-1, dtype=wide) for block in blocks]
    return norms[0] if len(norms) == 1 else torch.cat(norms)
