"""The tour of the code leads to the lines that it names, and its example runs."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOUR = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
LINKS = re.findall(r"\[`(\w+)`\]\(\.\./([^#)]+)#L(\d+)\)", TOUR)


def lines_that_define(name, path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [node.lineno for node in ast.walk(tree) if isinstance(node, kinds) and node.name == name]


@pytest.mark.parametrize(("name", "path", "line"), LINKS, ids=[name for name, _, _ in LINKS])
def test_every_link_goes_to_a_definition(name, path, line):
    defined = lines_that_define(name, path)
    assert int(line) in defined, (
        f"{name} is defined in {path} at line {defined}. docs/tour.md says: {line} (scripts/tour_lines.py mends it)"
    )


def test_all_links_are_checked_and_stops_are_few():
    assert len(LINKS) == TOUR.count("](../src/") >= 15
    assert len(re.findall(r"^\*\*\d\. ", TOUR, flags=re.MULTILINE)) <= 8


def test_the_example_prints_what_it_says(capsys):
    code = re.search(r"```python\n(.*?)```", TOUR, flags=re.DOTALL).group(1)
    exec(compile(code, "docs/tour.md", "exec"), {})
    assert capsys.readouterr().out == re.search(r"# (.*)\n$", code).group(1) + "\n"
