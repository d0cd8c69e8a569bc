"""What changes the scores of the next token, for the arrays of any framework; which rules run is in `rules.py`.

Pure functions. Axes: R rows, L room for ids, S source tokens, V vocabulary. Ids (R, L) are there from column `first` to
column `length`; in a program of JAX both are traced, so that it serves many lengths.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from longspan.generation.rules import Ids, Rules
from longspan.generation.scores import SAMPLING, Arrays, encouraged, penalised


@dataclass(frozen=True)
class LoopArrays(Arrays):
    """The functions that rules and loops over tokens need as well.

    Attributes:
        read: (values (..., N), start, number) -> as many columns from `start` on.
        write: (values (..., N), start, columns) -> the values with these columns from `start` on.
        present: (ids (R, N), there (R, N), V) -> which ids occur in each row, boolean (R, V).
        top: (values (R, V), number) -> the largest, falling, and their places.
        draw: (key, step, log-probabilities (R, V)) -> one id of each row.
        gumbel: (key, step, shape) -> Gumbel noise.
        loop: (condition, body, state) -> the state when the condition no longer holds.
        number: An integer as a number to calculate with.
    """

    read: Callable[[Any, Any, int], Any]
    write: Callable[[Any, Any, Any], Any]
    present: Callable[[Any, Any, int], Any]
    top: Callable[[Any, int], tuple[Any, Any]]
    draw: Callable[[Any, Any, Any], Any]
    gumbel: Callable[[Any, Any, Any], Any]
    loop: Callable[[Any, Any, Any], Any]
    number: Callable[[Any], Any]


class Text(NamedTuple):
    """Ids so far.

    Attributes:
        ids: (R, L).
        first: Column of the first id.
        length: Column behind the last id.
        prompt: Number of ids of the prompt.
        least: Number of ids of a row at least.
        greatest: Number of ids of a row at most.
        source: Ids of the source, (B, S), each of which has R / B rows; None without need.
        source_mask: Which of them are there, (B, S).
    """

    ids: Any
    first: Any
    length: Any
    prompt: Any
    least: Any
    greatest: Any
    source: Any
    source_mask: Any

    @property
    def count(self) -> Any:
        """Number of ids so far."""
        return self.length - self.first

    def is_there(self, arrays: LoopArrays) -> Any:
        """Columns that hold an id, (1, L)."""
        column = arrays.xp.arange(self.ids.shape[1])[None]
        return (column >= self.first) & (column < self.length)

    def last(self, arrays: LoopArrays, number: int) -> Any:
        """The last ids, (R, number)."""
        return arrays.read(self.ids, self.length - number, number)

    def source_of_rows(self, arrays: LoopArrays, rows: int) -> tuple[Any, Any]:
        """Ids of the source of each row, (R, S), and which of them are there."""
        assert self.source is not None
        assert self.source_mask is not None
        times = rows // self.source.shape[0]
        return arrays.xp.repeat(self.source, times, axis=0), arrays.xp.repeat(self.source_mask, times, axis=0)


def apply_rules(arrays: LoopArrays, rules: Rules, text: Text, scores: Any) -> Any:
    """New scores (R, V), in the order of the reference."""
    for name, value in rules.plain:
        scores = _PLAIN[name](arrays, rules, text, scores, value)
    for name, value in rules.sampling:
        scores = SAMPLING[name](arrays, scores, value, rules.keep)
    return arrays.log_softmax(scores) if rules.normalises else scores


def _bias(arrays: LoopArrays, rules: Rules, text: Text, scores: Any, biases: tuple[tuple[Ids, float], ...]) -> Any:
    for ids, bias in biases:
        scores = _add_bias(arrays, scores, text, ids, bias)
    return scores


def _encourage_source(arrays: LoopArrays, rules: Rules, text: Text, scores: Any, penalty: float) -> Any:
    source, mask = text.source_of_rows(arrays, scores.shape[0])
    return _penalised(arrays, scores, arrays.present(source, mask, scores.shape[1]), 1.0 / penalty)


def _discourage_repetition(arrays: LoopArrays, rules: Rules, text: Text, scores: Any, penalty: float) -> Any:
    seen = arrays.present(text.ids, _whole(arrays, text.is_there(arrays), text.ids), scores.shape[1])
    return _penalised(arrays, scores, seen, penalty)


def _no_repeated_ngram(arrays: LoopArrays, rules: Rules, text: Text, scores: Any, size: int) -> Any:
    return _without_continuations(arrays, scores, text, text.ids, text.is_there(arrays), size)


def _no_ngram_of_source(arrays: LoopArrays, rules: Rules, text: Text, scores: Any, size: int) -> Any:
    return _without_continuations(arrays, scores, text, *text.source_of_rows(arrays, scores.shape[0]), size)


def _least_length(arrays: LoopArrays, rules: Rules, text: Text, scores: Any, is_on: bool) -> Any:
    return arrays.xp.where(text.count < text.least, _without(arrays, scores, rules.eos), scores)


def _force_begin(arrays: LoopArrays, rules: Rules, text: Text, scores: Any, token: int) -> Any:
    return arrays.xp.where(text.count == 1, _only(arrays, scores, (token,)), scores)


def _force_end(arrays: LoopArrays, rules: Rules, text: Text, scores: Any, ids: Ids) -> Any:
    return arrays.xp.where(text.count == text.greatest - 1, _only(arrays, scores, ids), scores)


def _remove_invalid(arrays: LoopArrays, rules: Rules, text: Text, scores: Any, is_on: bool) -> Any:
    limits = arrays.xp.finfo(scores.dtype)
    return arrays.xp.nan_to_num(scores, nan=0.0, posinf=float(limits.max), neginf=float(limits.min))


def _decay(arrays: LoopArrays, rules: Rules, text: Text, scores: Any, decay: tuple[float, float]) -> Any:
    start, factor = decay
    beyond = arrays.xp.maximum(text.count - (text.prompt + start), 0)
    grown = encouraged(arrays, scores, factor**beyond).astype(scores.dtype)
    return arrays.xp.where(_among(rules.eos, scores), grown, scores)


def _suppress_at_begin(arrays: LoopArrays, rules: Rules, text: Text, scores: Any, ids: Ids) -> Any:
    begins = text.count == text.prompt + ((text.prompt == 1) & rules.forces_begin)
    return arrays.xp.where(begins, _without(arrays, scores, ids), scores)


def _among(ids: Ids, scores: Any) -> Any:
    """Which columns of scores (R, V) belong to these ids, boolean (V,)."""
    return np.isin(np.arange(scores.shape[1]), np.array(ids, np.int64))


def _without(arrays: LoopArrays, scores: Any, ids: Ids) -> Any:
    return arrays.xp.where(_among(ids, scores), -math.inf, scores)


def _only(arrays: LoopArrays, scores: Any, ids: Ids) -> Any:
    return arrays.xp.where(_among(ids, scores), arrays.xp.zeros_like(scores), -math.inf)


def _whole(arrays: LoopArrays, there: Any, ids: Any) -> Any:
    """Marks (1 or R, N) for each of the ids (R, N)."""
    return arrays.xp.broadcast_to(there, ids.shape)


def _penalised(arrays: LoopArrays, scores: Any, seen: Any, penalty: float) -> Any:
    return arrays.xp.where(seen, penalised(arrays, scores, penalty), scores)


def _without_continuations(arrays: LoopArrays, scores: Any, text: Text, ids: Any, there: Any, size: int) -> Any:
    """Forbid what followed the last `size` - 1 ids of a row wherever they occur in `ids` (R, L)."""
    places = ids.shape[1] - size + 1
    if places < 1 or text.ids.shape[1] < size:
        return scores
    there = _whole(arrays, there, ids)
    grams = [(ids[:, k : k + places], there[:, k : k + places]) for k in range(size)]
    matches = grams[0][1] & grams[-1][1] & (text.count >= size - 1)
    if size > 1:
        last = text.last(arrays, size - 1)
        for k in range(size - 1):
            matches = matches & (grams[k][0] == last[:, k : k + 1])
    return arrays.xp.where(arrays.present(grams[-1][0], matches, scores.shape[1]), -math.inf, scores)


def _add_bias(arrays: LoopArrays, scores: Any, text: Text, ids: Ids, bias: float) -> Any:
    """Add to the score of the last id of a sequence where the others precede it."""
    before = len(ids) - 1
    if before >= text.ids.shape[1]:
        return scores
    place = _among(ids[-1:], scores)[None]
    if before:
        matches = (text.last(arrays, before) == np.array(ids[:-1])).all(axis=1) & (text.count >= before)
        place = place & matches[:, None]
    return arrays.xp.where(place, scores + bias, scores)


#: name of a rule -> (arrays, rules, text, scores, value) -> scores
_PLAIN: dict[str, Callable[[LoopArrays, Rules, Text, Any, Any], Any]] = {
    "sequence_bias": _bias,
    "encoder_repetition_penalty": _encourage_source,
    "repetition_penalty": _discourage_repetition,
    "no_repeat_ngram_size": _no_repeated_ngram,
    "encoder_no_repeat_ngram_size": _no_ngram_of_source,
    "bad_words_ids": lambda arrays, rules, text, scores, words: _bias(
        arrays, rules, text, scores, tuple((w, -math.inf) for w in words)
    ),
    "min_length": _least_length,
    "forced_bos_token_id": _force_begin,
    "forced_eos_token_id": _force_end,
    "remove_invalid_values": _remove_invalid,
    "exponential_decay_length_penalty": _decay,
    "suppress_tokens": lambda arrays, rules, text, scores, ids: _without(arrays, scores, ids),
    "begin_suppress_tokens": _suppress_at_begin,
}
