"""Dropout from the lanes of wide random numbers.

On a CPU PyTorch draws one number of 53 random bits for every entry that dropout may drop, one after the other: in a
training step of long windows that took as long as half of the matrix products. An entry needs few bits. Here one
random number of 64 bits serves four entries, each of which is dropped by comparing its 16 bits with a threshold.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LANES, _STEPS = 4, 2**16


def dropout(x: Tensor, probability: float) -> Tensor:
    """`longspan.ops.torch.dropout.dropout` in training mode, for a probability below 1."""
    dropped: Tensor = _Dropout.apply(x, probability)
    return dropped


class _Dropout(torch.autograd.Function):
    """Keeps what was kept, a byte an entry."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float) -> Tensor:
        factors = dropout_factors(x.new_empty(x.shape), probability, None)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(factors.bool())
            ctx.scale = _STEPS / _kept(probability)
        return factors.mul_(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return grad * kept.to(grad.dtype).mul_(ctx.scale), None


def _kept(probability: float) -> int:
    """Of 2¹⁶ values of a lane, those that keep an entry."""
    return max(round((1.0 - probability) * _STEPS), 1)


def dropout_factors(out: Tensor, probability: float, generator: torch.Generator | None) -> Tensor:
    """Fill a tensor with what dropout multiplies by: 0, or the reciprocal of the probability of being kept.

    Args:
        out: Contiguous tensor of any shape, overwritten.
        probability: Probability of a zero, in [0, 1). It is rounded to a multiple of 2⁻¹⁶, and the reciprocal is that
            of the rounded one, so that the mean of the factors is 1.
        generator: Draws, equal factors from equal states for equal shapes; None for PyTorch's own.

    Returns:
        `out`.
    """
    kept = _kept(probability)
    if kept == _STEPS:  # the threshold would be 2¹⁵, which is no 16-bit number
        return out.fill_(1.0)
    wide = torch.empty(-(-out.numel() // _LANES), dtype=torch.int64, device=out.device)
    wide.random_(-(2**63), None, generator=generator)
    lanes = wide.view(torch.int16)[: out.numel()].view(out.shape)  # −2¹⁵ … 2¹⁵ − 1, each as often
    return torch.lt(lanes, kept - _STEPS // 2, out=out).mul_(_STEPS / kept)
