"""Bring the line numbers of the links in docs/tour.md and its Chinese page up to date: python scripts/tour_lines.py.

A test (tests/contract/test_tour.py) holds every link to the line that defines its name; whoever moves that line runs
this. A name that its file no longer defines, or defines twice, is an error.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("docs/tour.md", "docs/tour.zh.md")
LINK = re.compile(r"\[`(\w+)`\]\(\.\./([^#)]+)#L(\d+)\)")


def lines_that_define(name: str, path: str) -> list[int]:
    """The lines of a file at which functions and classes of a name begin."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return [node.lineno for node in ast.walk(tree) if isinstance(node, kinds) and node.name == name]


def linked_line(link: re.Match[str]) -> str:
    """The link with the line that defines its name; where several do, the line that it has must be one of them."""
    name, path, line = link.groups()
    defined = lines_that_define(name, path)
    if int(line) in defined:
        return link.group()
    if len(defined) != 1:
        sys.exit(f"the tour: {path} defines {name} {len(defined)} times, at {defined}; the link says {line}")
    return f"[`{name}`](../{path}#L{defined[0]})"


if __name__ == "__main__":
    for page in PAGES:
        tour = ROOT / page
        tour.write_text(LINK.sub(linked_line, tour.read_text(encoding="utf-8")), encoding="utf-8")
