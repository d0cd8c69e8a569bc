"""Functions of single tokens, applied block by block where that saves memory and time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from longspan.ops.torch.sliding_window import is_traced

#: most bytes that the widest activation of a block takes: several of them stay below what the C library gives back to
#: the operating system (a fresh page costs more than the arithmetic on it), and mostly in the cache
BLOCK_BYTES = 6 * 2**20
#: blocks hold a multiple of so many tokens, which suits matrix products
MULTIPLE = 64


def in_token_blocks(
    function: Callable[[Tensor], Tensor],
    states: Tensor,
    *,
    width: int,
    is_watched: Callable[[], bool] = lambda: False,
) -> Tensor:
    """Apply a function that treats every token by itself.

    Without gradients on a CPU it goes block by block; otherwise, and while a graph is traced, at once.

    Args:
        function: Maps (..., H) to (..., H').
        states: (..., H).
        width: Features of the widest activation inside the function.
        is_watched: True if somebody looks into the function, who wants to see all tokens at once.

    Returns:
        (..., H').
    """
    tokens = _block_tokens(states, width)
    if tokens is None or is_watched():
        return function(states)
    shape, blocks = states.shape[:-1], states.reshape(-1, states.shape[-1]).split(tokens)
    first = function(blocks[0])
    output = first.new_empty(shape.numel(), first.shape[-1])
    targets = output.split(tokens)
    targets[0].copy_(first)
    for target, block in zip(targets[1:], blocks[1:], strict=True):
        target.copy_(function(block))
    return output.unflatten(0, shape)


def add_in_token_blocks(function: Callable[[Tensor], Tensor], states: Tensor, inputs: Tensor, *, width: int) -> Tensor:
    """States + function(inputs), in blocks as `in_token_blocks`; then the sum replaces the states in their memory.

    Args:
        function: Maps (..., H') to (..., H).
        states: (..., H); not to be used any more.
        inputs: (..., H').
        width: As for `in_token_blocks`.

    Returns:
        (..., H).
    """
    tokens = _block_tokens(states, width)
    if tokens is None:
        return states + function(inputs)
    states = states.contiguous()
    blocks = inputs.reshape(-1, inputs.shape[-1]).split(tokens)
    for target, block in zip(states.view(-1, states.shape[-1]).split(tokens), blocks, strict=True):
        target += function(block)
    return states


def _block_tokens(states: Tensor, width: int) -> int | None:
    """Tokens of a block; None if blocks are of no use."""
    if states.device.type != "cpu" or torch.is_grad_enabled() or is_traced(states):
        return None
    tokens = max(BLOCK_BYTES // (width * states.element_size()) // MULTIPLE, 1) * MULTIPLE
    return tokens if tokens < states.numel() // states.shape[-1] else None
