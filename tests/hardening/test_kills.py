"""Faults at every call that makes an index durable: the old or the new one is there, whole, and the next run finishes.

Kills at random moments, of tasks as well, are in `tests/pipelines/test_kill.py` and `test_task_kill.py`.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest
from tests.hardening.conftest import IS_LONG
from tests.hardening.kill_worker import ERRORS
from tests.tiny_encoder import WORDS, make_sentence_model

#: Exit code of each fault, if it comes before the end.
CODES = {"SIGKILL": 137, "SIGTERM": 143, "SIGHUP": 129, "SIGINT": 130, "size": 1, **dict.fromkeys(ERRORS, 1)}
#: what a run says that failed
REASONS = ("File too large", *map(os.strerror, ERRORS.values()))
NAMES = ("out.parquet", "out.npz", "out.index")


def plan() -> list[tuple[str, bool, str, int]]:
    """Cases: the output, whether one is there, the fault, and where it comes; in the short form one of each fault."""
    cases = [
        (name, update, fault, call)
        for name in NAMES
        for update in (False, True)
        for fault in CODES
        for call in ([64, 1000, 4000, 16_000] if fault == "size" else range(1, 17))
    ]
    drawn = random.Random(7).sample(cases, 300)
    return drawn if IS_LONG else list({case[2]: case for case in drawn}.values())


PLAN = plan()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, figures):
    """What came of each case."""
    folder = tmp_path_factory.mktemp("kills")
    draw = random.Random(3)
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, size in enumerate([40, 700, 0, 150]):
        (corpus / f"{number}.txt").write_text(" ".join(draw.choices([*WORDS, "\n"], k=size)))
    model = make_sentence_model(folder / "model")
    (folder / "runs").mkdir()
    command = [sys.executable, "-m", "tests.hardening.kill_worker", folder / "runs", model, corpus, json.dumps(PLAN)]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"code"')]
    figures |= {"cases": len(PLAN), "held": 0, "interrupted": sum(one["code"] != 0 for one in found)}
    return found


@pytest.mark.parametrize("case", range(len(PLAN)), ids=["-".join(map(str, case)) for case in PLAN])
def test_the_old_or_the_new_index_is_there_whole(outcomes, figures, case):
    (name, update, fault, _), found = PLAN[case], outcomes[case]
    assert found["code"] in (0, CODES[fault]), found
    assert found["state"] in (("old" if update else "none"), "new"), found
    if found["code"] == 0:
        assert found["state"] == "new", found
    if found["code"] in (129, 130, 143):
        assert "finished work is kept, the same command goes on" in found["said"], found
    if found["code"] == 1:
        assert any(reason in found["said"] for reason in REASONS), found
        assert "unexpected" not in found["said"], found
    assert (found["again"], found["end"], found["left"]) == (0, "new", [name]), found
    assert found.get("equal", True), found
    figures["held"] += 1
