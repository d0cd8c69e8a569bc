"""LongT5's encoder in Flax (Guo et al., 2022, https://arxiv.org/abs/2112.07916).

Axes: B batch, S tokens, H width, A heads, D head size, L layers, R radius, G summaries, P tokens of a block that a
summary stands for, N blocks of R + 1 tokens.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import Array

from longspan.models.longt5.config import LongT5Config
from longspan.models.longt5.flax_layers import (
    FlaxLongT5Block,
    FlaxLongT5Blocks,
    FlaxLongT5LayerFF,
    FlaxLongT5LayerNorm,
    FlaxLongT5Projections,
    FlaxLongT5Stack,
    FlaxLongT5Sublayer,
    relative_bias,
    relative_embedding,
)
from longspan.nn.flax.layers import Dtype
from longspan.nn.flax.outputs import FlaxBaseModelOutput
from longspan.ops.flax.context import check_share, count_all, num_shares, running_count, shared_axis, total
from longspan.ops.flax.sliding_window import (
    ExtraKeys,
    sliding_window_attention,
    sliding_window_attention_weights,
)


@struct.dataclass
class Summaries:
    """Which tokens each summary of transient-global attention stands for.

    Blocks count the real tokens of a row, so padding may lie on either side. Tokens that do not fill a block belong to
    the last full one; a row shorter than one block has no summary.

    Attributes:
        position: Where each token stands on the axis of the summaries, (B, S).
        filled: Summaries that exist, (B, G).
        order: Tokens of each row, the real ones first, (B, S); None if all are real.
        place: Where each token went in that order, (B, S).
        real: Number of real tokens of each row, (B,).
        block: Summary of each token where devices share the sequence, (B, S), G for none; else None.
        block_size: P.
    """

    position: Array
    filled: Array
    order: Array | None
    place: Array | None
    real: Array
    block: Array | None
    block_size: int = struct.field(pytree_node=False)

    @classmethod
    def from_mask(cls, real: Array | None, shape: tuple[int, int], block_size: int) -> Summaries | None:
        """Divide the real tokens into blocks.

        Args:
            real: Boolean (B, S), or None for all.
            shape: (B, S).
            block_size: P.

        Returns:
            The blocks; None if not even S tokens fill one.
        """
        batch, length = shape
        if length * num_shares() < block_size:
            return None
        if shared_axis() is not None:
            return cls._of_shares(jnp.ones(shape, bool) if real is None else real, block_size)
        order = place = None
        if real is None:
            count = jnp.broadcast_to(jnp.arange(1, length + 1), shape)
        else:
            count = real.cumsum(axis=1)
            padding = count[:, -1:] + (~real).cumsum(axis=1)
            place = jnp.where(real, count, padding) - 1
            order = jnp.argsort(place, axis=1)
        full = count[:, -1:] // block_size  # (B, 1)
        position = jnp.minimum(jnp.maximum(count - 1, 0) // block_size, jnp.maximum(full - 1, 0))
        filled = jnp.arange(length // block_size) < full
        rows = jnp.broadcast_to(count[:, -1], (batch,))
        return cls(position, filled, order, place, rows, None, block_size)

    @classmethod
    def _of_shares(cls, real: Array, block_size: int) -> Summaries:
        """The blocks of sequences that devices share: each knows all summaries."""
        number = real.shape[1] * num_shares() // block_size
        count, all_real = running_count(real), count_all(real)
        full = all_real // block_size  # (B, 1)
        position = jnp.minimum(jnp.maximum(count - 1, 0) // block_size, jnp.maximum(full - 1, 0))
        block = jnp.where(real & (full > 0), position, number)
        return cls(position, jnp.arange(number) < full, None, None, all_real[:, 0], block, block_size)

    def add_up(self, hidden_states: Array) -> Array:
        """Sum the states (B, S, H) of each block, in float32: (B, G, H). What is not filled is unspecified."""
        batch, length, width = hidden_states.shape
        number, size = length // self.block_size, self.block_size
        states = hidden_states.astype(jnp.float32)
        if self.block is not None:
            sums = jnp.zeros((batch, self.filled.shape[1], width))
            return total(sums.at[jnp.arange(batch)[:, None], self.block].add(states, mode="drop"))
        if self.order is not None:
            assert self.place is not None
            states = _permute(states, self.order, self.place)
        sums = states[:, : number * size].reshape(batch, number, size, width).sum(axis=2)
        if self.order is None:
            return sums.at[:, -1].add(states[:, number * size :].sum(axis=1))
        full = self.real // size
        rest = full[:, None] * size + jnp.arange(size - 1)  # tokens that do not fill a block
        tail = jnp.take_along_axis(states, jnp.minimum(rest, length - 1)[..., None], axis=1)
        tail = jnp.where((rest < self.real[:, None])[..., None], tail, 0.0).sum(axis=1)
        is_last = jnp.arange(number) == full[:, None] - 1
        return sums + is_last[..., None] * tail[:, None]


@jax.custom_vjp
def _permute(states: Array, order: Array, place: Array) -> Array:
    """Put the tokens (B, S, H) of each row in an order. The gradient goes back by a lookup, not by a slow scatter."""
    return jnp.take_along_axis(states, order[..., None], axis=1)


def _permute_saving(states: Array, order: Array, place: Array) -> tuple[Array, Array]:
    return _permute(states, order, place), place


def _permute_back(place: Array, gradient: Array) -> tuple[Array, None, None]:
    return jnp.take_along_axis(gradient, place[..., None], axis=1), None, None


_permute.defvjp(_permute_saving, _permute_back)


def summary_offsets(number: int) -> Array:
    """Relative positions on the axis of the summaries: 1 - G … G - 1."""
    return jnp.arange(2 * number - 1) - (number - 1) if number > 0 else jnp.zeros((0,), jnp.int32)


@struct.dataclass
class EncoderPlan:
    """What all encoder layers of one call share.

    Attributes:
        real: Tokens that are not padding, boolean (B, S); None if all are.
        bias: Bias by relative position of the window, (A, 2R + 1).
        summaries: Blocks of transient-global attention; None for local attention.
        summary_bias: Bias by relative position of the summaries, (A, 2G - 1).
        needs_weights: Attention weights are returned.
        implementation: Name of the implementation of sliding-window attention.
        deterministic: Nothing is dropped.
    """

    real: Array | None
    bias: Array
    summaries: Summaries | None
    summary_bias: Array | None
    needs_weights: bool = struct.field(pytree_node=False)
    implementation: str = struct.field(pytree_node=False)
    deterministic: bool = struct.field(pytree_node=False)


class FlaxLongT5LocalAttention(FlaxLongT5Projections):
    """Attention to the tokens at most R away.

        cᵢ = Σⱼ softmax(qᵢ·kⱼ + b(j - i)) vⱼ      over |i - j| ≤ R

    Attributes:
        config: Settings of the model.
        has_relative_attention_bias: Hold b; the first layer does, and all layers use it.
    """

    has_relative_attention_bias: bool = False

    def setup(self) -> None:
        """Make the parts."""
        super().setup()
        if self.has_relative_attention_bias:
            self.relative_attention_bias = relative_embedding(self.config)

    def __call__(self, hidden_states: Array, plan: EncoderPlan) -> tuple[Array, Array | None]:
        """Attend from (B, S, H) to themselves.

        Returns:
            (B, S, H), and the weights (B, N, A, R + 1, 3 (R + 1) + G) if the plan needs them: the tokens of the block
            before, of the block and of the block behind, then the summaries.
        """
        radius = self.config.local_radius
        arguments: dict[str, Any] = {
            "left": radius,
            "right": radius,
            "scale": 1.0,
            "mask": plan.real,
            "bias": plan.bias,
            "extra": self.summarise(hidden_states, plan),
            "implementation": plan.implementation,
            **self.dropout_arguments(deterministic=plan.deterministic),
        }
        states = [self.split(projection(hidden_states)) for projection in (self.q, self.k, self.v)]
        if not plan.needs_weights:
            return self.merge(sliding_window_attention(*states, **arguments)), None
        context, weights = sliding_window_attention_weights(*states, rows=radius + 1, **arguments)
        return self.merge(context), self._in_three_blocks(weights)

    def biases(self, length: int) -> tuple[Array, Array | None]:
        """For S tokens, bias by relative position of the window, (A, 2R + 1), and of the summaries, (A, 2G - 1)."""
        offsets = np.arange(-self.config.local_radius, self.config.local_radius + 1)
        return relative_bias(self.config, offsets, self.relative_attention_bias, bidirectional=True), None

    def summarise(self, hidden_states: Array, plan: EncoderPlan) -> ExtraKeys | None:
        """Keys that all tokens see; none in local attention."""
        return None

    def _in_three_blocks(self, weights: Array) -> Array:
        """(B, A, N, R + 1, G + 3R + 1), summaries first -> (B, N, A, R + 1, 3 (R + 1) + G)."""
        num_summaries = weights.shape[-1] - (3 * self.config.local_radius + 1)
        extra, window = weights[..., :num_summaries], weights[..., num_summaries:]
        window = jnp.pad(window, ((0, 0),) * 4 + ((1, 1),))
        return jnp.concatenate([window, extra], axis=-1).swapaxes(1, 2)


class FlaxLongT5TransientGlobalAttention(FlaxLongT5LocalAttention):
    """Attention to the tokens at most R away and to a summary of every block of tokens.

    The summary of a block is the normalised sum of its states, made anew in every layer; keys and values of both kinds
    come from the same projections:

        cᵢ = Σⱼ softmax(qᵢ·kⱼ + b(j - i)) vⱼ      over |i - j| ≤ R and all blocks g, with b'(g - block(i)) for a block

    Attributes:
        config: Settings of the model.
        has_relative_attention_bias: Hold b and b'; the first layer does, and all layers use them.
    """

    def setup(self) -> None:
        """Make the parts."""
        super().setup()
        if self.has_relative_attention_bias:
            self.global_relative_attention_bias = relative_embedding(self.config)
        self.global_input_layer_norm = FlaxLongT5LayerNorm(self.config, dtype=self.dtype)

    def biases(self, length: int) -> tuple[Array, Array | None]:
        """For S tokens, bias by relative position of the window, (A, 2R + 1), and of the summaries, (A, 2G - 1)."""
        bias, _ = super().biases(length)
        offsets = summary_offsets(length // self.config.global_block_size)
        embedding = self.global_relative_attention_bias
        return bias, relative_bias(self.config, offsets, embedding, bidirectional=True) if offsets.shape[
            0
        ] > 0 else None

    def summarise(self, hidden_states: Array, plan: EncoderPlan) -> ExtraKeys | None:
        """Keys that all tokens see: those of the summaries."""
        if plan.summaries is None:
            return None
        states = self.global_input_layer_norm(plan.summaries.add_up(hidden_states))  # (B, G, H)
        return ExtraKeys(
            self.split(self.k(states)),
            self.split(self.v(states)),
            plan.summaries.filled,
            plan.summary_bias,
            plan.summaries.position,
            step=self.config.global_block_size,
        )


class FlaxLongT5LayerEncoderAttention(FlaxLongT5Sublayer):
    """x + dropout(attention(norm(x))); subclasses name the attention as checkpoints do.

    Attributes:
        config: Settings of the model.
        has_relative_attention_bias: Hold the biases.
    """

    has_relative_attention_bias: bool = False

    @property
    def attention(self) -> FlaxLongT5LocalAttention:
        """The attention, whatever its name in checkpoints."""
        raise NotImplementedError(f"{type(self).__name__} must say which attention is its own")

    def __call__(self, hidden_states: Array, plan: EncoderPlan) -> tuple[Array, Array | None]:
        """(B, S, H) -> (B, S, H) and the weights."""
        context, weights = self.attention(self.layer_norm(hidden_states), plan)
        return self.add(hidden_states, context, deterministic=plan.deterministic), weights


class FlaxLongT5LayerLocalSelfAttention(FlaxLongT5LayerEncoderAttention):
    """The sublayer of local attention."""

    def setup(self) -> None:
        """Make the parts."""
        super().setup()
        self.LocalSelfAttention = FlaxLongT5LocalAttention(self.config, self.dtype, self.has_relative_attention_bias)

    @property
    def attention(self) -> FlaxLongT5LocalAttention:
        """The attention."""
        return self.LocalSelfAttention


class FlaxLongT5LayerTransientGlobalSelfAttention(FlaxLongT5LayerEncoderAttention):
    """The sublayer of transient-global attention."""

    def setup(self) -> None:
        """Make the parts."""
        super().setup()
        self.TransientGlobalSelfAttention = FlaxLongT5TransientGlobalAttention(
            self.config, self.dtype, self.has_relative_attention_bias
        )

    @property
    def attention(self) -> FlaxLongT5TransientGlobalAttention:
        """The attention."""
        return self.TransientGlobalSelfAttention


class FlaxLongT5EncoderSublayers(nn.Module):
    """The parts of one encoder layer, named by their index as in checkpoint keys: attention, feed-forward.

    Attributes:
        config: Settings of the model.
        has_relative_attention_bias: Hold the biases of all layers.
    """

    config: LongT5Config
    has_relative_attention_bias: bool
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Make the parts."""
        is_local = self.config.encoder_attention_type == "local"
        kind = FlaxLongT5LayerLocalSelfAttention if is_local else FlaxLongT5LayerTransientGlobalSelfAttention
        self.self_attention = kind(self.config, self.dtype, self.has_relative_attention_bias, name="0")
        self.feed_forward = FlaxLongT5LayerFF(self.config, self.dtype, name="1")

    def __call__(self, hidden_states: Array, plan: EncoderPlan) -> tuple[Array, Array | None]:
        """(B, S, H) -> (B, S, H) and the weights."""
        hidden_states, weights = self.self_attention(hidden_states, plan)
        return self.feed_forward(hidden_states, deterministic=plan.deterministic), weights

    def biases(self, length: int) -> tuple[Array, Array | None]:
        """As of the attention."""
        return self.self_attention.attention.biases(length)


