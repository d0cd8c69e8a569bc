"""Tasks that write: text generation and text to text."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import numpy as np

from longspan.checkpoints.hub import Source
from longspan.configuration import CONFIG_NAME
from longspan.documents.document import replace_surrogates
from longspan.documents.tokens import Tokens, tokenize
from longspan.errors import ConfigError, InputError
from longspan.generation.config import GENERATION_CONFIG_NAME, GenerationConfig
from longspan.models.registry import resolve_framework
from longspan.pipelines.backends import load_writer, longest_input
from longspan.pipelines.base import check_text
from longspan.pipelines.long.rows import RowTemplate, tokenize_beginnings
from longspan.pipelines.options import (
    check_at_least,
    check_choice,
    device_name,
    dtype_name,
    load_tokenizer,
    model_settings,
    reference_words,
    source_of,
)
from longspan.pipelines.run.attributes import FixedAttributes
from longspan.pipelines.run.batching import plan_batches
from longspan.pipelines.run.identity import add_checkpoint, identity_of
from longspan.pipelines.run.progress import Progress, progress_bar

#: Texts are taken from an iterable in blocks of at most so many texts and characters.
_BLOCK_TEXTS = 256
_BLOCK_CHARACTERS = 1 << 20
_BATCH_TOKENS = 8192

#: Lengths of which the first, where it is given, stands in for the second.
_GREATEST = ("max_new_tokens", "max_length")
LEAST = ("min_new_tokens", "min_length")
#: The reference's pipelines take a stored `max_length` of this value for one that nobody chose.
_UNCHOSEN_LENGTH = 20

Settings = dict[str, Any]


@dataclass(frozen=True)
class Writing:
    """How a call writes.

    Attributes:
        values: Settings of `generate`: what the caller gave, what the task's entry of `config.json` says, defaults.
        stored: Settings of the model's `generation_config`, which `generate` itself takes where `values` has none.
        files: The file that a setting is from, for those that the caller did not give.
        cut: Sequences that ended at a greatest length that is from a file, counted while they are written.
    """

    values: Settings
    stored: Settings = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    cut: list[int] = field(default_factory=lambda: [0])

    def get(self, name: str) -> Any:
        """Value of a setting; None if nothing says."""
        return self.values[name] if name in self.values else self.stored.get(name)

    def length(self, names: tuple[str, str]) -> str | None:
        """Which of two names of a length is in force; None for neither."""
        return next((name for name in names if self.get(name) is not None), None)

    def updated(self, **values: Any) -> Writing:
        """The same with some settings changed by the caller."""
        return replace(self, values=_over(self.values, values), files={
            name: file for name, file in self.files.items() if name not in values})  # fmt: skip

    def fitted(self, prompt: int) -> Writing:
        """A least length that a file holds gives way, with a warning, to the greatest one for a prompt."""
        greatest, least = self.greatest(prompt), self.length(LEAST)
        if greatest is None or least is None or least not in self.files:
            return self
        most = greatest - prompt if least == "min_new_tokens" else greatest
        if self.get(least) <= most:
            return self
        warnings.warn(
            f"{least}={self.get(least)} of {self.files[least]} is above the greatest length that is asked for; it is "
            f"taken as {most}",
            stacklevel=6,
        )
        return replace(self, values={**self.values, least: most})

    def greatest(self, prompt: int) -> int | None:
        """Most tokens of a row, prompt included; None if nothing says."""
        name = self.length(_GREATEST)
        return None if name is None else int(self.get(name)) + (prompt if name == "max_new_tokens" else 0)


@dataclass(frozen=True)
class WritingOptions:
    """Options of the tasks that write, besides the settings of `model.generate`.

    Attributes:
        prefix: Text put before each text, or before each window of it, such as `"summarize: "`.
        return_tensors: Return token ids instead of text, under `..._token_ids`.
        stop_sequence: Text whose first token ends what is written.
        clean_up_tokenization_spaces: Remove blanks before English punctuation; default as the tokenizer says.
        show_progress: Draw a bar with texts and tokens on the standard error stream.
    """

    prefix: str = ""
    return_tensors: bool = False
    stop_sequence: str | None = None
    clean_up_tokenization_spaces: bool | None = None
    show_progress: bool = False


class GenerationPipeline(FixedAttributes, ABC):
    """What the tasks that write share.

    Args:
        model: Directory or hub repository, or a loaded model of longspan.
        tokenizer: A tokenizer, or where to load one from; default the model's.
        framework: `"torch"` (also `"pt"`) or `"flax"` (`"jax"`); default torch, or that of `model`.
        device: Device in the framework's words, e.g. `"cuda"`; a number is that CUDA device, -1 the CPU. Default the
            first accelerator, or the CPU.
        dtype: Type of the weights, e.g. `"bfloat16"` or `torch.bfloat16`, or `"auto"` for the stored one; default
            float32.
        attn_implementation: Implementation of attention; default: chosen by the model.
        batch_tokens: Most positions of a batch of inputs, padding included.
        batch_size: Most rows of a batch; default what `batch_tokens` allows.
        revision: Branch, tag or commit of a hub repository.
        cache_dir: Hub cache to use.
        local_files_only: Never reach for the network.
        token: Access token of the hub.
        config: Configuration to use instead of the stored one, or where to read it from.
        model_kwargs: Settings of the configuration that win over the stored ones.
        defaults: Settings of `model.generate` that hold where neither the model's files nor an argument says anything;
            by default `max_new_tokens=256`, and for text to text `num_beams=4`.
        **settings: Options of the task, and settings of `model.generate` (`max_new_tokens` or `max_length`;
            `num_beams`; `do_sample`, by default False; `seed` and others), which hold unless a call says otherwise.
            What nobody says here is taken from the files of the model: the entry of the task in
            `task_specific_params` of `config.json` (also `prefix`), then `generation_config.json`, then the settings
            of generation in `config.json`.

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
    model: Any
    tokenizer: Any
    framework: str
    options: Any
    settings: Settings
    batch_tokens: int
    batch_size: int | None

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        framework: str | None = None,
        device: str | int | None = None,
        dtype: Any = None,
        attn_implementation: str | None = None,
        batch_tokens: int = _BATCH_TOKENS,
        batch_size: int | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        config: Any = None,
        model_kwargs: Settings | None = None,
        defaults: Settings | None = None,
        **settings: Any,
    ) -> None:
        check_at_least("batch_tokens", batch_tokens, 1)
        check_at_least("batch_size", batch_size, 1)
        self.framework = resolve_framework(framework, model)
        place = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        source = source_of(model, **place)
        self._writer = load_writer(
            self.framework,
            source,
            self.model_task,
            device=device_name(device),
            dtype=dtype_name(dtype),
            settings=model_settings(config, model_kwargs, attn_implementation, model),
        )
        self._source = source
        self.model = self._writer.model
        self._stored = stored_settings(self.model, self.task, self.defaults if defaults is None else defaults)
        prefix = self._stored.values.pop("prefix", "")
        self.options, self.settings = self._updated(self.options_class(prefix=prefix), {}, settings)
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
            return next(self._results([inputs], options, self.writing(settings)))
        if not isinstance(inputs, Iterable):
            raise InputError(f"inputs must be one text or an iterable of texts. Received: {type(inputs).__name__}")
        results = self._results(inputs, options, self.writing(settings))
        return list(results) if isinstance(inputs, list | tuple) else results

    def identity(self) -> dict[str, Any]:
        """Everything that results depend on besides the texts.

        Raises:
            InputError: the model was given, and there is no checkpoint that could be compared with another.
        """
        if not isinstance(self._source, Source):
            raise InputError("An identity is that of a checkpoint. Received: a loaded model")
        digest = hashlib.blake2b(digest_size=16)
        add_checkpoint(digest, self._source, self._fast)
        writing = {"stored": self._stored.stored, "values": self.writing(self.settings).values}
        options = {name: value for name, value in vars(self.options).items() if name != "show_progress"}
        batches = {"batch_tokens": self.batch_tokens, "batch_size": self.batch_size}
        return identity_of(self._writer, digest.hexdigest()) | {
            "writing": json.loads(json.dumps({**writing, **options, **batches}, default=repr))}  # fmt: skip

    def read(self, text: str) -> list[int]:
        """The ids that the model reads for a text, prefix and special tokens included."""
        [(first, ids)] = self._tokens([replace_surrogates(check_text(text))], self.options.prefix)
        return self._row(text, first + ids)

    def write(self, ids: list[int], **arguments: Any) -> list[list[int]]:
        """New ids of each sequence that the model writes for a row.

        Args:
            ids: What the model reads.
            **arguments: Settings of `generate` that hold for this call, also `streamer`.
        """
        writing = self.writing(_over(self.settings, arguments))
        [written] = self._generate([ids], writing, Progress())
        self._tell_of_cuts(writing)
        return written

    # What a task says

    def _row(self, text: str, ids: list[int]) -> list[int]:
        """What the model reads, given the ids of the text alone."""
        return self._wrap(ids)

    @abstractmethod
    def _run(self, texts: list[str], options: Any, writing: Writing, progress: Progress) -> list[Any]:
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

    def writing(self, given: Settings) -> Writing:
        """How a call that gives these settings writes."""
        if "generation_config" in given:  # it says everything
            return Writing(given)
        return self._stored.updated(**given)

    def _generate(self, rows: list[list[int]], writing: Writing, progress: Progress) -> list[list[list[int]]]:
        """Ids that the model writes for each row; several for `num_return_sequences` above 1."""
        each = int(writing.get("num_return_sequences") or 1)
        written: list[list[list[int]]] = [[] for _ in rows]
        batches = plan_batches(
            [len(row) for row in rows],
            self.batch_tokens,
            max_rows=1 if self.tokenizer.pad_token_id is None else writing.values.get("batch_size", self.batch_size),
        )
        for batch in batches:
            chosen = [rows[index] for index in batch.indices]
            prompt = 1 if self.model.config.is_encoder_decoder else max(map(len, chosen))
            new = self._writer.write(chosen, self._arguments(writing.fitted(prompt)))
            for place, index in enumerate(batch.indices):
                written[index] = new[place * each : (place + 1) * each]
            writing.cut[0] += self._num_cut(new, writing, prompt)
            progress.advance(0, sum(map(len, chosen)))
        return written

    def _arguments(self, writing: Writing) -> Settings:
        """Arguments of `generate`."""
        settings = {name: value for name, value in writing.values.items() if name != "batch_size"}
        if self.framework == "torch" and writing.get("stop_strings"):
            settings = {"tokenizer": self.tokenizer, **settings}
        return settings

    def _num_cut(self, new: list[list[int]], writing: Writing, prompt: int) -> int:
        """How many sequences ended at a greatest length that is from a file."""
        name, greatest = writing.length(_GREATEST), writing.greatest(prompt)
        if name not in writing.files or greatest is None:
            return 0
        ends = set(self.model.generation_config.eos_token_ids)
        return sum(len(ids) >= greatest - prompt and ends.isdisjoint(ids) for ids in new)

    def _decode(self, ids: Sequence[int], options: WritingOptions) -> str:
        cleans = options.clean_up_tokenization_spaces
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=cleans))

    def _record(self, ids: Sequence[int], options: WritingOptions) -> dict[str, Any]:
        """One result."""
        if options.return_tensors:
            return {f"{self.key}_token_ids": list(ids)}
        return {f"{self.key}_text": self._decode(ids, options)}

    # How it runs

    def _updated(self, options: Any, settings: Settings, given: Settings) -> tuple[Any, Settings]:
        """Options and settings with some changed. A length that is given replaces the other kind of length."""
        given = reference_words(given)
        own = {field.name for field in fields(options)}
        options = replace(options, **{name: value for name, value in given.items() if name in own})
        rest = {name: value for name, value in given.items() if name not in own}
        if rest.get("return_dict_in_generate"):
            raise InputError(
                f"{self.task} returns dicts of texts, not the outputs of generate; call model.generate for these. "
                "Received: return_dict_in_generate=True"
            )
        check_at_least("batch_size", rest.get("batch_size"), 1)
        return options, _over(settings, rest)

    def _results(self, texts: Iterable[str], options: WritingOptions, writing: Writing) -> Iterator[Any]:
        if options.stop_sequence is not None:
            writing = writing.updated(eos_token_id=self._stop_token(options.stop_sequence))
        with progress_bar(options.show_progress, unit="texts") as progress:
            progress.start(len(texts) if isinstance(texts, Sequence) else None, None)
            for block in _blocks(texts):
                results = self._run(block, options, writing, progress)
                self._tell_of_cuts(writing)
                for result in results:
                    yield result
                    progress.finish_documents(1)

    def _tell_of_cuts(self, writing: Writing) -> None:
        """Say which file a greatest length is from, if texts ended there."""
        name, (count,) = writing.length(_GREATEST), writing.cut
        writing.cut[0] = 0
        if count and name is not None:
            texts = "1 text ends" if count == 1 else f"{count} texts end"
            warnings.warn(
                f"{texts} at {name}={writing.get(name)} of {writing.files[name]}; give max_new_tokens for more",
                stacklevel=4,
            )

    def _stop_token(self, text: str) -> int:
        ids = self._fast.encode(text, add_special_tokens=False).ids
        if not ids:
            raise InputError(f"stop_sequence must have a token. Received: stop_sequence={text!r}")
        return int(ids[0])


