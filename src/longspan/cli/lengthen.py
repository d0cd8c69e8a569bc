"""`longspan lengthen`: a BERT or RoBERTa checkpoint becomes a Longformer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EPILOG = """[bold]Example[/bold]

  longspan lengthen ./my-bert ./my-longformer --max-length 4096
"""


def lengthen(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="Directory or hub repository of a BERT or RoBERTa model.")
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="Directory to write.")],
    max_length: Annotated[int, typer.Option("--max-length", help="Longest input of the result, in tokens.")] = 4096,
    attention_window: Annotated[
        int, typer.Option("--attention-window", help="Tokens that a token attends to, half on either side; even.")
    ] = 512,
) -> None:
    """Turn a BERT or RoBERTa checkpoint into a Longformer that reads long documents.

    Positions are repeated to the new length and global attention starts as a copy of local attention. Texts that fit
    into half a window give the original's outputs.
    """
    from longspan.pipelines.run.progress import printable
    from longspan.to_long import lengthen_checkpoint

    plan = lengthen_checkpoint(source, destination, max_length=max_length, attention_window=attention_window)
    typer.echo(printable(f"{destination}: {plan.class_name}, {max_length} tokens, window {attention_window}"))
    for key in plan.dropped:
        typer.echo(printable(f"  left out: {key}"))
