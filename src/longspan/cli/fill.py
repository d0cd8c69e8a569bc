"""`longspan fill`."""

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

  echo "The capital of France is [MASK]." | longspan fill - --model ./my-bert

  longspan fill gaps.jsonl -m ./my-longformer --top-k 3 -o filled.csv

{EXIT_CODES}"""


def fill(
    paths: Paths,
    model: TaskModelName,
    output: Output = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="Proposals a mask gets, best first.")] = 5,
    target: Annotated[list[str] | None, typer.Option(help="Propose only such tokens.")] = None,
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
    """Propose tokens for the masks of documents, one row a proposal."""
    TaskCall(
        "fill",
        paths,
        output,
        model={"model": model, "framework": framework, "device": device, "dtype": dtype},
        settings={
            "batch_tokens": batch_tokens,
            "on_long": on_long,
            "stride": stride,
            "max_length": max_length,
            "top_k": top_k,
            "targets": tuple(target) if target else None,
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
