"""What the README tells people to type works."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from tests.pipelines.explained import make_model
from tests.pipelines.planted import make_finder
from tests.pipelines.task_models import make_task_model

from longspan.cli.main import app
from longspan.cli.running import run

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


TASKS = ("zero-shot-classification", "feature-extraction", "text-classification", "token-classification",
         "question-answering", "multiple-choice", "fill-mask", "text-generation", "summarization")  # fmt: skip


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.M | re.S)


def commands():
    lines = [line.partition("  #")[0].strip() for block in blocks("console") for line in block.splitlines()]
    lines += re.findall(r"`(longspan [^`]+|make [a-z]+[^`]*)`", README)
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, minilm_dir):
    """A working directory with what the README's commands name."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "docs").mkdir()
    (folder / "docs" / "logs.md").write_text("# Logs\n\nLog files are rotated at midnight.\n")
    (folder / "notes.md").write_text("Rice is cooked with twice as much water.\n")
    (folder / "path").mkdir()
    (folder / "path" / "to").mkdir()
    for name in ("bert", "checkpoint"):
        (folder / "path" / "to" / name).symlink_to(minilm_dir, target_is_directory=True)
    models = folder / "models"
    models.mkdir()
    (models / "encoder").symlink_to(minilm_dir, target_is_directory=True)
    for name, task in (("tag", "token-classification"), ("answer", "question-answering")):
        make_finder(models / name, task)
    make_finder(models / "classify", "text-classification")
    for name, task in (("fill", "fill-mask"), ("choose", "multiple-choice")):
        make_task_model(models / name, task, "wordpiece", minilm_dir)
    for name, family in (("summarize", "longt5"), ("write", "diffllama-lm")):
        make_model(models / name, family, minilm_dir)
    return folder


@pytest.mark.filterwarnings("ignore:.*newly initialized")
@pytest.mark.filterwarnings("ignore:.*is no sentence-transformers model")
@pytest.mark.parametrize("code", blocks("python"))
def test_python_examples_run_and_print_what_they_say(code, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    exec(compile(code, "README.md", "exec"), {})
    said = [line.partition("  # ")[2] for line in code.splitlines() if line.startswith("print(") and "  # " in line]
    printed = capsys.readouterr().out.splitlines()
    assert not said or printed == said


def test_each_task_is_shown_with_its_output():
    tasks = "".join(block for block in blocks("python") if "pipeline(" in block)
    for task in TASKS:
        assert f'pipeline("{task}"' in tasks, task
    assert tasks.count("  # ") >= len(TASKS)


@pytest.mark.filterwarnings("ignore:.*is no sentence-transformers model")
def test_console_commands_run_in_their_order(folder, monkeypatch, capsys):
    """In this process; tests/cli/test_main.py starts `python -m longspan`."""
    monkeypatch.chdir(folder)
    ran = []
    for line in commands():
        words = shlex.split(line)
        if words[0] != "longspan" or "SRC" in words:
            continue
        capsys.readouterr()
        code, printed = run(app, words[1:]), capsys.readouterr()
        assert code == 0, f"{line}: {printed.err}"
        ran.append(words[1])
        if words[1] == "search":
            assert "docs/logs.md:3" in printed.out
    assert {"embed", "search", "lengthen"} <= set(ran)


def test_make_targets_and_extras_exist():
    makefile = (ROOT / "Makefile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = {line.split()[1] for line in commands() if line.startswith("make ")}
    assert {"demo", "test", "bench"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.M), target
    named = re.findall(r"'(?:longspan|\.)\[([a-z,]+)\]'", README) + re.findall(r"`\[([a-z,]+)\]`", README)
    assert len(named) >= 3
    for extra in ",".join(named).split(","):
        assert extra in extras


def test_links_lead_to_files():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
