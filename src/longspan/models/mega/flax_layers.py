"""The layers of MEGA (Ma et al., 2022, https://arxiv.org/abs/2209.10655) in Flax.

Axes: B batch, S tokens, D width, Z width of queries and keys, V width of values, C tokens of a chunk, T encoder tokens,
L tokens that fit a cache.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import Array, lax
from jax.nn.initializers import normal, zeros

from longspan.models.mega.config import MegaConfig
from longspan.models.mega.flax_norms import FlaxMegaSequenceNorm
from longspan.nn.flax.activations import get_activation
from longspan.nn.flax.cache import extend_cache
from longspan.nn.flax.layers import Dense, Dtype, Part, Stack, may_loop, tokenwise
from longspan.nn.flax.parameters import Initializer, kernel_init, parameter
from longspan.ops.flax.context import check_share, share, shared_axis, token_places, whole
from longspan.ops.flax.damped_ema import (
    BLOCK_SIZE,
    EmaBlocks,
    EmaCoefficients,
    backward_state_before,
    damped_ema,
    damped_ema_of_part,
    ema_blocks,
    ema_coefficients,
)
from longspan.ops.flax.gated_attention import Keys, Queries, RotaryBias, ToeplitzBias, gated_attention
from longspan.ops.patterns import num_blocks
from longspan.shapes import tokens_of_span

#: parameters that keep their names and orientation in checkpoints
RAW_PARAMETERS = frozenset(
    {"alpha", "b_param", "damping_factor", "decay_factor", "ema_expansion_matrix", "kernel_projection_matrix"}
    | {"qk_bias", "qk_weight", "rel_pos_bias", "residual_weight", "scalar"}
    | {"num_batches_tracked", "running_mean", "running_var"}
)
#: queries of a block that reads one window of a cache
_WINDOW_ROWS = 128


@struct.dataclass
class MegaPlan:
    """What all layers need to know about a call; made once.

    Attributes:
        mask: Which of the new tokens are real, (B, S); None for all.
        key_mask: Which of the tokens that fit the cache are real, (B, L); None for all.
        starts: First real token of each row, (B,), from which its chunks are counted; None for 0.
        past: Tokens read before this call.
        encoder_hidden_states: (B, T, D), if the layers attend to an encoder.
        encoder_mask: Which of those are real, (B, T); None for all.
        implementation: Of the attention.
        needs_weights: Return attention weights.
        deterministic: Nothing is dropped.
    """

    mask: Array | None
    key_mask: Array | None
    starts: Array | None
    past: Array | int
    encoder_hidden_states: Array | None
    encoder_mask: Array | None
    implementation: str = struct.field(pytree_node=False)
    needs_weights: bool = struct.field(pytree_node=False)
    deterministic: bool = struct.field(pytree_node=False)


def make_plan(
    attention_mask: Array | None,
    *,
    length: int,
    past: Array | int,
    capacity: int | None,
    begins_at_first: bool,
    **settings: Any,
) -> MegaPlan:
    """Complete the masks of a call.

    Args:
        attention_mask: Nonzero = real, (B, S); with a cache for the tokens that fit, or up to the new ones.
        length: S.
        past: Tokens in the cache.
        capacity: Tokens that fit the cache, or None without one.
        begins_at_first: The first token of every row is known to be real.
        **settings: The other attributes of `MegaPlan`.
    """
    mask = key_mask = None if attention_mask is None else attention_mask != 0
    starts = None
    if shared_axis() is not None:  # chunks are counted from the first token
        past = share() * length
    elif mask is not None and not begins_at_first:
        starts = jnp.where(mask.any(axis=1), mask.argmax(axis=1), mask.shape[1])
    if mask is not None and capacity is not None:
        key_mask = jnp.pad(mask, ((0, 0), (0, capacity - mask.shape[1])))
        mask = lax.dynamic_slice_in_dim(key_mask, past, length, axis=1)
    return MegaPlan(mask=mask, key_mask=key_mask, starts=starts, past=past, **settings)


def rotate_rows(array: Array, starts: Array, *, back: bool = False) -> Array:
    """Move token `starts` of each row to its beginning, and what stood before it to the end; or the way `back`.

    Args:
        array: (B, S) or (B, S, D).
        starts: (B,).
        back: Undo it.
    """
    shift = -starts if back else starts
    places = (jnp.arange(array.shape[1]) + shift[:, None]) % array.shape[1]
    return jnp.take_along_axis(array, places if array.ndim == 2 else places[..., None], axis=1)


def dense(config: MegaConfig, features: int, *, dtype: Dtype, name: str | None = None) -> Dense:
    """A projection with bias."""
    return Dense(features, kernel_init=kernel_init(config), dtype=dtype, name=name)


def dropout(config: MegaConfig, rate: float) -> nn.Dropout:
    """Dropout of single numbers, or of whole features of a sequence."""
    return nn.Dropout(rate, broadcast_dims=(1,) if config.use_feature_dropout else ())


class FlaxMegaSimpleRelativePositionalBias(nn.Module):
    """One learned number per distance."""

    config: MegaConfig

    @nn.compact
    def __call__(self) -> ToeplitzBias:
        """The bias."""
        config = self.config
        shape = (2 * config.max_positions - 1,)
        weight = parameter(self, "rel_pos_bias", kernel_init(config), shape, jnp.float32)
        return ToeplitzBias(weight, config.bias_positions - 1)


class FlaxMegaRotaryRelativePositionalBias(nn.Module):
    """b_ij = ⟨R_i α, R_j β⟩ with learned α and β."""

    config: MegaConfig

    @nn.compact
    def __call__(self) -> RotaryBias:
        """The bias."""
        config = self.config
        draw, shape = kernel_init(config), (1, config.shared_representation_size)
        return RotaryBias(
            parameter(self, "alpha", draw, shape, jnp.float32), parameter(self, "b_param", draw, shape, jnp.float32)
        )


def make_bias(config: MegaConfig) -> Any:
    """The configured relative bias."""
    simple = config.relative_positional_bias == "simple"
    return FlaxMegaSimpleRelativePositionalBias(config) if simple else FlaxMegaRotaryRelativePositionalBias(config)


class EmaFlow(NamedTuple):
    """What reaches a span of a sequence from its neighbours, and the matrices that all spans share.

    Attributes:
        blocks: Matrices of the EMA.
        state: From the tokens before, (B, D, N).
        backward_state: From the tokens behind, (B, D, N), or None without that direction.
    """

    blocks: EmaBlocks
    state: Array
    backward_state: Array | None


class FlaxMegaMultiDimensionDampedEma(Part):
    """silu(EMA(x) + ω ⊙ x): the multi-dimensional damped average over the tokens, with a residual (eq. 1-3, 5).

    h_t = α ⊙ β x_t + (1 − α ⊙ δ) ⊙ h_{t−1},  y_t = ηᵀ h_t,  in both directions if `config.bidirectional`.
    """

    config: MegaConfig

    def setup(self) -> None:
        """Make the parameters."""
        config = self.config
        channels, size = config.hidden_size * (2 if config.bidirectional else 1), config.ema_projection_size
        shape, logits = (channels, size, 1), normal(config.ema_delta_alpha_range)
        weights = normal(config.ema_gamma_omega_range)
        self.damping_factor = parameter(self, "damping_factor", logits, shape, jnp.float32)  # logit of α
        self.decay_factor = parameter(self, "decay_factor", logits, shape, jnp.float32)  # logit of δ
        self.ema_expansion_matrix = parameter(
            self, "ema_expansion_matrix", _alternating(config.ema_beta_range), shape, jnp.float32
        )  # β
        self.kernel_projection_matrix = parameter(
            self, "kernel_projection_matrix", weights, shape[:2], jnp.float32
        )  # η
        self.residual_weight = parameter(self, "residual_weight", weights, (config.hidden_size,), jnp.float32)  # ω

    def coefficients(self) -> tuple[EmaCoefficients, EmaCoefficients | None]:
        """Coefficients of the forward and, if there is one, of the backward direction."""
        both = ema_coefficients(
            damping_factor=self.damping_factor,
            decay_factor=self.decay_factor,
            expansion=self.ema_expansion_matrix,
            projection=self.kernel_projection_matrix,
        )
        return both.split() if self.config.bidirectional else (both, None)

    @nn.compact
    def __call__(self, inputs: Array, *, mask: Array | None, init_cache: bool = False) -> Array:
        """(B, S, D) -> (B, S, D); tokens that `mask` (B, S) hides are read as 0. The state is in the cache, if any."""
        forward, backward = self.coefficients()
        truncation, exists = self.config.truncation, self.has_variable("cache", "ema_state")
        state = None
        if exists or init_cache:
            shape = (inputs.shape[0], inputs.shape[2], self.config.ema_projection_size + (truncation or 0))
            state = self.variable("cache", "ema_state", jnp.zeros, shape, jnp.float32)
        averaged, after = damped_ema(
            inputs,
            forward,
            backward,
            mask=mask,
            truncation=truncation,
            state=state.value if state is not None and exists else None,
        )
        if state is not None and exists:
            state.value = after
        return self._activate(averaged, inputs)

    def of_span(self, inputs: Array, *, mask: Array | None, flow: EmaFlow) -> tuple[Array, Array]:
        """(B, S, D) -> (B, S, D), as a call, for a span of a sequence; and the state behind it."""
        averaged, after = damped_ema_of_part(
            inputs, flow.blocks, mask=mask, state=flow.state, backward_state=flow.backward_state
        )
        return self._activate(averaged, inputs), after

    def _activate(self, averaged: Array, inputs: Array) -> Array:
        summed = averaged + inputs.astype(jnp.float32) * self.residual_weight.astype(jnp.float32)
        return jax.nn.silu(summed).astype(self.dtype)


def _alternating(std: float) -> Initializer:
    """Around 1, −1, 1, −1, ...: alternating signs keep the sum of the averages small at first."""

    def draw(rng: Array, shape: tuple[int, ...], dtype: Dtype) -> Array:
        return 1.0 + normal(std)(rng, shape, dtype) - 2.0 * (jnp.arange(shape[1]) % 2)[:, None].astype(dtype)

    return draw


class FlaxMegaMovingAverageGatedAttention(Part):
    """Gated attention over averaged tokens (§3.2-3.3, eq. 6-14).

    With X the input and X' its damped average:

        Z = silu(X' W_z),  Q = κ_q ⊙ Z + μ_q,  K = κ_k ⊙ Z + μ_k,  V = act(X W_v)
        O = f(Q Kᵀ / τ + b) V,  γ = silu(X' W_γ),  φ = sigmoid(X' W_φ)
        Y = φ ⊙ act(X' W_h + (γ ⊙ O) U_h) + (1 − φ) ⊙ X
    """

    config: MegaConfig

    def setup(self) -> None:
        """Make the parts."""
        config = self.config
        width, values, shared = config.hidden_size, config.intermediate_size, config.shared_representation_size
        self.activation = get_activation(config.activation)
        self.norm = FlaxMegaSequenceNorm(config, dtype=self.dtype)
        self.ema_gate = FlaxMegaMultiDimensionDampedEma(config, dtype=self.dtype)
        self.v_proj = dense(config, values, dtype=self.dtype)
        self.mx_proj = dense(config, shared + values + 2 * width, dtype=self.dtype)
        self.h_proj = dense(config, width, dtype=self.dtype)
        self.qk_weight = parameter(self, "qk_weight", kernel_init(config), (2, shared), jnp.float32)  # κ
        self.qk_bias = parameter(self, "qk_bias", zeros, (2, shared), jnp.float32)  # μ
        self.rel_pos_bias = make_bias(config)
        self.dropout = dropout(config, config.dropout_prob)
        self.hidden_dropout = dropout(config, config.hidden_dropout_prob)

    def __call__(
        self, hidden_states: Array, plan: MegaPlan, *, init_cache: bool = False, flow: EmaFlow | None = None
    ) -> tuple[Array, Array | None, Array | None]:
        """(B, S, D) -> (B, S, D); weights are (B, chunks, C, C), without chunks (B, 1, S, S); for a span its state."""
        config = self.config
        width, values, shared = config.hidden_size, config.intermediate_size, config.shared_representation_size
        x, state = self.normalize_inputs(hidden_states, plan), None
        value = self.activation(self.v_proj(x))
        if flow is None:
            averaged = self.ema_gate(x, mask=plan.mask, init_cache=init_cache)
        else:
            averaged, state = self.ema_gate.of_span(x, mask=plan.mask, flow=flow)
        mixed = self.mx_proj(self.dropout(averaged, deterministic=plan.deterministic))
        update_gate, common, attention_gate, candidate = jnp.split(
            mixed, (width, width + shared, width + shared + values), axis=-1
        )
        common = jax.nn.silu(common)
        scales, shifts = self.qk_weight.astype(self.dtype), self.qk_bias.astype(self.dtype)
        query, key = (common * scales[index] + shifts[index] for index in (0, 1))
        value = self.hidden_dropout(value, deterministic=plan.deterministic)
        attended, weights = self._attend(query, key, value, plan, init_cache)
        gated = self.h_proj(attended * jax.nn.silu(attention_gate))
        candidate = self.dropout(self.activation(candidate + gated), deterministic=plan.deterministic)
        output = _update(hidden_states, candidate, update_gate)
        if not config.normalize_before_mega:
            output = self.norm(output, deterministic=plan.deterministic)
        return output, weights, state

    def normalize_inputs(self, hidden_states: Array, plan: MegaPlan) -> Array:
        """(B, S, D) -> (B, S, D), what the average and the values are made of."""
        before = self.config.normalize_before_mega
        return self.norm(hidden_states, deterministic=plan.deterministic) if before else hidden_states

    def _attend(
        self, query: Array, key: Array, value: Array, plan: MegaPlan, init_cache: bool
    ) -> tuple[Array, Array | None]:
        """Output (B, S, V) and weights."""
        config, rng = self.config, self._dropout_rng(plan)
        chunk_size = config.chunk_size if config.use_chunking else None
        if init_cache or self.has_variable("cache", "cached_key"):
            places = plan.past + jnp.arange(query.shape[1])
            key, value = self._extend_cache(key, value)
            if chunk_size is not None and not init_cache:
                return self._attend_in_windows(Queries(query, places, None), key, value, plan, chunk_size, rng)
            keys = Keys(key, value, jnp.arange(key.shape[1]), None, plan.key_mask, self.rel_pos_bias())
            return self._weighted_sum(Queries(query, places, None), keys, plan, rng)
        if chunk_size is not None:
            return self._attend_in_chunks(query, key, value, plan, chunk_size, rng)
        mask = None if plan.mask is None else whole(plan.mask)
        key, value = whole(key), whole(value)
        keys = Keys(key, value, jnp.arange(key.shape[1]), None, mask, self.rel_pos_bias())
        return self._weighted_sum(Queries(query, token_places(query.shape[1]), None), keys, plan, rng)

    @nn.compact
    def _extend_cache(self, key: Array, value: Array) -> tuple[Array, Array]:
        """Write new keys (B, S, Z) and values (B, S, V) behind those of the cache; returns all of them."""
        key, value = extend_cache(self, key[:, :, None], value[:, :, None])
        return key[:, :, 0], value[:, :, 0]

    def _dropout_rng(self, plan: MegaPlan) -> Array | None:
        """Random key of the dropout of weights, or None if nothing is dropped."""
        drops = not plan.deterministic and self.config.attention_probs_dropout_prob > 0.0
        return self.make_rng("dropout") if drops else None

    def _attend_in_chunks(
        self, query: Array, key: Array, value: Array, plan: MegaPlan, size: int, rng: Array | None
    ) -> tuple[Array, Array | None]:
        """Chunks begin at the first real token of a row, and the last one is padded."""
        batch, length, _ = query.shape
        check_share(length, unit=size)
        size = min(size, length) if isinstance(length, int) else size
        count = num_blocks(length, size)
        missing, mask = count * size - length, plan.mask
        if mask is None and not self.config.is_decoder:
            # padding lies behind all that a causal query sees, but a query of an encoder must not see it
            mask = jnp.ones((batch, length), bool) if not isinstance(missing, int) or missing else None
        parts = [query, key, value, *([] if mask is None else [mask])]
        if plan.starts is not None:
            parts = [rotate_rows(part, plan.starts) for part in parts]
        parts = [jnp.pad(part, ((0, 0), (0, missing), (0, 0))[: part.ndim]) for part in parts]
        parts = [part.reshape(batch * count, size, *part.shape[2:]) for part in parts]
        places = jnp.arange(size)
        keys = Keys(parts[1], parts[2], places, None, None if mask is None else parts[3], self.rel_pos_bias())
        attended, weights = self._weighted_sum(Queries(parts[0], places, None), keys, plan, rng, chunks=count)
        attended = attended.reshape(batch, count * size, -1)[:, :length]
        if plan.starts is not None:
            attended = rotate_rows(attended, plan.starts, back=True)
        return attended, weights

    def _attend_in_windows(
        self, queries: Queries, key: Array, value: Array, plan: MegaPlan, size: int, rng: Array | None
    ) -> tuple[Array, Array | None]:
        """With a cache: some queries at a time read what lies at most a chunk before them, and see their own chunk."""
        batch, length, width = queries.states.shape
        rows = length if plan.needs_weights else min(_WINDOW_ROWS, length)
        count, span = num_blocks(length, rows), min(size - 1 + rows, key.shape[1])
        starts = jnp.zeros(batch, jnp.int32) if plan.starts is None else plan.starts
        bias = self.rel_pos_bias()
        states = jnp.pad(queries.states, ((0, 0), (0, count * rows - length), (0, 0)))
        blocks = states.reshape(batch, count, rows, width).swapaxes(0, 1)

        def attend(block: Array, number: Array | int) -> tuple[Array, Array | None]:
            places = plan.past + number * rows + jnp.arange(rows)
            first = jnp.clip(places[0] - (size - 1), 0, key.shape[1] - span)
            seen = first + jnp.arange(span)
            near, read = (lax.dynamic_slice_in_dim(array, first, span, axis=1) for array in (key, value))
            mask = plan.key_mask
            mask = None if mask is None else lax.dynamic_slice_in_dim(mask, first, span, axis=1)
            own, others = ((position - starts[:, None]) // size for position in (places, seen))
            keys = Keys(near, read, seen, others, mask, bias)
            own_rng = None if rng is None else jax.random.fold_in(rng, number)
            return self._weighted_sum(Queries(block, places, own), keys, plan, own_rng)

        if count == 1:
            return attend(blocks[0], 0)
        outputs = lax.map(lambda item: attend(*item)[0], (blocks, jnp.arange(count)))
        return outputs.swapaxes(0, 1).reshape(batch, count * rows, -1)[:, :length], None

    def _weighted_sum(
        self, queries: Queries, keys: Keys, plan: MegaPlan, rng: Array | None, *, chunks: int = 1
    ) -> tuple[Array, Array | None]:
        """Output (R, T, V), and weights (B, chunks, T, S) or None."""
        config = self.config
        output, weights = gated_attention(
            queries,
            keys,
            activation=config.attention_activation,
            causal=config.is_decoder,
            dropout=0.0 if rng is None else config.attention_probs_dropout_prob,
            dropout_rng=rng,
            implementation=plan.implementation,
            return_weights=plan.needs_weights,
        )
        return output, None if weights is None else weights.reshape(-1, chunks, *weights.shape[1:])


def _update(hidden_states: Array, candidate: Array, gate: Array) -> Array:
    """φ ⊙ candidate + (1 − φ) ⊙ X for the logit of φ."""
    share = jax.nn.sigmoid(gate)
    return hidden_states + share * (candidate - hidden_states)


class FlaxMegaGatedCrossAttention(Part):
    """Gated attention of a decoder to the states of an encoder (§3.5).

    With X the decoder's tokens and E the encoder's states:

        [φ, γ, Q] = [sigmoid, silu, identity](X W_q),  K = E W_k,  V = act(E W_v)
        Y = φ ⊙ act((γ ⊙ f(Q Kᵀ / τ + b) V) W_h) + (1 − φ) ⊙ X
    """

    config: MegaConfig

    def setup(self) -> None:
        """Make the parts."""
        config = self.config
        width, shared = config.hidden_size, config.shared_representation_size
        self.activation = get_activation(config.activation)
        self.norm = FlaxMegaSequenceNorm(config, dtype=self.dtype)
        self.k_proj = dense(config, shared, dtype=self.dtype)
        self.v_proj = dense(config, width, dtype=self.dtype)
        self.q_proj = dense(config, 2 * width + shared, dtype=self.dtype)
        self.h_proj = dense(config, width, dtype=self.dtype)
        self.rel_pos_bias = make_bias(config)
        self.dropout = dropout(config, config.dropout_prob)
        self.hidden_dropout = dropout(config, config.hidden_dropout_prob)

    def __call__(self, hidden_states: Array, plan: MegaPlan) -> tuple[Array, Array | None]:
        """(B, S, D) -> (B, S, D), and weights (B, S, T) or None."""
        config, width, states = self.config, self.config.hidden_size, plan.encoder_hidden_states
        norm = partial(self.norm, deterministic=plan.deterministic)
        x = norm(hidden_states) if config.normalize_before_mega else hidden_states
        update_gate, attention_gate, query = jnp.split(self.q_proj(x), (width, 2 * width), axis=-1)
        assert states is not None
        value = self.hidden_dropout(self.activation(self.v_proj(states)), deterministic=plan.deterministic)
        places = jnp.arange(states.shape[1])
        rate = 0.0 if plan.deterministic else config.attention_probs_dropout_prob
        attended, weights = gated_attention(
            Queries(query, plan.past + jnp.arange(query.shape[1]), None),
            Keys(self.k_proj(states), value, places, None, plan.encoder_mask, self.rel_pos_bias()),
            activation=config.attention_activation,
            dropout=rate,
            dropout_rng=self.make_rng("dropout") if rate > 0.0 else None,
            implementation=plan.implementation,
            return_weights=plan.needs_weights,
        )
        candidate = self.activation(self.h_proj(attended * jax.nn.silu(attention_gate)))
        output = _update(hidden_states, self.dropout(candidate, deterministic=plan.deterministic), update_gate)
        return output if config.normalize_before_mega else norm(output), weights


class FlaxMegaNormalizedFeedForwardNetwork(Part):
    """X + W₂ act(W₁ norm(X)), or norm(X + W₂ act(W₁ X))."""

    config: MegaConfig

    def setup(self) -> None:
        """Make the parts."""
        config = self.config
        self.activation = get_activation(config.activation)
        self.norm = FlaxMegaSequenceNorm(config, dtype=self.dtype)
        self.fc1 = dense(config, config.nffn_hidden_size, dtype=self.dtype)
        self.fc2 = dense(config, config.hidden_size, dtype=self.dtype)
        self.dropout = dropout(config, config.dropout_prob)
        self.hidden_dropout = dropout(config, config.nffn_activation_dropout_prob)

    def __call__(self, hidden_states: Array, *, deterministic: bool) -> Array:
        """(B, S, D) -> (B, S, D)."""
        apply = partial(self._apply, deterministic=deterministic)
        width = self.config.nffn_hidden_size
        return tokenwise(apply, hidden_states, owner=self, width=width, deterministic=deterministic)

    def _apply(self, hidden_states: Array, *, deterministic: bool) -> Array:
        before = self.config.normalize_before_ffn
        norm = partial(self.norm, deterministic=deterministic)
        x = self.activation(self.fc1(norm(hidden_states) if before else hidden_states))
        x = self.fc2(self.hidden_dropout(x, deterministic=deterministic))
        output = hidden_states + self.dropout(x, deterministic=deterministic)
        return output if before else norm(output)


class FlaxMegaBlock(Part):
    """One layer: gated attention, in a decoder with an encoder cross-attention, and the feed-forward layer."""

    config: MegaConfig

    def setup(self) -> None:
        """Make the parts."""
        config = self.config
        self.mega_layer = FlaxMegaMovingAverageGatedAttention(config, dtype=self.dtype)
        if config.use_normalized_ffn:
            self.nffn = FlaxMegaNormalizedFeedForwardNetwork(config, dtype=self.dtype)
        if config.add_cross_attention:
            self.cross_attn = FlaxMegaGatedCrossAttention(config, dtype=self.dtype)

    def __call__(
        self, hidden_states: Array, plan: MegaPlan, init_cache: bool = False
    ) -> tuple[Array, Array | None, Array | None]:
        """(B, S, D) -> (B, S, D), weights of the attention and of the cross-attention."""
        span = None if init_cache else self._tokens_of_span(hidden_states, plan)
        if span is not None:
            return self._in_spans(hidden_states, plan, span), None, None
        hidden_states, weights, _ = self.mega_layer(hidden_states, plan, init_cache=init_cache)
        hidden_states, cross_weights = self._behind_attention(hidden_states, plan)
        return hidden_states, weights, cross_weights

    def _behind_attention(self, hidden_states: Array, plan: MegaPlan) -> tuple[Array, Array | None]:
        cross_weights = None
        if self.config.add_cross_attention:
            hidden_states, cross_weights = self.cross_attn(hidden_states, plan)
        if self.config.use_normalized_ffn:
            hidden_states = self.nffn(hidden_states, deterministic=plan.deterministic)
        return hidden_states, cross_weights

    def _tokens_of_span(self, hidden_states: Array, plan: MegaPlan) -> int | None:
        """Tokens of each row to be read at a time, or None to read all of them at once.

        In chunks, only the average reaches beyond a span, and it does so by its state.
        """
        config = self.config
        in_spans = config.use_chunking and config.truncation is None and plan.starts is None
        if not in_spans or plan.needs_weights or shared_axis() is not None:
            return None
        if not may_loop(self, hidden_states, deterministic=plan.deterministic) or self._has_cache():
            return None
        batch, length, width = hidden_states.shape
        widest = max(2 * width + config.intermediate_size + config.shared_representation_size, config.nffn_hidden_size)
        unit = math.lcm(config.chunk_size, BLOCK_SIZE)
        return tokens_of_span(length, batch=batch, width=widest, unit=unit)

    def _has_cache(self) -> bool:
        return self.mega_layer.has_variable("cache", "cached_key")

    def _in_spans(self, hidden_states: Array, plan: MegaPlan, span: int) -> Array:
        """(B, S, D) -> (B, S, D), span by span: what a layer needs besides its input is that of one span."""
        layer = self.mega_layer
        batch, length, width = hidden_states.shape
        count = num_blocks(length, span)
        missing, mask = count * span - length, plan.mask
        if mask is None and missing:
            mask = jnp.ones((batch, length), bool)

        def cut(array: Array) -> Array:
            padded = jnp.pad(array, ((0, 0), (0, missing), (0, 0))[: array.ndim])
            return padded.reshape(batch, count, span, *array.shape[2:]).swapaxes(0, 1)

        blocks = ema_blocks(*layer.ema_gate.coefficients(), size=BLOCK_SIZE)
        spans, masks = cut(hidden_states), None if mask is None else cut(mask)
        nothing = jnp.zeros((batch, width, self.config.ema_projection_size))

        def read_back(behind: Array, part: tuple[Array, Array | None]) -> tuple[Array, Array]:
            x = layer.normalize_inputs(part[0], plan)
            return backward_state_before(x, blocks, mask=part[1], backward_state=behind), behind

        def read(state: Array, part: tuple[Array, Array | None, Array | None, Array]) -> tuple[Array, Array]:
            states, mask, behind, number = part
            own = dataclasses.replace(plan, mask=mask, past=plan.past + number * span)
            states, _, after = layer(states, own, flow=EmaFlow(blocks, state, behind))
            assert after is not None
            return after, self._behind_attention(states, own)[0]

        behind = None if blocks.backward is None else lax.scan(read_back, nothing, (spans, masks), reverse=True)[1]
        _, outputs = lax.scan(read, nothing, (spans, masks, behind, jnp.arange(count)))
        return outputs.swapaxes(0, 1).reshape(batch, count * span, width)[:, :length]


class FlaxMegaLayers(Stack):
    """The layers, named by their index as in checkpoint keys."""

    config: MegaConfig

    def setup(self) -> None:
        """Make the parts."""
        layer: Any = nn.remat(FlaxMegaBlock, static_argnums=(3,)) if self.gradient_checkpointing else FlaxMegaBlock
        self.layers = [
            layer(self.config, dtype=self.dtype, name=str(index)) for index in range(self.config.num_hidden_layers)
        ]

    def __call__(
        self, hidden_states: Array, plan: MegaPlan, init_cache: bool
    ) -> tuple[list[Array], list[Any], list[Any]]:
        """(B, S, D) -> states (the given ones first), weights of attention and cross-attention, by layer."""
        states, attentions, cross_attentions = [hidden_states], [], []
        for layer in self.layers:
            hidden_states, weights, cross_weights = layer(hidden_states, plan, init_cache)
            states.append(hidden_states)
            attentions.append(weights)
            cross_attentions.append(cross_weights)
        return states, attentions, cross_attentions
