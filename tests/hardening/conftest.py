"""What the batteries share: their long form, and the figures that the documents show."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

#: The long form: more cases, and their figures are kept (`make hardening`).
IS_LONG = os.environ.get("LONGSPAN_HARDENING") == "long"
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "hardening.json"


@pytest.fixture(scope="session")
def is_long() -> bool:
    """Whether the long form is asked for."""
    return IS_LONG


@pytest.fixture(scope="module")
def figures(request: pytest.FixtureRequest):
    """A dictionary to count in (`cases`, `held`, and what else a battery tells); the long form writes it to a file."""
    found: dict[str, object] = {}
    start = time.monotonic()
    yield found
    if IS_LONG:
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        name = request.module.__name__.rpartition(".")[2].removeprefix("test_")
        results[name] = {**found, "seconds": round(time.monotonic() - start)}
        RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
