"""The norms that a layer of MEGA (Ma et al., 2022, https://arxiv.org/abs/2209.10655) may have, in PyTorch.

Axes: B batch, S tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longspan.models.mega.config import MegaConfig


class MegaScaleNorm(nn.Module):
    """g · x / √(mean(x²) + ε), with one g for all features.

    Args:
        eps: ε.
        affine: Have g; otherwise it is 1.
    """

    def __init__(self, *, eps: float, affine: bool) -> None:
        super().__init__()
        self.eps = eps
        self.scalar = nn.Parameter(torch.ones(1)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        factor = _inverse_root_mean_square(x, self.eps)
        return x * (factor if self.scalar is None else factor * self.scalar).to(x.dtype)


class MegaRMSNorm(nn.Module):
    """w ⊙ x / √(mean(x²) + ε).

    Args:
        hidden_size: Width D.
        eps: ε.
        affine: Have w; otherwise it is 1.
    """

    def __init__(self, *, hidden_size: int, eps: float, affine: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        normalized = x * _inverse_root_mean_square(x, self.eps).to(x.dtype)
        return normalized if self.weight is None else normalized * self.weight


def _inverse_root_mean_square(x: Tensor, eps: float) -> Tensor:
    """(..., D) -> (..., 1), in float32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square() / x.shape[-1]
    return torch.rsqrt(mean_square + eps)


class MegaSequenceNorm(nn.Module):
    """The configured normalisation. Batch normalisation runs over all tokens of the batch."""

    eps = 1e-5

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        width, affine = config.hidden_size, config.norm_affine
        self.norm: nn.Module
        match config.normalization_type:
            case "scalenorm":
                self.norm = MegaScaleNorm(eps=self.eps, affine=affine)
            case "rmsnorm":
                self.norm = MegaRMSNorm(hidden_size=width, eps=self.eps, affine=affine)
            case "layernorm":
                self.norm = nn.LayerNorm(width, eps=self.eps, elementwise_affine=affine)
            case "batchnorm":
                self.norm = nn.BatchNorm1d(width, eps=self.eps, affine=affine)
            case _:
                self.norm = nn.SyncBatchNorm(width, eps=self.eps, affine=affine)
        self.over_batch = isinstance(self.norm, nn.BatchNorm1d | nn.SyncBatchNorm)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        if not self.over_batch:
            return self.norm(hidden_states)
        return self.norm(hidden_states.flatten(0, 1)).view_as(hidden_states)
