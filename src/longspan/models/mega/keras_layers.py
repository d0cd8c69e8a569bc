"""The layers of MEGA (Ma et al., 2022, https://arxiv.org/abs/2209.10655) in Keras 3.

Axes: B batch, S tokens, D width, Z width of queries and keys, V width of values, C tokens of a chunk, T encoder tokens,
L tokens that fit a cache.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops

from longspan.models.mega.config import MegaConfig
from longspan.models.mega.keras_norms import MegaSequenceNorm
from longspan.nn.keras.activations import get_activation
from longspan.nn.keras.checks import Size, check_shape
from longspan.nn.keras.initializers import Normal
from longspan.nn.keras.layers import Block, HeavyTailedDense, linear, may_loop, take_tokens, tokenwise
from longspan.nn.keras.masks import as_boolean
from longspan.nn.keras.outputs import Tensors
from longspan.nn.keras.runtime import is_concrete, is_tensorflow
from longspan.ops.keras import Tensor
from longspan.ops.keras.damped_ema import (
    BLOCK_SIZE,
    EmaBlocks,
    EmaCoefficients,
    backward_state_before,
    damped_ema,
    damped_ema_of_part,
    ema_blocks,
    ema_coefficients,
)
from longspan.ops.keras.gated_attention import Keys, RotaryBias, ToeplitzBias, gated_attention
from longspan.ops.keras.scan import scan
from longspan.ops.keras.sliding_window import cut_spans
from longspan.shapes import tokens_of_block

#: how many times as long spans are in TensorFlow's graphs, whose loops cost more a step
_LONGER_IN_GRAPHS = 4
#: what a layer remembers: keys (B, M + L, Z) and values (B, M + L, V), with chunks behind a margin of M = C − 1 places;
#: the state of the average (B, D, …); and how many tokens it has read, (B,), the same number in all rows
LayerCache: TypeAlias = Tensors


@dataclass(frozen=True)
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
    """

    mask: Tensor | None
    key_mask: Tensor | None
    starts: Tensor | None
    past: Size
    encoder_hidden_states: Tensor | None
    encoder_mask: Tensor | None
    implementation: str
    needs_weights: bool


def make_plan(
    attention_mask: Tensor | None,
    *,
    shape: tuple[Size, Size],
    past: Size,
    capacity: int | None,
    encoder_hidden_states: Tensor | None,
    encoder_attention_mask: Tensor | None,
    **settings: Any,
) -> MegaPlan:
    """Complete the masks of a call.

    Args:
        attention_mask: Nonzero = real, (B, S); with a cache for the tokens that fit, or up to the new ones.
        shape: (B, S).
        past: Tokens in the cache.
        capacity: Tokens that fit the cache, or None without one.
        encoder_hidden_states: States that cross-attention reads, (B, T, D).
        encoder_attention_mask: Their padding mask, (B, T).
        **settings: The other attributes of `MegaPlan`.

    Raises:
        InputError: a mask has the wrong shape.
    """
    if capacity is None:
        check_shape(attention_mask, shape, name="attention_mask", axes="(batch, tokens)")
    mask = None if attention_mask is None else as_boolean(attention_mask)
    if capacity is None and mask is not None and is_concrete(mask) and bool(ops.all(mask)):
        mask = None
    key_mask = starts = None
    if mask is not None and not (is_concrete(mask) and bool(ops.all(mask[:, 0]))):
        first = ops.argmax(ops.cast(mask, "int32"), axis=1)
        starts = ops.where(ops.any(mask, axis=1), ops.cast(first, "int32"), ops.shape(mask)[1])
    if mask is not None and capacity is not None:
        key_mask = ops.pad(mask, ((0, 0), (0, capacity - ops.shape(mask)[1])))
        mask = ops.slice(key_mask, (0, past), (ops.shape(mask)[0], shape[1]))
    encoder_mask = None
    if encoder_hidden_states is not None and encoder_attention_mask is not None:
        source = (shape[0], ops.shape(encoder_hidden_states)[1])
        check_shape(encoder_attention_mask, source, name="encoder_attention_mask", axes="(batch, tokens)")
        encoder_mask = as_boolean(encoder_attention_mask)
    return MegaPlan(mask, key_mask, starts, past, encoder_hidden_states, encoder_mask, **settings)


