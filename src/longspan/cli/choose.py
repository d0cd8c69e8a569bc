"""`longspan choose`."""

from __future__ import annotations

from typing import Annotated

import typer

from longspan.cli.task_options import EXIT_CODES, Asked, task_command

EPILOG = f"""[bold]Examples[/bold]

  longspan choose letters/ --choice "a complaint" --choice "an order" --model ./my-longformer

  longspan choose quiz.jsonl -m ./my-bert --text-field prompt -o chosen.jsonl

{EXIT_CODES}"""


@task_command
def choose(
    choice: Annotated[
        list[str] | None,
        typer.Option("--choice", "-c", help="A text to choose; give two or more. Default each record's list choices."),
    ] = None,
    window_pooling: Annotated[
        str, typer.Option(help="How scores of windows become one: mean, max or weighted (by tokens).")
    ] = "mean",
) -> Asked:
    """Choose which of several texts goes best with each document, one row a document."""
    return Asked("choose", {"window_pooling": window_pooling}, {"choices": choice or None})
