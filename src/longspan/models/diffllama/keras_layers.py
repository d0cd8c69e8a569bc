"""Layers of DiffLlama in Keras 3: Llama with the attention of the Differential Transformer (Ye et al., 2024).

Axes: B batch, S tokens, T keys, H width, A softmax maps, K key/value heads, D head size, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops

from longspan.errors import InputError
from longspan.models.diffllama.config import DiffLlamaConfig
from longspan.nn.keras.activations import get_activation
from longspan.nn.keras.cache import extend
from longspan.nn.keras.checks import Size, check_shape, static_shape
from longspan.nn.keras.initializers import Normal
from longspan.nn.keras.layers import Block, linear, tokenwise
from longspan.nn.keras.masks import as_boolean
from longspan.nn.keras.outputs import KeyValues, Tensors
from longspan.nn.keras.resizing import keep_features, remaining_features, replace_layer
from longspan.nn.keras.runtime import is_concrete, shapes_may_depend_on_values, values_visible
from longspan.ops.keras import Tensor
from longspan.ops.keras.differential import DifferentialAttention, Dropout, differential_attention
from longspan.ops.keras.rms_norm import rms_norm
from longspan.ops.keras.rotary import apply_rotary, rotary_cos_sin, select_frequencies


@dataclass(frozen=True)
class AttentionPlan:
    """How all layers of one call attend.

    Attributes:
        cos: Rotary table, (B or 1, S, 1, D).
        sin: Signed rotary table, (B or 1, S, 1, D).
        position: Place of each query among the keys, (S,); None: the queries are the last keys.
        write_at: Place of the first new token in a cache of a fixed size; None where a cache grows.
        key_mask: Boolean, (B, T), True = attend; None for all.
        segment_ids: Segment of each token of packed documents, (B, S); None for one segment.
        implementation: `"auto"` or the name of an implementation.
        output_weights: The maps are returned.
    """

    cos: Tensor
    sin: Tensor
    position: Tensor | None
    write_at: Tensor | None
    key_mask: Tensor | None
    segment_ids: Tensor | None
    implementation: str
    output_weights: bool


def make_plan(
    config: DiffLlamaConfig,
    *,
    shape: tuple[Size, Size],
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cache_position: Tensor | None,
    past_key_values: KeyValues | None,
    dtype: Any,
    output_weights: bool,
) -> AttentionPlan:
    """Complete positions and masks of a call; arguments as in `TFDiffLlamaModel.call`.

    Args:
        config: Settings of the model.
        shape: (B, S).
        attention_mask: Nonzero = attend, (B, past + S), or (B, up to T) for a cache of a fixed size; None for all.
        position_ids: (B, S) or (1, S); None: `cache_position`, or the places after the cache.
        cache_position: Places of the tokens in a cache of a fixed size, (S,); None without one.
        past_key_values: The cache.
        dtype: Dtype of the rotary tables.
        output_weights: The maps are returned.

    Raises:
        InputError: a shape does not fit.
    """
    batch, length = shape
    cached: Size = 0 if past_key_values is None else ops.shape(past_key_values[0][0])[2]
    places = cached + ops.arange(length, dtype="int32")
    if cache_position is not None:
        places = _checked_places(cache_position, length, cached if past_key_values is not None else None)
    packed = position_ids is not None and attention_mask is None and past_key_values is None
    position_ids = places[None] if position_ids is None else _checked_positions(position_ids, shape)
    segments = ops.broadcast_to(_documents(position_ids), shape) if packed else None
    fixed = cache_position is not None and past_key_values is not None
    table = config.rotary_table()
    cos, sin = rotary_cos_sin(
        select_frequencies(table, position_ids), position_ids, attention_factor=table.attention_factor, dtype=dtype
    )
    return AttentionPlan(
        cos=cos,
        sin=sin,
        position=places if fixed else None,
        write_at=places[0] if fixed else None,
        key_mask=_make_key_mask(attention_mask, batch, cached if fixed else cached + length, fixed=fixed),
        segment_ids=segments,
        implementation=config.attn_implementation,
        output_weights=output_weights,
    )


def _checked_places(cache_position: Tensor, length: Size, capacity: Size | None) -> Tensor:
    """`cache_position` as integers, (S,)."""
    check_shape(cache_position, (length,), name="cache_position", axes="(tokens,)")
    places = ops.cast(cache_position, "int32")
    if values_visible(places):
        values = np.asarray(places)
        room = capacity if isinstance(capacity, int) else int(values.max(initial=0)) + 1
        if (np.diff(values) != 1).any() or (values < 0).any() or (values >= room).any():
            raise InputError(
                "cache_position must go up by one, within the tokens that fit the cache"
                f"{'' if capacity is None else f' ({room})'}. Received: {values.tolist()}"
            )
    return places


def _checked_positions(position_ids: Tensor, shape: tuple[Size, Size]) -> Tensor:
    """`position_ids` as integers, (B, S) or (1, S)."""
    rows = 1 if static_shape(position_ids)[:1] == (1,) else shape[0]
    check_shape(position_ids, (rows, shape[1]), name="position_ids", axes="(batch, tokens), or (1, tokens),")
    return ops.cast(position_ids, "int32")


def _documents(position_ids: Any) -> Tensor:
    """Number the documents of packed rows: a position that does not follow the one before starts a new document."""
    starts = ops.not_equal(position_ids[:, 1:], position_ids[:, :-1] + 1)
    return ops.pad(ops.cumsum(ops.cast(starts, "int32"), axis=-1), ((0, 0), (1, 0)))


def _make_key_mask(mask: Tensor | None, batch: Size, num_keys: Size, *, fixed: bool) -> Tensor | None:
    """Bring a padding mask to the keys of a call: boolean, (B, T), or None if nothing is known to be hidden."""
    if mask is None:
        return None
    given = ops.shape(mask)[-1]
    fits = not (fixed and isinstance(given, int) and isinstance(num_keys, int)) or given <= num_keys
    axes = "(batch, tokens in the cache + new tokens)" if fits else "(batch, up to the tokens that fit the cache)"
    check_shape(mask, (batch, given if fixed and fits else num_keys), name="attention_mask", axes=axes)
    mask = as_boolean(mask)
    if is_concrete(mask) and bool(ops.all(mask)):
        return None
    return ops.pad(mask, ((0, 0), (0, num_keys - given))) if fixed else mask


#: reparametrisation vectors of λ
LAMBDA_NAMES = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")


class DiffLlamaRMSNorm(Block):
    """w · x / √(mean(x²) + ε) (Zhang and Sennrich, 2019)."""

    def __init__(self, config: DiffLlamaConfig, **kwargs: Any) -> None:
        super().__init__(config.hidden_size, **kwargs)
        self.eps = config.rms_norm_eps

    def build(self, input_shape: Any = None) -> None:
        """Make the weight."""
        self.weight = self.add_parameter("weight", (self.width,), "ones")

    def call(self, hidden_states: Tensor) -> Tensor:
        """(..., H) -> (..., H)."""
        return rms_norm(hidden_states, ops.cast(self.weight, "float32"), self.eps)


class DiffLlamaAttention(Block):
    """Differential attention with rotary positions and grouped keys and values.

        λ = exp(λ_q1 · λ_k1) − exp(λ_q2 · λ_k2) + λ_init,  λ_init = 0.8 − 0.6 · exp(−0.3 · layer)
        head_j = (1 − λ_init) · RMSNorm((softmax(Q_j Kᵀ/√D) − λ · softmax(Q_{j+A/2} Kᵀ/√D)) V_j)

    The layer counts from 0. λ is computed and applied in float32, whatever the dtype of the weights.

    Args:
        config: Settings of the model.
        layer_index: Number of the layer.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    def __init__(self, config: DiffLlamaConfig, *, layer_index: int, **kwargs: Any) -> None:
        super().__init__(config.hidden_size, **kwargs)
        self.num_maps, self.num_kv_heads = config.num_attention_heads, config.num_kv_heads
        self.head_dim, self.eps, self.lambda_std_dev = config.size_of_heads, config.rms_norm_eps, config.lambda_std_dev
        policy = self.dtype_policy
        project = partial(linear, stddev=config.initializer_range, dtype=policy, use_bias=config.attention_bias)
        self.q_proj = project(self.num_maps * self.head_dim, name="q_proj")
        self.k_proj = project(self.num_kv_heads * self.head_dim, name="k_proj")
        self.v_proj = project(self.num_kv_heads * self.head_dim, name="v_proj")
        self.o_proj = project(config.hidden_size, name="o_proj")
        self.dropout = keras.layers.Dropout(config.attention_dropout, dtype=policy)
        self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * layer_index)
        self.pruned_heads: frozenset[int] = frozenset()
        self.original_num_heads = self.num_maps // 2

    def build(self, input_shape: Any = None) -> None:
        """Make the weights."""
        self.o_proj.build((None, self.num_maps * self.head_dim))
        vectors = Normal(stddev=self.lambda_std_dev)
        for name in LAMBDA_NAMES:
            setattr(self, name, self.add_parameter(name, (self.head_dim,), vectors))
        super().build()

    def lambda_full(self) -> Tensor:
        """λ, 0-d float32."""
        q1, k1, q2, k2 = (ops.cast(getattr(self, name), "float32") for name in LAMBDA_NAMES)
        return ops.exp(ops.sum(q1 * k1)) - ops.exp(ops.sum(q2 * k2)) + self.lambda_init

    def call(
        self, hidden_states: Tensor, *, plan: AttentionPlan, past: Tensors | None = None, training: bool | None = None
    ) -> tuple[Tensor, DifferentialAttention, Tensors]:
        """(B, S, H) -> (B, S, H), the maps if the plan asks for them, and all keys and values, (B, K, T, D)."""
        query = apply_rotary(self._split(self.q_proj(hidden_states), self.num_maps), plan.cos, plan.sin)
        key = apply_rotary(self._split(self.k_proj(hidden_states), self.num_kv_heads), plan.cos, plan.sin)
        value = self._split(self.v_proj(hidden_states), self.num_kv_heads)
        query, key, value = (ops.transpose(states, (0, 2, 1, 3)) for states in (query, key, value))
        key, value = extend(past, (key, value), plan.write_at)
        drops = bool(training) and self.dropout.rate > 0
        attended = differential_attention(
            query,
            key,
            value,
            self.lambda_full(),
            implementation=plan.implementation,
            position=plan.position,
            key_mask=plan.key_mask,
            segment_ids=plan.segment_ids,
            dropout=Dropout(self.dropout.rate, self.dropout.seed_generator) if drops else None,
            output_weights=plan.output_weights,
            dynamic_shapes=shapes_may_depend_on_values(),
        )
        normed = rms_norm(attended.output, 1.0 - self.lambda_init, self.eps)
        merged = ops.reshape(normed, (*ops.shape(normed)[:2], self.num_maps * self.head_dim))
        return self.o_proj(merged), attended, (key, value)

    def _split(self, states: Tensor, num_heads: int) -> Tensor:
        """(B, S, heads · D) -> (B, S, heads, D)."""
        return ops.reshape(states, (*ops.shape(states)[:2], num_heads, self.head_dim))

    def prune_heads(self, heads: Iterable[int]) -> None:
        """Remove differential heads (pairs of maps j and j + A/2), given by their original numbers, for good.

        Keys and values of the remaining maps are no longer shared: each map gets its own copy.
        """
        removed, kept = remaining_features(
            heads, num_heads=self.original_num_heads, head_size=1, already_pruned=self.pruned_heads
        )
        if not removed:
            return
        maps, group = np.concatenate((kept, kept + self.num_maps // 2)), self.num_maps // self.num_kv_heads
        for name, of_heads in (("q_proj", maps), ("k_proj", maps // group), ("v_proj", maps // group)):
            features = _features(of_heads, self.head_dim)
            replace_layer(self, name, keep_features(getattr(self, name), features, axis="output"))
        replace_layer(self, "o_proj", keep_features(self.o_proj, _features(kept, 2 * self.head_dim), axis="input"))
        self.pruned_heads |= removed
        self.num_maps = self.num_kv_heads = len(maps)


def _features(heads: Any, size: int) -> Any:
    """Indices of the features that belong to the named heads."""
    return (heads[:, None] * size + np.arange(size)).reshape(-1)


class DiffLlamaMLP(Block):
    """down(act(gate(x)) ∘ up(x)) (Shazeer, 2020)."""

    def __init__(self, config: DiffLlamaConfig, **kwargs: Any) -> None:
        super().__init__(config.hidden_size, **kwargs)
        self.inner_size = config.intermediate_size
        project = partial(linear, stddev=config.initializer_range, dtype=self.dtype_policy, use_bias=False)
        self.gate_proj = project(self.inner_size, name="gate_proj")
        self.up_proj = project(self.inner_size, name="up_proj")
        self.down_proj = project(config.hidden_size, name="down_proj")
        self.activation = get_activation(config.hidden_act)

    def build(self, input_shape: Any = None) -> None:
        """Make the weights."""
        self.down_proj.build((None, self.inner_size))
        super().build()

    def call(self, hidden_states: Tensor) -> Tensor:
        """(B, S, H) -> (B, S, H)."""
        return self.down_proj(self.activation(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class DiffLlamaDecoderLayer(Block):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: DiffLlamaConfig, *, layer_index: int, **kwargs: Any) -> None:
        super().__init__(config.hidden_size, **kwargs)
        policy, self.inner_size = self.dtype_policy, config.intermediate_size
        self.self_attn = DiffLlamaAttention(config, layer_index=layer_index, dtype=policy, name="self_attn")
        self.mlp = DiffLlamaMLP(config, dtype=policy, name="mlp")
        self.input_layernorm = DiffLlamaRMSNorm(config, dtype=policy, name="input_layernorm")
        self.post_attention_layernorm = DiffLlamaRMSNorm(config, dtype=policy, name="post_attention_layernorm")

    def call(
        self, hidden_states: Tensor, *, plan: AttentionPlan, past: Tensors | None = None, training: bool | None = None
    ) -> tuple[Tensor, DifferentialAttention, Tensors]:
        """(B, S, H) -> (B, S, H), the maps, and all keys and values; arguments of `DiffLlamaAttention`."""
        normed = self.input_layernorm(hidden_states)
        attended, maps, present = self.self_attn(normed, plan=plan, past=past, training=training)
        hidden_states = hidden_states + attended
        parts, width = (self.mlp, self.post_attention_layernorm), self.inner_size
        hidden_states = tokenwise(self._feed_forward, hidden_states, parts=parts, width=width, training=training)
        return hidden_states, maps, present

    def _feed_forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
