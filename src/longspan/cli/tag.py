"""`longspan tag`."""

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

  longspan tag contracts/ --model ./my-ner --output entities.parquet

  longspan tag notes.md -m ./my-ner --strategy first

{EXIT_CODES}"""


def tag(
    paths: Paths,
    model: TaskModelName,
    output: Output = None,
    strategy: Annotated[
        str, typer.Option(help="How tokens become entities: none, simple, first, average or max.")
    ] = "simple",
    ignore: Annotated[list[str] | None, typer.Option(metavar="LABEL", help="Leave out such labels.")] = None,
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
    """Find entities in documents, one row an entity, with its characters and its line or page.

    A document longer than the model is read in overlapping windows; no entity is cut or found twice.
    """
    TaskCall(
        "tag",
        paths,
        output,
        model={"model": model, "framework": framework, "device": device, "dtype": dtype},
        settings={
            "batch_tokens": batch_tokens,
            "on_long": on_long,
            "stride": stride,
            "max_length": max_length,
            "aggregation_strategy": strategy,
            "ignore_labels": tuple(ignore or ("O",)),
        },
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
