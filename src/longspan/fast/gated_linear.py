"""Linear layers and gated products as functions of their input, for many calls in a row.

They replace calls of `nn.Linear`, and activation(gate(x)) ∘ up(x).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from longspan.fast.matmul import linear_function
from longspan.nn.torch.plain import is_plain
from longspan.ops.torch.modes import is_traced


def as_function(layer: nn.Module, like: Tensor) -> Callable[[Tensor], Tensor]:
    """The layer as a function of its input: what can be known before is looked up once.

    Args:
        layer: A linear layer, or what an adapter put in its place; that, and a layer that somebody looks into, stays
            as it is.
        like: What the inputs are like, (..., in).
    """
    plain = _plain_linear(layer)
    return layer if plain is None else linear_function(like, plain.weight, plain.bias)


def _plain_linear(layer: nn.Module) -> nn.Linear | None:
    return layer if type(layer) is nn.Linear and is_plain(layer) else None


def gated_linear(
    gate: nn.Module, up: nn.Module, activation: Callable[[Tensor], Tensor], like: Tensor
) -> Callable[[Tensor], Tensor]:
    """activation(gate(x)) ∘ up(x) (Shazeer, 2020) as a function of x, (..., in) -> (..., out).

    It makes one tensor less where nobody looks at the parts.

    Args:
        gate: A linear layer, or what an adapter put in its place.
        up: Likewise.
        activation: Function of single numbers.
        like: What the inputs are like, (..., in).
    """
    raised, plain = as_function(up, like), _plain_linear(gate)
    if plain is None:
        return lambda states: activation(gate(states)) * raised(states)
    activated = linear_function(like, plain.weight, plain.bias, activation=activation)
    if torch.is_grad_enabled() or is_traced(like):
        return lambda states: activated(states) * raised(states)
    return lambda states: activated(states).mul_(raised(states))
