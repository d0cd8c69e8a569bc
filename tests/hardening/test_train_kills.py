"""SIGKILL at seeded moments of `longspan train`: the same command ends in the same bits, and leaves nothing."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest
from tests.hardening.conftest import IS_LONG
from tests.tiny_encoder import make_plain_model
from tests.training.conftest import documents, write_lines

MOMENTS = [
    ("time" if number % 3 == 2 else "call", random.Random(number).random()) for number in range(20 if IS_LONG else 3)
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, figures):
    """What came of each kill."""
    folder = tmp_path_factory.mktemp("train-kills")
    data = write_lines(folder / "data.jsonl", documents(16, seed=9))
    model = make_plain_model(folder / "model")
    (folder / "runs").mkdir()
    command = [sys.executable, "-m", "tests.hardening.train_kill_worker", folder / "runs", model, data]
    done = subprocess.run([*map(str, command), json.dumps(MOMENTS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"code"')]
    figures |= {"cases": len(MOMENTS), "held": 0}
    return found


@pytest.mark.parametrize("case", range(len(MOMENTS)), ids=[f"{kind}-{part:.2f}" for kind, part in MOMENTS])
def test_a_killed_run_goes_on_to_the_same_bits(outcomes, figures, case):
    found = outcomes[case]
    assert (found["code"], found["again"], found["unequal"], found["left"]) == (137, 0, [], []), found
    figures["held"] += 1