def rotate_rows(tensor: Tensor, starts: Tensor, *, back: bool = False) -> Tensor:
    """Move token `starts` of each row to its beginning, and what stood before it to the end; or the way `back`.

    Args:
        tensor: (B, S) or (B, S, D).
        starts: (B,).
        back: Undo it.
    """
    length = ops.shape(tensor)[1]
    shift = -starts if back else starts
    return take_tokens(tensor, (ops.arange(length, dtype="int32") + shift[:, None]) % length)


def dropout(config: MegaConfig, rate: float, *, dtype: Any) -> keras.layers.Layer:
    """Dropout of single numbers, or of whole features of a sequence."""
    kind = keras.layers.SpatialDropout1D if config.use_feature_dropout else keras.layers.Dropout
    return kind(rate, dtype=dtype)


class MegaSimpleRelativePositionalBias(Block):
    """One learned number per distance."""

    def __init__(self, config: MegaConfig, **kwargs: Any) -> None:
        super().__init__(config.hidden_size, **kwargs)
        self.config = config

    def build(self, input_shape: Any = None) -> None:
        """Make the weight."""
        config = self.config
        size, draw = 2 * config.max_positions - 1, Normal(stddev=config.initializer_range)
        self.rel_pos_bias = self.add_parameter("rel_pos_bias", (size,), draw)

    def make(self) -> ToeplitzBias:
        """The bias."""
        return ToeplitzBias(ops.convert_to_tensor(self.rel_pos_bias), self.config.bias_positions - 1)


class MegaRotaryRelativePositionalBias(Block):
    """b_ij = ⟨R_i α, R_j β⟩ with learned α and β."""

    def __init__(self, config: MegaConfig, **kwargs: Any) -> None:
        super().__init__(config.hidden_size, **kwargs)
        self.config = config

    def build(self, input_shape: Any = None) -> None:
        """Make the weights."""
        config = self.config
        for name in ("alpha", "b_param"):
            draw = Normal(stddev=config.initializer_range)
            setattr(self, name, self.add_parameter(name, (1, config.shared_representation_size), draw))

    def make(self) -> RotaryBias:
        """The bias."""
        return RotaryBias(ops.convert_to_tensor(self.alpha), ops.convert_to_tensor(self.b_param))


def make_bias(config: MegaConfig, *, dtype: Any) -> Any:
    """The layer of the configured relative bias."""
    simple = config.relative_positional_bias == "simple"
    kind = MegaSimpleRelativePositionalBias if simple else MegaRotaryRelativePositionalBias
    return kind(config, dtype=dtype, name="rel_pos_bias")


@keras.saving.register_keras_serializable(package="longspan")
class AlternatingNormal(Normal):
    """Normal random values around 1, −1, 1, −1, ... along the second axis, which keep the sum of averages small."""

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """Values of one weight."""
        values = super().__call__(shape, dtype=dtype)
        return values + ops.cast(1 - 2 * (ops.arange(shape[1]) % 2), values.dtype)[:, None]


@dataclass(frozen=True)
class EmaFlow:
    """What reaches a span of a sequence from its neighbours, and the matrices that all spans share.

    Attributes:
        blocks: Matrices of the EMA.
        state: From the tokens before, (B, D, N).
        backward_state: From the tokens behind, (B, D, N), or None without that direction.
    """

    blocks: EmaBlocks
    state: Tensor
    backward_state: Tensor | None


