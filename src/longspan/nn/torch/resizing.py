"""Embeddings with more or fewer rows, linear layers with fewer features."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from longspan.errors import InputError
from longspan.shapes import remaining_heads

Initialise = Callable[[nn.Module], None]


def _resize_rows(new: Tensor, old: Tensor, *, mean_resizing: bool) -> None:
    """Copy the rows that both have; new rows become the mean of the old ones, or stay as they were drawn."""
    kept = min(len(new), len(old))
    new[:kept] = old[:kept]
    if mean_resizing and len(new) > kept:
        new[kept:] = old.float().mean(dim=0).to(new.dtype)


@torch.no_grad()
def resize_embedding(old: nn.Embedding, size: int, *, initialise: Initialise, mean_resizing: bool) -> nn.Embedding:
    """An embedding of `size` rows that begins with those of `old`.

    Args:
        old: Embedding to grow or shrink.
        size: Number of rows.
        initialise: Draws the rows that are new, if `mean_resizing` is False.
        mean_resizing: New rows are the mean of the old ones.
    """
    padding = old.padding_idx if old.padding_idx is not None and old.padding_idx < size else None
    new = nn.Embedding(size, old.embedding_dim, padding_idx=padding)
    new.to(device=old.weight.device, dtype=old.weight.dtype)
    initialise(new)
    _resize_rows(new.weight.data, old.weight.data, mean_resizing=mean_resizing)
    new.requires_grad_(old.weight.requires_grad)
    return new.train(old.training)


@torch.no_grad()
def resize_linear(old: nn.Linear, size: int, *, initialise: Initialise, mean_resizing: bool) -> nn.Linear:
    """A linear layer of `size` output features that begins with those of `old`; see `resize_embedding`."""
    new = nn.Linear(old.in_features, size, bias=old.bias is not None)
    new.to(device=old.weight.device, dtype=old.weight.dtype)
    initialise(new)
    _resize_rows(new.weight.data, old.weight.data, mean_resizing=mean_resizing)
    if old.bias is not None:
        _resize_rows(new.bias.data, old.bias.data, mean_resizing=mean_resizing)
    new.requires_grad_(old.weight.requires_grad)
    return new.train(old.training)


@torch.no_grad()
def keep_features(old: nn.Linear, indices: Tensor, *, axis: int) -> nn.Linear:
    """A linear layer with only the named output (`axis=0`) or input (`axis=1`) features of `old`."""
    weight = old.weight.index_select(axis, indices).clone()
    new = nn.Linear(weight.shape[1], weight.shape[0], bias=old.bias is not None)
    new.to(device=weight.device, dtype=weight.dtype)
    new.weight.copy_(weight)
    if old.bias is not None:
        new.bias.copy_(old.bias[indices] if axis == 0 else old.bias)
    new.requires_grad_(old.weight.requires_grad)
    return new.train(old.training)


def pick_layer(layers: nn.ModuleList, index: int) -> nn.Module:
    """One layer by its index; a negative one counts from the end.

    Raises:
        InputError: there is no such layer.
    """
    if not -len(layers) <= index < len(layers):
        raise InputError(f"layers to prune must lie in [0, {len(layers)}). Received: {index}")
    return layers[index]


def remaining_features(
    heads: Iterable[int], *, num_heads: int, head_size: int, already_pruned: set[int]
) -> tuple[set[int], Tensor]:
    """The heads that are removed now, and the features (`head_size` a head) to keep; see `remaining_heads`."""
    removed, kept = remaining_heads(heads, num_heads=num_heads, already_pruned=already_pruned)
    return removed, (torch.tensor(kept)[:, None] * head_size + torch.arange(head_size)).reshape(-1)
