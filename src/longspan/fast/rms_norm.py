"""Root-mean-square normalisation of many tokens on a CPU; no gradients.

It replaces `longspan.ops.torch.rms_norm.rms_norm`.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: entries whose norms are taken at a time: 8 MiB of float32
BLOCK_ENTRIES = 2**21
#: entries of a bfloat16 row whose squares are added up before their root is rounded
PART = 32


def rms_norm(x: Tensor, weight: Tensor | float, eps: float) -> Tensor:
    """Arguments and result as in `longspan.ops.torch.rms_norm.rms_norm`.

    Many entries go to PyTorch's batch normalisation with known statistics, where each row is a channel of mean 0: it
    reads and writes half precision in one pass, and PyTorch's own root-mean-square norm spends most of its time on
    temporaries. Half precision is then rounded before the weights as well as after them. In bfloat16 the lengths of
    parts of a row are rounded too, since a kernel that gives float32 makes a wide copy first: at 1,024 features the
    root is off by 0.03 %, a tenth of what one rounding of the result may be.
    """
    by_feature = weight if isinstance(weight, Tensor) else None
    # a number c becomes a part of the root: c · x / √(m + eps) = x / √((m + eps) / c²)
    shrink = 1.0 if isinstance(weight, Tensor) else weight**-2
    rows = x.reshape(-1, x.shape[-1])
    norms = _norms(rows)
    means = torch.zeros_like(norms)
    mean_squares = norms.square_().mul_(shrink / x.shape[-1])
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
