"""From what a model says of windows to what is so of the document: scores, tokens' values, spans that answer.

Axes: W windows, n tokens of a window, L longest answer in tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from longspan.documents.tokens import Tokens
from longspan.documents.windows import context_borders, owned_ranges

Floats = npt.NDArray[np.float32]
WindowPooling = Literal["mean", "max", "weighted"]


def softmax(logits: Floats) -> Floats:
    """`exp(x) / sum(exp(x))` over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return result


def sigmoid(logits: Floats) -> Floats:
    """`1 / (1 + exp(-x))`, which no x can overflow."""
    result: Floats = np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * logits))
    return result


def pool_windows(scores: Floats, windows: list[tuple[int, int]], how: WindowPooling) -> Floats:
    """Scores of a document from those of its windows.

    Args:
        scores: (W, N) scores of each window.
        windows: Tokens `(start, stop)` of each window.
        how: `"mean"`, `"max"`, or `"weighted"`: the mean weighted by tokens.

    Returns:
        (N,) scores.
    """
    if how == "max":
        return np.asarray(scores.max(axis=0))
    weights = np.array([max(1, stop - start) if how == "weighted" else 1 for start, stop in windows], np.float32)
    return np.asarray((weights / weights.sum()) @ scores, np.float32)


def merge_windows(values: Sequence[Floats], windows: list[tuple[int, int]]) -> Floats:
    """Values of each token of a document, from the window that shows it with the most context.

    Args:
        values: For each window (n, ...) values of its n tokens.
        windows: Tokens `(start, stop)` of each window.

    Returns:
        (T, ...) values.
    """
    if len(values) == 1:
        return values[0]
    ranges = owned_ranges(windows)
    owned = [
        value[first - start : last - start]
        for value, (start, _), (first, last) in zip(values, windows, ranges, strict=True)
    ]
    return np.concatenate(owned)


@dataclass(frozen=True, eq=False)
class SpanLogits:
    """Start and end logits of one window.

    Attributes:
        start: (n,) logit of each token to begin the answer.
        end: (n,) logit of each token to end it.
        null: The logits of the class token, which say that there is no answer; None if the model has none.
    """

    start: npt.NDArray[np.float64]
    end: npt.NDArray[np.float64]
    null: tuple[float, float] | None


@dataclass(frozen=True)
class Span:
    """A candidate: tokens `first` to `last` (included) of the document, and its score."""

    first: int
    last: int
    score: float


def best_spans(
    logits: Sequence[SpanLogits], windows: Sequence[tuple[int, int]], *, count: int, max_length: int
) -> tuple[list[Span], float]:
    """The best spans of a document read in windows.

    `p(s, e) = softmax(start)_s · softmax(end)_e`, where both normalisations run over all tokens of the document, each
    with its greatest logit in any window, and the class token with its logits in the window that is least sure that
    there is no answer. With one window that is the reference's score. Each span is looked at in one window only, the
    one that shows it with the most context.

    Args:
        logits: Logits of each window.
        windows: Tokens `(start, stop)` of each window.
        count: Most spans returned.
        max_length: Most tokens of a span.

    Returns:
        The spans, best first, and the score of there being no answer.
    """
    null = min((window.null for window in logits if window.null is not None), key=sum, default=None)
    scales = [_log_sum([_greatest(logits, windows, side), [] if null is None else [null[index]]])
              for index, side in enumerate(("start", "end"))]  # fmt: skip
    borders = context_borders(windows)
    spans: list[Span] = []
    for index, (window, (offset, _)) in enumerate(zip(logits, windows, strict=True)):
        starts, ends = np.exp(window.start - scales[0]), np.exp(window.end - scales[1])
        table = _span_table(starts, ends, max_length)
        centers = 2 * offset + 2 * np.arange(len(starts))[:, None] + np.arange(table.shape[1])
        table = np.where((centers > borders[index]) & (centers <= borders[index + 1]), table, -1.0)
        spans += _best(table, offset, count)
    spans.sort(key=lambda span: -span.score)
    no_answer = 0.0 if null is None else float(np.exp(null[0] - scales[0]) * np.exp(null[1] - scales[1]))
    return spans[:count], no_answer


def _greatest(logits: Sequence[SpanLogits], windows: Sequence[tuple[int, int]], side: str) -> npt.NDArray[np.float64]:
    """Greatest logit of each token of the document in any window."""
    greatest = np.full(windows[-1][1], -np.inf)
    for window, (start, stop) in zip(logits, windows, strict=True):
        np.maximum(greatest[start:stop], getattr(window, side), out=greatest[start:stop])
    return greatest


def _log_sum(parts: Sequence[npt.ArrayLike]) -> float:
    values = np.concatenate([np.asarray(part, np.float64) for part in parts])
    if not len(values):
        return 0.0
    top = values.max()
    return float(top + np.log(np.exp(values - top).sum()))


def _span_table(
    starts: npt.NDArray[np.float64], ends: npt.NDArray[np.float64], max_length: int
) -> npt.NDArray[np.float64]:
    """(n, L) score of the span of l + 1 tokens from each token; -1 beyond the window."""
    num_tokens = len(starts)
    width = min(max_length, num_tokens)
    last = np.arange(num_tokens)[:, None] + np.arange(width)
    inside = last < num_tokens
    return np.where(inside, starts[:, None] * ends[np.where(inside, last, 0)], -1.0)


def _best(table: npt.NDArray[np.float64], offset: int, count: int) -> list[Span]:
    flat = table.ravel()
    chosen = np.sort(np.argpartition(-flat, count)[:count]) if len(flat) > count else np.arange(len(flat))
    spans = []
    for place in chosen.tolist():
        first, length = divmod(place, table.shape[1])
        if flat[place] >= 0:
            spans.append(Span(offset + first, offset + first + length, float(flat[place])))
    return spans


def characters_of(span: Span, tokens: Tokens, *, align_to_words: bool) -> tuple[int, int]:
    """Characters `(start, end)` of a span; with `align_to_words` those of the words that it touches."""
    first, last = span.first, span.last
    words = tokens.words
    if align_to_words and words[first] >= 0 and words[last] >= 0:
        while first > 0 and words[first - 1] == words[first]:
            first -= 1
        while last + 1 < len(words) and words[last + 1] == words[last]:
            last += 1
    return int(tokens.starts[first]), int(tokens.ends[last])
