"""SIGKILL while a conversion, a lengthening or a tokenizer's save writes over older files: all are old, or all new.

`tests/checkpoints/test_update.py` kills saves of weights in the same way.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

#: job -> the operation at every how many-th of which it is killed in the short form
JOBS = {"convert": 5, "tokenizer": 3, "lengthen": 14, "encoder": 38}


@pytest.fixture(scope="module")
def lines(tmp_path_factory, is_long):
    """What the worker says of all jobs; one process imports what they need."""
    jobs = [f"{job}={1 if is_long else every}" for job, every in JOBS.items()]
    command = [sys.executable, "-m", "tests.hardening.save_kills_worker", str(tmp_path_factory.mktemp("kills")), *jobs]
    worker = subprocess.run(command, capture_output=True, text=True)
    return [line.split() for line in worker.stdout.splitlines()], worker.stderr[-2000:]


@pytest.mark.parametrize("job", JOBS)
def test_old_or_new_after_a_kill(lines, figures, job):
    told, errors = lines
    *kills, last = [words for name, *words in told if name == job] or [[]]
    assert last == ["whole", "2"], errors
    assert all(state == "killed" and generation in "12" for state, generation in kills)
    assert {generation for _, generation in kills} == {"1", "2"}, "kills before and after the moment of the change"
    assert len(kills) > 4
    for key in ("cases", "held"):
        figures[key] = int(str(figures.get(key, 0))) + len(kills)
