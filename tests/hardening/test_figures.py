"""What the batteries count: cases that hold, and pieces that add up."""

from __future__ import annotations

import pytest
from tests.hardening.conftest import each, with_piece


def test_a_case_that_ends_a_loop_has_not_held():
    figures = {}
    assert list(each(figures, "abc")) == ["a", "b", "c"]
    with pytest.raises(ZeroDivisionError):
        _ = [1 / case for case in each(figures, [1, 0])]
    assert figures == {"cases": 5, "held": 4}


def test_pieces_of_a_battery_add_up_and_the_whole_takes_their_place():
    first = with_piece({"cases": 9, "held": 9, "seconds": 9}, "flax", {"cases": 3, "held": 3, "seconds": 5, "MB": 1})
    again = with_piece(first, "flax", {"cases": 3, "held": 2, "seconds": 4, "MB": 2})
    both = with_piece(again, "keras", {"cases": 10, "held": 10, "seconds": 1})
    assert {key: both[key] for key in ("cases", "held", "seconds", "MB")} == {
        "cases": 13, "held": 12, "seconds": 5, "MB": 2
    }  # fmt: skip
    whole = {"cases": 13, "held": 13, "seconds": 7}
    assert with_piece(both, "", whole) == whole
