"""The linear layer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from longspan.ops.torch.matmul import linear, linear_silu


class Linear(nn.Linear):
    """`torch.nn.Linear` with the faster of two kernels; see `longspan.ops.torch.matmul`."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return linear(input, self.weight, self.bias)


def activated_linear(layer: nn.Module, activation: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    """activation(layer(states)), by one kernel where the layer is plain and nobody looks at what it returns.

    Args:
        layer: A linear layer, or what an adapter put in its place.
        activation: Function of single numbers.
        states: (..., in).

    Returns:
        (..., out).
    """
    if activation is not F.silu or type(layer) is not Linear or _is_watched(layer):
        return activation(layer(states))
    return linear_silu(states, layer.weight, layer.bias)


def _is_watched(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or _has_any_global_hook())
