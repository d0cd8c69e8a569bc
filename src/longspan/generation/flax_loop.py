"""Models at work in a loop over tokens that is part of one program of XLA, in JAX.

Axes: B prompts, K rows or beams of each, R = B·K rows, P tokens of a prompt, L room for ids, S source tokens, V
vocabulary. The cache has a fixed size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from longspan.generation.array_rules import LoopArrays
from longspan.nn.flax.cache import empty_cache, for_rows, tokens_and_room


def _unsort(marks: Array, order: Array) -> Array:
    return jnp.zeros_like(marks).at[jnp.arange(marks.shape[0])[:, None], order].set(marks)


def _present(ids: Array, there: Array, vocabulary: int) -> Array:
    none = jnp.zeros((ids.shape[0], vocabulary), jnp.bool_)
    return none.at[jnp.arange(ids.shape[0])[:, None], ids].max(there)


ARRAYS = LoopArrays(
    xp=jnp,
    softmax=jax.nn.softmax,
    log_softmax=jax.nn.log_softmax,
    take=lambda values, index: jnp.take_along_axis(values, index, axis=1),
    unsort=_unsort,
    largest=lambda values, number: lax.top_k(values, number)[0],
    places=lambda number, where: jnp.arange(number),
    smallest=lambda values: float(jnp.finfo(values.dtype).min),
    read=lambda values, start, number: lax.dynamic_slice_in_dim(values, start, number, axis=-1),
    write=lambda values, start, columns: lax.dynamic_update_slice_in_dim(values, columns, start, axis=-1),
    present=_present,
    top=lax.top_k,
    draw=lambda key, step, scores: jax.random.categorical(jax.random.fold_in(key, step), scores),
    gumbel=lambda key, step, shape: jax.random.gumbel(jax.random.fold_in(key, step), shape),
    loop=lax.while_loop,
    number=lambda number: number.astype(jnp.float32),
)
#: leaves of a cache with one entry for each row; those of the source have one for each prompt
_OF_ROWS = ("cached_key", "cached_value", "ema_state")


@dataclass(frozen=True)
class SourceStepper:
    """A decoder that attends to an encoder's states; the rows of a prompt share one copy of them.

    Attributes:
        module: Has `encode` and `decode`.
        variables: Its parameters and running statistics, as linen's collections.
        inputs: `input_ids` and `attention_mask` (B, S) of the source, `decoder_input_ids` (B, P).
        cache: Shapes of a cache of B rows.
        rows: K.
        implementation: How the encoder attends.
    """

    module: nn.Module
    variables: Any
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
            self.variables,
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
            {**self.variables, "cache": cache},
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
        variables: Its parameters and running statistics, as linen's collections.
        inputs: `input_ids` and `attention_mask` (B, P), padding on the left; where the decoder attends to an encoder,
            `encoder_hidden_states` (B, S, H) and `encoder_attention_mask` (B, S).
        cache: Shapes of a cache of B rows.
        rows: K.
        room: L.
        first_position: Position of the first token.
    """

    module: nn.Module
    variables: Any
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
            {**self.variables, "cache": cache},
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
