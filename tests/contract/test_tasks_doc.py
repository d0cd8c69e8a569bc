"""What docs/tasks.md shows works, and prints what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from tests.pipelines.planted import ANSWER, NAME, filler, make_finder, plant
from tests.pipelines.task_models import make_task_model

from longspan.cli.main import app
from longspan.cli.running import run

TEXT = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    for name, task in (("tag", "token-classification"), ("answer", "question-answering")):
        make_finder(folder / "models" / name, task)
    make_finder(folder / "models" / "classify", "text-classification")
    for name, task in (("fill", "fill-mask"), ("choose", "multiple-choice")):
        make_task_model(folder / "models" / name, task, "wordpiece", minilm_dir)
    (folder / "corpus").mkdir()
    (folder / "corpus" / "a.txt").write_text(plant(filler(300, 1), f"{NAME} and {ANSWER}", 200)[0])
    return folder


@pytest.mark.filterwarnings("ignore:.*newly initialized")
@pytest.mark.parametrize("code", re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.M | re.S))
def test_python(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    expected = code.rstrip().rpartition("  # ")[2]
    assert len([line for line in code.splitlines() if line]) == 3
    exec(compile(code, "tasks.md", "exec"), {})
    assert capsys.readouterr().out.strip() == expected


def test_commands(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    blocks = re.findall(r"^```console\n(.*?)^```", TEXT, flags=re.M | re.S)
    for line in "".join(blocks).splitlines():
        assert run(app, shlex.split(line)[1:]) == 0, capsys.readouterr().err
    assert ANSWER in capsys.readouterr().out
    assert NAME in (folder / "entities.csv").read_text()
    assert (folder / "labels.parquet").exists()
    assert "<!doctype html>" in (folder / "page.html").read_text()
