"""`kill -9` at random moments of a task on files: the next run goes on, with the result of an undisturbed one."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tests.pipelines.explained import make_model
from tests.pipelines.task_models import make_task_model
from tests.tiny_encoder import WORDS

WORKER = Path(__file__).with_name("embed_worker.py")


def check(tmp_path: Path, kills: int, name: str, arguments: list[object]) -> None:
    """Every run that was killed and went on has the bytes of the undisturbed one."""
    runs = tmp_path / "runs"
    runs.mkdir()
    line = [sys.executable, WORKER, kills, runs, name, *arguments]
    done = subprocess.run([str(part) for part in line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    finished = [folder for folder in runs.iterdir() if folder.name != "undisturbed"]
    assert runs / "killed" in finished
    for folder in finished:
        assert (folder / name).read_bytes() == (runs / "undisturbed" / name).read_bytes()
        assert [path.name for path in folder.iterdir()] == [name]


@pytest.mark.parametrize(("command", "name", "kills"), [("classify", "out.jsonl", 10), ("tag", "out.parquet", 10)])
def test_killed_runs_resume_to_the_same_result(
    tmp_path: Path, minilm_dir: Path, command: str, name: str, kills: int
) -> None:
    task = {"classify": "text-classification", "tag": "token-classification"}[command]
    model = make_task_model(tmp_path / "model", task, "wordpiece", minilm_dir)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    draw = random.Random(3)
    for number, size in enumerate([5, 4000, 0, 300, 60]):
        (corpus / f"{number}.txt").write_text(" ".join(draw.choices([*WORDS, "\n"], k=size)))
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(0, 90))) for _ in range(400)]
    (corpus / "records.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    check(tmp_path, kills, name, [command, corpus, "--model", model, "--batch-tokens", 256, "-q"])


def test_killed_summaries_resume_to_the_same_result(tmp_path: Path, minilm_dir: Path) -> None:
    model = make_model(tmp_path / "model", "longt5", minilm_dir)
    draw = random.Random(5)
    records = tmp_path / "records.jsonl"
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 60))) for _ in range(400)]
    records.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    check(tmp_path, 8, "out.csv", ["summarize", records, "--model", model, "--max-new-tokens", 3, "-q"])
