"""`longspan classify`."""

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

  longspan classify reviews.jsonl --model ./my-longformer --output labels.csv

  longspan classify reports/ -m ./my-longformer --top-k 3 --window-pooling max -o labels.parquet

  cat letter.txt | longspan classify - -m ./my-bert

{EXIT_CODES}"""


def classify(
    paths: Paths,
    model: TaskModelName,
    output: Output = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="Labels a document gets, best first.")] = 1,
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
    """Give documents labels with scores, one row a label.

    A document longer than the model is read in windows, whose scores are pooled.
    """
    TaskCall(
        "classify",
        paths,
        output,
        model={"model": model, "framework": framework, "device": device, "dtype": dtype},
        settings={
            "batch_tokens": batch_tokens,
            "on_long": on_long,
            "stride": stride,
            "max_length": max_length,
            "top_k": top_k,
            "window_pooling": window_pooling,
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
