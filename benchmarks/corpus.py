"""Real text that every machine with Python has: the documentation strings of its own library."""

from __future__ import annotations

import ast
import sysconfig
from pathlib import Path


def docstrings(count: int, *, shortest: int = 20) -> list[str]:
    """The first `count` distinct documentation strings of the standard library, in the order of its files.

    Args:
        count: How many.
        shortest: Leave out those with fewer characters.

    Raises:
        RuntimeError: the library has fewer.
    """
    found: dict[str, None] = {}
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if {"site-packages", "test", "tests", "idle_test"} & set(path.relative_to(root).parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and len(text) >= shortest:
                    found.setdefault(text)
        if len(found) >= count:
            return list(found)[:count]
    raise RuntimeError(f"the library holds {len(found)} documentation strings; {count} were asked for")
