"""`longspan fill`."""

from __future__ import annotations

from typing import Annotated

import typer

from longspan.cli.task_options import EXIT_CODES, Asked, task_command

EPILOG = f"""[bold]Examples[/bold]

  echo "The capital of France is [MASK]." | longspan fill - --model ./my-bert

  longspan fill gaps.jsonl -m ./my-longformer --top-k 3 -o filled.csv

{EXIT_CODES}"""


@task_command
def fill(
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="Proposals a mask gets, best first.")] = 5,
    target: Annotated[list[str] | None, typer.Option(help="Propose only such tokens.")] = None,
) -> Asked:
    """Propose tokens for the masks of documents, one row a proposal."""
    return Asked("fill", {"top_k": top_k, "targets": tuple(target) if target else None})