def stored_settings(model: Any, task: str, defaults: Settings) -> Writing:
    """What the files of a model say of writing for a task.

    Args:
        model: The model.
        task: Name of the task, whose entry in `task_specific_params` wins over the model's `generation_config`.
        defaults: Settings that hold where the files say nothing.

    Raises:
        ConfigError: a setting that a file holds breaks a rule.
    """
    config: GenerationConfig = model.generation_config
    has_file = getattr(model, "_stored_generation_config", None) is not None
    stored = {name: value for name, value in config.to_dict().items()
              if config.was_given(name) and (name, value) != ("max_length", _UNCHOSEN_LENGTH)}  # fmt: skip
    of_task = (model.config.task_specific_params or {}).get(task) or {}
    if not isinstance(of_task, Mapping):
        raise ConfigError(f"task_specific_params must hold settings by name. Received: {task}: {of_task!r}")
    known = {name: value for name, value in of_task.items() if name == "prefix" or GenerationConfig.is_setting(name)}
    files = dict.fromkeys(stored, GENERATION_CONFIG_NAME if has_file else CONFIG_NAME)
    files |= dict.fromkeys(known, f"task_specific_params in {CONFIG_NAME}")
    kept = {name: value for name, value in defaults.items() if name not in stored}
    if any(stored.get(name) is not None for name in _GREATEST):
        kept = {name: value for name, value in kept.items() if name not in _GREATEST}
    prefix = {"prefix": getattr(model.config, "prefix", None) or ""}
    return Writing({**prefix, **_over(kept, known)}, stored, files)


