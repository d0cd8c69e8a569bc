"""`longspan generate` and `longspan summarize`: one text to the screen, or any number of them to a table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from longspan.cli.task_options import EXIT_CODES, Asked, MaxLength, TaskCall, call_command
from longspan.errors import InputError

GENERATE_EPILOG = f"""[bold]Examples[/bold]

  longspan generate "Once upon a time" --model ./my-diffllama

  longspan generate --file prompt.txt -m ./my-mega --temperature 0.8 --top-p 0.95 --seed 1 --max-new-tokens 1000

  git log -5 | longspan generate -m ./my-longt5 --num-beams 4 --json

  longspan generate --file prompts.jsonl -m ./my-diffllama --output written.jsonl

{EXIT_CODES}"""
SUMMARIZE_EPILOG = f"""[bold]Examples[/bold]

  longspan summarize report.pdf --model ./my-longt5

  longspan summarize reports/ records.jsonl -m ./my-longt5 --output summaries.csv

  cat notes.txt | longspan summarize -m ./my-longt5 --num-beams 4 --max-new-tokens 200

{EXIT_CODES}"""

#: What holds where neither the model's files nor an option says anything.
_DEFAULTS = {"max_new_tokens": 128, "num_beams": 1}
_SEARCH = "How to choose words"
_MaxNewTokens = Annotated[
    int | None,
    typer.Option("--max-new-tokens", help="Most tokens to write; default what the model's files say, else 128 or 256."),
]
_MinNewTokens = Annotated[int | None, typer.Option("--min-new-tokens", help="Fewest tokens to write.")]
_MaxInput = Annotated[int | None, typer.Option("--max-input", help="Read only that many tokens of the input.")]
_Beams = Annotated[
    int | None,
    typer.Option(
        "--num-beams",
        help="Candidates of beam search, 1 for none; default what the model's files say.",
        rich_help_panel=_SEARCH,
    ),
]
_Temperature = Annotated[
    float | None, typer.Option("--temperature", help="Sample; above 1 evens out.", rich_help_panel=_SEARCH)
]
_TopK = Annotated[int | None, typer.Option("--top-k", help="Sample among so many tokens.", rich_help_panel=_SEARCH)]
_TopP = Annotated[float | None, typer.Option("--top-p", help="Sample up to this probability.", rich_help_panel=_SEARCH)]
_Seed = Annotated[int | None, typer.Option("--seed", help="Make sampling repeat exactly.", rich_help_panel=_SEARCH)]
_Penalty = Annotated[
    float | None, typer.Option("--repetition-penalty", help="Above 1: repeat less.", rich_help_panel=_SEARCH)
]
_Ngram = Annotated[
    int | None, typer.Option("--no-repeat-ngram", help="No so many tokens twice.", rich_help_panel=_SEARCH)
]


@call_command(without=("on_long", "stride", "max_length"))
def generate(
    call: TaskCall,
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="Text to continue; - reads it from stdin.")
    ] = None,
    paths: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", help="Read prompts from a file or folder; may be repeated."),
    ] = None,
    max_new_tokens: _MaxNewTokens = None,
    min_new_tokens: _MinNewTokens = None,
    max_input: _MaxInput = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End at this text; may be repeated.")] = None,
    num_beams: _Beams = None,
    temperature: _Temperature = None,
    top_k: _TopK = None,
    top_p: _TopP = None,
    seed: _Seed = None,
    repetition_penalty: _Penalty = None,
    no_repeat_ngram: _Ngram = None,
) -> None:
    """Continue a prompt, or answer it with a model that has an encoder; PyTorch shows the text as it is written.

    With --output, or of folders and files of records, every document is a prompt, and the rows hold what follows.
    """
    if stop and call.model["framework"] not in ("torch", "pt"):
        raise InputError(f"--stop needs --framework torch. Received: --framework {call.model['framework']}")
    settings = _settings(
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        stop_strings=stop,
        num_beams=num_beams,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram_size=no_repeat_ngram,
        seed=seed,
    )
    if prompt not in (None, "-") and paths:
        raise InputError(f"give a prompt or a file, not both. Received: a prompt and --file {paths[0]}")
    if prompt in (None, "-") and _is_table(call):
        if max_input is not None:
            raise typer.BadParameter("rows know no --max-input", param_hint="--output")
        if _has_encoder(call.model["model"]):
            call.run(Asked("answer-text", {**settings, "defaults": _DEFAULTS}))
        else:
            call.run(Asked("continue", {**settings, "return_full_text": False, "defaults": _DEFAULTS}))
        return
    if call.output is not None:
        raise InputError(
            f"--output takes what --file or the standard input holds. Received: a prompt and {call.output}"
        )
    if call.ray is not None:
        raise InputError("--ray takes what --file or the standard input holds. Received: a prompt")
    text = _read(prompt, paths[0] if paths else None)
    task = "text2text-generation" if _has_encoder(call.model["model"]) else "text-generation"
    _Writer(task, call.model, {**settings, "defaults": _DEFAULTS}).write(text, max_input, as_json=call.as_json)


@call_command(without=("stride",))
def summarize(
    call: TaskCall,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[PATHS]", help="Texts to summarise: files and folders; default stdin."),
    ] = None,
    max_new_tokens: _MaxNewTokens = None,
    min_new_tokens: _MinNewTokens = None,
    max_input: _MaxInput = None,
    prefix: Annotated[
        str | None,
        typer.Option(
            "--prefix", help="Text before the input, such as 'summarize: '; default as the model's files say."
        ),
    ] = None,
    num_beams: _Beams = None,
    repetition_penalty: _Penalty = None,
    no_repeat_ngram: _Ngram = None,
    on_long: Annotated[
        str,
        typer.Option(
            help="Texts longer than the model: window (summarised part by part), truncate or error.",
            rich_help_panel="Long documents",
        ),
    ] = "window",
    max_length: MaxLength = None,
) -> None:
    """Summarise long texts with a model that has an encoder, such as LongT5.

    PyTorch shows the summary of one text as it is written. With --output, or of several texts, each is a row. A text
    longer than --max-length is summarised window by window, and the summaries are summarised in turn.
    """
    settings = _settings(
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        num_beams=num_beams,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram_size=no_repeat_ngram,
        prefix=prefix,
        defaults={**_DEFAULTS, "max_new_tokens": 256},
    )
    _refuse_without_encoder(call.model["model"], paths or [])
    if _is_table(call) or max_length is not None or on_long != "window":
        if max_input is not None:
            raise typer.BadParameter("give --max-length and --on-long truncate instead", param_hint="--max-input")
        call.run(Asked("summarize", settings))
        return
    text = _read_document(call.paths[0])
    _Writer("summarization", call.model, settings).write(text, max_input, as_json=call.as_json)


def _is_table(call: TaskCall) -> bool:
    """True if the result is a table: there is an output, a cluster, or there may be several texts."""
    from longspan.documents.kinds import kind_of

    if call.output is not None or call.ray is not None or len(call.paths) > 1:
        return True
    [path] = call.paths
    return path.is_dir() or kind_of(path.name, tables=True) in ("jsonl", "csv", "parquet")


def _has_encoder(model: str) -> bool:
    from longspan import AutoConfig

    return bool(AutoConfig.from_pretrained(model).is_encoder_decoder)


def _refuse_without_encoder(model: str, paths: list[Path]) -> None:
    """Raise unless the texts exist and the model can summarise."""
    from longspan import AutoConfig

    for path in paths:
        if str(path) != "-":
            path.stat()
    config = AutoConfig.from_pretrained(model)
    if not config.is_encoder_decoder:
        raise InputError(
            "summarize needs a model with an encoder and a decoder, such as LongT5; `longspan generate` continues "
            f"a prompt with others. Received: {model}, a {config.model_type} model"
        )


def _read_document(path: Path) -> str:
    """The text of a file of any kind, or of the standard input."""
    from longspan.documents.document import Problem
    from longspan.documents.readers import read_documents
    from longspan.documents.walk import find_files

    if str(path) == "-":
        return _read(None, None)
    found = find_files([path])
    document = next(read_documents(found.files[0]), None) if found.files else found.problems[0]
    if document is None or isinstance(document, Problem):
        raise InputError(f"A document must be readable. Received: {document or path}")
    return document.text


def _read(prompt: str | None, file: Path | None) -> str:
    """The text: an argument, a file, or what is piped in."""
    if prompt not in (None, "-"):
        assert prompt is not None
        return prompt
    if file is not None:
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"a text file must be UTF-8. Received: {file}: {error.reason}") from error
    if prompt is None and sys.stdin.isatty():
        raise InputError("there is nothing to read: give a text or a file, or pipe one in")
    return sys.stdin.read()


def _settings(**given: Any) -> dict[str, Any]:
    """The settings that were given; those of sampling switch it on."""
    settings = {name: value for name, value in given.items() if value is not None and value != []}
    if {"temperature", "top_k", "top_p"} & set(settings):
        settings["do_sample"] = True
    return settings


class _Writer:
    """A task that writes one text."""

    def __init__(self, task: str, model: dict[str, Any], settings: dict[str, Any]) -> None:
        from longspan import pipeline

        self._run = pipeline(task, **model, **settings)

    def write(self, text: str, max_input: int | None, *, as_json: bool) -> None:
        """Generate, and print the text as it grows (PyTorch, without beams), or the whole of it at the end."""
        from longspan.generation.streamers import TextStreamer

        run, tokenizer = self._run, self._run.tokenizer
        ids = run.read(text)[:max_input]
        if not as_json and run.framework == "torch" and (run.writing(run.settings).get("num_beams") or 1) == 1:
            run.write(ids, streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True))
            return
        [new] = run.write(ids)
        written = tokenizer.decode(new, skip_special_tokens=True)
        if as_json:
            written = json.dumps({"text": written, "num_input_tokens": len(ids), "num_new_tokens": len(new)})
        typer.echo(written)