class MegaMultiDimensionDampedEma(Block):
    """silu(EMA(x) + ω ⊙ x): the multi-dimensional damped average over the tokens, with a residual (eq. 1-3, 5).

    h_t = α ⊙ β x_t + (1 − α ⊙ δ) ⊙ h_{t−1},  y_t = ηᵀ h_t,  in both directions if `config.bidirectional`.
    """

    def __init__(self, config: MegaConfig, **kwargs: Any) -> None:
        super().__init__(config.hidden_size, **kwargs)
        self.config = config

    def build(self, input_shape: Any = None) -> None:
        """Make the weights."""
        config = self.config
        channels, size = config.hidden_size * (2 if config.bidirectional else 1), config.ema_projection_size
        add, shape = self.add_parameter, (channels, size, 1)
        logits, weights = (Normal(stddev=std) for std in (config.ema_delta_alpha_range, config.ema_gamma_omega_range))
        self.damping_factor = add("damping_factor", shape, logits)  # logit of α
        self.decay_factor = add("decay_factor", shape, logits.clone())  # logit of δ
        self.ema_expansion_matrix = add(  # β
            "ema_expansion_matrix", shape, AlternatingNormal(stddev=config.ema_beta_range)
        )
        self.kernel_projection_matrix = add("kernel_projection_matrix", shape[:2], weights)  # η
        self.residual_weight = add("residual_weight", (config.hidden_size,), weights.clone())  # ω

    def coefficients(self) -> tuple[EmaCoefficients, EmaCoefficients | None]:
        """Coefficients of the forward and, if there is one, of the backward direction."""
        parameters = {
            "damping_factor": self.damping_factor,
            "decay_factor": self.decay_factor,
            "expansion": self.ema_expansion_matrix,
            "projection": self.kernel_projection_matrix,
        }
        both = ema_coefficients(**{name: ops.convert_to_tensor(value) for name, value in parameters.items()})
        return both.split() if self.config.bidirectional else (both, None)

    def call(
        self, inputs: Tensor, *, real: Tensor | None, state: Tensor | None, flow: EmaFlow | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, S, D) -> (B, S, D), and from the state before them that behind them; tokens not `real` are read as 0."""
        if flow is not None:
            averaged, after = damped_ema_of_part(
                inputs,
                flow.blocks,
                mask=real,
                state=flow.state,
                backward_state=flow.backward_state,
            )
        else:
            averaged, after = damped_ema(
                inputs,
                *self.coefficients(),
                mask=real,
                truncation=self.config.truncation,
                state=state,
                return_state=state is not None,
            )
        residual = ops.cast(inputs, averaged.dtype) * ops.cast(self.residual_weight, averaged.dtype)
        return ops.cast(ops.silu(averaged + residual), inputs.dtype), after


class MegaMovingAverageGatedAttention(Block):
    """Gated attention over averaged tokens (§3.2-3.3, eq. 6-14).

    With X the input and X' its damped average:

        Z = silu(X' W_z),  Q = κ_q ⊙ Z + μ_q,  K = κ_k ⊙ Z + μ_k,  V = act(X W_v)
        O = f(Q Kᵀ / τ + b) V,  γ = silu(X' W_γ),  φ = sigmoid(X' W_φ)
        Y = φ ⊙ act(X' W_h + (γ ⊙ O) U_h) + (1 − φ) ⊙ X
    """

    def __init__(self, config: MegaConfig, **kwargs: Any) -> None:
        super().__init__(config.hidden_size, **kwargs)
        self.config, policy = config, self.dtype_policy
        width, values, shared = config.hidden_size, config.intermediate_size, config.shared_representation_size
        project = partial(linear, stddev=config.initializer_range, dtype=policy)
        self.activation = get_activation(config.activation)
        self.norm = MegaSequenceNorm(config, dtype=policy, name="norm")
        self.ema_gate = MegaMultiDimensionDampedEma(config, dtype=policy, name="ema_gate")
        self.v_proj = project(values, name="v_proj")
        # the average adds up what tokens share: its largest numbers lie 5 to 6 standard deviations from 0
        self.mx_proj = project(shared + values + 2 * width, name="mx_proj", kind=HeavyTailedDense)
        self.h_proj = project(width, name="h_proj")
        self.rel_pos_bias = make_bias(config, dtype=policy)
        self.dropout = dropout(config, config.dropout_prob, dtype=policy)
        self.hidden_dropout = dropout(config, config.hidden_dropout_prob, dtype=policy)
        self.attention_dropout = keras.layers.Dropout(config.attention_probs_dropout_prob, dtype=policy)

    def build(self, input_shape: Any = None) -> None:
        """Make the weights."""
        config = self.config
        shape = (2, config.shared_representation_size)
        self.qk_weight = self.add_parameter("qk_weight", shape, Normal(stddev=config.initializer_range))  # κ
        self.qk_bias = self.add_parameter("qk_bias", shape, "zeros")  # μ
        self.h_proj.build((None, config.intermediate_size))
        super().build()

    def call(
        self,
        hidden_states: Tensor,
        *,
        plan: MegaPlan,
        cache: LayerCache | None = None,
        flow: EmaFlow | None = None,
        training: bool | None = None,
    ) -> tuple[Tensor, Tensor, Any]:
        """(B, S, D) -> (B, S, D), weights (B, chunks, C, C), or (B, 1, S, S) without chunks, and the cache.

        Of a span, the state of the average stands in the place of the cache.
        """
        config = self.config
        width, values, shared = config.hidden_size, config.intermediate_size, config.shared_representation_size
        x = self.normalize_inputs(hidden_states, training=training)
        value = self.hidden_dropout(self.activation(self.v_proj(x)), training=training)
        averaged, state = self.ema_gate(x, real=plan.mask, state=None if cache is None else cache[2], flow=flow)
        mixed = self.mx_proj(self.dropout(averaged, training=training))
        update_gate, common, attention_gate, candidate = ops.split(
            mixed, (width, width + shared, width + shared + values), axis=-1
        )
        common = ops.silu(common)
        scales, shifts = (ops.cast(weight, common.dtype) for weight in (self.qk_weight, self.qk_bias))
        query, key = (common * scales[index] + shifts[index] for index in (0, 1))
        drop = partial(self.attention_dropout, training=training) if training else None
        attended, weights, held = self._attend(query, key, value, plan, cache, drop)
        gated = self.h_proj(attended * ops.silu(attention_gate))
        candidate = self.dropout(self.activation(candidate + gated), training=training)
        output = _update(hidden_states, candidate, update_gate)
        output = output if config.normalize_before_mega else self.norm(output, training=training)
        if flow is not None:
            return output, weights, state
        after = None if cache is None or held is None else (*held, state, cache[3] + ops.shape(query)[1])
        return output, weights, after

    def normalize_inputs(self, hidden_states: Tensor, *, training: bool | None) -> Tensor:
        """(B, S, D) -> (B, S, D), what the average and the values are made of."""
        before = self.config.normalize_before_mega
        return self.norm(hidden_states, training=training) if before else hidden_states

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, plan: MegaPlan, cache: LayerCache | None, drop: Any
    ) -> tuple[Tensor, Tensor, Tensors | None]:
        """Output (B, S, V), weights, and the keys and values that the cache then holds."""
        config = self.config
        weigh = partial(
            gated_attention,
            activation=config.attention_activation,
            causal=config.is_decoder,
            dropout=drop,
            implementation=plan.implementation,
        )
        bias, places = self.rel_pos_bias.make(), ops.arange(ops.shape(query)[1], dtype="int32")
        if cache is None:
            if config.use_chunking:
                return *self._attend_in_chunks(query, key, value, plan, bias, weigh), None
            attended, weights = weigh(query, places, Keys(key, value, places, plan.mask, bias))
            return attended, weights[:, None], None
        margin = config.chunk_size - 1 if config.use_chunking else 0
        key, value = (
            ops.slice_update(old, (0, margin + plan.past, 0), ops.cast(new, old.dtype))
            for old, new in zip(cache[:2], (key, value), strict=True)
        )
        if config.use_chunking:
            return *self._attend_in_windows(query, key, value, plan, bias, weigh), (key, value)
        held = ops.arange(key.shape[1], dtype="int32")
        attended, weights = weigh(query, plan.past + places, Keys(key, value, held, plan.key_mask, bias))
        return attended, weights[:, None], (key, value)

    def _attend_in_chunks(
        self, query: Tensor, key: Tensor, value: Tensor, plan: MegaPlan, bias: Any, weigh: Any
    ) -> tuple[Tensor, Tensor]:
        """Chunks begin at the first real token of a row, and the last one is padded."""
        batch, length, _ = ops.shape(query)
        limit = self.config.chunk_size
        if isinstance(length, int):
            size = min(limit, length)
        else:
            size = ops.minimum(limit, length) if is_tensorflow() else limit
        count = -(-length // size)
        missing, mask = count * size - length, plan.mask
        if mask is None and not self.config.is_decoder and not (isinstance(missing, int) and missing == 0):
            # padding lies behind all that a causal query sees, but a query of an encoder must not see it
            mask = ops.ones((batch, length), "bool")
        parts = [query, key, value] if mask is None else [query, key, value, mask]
        if plan.starts is not None:
            parts = [rotate_rows(part, plan.starts) for part in parts]
        parts = [ops.pad(part, ((0, 0), (0, missing), (0, 0))[: len(part.shape)]) for part in parts]
        parts = [ops.reshape(part, (batch * count, size, *part.shape[2:])) for part in parts]
        places = ops.arange(size, dtype="int32")
        attended, weights = weigh(
            parts[0], places, Keys(parts[1], parts[2], places, None if mask is None else parts[3], bias)
        )
        attended = ops.reshape(attended, (batch, count * size, value.shape[2]))[:, :length]
        if plan.starts is not None:
            attended = rotate_rows(attended, plan.starts, back=True)
        return attended, ops.reshape(weights, (batch, count, size, size))

    def _attend_in_windows(
        self, query: Tensor, key: Tensor, value: Tensor, plan: MegaPlan, bias: Any, weigh: Any
    ) -> tuple[Tensor, Tensor]:
        """With a cache: blocks of at most C queries read what lies up to a chunk before them, and see their chunk."""
        batch, length, _ = ops.shape(query)
        size, margin = self.config.chunk_size, self.config.chunk_size - 1
        rows = min(size, length) if isinstance(length, int) else size
        count, span = -(-length // rows), margin + rows

        def cut(states: Tensor) -> Tensor:
            """(B, M + L, X) -> (B · blocks, M + R, X)."""
            width = states.shape[2]
            near = ops.slice(states, (0, plan.past, 0), (batch, margin + length, width))
            spans = cut_spans(near[:, None], count, rows, before=0, columns=span)
            return ops.reshape(spans, (batch * count, span, width))

        blocks = ops.pad(query, ((0, 0), (0, count * rows - length), (0, 0)))
        blocks = ops.reshape(blocks, (batch * count, rows, query.shape[2]))
        starts = ops.zeros((batch,), "int32") if plan.starts is None else plan.starts
        begun = (plan.past + ops.arange(count * rows, dtype="int32") - starts[:, None]) % size
        begun = ops.reshape(begun, (batch * count, rows, 1))
        visible = begun >= margin + np.arange(rows, dtype="int32")[:, None] - np.arange(span, dtype="int32")
        if plan.key_mask is not None:
            real = ops.pad(ops.cast(plan.key_mask, "int32"), ((0, 0), (margin, 0)))[..., None]
            visible = ops.logical_and(visible, ops.transpose(cut(real), (0, 2, 1)) > 0)
        places = np.arange(span, dtype="int32")
        keys = Keys(cut(key), cut(value), ops.convert_to_tensor(places), visible, bias)
        attended, weights = weigh(blocks, ops.convert_to_tensor(places[margin:]), keys)
        attended = ops.reshape(attended, (batch, count * rows, value.shape[2]))[:, :length]
        return attended, ops.reshape(weights, (batch, count, rows, span))


def _update(hidden_states: Tensor, candidate: Tensor, gate: Tensor) -> Tensor:
    """φ ⊙ candidate + (1 − φ) ⊙ X for the logit of φ."""
    return hidden_states + ops.sigmoid(gate) * (candidate - hidden_states)


class MegaGatedCrossAttention(Block):
    """Gated attention of a decoder to the states of an encoder (§3.5).

    With X the decoder's tokens and E the encoder's states:

        [φ, γ, Q] = [sigmoid, silu, identity](X W_q),  K = E W_k,  V = act(E W_v)
        Y = φ ⊙ act((γ ⊙ f(Q Kᵀ / τ + b) V) W_h) + (1 − φ) ⊙ X
    """

    def __init__(self, config: MegaConfig, **kwargs: Any) -> None:
        super().__init__(config.hidden_size, **kwargs)
        self.config, policy = config, self.dtype_policy
        width, shared = config.hidden_size, config.shared_representation_size
        project = partial(linear, stddev=config.initializer_range, dtype=policy)
        self.activation = get_activation(config.activation)
        self.norm = MegaSequenceNorm(config, dtype=policy, name="norm")
        self.k_proj, self.v_proj = project(shared, name="k_proj"), project(width, name="v_proj")
        self.q_proj, self.h_proj = project(2 * width + shared, name="q_proj"), project(width, name="h_proj")
        self.rel_pos_bias = make_bias(config, dtype=policy)
        self.dropout = dropout(config, config.dropout_prob, dtype=policy)
        self.hidden_dropout = dropout(config, config.hidden_dropout_prob, dtype=policy)
        self.attention_dropout = keras.layers.Dropout(config.attention_probs_dropout_prob, dtype=policy)

    def call(self, hidden_states: Tensor, *, plan: MegaPlan, training: bool | None = None) -> tuple[Tensor, Tensor]:
        """(B, S, D) -> (B, S, D), and weights (B, S, T)."""
        config, width, states = self.config, self.config.hidden_size, plan.encoder_hidden_states
        x = self.norm(hidden_states, training=training) if config.normalize_before_mega else hidden_states
        update_gate, attention_gate, query = ops.split(self.q_proj(x), (width, 2 * width), axis=-1)
        assert states is not None
        value = self.hidden_dropout(self.activation(self.v_proj(states)), training=training)
        places = ops.arange(ops.shape(states)[1], dtype="int32")
        attended, weights = gated_attention(
            query,
            plan.past + ops.arange(ops.shape(query)[1], dtype="int32"),
            Keys(self.k_proj(states), value, places, plan.encoder_mask, self.rel_pos_bias.make()),
            activation=config.attention_activation,
            dropout=partial(self.attention_dropout, training=training) if training else None,
            implementation=plan.implementation,
        )
        candidate = self.activation(self.h_proj(attended * ops.silu(attention_gate)))
        output = _update(hidden_states, self.dropout(candidate, training=training), update_gate)
        return output if config.normalize_before_mega else self.norm(output, training=training), weights


class MegaNormalizedFeedForwardNetwork(Block):
    """X + W₂ act(W₁ norm(X)), or norm(X + W₂ act(W₁ X))."""

    def __init__(self, config: MegaConfig, **kwargs: Any) -> None:
        super().__init__(config.hidden_size, **kwargs)
        self.config, policy = config, self.dtype_policy
        project = partial(linear, stddev=config.initializer_range, dtype=policy)
        self.activation = get_activation(config.activation)
        self.norm = MegaSequenceNorm(config, dtype=policy, name="norm")
        self.fc1, self.fc2 = project(config.nffn_hidden_size, name="fc1"), project(config.hidden_size, name="fc2")
        self.dropout = dropout(config, config.dropout_prob, dtype=policy)
        self.hidden_dropout = dropout(config, config.nffn_activation_dropout_prob, dtype=policy)

    def build(self, input_shape: Any = None) -> None:
        """Make the weights."""
        self.fc2.build((None, self.config.nffn_hidden_size))
        super().build()

    def call(self, hidden_states: Tensor, *, training: bool | None = None) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        apply, width = partial(self._apply, training=training), self.config.nffn_hidden_size
        parts = (self.norm, self.fc1, self.fc2, self.dropout, self.hidden_dropout)
        return tokenwise(apply, hidden_states, parts=parts, width=width, training=training)

    def _apply(self, hidden_states: Tensor, *, training: bool | None) -> Tensor:
        before = self.config.normalize_before_ffn
        x = self.norm(hidden_states, training=training) if before else hidden_states
        x = self.fc2(self.hidden_dropout(self.activation(self.fc1(x)), training=training))
        output = hidden_states + self.dropout(x, training=training)
        return output if before else self.norm(output, training=training)


class MegaBlock(Block):
    """One layer: gated attention, in a decoder with an encoder cross-attention, and the feed-forward layer."""

    def __init__(self, config: MegaConfig, **kwargs: Any) -> None:
        super().__init__(config.hidden_size, **kwargs)
        self.config, policy = config, self.dtype_policy
        self.mega_layer = MegaMovingAverageGatedAttention(config, dtype=policy, name="mega_layer")
        self.nffn = self.cross_attn = None
        if config.use_normalized_ffn:
            self.nffn = MegaNormalizedFeedForwardNetwork(config, dtype=policy, name="nffn")
        if config.add_cross_attention:
            self.cross_attn = MegaGatedCrossAttention(config, dtype=policy, name="cross_attn")

    def call(
        self, hidden_states: Tensor, *, plan: MegaPlan, cache: LayerCache | None = None, training: bool | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, LayerCache | None]:
        """(B, S, D) -> (B, S, D), weights of the attention and of the cross-attention, and the cache."""
        if cache is None and self._goes_in_spans(hidden_states, plan, training):
            return self._in_spans_if_long(hidden_states, plan), None, None, None
        return self._at_once(hidden_states, plan, cache, training)

    def _at_once(
        self, hidden_states: Tensor, plan: MegaPlan, cache: LayerCache | None, training: bool | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, LayerCache | None]:
        hidden_states, weights, after = self.mega_layer(hidden_states, plan=plan, cache=cache, training=training)
        hidden_states, cross_weights = self._behind_attention(hidden_states, plan, training)
        return hidden_states, weights, cross_weights, after

    def _behind_attention(
        self, hidden_states: Tensor, plan: MegaPlan, training: bool | None
    ) -> tuple[Tensor, Tensor | None]:
        cross_weights = None
        if self.cross_attn is not None:
            hidden_states, cross_weights = self.cross_attn(hidden_states, plan=plan, training=training)
        if self.nffn is not None:
            hidden_states = self.nffn(hidden_states, training=training)
        return hidden_states, cross_weights

    def _goes_in_spans(self, hidden_states: Tensor, plan: MegaPlan, training: bool | None) -> bool:
        """True if the layer may be read span by span: in chunks, only the average reaches beyond, by its state."""
        config = self.config
        in_spans = config.use_chunking and config.truncation is None and not plan.needs_weights
        # where it cannot be seen whether chunks begin at the first token, only a graph of TensorFlow may choose
        in_spans = in_spans and (plan.starts is None or is_tensorflow())
        return in_spans and not training and may_loop(hidden_states, self)

    def _in_spans_if_long(self, hidden_states: Tensor, plan: MegaPlan) -> Tensor:
        """(B, S, D) -> (B, S, D), span by span if there are several and chunks begin at the first token."""
        config, (batch, length, width) = self.config, ops.shape(hidden_states)
        widest = max(2 * width + config.intermediate_size + config.shared_representation_size, config.nffn_hidden_size)
        unit = math.lcm(config.chunk_size, BLOCK_SIZE)
        most = max((_LONGER_IN_GRAPHS if is_tensorflow() else 1) * tokens_of_block(widest) // unit, 1) * unit

        def in_spans() -> Tensor:
            count = -(-length * batch // most)
            return self._in_spans(hidden_states, plan, -(-length // (count * unit)) * unit)

        def at_once() -> Tensor:
            return self._at_once(hidden_states, plan, None, False)[0]

        several = length * batch > (2 * most if is_tensorflow() else most)
        if plan.starts is not None:
            several = ops.logical_and(several, ops.logical_not(ops.any(plan.starts > 0)))
        if isinstance(several, bool):
            return in_spans() if several else at_once()
        return ops.cond(several, in_spans, at_once)

    def _in_spans(self, hidden_states: Tensor, plan: MegaPlan, span: Size) -> Tensor:
        """(B, S, D) -> (B, S, D), span by span: what a layer needs besides its input is that of one span."""
        layer, (batch, length, width) = self.mega_layer, ops.shape(hidden_states)
        count = -(-length // span)
        missing, mask = count * span - length, plan.mask
        if mask is None and not (isinstance(missing, int) and missing == 0):
            mask = ops.ones((batch, length), "bool")

        def cut(tensor: Tensor) -> Tensor:
            padded = ops.pad(tensor, ((0, 0), (0, missing), (0, 0))[: len(tensor.shape)])
            parts = ops.reshape(padded, (batch, count, span, *tensor.shape[2:]))
            return ops.transpose(parts, (1, 0, 2, 3)[: len(parts.shape)])

        blocks = ema_blocks(*layer.ema_gate.coefficients(), size=BLOCK_SIZE)
        nothing = ops.zeros((batch, width, self.config.ema_projection_size), blocks.mixing.dtype)
        spans = [cut(hidden_states)] if mask is None else [cut(hidden_states), cut(mask)]

        def read_back(behind: Tensor, part: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            x = layer.normalize_inputs(part[0], training=False)
            mask = part[1] if len(part) > 1 else None
            return backward_state_before(x, blocks, mask=mask, backward_state=behind), behind

        def read(carry: tuple[Tensor, Tensor], part: tuple[Tensor, ...]) -> tuple[tuple[Tensor, Tensor], Tensor]:
            (state, past), (states, *rest) = carry, part
            behind = rest.pop() if blocks.backward is not None else None
            own = dataclasses.replace(plan, mask=rest.pop() if rest else None, starts=None, past=past)
            flow = EmaFlow(blocks, state, behind)
            states, _, after = layer(states, plan=own, flow=flow, training=False)
            return (after, past + span), self._behind_attention(states, own, False)[0]

        if blocks.backward is not None:
            mirrored = tuple(ops.flip(part, axis=0) for part in spans)
            shape = (nothing.shape, nothing.dtype)
            _, behind = scan(read_back, nothing, mirrored, result=shape)
            spans.append(ops.flip(behind, axis=0))
        past = ops.convert_to_tensor(plan.past, "int32")
        _, outputs = scan(read, (nothing, past), tuple(spans))
        outputs = ops.transpose(outputs, (1, 0, 2, 3))
        return ops.reshape(outputs, (batch, count * span, width))[:, :length]
