"""`longspan merge`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from longspan.cli.options import Json, Quiet

EPILOG = """[bold]Example[/bold]

  longspan embed docs/ -o part-1.parquet --shard 1/2

  longspan embed docs/ -o part-2.parquet --shard 2/2

  longspan merge part-1.parquet part-2.parquet --output index.parquet
"""


def merge(
    parts: Annotated[list[Path], typer.Argument(metavar="PARTS", help="Indexes that `longspan embed` wrote.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="INDEX", help="A .parquet or .npz file, or a folder.")
    ],
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Join indexes into one: the shards of [bold]longspan embed --shard[/bold], or indexes of different files.

    All must have been made by the same model with the same settings, and no file may be in two of them. All shards of
    a job give the index of a run without shards. The output appears, or is replaced, when it is complete.
    """
    from longspan.pipelines.run.progress import printable
    from longspan.search.merge import merge_indexes

    info = merge_indexes(parts, output)
    tokens = sum(record.tokens for record in info.files)
    if as_json:
        counts = {"num_files": len(info.files), "num_passages": info.num_passages, "num_tokens": tokens}
        typer.echo(json.dumps({"output": str(output), "num_parts": len(parts), **counts}))
    elif not quiet:
        counted = f"{len(info.files):,} files, {info.num_passages:,} passages, {tokens:,} tokens"
        typer.echo(printable(f"{output}: {counted} from {len(parts):,} parts"))
