"""`longspan train`: teach a model with documents."""

from __future__ import annotations

import functools
import inspect
import json
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from longspan.cli.options import Json, Quiet
from longspan.cli.running import SOMETHING_LEFT_OUT

EPILOG = """[bold]Examples[/bold]

  longspan train classify reviews.jsonl --model ./my-longformer --output ./reviews

  longspan train classify mail/ --model ./my-bert --output ./mail-sorter --epochs 5 --class-weights balanced

  longspan train classify reviews.csv --model ./my-longformer --output ./reviews --plan

  longspan train embed pairs.jsonl --model ./my-encoder --output ./encoder

  longspan train tag entities.conll --model ./my-bert --output ./tagger --framework flax --devices 4

  accelerate launch -m longspan train classify reviews.jsonl --model ./my-longformer --output ./reviews

Run the same command again to go on after an interruption. Exit codes: 0 done, 1 failed, 2 not understood, 3 done but
records were left out (each is named), 130 interrupted.
"""


def _with_options(function: Any) -> Any:
    """A command whose options are those of the function and those of a training run."""
    from longspan.training.options import TrainOptions

    hints = get_type_hints(TrainOptions, include_extras=True)
    own = inspect.signature(function, eval_str=True).parameters
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [one.replace(kind=keyword) for name, one in own.items() if name != "options"]
    for field in fields(TrainOptions):
        kind, meaning = get_args(hints[field.name])
        flag = f"--{field.name.replace('_', '-')}"
        names = [f"{flag}/--no-{flag[2:]}"] if field.default is True else [flag]
        option = typer.Option(*names, help=meaning, rich_help_panel="Training")
        parameters.append(
            inspect.Parameter(field.name, keyword, default=field.default, annotation=Annotated[kind, option])
        )

    @functools.wraps(function)
    def command(**given: Any) -> None:
        options = {field.name: given.pop(field.name) for field in fields(TrainOptions)}
        function(**given, options=options)

    del command.__wrapped__
    vars(command)["__signature__"] = inspect.Signature(parameters)
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


@_with_options
def train(
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="classify, tag, answer, choose, summarize, fill, generate or embed.")
    ],
    data: Annotated[
        list[Path],
        typer.Argument(metavar="DATA", help="jsonl, csv, parquet; folders by label; CoNLL columns; SQuAD JSON."),
    ],
    model: Annotated[str, typer.Option("--model", "-m", metavar="NAME", help="Model directory or hub repository.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write.")],
    options: dict[str, Any],
    validation: Annotated[
        list[Path] | None, typer.Option("--validation", metavar="DATA", help="Data to evaluate on.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what memory and time it will take, and end.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a model on documents of any length.

    A document longer than the model is read in the windows in which it is read later. The output loads wherever a
    model does, and holds a model card, the log and the settings.
    """
    from longspan.training.runs import finetune, plan_run

    if plan:
        planned = plan_run(task, model, data, output, validation=validation, **options)
        typer.echo(json.dumps(planned.to_dict()) if as_json else str(planned))
        return
    report = finetune(task, model, data, output, validation=validation, show_progress=not (quiet or as_json), **options)
    for problem in report.problems if not as_json else ():
        typer.echo(f"skipped {problem}", err=True)
    if as_json:
        typer.echo(json.dumps(report.to_dict()))
    elif not quiet:
        typer.echo(str(report))
    if report.problems:
        raise typer.Exit(SOMETHING_LEFT_OUT)
