"""From encoded rows to the columns of a batch: what is returned, padded, as lists or tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
from tokenizers import Encoding

from longspan.tokenization.tensors import Converter, padded_array, to_array


@dataclass(frozen=True, slots=True)
class Fill:
    """What stands at padding positions.

    Attributes:
        token: The padding token.
        token_id: Its id.
        type_id: Its `token_type_ids` value.
    """

    token: str
    token_id: int
    type_id: int

    def of(self, column: str) -> Any:
        """Value of `column` at padding positions; None if the column is not padded."""
        values = {
            "input_ids": self.token_id,
            "token_type_ids": self.type_id,
            "attention_mask": 0,
            "special_tokens_mask": 1,
            "offset_mapping": (0, 0),
        }
        return values.get(column)


#: What is written where nothing is padded.
NO_FILL = Fill("", 0, 0)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Columns that a call returns besides `input_ids`."""

    token_type_ids: bool
    attention_mask: bool
    special_tokens_mask: bool = False
    offset_mapping: bool = False
    length: bool = False

    def of(self, rows: Sequence[Encoding], *, padded_length: int) -> dict[str, list[Any]]:
        """Columns of `rows` in the reference's order, not padded (but `length` counts padding)."""
        columns: dict[str, list[Any]] = {"input_ids": [row.ids for row in rows]}
        if self.token_type_ids:
            columns["token_type_ids"] = [row.type_ids for row in rows]
        if self.attention_mask:
            columns["attention_mask"] = [[1] * len(row) for row in rows]
        if self.special_tokens_mask:
            columns["special_tokens_mask"] = [row.special_tokens_mask for row in rows]
        if self.offset_mapping:
            columns["offset_mapping"] = [row.offsets for row in rows]
        if self.length:
            columns["length"] = [max(len(row), padded_length) for row in rows]
        return columns


def pad_lists(columns: Mapping[str, list[Any]], *, length: int, side: str, fill: Fill) -> dict[str, list[Any]]:
    """Columns whose rows are filled up to `length`; longer rows stay as they are.

    Args:
        columns: Lists of rows by name; only the columns that `Fill` knows are padded.
        length: Number of tokens.
        side: `"right"` or `"left"`.
        fill: What to write.

    Returns:
        The columns, as new lists.
    """
    padded: dict[str, list[Any]] = {}
    for name, rows in columns.items():
        value = fill.of(name)
        if value is None:
            padded[name] = rows
        elif side == "left":
            padded[name] = [[value] * (length - len(row)) + row for row in rows]
        else:
            padded[name] = [row + [value] * (length - len(row)) for row in rows]
    return padded


def to_tensors(
    columns: Mapping[str, list[Any]], *, length: int, side: str, fill: Fill, convert: Converter
) -> dict[str, Any]:
    """Columns as tensors of shape `(B, S)`, `offset_mapping` `(B, S, 2)`, one number per row `(B,)`.

    Args:
        columns: Lists of rows by name, not padded.
        length: Number of tokens `S` of every row; rows of columns that `Fill` knows are padded to it.
        side: `"right"` or `"left"`.
        fill: What to write at padding positions.
        convert: Makes the framework's tensor of a NumPy array.

    Returns:
        Tensors by name.

    Raises:
        InputError: a row is longer than `length`, or rows of another column differ in length.
    """
    tensors: dict[str, Any] = {}
    for name, rows in columns.items():
        value = fill.of(name)
        array: npt.NDArray[Any]
        if value is None:
            array = to_array(name, rows)
        elif name == "offset_mapping":
            array = padded_array(name, rows, length=length, value=0, side=side, depth=2)
        else:
            array = padded_array(name, rows, length=length, value=value, side=side)
        tensors[name] = convert(array)
    return tensors
