"""How models apply their modules: by calling them, or by a faster way that computes the same.

Each function here is its definition, written out, behind one question: is the module plain (`is_plain`), so that its
parameters say all of what a call does, and does `longspan.fast` have a kernel for it?
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from longspan.nn.torch.activations import Activation
from longspan.nn.torch.plain import is_plain
from longspan.ops.fast_paths import fast_path, is_available
from longspan.ops.torch.modes import constant_when_traced, is_traced


@constant_when_traced
def may_replace(module: nn.Module) -> bool:
    """True if a fast path may compute with the parameters of a module instead of calling it."""
    return is_available() and is_plain(module)


def may_overwrite(module: nn.Module) -> bool:
    """True if a module may overwrite its intermediate results: no gradient and nobody else will read them."""
    return not torch.is_grad_enabled() and not torch.compiler.is_compiling() and may_replace(module)


def project(layer: nn.Module, x: Tensor, activation: Activation | None = None) -> Tensor:
    """activation(layer(x)), (..., in) -> (..., out), for a linear layer or what somebody put in its place."""
    kernel = None if is_traced(x) else fast_path("matmul.linear")
    if kernel is None or type(layer) is not nn.Linear or not is_plain(layer):
        states = layer(x)
        return states if activation is None else activation(states)
    return kernel(x, layer.weight, layer.bias, activation)


def project_all(layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """[layer(x) for each layer]; layers that can share what they make of x first do (`apply_together`)."""
    kind: Any = type(layers[0])
    if hasattr(kind, "apply_together") and all(type(layer) is kind and is_plain(layer) for layer in layers):
        together: list[Tensor] = kind.apply_together(layers, x)
        return together
    return [project(layer, x) for layer in layers]


def lookup(table: nn.Module, ids: Tensor | None, *, like: Tensor) -> Tensor:
    """table(ids), or without ids the entry 0 in a shape that can be added to `like`, (..., H)."""
    if ids is None:
        ids = torch.zeros((1,) * (like.dim() - 1), dtype=torch.long, device=like.device)
    return table(ids)


def tokenwise(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    owner: nn.Module,
    width: int,
    chunk_size: int = 0,
    residual: Tensor | None = None,
) -> Tensor:
    """function(x), (B, S, H) -> (B, S, H'), for a function that treats every token by itself; residual + function(x).

    Without gradients it goes block by block where that saves memory and time, if nobody looks into the owner.

    Args:
        function: Maps (..., H) to (..., H').
        x: (..., H).
        owner: The module whose parameters the function applies.
        width: Features of the widest activation inside the function.
        chunk_size: Tokens at a time if positive; 0 leaves that open.
        residual: (..., H'), to be added; not to be used any more.
    """
    if chunk_size > 0:
        result = torch.cat([function(chunk) for chunk in x.split(chunk_size, dim=-2)], dim=-2)
        return result if residual is None else residual + result
    traced = is_traced(x) or torch.is_grad_enabled()
    blocks = None if traced else fast_path("token_blocks.apply_in_token_blocks")
    if blocks is not None and is_plain(owner):
        return blocks(function, x, width=width, residual=residual)
    return function(x) if residual is None else residual + function(x)
