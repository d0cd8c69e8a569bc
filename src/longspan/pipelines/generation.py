"""Tasks that write: text generation, text to text, and summaries of documents of any length."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from longspan.checkpoints.hub import Source
from longspan.configuration import SOURCE_ARGUMENTS, PretrainedConfig
from longspan.documents.tokens import tokenize
from longspan.documents.windows import plan_windows
from longspan.errors import InputError
from longspan.models.registry import get_model_class
from longspan.pipelines.backends import framework_of, longest_input
from longspan.pipelines.base import check_text
from longspan.pipelines.batching import plan_batches
from longspan.pipelines.frames import Frame, Ids
from longspan.tokenization.auto import AutoTokenizer

_BLOCK_TEXTS = 256
_BATCH_TOKENS = 8192


class GenerationPipeline:
    """What the tasks that write share. PyTorch only.

    Args:
        model: Directory or hub repository, or a loaded model of longspan.
        tokenizer: A tokenizer, or where to load one from; default the model's.
        framework: `"torch"`.
        device: Device, e.g. `"cuda"`; default the first CUDA device, or the CPU.
        dtype: Type of the weights, e.g. `"bfloat16"`.
        batch_tokens: Most positions of a batch of inputs, padding included.
        revision: Branch, tag or commit of a hub repository.
        cache_dir: Hub cache to use.
        local_files_only: Never reach for the network.
        token: Access token of the hub.
        **settings: Options of the task and settings of `model.generate` (`max_new_tokens`, by default 256, `num_beams`,
            for text to text by default 4, `do_sample`, `seed` and others), which hold unless a call says otherwise.

    Raises:
        InputError: an argument breaks a rule.
        ConfigError: the model's family has no class for the task.
    """

    task: ClassVar[str]
    model_task: ClassVar[str]
    #: Options of the task besides the settings of `generate`, with their defaults.
    task_options: ClassVar[Mapping[str, Any]] = {}
    #: Settings of `generate` that hold unless others are given, as in the reference.
    defaults: ClassVar[Mapping[str, Any]] = {"max_new_tokens": 256}

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        framework: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        batch_tokens: int = _BATCH_TOKENS,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **settings: Any,
    ) -> None:
        if framework not in (None, "torch", "pt"):
            raise InputError(f"{self.task} runs with framework='torch'. Received: framework={framework!r}")
        self.framework = "torch"
        if isinstance(model, str | os.PathLike):
            source = Source(
                model, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token
            )
            place: dict[str, Any] = {name: getattr(source, name) for name in SOURCE_ARGUMENTS}
            model_type = PretrainedConfig.get_config_dict(source.name, **place).get("model_type")
            model_class = get_model_class(model_type, self.model_task, "torch")
            self.model = model_class.from_pretrained(source.name, dtype=dtype or "float32", device_map=device, **place)
            self.tokenizer = AutoTokenizer.from_pretrained(source.name if tokenizer is None else tokenizer, **place) \
                if tokenizer is None or isinstance(tokenizer, str | os.PathLike) else tokenizer  # fmt: skip
        else:
            if framework_of(model) != "torch":
                raise InputError(f"model must be a directory, a hub repository or a torch model of longspan. "
                                 f"Received: {type(model).__name__}")  # fmt: skip
            if tokenizer is None:
                raise InputError("tokenizer must be given with a loaded model. Received: tokenizer=None")
            self.model, self.tokenizer = model, tokenizer
        self.batch_tokens = batch_tokens
        self._settings = {**self.task_options, **self.defaults, **settings}
        self._fast = self.tokenizer.backend_tokenizer

    def __call__(self, inputs: Any, **settings: Any) -> Any:
        """Write.

        Args:
            inputs: One text, a list of them, or any other iterable.
            **settings: Options of the task and settings of `generate` for this call.

        Returns:
            Results of one text, a list of such for a list, a generator for other iterables.

        Raises:
            InputError: an input breaks a rule.
            ConfigError: a setting of `generate` breaks a rule.
        """
        options = {**self._settings, **settings}
        results = self._results([inputs] if isinstance(inputs, str) else inputs, options)
        if isinstance(inputs, str):
            return next(results)
        return list(results) if isinstance(inputs, list | tuple) else results

    def _results(self, texts: Iterable[str], options: dict[str, Any]) -> Iterator[Any]:
        own = {name: options.pop(name) for name in self.task_options}
        block: list[str] = []
        for text in texts:
            block.append(check_text(text))
            if len(block) == _BLOCK_TEXTS:
                yield from self._run(block, own, options)
                block = []
        yield from self._run(block, own, options)

    def _run(self, texts: list[str], own: dict[str, Any], settings: dict[str, Any]) -> list[Any]:
        raise NotImplementedError

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids of texts, without special tokens."""
        return [tokens.ids.tolist() for tokens in tokenize(self._fast, texts, with_offsets=False)]

    def _generate(self, rows: list[list[int]], settings: dict[str, Any]) -> list[list[list[int]]]:
        """Ids that the model writes for each row; several for `num_return_sequences` above 1."""
        per_row = int(settings.get("num_return_sequences") or 1)
        written: list[list[list[int]]] = [[] for _ in rows]
        is_causal = not self.model.config.is_encoder_decoder
        pads = self.tokenizer.pad_token_id is not None
        for batch in plan_batches([len(row) for row in rows], self.batch_tokens, max_rows=None if pads else 1):
            chosen = [rows[index] for index in batch.indices]
            output = self.model.generate(chosen, **settings).tolist()
            skip = max(map(len, chosen)) if is_causal else 1
            for place, index in enumerate(batch.indices):
                written[index] = [row[skip:] for row in output[place * per_row : (place + 1) * per_row]]
        return written

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


