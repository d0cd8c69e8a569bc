"""`longspan tag`."""

from __future__ import annotations

from typing import Annotated

import typer

from longspan.cli.task_options import EXIT_CODES, Asked, task_command

EPILOG = f"""[bold]Examples[/bold]

  longspan tag contracts/ --model ./my-ner --output entities.parquet

  longspan tag notes.md -m ./my-ner --strategy first

{EXIT_CODES}"""


@task_command
def tag(
    strategy: Annotated[
        str, typer.Option(help="How tokens become entities: none, simple, first, average or max.")
    ] = "simple",
    ignore: Annotated[list[str] | None, typer.Option(metavar="LABEL", help="Leave out such labels.")] = None,
) -> Asked:
    """Find entities in documents, one row an entity, with its characters and its line or page.

    A document longer than the model is read in overlapping windows; no entity is cut or found twice.
    """
    return Asked("tag", {"aggregation_strategy": strategy, "ignore_labels": tuple(ignore or ("O",))})
