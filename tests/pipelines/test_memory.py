"""Peak memory depends on the budget of a batch, not on the number of documents."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.pipelines.task_models import make_task_model

WORKER = Path(__file__).with_name("memory_worker.py")
MB = 1 << 20


def growth(model: Path, task: str, count: int) -> int:
    """Bytes by which a run on `count` documents raises the peak of resident memory."""
    command = [sys.executable, str(WORKER), str(model), task, str(count)]
    quiet = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env={**os.environ, **quiet}, check=True, capture_output=True, text=True)
    grown, results = map(int, done.stdout.split())
    assert results == count
    return grown


@pytest.mark.slow
@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, minilm_dir: Path, task: str) -> None:
    model = make_task_model(tmp_path, task, "wordpiece", minilm_dir)
    few, many = growth(model, task, 300), growth(model, task, 3000)
    assert many - few < 12 * MB, "3,000 documents in two blocks take 37 MB more"
