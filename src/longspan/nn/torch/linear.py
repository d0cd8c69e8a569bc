"""The linear layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longspan.nn.torch.hooks import is_watched
from longspan.ops.torch.matmul import linear, linear_silu
from longspan.ops.torch.sliding_window import is_traced


class Linear(nn.Linear):
    """`torch.nn.Linear` with the faster of two kernels; see `longspan.ops.torch.matmul`."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return linear(input, self.weight, self.bias)


def gated_linear(gate: nn.Module, up: nn.Module, activation: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    """activation(gate(states)) ∘ up(states) (Shazeer, 2020), in one tensor less where nobody looks at the parts.

    Args:
        gate: A linear layer, or what an adapter put in its place.
        up: Likewise.
        activation: Function of single numbers.
        states: (..., in).

    Returns:
        (..., out).
    """
    if type(gate) is not Linear or is_watched(gate):
        return activation(gate(states)) * up(states)
    fused = activation is F.silu
    activated = linear_silu(states, gate.weight, gate.bias) if fused else activation(gate(states))
    if torch.is_grad_enabled() or is_traced(states):
        return activated * up(states)
    return activated.mul_(up(states))
