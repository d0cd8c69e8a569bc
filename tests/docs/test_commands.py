"""What pages tell to type exists: commands of longspan and their options, targets of make, modules and scripts."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import typer
from tests.docs.test_translations import PAGES, translation

from longspan.cli.main import app

ROOT = Path(__file__).parents[2]
COMMANDS = typer.main.get_command(app).commands
OPTIONS = {name: {one for parameter in command.params for one in (*parameter.opts, *parameter.secondary_opts)}
           | {"--help", "-h"} for name, command in COMMANDS.items()}  # fmt: skip
#: of whole commands in code, and options alone; remarks behind a line are no part of it
TYPED = re.compile(r"(?:^|-m )longspan ([a-z|]+(?: \| [a-z]+)*)((?:\s[^\n#]*)?)")
OPTION = re.compile(r"(?<![\w-])(--[a-z][\w-]*|-[a-zA-Z](?=[ \n]|$))")
#: those of the programs beside the package, which pages name alone, too
OTHERS = {option for folder in ("benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")
          for option in re.findall(r"add_argument\(\s*\"(--[\w-]+)", path.read_text(encoding="utf-8"))}  # fmt: skip
FILES = [*PAGES, *map(translation, PAGES), ROOT / "CONTRIBUTING.md", ROOT / "src/longspan/remedies.toml"]


def code_of(path):
    """Lines of code blocks, with continued ones joined, and pieces of code in the text."""
    text = path.read_text(encoding="utf-8")
    fences = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.M | re.S)
    lines = "".join(fences).replace("\\\n", " ").splitlines()
    spans = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))
    return lines, [" ".join(one.split()) for one in spans]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_and_options_exist(path):
    lines, spans = code_of(path)
    for line in [*lines, *spans]:
        for names, rest in TYPED.findall(line):
            for name in re.findall(r"[a-z]+", names):
                assert name in COMMANDS, f"{line}: there is no command {name}"
                unknown = set(OPTION.findall(rest)) - OPTIONS[name]
                assert not unknown, f"{line}: longspan {name} has no {unknown}"
    alone = {one for span in spans if span.startswith("--") for one in OPTION.findall(span)}
    assert alone - OTHERS <= set().union(*OPTIONS.values())


def test_targets_modules_and_scripts_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    for path in FILES:
        lines, spans = code_of(path)
        for line in [*lines, *spans]:
            assert set(re.findall(r"^make ([a-z][a-z-]*)", line)) <= targets, (path, line)
            for name in re.findall(r"python -m ((?:longspan|benchmarks|tests)[\w.]*)", line):
                place = ROOT / ("src" if name.startswith("longspan") else "") / name.replace(".", "/")
                assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), (path, line)
            for name in re.findall(r"python ((?:examples|scripts)/\w+\.py)", line):
                assert (ROOT / name).exists(), (path, line)


def test_extras_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = {one for path in FILES for text in re.findall(r"longspan\[([\w,]+)\]", path.read_text(encoding="utf-8"))
             for one in text.split(",")}  # fmt: skip
    assert {"torch", "documents", "keras", "search"} <= named <= set(extras)


def test_the_test_sees_commands():
    """Neither of the others passes because it finds nothing."""
    found = [line for path in FILES for part in code_of(path) for line in part if TYPED.search(line)]
    assert len(found) > 60
    assert TYPED.findall("longspan embed docs/ --output a.npz  # --none") == [("embed", " docs/ --output a.npz  ")]
    assert OPTION.findall(" path/to/long-bert -m DIR --no-resume") == ["-m", "--no-resume"]
