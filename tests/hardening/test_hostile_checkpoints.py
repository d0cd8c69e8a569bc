"""Hostile weight files: each is refused by a clear error that names the file, within limits of time and memory."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tests.hardening.hostile_files import CASES, SECONDS


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, figures):
    """What became of every case: they are opened one after another in one process under limits."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, write in CASES.items():
        (folder / name).mkdir()
        write(folder / name)
    worker = subprocess.run(
        [sys.executable, "-m", "tests.hardening.hostile_files", str(folder)], capture_output=True, text=True
    )
    found = {line["name"]: line for line in map(json.loads, worker.stdout.splitlines())}
    slowest = round(max(line["seconds"] for line in found.values()), 2)
    figures |= {"cases": len(CASES), "held": 0, "slowest_seconds": slowest}
    return found, folder, worker.stderr


@pytest.mark.parametrize("name", CASES)
def test_refused_with_the_name_of_the_file(outcomes, figures, name):
    found, folder, stderr = outcomes
    assert name in found, f"the process ended: {stderr[-2000:]}"
    outcome = found[name]
    assert outcome["kind"] in ("CheckpointError", "UnsafeCheckpointError", "CheckpointNotFoundError"), outcome
    assert str(folder / name) in outcome["message"], outcome
    assert outcome["length"] < 2000, outcome
    assert outcome["seconds"] < SECONDS, outcome
    figures["held"] += 1
