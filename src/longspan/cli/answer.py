"""`longspan answer`."""

from __future__ import annotations

from typing import Annotated

import typer

from longspan.cli.task_options import EXIT_CODES, Asked, task_command

EPILOG = f"""[bold]Examples[/bold]

  longspan answer contracts/ --question "When does it end?" --model ./my-longformer -o answers.csv

  longspan answer questions.jsonl -m ./my-bert --text-field context

{EXIT_CODES}"""


@task_command
def answer(
    question: Annotated[
        str | None, typer.Option("--question", "-Q", help="The question; default each record's field question.")
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="Answers a document gets, best first.")] = 1,
    max_answer_len: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 15,
    no_answer: Annotated[
        bool, typer.Option("--no-answer", help="Let an empty answer win where the document has none.")
    ] = False,
) -> Asked:
    """Answer a question from each document, one row an answer, with its characters and its line or page.

    Answers are words of the document. A document longer than the model is read in overlapping windows.
    """
    settings = {"top_k": top_k, "max_answer_len": max_answer_len, "handle_impossible_answer": no_answer}
    return Asked("answer", settings, {"question": question})
