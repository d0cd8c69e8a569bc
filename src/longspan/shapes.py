"""Rules on shapes that hold in every framework; no framework is imported."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import Any, Protocol

from longspan.errors import InputError

#: most bytes that the widest activation of a block of tokens takes where a CPU computes a feed-forward layer in blocks:
#: what one operation writes is then mostly in the caches when the next one reads it
TOKEN_BLOCK_BYTES = 2**22


def tokens_of_block(width: int) -> int:
    """Tokens of a block whose widest activation, in float32, has so many features."""
    return max(TOKEN_BLOCK_BYTES // (4 * width), 1)


def tokens_of_span(length: int, *, batch: int, width: int, unit: int) -> int | None:
    """Tokens of each row that a layer should read at a time, where it hands a state from span to span; None for all.

    The spans of a row are as even as whole units allow; the last one may reach beyond its end.

    Args:
        length: Tokens of a row, S.
        batch: Rows that are read at once, B.
        width: Features of the widest activation of the layer.
        unit: What a span is a multiple of.
    """
    most = max(tokens_of_block(width) // (batch * unit), 1) * unit
    count = -(-length // most)
    return -(-length // (count * unit)) * unit if count > 1 else None


class Shaped(Protocol):
    """An array of any framework."""

    @property
    def shape(self) -> Any:
        """Sizes of its axes."""


def check_shape(array: Shaped | None, expected: tuple[int, ...], *, name: str, axes: str) -> None:
    """Check the shape of an optional argument.

    Args:
        array: The argument, or None.
        expected: The shape that it must have.
        name: Name of the argument.
        axes: What the axes mean, e.g. `"(batch, tokens)"`.

    Raises:
        InputError: naming both shapes.
    """
    if array is not None and tuple(array.shape) != tuple(expected):
        raise InputError(f"{name} must have the shape {axes} = {expected}. Received: {tuple(array.shape)}")


def differ(array: Shaped, expected: Sequence[int | None]) -> bool:
    """True if the shape cannot be the expected one; sizes that are None, known only when a graph runs, fit all."""
    shape = tuple(array.shape)
    return len(shape) != len(expected) or any(
        None not in pair and pair[0] != pair[1] for pair in zip(shape, expected, strict=True)
    )


def check_key_mask(mask: Shaped, *, batch: int, num_keys: int, name: str = "attention_mask") -> None:
    """Check that a padding mask is (B, S), (B, T, S) or (B, 1, T, S): batch, queries T, keys S.

    Raises:
        InputError: the shape does not fit.
    """
    shape = tuple(mask.shape)
    if len(shape) not in (2, 3, 4) or shape[0] != batch or shape[-1] != num_keys:
        raise InputError(
            f"{name} must have the shape (batch, keys) = ({batch}, {num_keys}), or (batch, queries, keys). "
            f"Received: {shape}"
        )


def check_head_mask(head_mask: Shaped, *, num_layers: int, num_heads: int) -> None:
    """Check that a head mask is (heads,), for all layers, or (layers, heads).

    Raises:
        InputError: the shape does not fit.
    """
    if tuple(head_mask.shape) not in ((num_heads,), (num_layers, num_heads)):
        raise InputError(
            f"head_mask must have the shape (heads,) = ({num_heads},) or (layers, heads) = "
            f"({num_layers}, {num_heads}). Received: {tuple(head_mask.shape)}"
        )


def num_choices_of(inputs: Iterable[Shaped | None]) -> Any:
    """The number of choices C of inputs (B, C, ...); absent ones are None.

    Raises:
        InputError: an input lacks the axis, or the inputs disagree in B or C.
    """
    shapes = [tuple(array.shape) for array in inputs if array is not None]
    if len({shape[:2] for shape in shapes}) != 1 or any(len(shape) < 3 for shape in shapes):
        raise InputError(f"inputs of multiple choice must all have the shape (batch, choices, ...). Received: {shapes}")
    return shapes[0][1]


def remaining_heads(heads: Iterable[int], *, num_heads: int, already_pruned: Set[int]) -> tuple[set[int], list[int]]:
    """Which attention heads are left when some are removed.

    Args:
        heads: Heads to remove, by their original numbers.
        num_heads: Original number of heads.
        already_pruned: Heads that were removed before.

    Returns:
        The heads that are removed now, and the places of those to keep among the heads that are still there.

    Raises:
        InputError: a head does not exist, or none would be left.
    """
    asked = set(heads)
    wrong = sorted(head for head in asked if not 0 <= head < num_heads)
    if wrong:
        raise InputError(f"heads to prune must lie in [0, {num_heads}). Received: {wrong}")
    if len(asked | already_pruned) >= num_heads:
        raise InputError(f"at least one of {num_heads} attention heads must remain. Received: {sorted(asked)} to prune")
    present = [head for head in range(num_heads) if head not in already_pruned]
    return asked - already_pruned, [place for place, head in enumerate(present) if head not in asked]
