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
        scores = _SAMPLING[name](scores, value, rules.keep)
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
    chosen = scores[:, ends]
    return scores.at[:, ends].set(chosen + jnp.abs(chosen) * (factor**beyond - 1.0))


def _suppress_at_begin(rules: Rules, text: Text, scores: Array, ids: Ids) -> Array:
    begins = text.count == text.prompt + ((text.prompt == 1) & rules.forces_begin)
    return jnp.where(begins, _without(scores, ids), scores)


def _drop(scores: Array, drop: Array, keep: int) -> Array:
    """Forbid what `drop` (R, V) marks, but not the likeliest ids."""
    likeliest = jax.lax.top_k(scores, min(keep, scores.shape[1]))[0][:, -1:]
    return jnp.where(drop & (scores < likeliest), -jnp.inf, scores)


def _keep_top_k(scores: Array, number: int, keep: int) -> Array:
    """The k likeliest ids (Fan et al., 2018)."""
    number = min(max(number, keep), scores.shape[1])
    return jnp.where(scores < jax.lax.top_k(scores, number)[0][:, -1:], -jnp.inf, scores)


def _keep_top_p(scores: Array, probability: float, keep: int) -> Array:
    """The likeliest ids that together reach a probability (Holtzman et al., 2019)."""
    order = jnp.argsort(scores, axis=-1)
    ascending = jnp.take_along_axis(scores, order, axis=-1)
    unlikely = jax.nn.softmax(ascending, axis=-1).cumsum(axis=-1) <= 1.0 - probability
    unlikely = unlikely.at[:, -keep:].set(False)
    return _mask_in_order(scores, order, unlikely)


def _keep_min_p(scores: Array, share: float, keep: int) -> Array:
    """Ids that are likely enough relative to the likeliest (Nguyen et al., 2024)."""
    probabilities = jax.nn.softmax(scores, axis=-1)
    return _drop(scores, probabilities < share * probabilities.max(axis=-1, keepdims=True), keep)


def _keep_typical(scores: Array, probability: float, keep: int) -> Array:
    """The ids whose surprise is nearest the expected one and that reach a probability (Meister et al., 2022)."""
    surprise = -jax.nn.log_softmax(scores, axis=-1)
    entropy = jnp.nansum(surprise * jnp.exp(-surprise), axis=-1, keepdims=True)
    distance = jnp.abs(surprise - entropy)
    order = jnp.argsort(distance, axis=-1)
    distance = jnp.take_along_axis(distance, order, axis=-1)
    reached = jax.nn.softmax(jnp.take_along_axis(scores, order, axis=-1), axis=-1).cumsum(axis=-1)
    last = jnp.minimum((reached < probability).sum(axis=1, keepdims=True), scores.shape[1] - 1)
    atypical = distance > jnp.take_along_axis(distance, last, axis=1)
    return _mask_in_order(scores, order, atypical.at[:, :keep].set(False))


def _keep_eta(scores: Array, epsilon: float, keep: int) -> Array:
    """Ids of at least the probability min(ε, √ε · exp(-entropy)) (Hewitt et al., 2022)."""
    logarithms = jax.nn.log_softmax(scores, axis=-1)
    probabilities = jnp.exp(logarithms)
    smallest = float(jnp.finfo(scores.dtype).min)
    entropy = -(jnp.maximum(logarithms, smallest) * probabilities).sum(axis=-1, keepdims=True)
    bound = jnp.minimum(math.sqrt(epsilon) * jnp.exp(-entropy), epsilon)
    return _drop(scores, probabilities < bound, keep)


def _without(scores: Array, ids: Ids) -> Array:
    return scores.at[:, jnp.array(ids)].set(-jnp.inf)


def _only(scores: Array, ids: Ids) -> Array:
    return jnp.full_like(scores, -jnp.inf).at[:, jnp.array(ids)].set(0.0)


def _mask_in_order(scores: Array, order: Array, forbidden: Array) -> Array:
    """Forbid the scores that `forbidden` marks after sorting by `order`."""
    rows = jnp.arange(scores.shape[0])[:, None]
    return jnp.where(jnp.zeros_like(forbidden).at[rows, order].set(forbidden), -jnp.inf, scores)


def _present(ids: Array, there: Array, vocabulary: int) -> Array:
    """Which ids occur in each row, boolean (R, V)."""
    rows = jnp.arange(ids.shape[0])[:, None]
    none = jnp.zeros((ids.shape[0], vocabulary), jnp.bool_)
    return none.at[rows, ids].max(jnp.broadcast_to(there, ids.shape))


def _penalised(scores: Array, seen: Array, penalty: float) -> Array:
    """Divide scores by a penalty where positive, multiply where negative (Keskar et al., 2019)."""
    return jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)


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
#: name of a rule of sampling -> (scores, value, ids to keep at least) -> scores
_SAMPLING: dict[str, Callable[[Array, Any, int], Array]] = {
    "temperature": lambda scores, temperature, keep: scores / temperature,
    "top_k": _keep_top_k,
    "top_p": _keep_top_p,
    "min_p": _keep_min_p,
    "typical_p": _keep_typical,
    "epsilon_cutoff": lambda scores, epsilon, keep: _drop(scores, jax.nn.softmax(scores) < epsilon, keep),
    "eta_cutoff": _keep_eta,
}
