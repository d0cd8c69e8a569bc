"""Functions of single tokens, applied block by block where that saves memory and time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from longspan.ops.torch.sliding_window import is_traced

#: most bytes that the widest activation of a block takes: several of them stay below what the C library gives back to
#: the operating system (a fresh page costs more than the arithmetic on it), and mostly in the cache
BLOCK_BYTES = 4 * 2**20
#: blocks hold a multiple of so many tokens, which suits matrix products
MULTIPLE = 64


def in_token_blocks(
    function: Callable[..., Tensor], *states: Tensor, width: int, is_watched: Callable[[], bool] = lambda: False
) -> Tensor:
    """Apply a function that treats every token by itself.

    Without gradients on a CPU it goes block by block; otherwise, and while a graph is traced, at once.

    Args:
        function: Maps tensors (..., H) to (..., H').
        *states: Its tensors, (..., H), with the same tokens.
        width: Features of the widest activation inside the function.
        is_watched: True if somebody looks into the function, who wants to see all tokens at once.

    Returns:
        (..., H').
    """
    tokens = _block_tokens(states[0], width)
    if tokens is None or is_watched():
        return function(*states)
    shape, flat = states[0].shape[:-1], [tensor.reshape(-1, tensor.shape[-1]) for tensor in states]
    results = (function(*blocks) for blocks in zip(*(tensor.split(tokens) for tensor in flat), strict=True))
    first = next(results)
    output = first.new_empty(shape.numel(), first.shape[-1])
    output[:tokens] = first
    for start, result in zip(range(tokens, shape.numel(), tokens), results, strict=True):
        output[start : start + tokens] = result
    return output.unflatten(0, shape)


def _block_tokens(states: Tensor, width: int) -> int | None:
    """Tokens of a block; None if blocks are of no use."""
    if states.device.type != "cpu" or torch.is_grad_enabled() or is_traced(states):
        return None
    tokens = max(BLOCK_BYTES // (width * states.element_size()) // MULTIPLE, 1) * MULTIPLE
    return tokens if tokens < states.numel() // states.shape[-1] else None
