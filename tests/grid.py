"""Grids of cases of which `make test` runs a part and `make test-all` the rest."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def grid(cases: Iterable[Any], wide: Collection[Any]) -> list[Any]:
    """The cases of a parametrised test; those that are in `wide` have the mark `wide`.

    Args:
        cases: One value, or a tuple of the values of several arguments, a case.
        wide: Cases of them that take the same way through the code as others.
    """
    cases = list(cases)
    assert all(case in cases for case in wide), "a case must be one of the grid"
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.wide if case in wide else ())
        for case in cases
    ]
