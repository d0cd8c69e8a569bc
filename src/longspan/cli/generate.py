"""`longspan generate` and `longspan summarize`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from longspan.cli.options import Device, Dtype, Json
from longspan.errors import InputError

GENERATE_EPILOG = """[bold]Examples[/bold]

  longspan generate "Once upon a time" --model ./my-diffllama

  longspan generate --file prompt.txt -m ./my-mega --temperature 0.8 --top-p 0.95 --seed 1 --max-new-tokens 1000

  git log -5 | longspan generate -m ./my-longt5 --num-beams 4 --json
"""
SUMMARIZE_EPILOG = """[bold]Examples[/bold]

  longspan summarize report.txt --model ./my-longt5

  pdftotext paper.pdf - | longspan summarize -m ./my-longt5 --num-beams 4 --max-new-tokens 200
"""

_SEARCH = "How to choose words"
_Model = Annotated[str, typer.Option("--model", "-m", metavar="NAME", help="Model directory or hub repository.")]
_MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", help="Most tokens to write.")]
_MinNewTokens = Annotated[int | None, typer.Option("--min-new-tokens", help="Fewest tokens to write.")]
_MaxInput = Annotated[int | None, typer.Option("--max-input", help="Read only that many tokens of the input.")]
_Beams = Annotated[
    int, typer.Option("--num-beams", help="Candidates of beam search; 1 for none.", rich_help_panel=_SEARCH)
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


def generate(
    model: _Model,
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="Text to continue; - reads it from stdin.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the prompt from a file.")] = None,
    max_new_tokens: _MaxNewTokens = 128,
    min_new_tokens: _MinNewTokens = None,
    max_input: _MaxInput = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End at this text; may be repeated.")] = None,
    num_beams: _Beams = 1,
    temperature: _Temperature = None,
    top_k: _TopK = None,
    top_p: _TopP = None,
    seed: _Seed = None,
    repetition_penalty: _Penalty = None,
    no_repeat_ngram: _Ngram = None,
    device: Device = None,
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Continue a prompt, or answer it with a model that has an encoder; the text appears as it is written."""
    text = _read(prompt, file)
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
    )
    writer = _Writer(model, device=device, dtype=dtype, needs_encoder=False)
    writer.write(text, settings, seed=seed, max_input=max_input, as_json=as_json)


def summarize(
    model: _Model,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Text to summarise; default stdin.")] = None,
    max_new_tokens: _MaxNewTokens = 256,
    min_new_tokens: _MinNewTokens = None,
    max_input: _MaxInput = None,
    prefix: Annotated[str, typer.Option("--prefix", help="Text before the input, such as 'summarize: '.")] = "",
    num_beams: _Beams = 1,
    repetition_penalty: _Penalty = None,
    no_repeat_ngram: _Ngram = None,
    device: Device = None,
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Summarise a long text with a model that has an encoder, such as LongT5."""
    text = _read(None, None if file == Path("-") else file)
    settings = _settings(
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        num_beams=num_beams,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram_size=no_repeat_ngram,
    )
    writer = _Writer(model, device=device, dtype=dtype, needs_encoder=True)
    writer.write(prefix + text, settings, seed=None, max_input=max_input, as_json=as_json)


def _read(prompt: str | None, file: Path | None) -> str:
    """The text: an argument, a file, or what is piped in."""
    if prompt not in (None, "-") and file is not None:
        raise InputError(f"give a prompt or a file, not both. Received: a prompt and --file {file}")
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
    """A model with its tokenizer."""

    def __init__(self, name: str, *, device: str | None, dtype: str, needs_encoder: bool) -> None:
        import torch

        from longspan import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

        config = AutoConfig.from_pretrained(name)
        self.has_encoder: bool = config.is_encoder_decoder
        if needs_encoder and not self.has_encoder:
            raise InputError(
                "summarize needs a model with an encoder and a decoder, such as LongT5; `longspan generate` continues "
                f"a prompt with others. Received: {name}, a {config.model_type} model"
            )
        kind = AutoModelForSeq2SeqLM if self.has_encoder else AutoModelForCausalLM
        self.tokenizer = AutoTokenizer.from_pretrained(name)
        where = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model = kind.from_pretrained(name, dtype=dtype, device_map=where)

    def write(
        self, text: str, settings: dict[str, Any], *, seed: int | None, max_input: int | None, as_json: bool
    ) -> None:
        """Generate, and print the text as it grows, or the whole of it at the end."""
        from longspan.generation.streamers import TextStreamer

        ids = self._encode(text)[:max_input]
        streams = not as_json and settings.get("num_beams", 1) == 1
        streamer = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True) if streams else None
        rows = self.model.generate([ids], tokenizer=self.tokenizer, seed=seed, streamer=streamer, **settings)
        if streams:
            return
        new = rows[0].tolist()[1 if self.has_encoder else len(ids) :]
        written = self.tokenizer.decode(new, skip_special_tokens=True)
        if as_json:
            written = json.dumps({"text": written, "num_input_tokens": len(ids), "num_new_tokens": len(new)})
        typer.echo(written)

    def _encode(self, text: str) -> list[int]:
        """Ids of a text; a prompt does not end with the token that ends texts."""
        ids: list[int] = self.tokenizer(text, verbose=False)["input_ids"]
        ends = {*self.model.generation_config.eos_token_ids, self.tokenizer.sep_token_id} - {None}
        if not self.has_encoder and len(ids) > 1 and ids[-1] in ends:
            return ids[:-1]
        return ids
