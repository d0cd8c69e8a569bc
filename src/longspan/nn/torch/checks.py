"""Checks of inputs that give a clear error before work is lost.

Reading values costs a wait on an accelerator and is impossible while a graph is traced, so rules on *values* are
checked on the CPU in eager mode only; rules on *shapes* are always checked.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from longspan.configuration import PretrainedConfig
from longspan.errors import InputError
from longspan.inputs import dynamic_axes, get_input
from longspan.shapes import check_shape

logger = logging.getLogger("longspan")


def values_visible(tensor: Tensor) -> bool:
    """True if looking at the values of `tensor` is possible and cheap."""
    return (
        tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and type(tensor) in (Tensor, torch.nn.Parameter)
    )


def check_ids(ids: Tensor, limit: int, *, name: str, limit_name: str) -> None:
    """Check that all ids lie in [0, limit).

    Raises:
        InputError: naming the range, the offending value and its place.
    """
    if not values_visible(ids) or ids.numel() == 0:
        return
    low, high = torch.aminmax(ids)
    if low < 0 or high >= limit:
        place = tuple(torch.nonzero((ids < 0) | (ids >= limit))[0].tolist())
        raise InputError(
            f"{name} must lie in [0, {limit_name}={limit}). Received: {ids[place].item()} at position {place}"
        )


def check_input(tensor: Tensor | None, name: str, config: PretrainedConfig, **sizes: int) -> None:
    """Check the shape and the range of an optional argument by its entry in `longspan.inputs`.

    Args:
        tensor: The argument.
        name: Its name.
        config: Has the limits.
        **sizes: Size of each of its axes, by name.

    Raises:
        InputError: the shape differs from the sizes, or a value is out of range.
    """
    if tensor is None:
        return
    entry = get_input(name)
    axes = entry.axes_of_rank(tensor.dim())
    check_shape(tensor, tuple(sizes[axis] for axis in axes), name=name, axes=entry.shape_text(rank=tensor.dim()))
    if entry.limit is not None:
        check_ids(tensor, getattr(config, entry.limit), name=name, limit_name=entry.limit)


def check_masked(input_ids: Tensor | None, attention_mask: Tensor | None, pad_token_id: int | None) -> None:
    """Say once if ids begin or end with padding and no mask leaves it out, as the reference does."""
    if input_ids is None or attention_mask is not None or pad_token_id is None or input_ids.numel() == 0:
        return
    if values_visible(input_ids) and bool((input_ids[:, [0, -1]] == pad_token_id).any()):
        _say_unmasked(pad_token_id)


@functools.cache
def _say_unmasked(pad_token_id: int) -> None:
    logger.warning(
        "input_ids begin or end with pad_token_id=%d, but there is no attention_mask: padding is read as text",
        pad_token_id,
    )


def export_shapes(names: Iterable[str], *, choices: bool = False) -> dict[str, dict[int, Any]]:
    """`dynamic_shapes` of `torch.export.export` for the named arguments: every axis that can differ may.

    Args:
        names: Names of arguments that are arrays.
        choices: The model scores several choices for each row.
    """
    sizes: dict[str, Any] = {}
    return {
        name: {number: sizes.setdefault(axis, torch.export.Dim(axis)) for number, axis in axes.items()}
        for name, axes in dynamic_axes(names, choices=choices).items()
    }


def input_shape(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> tuple[int, int]:
    """Batch size and length, from exactly one of ids (B, S) and embeddings (B, S, H).

    Raises:
        InputError: neither or both were given, or the shape is wrong.
    """
    if (input_ids is None) == (inputs_embeds is None):
        given = "neither" if input_ids is None else "both"
        raise InputError(f"exactly one of input_ids and inputs_embeds must be given. Received: {given}")
    if input_ids is not None:
        if input_ids.dim() != 2:
            raise InputError(f"input_ids must have the shape (batch, tokens). Received: {tuple(input_ids.shape)}")
        return input_ids.shape[0], input_ids.shape[1]
    assert inputs_embeds is not None
    if inputs_embeds.dim() != 3:
        raise InputError(
            f"inputs_embeds must have the shape (batch, tokens, width). Received: {tuple(inputs_embeds.shape)}"
        )
    return inputs_embeds.shape[0], inputs_embeds.shape[1]


def check_length(length: int, limit: int, *, limit_name: str = "max_position_embeddings") -> None:
    """Check that a sequence fits the positions of a model.

    Raises:
        InputError: naming the length, the limit and what to do.
    """
    if length > limit:
        raise InputError(
            f"the input must not be longer than {limit_name}={limit} tokens. Received: {length} tokens. "
            f"Truncate it (tokenizer(..., truncation=True, max_length={limit})), split it into windows "
            "(return_overflowing_tokens=True, stride=...), or use a model with more positions"
        )
