"""Eight threads, and processes, on one model, tokenizer, pipeline and encoder: equal to one call after another."""

from __future__ import annotations

import json
import sys

import pytest
from tests.hardening.conftest import IS_LONG
from tests.pipelines.task_models import make_task_model
from tests.processes import run_group
from tests.tiny_encoder import make_sentence_model

CALLS = 2000 if IS_LONG else 96
MB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory, minilm_dir):
    root = tmp_path_factory.mktemp("concurrency")
    make_task_model(root / "task", "text-classification", "wordpiece", minilm_dir)
    make_sentence_model(root / "encoder")
    return root


@pytest.mark.parametrize("framework", ["torch", "flax", "keras"])
def test_equal_to_serial_without_deadlock_or_growth(folder, figures, framework):
    command = [sys.executable, "-m", "tests.hardening.concurrency_worker", framework, str(folder), str(CALLS)]
    done = run_group(command, timeout=3600 if IS_LONG else 600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for key in ("cases", "held"):
        figures[key] = figures.get(key, 0) + found[key]
    figures[f"{framework}_grown_MB"] = round(found["grown"] / MB, 1)
    assert found["held"] == found["cases"] > CALLS
    assert found["grown"] < 24 * MB, "one leaked tensor a call is more in the long form"
