"""`longspan info` and `longspan verify`: what a checkpoint is, and whether every framework reads it alike."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from longspan.cli.options import Json
from longspan.cli.running import FAILED

INFO_EPILOG = """[bold]Examples[/bold]

  longspan info ./my-longformer

  longspan info ./my-longformer --length 4096 --batch 8
"""
VERIFY_EPILOG = """[bold]Example[/bold]

  longspan verify ./my-bert

Exit codes: 0 all frameworks agree, 1 they do not, or one cannot load it.
"""


def info(
    name: Annotated[str, typer.Argument(metavar="DIR", help="Model directory or hub repository.")],
    length: Annotated[int | None, typer.Option(help="Estimate a forward pass of so many tokens a row.")] = None,
    batch: Annotated[int, typer.Option(help="Rows of that pass.")] = 1,
    as_json: Json = False,
) -> None:
    """Show a checkpoint's settings, parameters and tasks, and what a forward pass will cost; it is not loaded."""
    from longspan.pipelines.model_info import estimate, read_info

    found = read_info(name)
    cost = None if length is None else estimate(name, length=length, batch=batch)
    if as_json:
        typer.echo(json.dumps({**asdict(found), "cost": None if cost is None else asdict(cost)}))
        return
    typer.echo(f"{name}: {', '.join(found.architectures) or found.model_type}")
    dtypes = ", ".join(f"{count} tensors of {dtype}" for dtype, count in found.dtypes.items())
    typer.echo(f"parameters: {found.num_parameters:,} ({found.num_embedding:,} in embeddings), {dtypes}, "
               f"{found.num_bytes / 2**20:,.1f} MiB")  # fmt: skip
    typer.echo(f"longest input: {found.max_positions or 'any'}{' tokens' if found.max_positions else ''}")
    typer.echo("settings: " + ", ".join(f"{key}={value}" for key, value in found.settings.items()))
    for framework, tasks in found.tasks.items():
        typer.echo(f"{framework}: {', '.join(tasks) or 'no classes'}")
    if cost is not None:
        typer.echo(f"a pass of {cost.batch} x {cost.length:,} tokens: about {cost.num_bytes / 2**20:,.0f} MiB, "
                   f"{cost.num_operations / 1e9:,.1f} billion operations, {cost.seconds:.2f} s here")  # fmt: skip


def verify(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Model directory.")],
    as_json: Json = False,
) -> None:
    """Load a checkpoint in every installed framework and compare the outputs of one random input."""
    from longspan.errors import CheckpointNotFoundError
    from longspan.fingerprint import are_equal, compare_frameworks

    if not (directory / "config.json").is_file():
        raise CheckpointNotFoundError(f"A model directory must hold a config.json. Received: {directory}")
    results = compare_frameworks(directory)
    if as_json:
        typer.echo(json.dumps({"equal": are_equal(results), "frameworks": results}))
    else:
        for framework, found in results.items():
            numbers = [] if isinstance(found, str) else [f"{key} {value:.1e}" for key, value in found.items()]
            shown = found if isinstance(found, str) else ", ".join(numbers)
            typer.echo(f"{framework}: {shown}")
        typer.echo("all agree" if are_equal(results) else "they differ")
    if not are_equal(results):
        raise typer.Exit(FAILED)