class TextGenerationPipeline(GenerationPipeline):
    """Continues prompts; see `GenerationPipeline` for the arguments.

    One prompt gives a list of dicts `{"generated_text": ...}`, one a sequence; a list of prompts a list of such lists.
    Option: `return_full_text`, the prompt and what follows (the default) or what follows alone.

    Example:
        >>> from longspan import pipeline
        >>> write = pipeline("text-generation", "./my-diffllama", max_new_tokens=20)  # doctest: +SKIP
        >>> write("Once upon a time")  # doctest: +SKIP
        [{'generated_text': 'Once upon a time there was ...'}]
    """

    task = "text-generation"
    model_task = "text-generation"
    task_options: ClassVar[Mapping[str, Any]] = {"return_full_text": True}

    def _run(self, texts: list[str], own: dict[str, Any], settings: dict[str, Any]) -> list[Any]:
        frame = Frame(self._fast)
        ends = {*self.model.generation_config.eos_token_ids, self.tokenizer.sep_token_id} - {None}
        prompts = []
        for text, ids in zip(texts, self._ids(texts), strict=True):
            row, _ = frame.wrap(_array(ids))
            prompt = row.ids.tolist()
            if len(prompt) > 1 and prompt[-1] in ends:  # the end of a text, not of a prompt
                prompt = prompt[:-1]
            if not prompt:
                raise InputError(f"A prompt must have at least one token. Received: {text!r}")
            prompts.append(prompt)
        results = []
        for text, prompt, sequences in zip(texts, prompts, self._generate(prompts, settings), strict=True):
            begin = len(self._decode(prompt))
            new = [self._decode(prompt + ids)[begin:] for ids in sequences]
            results.append([{"generated_text": text + one if own["return_full_text"] else one} for one in new])
        return results


