"""Layers of DiffLlama in Flax: Llama with the attention of the Differential Transformer (Ye et al., 2024).

Axes: B batch, S tokens, T keys, H width, A softmax maps, K key/value heads, D head size.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import Array
from jax.nn.initializers import normal, ones

from longspan.models.diffllama.config import DiffLlamaConfig
from longspan.nn.flax.activations import get_activation
from longspan.nn.flax.cache import extend_cache
from longspan.nn.flax.layers import Dense, Dtype, NumberedPart, Part, Stack, spread
from longspan.nn.flax.parameters import kernel_init, parameter
from longspan.ops.flax.differential import DifferentialAttention, differential_attention
from longspan.ops.flax.rms_norm import rms_norm
from longspan.ops.flax.rotary import apply_rotary, rotary_cos_sin, select_frequencies


@struct.dataclass
class AttentionPlan:
    """How all layers of one call attend.

    Attributes:
        cos: Rotary table, (B or 1, S, 1, D).
        sin: Signed rotary table, (B or 1, S, 1, D).
        position: Place of each query among the keys, (S,); None: the queries are the last keys.
        key_mask: Boolean, (B, T), True = attend; None for all.
        segment_ids: Segment of each token of packed documents, (B, S); None for one segment.
        implementation: `"auto"` or the name of an implementation.
        output_weights: The maps are returned.
        deterministic: Nothing is dropped.
    """

    cos: Array
    sin: Array
    position: Array | None
    key_mask: Array | None
    segment_ids: Array | None
    implementation: str = struct.field(pytree_node=False)
    output_weights: bool = struct.field(pytree_node=False)
    deterministic: bool = struct.field(pytree_node=False)


def make_plan(
    config: DiffLlamaConfig,
    *,
    attention_mask: Array | None,
    position_ids: Array | None,
    batch: int,
    length: int,
    past: Array | int,
    capacity: int | None,
    dtype: Dtype,
    **settings: Any,
) -> AttentionPlan:
    """Complete positions and masks of a call.

    Args:
        config: Settings of the model.
        attention_mask: Nonzero = attend, (B, S), or with a cache (B, T); None for all.
        position_ids: (B, S) or (1, S); None: those after the tokens in the cache.
        batch: B.
        length: S.
        past: Number of tokens in the cache.
        capacity: Number of tokens that fit the cache, or None without one.
        dtype: Dtype of the rotary tables.
        **settings: The last three attributes of `AttentionPlan`.
    """
    places = past + jnp.arange(length)
    packed = position_ids is not None and attention_mask is None and capacity is None
    segments = jnp.broadcast_to(_documents(position_ids), (batch, length)) if packed else None
    position_ids = places[None] if position_ids is None else position_ids
    key_mask = None if attention_mask is None else attention_mask != 0
    if key_mask is not None and capacity is not None:
        key_mask = jnp.pad(key_mask, ((0, 0), (0, capacity - key_mask.shape[1])))
    table = config.rotary_table()
    frequencies = select_frequencies(table, position_ids)
    cos, sin = rotary_cos_sin(frequencies, position_ids, attention_factor=table.attention_factor, dtype=dtype)
    return AttentionPlan(
        cos=cos,
        sin=sin,
        position=None if capacity is None else places,
        key_mask=key_mask,
        segment_ids=segments,
        **settings,
    )


def _documents(position_ids: Any) -> Array:
    """Number the documents of packed rows: a position that does not follow the one before starts a new document."""
    starts = position_ids[:, 1:] != position_ids[:, :-1] + 1
    return jnp.concatenate((jnp.zeros_like(position_ids[:, :1]), starts.cumsum(axis=-1)), axis=-1)


#: reparametrisation vectors of λ
LAMBDA_NAMES = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")


class FlaxDiffLlamaRMSNorm(Part):
    """w · x / √(mean(x²) + ε) (Zhang and Sennrich, 2019)."""

    config: DiffLlamaConfig

    @nn.compact
    def __call__(self, hidden_states: Array) -> Array:
        """(..., H) -> (..., H)."""
        weight = parameter(self, "weight", ones, (self.config.hidden_size,), jnp.float32)
        weight = spread(weight.astype(jnp.float32), hidden_states)
        return rms_norm(hidden_states.astype(self.dtype), weight, self.config.rms_norm_eps)


class FlaxDiffLlamaAttention(NumberedPart):
    """Differential attention with rotary positions and grouped keys and values.

        λ = exp(λ_q1 · λ_k1) − exp(λ_q2 · λ_k2) + λ_init,  λ_init = 0.8 − 0.6 · exp(−0.3 · layer)
        head_j = (1 − λ_init) · RMSNorm((softmax(Q_j Kᵀ/√D) − λ · softmax(Q_{j+A/2} Kᵀ/√D)) V_j)

    The layer counts from 0. λ is computed and applied in float32, whatever the dtype of the weights.
    """

    config: DiffLlamaConfig

    def setup(self) -> None:
        """Make the parts."""
        config = self.config
        self.num_maps, self.num_kv_heads = config.num_attention_heads, config.num_kv_heads
        self.head_dim = config.size_of_heads
        self.q_proj = linear(config, self.num_maps * self.head_dim, use_bias=config.attention_bias, dtype=self.dtype)
        self.k_proj = linear(
            config, self.num_kv_heads * self.head_dim, use_bias=config.attention_bias, dtype=self.dtype
        )
        self.v_proj = linear(
            config, self.num_kv_heads * self.head_dim, use_bias=config.attention_bias, dtype=self.dtype
        )
        self.o_proj = linear(config, config.hidden_size, use_bias=config.attention_bias, dtype=self.dtype)
        self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * self.layer_index)
        vectors = normal(config.lambda_std_dev)
        self.lambdas = [parameter(self, name, vectors, (self.head_dim,), jnp.float32) for name in LAMBDA_NAMES]

    def lambda_full(self) -> Array:
        """λ, 0-d float32."""
        q1, k1, q2, k2 = (vector.astype(jnp.float32) for vector in self.lambdas)
        return jnp.exp((q1 * k1).sum()) - jnp.exp((q2 * k2).sum()) + self.lambda_init

    def __call__(
        self, hidden_states: Array, plan: AttentionPlan, *, init_cache: bool = False
    ) -> tuple[Array, DifferentialAttention]:
        """(B, S, H) -> (B, S, H), and the maps if the plan asks for them."""
        query = apply_rotary(self._split(self.q_proj(hidden_states), self.num_maps), plan.cos, plan.sin)
        key = apply_rotary(self._split(self.k_proj(hidden_states), self.num_kv_heads), plan.cos, plan.sin)
        value = self._split(self.v_proj(hidden_states), self.num_kv_heads)
        if init_cache or self.has_variable("cache", "cached_key"):
            key, value = self._extend_cache(key, value)
        rate = 0.0 if plan.deterministic else self.config.attention_dropout
        attended = differential_attention(
            query,
            key,
            value,
            self.lambda_full(),
            implementation=plan.implementation,
            position=plan.position,
            key_mask=plan.key_mask,
            segment_ids=plan.segment_ids,
            dropout=rate,
            dropout_rng=self.make_rng("dropout") if rate > 0.0 else None,
            output_weights=plan.output_weights,
        )
        normed = rms_norm(attended.output, 1.0 - self.lambda_init, self.config.rms_norm_eps)
        return self.o_proj(normed.reshape(*normed.shape[:2], -1)), attended

    def _split(self, states: Array, num_heads: int) -> Array:
        """(B, S, heads · D) -> (B, S, heads, D)."""
        return states.reshape(*states.shape[:2], num_heads, self.head_dim)

    @nn.compact
    def _extend_cache(self, key: Array, value: Array) -> tuple[Array, Array]:
        """Write new keys and values (B, S, K, D) behind those of the cache; returns all of them, (B, T, K, D)."""
        return extend_cache(self, key, value)


def linear(config: DiffLlamaConfig, features: int, *, use_bias: bool = False, dtype: Dtype) -> Dense:
    """A projection."""
    return Dense(features, kernel_init=kernel_init(config), use_bias=use_bias, dtype=dtype)


class FlaxDiffLlamaMLP(Part):
    """down(act(gate(x)) ∘ up(x)) (Shazeer, 2020)."""

    config: DiffLlamaConfig

    def setup(self) -> None:
        """Make the parts."""
        config = self.config
        self.gate_proj = linear(config, config.intermediate_size, dtype=self.dtype)
        self.up_proj = linear(config, config.intermediate_size, dtype=self.dtype)
        self.down_proj = linear(config, config.hidden_size, dtype=self.dtype)
        self.activation = get_activation(config.hidden_act)

    def __call__(self, hidden_states: Array) -> Array:
        """(B, S, H) -> (B, S, H)."""
        return self.down_proj(self.activation(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class FlaxDiffLlamaDecoderLayer(NumberedPart):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    config: DiffLlamaConfig

    def setup(self) -> None:
        """Make the parts."""
        self.self_attn = FlaxDiffLlamaAttention(self.config, self.layer_index, dtype=self.dtype)
        self.mlp = FlaxDiffLlamaMLP(self.config, dtype=self.dtype)
        self.input_layernorm = FlaxDiffLlamaRMSNorm(self.config, dtype=self.dtype)
        self.post_attention_layernorm = FlaxDiffLlamaRMSNorm(self.config, dtype=self.dtype)

    def __call__(
        self, hidden_states: Array, plan: AttentionPlan, init_cache: bool = False
    ) -> tuple[Array, Array | None, Array | None]:
        """(B, S, H) -> (B, S, H), the maps and their differences."""
        attended, maps = self.self_attn(self.input_layernorm(hidden_states), plan, init_cache=init_cache)
        hidden_states = hidden_states + attended
        hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        weights = (maps.weights, maps.differential_weights) if plan.output_weights else (None, None)
        return hidden_states, *weights


class FlaxDiffLlamaLayers(Stack):
    """The layers, named by their index as in checkpoint keys."""

    config: DiffLlamaConfig

    def setup(self) -> None:
        """Make the parts."""
        layer: Any = FlaxDiffLlamaDecoderLayer
        if self.gradient_checkpointing:
            layer = nn.remat(layer, static_argnums=(3,))
        self.layers = [
            layer(self.config, index, dtype=self.dtype, name=str(index))
            for index in range(self.config.num_hidden_layers)
        ]

    def __call__(
        self, hidden_states: Array, plan: AttentionPlan, init_cache: bool
    ) -> tuple[list[Array], list[Any], list[Any]]:
        """(B, S, H) -> states before every layer and behind the last, the maps and their differences by layer."""
        states, maps, differences = [hidden_states], [], []
        for layer in self.layers:
            hidden_states, weights, difference = layer(hidden_states, plan, init_cache)
            states.append(hidden_states)
            maps.append(weights)
            differences.append(difference)
        return states, maps, differences
