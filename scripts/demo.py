"""The main job, shown on this machine: read documents with a real pretrained model, then answer questions from them.

At the end one long document is looked at more closely: what it is about, among labels in words that the model was never
trained on, and a page that shows, token by token, what in it matches a question.

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
from collections.abc import Iterator, Sequence
from pathlib import Path

FOLDER = Path(".demo")
LIBRARY = Path(sysconfig.get_paths()["stdlib"])
SOURCES = ("csv.py", "heapq.py", "json", "logging", "shelve.py", "textwrap.py")
LIBRARY_QUERIES = ("How do I rotate log files when they grow too large?", "keep a dictionary in a file on disk")
#: Documents of up to 4,096 tokens that get one vector each, and what is asked of them.
WHOLE_DOCUMENTS = ("heapq", "shelve", "statistics")
WHOLE_QUERY = "average and spread of numbers"
#: What a document may be about, and the size in bytes that a long one should have: about 4,096 tokens.
LABELS = ("tables of data", "networking", "mathematics", "a story", "law", "medicine")
LONG_BYTES = 16_000
LONG_DOCUMENT, LONG_QUERY = "csv.py", "guess which delimiter a file uses"
OTHER_QUERIES = ("How is it installed and set up?", "What are the limits, and what can go wrong?")

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def main() -> int:
    """Embed, search, and say how long each step took; the exit code of the step that failed, or 0."""
    parser = argparse.ArgumentParser(description="Embed documents and answer queries from them.")
    parser.add_argument("documents", nargs="*", help="files and folders to read; default: Python's own documentation")
    documents: list[str] = parser.parse_args().documents
    FOLDER.mkdir(exist_ok=True)
    if documents:
        index, queries = FOLDER / "documents.parquet", OTHER_QUERIES
        steps = [("embed", *documents, "--output", str(index), "--others", "drop")]
    else:
        index, queries = FOLDER / "python.parquet", LIBRARY_QUERIES
        docstrings = write_docstrings(FOLDER / "docstrings")
        sources = [str(LIBRARY / name) for name in SOURCES]
        steps = [("embed", str(docstrings), *sources, "--output", str(index), "--others", "drop")]
    steps.append(("search", str(index), *queries, "--top-k", "3"))
    if not documents:
        whole = [str(docstrings / f"{name}.txt") for name in WHOLE_DOCUMENTS]
        long_index = str(FOLDER / "whole.parquet")
        steps.append(("embed", *whole, "--output", long_index, "--max-length", "4096", "--others", "drop"))
        steps.append(("search", long_index, WHOLE_QUERY, "--top-k", "1"))
    page = FOLDER / "explain.html"
    long = find_long(documents) if documents else str(LIBRARY / LONG_DOCUMENT)
    query = queries[0] if documents else LONG_QUERY
    if long is not None:
        labels = [word for label in LABELS for word in ("--label", label)]
        steps.append(("classify", long, *labels, "--top-k", "3"))
        steps.append(("explain", long, "--query", query, "--output", str(page), "--overwrite"))
    code = run_all(steps)
    if code == 0:
        print(f"ask your own: longspan search {index} QUESTION")
        if long is not None:
            print(f"see what in {long} matches {query!r}: open {page.resolve().as_uri()} in a browser")
    return code


def find_long(documents: Sequence[str]) -> str | None:
    """The text whose size is nearest to what a long document should have; None if there is none."""
    from longspan.documents.walk import find_files

    files = [file for file in find_files(documents).files if file.kind in ("text", "python", "html", "pdf")]
    return min(
        (str(file.path) for file in files), key=lambda name: abs(Path(name).stat().st_size - LONG_BYTES), default=None
    )


def run_all(steps: Sequence[tuple[str, ...]]) -> int:
    """Run command lines until one fails, then say how long each took; the exit code of the last."""
    seconds = []
    for step in steps:
        started = time.perf_counter()
        code = longspan(*step)
        seconds.append(f"{step[0]} {time.perf_counter() - started:.1f} s")
        if code not in (0, 3):  # 3: something could not be read, and was named
            return code
    print(f"with start-up: {', '.join(seconds)}")
    return 0


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