class Text2TextGenerationPipeline(GenerationPipeline):
    """Writes a text for each text; see `GenerationPipeline` for the arguments.

    One text gives a list of dicts `{"generated_text": ...}`, one a sequence. A list of texts gives a list of dicts, or
    with several sequences a list of lists. Options: `max_length`, most tokens that the model reads at once (default
    what model and tokenizer allow), and `on_long`, `"truncate"` or `"error"` (the default) for longer texts.

    Example:
        >>> from longspan import pipeline
        >>> write = pipeline("text2text-generation", "./my-longt5")  # doctest: +SKIP
        >>> write("translate English to German: A book.")  # doctest: +SKIP
        [{'generated_text': 'Ein Buch.'}]
    """

    task = "text2text-generation"
    model_task = "text2text-generation"
    task_options: ClassVar[Mapping[str, Any]] = {"on_long": "error", "max_length": None, "stride": None}
    defaults: ClassVar[Mapping[str, Any]] = {"max_new_tokens": 256, "num_beams": 4}
    key: ClassVar[str] = "generated_text"

    def __call__(self, inputs: Any, **settings: Any) -> Any:
        """Write; see `GenerationPipeline.__call__`."""
        results = super().__call__(inputs, **settings)
        is_flat = isinstance(results, list) and not isinstance(inputs, str) and all(len(each) == 1 for each in results)
        return [each[0] for each in results] if is_flat else results

    def _run(self, texts: list[str], own: dict[str, Any], settings: dict[str, Any]) -> list[Any]:
        frame, limit = Frame(self._fast), self._limit(own["max_length"])
        rows = []
        for ids in self._ids(texts):
            if len(ids) + frame.num_special > limit and own["on_long"] != "truncate":
                raise InputError(
                    f"A text must fit max_length={limit} tokens with on_long={own['on_long']!r}. Received: "
                    f"{len(ids) + frame.num_special} tokens (use on_long='truncate')"
                )
            rows.append(frame.wrap(_array(ids[: limit - frame.num_special]))[0].ids.tolist())
        written = self._generate(rows, settings)
        return [[{self.key: self._decode(ids)} for ids in sequences] for sequences in written]

    def _limit(self, asked: int | None) -> int:
        limit = min(longest_input(self.model.config) or 1 << 30, int(self.tokenizer.model_max_length))
        if asked is not None and not 1 <= asked <= limit:
            raise InputError(f"max_length must lie in [1, {limit}]. Received: max_length={asked}")
        return limit if asked is None else asked


class SummarizationPipeline(Text2TextGenerationPipeline):
    """Summarises texts of any length; see `GenerationPipeline` for the arguments.

    A text longer than the model is summarised window by window (map). The summaries together are the result if they
    keep within `max_new_tokens` tokens; else they are a text that is summarised in turn (reduce). So no summary has
    more than `max_new_tokens` tokens, whatever the length of the text. Results are as in `Text2TextGenerationPipeline`
    with the key `summary_text`. Options: `on_long`, `"window"` (the default), `"truncate"` or `"error"`; `max_length`;
    `stride`, tokens that neighbouring windows share, by default an eighth of a window.

    Example:
        >>> from longspan import pipeline
        >>> summarize = pipeline("summarization", "./my-longt5", max_new_tokens=200)  # doctest: +SKIP
        >>> summarize(open("book.txt").read())  # doctest: +SKIP
        [{'summary_text': '...'}]
    """

    task = "summarization"
    task_options: ClassVar[Mapping[str, Any]] = {"on_long": "window", "max_length": None, "stride": None}
    key = "summary_text"

    def _run(self, texts: list[str], own: dict[str, Any], settings: dict[str, Any]) -> list[Any]:
        if own["on_long"] != "window":
            return super()._run(texts, own, settings)
        capacity = self._limit(own["max_length"]) - Frame(self._fast).num_special
        stride = capacity // 8 if own["stride"] is None else own["stride"]
        return [self._summarize(ids, capacity, stride, settings) for ids in self._ids(texts)]

    def _summarize(self, ids: list[int], capacity: int, stride: int, settings: dict[str, Any]) -> list[dict[str, str]]:
        frame, budget = Frame(self._fast), int(settings["max_new_tokens"])
        windows = plan_windows(len(ids), capacity, stride) if len(ids) > capacity else [(0, len(ids))]
        rows = [frame.wrap(_array(ids[start:stop]))[0].ids.tolist() for start, stop in windows]
        if len(rows) == 1:
            return [{self.key: self._decode(sequence)} for sequence in self._generate(rows, settings)[0]]
        if budget >= capacity - stride:
            raise InputError(
                f"max_new_tokens must be below the {capacity - stride} new tokens of a window, else summaries "
                f"are no shorter than the text. Received: max_new_tokens={budget}"
            )
        single = {**settings, "num_return_sequences": 1}
        parts = [self._decode(sequences[0]).strip() for sequences in self._generate(rows, single)]
        joined = " ".join(parts)
        reduced = self._ids([joined])[0]
        if len(reduced) <= budget or len(reduced) >= len(ids):
            return [{self.key: joined if len(reduced) <= budget else self._decode(reduced[:budget])}]
        return self._summarize(reduced, capacity, stride, settings)


def _array(ids: list[int]) -> Ids:
    return np.asarray(ids, np.int32)
