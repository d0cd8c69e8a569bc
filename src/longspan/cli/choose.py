"""`longspan choose`."""

from __future__ import annotations

from typing import Annotated

import typer

from longspan.cli.options import Device, Dtype, Framework, Json, Quiet
from longspan.cli.task_options import (
    EXIT_CODES,
    BatchTokens,
    Exclude,
    Include,
    InputFormat,
    MaxLength,
    OnLong,
    Output,
    Overwrite,
    Paths,
    Resume,
    Strict,
    Stride,
    TaskCall,
    TaskModelName,
    TextField,
)

EPILOG = f"""[bold]Examples[/bold]

  longspan choose letters/ --choice "a complaint" --choice "an order" --model ./my-longformer

  longspan choose quiz.jsonl -m ./my-bert --text-field prompt -o chosen.jsonl

{EXIT_CODES}"""


def choose(
    paths: Paths,
    model: TaskModelName,
    output: Output = None,
    choice: Annotated[
        list[str] | None,
        typer.Option("--choice", "-c", help="A text to choose; give two or more. Default each record's list choices."),
    ] = None,
    window_pooling: Annotated[
        str, typer.Option(help="How scores of windows become one: mean, max or weighted (by tokens).")
    ] = "mean",
    framework: Framework = "torch",
    device: Device = None,
    dtype: Dtype = "float32",
    batch_tokens: BatchTokens = None,
    on_long: OnLong = "window",
    stride: Stride = None,
    max_length: MaxLength = None,
    include: Include = None,
    exclude: Exclude = None,
    text_field: TextField = "text",
    input_format: InputFormat = "txt",
    resume: Resume = True,
    overwrite: Overwrite = False,
    strict: Strict = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Choose which of several texts goes best with each document, one row a document."""
    TaskCall(
        "choose",
        paths,
        output,
        model={"model": model, "framework": framework, "device": device, "dtype": dtype},
        settings={
            "batch_tokens": batch_tokens,
            "on_long": on_long,
            "stride": stride,
            "max_length": max_length,
            "window_pooling": window_pooling,
        },
        extra={"choices": choice or None},
        files={
            "include": include,
            "exclude": exclude,
            "text_field": text_field,
            "input_format": input_format,
        },
        resume=resume,
        overwrite=overwrite,
        strict=strict,
        quiet=quiet,
        as_json=as_json,
    ).run()
