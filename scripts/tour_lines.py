"""Bring the line numbers of the links in docs/tour.md and its Chinese page up to date: python scripts/tour_lines.py.

A test (tests/contract/test_tour.py) holds every link to a line that defines its name; whoever moves that line runs
this. Where a file defines a name more than once, its link goes to the definition nearest to the line that it had, the
earlier of two at the same distance: look at such a link, which may have come to another one. A name that its file no
longer defines is an error.
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
    """The link with the line that defines its name, the nearest to the line that it has."""
    name, path, line = link.groups()
    defined = lines_that_define(name, path)
    if not defined:
        sys.exit(f"the tour: {path} does not define {name} any more; the link says {line}")
    nearest = min(defined, key=lambda one: (abs(one - int(line)), one))
    return f"[`{name}`](../{path}#L{nearest})"


if __name__ == "__main__":
    for page in PAGES:
        tour = ROOT / page
        tour.write_text(LINK.sub(linked_line, tour.read_text(encoding="utf-8")), encoding="utf-8")