class FlaxLongT5EncoderBlock(FlaxLongT5Block):
    """One encoder layer: attention, feed-forward."""

    layer_class: ClassVar[type[nn.Module]] = FlaxLongT5EncoderSublayers


class FlaxLongT5EncoderBlocks(FlaxLongT5Blocks):
    """The encoder's layers."""

    block_class: ClassVar[type[FlaxLongT5Block]] = FlaxLongT5EncoderBlock


class FlaxLongT5Encoder(FlaxLongT5Stack):
    """The stack of encoder layers."""

    def make_blocks(self) -> FlaxLongT5Blocks:
        """Make the layers."""
        return FlaxLongT5EncoderBlocks(self.config, self.config.num_layers, self.dtype, self.gradient_checkpointing)

    def __call__(
        self,
        inputs_embeds: Array,
        attention_mask: Array | None,
        *,
        implementation: str,
        deterministic: bool,
        output_attentions: bool,
        output_hidden_states: bool,
    ) -> FlaxBaseModelOutput:
        """Encode embeddings (B, S, H); arguments and result as in `FlaxLongT5EncoderModel.__call__`."""
        real = None if attention_mask is None else attention_mask != 0
        batch, length, _ = inputs_embeds.shape
        check_share(length, needs_weights=output_attentions)
        bias, summary_bias = self.block.biases(length * num_shares())
        summaries = None
        if self.config.encoder_attention_type == "transient-global":
            summaries = Summaries.from_mask(real, (batch, length), self.config.global_block_size)
        plan = EncoderPlan(
            real, bias, summaries, summary_bias,
            needs_weights=output_attentions, implementation=implementation, deterministic=deterministic,
        )  # fmt: skip
        states, weights = self.run_blocks(inputs_embeds, plan, deterministic=deterministic)
        return FlaxBaseModelOutput(
            last_hidden_state=states[-1],
            hidden_states=states if output_hidden_states else None,
            attentions=weights[0] if output_attentions else None,  # type: ignore[arg-type]  # all are there
        )
