"""Tasks that write: text generation and text to text."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np

from longspan.checkpoints.hub import Source
from longspan.documents.document import replace_surrogates
from longspan.documents.tokens import Tokens, tokenize
from longspan.errors import InputError
from longspan.pipelines.backends import load_writer, longest_input
from longspan.pipelines.base import check_text
from longspan.pipelines.long.rows import RowTemplate, tokenize_beginnings
from longspan.pipelines.options import (
    check_at_least,
    check_choice,
    device_name,
    dtype_name,
    load_tokenizer,
    resolve_framework,
)
from longspan.pipelines.run.batching import plan_batches
from longspan.pipelines.run.progress import Progress, progress_bar

#: Texts are taken from an iterable in blocks of at most so many texts and characters.
_BLOCK_TEXTS = 256
_BLOCK_CHARACTERS = 1 << 20
_BATCH_TOKENS = 8192

Settings = dict[str, Any]


@dataclass(frozen=True)
class WritingOptions:
    """Options of the tasks that write, besides the settings of `model.generate`.

    Attributes:
        prefix: Text put before each text, or before each window of it, such as `"summarize: "`.
        return_tensors: Return token ids instead of text, under `..._token_ids`.
        stop_sequence: Text whose first token ends what is written.
        show_progress: Draw a bar with texts and tokens on the standard error stream.
    """

    prefix: str = ""
    return_tensors: bool = False
    stop_sequence: str | None = None
    show_progress: bool = False


class GenerationPipeline(ABC):
    """What the tasks that write share. PyTorch and Flax; models of Keras have no `generate`.

    Args:
        model: Directory or hub repository, or a loaded model of longspan.
        tokenizer: A tokenizer, or where to load one from; default the model's.
        framework: `"torch"` (also `"pt"`) or `"flax"` (`"jax"`); default torch, or that of `model`.
        device: Device in the framework's words, e.g. `"cuda"`; a number is that CUDA device, -1 the CPU. Default the
            first accelerator, or the CPU.
        dtype: Type of the weights, e.g. `"bfloat16"` or `torch.bfloat16`; default float32.
        batch_tokens: Most positions of a batch of inputs, padding included.
        batch_size: Most rows of a batch; default what `batch_tokens` allows.
        revision: Branch, tag or commit of a hub repository.
        cache_dir: Hub cache to use.
        local_files_only: Never reach for the network.
        token: Access token of the hub.
        **settings: Options of the task, and settings of `model.generate` (`max_new_tokens`, by default 256, or
            `max_length`; `num_beams`, for text to text by default 4; `do_sample`, by default False; `seed` and others),
            which hold unless a call says otherwise.

    Raises:
        InputError: an argument breaks a rule.
        CheckpointNotFoundError: there is no such model.
        ConfigError: the model's family has no class for the task in the framework.
    """

    task: ClassVar[str]
    model_task: ClassVar[str]
    options_class: ClassVar[type[WritingOptions]] = WritingOptions
    #: Settings of `generate` that hold unless others are given, as in the reference.
    defaults: ClassVar[Settings] = {"max_new_tokens": 256}
    #: What the text of a result is called.
    key: ClassVar[str] = "generated"

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        framework: str | None = None,
        device: str | int | None = None,
        dtype: Any = None,
        batch_tokens: int = _BATCH_TOKENS,
        batch_size: int | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **settings: Any,
    ) -> None:
        check_at_least("batch_tokens", batch_tokens, 1)
        check_at_least("batch_size", batch_size, 1)
        self.options, self.settings = self._updated(self.options_class(), dict(self.defaults), settings)
        place: dict[str, Any] = {
            "revision": revision,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "token": token,
        }
        self.framework = resolve_framework(framework, model)
        source = Source(model, **place) if isinstance(model, str | os.PathLike) else model
        self._writer = load_writer(
            self.framework, source, self.model_task, device=device_name(device), dtype=dtype_name(dtype)
        )
        self.model = self._writer.model
        self.tokenizer = load_tokenizer(source, tokenizer)
        self.batch_tokens, self.batch_size = batch_tokens, batch_size
        self._fast = self.tokenizer.backend_tokenizer
        self._special = frozenset(self.tokenizer.all_special_ids) - {None}

    def __call__(self, inputs: Any, **settings: Any) -> Any:
        """Write.

        Args:
            inputs: One text, a list of them, or any other iterable.
            **settings: Options of the task and settings of `generate` for this call.

        Returns:
            Results of one text, a list of such for a list, a generator for other iterables.

        Raises:
            InputError: an input or an option breaks a rule.
            ConfigError: a setting of `generate` breaks a rule.
        """
        options, settings = self._updated(self.options, self.settings, settings)
        if isinstance(inputs, str):
            return next(self._results([inputs], options, settings))
        if not isinstance(inputs, Iterable):
            raise InputError(f"inputs must be one text or an iterable of texts. Received: {type(inputs).__name__}")
        results = self._results(inputs, options, settings)
        return list(results) if isinstance(inputs, list | tuple) else results

    # What a task says

    @abstractmethod
    def _run(self, texts: list[str], options: Any, settings: Settings, progress: Progress) -> list[Any]:
        """Results of texts."""

    # Helpers of tasks

    def _tokens(self, texts: list[str], prefix: str, *, most: int | None = None) -> list[tuple[list[int], list[int]]]:
        """Token ids of the prefix and of each text, without special tokens; if given, no more than `most` of a text."""
        joined = [prefix + text for text in texts] if prefix else texts
        if most is None:
            found = tokenize(self._fast, joined, with_offsets=bool(prefix))
        else:
            found = tokenize_beginnings(self._fast, joined, most + len(prefix), with_offsets=bool(prefix))
        return [self._split(tokens, len(prefix)) for tokens in found]

    def _split(self, tokens: Tokens, num_characters: int) -> tuple[list[int], list[int]]:
        count = int((tokens.ends <= num_characters).sum()) if num_characters else 0
        return tokens.ids[:count].tolist(), tokens.ids[count:].tolist()

    def _wrap(self, ids: Sequence[int]) -> list[int]:
        """Ids with the special tokens of a text."""
        row, _ = RowTemplate(self._fast).wrap(np.asarray(ids, np.int32))
        return [int(token) for token in row.ids]

    def _generate(self, rows: list[list[int]], settings: Settings, progress: Progress) -> list[list[list[int]]]:
        """Ids that the model writes for each row; several for `num_return_sequences` above 1."""
        each = int(settings.get("num_return_sequences") or 1)
        if self.framework == "torch" and settings.get("stop_strings"):
            settings = {"tokenizer": self.tokenizer, **settings}
        written: list[list[list[int]]] = [[] for _ in rows]
        batches = plan_batches(
            [len(row) for row in rows],
            self.batch_tokens,
            max_rows=1 if self.tokenizer.pad_token_id is None else self.batch_size,
        )
        for batch in batches:
            chosen = [rows[index] for index in batch.indices]
            new = self._writer.write(chosen, settings)
            for place, index in enumerate(batch.indices):
                written[index] = new[place * each : (place + 1) * each]
            progress.advance(0, sum(map(len, chosen)))
        return written

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _record(self, ids: Sequence[int], options: WritingOptions) -> dict[str, Any]:
        """One result."""
        if options.return_tensors:
            return {f"{self.key}_token_ids": list(ids)}
        return {f"{self.key}_text": self._decode(ids)}

    # How it runs

    def _updated(self, options: Any, settings: Settings, given: Settings) -> tuple[Any, Settings]:
        """Options and settings with some changed. A length that is given replaces the other kind of length."""
        own = {field.name for field in fields(options)}
        options = replace(options, **{name: value for name, value in given.items() if name in own})
        rest = {name: value for name, value in given.items() if name not in own}
        for name, other in (("max_length", "max_new_tokens"), ("max_new_tokens", "max_length")):
            if rest.get(name) is not None and rest.get(other) is None:
                settings = {key: value for key, value in settings.items() if key != other}
        return options, {**settings, **rest}

    def _results(self, texts: Iterable[str], options: WritingOptions, settings: Settings) -> Iterator[Any]:
        if options.stop_sequence is not None:
            settings = {**settings, "eos_token_id": self._stop_token(options.stop_sequence)}
        with progress_bar(options.show_progress, unit="texts") as progress:
            progress.start(len(texts) if isinstance(texts, Sequence) else None, None)
            for block in _blocks(texts):
                for result in self._run(block, options, settings, progress):
                    yield result
                    progress.finish_documents(1)

    def _stop_token(self, text: str) -> int:
        ids = self._fast.encode(text, add_special_tokens=False).ids
        if not ids:
            raise InputError(f"stop_sequence must have a token. Received: stop_sequence={text!r}")
        return int(ids[0])


def _blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    block: list[str] = []
    num_characters = 0
    for text in texts:
        block.append(replace_surrogates(check_text(text)))
        num_characters += len(text)
        if len(block) == _BLOCK_TEXTS or num_characters >= _BLOCK_CHARACTERS:
            yield block
            block, num_characters = [], 0
    if block:
        yield block


@dataclass(frozen=True)
class TextGenerationOptions(WritingOptions):
    """Options of text generation, besides those of every task that writes.

    Attributes:
        return_full_text: Return the prompt and what follows, or what follows alone.
    """

    return_full_text: bool = True


class TextGenerationPipeline(GenerationPipeline):
    """Continues prompts; see `GenerationPipeline` for the arguments.

    One prompt gives a list of dicts `{"generated_text": ...}`, one a sequence; a list of prompts a list of such lists.
    The most likely tokens are taken unless `do_sample=True`. What a tokenizer puts at the end of a text (BERT's
    separator, an end token) is left out behind a prompt, for a prompt goes on.

    Options: `TextGenerationOptions`.

    Example:
        >>> from longspan import pipeline
        >>> write = pipeline("text-generation", "./my-diffllama", max_new_tokens=20)  # doctest: +SKIP
        >>> write("Once upon a time")  # doctest: +SKIP
        [{'generated_text': 'Once upon a time there was ...'}]
    """

    task = "text-generation"
    model_task = "text-generation"
    options_class: ClassVar[type[WritingOptions]] = TextGenerationOptions

    def _run(
        self, texts: list[str], options: TextGenerationOptions, settings: Settings, progress: Progress
    ) -> list[Any]:
        prompts = [self._prompt(text, first + ids)
                   for text, (first, ids) in zip(texts, self._tokens(texts, options.prefix), strict=True)]  # fmt: skip
        results: list[list[dict[str, Any]]] = []
        for text, prompt, written in zip(texts, prompts, self._generate(prompts, settings, progress), strict=True):
            begin = len(self._decode(prompt))
            for_text: list[dict[str, Any]] = []
            for ids in written:
                if options.return_tensors:
                    for_text.append({"generated_token_ids": prompt + ids})
                else:
                    new = self._decode(prompt + ids)[begin:]
                    for_text.append({"generated_text": text + new if options.return_full_text else new})
            results.append(for_text)
        return results

    def _prompt(self, text: str, ids: list[int]) -> list[int]:
        prompt = self._wrap(ids)
        ends = {*self.model.generation_config.eos_token_ids, self.tokenizer.sep_token_id}
        if len(prompt) > 1 and prompt[-1] in ends:
            prompt = prompt[:-1]
        if not prompt:
            raise InputError(f"A prompt must have at least one token. Received: {text!r}")
        return prompt


@dataclass(frozen=True)
class Text2TextGenerationOptions(WritingOptions):
    """Options of text to text, besides those of every task that writes.

    Attributes:
        on_long: What to do with a text longer than `max_input_length`: `"error"` raises, `"truncate"` reads its
            beginning.
        max_input_length: Most tokens that the model reads at once, special tokens and prefix included; default what
            model and tokenizer allow. (`max_length` bounds what is written, as in the reference.)
        truncation: The reference's word for `on_long="truncate"`.
    """

    on_long: str = "error"
    max_input_length: int | None = None
    truncation: Any = None

    #: The choices of `on_long`.
    CHOICES: ClassVar[tuple[str, ...]] = ("truncate", "error")

    def __post_init__(self) -> None:
        if self.truncation in (True, "longest_first", "only_first"):
            object.__setattr__(self, "on_long", "truncate")
        check_choice("on_long", self.on_long, self.CHOICES)


class Text2TextGenerationPipeline(GenerationPipeline):
    """Writes a text for each text; see `GenerationPipeline` for the arguments.

    One text gives a list of dicts `{"generated_text": ...}`, one a sequence. A list of texts gives a list of dicts, or
    with several sequences a list of lists.

    Options: `Text2TextGenerationOptions`.

    Example:
        >>> from longspan import pipeline
        >>> write = pipeline("text2text-generation", "./my-longt5")  # doctest: +SKIP
        >>> write("translate English to German: A book.")  # doctest: +SKIP
        [{'generated_text': 'Ein Buch.'}]
    """

    task = "text2text-generation"
    model_task = "text2text-generation"
    options_class: ClassVar[type[WritingOptions]] = Text2TextGenerationOptions
    defaults: ClassVar[Settings] = {"max_new_tokens": 256, "num_beams": 4}

    def __call__(self, inputs: Any, **settings: Any) -> Any:
        """Write; see `GenerationPipeline.__call__`."""
        results = super().__call__(inputs, **settings)
        is_flat = isinstance(results, list) and not isinstance(inputs, str) and all(len(each) == 1 for each in results)
        return [each[0] for each in results] if is_flat else results

    def _run(self, texts: list[str], options: Any, settings: Settings, progress: Progress) -> list[Any]:
        limit = self._limit(options)
        rows = []
        truncates = options.on_long == "truncate"
        for first, ids in self._tokens(texts, options.prefix, most=limit if truncates else None):
            num_others = RowTemplate(self._fast).num_special + len(first)
            if len(ids) + num_others > limit and not truncates:
                raise InputError(
                    f"A text must fit max_input_length={limit} tokens with on_long={options.on_long!r}. Received: "
                    f"{len(ids) + num_others} tokens (use on_long='truncate')"
                )
            rows.append(self._wrap(first + ids[: limit - num_others]))
        written = self._generate(rows, settings, progress)
        return [[self._record(ids, options) for ids in sequences] for sequences in written]

    def _limit(self, options: Text2TextGenerationOptions) -> int:
        limit = min(longest_input(self.model.config) or 1 << 30, int(self.tokenizer.model_max_length))
        asked = options.max_input_length
        if asked is not None and not 1 <= asked <= limit:
            raise InputError(f"max_input_length must lie in [1, {limit}]. Received: max_input_length={asked}")
        return limit if asked is None else asked
