"""From rows of integers to arrays of NumPy, PyTorch, TensorFlow or JAX.

Each framework is imported when its tensors are asked for, and only then.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from longspan.errors import InputError, missing_framework

#: value of `return_tensors` -> module that makes the tensors
_MODULES = {"np": "numpy", "pt": "torch", "tf": "tensorflow", "jax": "jax.numpy"}

Converter = Callable[[npt.NDArray[Any]], Any]


def tensor_converter(kind: object) -> Converter:
    """Function that turns a NumPy array into a tensor of the framework that `return_tensors` names.

    Args:
        kind: `"np"`, `"pt"`, `"tf"` or `"jax"`.

    Returns:
        The function. Integers become `int64` (NumPy, PyTorch), `int32` (TensorFlow) or JAX's default integer.

    Raises:
        InputError: `kind` is none of the four.
        MissingFrameworkError: the framework is not installed.
    """
    name = getattr(kind, "value", kind)
    if not isinstance(name, str) or name not in _MODULES:
        raise InputError(f"return_tensors must be one of 'np', 'pt', 'tf', 'jax' or None. Received: {kind!r}")
    try:
        module: Any = importlib.import_module(_MODULES[name])
    except ModuleNotFoundError as error:
        translated = missing_framework(f"return_tensors={name!r}", error)
        if translated is None:
            raise
        raise translated from None
    if name == "pt":
        return lambda array: module.from_numpy(np.ascontiguousarray(_single_precision(array)))
    if name == "tf":
        return lambda array: module.constant(_int32(_single_precision(array)))
    if name == "jax":
        return lambda array: module.asarray(_single_precision(array))
    return lambda array: array


def to_array(name: str, value: object) -> npt.NDArray[Any]:
    """NumPy array of one column of a batch.

    Args:
        name: Name of the column, for the message of an error.
        value: Nested lists of numbers, or an array or tensor of any framework.

    Returns:
        The array. Integers are `int64`.

    Raises:
        InputError: the rows differ in length, or hold something that is not a number.
    """
    try:
        array = np.asarray(value)
    except ValueError:
        raise InputError(f"{_ragged_rule(name)} Received: {_lengths(value)}") from None
    if array.dtype.kind not in "biuf":
        raise InputError(f"A tensor holds numbers. Received: {name}={_shortened(value)}")
    return array.astype(np.int64, copy=False) if array.dtype.kind in "iu" else array


def padded_array(
    name: str, rows: Sequence[Sequence[int]], *, length: int, value: int, side: str, depth: int = 0
) -> npt.NDArray[np.int64]:
    """Array of `rows`, each filled with `value` up to `length`.

    Args:
        name: Name of the column, for the message of an error.
        rows: `B` rows of integers (of `depth`-tuples of integers if `depth` is not 0).
        length: Number of tokens `S` of every row of the result.
        value: What is written beside a row that is shorter.
        side: `"right"` or `"left"`: where it is written.
        depth: Length of the last axis, 0 for none.

    Returns:
        Array of shape `(B, S)` or `(B, S, depth)`.

    Raises:
        InputError: a row is longer than `length`.
    """
    array = np.full((len(rows), length, depth) if depth else (len(rows), length), value, dtype=np.int64)
    for index, row in enumerate(rows):
        size = len(row)
        if size > length:
            raise InputError(f"{_ragged_rule(name)} Received: {_lengths(rows)}")
        if size:
            array[index, length - size if side == "left" else 0 : None if side == "left" else size] = row
    return array


def _ragged_rule(name: str) -> str:
    return f"All rows of {name!r} must have one length to make a tensor; padding=True and truncation=True make them so."


def _lengths(value: object) -> str:
    if not isinstance(value, Sequence):
        return type(value).__name__
    lengths = sorted({len(row) if isinstance(row, Sequence) else 1 for row in value})
    return f"{len(value)} rows of lengths " + ", ".join(map(str, lengths[:8])) + (", ..." if len(lengths) > 8 else "")


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _single_precision(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _int32(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.astype(np.int32) if array.dtype == np.int64 else array


def to_lists(value: Any) -> Any:
    """Python numbers and lists of an array or tensor of any framework, and of lists and tuples of them."""
    if isinstance(value, int | float | str) or value is None:
        return value
    if isinstance(value, list | tuple):
        plain = all(type(item) is int for item in value)
        return list(value) if plain else [to_lists(item) for item in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "numpy"):
        return value.numpy().tolist()
    return value


def tensor_kind(value: object) -> str | None:
    """Value of `return_tensors` that makes tensors like `value`; None if it is no tensor."""
    module = type(value).__module__.partition(".")[0]
    return {"torch": "pt", "tensorflow": "tf", "numpy": "np", "jax": "jax", "jaxlib": "jax"}.get(module)
