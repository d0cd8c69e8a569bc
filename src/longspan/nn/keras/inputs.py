"""The input forms of Keras models: keywords, or everything in the first argument as list, tuple or dict."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from longspan.errors import InputError, LongspanError

Call = Callable[..., Any]

#: columns of tokenizer output that say something about the text, not to the model
BOOKKEEPING = frozenset(
    {
        "special_tokens_mask",
        "offset_mapping",
        "length",
        "overflow_to_sample_mapping",
        "overflowing_tokens",
        "num_truncated_tokens",
    }
)


def unpack_inputs(call: Call) -> Call:
    """Decorator of `call`: the first argument may hold all inputs.

    It may be one tensor (`input_ids`), a list or tuple of tensors in the order of the arguments (None leaves one out),
    or a mapping by argument name, such as a tokenizer returns.

    Raises:
        InputError: a mapping names no argument of the model, a list is too long, or an input comes twice.
    """
    names = input_names(call)

    @functools.wraps(call)
    def unpacked(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return call(self, **_gather(names, {**dict(zip(names, args, strict=False)), **kwargs}))
        except LongspanError as error:
            error._keras_call_info_injected = True  # type: ignore[attr-defined]  # no dump of all arguments by Keras
            raise

    return unpacked


def input_names(call: Call) -> tuple[str, ...]:
    """Names of the arguments of `call` that may be given by place, without `self`."""
    parameters = list(inspect.signature(call).parameters.values())[1:]
    return tuple(item.name for item in parameters if item.kind is item.POSITIONAL_OR_KEYWORD)


def _gather(names: Sequence[str], arguments: dict[str, Any]) -> dict[str, Any]:
    """Spread what the first argument holds."""
    first = arguments.get(names[0])
    if not isinstance(first, Mapping | list | tuple):
        return arguments
    gathered = _by_name(first, names) if isinstance(first, Mapping) else _by_place(first, names)
    others = {name: value for name, value in arguments.items() if name != names[0]}
    twice = [name for name in gathered if others.get(name) is not None]
    if twice:
        raise InputError(f"each input must come once. Received in the first argument and again: {', '.join(twice)}")
    return {**others, **gathered}


def _by_name(inputs: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    unknown = [name for name in inputs if name not in names and name not in BOOKKEEPING]
    if unknown:
        raise InputError(f"inputs must be named {', '.join(names)}. Received: {', '.join(map(repr, unknown))}")
    return {name: value for name, value in inputs.items() if name in names}


def _by_place(inputs: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    if len(inputs) > len(names):
        raise InputError(f"a list of inputs holds at most {', '.join(names)}. Received: {len(inputs)} inputs")
    return {name: value for name, value in zip(names, inputs, strict=False) if value is not None}


def split_options(first: Any, names: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """Part what the first argument holds into tensors, and options such as `output_attentions=True`."""
    if isinstance(first, list | tuple) and any(isinstance(value, bool) for value in first):
        first = _by_place(first, names)
    if not isinstance(first, Mapping):
        return first, {}
    options = {name: value for name, value in first.items() if isinstance(value, bool)}
    return ({name: value for name, value in first.items() if name not in options} if options else first), options


def by_name(inputs: Any, names: Sequence[str]) -> dict[str, Any] | None:
    """What the first argument holds, by name; None if it is nothing that a model takes."""
    if isinstance(inputs, Mapping):
        return None if set(inputs) - set(names) - BOOKKEEPING else _by_name(inputs, names)
    if isinstance(inputs, list | tuple):
        return None if len(inputs) > len(names) else _by_place(inputs, names)
    return {names[0]: inputs}


def plain(data: Any) -> Any:
    """Turn tokenizer output into a dict of arrays that Keras' own methods take; anything else comes back as it is.

    Raises:
        InputError: a column's rows differ in length.
    """
    check_dense(data)
    if isinstance(data, Mapping):
        return {name: _array(name, value) for name, value in data.items() if name not in BOOKKEEPING}
    if isinstance(data, tuple):
        return tuple(plain(part) for part in data)
    return data


def check_dense(value: Any, name: str = "input_ids") -> None:
    """Raise `InputError` for a `tf.RaggedTensor`."""
    if hasattr(value, "row_lengths") and hasattr(value, "to_tensor"):
        raise InputError(
            f"{name} must have rows of one length: {name}.to_tensor(0) pads them, and "
            f"attention_mask=tf.sequence_mask({name}.row_lengths()) tells text from padding. Received: a RaggedTensor"
        )


def _array(name: str, value: Any) -> Any:
    check_dense(value, name)
    if not isinstance(value, list):
        return value
    try:
        return np.asarray(value)
    except ValueError:
        raise InputError(
            f"rows of {name} must have one length: padding=True and truncation=True make them so. "
            f"Received: rows of lengths {sorted({len(row) for row in value})}"
        ) from None
