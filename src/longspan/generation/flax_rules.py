"""What changes the scores of the next token, in JAX: pure functions; which of them run is in `rules.py`.

Axes: R rows, L room for ids, S source tokens, V vocabulary. Ids (R, L) are there from column `first` to column
`length`; both may be traced, so that one program serves many lengths.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from longspan.generation.rules import Ids, Rules
from longspan.generation.scores import SAMPLING, Arrays, encouraged, penalised


def _unsort(marks: Array, order: Array) -> Array:
    return jnp.zeros_like(marks).at[jnp.arange(marks.shape[0])[:, None], order].set(marks)


ARRAYS = Arrays(
    xp=jnp,
    softmax=jax.nn.softmax,
    log_softmax=jax.nn.log_softmax,
    take=lambda values, index: jnp.take_along_axis(values, index, axis=1),
    unsort=_unsort,
    largest=lambda values, number: jax.lax.top_k(values, number)[0],
    places=lambda number, where: jnp.arange(number),
    smallest=lambda values: float(jnp.finfo(values.dtype).min),
)


@struct.dataclass
class Text:
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

    ids: Array
    first: Array
    length: Array
    prompt: Array
    least: Array
    greatest: Array
    source: Array | None
    source_mask: Array | None

    @property
    def count(self) -> Array:
        """Number of ids so far."""
        return self.length - self.first

    @property
    def is_there(self) -> Array:
        """Columns that hold an id, (1, L)."""
        column = jnp.arange(self.ids.shape[1])[None]
        return (column >= self.first) & (column < self.length)

    def last(self, number: int) -> Array:
        """The last ids, (R, number)."""
        return jax.lax.dynamic_slice_in_dim(self.ids, self.length - number, number, axis=1)

    def source_of_rows(self, rows: int) -> tuple[Array, Array]:
        """Ids of the source of each row, (R, S), and which of them are there."""
        assert self.source is not None
        assert self.source_mask is not None
        times = rows // self.source.shape[0]
        return jnp.repeat(self.source, times, axis=0), jnp.repeat(self.source_mask, times, axis=0)


def apply_rules(rules: Rules, text: Text, scores: Array) -> Array:
    """New scores (R, V), in the order of the reference."""
    for name, value in rules.plain:
        scores = _PLAIN[name](rules, text, scores, value)
    for name, value in rules.sampling:
        scores = SAMPLING[name](ARRAYS, scores, value, rules.keep)
    return jax.nn.log_softmax(scores, axis=-1) if rules.normalises else scores


def _bias(rules: Rules, text: Text, scores: Array, biases: tuple[tuple[Ids, float], ...]) -> Array:
    for ids, bias in biases:
        scores = _add_bias(scores, text, ids, bias)
    return scores


def _encourage_source(rules: Rules, text: Text, scores: Array, penalty: float) -> Array:
    source, mask = text.source_of_rows(scores.shape[0])
    return _penalised(scores, _present(source, mask, scores.shape[1]), 1.0 / penalty)


def _discourage_repetition(rules: Rules, text: Text, scores: Array, penalty: float) -> Array:
    return _penalised(scores, _present(text.ids, text.is_there, scores.shape[1]), penalty)


def _no_repeated_ngram(rules: Rules, text: Text, scores: Array, size: int) -> Array:
    return _without_continuations(scores, text, text.ids, text.is_there, size)


def _no_ngram_of_source(rules: Rules, text: Text, scores: Array, size: int) -> Array:
    return _without_continuations(scores, text, *text.source_of_rows(scores.shape[0]), size)


def _least_length(rules: Rules, text: Text, scores: Array, is_on: bool) -> Array:
    return jnp.where(text.count < text.least, _without(scores, rules.eos), scores)


def _force_begin(rules: Rules, text: Text, scores: Array, token: int) -> Array:
    return jnp.where(text.count == 1, _only(scores, (token,)), scores)


def _force_end(rules: Rules, text: Text, scores: Array, ids: Ids) -> Array:
    return jnp.where(text.count == text.greatest - 1, _only(scores, ids), scores)


def _remove_invalid(rules: Rules, text: Text, scores: Array, is_on: bool) -> Array:
    limits = jnp.finfo(scores.dtype)
    return jnp.nan_to_num(scores, nan=0.0, posinf=float(limits.max), neginf=float(limits.min))


def _decay(rules: Rules, text: Text, scores: Array, decay: tuple[float, float]) -> Array:
    start, factor = decay
    beyond = jnp.maximum(text.count - (text.prompt + start), 0)
    ends = jnp.array(rules.eos)
    return scores.at[:, ends].set(encouraged(ARRAYS, scores[:, ends], factor**beyond))


def _suppress_at_begin(rules: Rules, text: Text, scores: Array, ids: Ids) -> Array:
    begins = text.count == text.prompt + ((text.prompt == 1) & rules.forces_begin)
    return jnp.where(begins, _without(scores, ids), scores)


def _without(scores: Array, ids: Ids) -> Array:
    return scores.at[:, jnp.array(ids)].set(-jnp.inf)


def _only(scores: Array, ids: Ids) -> Array:
    return jnp.full_like(scores, -jnp.inf).at[:, jnp.array(ids)].set(0.0)


def _present(ids: Array, there: Array, vocabulary: int) -> Array:
    """Which ids occur in each row, boolean (R, V)."""
    rows = jnp.arange(ids.shape[0])[:, None]
    none = jnp.zeros((ids.shape[0], vocabulary), jnp.bool_)
    return none.at[rows, ids].max(jnp.broadcast_to(there, ids.shape))


def _penalised(scores: Array, seen: Array, penalty: float) -> Array:
    return jnp.where(seen, penalised(ARRAYS, scores, penalty), scores)


def _without_continuations(scores: Array, text: Text, ids: Array, there: Array, size: int) -> Array:
    """Forbid what followed the last `size` - 1 ids of a row wherever they occur in `ids` (R, L)."""
    places = ids.shape[1] - size + 1
    if places < 1 or text.ids.shape[1] < size:
        return scores
    there = jnp.broadcast_to(there, ids.shape)
    grams = [(ids[:, k : k + places], there[:, k : k + places]) for k in range(size)]
    matches = grams[0][1] & grams[-1][1] & (text.count >= size - 1)
    if size > 1:
        last = text.last(size - 1)
        for k in range(size - 1):
            matches &= grams[k][0] == last[:, k : k + 1]
    return jnp.where(_present(grams[-1][0], matches, scores.shape[1]), -jnp.inf, scores)


def _add_bias(scores: Array, text: Text, ids: Ids, bias: float) -> Array:
    """Add to the score of the last id of a sequence where the others precede it."""
    before = len(ids) - 1
    if before >= text.ids.shape[1]:
        return scores
    matches = jnp.ones(scores.shape[0], jnp.bool_)
    if before:
        matches = (text.last(before) == jnp.array(ids[:-1])).all(axis=1) & (text.count >= before)
    return scores.at[:, ids[-1]].add(jnp.where(matches, bias, 0.0))


#: name of a rule -> (rules, text, scores, value) -> scores
_PLAIN: dict[str, Callable[[Rules, Text, Array, Any], Array]] = {
    "sequence_bias": _bias,
    "encoder_repetition_penalty": _encourage_source,
    "repetition_penalty": _discourage_repetition,
    "no_repeat_ngram_size": _no_repeated_ngram,
    "encoder_no_repeat_ngram_size": _no_ngram_of_source,
    "bad_words_ids": lambda rules, text, scores, words: _bias(
        rules, text, scores, tuple((w, -math.inf) for w in words)
    ),
    "min_length": _least_length,
    "forced_bos_token_id": _force_begin,
    "forced_eos_token_id": _force_end,
    "remove_invalid_values": _remove_invalid,
    "exponential_decay_length_penalty": _decay,
    "suppress_tokens": lambda rules, text, scores, ids: _without(scores, ids),
    "begin_suppress_tokens": _suppress_at_begin,
}
