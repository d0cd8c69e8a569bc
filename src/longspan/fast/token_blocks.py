"""Functions of single tokens, applied block by block where that saves memory and time; no gradients.

They replace one call with all tokens.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from longspan.fast.gated_linear import as_function, gated_linear
from longspan.models.diffllama.torch_layers import DiffLlamaMLP

#: most bytes that the widest activation of a block takes: several of them stay below what the C library gives back to
#: the operating system (a fresh page costs more than the arithmetic on it), and mostly in the cache
BLOCK_BYTES = 6 * 2**20
#: blocks hold a multiple of so many tokens, which suits matrix products
MULTIPLE = 64


def apply_in_token_blocks(
    function: Callable[[Tensor], Tensor], x: Tensor, *, width: int, residual: Tensor | None = None
) -> Tensor:
    """function(x), (..., H) -> (..., H'), or residual + function(x); see `longspan.nn.torch.apply.tokenwise`.

    Args:
        function: Maps (..., H) to (..., H').
        x: (..., H).
        width: Features of the widest activation inside the function.
        residual: (..., H'); the sum takes its place in memory.
    """
    tokens = _block_tokens(x, width)
    owner = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    if type(owner) is DiffLlamaMLP:
        function = _gated_mlp(owner, x)
    if tokens is None:
        return function(x) if residual is None else residual + function(x)
    return _map(function, x, tokens) if residual is None else _add(function, x, tokens, residual)


def _gated_mlp(mlp: DiffLlamaMLP, like: Tensor) -> Callable[[Tensor], Tensor]:
    """The layer as a function of some tokens that are like these."""
    gated = gated_linear(mlp.gate_proj, mlp.up_proj, mlp.activation, like)
    down = as_function(mlp.down_proj, like)
    return lambda states: down(gated(states))


def _map(function: Callable[[Tensor], Tensor], x: Tensor, tokens: int) -> Tensor:
    shape, blocks = x.shape[:-1], x.reshape(-1, x.shape[-1]).split(tokens)
    first = function(blocks[0])
    output = first.new_empty(shape.numel(), first.shape[-1])
    targets = output.split(tokens)
    targets[0].copy_(first)
    for target, block in zip(targets[1:], blocks[1:], strict=True):
        target.copy_(function(block))
    return output.unflatten(0, shape)


def _add(function: Callable[[Tensor], Tensor], x: Tensor, tokens: int, residual: Tensor) -> Tensor:
    residual = residual.contiguous()
    blocks = x.reshape(-1, x.shape[-1]).split(tokens)
    for target, block in zip(residual.view(-1, residual.shape[-1]).split(tokens), blocks, strict=True):
        target += function(block)
    return residual


def _block_tokens(x: Tensor, width: int) -> int | None:
    """Tokens of a block; None if blocks are of no use."""
    if x.device.type != "cpu":
        return None
    tokens = max(BLOCK_BYTES // (width * x.element_size()) // MULTIPLE, 1) * MULTIPLE
    return tokens if tokens < x.numel() // x.shape[-1] else None
