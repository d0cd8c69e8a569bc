"""The Trainer, Seq2SeqTrainer and pipelines of transformers, at the oracle's release and at the newest one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from tests.processes import run_group

pytestmark = pytest.mark.ecosystem
HERE = Path(__file__).parent
NEWEST = Path(sys.prefix) / "newest"


#: what the worker can run
CHECKS = ["sequences", "checkpoints", "plain", "accumulated", "pipelines", "pickles"]
#: at the oracle's release: what differs between them, tasks of pipelines that the newest one lacks among it
DIFFERENT = ["sequences", "checkpoints", "pipelines"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "checks"),
    [
        pytest.param(NEWEST, CHECKS, id="newest"),
        pytest.param(None, DIFFERENT, id="oracle"),
        pytest.param(None, [one for one in CHECKS if one not in DIFFERENT], id="oracle-others", marks=pytest.mark.wide),
    ],
)
def test_runs(path, checks):
    assert path is None or (path / "transformers").is_dir(), "made by `make test`"
    before = [str(path)] if path else []
    known = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*before, *known])}
    worker = [sys.executable, str(HERE / "trainer_worker.py"), *checks]
    done = run_group(worker, env=environment, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert [line.removesuffix(" ok") for line in done.stdout.splitlines() if line.endswith(" ok")] == checks
