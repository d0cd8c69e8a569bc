"""`longspan explain`: what a model looks at in a document, as one HTML page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from longspan.cli.options import Device, Dtype, Json, Model, Quiet
from longspan.cli.task_options import MaxLength, Overwrite

EPILOG = """[bold]Examples[/bold]

  longspan explain letter.txt --model ./my-longformer --output letter.html

  longspan explain contract.pdf -m ./my-qa --question "When does it end?" -o contract.html

  longspan explain notes.md --query "what is still to be done" -o notes.html
"""


def explain(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A document: txt, md, html, pdf and other text.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PAGE", help="The .html file to write.")],
    model: Model = None,
    task: Annotated[str | None, typer.Option(help="The task; default what the model is for.")] = None,
    question: Annotated[str | None, typer.Option("--question", "-Q", help="Question, for question answering.")] = None,
    query: Annotated[
        str | None, typer.Option("--query", help="Show what matches this, by an embedding model; default the packaged.")
    ] = None,
    max_length: MaxLength = None,
    device: Device = None,
    dtype: Dtype = "float32",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write one HTML page that shows what a model looks at in a document, token by token.

    Tokens are shaded by the attention that they receive, by that of the first token (of the last in causal models) or
    of a token that is clicked, or by gradient times input; for each layer and head. MEGA shows its gated attention,
    DiffLlama its differences of maps. The page needs no other file and no network. PyTorch only.
    """
    from longspan.documents.document import Problem
    from longspan.documents.readers import read_documents
    from longspan.documents.walk import find_files
    from longspan.embeddings.modules import default_model_folder
    from longspan.errors import InputError
    from longspan.pipelines.explain.explanation import explain as look
    from longspan.pipelines.explain.page import write_page
    from longspan.pipelines.pipeline import pipeline
    from longspan.pipelines.run.progress import printable

    if output.exists() and not overwrite:
        raise InputError(f"The output must not exist yet (or give --overwrite). Received: {output}")
    found = find_files([path])
    document = next(read_documents(found.files[0]), None) if found.files else found.problems[0]
    if document is None or isinstance(document, Problem):
        raise InputError(f"A document must be readable. Received: {document or path}")
    if model is None and query is None:
        raise typer.BadParameter("give a model, or a query for the packaged one", param_hint="--model")
    name = str(default_model_folder()) if model is None else model
    run = pipeline(task if query is None else "feature-extraction", name, device=device, dtype=dtype)
    item: Any = document.text if question is None else {"question": question, "context": document.text}
    explanation = look(run, item, query=query, max_length=max_length)
    write_page(explanation, output)
    seen = {"output": str(output), "tokens": len(explanation.starts), "windows": explanation.num_windows}
    if as_json:
        typer.echo(json.dumps(seen))
    elif not quiet:
        typer.echo(printable(f"{output}: {seen['tokens']:,} tokens, {seen['windows']:,} windows"))
