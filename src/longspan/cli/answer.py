"""`longspan answer`."""

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

  longspan answer contracts/ --question "When does it end?" --model ./my-longformer -o answers.csv

  longspan answer questions.jsonl -m ./my-bert --text-field context

{EXIT_CODES}"""


def answer(
    paths: Paths,
    model: TaskModelName,
    output: Output = None,
    question: Annotated[
        str | None, typer.Option("--question", "-Q", help="The question; default each record's field question.")
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="Answers a document gets, best first.")] = 1,
    max_answer_len: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 15,
    no_answer: Annotated[
        bool, typer.Option("--no-answer", help="Let an empty answer win where the document has none.")
    ] = False,
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
    """Answer a question from each document, one row an answer, with its characters and its line or page.

    Answers are words of the document. A document longer than the model is read in overlapping windows.
    """
    TaskCall(
        "answer",
        paths,
        output,
        model={"model": model, "framework": framework, "device": device, "dtype": dtype},
        settings={
            "batch_tokens": batch_tokens,
            "on_long": on_long,
            "stride": stride,
            "max_length": max_length,
            "top_k": top_k,
            "max_answer_len": max_answer_len,
            "handle_impossible_answer": no_answer,
        },
        extra={"question": question},
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
