"""Greedy search, sampling and beam search as loops inside one program of XLA, and models at work there, in JAX.

Axes: B prompts, K rows or beams of each, R = B·K rows, C candidates, P tokens of a prompt, L room for ids, S source
tokens, V vocabulary.

Every function here is pure. The cache has a fixed size, and the loop's state is updated in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import Array, lax

from longspan.generation.beams import OUT, BeamRules
from longspan.generation.flax_rules import Text, apply_rules
from longspan.generation.rules import Rules
from longspan.nn.flax.cache import empty_cache, for_rows, tokens_and_room

#: (cache, newest tokens (R,), number of tokens before them, rows to go on with (R,) or None) -> logits (R, V), cache
Step = Callable[[Any, Array, Array, Array | None], tuple[Array, Any]]


@dataclass(frozen=True)
class Search:
    """The settings of a search, hashable; they are part of the program.

    Attributes:
        rules: What changes the scores.
        rows: K.
        returned: Rows to return for each prompt.
        beams: Settings of a beam search; `num_beams=1` for none.
        pad: Id that fills rows that ended.
    """

    rules: Rules
    rows: int
    returned: int
    beams: BeamRules
    pad: int

    def run(self, text: Text, logits: Array, cache: Any, step: Step, key: Array) -> tuple[Array, Array, Array]:
        """Generate until all rows have ended.

        Args:
            text: The prompts, each K times.
            logits: Scores that follow them, (R, V) in float32.
            cache: What the model keeps of them.
            step: Runs the model.
            key: Random key.

        Returns:
            Ids (B · returned, L), the column behind the last id of any row, and the final scores of beam search
            (B · returned,), or zeros.
        """
        search = _beam_search if self.beams.num_beams > 1 else _search
        return search(self, text, logits, cache, step, key)

    def is_end(self, tokens: Array) -> Array:
        """True where a token ends its row; same shape."""
        return (
            jnp.isin(tokens, jnp.array(self.rules.eos, tokens.dtype)) if self.rules.eos else jnp.zeros_like(tokens) > 0
        )


# -- greedy search and sampling ------------------------------------------------------------------------------------


def _search(
    search: Search, text: Text, logits: Array, cache: Any, step: Step, key: Array
) -> tuple[Array, Array, Array]:
    rows = text.ids.shape[0]

    def write(text: Text, logits: Array, ended: Array) -> tuple[Text, Array]:
        scores = apply_rules(search.rules, text, logits)
        if search.rules.do_sample:
            tokens = jax.random.categorical(jax.random.fold_in(key, text.count), scores)
        else:
            tokens = scores.argmax(axis=-1)
        tokens = jnp.where(ended, search.pad, tokens).astype(text.ids.dtype)
        ids = lax.dynamic_update_slice_in_dim(text.ids, tokens[:, None], text.length, axis=1)
        return replace(text, ids=ids, length=text.length + 1), ended | search.is_end(tokens)

    def goes_on(state: tuple[Text, Array, Any]) -> Array:
        text, ended, _ = state
        return (text.count < text.greatest) & ~ended.all()

    def advance(state: tuple[Text, Array, Any]) -> tuple[Text, Array, Any]:
        text, ended, cache = state
        logits, cache = step(cache, text.last(1)[:, 0], text.length - 1, None)
        return *write(text, logits, ended), cache

    state = (*write(text, logits, jnp.zeros(rows, jnp.bool_)), cache)
    text, _, _ = lax.while_loop(goes_on, advance, state)
    return text.ids, text.length, jnp.zeros(rows)


# -- beam search ---------------------------------------------------------------------------------------------------


@struct.dataclass
class Beams:
    """K rows of each prompt.

    Attributes:
        ids: (B, K, L).
        scores: (B, K).
        lengths: Column behind the last id, (B, K).
    """

    ids: Array
    scores: Array
    lengths: Array

    def take(self, index: Array) -> Beams:
        """The rows at an index (B, K')."""
        return Beams(
            ids=jnp.take_along_axis(self.ids, index[:, :, None], axis=1),
            scores=jnp.take_along_axis(self.scores, index, axis=1),
            lengths=jnp.take_along_axis(self.lengths, index, axis=1),
        )


@struct.dataclass
class _State:
    """State of the loop of beam search.

    Attributes:
        running: Beams that go on.
        finished: The best that ended.
        is_finished: Which of these exist, (B, K).
        can_improve: Prompts that may gain from going on, (B, 1).
        over: No prompt can.
        length: Column behind the last id of the running beams.
        origin: Row of the step before that each running beam continues, (R,).
        cache: What the model keeps.
    """

    running: Beams
    finished: Beams
    is_finished: Array
    can_improve: Array
    over: Array
    length: Array
    origin: Array
    cache: Any


def _beam_search(
    search: Search, text: Text, logits: Array, cache: Any, step: Step, key: Array
) -> tuple[Array, Array, Array]:
    number = search.beams.num_beams
    batch = text.ids.shape[0] // number
    ids = text.ids.reshape(batch, number, -1)
    lengths = jnp.broadcast_to(text.length, (batch, number))
    # all beams of a prompt are alike at first: only one may be continued
    scores = jnp.zeros((batch, number)).at[:, 1:].set(OUT)
    none = jnp.zeros((batch, number), jnp.bool_)
    state = _State(
        running=Beams(ids, scores, lengths),
        finished=Beams(ids, jnp.full_like(scores, OUT), lengths),
        is_finished=none,
        can_improve=jnp.ones((batch, 1), jnp.bool_),
        over=jnp.array(False),
        length=text.length,
        origin=jnp.arange(batch * number),
        cache=cache,
    )
    beams = _BeamStep(search, text, key)

    def advance(state: _State) -> _State:
        newest = lax.dynamic_slice_in_dim(state.running.ids, state.length - 1, 1, axis=2).reshape(-1)
        logits, cache = step(state.cache, newest, state.length - 1, state.origin)
        return beams(replace(state, cache=cache), logits)

    state = lax.while_loop(lambda state: ~state.over, advance, beams(state, logits))
    best = jax.tree_util.tree_map(lambda array: array[:, : search.returned], state.finished)
    behind = jnp.arange(ids.shape[2]) >= best.lengths[:, :, None]
    sequences = jnp.where(behind, search.pad, best.ids).reshape(batch * search.returned, -1)
    return sequences, best.lengths.max(), best.scores.reshape(-1)


@dataclass(frozen=True)
class _BeamStep:
    """One step of beam search, from the logits that follow the running beams.

    Attributes:
        search: Settings.
        text: The prompts.
        key: Random key.
    """

    search: Search
    text: Text
    key: Array

    def __call__(self, state: _State, logits: Array) -> _State:
        """The next state."""
        candidates, origin = self._continue(state, logits)
        length = state.length + 1
        at_end = length - self.text.first == self.text.greatest
        newest = lax.dynamic_slice_in_dim(candidates.ids, length - 1, 1, axis=2)[:, :, 0]
        ends = self.search.is_end(newest) | at_end
        finished, is_finished = self._finish(state, candidates, ends, length)
        going = lax.top_k(candidates.scores + ends * OUT, self.search.beams.num_beams)[1]
        running = replace(candidates, scores=candidates.scores + ends * OUT).take(going)
        state = replace(
            state,
            running=running,
            finished=finished,
            is_finished=is_finished,
            length=length,
            origin=jnp.take_along_axis(origin, going, axis=1).reshape(-1),
        )
        return self._judge(state, at_end)

    def _continue(self, state: _State, logits: Array) -> tuple[Beams, Array]:
        """The best continuations (B, C), or draws from all, and the row that each continues (B, C)."""
        batch, number, room = state.running.ids.shape
        text = replace(self.text, ids=state.running.ids.reshape(-1, room), length=state.length)
        logarithms = apply_rules(self.search.rules, text, jax.nn.log_softmax(logits, axis=-1))
        vocabulary = logarithms.shape[-1]
        totals = logarithms.reshape(batch, number, vocabulary) + state.running.scores[:, :, None]
        totals = totals.reshape(batch, -1)
        num_candidates = self.search.beams.num_candidates(len(self.search.rules.eos))
        if self.search.rules.do_sample:  # the largest of the sums with Gumbel noise are draws without replacement
            noise = jax.random.gumbel(jax.random.fold_in(self.key, text.count), totals.shape)
            chosen = lax.top_k(totals + noise, num_candidates)[1]
        else:
            chosen = lax.top_k(totals, num_candidates)[1]
        beam, tokens = chosen // vocabulary, (chosen % vocabulary).astype(text.ids.dtype)
        candidates = state.running.take(beam)
        ids = lax.dynamic_update_slice_in_dim(candidates.ids, tokens[:, :, None], state.length, axis=2)
        scores = jnp.take_along_axis(totals, chosen, axis=1)
        lengths = jnp.broadcast_to(state.length + 1, scores.shape)
        return Beams(ids, scores, lengths), beam + jnp.arange(batch)[:, None] * number

    def _finish(self, state: _State, candidates: Beams, ends: Array, length: Array) -> tuple[Beams, Array]:
        """Let candidates that ended among the best K compete for the finished places."""
        among_best = jnp.arange(ends.shape[1]) < self.search.beams.num_beams
        eligible = ends & among_best
        generated = (length - self.text.first - self.text.prompt).astype(jnp.float32)
        places = {"is_finished": state.is_finished, "can_improve": state.can_improve}
        scores = self.search.beams.final_scores(candidates.scores, eligible, generated, **places)
        both = jax.tree_util.tree_map(
            lambda old, new: jnp.concatenate([old, new], axis=1), state.finished, replace(candidates, scores=scores)
        )
        best = lax.top_k(both.scores, self.search.beams.num_beams)[1]
        exist = jnp.concatenate([state.is_finished, eligible], axis=1)
        return both.take(best), jnp.take_along_axis(exist, best, axis=1)

    def _judge(self, state: _State, at_end: Array) -> _State:
        """See whether any prompt can gain from going on."""
        text = self.text
        generated, most = (
            number.astype(jnp.float32)
            for number in (state.length - text.first - text.prompt, text.greatest - text.prompt)
        )
        places = {"is_finished": state.is_finished, "can_improve": state.can_improve}
        scores = (state.running.scores, state.finished.scores)
        can_improve, over = self.search.beams.judge(jnp, *scores, generated, most, **places)
        return replace(state, can_improve=can_improve, over=over | at_end)


#: leaves of a cache with one entry for each row; those of the source have one for each prompt
_OF_ROWS = ("cached_key", "cached_value", "ema_state")


@dataclass(frozen=True)
class SourceStepper:
    """A decoder that attends to an encoder's states; the rows of a prompt share one copy of them.

    Attributes:
        module: Has `encode` and `decode`.
        params: Its parameters.
        inputs: `input_ids` and `attention_mask` (B, S) of the source, `decoder_input_ids` (B, P).
        cache: Shapes of a cache of B rows.
        rows: K.
        implementation: How the encoder attends.
    """

    module: nn.Module
    params: Any
    inputs: Mapping[str, Array]
    cache: Any
    rows: int
    implementation: str

    def begin(self, *, reorders: bool) -> tuple[Array, Any]:
        """Read the source and the prompts: logits (R, V) of what follows, and the cache.

        Args:
            reorders: Steps will go on with other rows.
        """
        encoded: Any = self.module.apply(
            {"params": self.params},
            self.inputs["input_ids"],
            self.inputs["attention_mask"],
            implementation=self.implementation,
            method="encode",
        )
        states, empty = encoded.last_hidden_state, empty_cache(self.cache)
        logits, cache = self._decode(self.inputs["decoder_input_ids"], states, empty, source="write")
        alone = 1 if reorders else self.rows  # rows that keep to themselves
        _, room = tokens_and_room(cache)
        cache = for_rows(_repeat_rows(cache, alone), self.rows // alone)
        ancestors = jnp.zeros((logits.shape[0] * alone, self.rows // alone, room or 0), jnp.int32)
        return jnp.repeat(logits, self.rows, axis=0), (cache, ancestors)

    def step(self, cache: Any, tokens: Array, position: Array, origin: Array | None) -> tuple[Array, Any]:
        """Logits (R, V) that follow the tokens (R,), and the cache."""
        cache, ancestors = cache
        batch, rows, _ = ancestors.shape
        if origin is not None:
            origin = origin.reshape(batch, rows, 1) - jnp.arange(batch)[:, None, None] * rows
            ancestors = jnp.take_along_axis(ancestors, origin, axis=1)
        own = jnp.broadcast_to(jnp.arange(rows)[:, None], (batch, rows, 1))
        ancestors = lax.dynamic_update_slice_in_dim(ancestors, own, position, axis=2)
        # the source is read from the cache
        states = jnp.zeros((self.inputs["input_ids"].shape[0], 1, 1))
        logits, cache = self._decode(tokens[:, None], states, cache, source="read", ancestors=ancestors)
        return logits, (cache, ancestors)

    def _decode(self, ids: Array, states: Array, cache: Any, **arguments: Any) -> tuple[Array, Any]:
        output, changed = self.module.apply(
            {"params": self.params, "cache": cache},
            ids,
            states,
            self.inputs["attention_mask"],
            method="decode",
            mutable=["cache"],
            **arguments,
        )
        return output.logits[:, -1].astype(jnp.float32), {**cache, **changed["cache"]}


@dataclass(frozen=True)
class CausalStepper:
    """A causal decoder. Positions count real tokens, so that padding before a prompt changes nothing.

    Attributes:
        module: Takes `attention_mask`, `position_ids` and a cache.
        params: Its parameters.
        inputs: `input_ids` and `attention_mask` (B, P), padding on the left; where the decoder attends to an encoder,
            `encoder_hidden_states` (B, S, H) and `encoder_attention_mask` (B, S).
        cache: Shapes of a cache of B rows.
        rows: K.
        room: L.
        first_position: Position of the first token.
    """

    module: nn.Module
    params: Any
    inputs: Mapping[str, Array]
    cache: Any
    rows: int
    room: int
    first_position: int = 0

    def begin(self, *, reorders: bool) -> tuple[Array, Any]:
        """Read the prompts: logits (R, V) of what follows, and the cache."""
        del reorders  # the cache is moved
        mask = self.inputs["attention_mask"]
        positions = jnp.maximum(mask.cumsum(axis=1) - 1, 0) + self.first_position
        logits, cache = self._decode(self.inputs["input_ids"], positions, self._mask(), empty_cache(self.cache), "auto")
        return jnp.repeat(logits, self.rows, axis=0), _repeat_rows(cache, self.rows)

    def step(self, cache: Any, tokens: Array, position: Array, origin: Array | None) -> tuple[Array, Any]:
        """Logits (R, V) that follow the tokens (R,), and the cache."""
        mask = self.inputs["attention_mask"]
        real = jnp.repeat(mask.sum(axis=1), self.rows)
        positions = real + position - mask.shape[1] + self.first_position
        mask = jnp.repeat(self._mask(), self.rows, axis=0)
        # one query: nothing is gained by going head by head
        return self._decode(tokens[:, None], positions[:, None], mask, _reorder(cache, origin), "eager")

    def _mask(self) -> Array:
        """(B, L): what follows a prompt is real."""
        mask = self.inputs["attention_mask"]
        return jnp.pad(mask, ((0, 0), (0, self.room - mask.shape[1])), constant_values=True)

    def _decode(self, ids: Array, positions: Array, mask: Array, cache: Any, implementation: str) -> tuple[Array, Any]:
        source: dict[str, Any] = {
            name: jnp.repeat(array, ids.shape[0] // array.shape[0], axis=0)
            for name, array in self.inputs.items()
            if name.startswith("encoder_")
        }
        output, changed = self.module.apply(
            {"params": self.params, "cache": cache},
            ids,
            mask,
            position_ids=positions,
            implementation=implementation,
            mutable=["cache"],
            **source,
        )
        return output.logits[:, -1].astype(jnp.float32), changed["cache"]


def _repeat_rows(cache: Any, times: int) -> Any:
    """B rows -> R rows, copies next to each other."""
    return _on_rows(cache, lambda leaf: jnp.repeat(leaf, times, axis=0))


def _reorder(cache: Any, origin: Array | None) -> Any:
    """Go on with other rows, given by their index (R,)."""
    return cache if origin is None else _on_rows(cache, lambda leaf: leaf[origin])


def _on_rows(cache: Any, function: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(leaf) if getattr(path[-1], "key", None) in _OF_ROWS else leaf, cache
    )
