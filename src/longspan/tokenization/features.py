"""Rows that are tokenized already, in the forms that `PreTrainedTokenizer.pad` takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longspan.errors import InputError
from longspan.tokenization.tensors import tensor_kind, to_lists


@dataclass(frozen=True, slots=True)
class Features:
    """Columns of rows.

    Attributes:
        columns: Lists of rows by name; one row if `is_batched` is False.
        is_batched: False if the caller gave the columns of a single row.
        tensor_kind: Value of `return_tensors` that makes tensors like the caller's; None if they were lists.
    """

    columns: dict[str, list[Any]]
    is_batched: bool
    tensor_kind: str | None


def read_features(encoded_inputs: Any, *, main: str) -> Features:
    """Columns of `encoded_inputs`.

    Args:
        encoded_inputs: A mapping of columns of one row or of several, or a list of mappings of one row each.
        main: Column that must be there.

    Returns:
        The columns, as Python lists.

    Raises:
        InputError: it is none of these, `main` is missing, or rows do not hold the same columns.
    """
    inputs = encoded_inputs
    if isinstance(inputs, list | tuple):
        inputs = _columns_of_rows(inputs)
    if not isinstance(inputs, Mapping):
        raise InputError(
            "pad takes what a call returned, a list of such, or a mapping of columns. "
            f"Received: {type(encoded_inputs).__name__}"
        )
    if main not in inputs:
        raise InputError(f"pad needs the column {main!r}. Received: {', '.join(map(repr, inputs)) or 'no column'}")
    values = inputs[main]
    first = values[0] if isinstance(values, list | tuple) and len(values) else values
    columns = {name: to_lists(value) for name, value in inputs.items()}
    rows = columns[main]
    is_batched = not (rows and isinstance(rows[0], int))
    if not is_batched:
        columns = {name: [row] for name, row in columns.items()}
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) > 1:
        raise InputError(f"All columns must have the same number of rows. Received: {sizes}")
    return Features(columns, is_batched, tensor_kind(first))


def _columns_of_rows(rows: list[Any] | tuple[Any, ...]) -> dict[str, list[Any]]:
    if not rows:
        raise InputError("pad needs at least one row. Received: an empty list")
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InputError(f"Rows must be mappings of columns. Received: row {index} of type {type(row).__name__}")
        if row.keys() != rows[0].keys():
            raise InputError(
                "All rows must hold the same columns. "
                f"Received: {sorted(rows[0])} in row 0, {sorted(row)} in row {index}"
            )
    return {name: [row[name] for row in rows] for name in rows[0]}
