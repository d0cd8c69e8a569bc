"""`longspan classify`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from longspan.cli.options import Model
from longspan.cli.task_options import EXIT_CODES, Asked, task_command

EPILOG = f"""[bold]Examples[/bold]

  longspan classify reviews.jsonl --model ./my-longformer --output labels.csv

  longspan classify reports/ -m ./my-longformer --top-k 3 --window-pooling max -o labels.parquet

  longspan classify mail/ --label invoice --label complaint --label "job application"

  cat letter.txt | longspan classify - -m ./my-bert --windows

{EXIT_CODES}"""


@task_command
def classify(
    model: Model = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", "-l", help="A label in words, which no model was trained on; give two or more."),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="Labels a document gets, best first.")] = 1,
    window_pooling: Annotated[
        str, typer.Option(help="How scores of windows become one: mean, max or weighted (by tokens).")
    ] = "mean",
    windows: Annotated[
        bool, typer.Option("--windows", help="One row a window, with its characters and its score.")
    ] = False,
) -> Asked:
    """Give documents labels with scores, one row a label.

    A document longer than the model is read in windows, whose scores are pooled. With --label the labels are any words:
    an embedding model (by default the packaged one) says whose meaning is nearest to the document's.
    """
    if label:
        if windows or window_pooling != "mean":
            raise typer.BadParameter("labels in words have one score a document", param_hint="--label")
        return Asked("zero-shot", {"candidate_labels": label, "top_k": top_k})
    if model is None:
        raise typer.BadParameter("give a model, or labels by --label", param_hint="--model")
    settings: dict[str, Any] = {"top_k": top_k, "window_pooling": window_pooling}
    return Asked("windows", {**settings, "return_windows": True}) if windows else Asked("classify", settings)
