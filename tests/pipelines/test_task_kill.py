"""`kill -9` at random moments of a task on files: the next run goes on, with the result of an undisturbed one."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import pytest
from tests.hardening.conftest import IS_LONG
from tests.pipelines.explained import make_model
from tests.pipelines.task_models import make_task_model
from tests.pipelines.test_kill import WORKER
from tests.tiny_encoder import WORDS

#: command -> the output, kills in the short form and in the long one
CASES = {"classify": ("out.jsonl", 4, 10), "tag": ("out.parquet", 4, 10), "summarize": ("out.csv", 3, 8)}


def write_records(path: Path, count: int, shortest: int, longest: int, seed: int) -> Path:
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(shortest, longest))) for _ in range(count)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Path:
    """A folder for each command with what its runs wrote; one process imports what all need."""
    root = tmp_path_factory.mktemp("runs")
    corpus = root / "corpus"
    corpus.mkdir()
    draw = random.Random(3)
    for number, size in enumerate([5, 4000, 0, 300, 60]):
        (corpus / f"{number}.txt").write_text(" ".join(draw.choices([*WORDS, "\n"], k=size)))
    write_records(corpus / "records.jsonl", 400, 0, 90, seed=3)
    arguments = {
        "classify": [corpus, "--model", make_task_model(root / "1", "text-classification", "wordpiece", minilm_dir)],
        "tag": [corpus, "--model", make_task_model(root / "2", "token-classification", "wordpiece", minilm_dir)],
        "summarize": [
            *(write_records(root / "records.jsonl", 400, 1, 60 if IS_LONG else 12, seed=5), "--model"),
            *(make_model(root / "3", "longt5", minilm_dir), "--max-new-tokens", 3),
        ],
    }
    for command in ("classify", "tag"):
        arguments[command] += ["--batch-tokens", 256]
    work = []
    for command, (name, few, many) in CASES.items():
        (root / command).mkdir()
        kills = many if IS_LONG else few
        work.append([str(part) for part in [kills, root / command, name, command, *arguments[command], "-q"]])
    done = subprocess.run([*WORKER, json.dumps(work)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stderr)  # of whichever case fails
    return root


@pytest.mark.parametrize("command", CASES)
def test_killed_runs_resume_to_the_same_result(runs: Path, command: str) -> None:
    """Every run that was killed and went on has the bytes of the undisturbed one."""
    folder, name = runs / command, CASES[command][0]
    assert not (folder / "failed").exists(), (folder / "failed").read_text()
    finished = [each for each in folder.iterdir() if each.name != "undisturbed"]
    assert folder / "killed" in finished
    for each in finished:
        assert (each / name).read_bytes() == (folder / "undisturbed" / name).read_bytes()
        assert [path.name for path in each.iterdir()] == [name]
