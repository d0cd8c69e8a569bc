"""What docs/training.md shows runs, and its table names the tasks, columns and metrics that there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from tests.training.conftest import documents, write_lines

from longspan.cli.main import app
from longspan.cli.running import run
from longspan.training.options import TrainOptions
from longspan.training.runs import TASKS, make_task

TEXT = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")


def test_commands(encoder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "bert").symlink_to(encoder, target_is_directory=True)
    write_lines(tmp_path / "reviews.jsonl", documents(20, seed=1))
    (tmp_path / "notes.md").write_text("open the file")
    for line in "".join(re.findall(r"^```console\n(.*?)^```", TEXT, flags=re.M | re.S)).splitlines():
        assert run(app, shlex.split(line)[1:]) == 0, capsys.readouterr().err
    assert (tmp_path / "labels.csv").exists()


@pytest.mark.parametrize("name", TASKS)
def test_the_table(name):
    row = next(line for line in TEXT.splitlines() if line.startswith(f"| {name} |"))
    task = make_task(name, TrainOptions())
    assert f"`{task.text_field}`" in row
    first = row.split("|")[-2].strip().lower().replace("-", "")
    assert first.startswith(task.best_metric.lower())
