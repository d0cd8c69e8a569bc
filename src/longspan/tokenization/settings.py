"""What one call asks for: how to truncate, how to pad. Checked before any text is read."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from longspan.errors import InputError

#: `model_max_length` of a tokenizer whose files name none.
VERY_LARGE_INTEGER = int(1e30)
#: A `model_max_length` above this means "no limit is known".
LARGE_INTEGER = int(1e20)

SIDES = ("right", "left")
_PADDING = {True: "longest", False: None, None: None, "longest": "longest", "max_length": "max_length",
            "do_not_pad": None}  # fmt: skip
_TRUNCATION = {True: "longest_first", False: None, None: None, "longest_first": "longest_first",
               "only_first": "only_first", "only_second": "only_second", "do_not_truncate": None}  # fmt: skip

Warn = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Truncation:
    """Cut rows to `max_length` tokens, special tokens included.

    Attributes:
        max_length: Number of tokens of the longest row allowed.
        stride: Number of tokens that neighbouring windows of one text share.
        strategy: `"longest_first"`, `"only_first"` or `"only_second"`.
        direction: Side that loses tokens, `"right"` or `"left"`.
    """

    max_length: int
    stride: int
    strategy: str
    direction: str


@dataclass(frozen=True, slots=True)
class Padding:
    """Fill rows up to one length.

    Attributes:
        length: Number of tokens of a row, or None for the longest row of the batch.
        side: `"right"` or `"left"`.
        multiple: Round the length up to a multiple of this; 1 for none.
    """

    length: int | None
    side: str
    multiple: int

    def target(self, longest: int) -> int:
        """Length of every row of a batch whose longest row has `longest` tokens."""
        length = longest if self.length is None else self.length
        return -(-length // self.multiple) * self.multiple


def check_side(name: str, side: object, error: type[ValueError] = InputError) -> str:
    """`side` if it is `"right"` or `"left"`, else `error`."""
    if side not in SIDES:
        raise error(f"{name} must be 'right' or 'left'. Received: {name}={side!r}")
    return str(side)


def resolve_padding(
    padding: Any, *, max_length: int | None, model_max_length: int, side: str, multiple: int | None, warn: Warn
) -> Padding | None:
    """Padding that a call asks for.

    Args:
        padding: `True` or `"longest"`, `"max_length"`, `False` or `"do_not_pad"`.
        max_length: Length that `"max_length"` pads to; None takes `model_max_length`.
        model_max_length: Most tokens that the model reads.
        side: `"right"` or `"left"`.
        multiple: `pad_to_multiple_of`.
        warn: Called with a key and a message if `"max_length"` is asked for and none is known.

    Returns:
        The padding, or None for none.

    Raises:
        InputError: a name is unknown or a number is out of range.
    """
    strategy = _look_up("padding", padding, _PADDING, "True, False, 'longest', 'max_length' or 'do_not_pad'")
    side = check_side("padding_side", side)
    step = 1 if multiple is None else _integer("pad_to_multiple_of", multiple, least=1)
    if strategy is None:
        return None
    if strategy == "longest":
        return Padding(None, side, step)
    if max_length is not None:
        return Padding(max_length, side, step)
    if model_max_length > LARGE_INTEGER:
        warn("pad-without-length", "padding='max_length' needs max_length or a tokenizer with model_max_length: "
             "neither is known, so nothing is padded.")  # fmt: skip
        return None
    return Padding(model_max_length, side, step)


def resolve_truncation(
    truncation: Any, *, max_length: int | None, model_max_length: int, stride: int, side: str, warn: Warn
) -> Truncation | None:
    """Truncation that a call asks for.

    Args:
        truncation: `True` or `"longest_first"`, `"only_first"`, `"only_second"`, `False` or `"do_not_truncate"`.
        max_length: Most tokens of a row; None takes `model_max_length`.
        model_max_length: Most tokens that the model reads.
        stride: Number of tokens that neighbouring windows share.
        side: Side that loses tokens.
        warn: Called with a key and a message if no maximum is known, in which case nothing is cut.

    Returns:
        The truncation, or None for none.

    Raises:
        InputError: a name is unknown or a number is out of range.
    """
    names = "True, False, 'longest_first', 'only_first', 'only_second' or 'do_not_truncate'"
    strategy = _look_up("truncation", truncation, _TRUNCATION, names)
    overlap = _integer("stride", stride, least=0)
    side = check_side("truncation_side", side)
    if strategy is None:
        return None
    if max_length is None and model_max_length > LARGE_INTEGER:
        warn("truncate-without-length", "truncation needs max_length or a tokenizer with model_max_length: "
             "neither is known, so nothing is cut.")  # fmt: skip
        return None
    return Truncation(model_max_length if max_length is None else max_length, overlap, strategy, side)


def check_max_length(max_length: object) -> int | None:
    """`max_length` as a positive integer, or None."""
    return None if max_length is None else _integer("max_length", max_length, least=1)


def check_fits(truncation: Truncation, *, num_special: int) -> None:
    """Raise `InputError` unless `truncation` leaves room for special tokens and moves forward at every window.

    Args:
        truncation: What the call asks for.
        num_special: Number of special tokens that are added to each row.
    """
    room = truncation.max_length - num_special
    if room < 0:
        raise InputError(
            f"max_length must be at least {num_special}, the number of special tokens added to each row. "
            f"Received: max_length={truncation.max_length}"
        )
    if truncation.stride and truncation.stride >= room:
        raise InputError(
            f"stride must be less than max_length minus the {num_special} special tokens. "
            f"Received: stride={truncation.stride}, max_length={truncation.max_length}"
        )


def check_multiple(padding: Padding | None, truncation: Truncation | None) -> None:
    """Raise `InputError` if rows are cut to a length that is no multiple of what they are padded to."""
    if padding is None or truncation is None or truncation.max_length % padding.multiple == 0:
        return
    raise InputError(
        f"With truncation, max_length must be a multiple of pad_to_multiple_of. "
        f"Received: max_length={truncation.max_length}, pad_to_multiple_of={padding.multiple}"
    )


def _look_up(name: str, value: Any, table: dict[Any, str | None], choices: str) -> str | None:
    key = getattr(value, "value", value)
    if not isinstance(key, str | bool | None) or key not in table:
        raise InputError(f"{name} must be {choices}. Received: {name}={value!r}")
    return table[key]


def _integer(name: str, value: Any, *, least: int) -> int:
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise InputError(f"{name} must be an integer of at least {least}. Received: {name}={value!r}")
    return number
