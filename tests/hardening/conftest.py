"""What the batteries share: their long form, and the figures that the documents show."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

#: The long form: more cases, and their figures are kept (`make hardening`).
IS_LONG = os.environ.get("LONGSPAN_HARDENING") == "long"
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "hardening.json"


@pytest.fixture(scope="session")
def is_long() -> bool:
    """Whether the long form is asked for."""
    return IS_LONG


#: what adds up over the pieces of a battery that runs in several (`-k`)
SUMS = ("cases", "held", "seconds")


def each(figures: dict[str, Any], cases: Iterable[Any]) -> Iterator[Any]:
    """Yield the cases and count them; one at which the caller's loop ends by an exception has not held."""
    for case in cases:
        figures["cases"] = figures.get("cases", 0) + 1
        yield case
        figures["held"] = figures.get("held", 0) + 1


def with_piece(known: dict[str, Any], piece: str, found: dict[str, Any]) -> dict[str, Any]:
    """A battery's figures after a run of one piece of it; the whole battery (`""`) takes the place of its pieces."""
    if not piece:
        return found
    pieces = {**known.get("pieces", {}), piece: {key: found[key] for key in SUMS}}
    others = {key: value for key, value in {**known, **found}.items() if key not in (*SUMS, "pieces")}
    sums = {key: sum(one[key] for one in pieces.values()) for key in SUMS}
    return {**others, **sums, "pieces": pieces}


@pytest.fixture(scope="module")
def figures(request: pytest.FixtureRequest):
    """A dictionary to count in (`cases`, `held`, and what else a battery tells); the long form writes it to a file."""
    found: dict[str, Any] = {}
    start = time.monotonic()
    yield found
    if IS_LONG:
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        name = request.module.__name__.rpartition(".")[2].removeprefix("test_")
        found["seconds"] = round(time.monotonic() - start)
        results[name] = with_piece(results.get(name, {}), request.config.option.keyword, found)
        RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
