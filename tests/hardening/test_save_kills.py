"""SIGKILL while a conversion, a lengthening or a tokenizer's save writes over older files: all are old, or all new.

`tests/checkpoints/test_update.py` kills saves of weights in the same way.
"""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(("job", "every"), [("convert", 3), ("tokenizer", 2), ("lengthen", 9), ("encoder", 25)])
def test_old_or_new_after_a_kill(tmp_path, figures, is_long, job, every):
    worker = subprocess.run(
        [sys.executable, "-m", "tests.hardening.save_kills_worker", str(tmp_path), job, str(1 if is_long else every)],
        capture_output=True,
        text=True,
    )
    assert worker.returncode == 0, worker.stderr[-2000:]
    *kills, last = [line.split() for line in worker.stdout.splitlines()]
    assert last == ["whole", "2"]
    assert all(state == "killed" and generation in "12" for state, generation in kills)
    assert {generation for _, generation in kills} == {"1", "2"}, "kills before and after the moment of the change"
    assert len(kills) > 4
    for key in ("cases", "held"):
        figures[key] = int(str(figures.get(key, 0))) + len(kills)
