"""`longspan search`."""

from __future__ import annotations

import json
import os
import sys
import warnings
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from longspan.cli.options import Device, Framework, Json, Model, Quiet
from longspan.errors import InputError

if TYPE_CHECKING:
    from rich.text import Text

    from longspan.embeddings.search_index import Match
    from longspan.embeddings.sentence_encoder import SentenceEncoder
    from longspan.search.ann import Ann
    from longspan.search.passages import IndexInfo, PassageStore

EPILOG = """[bold]Examples[/bold]

  longspan search index.parquet "how do I rotate log files?"

  longspan search index.parquet "rotate log files" "parse JSON" --top-k 3 --json

  longspan search index.parquet "E1234 on start" --hybrid --path 'guides/*'

  longspan search docs/ "installation"
"""

#: Longest part of a line that is shown.
_MAX_CHARACTERS = 240


def search(
    index: Annotated[
        Path,
        typer.Argument(metavar="INDEX", help="What `longspan embed` wrote, or files to embed for this search only."),
    ],
    query: Annotated[list[str] | None, typer.Argument(metavar="QUERY", help="What is looked for.")] = None,
    queries: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with one query a line; - is the standard input.")
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="Most passages a query gets.")] = 5,
    path: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Only passages of such files; with a slash the path is compared."),
    ] = None,
    hybrid: Annotated[bool, typer.Option("--hybrid", help="Find by words (BM25) too, and fuse the ranks.")] = False,
    word_weight: Annotated[float, typer.Option(help="With --hybrid: what words weigh beside vectors, 0 to 1.")] = 0.5,
    ann: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Look at a part of the vectors only, by faiss: hnsw or ivf."),
    ] = None,
    context: Annotated[int, typer.Option(help="Lines shown before and after the best line.")] = 1,
    model: Model = None,
    framework: Framework = "torch",
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Find the passages of an index that are nearest in meaning to each query, best first.

    Every passage is compared, unless --ann is given. The line of each passage that fits best is marked. What --ann and
    --hybrid need is built beside the index at the first search, and again when the index has changed.
    """
    from longspan.embeddings.search_index import search_index

    texts = [*(query or []), *_read_queries(queries)]
    if not texts:
        raise typer.BadParameter("at least one query, or --queries FILE, must be given", param_hint="QUERY")
    with ExitStack() as stack:
        settings = {"framework": framework, "device": device}
        store, encoder = _open(index, model, settings, stack, show_progress=not quiet and not as_json)
        results = search_index(
            store,
            texts,
            encoder=encoder,
            top_k=top_k,
            paths=path or (),
            ann=cast("Ann | None", ann),
            hybrid=hybrid,
            word_weight=word_weight,
            note=lambda line: None if quiet else typer.echo(line, err=True),
        )
    if as_json:
        for text, matches in zip(texts, results, strict=True):
            typer.echo(json.dumps({"query": text, "matches": [_as_json(store.info, match) for match in matches]}))
    else:
        _print(store.info, texts, results, context)


def _read_queries(path: Path | None) -> list[str]:
    if path is None:
        return []
    from longspan.documents.decoding import decode
    from longspan.documents.document import UnreadableError

    try:
        decoded = decode(sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes())
    except UnreadableError as error:
        raise InputError(f"A file of queries must be text. Received: {path} ({error})") from error
    if decoded.note:
        warnings.warn(f"{path}: {decoded.note}", stacklevel=2)
    return [line for line in decoded.text.splitlines() if line.strip()]


def _open(
    path: Path, model: str | None, settings: dict[str, Any], stack: ExitStack, *, show_progress: bool
) -> tuple[PassageStore, SentenceEncoder]:
    """The index and its model; files that are no index are embedded into one that lasts as long as `stack`."""
    from longspan.embeddings.search_index import load_encoder_of
    from longspan.search.index import is_index, open_index

    if is_index(path) or not path.exists():
        store = open_index(path)
        return store, load_encoder_of(store.info, model, **settings)

    from longspan.embeddings.embed_files import embed_files  # reads documents, which a query does not
    from longspan.embeddings.sentence_encoder import SentenceEncoder
    from longspan.pipelines.run.progress import progress_bar

    encoder = SentenceEncoder(model, **settings)
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="longspan-")), "passages")
    with progress_bar(show_progress, unit="files") as progress:
        embed_files([path], folder, encoder=encoder, progress=progress)
    return open_index(folder), encoder


def _print(info: IndexInfo, queries: list[str], results: list[list[Match]], context: int) -> None:
    from rich.console import Console
    from rich.text import Text

    from longspan.pipelines.run.progress import printable

    console = Console(highlight=False, soft_wrap=True)
    for query, matches in zip(queries, results, strict=True):
        console.print(Text(printable(query), style="bold"))
        if not matches:
            console.print("  nothing found" + ("" if info.num_passages else ": the index holds no passages"))
        for rank, match in enumerate(matches, start=1):
            place = Text(f"{rank:3}  ").append(_place(info, match), style="cyan")
            console.print(place.append(f"  {_score(match)}", style="green"))
            for line in _snippet(match, context):
                console.print(line)
        console.print()


def _score(match: Match) -> str:
    """The score, or the ranks that it was made of."""
    ranks = match.hit.ranks
    return ", ".join(f"{source} {rank}" for source, rank in ranks.items()) if ranks else f"{match.hit.score:.3f}"


def _snippet(match: Match, context: int) -> list[Text]:
    """The best line, marked, with `context` lines before and after it."""
    from rich.text import Text

    from longspan.pipelines.run.progress import printable

    shown = []
    for index in range(max(0, match.best - context), min(len(match.lines), match.best + context + 1)):
        line = printable(match.lines[index].expandtabs(4))
        line = line[:_MAX_CHARACTERS] + (" ..." if len(line) > _MAX_CHARACTERS else "")
        number = str(match.hit.line_start + index) if match.has_line_numbers else ""
        is_best = index == match.best
        shown.append(Text(f"   {'>' if is_best else ' '} {number:>6} | {line}", style="bold" if is_best else "dim"))
    return shown


def _place(info: IndexInfo, match: Match) -> str:
    from longspan.pipelines.run.progress import printable

    separator = ":" if match.hit.file.unit == "line" else " page "
    return printable(f"{_shown_path(info, match.hit.file.path)}{separator}{match.line}")


def _shown_path(info: IndexInfo, path: str) -> str:
    """The file's path as seen from here, if it is below; else from the root."""
    absolute = os.path.normpath(Path(info.base, path))
    here = str(Path.cwd())
    return os.path.relpath(absolute, here) if absolute.startswith(here + os.sep) else absolute


def _as_json(info: IndexInfo, match: Match) -> dict[str, Any]:
    hit = match.hit
    return {
        "path": os.path.normpath(Path(info.base, hit.file.path)),
        "line": match.line,
        "score": round(hit.score, 6),
        "snippet": match.lines[match.best].strip()[:_MAX_CHARACTERS],
        "unit": hit.file.unit,
        "document": hit.document,
        "line_start": hit.line_start,
        "line_end": hit.line_end,
        "char_start": hit.char_start,
        "char_end": hit.char_end,
        "text": hit.text,
        **({"ranks": dict(hit.ranks)} if hit.ranks else {}),
    }
