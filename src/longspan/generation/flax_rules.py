"""What changes the scores of the next token, in JAX: pure functions with static settings.

Axes: R rows, L room for ids, S source tokens, V vocabulary. Ids (R, L) are there from column `first` to column
`length`; both may be traced, so that one program serves many lengths.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from longspan.generation.config import GenerationConfig

Ids = tuple[int, ...]
#: settings that None switches off, with the number that does so
_OFF: dict[str, float] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
}


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


@dataclass(frozen=True)
class Rules:
    """The settings of `GenerationConfig` that concern scores, hashable; they are part of the program.

    Attributes:
        biases: Sequences of ids with the bias of the last one where the others precede it.
        keep: Ids that sampling leaves at least.
    """

    eos: Ids
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    epsilon_cutoff: float
    eta_cutoff: float
    repetition_penalty: float
    encoder_repetition_penalty: float
    no_repeat_ngram_size: int
    encoder_no_repeat_ngram_size: int
    renormalize_logits: bool
    remove_invalid_values: bool
    forced_bos_token_id: int | None
    forced_eos: Ids
    suppress_tokens: Ids
    begin_suppress_tokens: Ids
    exponential_decay_length_penalty: tuple[float, float] | None
    biases: tuple[tuple[Ids, float], ...]
    keep: int

    @classmethod
    def from_config(cls, config: GenerationConfig) -> Rules:
        """Take the settings that concern scores."""
        eos, forced = tuple(config.eos_token_ids), config.forced_eos_token_id
        bias = config.sequence_bias or []
        pairs = list(bias.items()) if isinstance(bias, dict) else bias
        words = [word for word in config.bad_words_ids or [] if tuple(word) not in {(token,) for token in eos}]
        decay = config.exponential_decay_length_penalty
        special: dict[str, Any] = {
            "eos": eos,
            "forced_eos": () if forced is None else tuple(forced) if isinstance(forced, list) else (forced,),
            "suppress_tokens": tuple(config.suppress_tokens or ()),
            "begin_suppress_tokens": tuple(config.begin_suppress_tokens or ()),
            "exponential_decay_length_penalty": None if decay is None else (decay[0], decay[1]),
            "biases": (
                *((tuple(ids), float(value)) for ids, value in pairs),
                *((tuple(word), -math.inf) for word in words),
            ),
            "keep": 1 if config.num_beams == 1 else max(2, len(eos) + 1),
        }
        plain = {field.name: getattr(config, field.name) for field in fields(cls) if field.name not in special}
        for name, off in _OFF.items():
            plain[name] = off if plain[name] is None else plain[name]
        return cls(**plain, **special)

    @property
    def reads_source(self) -> bool:
        """A rule looks at the ids of the source."""
        return self.encoder_repetition_penalty != 1.0 or bool(self.encoder_no_repeat_ngram_size)

    def __call__(self, text: Text, scores: Array) -> Array:
        """New scores (R, V), in the order of the reference."""
        for ids, bias in self.biases:
            scores = _add_bias(scores, text, ids, bias)
        scores = self._penalise_repetition(text, scores)
        scores = self._shape_length(text, scores)
        if self.suppress_tokens:
            scores = _without(scores, self.suppress_tokens)
        if self.begin_suppress_tokens:
            begins = text.count == text.prompt + ((text.prompt == 1) & (self.forced_bos_token_id is not None))
            scores = jnp.where(begins, _without(scores, self.begin_suppress_tokens), scores)
        if self.do_sample:
            for rule in self._sampling():
                scores = rule(scores)
        return jax.nn.log_softmax(scores, axis=-1) if self.renormalize_logits else scores

    def _penalise_repetition(self, text: Text, scores: Array) -> Array:
        rows = scores.shape[0]
        source, source_mask = text.source, text.source_mask
        if source is not None and source_mask is not None:
            times = rows // source.shape[0]
            source, source_mask = jnp.repeat(source, times, axis=0), jnp.repeat(source_mask, times, axis=0)
        if self.encoder_repetition_penalty != 1.0:
            assert source is not None
            assert source_mask is not None
            seen = _present(source, source_mask, scores.shape[1])
            scores = _penalised(scores, seen, 1.0 / self.encoder_repetition_penalty)
        if self.repetition_penalty != 1.0:
            seen = _present(text.ids, text.is_there, scores.shape[1])
            scores = _penalised(scores, seen, self.repetition_penalty)
        if self.no_repeat_ngram_size:
            scores = _without_continuations(scores, text, text.ids, text.is_there, self.no_repeat_ngram_size)
        if self.encoder_no_repeat_ngram_size:
            assert source is not None
            assert source_mask is not None
            scores = _without_continuations(scores, text, source, source_mask, self.encoder_no_repeat_ngram_size)
        return scores

    def _shape_length(self, text: Text, scores: Array) -> Array:
        if self.eos:
            scores = jnp.where(text.count < text.least, _without(scores, self.eos), scores)
        if self.forced_bos_token_id is not None:
            scores = jnp.where(text.count == 1, _only(scores, (self.forced_bos_token_id,)), scores)
        if self.forced_eos:
            scores = jnp.where(text.count == text.greatest - 1, _only(scores, self.forced_eos), scores)
        if self.remove_invalid_values:
            limits = jnp.finfo(scores.dtype)
            scores = jnp.nan_to_num(scores, nan=0.0, posinf=float(limits.max), neginf=float(limits.min))
        if self.exponential_decay_length_penalty is not None and self.eos:
            start, factor = self.exponential_decay_length_penalty
            beyond = jnp.maximum(text.count - (text.prompt + start), 0)
            chosen = scores[:, jnp.array(self.eos)]
            scores = scores.at[:, jnp.array(self.eos)].set(chosen + jnp.abs(chosen) * (factor**beyond - 1.0))
        return scores

    def _sampling(self) -> list[Callable[[Array], Array]]:
        """The rules that shape sampling."""
        rules: list[Callable[[Array], Array]] = []
        if self.temperature != 1.0:
            rules.append(lambda scores: scores / self.temperature)
        if self.top_k:
            rules.append(self._keep_top_k)
        if self.top_p < 1.0:
            rules.append(self._keep_top_p)
        if self.min_p > 0.0:
            rules.append(self._keep_min_p)
        if self.typical_p < 1.0:
            rules.append(self._keep_typical)
        if self.epsilon_cutoff:
            rules.append(lambda scores: self._drop(scores, jax.nn.softmax(scores) < self.epsilon_cutoff))
        if self.eta_cutoff:
            rules.append(self._keep_eta)
        return rules

    def _drop(self, scores: Array, drop: Array) -> Array:
        """Forbid what `drop` (R, V) marks, but not the likeliest ids."""
        likeliest = jax.lax.top_k(scores, min(self.keep, scores.shape[1]))[0][:, -1:]
        return jnp.where(drop & (scores < likeliest), -jnp.inf, scores)

    def _keep_top_k(self, scores: Array) -> Array:
        """The k likeliest ids (Fan et al., 2018)."""
        number = min(max(self.top_k, self.keep), scores.shape[1])
        return jnp.where(scores < jax.lax.top_k(scores, number)[0][:, -1:], -jnp.inf, scores)

    def _keep_top_p(self, scores: Array) -> Array:
        """The likeliest ids that together reach a probability (Holtzman et al., 2019)."""
        order = jnp.argsort(scores, axis=-1)
        ascending = jnp.take_along_axis(scores, order, axis=-1)
        unlikely = jax.nn.softmax(ascending, axis=-1).cumsum(axis=-1) <= 1.0 - self.top_p
        unlikely = unlikely.at[:, -self.keep :].set(False)
        return _mask_in_order(scores, order, unlikely)

    def _keep_min_p(self, scores: Array) -> Array:
        """Ids that are likely enough relative to the likeliest (Nguyen et al., 2024)."""
        probabilities = jax.nn.softmax(scores, axis=-1)
        return self._drop(scores, probabilities < self.min_p * probabilities.max(axis=-1, keepdims=True))

    def _keep_typical(self, scores: Array) -> Array:
        """The ids whose surprise is nearest the expected one and that reach a probability (Meister et al., 2022)."""
        surprise = -jax.nn.log_softmax(scores, axis=-1)
        entropy = jnp.nansum(surprise * jnp.exp(-surprise), axis=-1, keepdims=True)
        distance = jnp.abs(surprise - entropy)
        order = jnp.argsort(distance, axis=-1)
        distance = jnp.take_along_axis(distance, order, axis=-1)
        reached = jax.nn.softmax(jnp.take_along_axis(scores, order, axis=-1), axis=-1).cumsum(axis=-1)
        last = jnp.minimum((reached < self.typical_p).sum(axis=1, keepdims=True), scores.shape[1] - 1)
        atypical = distance > jnp.take_along_axis(distance, last, axis=1)
        return _mask_in_order(scores, order, atypical.at[:, : self.keep].set(False))

    def _keep_eta(self, scores: Array) -> Array:
        """Ids of at least the probability min(ε, √ε · exp(-entropy)) (Hewitt et al., 2022)."""
        epsilon = self.eta_cutoff
        logarithms = jax.nn.log_softmax(scores, axis=-1)
        probabilities = jnp.exp(logarithms)
        smallest = float(jnp.finfo(scores.dtype).min)
        entropy = -(jnp.maximum(logarithms, smallest) * probabilities).sum(axis=-1, keepdims=True)
        bound = jnp.minimum(math.sqrt(epsilon) * jnp.exp(-entropy), epsilon)
        return self._drop(scores, probabilities < bound)


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
