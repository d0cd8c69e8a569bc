"""`longspan convert`: a checkpoint of any format becomes safetensors."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longspan.cli.options import Json, Quiet

if TYPE_CHECKING:
    pass

EPILOG = """[bold]Examples[/bold]

  longspan convert ./old-bert ./bert

  longspan convert owner/flax-model ./model --from flax
"""


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="Directory or hub repository with weights of any format.")
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="Directory to write.")],
    formats: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="FORMAT", help="Format to read: safetensors, pytorch, flax or tf; default all."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub repository.")] = None,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Largest size of one file.")] = "5GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace weights that DST holds already.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a checkpoint as safetensors, and copy its config and tokenizer.

    Reads model.safetensors, pytorch_model.bin, flax_model.msgpack and tf_model.h5 without the framework that wrote
    them; a pickle that holds more than tensors is refused and nothing in it runs. Every tensor is listed, read back
    and compared. Where the framework of the source is installed, the outputs of the model are compared too.
    """
    from longspan.checkpoints.convert import convert as convert_checkpoint
    from longspan.checkpoints.hub import Source
    from longspan.fingerprint import compare_outputs

    origin = Source(source, revision=revision)
    report = convert_checkpoint(
        origin,
        destination,
        formats=formats,
        max_shard_size=max_shard_size,
        overwrite=overwrite,
    )
    proof = compare_outputs(origin, destination, report.format)
    if as_json:
        typer.echo(json.dumps({**asdict(report), "outputs": proof}))
    elif not quiet:
        typer.echo(f"{report}\noutputs: {proof}")
