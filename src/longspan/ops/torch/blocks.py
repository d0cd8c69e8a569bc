"""Cutting a sequence into blocks of equal length, and joining them again.

Axes: B batch, S tokens, K blocks, C tokens of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def count_blocks(length: int, size: int) -> int:
    """How many blocks of `size` tokens a sequence is padded to.

    In a graph there are at least three for every length, as a graph in which an axis (of all blocks, or of all but one)
    may have the size 1 serves that size only.
    """
    if torch.compiler.is_exporting():
        return length // size + 3
    blocks = -(-length // size)
    return torch.sym_max(blocks, 3) if torch.compiler.is_compiling() else blocks


def to_blocks(tensor: Tensor, size: int) -> Tensor:
    """(B, S, ...) -> (B, K, C, ...), with zeros (False) behind the last token; a view if nothing is to be padded.

    Args:
        tensor: (B, S, ...).
        size: C.
    """
    length, blocks = tensor.shape[1], count_blocks(tensor.shape[1], size)
    if torch.compiler.is_exporting():  # by indices: a reshape of a padded length is beyond symbolic shapes
        token = torch.arange(blocks, device=tensor.device)[:, None] * size + torch.arange(size, device=tensor.device)
        beyond = (token >= length).reshape(blocks, size, *([1] * (tensor.dim() - 2)))
        return tensor[:, token.clamp(max=length - 1)].masked_fill(beyond, 0)
    if torch.compiler.is_compiling() or blocks * size > length:  # a graph that asked would be for one answer
        tensor = F.pad(tensor, [0, 0] * (tensor.dim() - 2) + [0, blocks * size - length])
    return tensor.unflatten(1, (blocks, size))


def from_blocks(blocks: Tensor, length: int) -> Tensor:
    """(B, K, C, ...) -> (B, S, ...), the first S tokens.

    Args:
        blocks: (B, K, C, ...).
        length: S.
    """
    if torch.compiler.is_compiling():  # by indices: a part of a tensor is in one piece for some lengths only
        token = torch.arange(length, device=blocks.device)
        return blocks[:, token // blocks.shape[2], token % blocks.shape[2]]
    return blocks.flatten(1, 2)[:, :length]
