"""The main job, shown on this machine: read documents with a real pretrained model, then answer questions from them.

At the end one long document is looked at more closely: what it is about, among labels in words that the model was never
trained on, and a page that shows, token by token, what in it matches a question.

By default the documents are Python's own: the sources of some modules of its library and the documentation strings of
the others, as many as this machine reads within the time of a demonstration, which is found out by a short
measurement. Folders or files given as arguments are read instead.

Run it by `make demo`, or `make demo DOCS=folder`. Another run goes on where this one stopped, and embeds only what
changed.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(".demo")
LIBRARY = Path(sysconfig.get_paths()["stdlib"])
#: Sources, those that the queries ask for first.
SOURCES = ("shelve.py", "logging/handlers.py", "csv.py", "heapq.py", "textwrap.py", "json", "logging")
#: Characters of a token of Python's sources and documentation, about.
CHARACTERS_PER_TOKEN = 3.5
#: Seconds that the model may read, all steps together.
SECONDS = 75.0
#: Least tokens of the index: the sources that the queries ask for.
LEAST_TOKENS = 21_000
LIBRARY_QUERIES = ("How do I rotate log files when they grow too large?", "keep a dictionary in a file on disk")
WHOLE_QUERY = "keep the smallest of many things, or a dictionary on disk"
#: What a document may be about, and the size in bytes that a long one should have: about 4,096 tokens.
LABELS = ("tables of data", "networking", "mathematics", "a story", "law", "medicine")
LONG_BYTES = 16_000
OTHER_QUERIES = ("How is it installed and set up?", "What are the limits, and what can go wrong?")


@dataclass(frozen=True)
class Amount:
    """How much is shown besides the index.

    Attributes:
        tokens: What it costs, as tokens of the index.
        whole: Documents of up to 4,096 tokens that get one vector each.
        long: The document that is looked at more closely.
        query: What is looked for in it.
    """

    tokens: int
    whole: tuple[str, ...]
    long: str
    query: str


#: From much to little.
AMOUNTS = (
    Amount(100_000, ("heapq", "shelve", "statistics"), "csv.py", "guess which delimiter a file uses"),
    Amount(56_000, ("heapq", "shelve"), "csv.py", "guess which delimiter a file uses"),
    Amount(30_000, ("shelve",), "shelve.py", "write back what was changed"),
)

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def main() -> int:
    """Embed, search, and say how long each step took; the exit code of the step that failed, or 0."""
    parser = argparse.ArgumentParser(description="Embed documents and answer queries from them.")
    parser.add_argument("documents", nargs="*", help="files and folders to read; default: Python's own documentation")
    documents: list[str] = parser.parse_args().documents
    FOLDER.mkdir(exist_ok=True)
    page = FOLDER / "explain.html"
    if documents:
        index, long, query = FOLDER / "documents.parquet", find_long(documents), OTHER_QUERIES[0]
        steps = [("embed", *documents, "--output", str(index), "--others", "drop"), search(index, OTHER_QUERIES)]
    else:
        budget, index = tokens_within(SECONDS), FOLDER / "python.parquet"
        amount = next((one for one in AMOUNTS if budget >= 2 * one.tokens), AMOUNTS[-1])
        steps, long, query = library_steps(index, budget, amount), str(LIBRARY / amount.long), amount.query
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


def search(index: Path, queries: Sequence[str]) -> tuple[str, ...]:
    """The command line that asks an index."""
    return ("search", str(index), *queries, "--top-k", "3")


def library_steps(index: Path, budget: int, amount: Amount) -> list[tuple[str, ...]]:
    """Command lines that embed Python's documentation, about `budget` tokens in all, and search in it."""
    docstrings = write_docstrings(FOLDER / "docstrings")
    paths = [*(LIBRARY / name for name in SOURCES), *sorted(docstrings.glob("*.txt"))]
    chosen = choose(paths, max(LEAST_TOKENS, budget - amount.tokens))
    whole = [str(docstrings / f"{name}.txt") for name in amount.whole]
    long_index = str(FOLDER / "whole.parquet")
    return [
        ("embed", *map(str, chosen), "--output", str(index), "--others", "drop"),
        search(index, LIBRARY_QUERIES),
        ("embed", *whole, "--output", long_index, "--max-length", "4096", "--others", "drop"),
        ("search", long_index, WHOLE_QUERY, "--top-k", "1"),
    ]


def tokens_within(seconds: float) -> int:
    """Tokens that the model reads in so many seconds on this machine; measured once, so that all runs are alike."""
    kept = FOLDER / "speed.json"
    if not kept.exists():
        print("measuring how fast this machine reads ...", flush=True)
        from longspan import SentenceEncoder

        encoder = SentenceEncoder()
        text = (LIBRARY / "csv.py").read_text(encoding="utf-8")
        encoder.encode(text[:1500])
        pieces = encoder.splitter().split([text])[0][:12]
        started = time.perf_counter()
        encoder.encode_pieces(pieces)
        rate = sum(piece.num_tokens for piece in pieces) / (time.perf_counter() - started)
        kept.write_text(json.dumps({"tokens_per_second": rate}))
    rate = float(json.loads(kept.read_text())["tokens_per_second"])
    return int(seconds * rate)


def choose(paths: Sequence[Path], num_tokens: int) -> list[Path]:
    """The first of `paths` that hold about `num_tokens` tokens together; those that are too large are passed over."""
    chosen, left = [], num_tokens * CHARACTERS_PER_TOKEN
    for path in paths:
        size = sum(file.stat().st_size for file in path.rglob("*.py")) if path.is_dir() else path.stat().st_size
        if size <= left:
            chosen.append(path)
            left -= size
    return chosen


def find_long(documents: Sequence[str]) -> str | None:
    """The text whose size is nearest to what a long document should have; None if there is none."""
    from longspan.documents.walk import find_files

    files = [file for file in find_files(documents).files if file.kind in ("text", "python", "html", "pdf")]
    return min(
        (str(file.path) for file in files), key=lambda name: abs(Path(name).stat().st_size - LONG_BYTES), default=None
    )


def run_all(steps: Sequence[tuple[str, ...]]) -> int:
    """Run command lines until one fails, each after a line of its own; the exit code of the last."""
    seconds = []
    for number, step in enumerate(steps, start=1):
        started = time.perf_counter()
        code = longspan(f"[{number}/{len(steps)}]", *step)
        seconds.append(f"{step[0]} {time.perf_counter() - started:.1f} s")
        if code not in (0, 3):  # 3: something could not be read, and was named
            return code
    print(f"with start-up: {', '.join(seconds)}")
    return 0


def longspan(place: str, *arguments: str) -> int:
    """Show and run one command line, in this process, so that frameworks are imported once."""
    from longspan.cli.main import app
    from longspan.cli.running import run

    line = subprocess.list2cmdline(arguments)
    print(f"{place} longspan {line if len(line) <= 100 else line[:97] + '...'}", flush=True)
    with warnings.catch_warnings():
        return run(app, arguments)


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
