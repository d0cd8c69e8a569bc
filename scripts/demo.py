"""The main job, shown on this machine: read documents with a real pretrained model, then answer questions from them.

By default the documents are Python's own: the documentation strings of its library's modules and the sources of some
of them, about 350,000 tokens, which takes about a minute on two cores. Folders or files given as arguments are read
instead.

Run it by `make demo`, or `make demo DOCS=folder`. Another run goes on where this one stopped, and embeds only what
changed.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(".demo")
LIBRARY = Path(sysconfig.get_paths()["stdlib"])
SOURCES = ("csv.py", "heapq.py", "json", "logging", "shelve.py", "textwrap.py")
LIBRARY_QUERIES = ("How do I rotate log files when they grow too large?", "keep a dictionary in a file on disk")
OTHER_QUERIES = ("How is it installed and set up?", "What are the limits, and what can go wrong?")

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def main() -> int:
    """Embed, search twice, and say how long each step took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("documents", nargs="*", help="files and folders to read; default: Python's own documentation")
    documents: list[str] = parser.parse_args().documents
    FOLDER.mkdir(exist_ok=True)
    if documents:
        index, queries = FOLDER / "documents.parquet", OTHER_QUERIES
    else:
        index, queries = FOLDER / "python.parquet", LIBRARY_QUERIES
        documents = [str(write_docstrings(FOLDER / "docstrings")), *(str(LIBRARY / name) for name in SOURCES)]
    started = time.perf_counter()
    embed = longspan("embed", *documents, "--output", str(index), "--others", "drop")
    if embed not in (0, 3):  # 3: something could not be read, and was named
        return embed
    embedded = time.perf_counter()
    search = longspan("search", str(index), *queries, "--top-k", "3")
    answered = time.perf_counter()
    print(f"with start-up, embedding took {embedded - started:.1f} s and two queries {answered - embedded:.1f} s")
    print(f"ask your own: longspan search {index} QUESTION")
    return search


def longspan(*arguments: str) -> int:
    """Show and run one command line."""
    print("$ longspan", subprocess.list2cmdline(arguments), flush=True)
    return subprocess.run([sys.executable, "-m", "longspan", *arguments], check=False).returncode


def write_docstrings(folder: Path) -> Path:
    """Write the documentation strings of the library's public modules, a text file a module."""
    folder.mkdir(exist_ok=True)
    for path in sorted(LIBRARY.glob("[!_]*.py")):
        sections = list(docstrings(ast.parse(path.read_bytes()), path.stem))
        if sections:
            (folder / f"{path.stem}.txt").write_text("\n\n\n".join(sections) + "\n", encoding="utf-8")
    return folder


def docstrings(node: ast.AST, name: str) -> Iterator[str]:
    """Name, line and documentation of `node` and of what is defined in it."""
    if isinstance(node, Documented):
        text = ast.get_docstring(node)
        if text:
            yield f"{name} (line {getattr(node, 'lineno', 1)})\n\n{text}"
    for child in getattr(node, "body", ()):
        if isinstance(child, Documented):
            yield from docstrings(child, f"{name}.{getattr(child, 'name', '')}")


if __name__ == "__main__":
    sys.exit(main())
