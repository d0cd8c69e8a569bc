"""Ranges of numbers, written into the annotations of settings: `vocab_size: Count = 30522`.

A setting comes from a file that nobody checked. Its range keeps NaN and infinity out of the arithmetic, and sizes that
no machine holds out of the allocator.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`.

    Attributes:
        rule: How a person says the lower bound, or the whole, after the name of the setting.
        low: Smallest number.
        high: Largest number.
        below: `high` itself is outside.
    """

    rule: str
    low: float
    high: float
    below: bool = False

    def broken_by(self, number: float) -> str | None:
        """The rule that a number breaks, or None."""
        if self.low <= number <= self.high and not (self.below and number == self.high):
            return None
        return f"must be at most {self.high:.0f}" if self.high < number < float("inf") and not self.below else self.rule


#: the largest size of an axis, and the largest id
_LARGEST = 2**31 - 1

Count = Annotated[int, Range("must be positive", 1, _LARGEST)]
#: layers, heads and what else a model is built of one by one
FewCount = Annotated[int, Range("must be positive", 1, 10_000)]
#: tokens that a layer sees at once
WindowSize = Annotated[int, Range("must be a whole number", -_LARGEST, 1 << 24)]
#: numbers whose lower bound is a rule of their family
Number = Annotated[int, Range("must be a whole number", -_LARGEST, _LARGEST)]
PositiveNumber = Annotated[float, Range("must be positive", 1e-30, 1e30)]
TokenId = Annotated[int, Range("must be an id, or -1 for none", -1, _LARGEST)]
Probability = Annotated[float, Range("must lie in [0, 1)", 0.0, 1.0, below=True)]
Epsilon = Annotated[float, Range("must lie in [0, 1]", 0.0, 1.0)]
Deviation = Annotated[float, Range("must be a finite number from 0", 0.0, 1e6)]


def ranges_in(annotation: Any) -> Iterator[Range]:
    """The ranges in an annotation, those of unions and lists included."""
    yield from (part for part in getattr(annotation, "__metadata__", ()) if isinstance(part, Range))
    for part in typing.get_args(annotation):
        if not isinstance(part, Range):
            yield from ranges_in(part)
