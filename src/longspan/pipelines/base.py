"""What all tasks share: from inputs to rows of tokens, batches under a budget, and results in the order of the inputs.

A task says which texts an input holds, how their tokens become rows for the model, what is kept of the outputs of a
row, and how what was kept becomes a result. Documents longer than the model take several rows.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from longspan.checkpoints.hub import Source
from longspan.documents.document import replace_surrogates
from longspan.documents.tokens import Tokens, tokenize
from longspan.documents.windows import check_windows, plan_windows
from longspan.errors import InputError
from longspan.inputs import padding_of
from longspan.machine import return_freed_memory
from longspan.models.registry import resolve_framework
from longspan.pipelines.backends import TaskModel, load_task_model
from longspan.pipelines.long.rows import Row, RowTemplate, tokenize_beginnings
from longspan.pipelines.options import (
    Options,
    device_name,
    dtype_name,
    load_tokenizer,
    model_settings,
    source_of,
)
from longspan.pipelines.run.attributes import FixedAttributes
from longspan.pipelines.run.batching import Batch, pad, plan_for, run_plan
from longspan.pipelines.run.identity import add_checkpoint, identity_of
from longspan.pipelines.run.progress import Progress, progress_bar

#: Items are taken from an iterable in blocks of at most so many items,
_BLOCK_ITEMS = 4096
#: and at least so many characters. A token of English has four to five.
_LEAST_BLOCK_CHARACTERS = 1 << 15
_CHARACTERS_PER_TOKEN = 4
#: A block makes about so many batches, enough to find sequences of like length for each.
_BLOCK_BATCHES = 64
#: Freed memory is given back after so many batches.
_TIDY_BATCHES = 4
_NO_LIMIT = 1 << 30


@dataclass(eq=False)
class Job:
    """One input on its way through a pipeline.

    Attributes:
        text: The document.
        tokens: Its tokens.
        windows: The tokens `(start, stop)` of it that each row holds.
        rows: What the model reads.
        lead: Position in each row of the document's first token there.
        extra: What else the task must remember.
    """

    text: str
    tokens: Tokens
    windows: list[tuple[int, int]]
    rows: list[Row]
    lead: int
    extra: Any = None


class Pipeline(FixedAttributes, ABC):
    """A task on texts and documents of any length.

    Args:
        model: Directory or hub repository, or a loaded model of longspan.
        tokenizer: A tokenizer, or where to load one from; default the model's.
        framework: `"torch"` (also `"pt"`), `"flax"` (`"jax"`) or `"keras"` (`"tf"`); default torch, or that of `model`.
        device: Device in the framework's words, e.g. `"cuda"`; a number is that CUDA device, -1 the CPU. Default the
            first accelerator, or the CPU.
        dtype: Type of the weights, e.g. `"bfloat16"` or `torch.bfloat16`, or `"auto"` for the stored one; default
            float32.
        attn_implementation: Implementation of attention; default: chosen by the model.
        revision: Branch, tag or commit of a hub repository.
        cache_dir: Hub cache to use.
        local_files_only: Never reach for the network.
        token: Access token of the hub.
        config: Configuration to use instead of the stored one, or where to read it from.
        model_kwargs: Settings of the configuration that win over the stored ones.
        **settings: Options of the task, which hold for each call that does not say otherwise.

    Attributes:
        model: The model on its device; see `longspan.pipelines.backends.base.TaskModel`.
        tokenizer: The tokenizer.
        framework: The framework.
        options: Options of calls.

    Raises:
        InputError: an argument breaks a rule.
        CheckpointNotFoundError: there is no such model.
        ConfigError: the model's family has no class for the task in the framework.
    """

    #: Name of the task, a key of `longspan.tasks.TASKS`.
    task: ClassVar[str]
    options_class: ClassVar[type[Options]] = Options
    #: Items are taken from an iterable in blocks of at most so many characters, whatever the budget of a batch.
    block_characters: ClassVar[int] = 1 << 21

    model: TaskModel
    tokenizer: Any
    framework: str
    options: Any

    def __init__(
        self,
        model: str | os.PathLike[str] | Any,
        tokenizer: Any = None,
        *,
        framework: str | None = None,
        device: str | int | None = None,
        dtype: Any = None,
        attn_implementation: str | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        config: Any = None,
        model_kwargs: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.options = self.options_class().updated(settings, self.task)
        self.framework = resolve_framework(framework, model)
        place = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        source = source_of(model, **place)
        self.model = load_task_model(
            self.framework,
            source,
            self.task,
            device=device_name(device),
            dtype=dtype_name(dtype),
            settings=model_settings(config, model_kwargs, attn_implementation, model),
        )
        self._source: Source | None = source if isinstance(source, Source) else None
        self.tokenizer = load_tokenizer(source, tokenizer)
        self._fast = self.tokenizer.backend_tokenizer
        self._input_names = self._choose_inputs()

    def __call__(self, inputs: Any, **settings: Any) -> Any:
        """Run the task.

        Args:
            inputs: One input, a list of them, or any other iterable, e.g. a generator.
            **settings: Options for this call.

        Returns:
            The result of one input; a list of results in the order of a list; a generator for other iterables, which
            reads ahead a bounded number of inputs.

        Raises:
            InputError: an input or option breaks a rule.
        """
        options = self.options.updated(settings, self.task)
        if self._is_single(inputs):
            return next(self._results([inputs], options))
        if not isinstance(inputs, Iterable):
            raise InputError(
                f"inputs must be one input of {self.task} or an iterable of them. Received: {type(inputs).__name__}"
            )
        results = self._results(inputs, options)
        return list(results) if isinstance(inputs, list | tuple) else results

    def run(
        self, inputs: Iterable[Any], *, options: Options | None = None, progress: Progress | None = None
    ) -> Iterator[Any]:
        """Results of inputs in order; for an input that breaks a rule the `InputError`, which is not raised.

        Args:
            inputs: Any number of inputs.
            options: Options; default those of the pipeline.
            progress: Told after each batch.

        Yields:
            A result or an `InputError` for each input.
        """
        blocks = self._blocks(inputs, options or self.options)
        for results in self.run_blocks(blocks, options=options, progress=progress):
            yield from results

    def run_blocks(
        self, blocks: Iterable[list[Any]], *, options: Options | None = None, progress: Progress | None = None
    ) -> Iterator[Iterator[Any]]:
        """Like `run`, for inputs in blocks; batches hold inputs of one block, and the next is tokenized meanwhile.

        Args:
            blocks: Lists of inputs.
            options: Options; default those of the pipeline.
            progress: Told after each batch.

        Yields:
            For each block its results or `InputError`s.

        Raises:
            InputError: an option breaks a rule.
        """
        options = options or self.options
        progress = progress or Progress()
        self.window_length(options)  # raises now, not for each input
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="longspan-tokenize") as tokenizing:
            waiting: Future[list[Job | InputError]] | None = None
            for block in blocks:
                prepared = tokenizing.submit(self.prepare_block, block, options)
                if waiting is not None:
                    yield self._run_block(waiting.result(), options, progress)
                waiting = prepared
            if waiting is not None:
                yield self._run_block(waiting.result(), options, progress)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of everything in the checkpoint that results depend on: weights, settings, tokenizer."""
        if self._source is None:
            raise InputError("A fingerprint is that of a checkpoint. Received: a loaded model")
        digest = hashlib.blake2b(digest_size=16)
        add_checkpoint(digest, self._source, self._fast)
        return digest.hexdigest()

    def identity(self) -> dict[str, Any]:
        """Everything that results depend on besides inputs and options."""
        return identity_of(self.model, self.fingerprint)

    # What a task says

    def _is_single(self, inputs: Any) -> bool:
        """True if `inputs` is one input."""
        return isinstance(inputs, str | Mapping)

    @abstractmethod
    def _texts(self, item: Any) -> list[str]:
        """Texts of an input that are to be tokenized; raises `InputError` if the input breaks a rule."""

    def _alignment(self, options: Options) -> dict[str, bool]:
        """Whether tokens are wanted with characters and words: arguments of `tokenize`."""
        return {"with_offsets": True}

    @abstractmethod
    def _job(self, item: Any, tokens: list[Tokens], options: Any) -> Job:
        """The work on an input, given the tokens of each of its texts; raises `InputError` if it breaks a rule."""

    @abstractmethod
    def _pick(self, outputs: dict[str, npt.NDArray[np.float32]], row: Row, job: Job, options: Any) -> Any:
        """What is kept of the outputs of one row: new arrays, for `outputs` shows parts of those of the batch."""

    @abstractmethod
    def _finish(self, job: Job, picked: list[Any], options: Any) -> Any:
        """The result of an input."""

    # Helpers of tasks

    def window_length(self, options: Options) -> int:
        """Most tokens of a row, special tokens included; raises `InputError` unless `stride` is less."""
        limit = min(self.model.max_positions or _NO_LIMIT, int(self.tokenizer.model_max_length))
        length = limit if options.max_length is None else options.max_length
        if not 1 <= length <= limit:
            raise InputError(f"max_length must lie in [1, {limit}]. Received: max_length={length}")
        if options.stride is not None and not 0 <= options.stride < length:
            raise InputError(f"stride must be at least 0 and below the {length} tokens of a window. Received: "
                             f"stride={options.stride}")  # fmt: skip
        return length

    def _windows(self, num_tokens: int, num_others: int, options: Options) -> list[tuple[int, int]]:
        """Windows over a document of `num_tokens` tokens in rows that hold `num_others` others."""
        capacity = self.window_length(options) - num_others
        check_windows(capacity, 0)
        if num_tokens <= capacity:
            return [(0, num_tokens)]
        if options.on_long == "error":
            raise InputError(
                f"A text must fit max_length={capacity + num_others} tokens with on_long='error'. Received: "
                f"{num_tokens + num_others} tokens (use on_long='window' or on_long='truncate')"
            )
        if options.on_long == "truncate":
            return [(0, capacity)]
        stride = capacity // 8 if options.stride is None else options.stride
        if not 0 <= stride < capacity:
            raise InputError(f"stride must be at least 0 and below the {capacity} tokens of a window that are the "
                             f"text's own. Received: stride={stride}")  # fmt: skip
        return plan_windows(num_tokens, capacity, stride)

    def _single_job(self, text: str, tokens: Tokens, options: Options, extra: Any = None) -> Job:
        """A job whose rows hold a window of one text each, with special tokens."""
        template = self._template(is_pair=False)
        windows = self._windows(len(tokens.ids), template.num_special, options)
        wrapped = [template.wrap(tokens.ids[start:stop]) for start, stop in windows]
        return Job(text, tokens, windows, [row for row, _ in wrapped], wrapped[0][1][0], extra)

    def _template(self, *, is_pair: bool) -> RowTemplate:
        if is_pair not in self._templates:
            self._templates[is_pair] = RowTemplate(self._fast, is_pair=is_pair)
        return self._templates[is_pair]

    # How it runs

    def _choose_inputs(self) -> frozenset[str]:
        self._templates: dict[bool, RowTemplate] = {}
        pads = (self.tokenizer.pad_token_id, getattr(self.model.config, "pad_token_id", None))
        #: None if nothing says what pads: rows then run one by one
        self._pad_token_id = next((pad for pad in pads if pad is not None), None)
        if pads[1] is None:
            self.model.config.pad_token_id = self._pad_token_id
        names = {"global_attention_mask"}
        config = self.model.config
        has_types = getattr(config, "type_vocab_size", 2) > 1 and getattr(config, "add_token_type_embeddings", True)
        if has_types and "token_type_ids" in self.tokenizer.model_input_names:
            names.add("token_type_ids")
        return frozenset(names & self.model.input_names)

    def _results(self, items: Iterable[Any], options: Options) -> Iterator[Any]:
        with progress_bar(options.show_progress) as progress:
            progress.start(len(items) if isinstance(items, Sequence) else None, None)
            for result in self.run(items, options=options, progress=progress):
                if isinstance(result, InputError):
                    raise result
                yield result

    def _batch_tokens(self, options: Options) -> int:
        """Most positions of a batch."""
        return self.model.batch_tokens if options.batch_tokens is None else options.batch_tokens

    def _blocks(self, items: Iterable[Any], options: Options) -> Iterator[list[Any]]:
        """Inputs in blocks, of which two are in memory at a time: their size follows the budget of a batch."""
        wanted = _BLOCK_BATCHES * _CHARACTERS_PER_TOKEN * self._batch_tokens(options)
        most = min(max(wanted, _LEAST_BLOCK_CHARACTERS), self.block_characters)
        block: list[Any] = []
        num_characters = 0
        for item in items:
            block.append(item)
            num_characters += _size(item)
            if len(block) >= _BLOCK_ITEMS or num_characters >= most:
                yield block
                block, num_characters = [], 0
        if block:
            yield block

    def prepare_block(self, items: list[Any], options: Options) -> list[Job | InputError]:
        """The jobs of inputs, or the errors of those that break a rule; all texts are tokenized in one go."""
        texts: list[list[str] | InputError] = []
        for item in items:
            try:
                texts.append([replace_surrogates(text) for text in self._texts(item)])
            except InputError as error:
                texts.append(error)
        flat = [text for of_item in texts if not isinstance(of_item, InputError) for text in of_item]
        tokens = iter(self._tokenize(flat, options))
        jobs: list[Job | InputError] = []
        for item, of_item in zip(items, texts, strict=True):
            if isinstance(of_item, InputError):
                jobs.append(of_item)
                continue
            own = [next(tokens) for _ in of_item]
            try:
                jobs.append(_checked(self._job(item, own, options)))
            except InputError as error:
                jobs.append(error)
        return jobs

    def _tokenize(self, texts: list[str], options: Options) -> list[Tokens]:
        """Tokens of texts; with truncation at least those that are read."""
        if options.on_long != "truncate":
            return tokenize(self._fast, texts, **self._alignment(options))
        return tokenize_beginnings(self._fast, texts, self.window_length(options), **self._alignment(options))

    def _run_block(self, jobs: list[Job | InputError], options: Options, progress: Progress) -> Iterator[Any]:
        work = [(job, row) for job in jobs if isinstance(job, Job) for row in job.rows]
        picked = iter(self._run_rows(work, options, progress))
        for job in jobs:
            if isinstance(job, Job):
                yield self._finish(job, [next(picked) for _ in job.rows], options)
            else:
                yield job
            progress.finish_documents(1)

    def _run_rows(self, work: list[tuple[Job, Row]], options: Options, progress: Progress) -> list[Any]:
        picked: list[Any] = [None] * len(work)
        lengths = [len(row) for _, row in work]
        max_rows = 1 if self._pad_token_id is None else options.batch_size
        plan = plan_for(self.model, lengths, options.batch_tokens, max_rows=max_rows)

        def run(batch: Batch) -> dict[str, npt.NDArray[np.float32]]:
            rows = [work[index][1] for index in batch.indices]
            return self.model.run(self._stack(rows, batch), _stack_wanted(rows, batch.shape[0]))

        for number, (batch, outputs) in enumerate(run_plan(self.model, plan, run), start=1):
            for place, index in enumerate(batch.indices):
                job, row = work[index]
                picked[index] = self._pick({name: values[place] for name, values in outputs.items()}, row, job, options)
            progress.advance(0, sum(lengths[index] for index in batch.indices))
            if number % _TIDY_BATCHES == 0:
                return_freed_memory()
        return picked

    def _stack(self, rows: list[Row], batch: Batch) -> dict[str, npt.NDArray[Any]]:
        num_rows, length = batch.shape
        lengths = np.zeros(num_rows, np.int64)
        lengths[: len(rows)] = [len(row) for row in rows]
        inputs = {
            "input_ids": pad([row.ids for row in rows], batch.shape, self._pad_token_id or 0),
            "attention_mask": np.arange(length) < lengths[:, None],
        }
        masks = [row.is_global.astype(np.int32) for row in rows if row.is_global is not None]
        further = {"token_type_ids": [row.segments for row in rows], "global_attention_mask": masks}
        for name, values in further.items():
            if name in self._input_names and len(values) == len(rows):
                inputs[name] = pad(values, batch.shape, padding_of(name, self.model.config))
        return inputs

    def prepare(self, item: Any, options: Options) -> Job:
        """The work on one input: its tokens, with characters, and the rows that the model reads.

        Raises:
            InputError: the input breaks a rule.
        """
        texts = [replace_surrogates(text) for text in self._texts(item)]
        return _checked(self._job(item, tokenize(self._fast, texts), options))

    def stack_rows(self, rows: list[Row], length: int | None = None) -> dict[str, npt.NDArray[Any]]:
        """Inputs of the model for rows, (B, S) each, padded to `length` tokens, or to the longest."""
        return self._stack(rows, Batch(np.arange(len(rows)), (len(rows), length or max(map(len, rows)))))

    def updated(self, **settings: Any) -> Self:
        """Change options for all calls to come.

        Args:
            **settings: Options of the task.

        Returns:
            This pipeline.
        """
        self.options = self.options.updated(settings, self.task)
        return self


def _checked(job: Job) -> Job:
    if any(len(row) == 0 for row in job.rows):
        raise InputError("A text must have at least one token. Received: a text without any")
    return job


def _stack_wanted(rows: list[Row], num_rows: int) -> npt.NDArray[np.int64] | None:
    """Tokens whose outputs are wanted, (B, P); rows with fewer repeat position 0. P is a power of two."""
    wanted = [row.wanted for row in rows if row.wanted is not None]
    if not wanted:
        return None
    size = 1 << (max(map(len, wanted)) - 1).bit_length()
    stacked = np.zeros((num_rows, size), np.int64)
    for row, positions in zip(stacked, wanted, strict=False):
        row[: len(positions)] = positions
    return stacked


def check_text(value: Any, name: str = "text") -> str:
    """`value`, if it is a string; else raise `InputError`."""
    if not isinstance(value, str):
        raise InputError(f"{name} must be a string. Received: {type(value).__name__}")
    return value


def _size(item: Any) -> int:
    """Characters of an input, counting those of the texts that it holds."""
    if isinstance(item, str):
        return len(item)
    if isinstance(item, Mapping):
        return sum(map(_size, item.values()))
    return sum(map(_size, item)) if isinstance(item, list | tuple) else 0
