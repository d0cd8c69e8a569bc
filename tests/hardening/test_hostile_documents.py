"""Documents made to harm: none ends the run or passes its limits, and what is left out is named with a reason."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tests.hardening.hostile_documents import CASES, LIMITS

#: Files of which a record is good, whatever is wrong with the others.
_WITH_A_GOOD_RECORD = ("line.jsonl", "lists.jsonl", "deep.jsonl", "digits.jsonl", "keys.jsonl")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, figures):
    """What became of every file: they are read one after another in one process under limits."""
    folder = tmp_path_factory.mktemp("hostile")
    worker = subprocess.run(
        [sys.executable, "-m", "tests.hardening.hostile_documents", str(folder)], capture_output=True, text=True
    )
    found = {line["name"]: line for line in map(json.loads, worker.stdout.splitlines())}
    slowest = max(one.get("seconds", 0) for one in found.values())
    figures |= {"cases": len(CASES), "held": 0, "slowest_seconds": round(slowest, 1)}
    return found, worker.stderr


@pytest.mark.parametrize("name", CASES)
def test_reading_stays_within_its_limits(outcomes, figures, name):
    found, stderr = outcomes
    assert name in found, f"the process ended: {stderr[-2000:]}"
    outcome = found[name]
    assert "crash" not in outcome, outcome
    assert outcome["seconds"] < LIMITS.seconds + 10, outcome
    assert outcome["characters"] <= LIMITS.unfolded(outcome["size"]), outcome
    assert outcome["documents"] or all(outcome["reasons"]), outcome
    assert outcome["documents"] + len(outcome["reasons"]) > 0, outcome
    if name in _WITH_A_GOOD_RECORD:
        assert outcome["last"] == "good", outcome
    figures["held"] += 1
