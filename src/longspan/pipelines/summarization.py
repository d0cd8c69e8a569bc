"""Summaries of documents of any length: map and reduce within a budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from longspan.documents.tokens import tokenize
from longspan.documents.windows import check_windows, plan_windows
from longspan.errors import InputError
from longspan.pipelines.long.rows import RowTemplate
from longspan.pipelines.run.progress import Progress
from longspan.pipelines.text_generation import (
    LEAST,
    Text2TextGenerationOptions,
    Text2TextGenerationPipeline,
    Writing,
    WritingOptions,
)


@dataclass(frozen=True)
class SummarizationOptions(Text2TextGenerationOptions):
    """Options of summaries, besides those of every task that writes.

    Attributes:
        on_long: What to do with a text longer than `max_input_length`: `"window"` summarises all of it, `"truncate"`
            its beginning, `"error"` raises.
        stride: Tokens that neighbouring windows share; default an eighth of a window.
    """

    on_long: str = "window"
    stride: int | None = None

    CHOICES: ClassVar[tuple[str, ...]] = ("window", "truncate", "error")


@dataclass(frozen=True)
class _Plan:
    """How long texts are cut: `capacity` tokens of the text in a row, of which neighbours share `stride`."""

    prefix: list[int]
    capacity: int
    stride: int
    #: Most tokens of a summary.
    budget: int

    @property
    def share(self) -> int:
        """Most tokens of the summary of one window: half of what is new in it, so that summaries are shorter."""
        return min(self.budget, (self.capacity - self.stride) // 2)


class SummarizationPipeline(Text2TextGenerationPipeline):
    """Summarises texts of any length; see `GenerationPipeline` for the arguments.

    A text longer than the model is summarised window by window (map). The summaries together are the result if they
    keep within the budget, `max_new_tokens` (or `max_length` less the start token); else they are a text that is
    summarised in turn (reduce). Each window gets at most half as many tokens as are new in it, so that this ends, and
    every summary is read by the next step as a whole, so that nothing is dropped between. Results are as in
    `Text2TextGenerationPipeline` with the key `summary_text`.

    Options: `SummarizationOptions`.

    Example:
        >>> from longspan import pipeline
        >>> summarize = pipeline("summarization", "./my-longt5", max_new_tokens=200)  # doctest: +SKIP
        >>> summarize(open("book.txt").read())  # doctest: +SKIP
        [{'summary_text': '...'}]
    """

    task = "summarization"
    options_class: ClassVar[type[WritingOptions]] = SummarizationOptions
    key = "summary"

    def _run(self, texts: list[str], options: SummarizationOptions, writing: Writing, progress: Progress) -> list[Any]:
        if options.on_long != "window":
            return super()._run(texts, options, writing, progress)
        num_special, limit = RowTemplate(self._fast).num_special, self._limit(options)
        results: list[Any] = [None] * len(texts)
        short, rows = [], []
        for index, (prefix, ids) in enumerate(self._tokens(texts, options.prefix)):
            capacity = limit - num_special - len(prefix)
            if len(ids) <= capacity:
                short.append(index)
                rows.append(self._wrap(prefix + ids))
            else:
                plan = _make_plan(prefix, capacity, options.stride, _budget(writing))
                written = self._summarize(ids, plan, writing, progress)
                results[index] = [self._record_parts(parts, options) for parts in written]
        for index, sequences in zip(short, self._generate(rows, writing, progress), strict=True):
            results[index] = [self._record(sequence, options) for sequence in sequences]
        return results

    def _summarize(self, ids: list[int], plan: _Plan, writing: Writing, progress: Progress) -> list[list[list[int]]]:
        """Ids of each part of the summaries of a text, as many summaries as `num_return_sequences` says."""
        if len(ids) <= plan.capacity:
            return [[one] for one in self._generate([self._wrap(plan.prefix + ids)], writing, progress)[0]]
        windows = plan_windows(len(ids), plan.capacity, plan.stride)
        rows = [self._wrap(plan.prefix + ids[start:stop]) for start, stop in windows]
        parts = [
            [token for token in sequences[0] if token not in self._special]
            for sequences in self._generate(rows, _writing_of_parts(writing, plan.share), progress)
        ]
        if sum(map(len, parts)) <= plan.budget and int(writing.get("num_return_sequences") or 1) == 1:
            return [parts]
        return self._summarize(self._as_text(parts, len(ids) - 1), plan, writing, progress)

    def _as_text(self, parts: list[list[int]], most: int) -> list[int]:
        """Summaries as the tokens of one text: read again, or as they were written if that gives too many."""
        [read] = tokenize(self._fast, [self._joined(parts, WritingOptions())], with_offsets=False)
        together = [token for part in parts for token in part]
        is_alike = 0 < len(read.ids) <= min(most, len(together) + len(parts))  # a blank more for each part
        return read.ids.tolist() if is_alike else together

    def _joined(self, parts: Sequence[list[int]], options: WritingOptions) -> str:
        return " ".join(self._decode(part, options).strip() for part in parts)

    def _record_parts(self, parts: list[list[int]], options: WritingOptions) -> dict[str, Any]:
        if len(parts) == 1 or options.return_tensors:
            return self._record([token for part in parts for token in part], options)
        return {f"{self.key}_text": self._joined(parts, options)}


def _make_plan(prefix: list[int], capacity: int, stride: int | None, budget: int) -> _Plan:
    check_windows(capacity, 0)
    stride = capacity // 8 if stride is None else stride
    if not 0 <= stride <= capacity - 2:
        raise InputError(
            f"stride must leave at least two new tokens to a window of {capacity}. Received: stride={stride}"
        )
    return _Plan(prefix, capacity, stride, budget)


def _budget(writing: Writing) -> int:
    """Most tokens of a summary, without the decoder's start token."""
    greatest = writing.greatest(1)
    if greatest is None:
        raise InputError("Summaries of long texts need max_new_tokens or max_length. Received: neither")
    return greatest - 1


def _writing_of_parts(writing: Writing, share: int) -> Writing:
    """How the summary of one window is written, of at most `share` tokens."""
    least = {name: min(int(writing.get(name)), share) for name in LEAST if writing.get(name) is not None}
    return writing.updated(**least, max_new_tokens=share, num_return_sequences=1)