def _over(settings: Settings, given: Settings) -> Settings:
    """Settings with some changed. A length that is given replaces the other kind of length, also of files."""
    others: Settings = {}
    for names in (_GREATEST, LEAST):
        for name, other in (names, names[::-1]):
            if given.get(name) is not None and given.get(other) is None:
                settings = {key: value for key, value in settings.items() if key != other}
                if name == names[1]:  # would win
                    others[other] = None
    return {**settings, **others, **given}


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

    def _run(self, texts: list[str], options: TextGenerationOptions, writing: Writing, progress: Progress) -> list[Any]:
        prompts = [self._row(text, first + ids)
                   for text, (first, ids) in zip(texts, self._tokens(texts, options.prefix), strict=True)]  # fmt: skip
        results: list[list[dict[str, Any]]] = []
        for text, prompt, written in zip(texts, prompts, self._generate(prompts, writing, progress), strict=True):
            begin = len(self._decode(prompt, options))
            for_text: list[dict[str, Any]] = []
            for ids in written:
                if options.return_tensors:
                    for_text.append({"generated_token_ids": prompt + ids})
                else:
                    new = self._decode(prompt + ids, options)[begin:]
                    for_text.append({"generated_text": text + new if options.return_full_text else new})
            results.append(for_text)
        return results

    def _row(self, text: str, ids: list[int]) -> list[int]:
        prompt = self._wrap(ids)
        ends = {*self.model.generation_config.eos_token_ids, self.tokenizer.sep_token_id}
        if len(prompt) > 1 and prompt[-1] in ends:
            prompt = prompt[:-1]
        if not prompt and self.model.generation_config.bos_token_id is not None:
            return [int(self.model.generation_config.bos_token_id)]
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

    def _run(self, texts: list[str], options: Any, writing: Writing, progress: Progress) -> list[Any]:
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
        written = self._generate(rows, writing, progress)
        return [[self._record(ids, options) for ids in sequences] for sequences in written]

    def _limit(self, options: Text2TextGenerationOptions) -> int:
        limit = min(longest_input(self.model.config) or 1 << 30, int(self.tokenizer.model_max_length))
        asked = options.max_input_length
        if asked is not None and not 1 <= asked <= limit:
            raise InputError(f"max_input_length must lie in [1, {limit}]. Received: max_input_length={asked}")
        return limit if asked is None else asked
