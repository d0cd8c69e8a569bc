"""From encoded rows to the columns of a batch: what is returned, padded, as lists or tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from longspan.tokenization.settings import Padding
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


@dataclass(frozen=True, slots=True)
class Wanted:
    """Columns that a call returns besides `input_ids`."""

    token_type_ids: bool
    attention_mask: bool
    special_tokens_mask: bool = False
    offset_mapping: bool = False
    length: bool = False

    def of(self, rows: Sequence[Encoding], lengths: Sequence[int]) -> dict[str, list[Any]]:
        """Columns of `rows`, not padded, in the reference's order."""
        columns: dict[str, list[Any]] = {"input_ids": [row.ids for row in rows]}
        if self.token_type_ids:
            columns["token_type_ids"] = [row.type_ids for row in rows]
        if self.attention_mask:
            columns["attention_mask"] = [[1] * length for length in lengths]
        if self.special_tokens_mask:
            columns["special_tokens_mask"] = [row.special_tokens_mask for row in rows]
        if self.offset_mapping:
            columns["offset_mapping"] = [row.offsets for row in rows]
        if self.length:
            columns["length"] = list(lengths)
        return columns


def pad_lists(columns: Mapping[str, list[Any]], *, padding: Padding, fill: Fill) -> dict[str, list[Any]]:
    """Columns whose rows are filled up to the length that `padding` asks for.

    Args:
        columns: Lists of rows by name; only the columns that `Fill` knows are padded.
        padding: Length and side.
        fill: What to write.

    Returns:
        The columns, as new lists.
    """
    lengths = [len(row) for row in columns["input_ids"]]
    target = padding.target(max(lengths, default=0))
    padded: dict[str, list[Any]] = {}
    for name, rows in columns.items():
        value = fill.of(name)
        if name == "length":
            padded[name] = [max(target, length) for length in lengths]
        elif value is None:
            padded[name] = rows
        elif padding.side == "left":
            padded[name] = [[value] * (target - len(row)) + row for row in rows]
        else:
            padded[name] = [row + [value] * (target - len(row)) for row in rows]
    return padded


def to_tensors(
    columns: Mapping[str, list[Any]], *, padding: Padding | None, fill: Fill | None, convert: Converter
) -> dict[str, Any]:
    """Columns as tensors of shape `(B, S)`, `offset_mapping` `(B, S, 2)`, one number per row `(B,)`.

    Args:
        columns: Lists of rows by name, not padded.
        padding: Length and side; None if all rows have one length already.
        fill: What to write at padding positions.
        convert: Makes the framework's tensor of a NumPy array.

    Returns:
        Tensors by name.

    Raises:
        InputError: rows differ in length and `padding` does not even them out.
    """
    lengths = np.array([len(row) for row in columns["input_ids"]], dtype=np.int64)
    longest = int(lengths.max(initial=0))
    if padding is None:
        longest = int(lengths.min(initial=longest))
    target = longest if padding is None else padding.target(longest)
    side = "right" if padding is None else padding.side
    tensors: dict[str, Any] = {}
    for name, rows in columns.items():
        value = 0 if fill is None else fill.of(name)
        array: npt.NDArray[Any]
        if name == "length":
            array = np.maximum(lengths, target)
        elif name == "overflow_to_sample_mapping" or value is None:
            array = to_array(name, rows)
        elif name == "offset_mapping":
            array = padded_array(name, rows, length=target, value=0, side=side, depth=2)
        else:
            array = padded_array(name, rows, length=target, value=value, side=side)
        tensors[name] = convert(array)
    return tensors
