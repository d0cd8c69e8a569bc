"""Layers of Longformer in Flax (Beltagy et al., 2020, https://arxiv.org/abs/2004.05150).

Axes: B batch, S tokens, H width, A heads, D head size, G slots for global tokens, W attention window.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import Array

from longspan.models.longformer.config import LongformerConfig
from longspan.nn.flax.checks import ArrayLike, must_call_parts
from longspan.nn.flax.layers import Dense, Dtype, Embedding, LayerNorm, NumberedPart, Part, Stack, is_plain
from longspan.nn.flax.outputs import Arrays
from longspan.nn.flax.parameters import kernel_init
from longspan.nn.flax.post_norm import AddAndNorm, PostNormFeedForward
from longspan.ops.flax.attention import eager_attention
from longspan.ops.flax.context import count_all, num_shares, running_count, shared_axis, token_places, total
from longspan.ops.flax.sliding_window import (
    ExtraKeys,
    sliding_window_attention,
    sliding_window_attention_weights,
    weights_by_offset,
)


@struct.dataclass
class GlobalPlan:
    """Who attends how in one call.

    Attributes:
        real: Tokens that are not padding, boolean (B, S); None if all are.
        is_global: Tokens with global attention, (B, S); None if there is no slot.
        positions: Token of each slot in ascending order, 0 for an empty slot, (B, G).
        filled: Slots that hold a token, (B, G).
        owned: Slots whose token is of this device, (B, G).
        needs_weights: Attention weights are returned.
        implementation: Name of the implementation of sliding-window attention.
        deterministic: Nothing is dropped.
    """

    real: Array | None
    is_global: Array | None
    positions: Array | None
    filled: Array | None
    owned: Array | None
    needs_weights: bool = struct.field(pytree_node=False)
    implementation: str = struct.field(pytree_node=False)
    deterministic: bool = struct.field(pytree_node=False)

    @property
    def local(self) -> Array | None:
        """Tokens that see and are seen through the window: real, without global attention, (B, S); None if all."""
        if self.is_global is None:
            return self.real
        return ~self.is_global if self.real is None else self.real & ~self.is_global


def make_plan(
    is_global: Array | None, attention_mask: Array | None, *, slots: int, **settings: Any
) -> tuple[GlobalPlan, Array | None]:
    """Give the global tokens of each row their slots.

    Args:
        is_global: What `global_tokens` gives, (B, S).
        attention_mask: Nonzero for real tokens, (B, S); None for all.
        slots: G.
        **settings: The other fields of `GlobalPlan`.

    Returns:
        The plan, and the rows (B,) with more global tokens than slots, or None if no token is global.
    """
    real = None if attention_mask is None else attention_mask != 0
    if is_global is None or slots == 0:
        return GlobalPlan(real, None, None, None, None, **settings), None
    batch, length = is_global.shape
    slots = min(slots, length * num_shares()) if isinstance(length, int) else slots
    count = count_all(is_global)
    slot = jnp.where(is_global, running_count(is_global) - 1, slots)  # what has none is dropped
    rows = jnp.arange(batch)[:, None]
    positions = jnp.zeros((batch, slots), jnp.int32)
    positions = positions.at[rows, slot].set(jnp.arange(length)[None], mode="drop")
    filled = owned = jnp.arange(slots) < count
    if shared_axis() is not None:
        owned = jnp.zeros((batch, slots), bool).at[rows, slot].set(True, mode="drop")
    return GlobalPlan(real, is_global, positions, filled, owned, **settings), count[:, 0] > slots


def global_tokens(attention_mask: Any, global_attention_mask: Any) -> Any:
    """Merge the two masks of a call, of NumPy or JAX, into a boolean one; None if none is there to be global.

    Args:
        attention_mask: 0 for padding, which is never global, 1 for a real token, 2 for a global one, (B, S).
        global_attention_mask: Nonzero for global attention, (B, S).
    """
    is_global = None if global_attention_mask is None else global_attention_mask != 0
    if attention_mask is None:
        return is_global
    marked = attention_mask > 1 if attention_mask.dtype != np.bool_ else attention_mask & False
    return marked if is_global is None else (is_global & (attention_mask != 0)) | marked


def first_token(ids: ArrayLike) -> Any:
    """Global attention on the first token of each row; here and below ids have the shape (..., S)."""
    xp = np if isinstance(ids, np.ndarray) else jnp  # which alone knows symbolic lengths
    places = xp.arange(ids.shape[-1]) if shared_axis() is None else token_places(ids.shape[-1])
    return ids * 0 + places == 0


def before_separator(input_ids: ArrayLike, token_type_ids: ArrayLike | None, separator: int | None) -> tuple[Any, Any]:
    """Global attention on the question: all tokens before the first separator.

    A row without a separator takes the tokens before its first one of segment 1; without that, its first token.

    Returns:
        The mask (..., S), and the rows (...) where neither was found.
    """
    xp = np if isinstance(input_ids, np.ndarray) else jnp
    is_separator = input_ids == (-1 if separator is None else separator)
    is_second = is_separator & False if token_type_ids is None else token_type_ids == 1
    border = xp.where(count_all(is_separator) > 0, is_separator, is_second)
    lacking = count_all(border) == 0
    return xp.where(lacking, first_token(input_ids), running_count(border) == 0), lacking[..., 0]


def after_separator(input_ids: ArrayLike, separator: int | None) -> tuple[Any, Any]:
    """Global attention on the choice: all tokens behind the first separator and the one that follows it.

    Returns:
        The mask (..., S), and the rows (...) without a separator, which take their first token.
    """
    xp = np if isinstance(input_ids, np.ndarray) else jnp
    is_separator = input_ids == (-1 if separator is None else separator)
    behind = running_count(running_count(is_separator) > 0) > 2  # two tokens later
    lacking = count_all(is_separator) == 0
    return xp.where(lacking, first_token(input_ids), behind), lacking[..., 0]


class FlaxLongformerEmbeddings(Part):
    """LayerNorm(word + position + segment), with dropout; positions are counted over real tokens, from pad id + 1."""

    config: LongformerConfig

    def setup(self) -> None:
        """Make the parts."""
        config, padding = self.config, self.config.pad_token_id
        self.word_embeddings = self._table(config.vocab_size, padding)
        self.token_type_embeddings = self._table(config.type_vocab_size, None)
        self.LayerNorm = LayerNorm(eps=config.layer_norm_eps, dtype=self.dtype)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.position_embeddings = self._table(config.max_position_embeddings, padding)

    def __call__(
        self,
        input_ids: Array | None,
        inputs_embeds: Array | None,
        token_type_ids: Array | None,
        position_ids: Array | None,
        *,
        deterministic: bool,
    ) -> Array:
        """Embed ids (B, S) or embeddings (B, S, H) into (B, S, H)."""
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.word_embeddings(input_ids)
        embeddings = inputs_embeds.astype(self.dtype)
        token_type_ids = jnp.zeros((1, 1), jnp.int32) if token_type_ids is None else token_type_ids
        if position_ids is None:
            position_ids = self._count(input_ids, embeddings.shape[1])
        embeddings = embeddings + self.token_type_embeddings(token_type_ids) + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(embeddings), deterministic=deterministic)

    def _count(self, input_ids: Array | None, length: int) -> Array:
        """Rows of the position table, (B, S) or (1, S)."""
        padding = self.config.pad_token_id or 0
        if input_ids is None:  # what pads a bucket may lie beyond the table
            return jnp.minimum(token_places(length) + padding + 1, self.config.max_position_embeddings - 1)[None]
        is_token = input_ids != padding
        return running_count(is_token) * is_token + padding

    def _table(self, size: int, padding_idx: int | None) -> Embedding:
        config = self.config
        return Embedding(size, config.hidden_size, kernel_init(config), padding_idx=padding_idx, dtype=self.dtype)


class FlaxLongformerSelfAttention(NumberedPart):
    """Windowed attention, plus global attention of a few tokens, without the output projection.

    A token i without global attention sees its window and the global tokens g, in one softmax:

        cᵢ = Σⱼ softmax(q(xᵢ)·k(xⱼ)/√D) v(xⱼ)      over |i - j| ≤ W/2 and all g

    A global token sees all tokens, through projections of its own:

        c_g = Σⱼ softmax(q'(x_g)·k'(xⱼ)/√D) v'(xⱼ)      over all j

    Few tokens are global, so k' and v' are applied to them and not to all tokens: q'·(K'x) = (K'ᵀq')·x, and
    Σ p (V'x) = V'(Σ p x).
    """

    config: LongformerConfig

    def setup(self) -> None:
        """Make the parts."""
        self.query, self.key, self.value = (self._projection() for _ in range(3))
        self.query_global, self.key_global, self.value_global = (self._projection() for _ in range(3))

    def __call__(
        self, hidden_states: Array, plan: GlobalPlan, head_mask: Array | None
    ) -> tuple[Array, Array | None, Array | None]:
        """Attend from (B, S, H) to themselves.

        Args:
            hidden_states: (B, S, H).
            plan: Who attends how.
            head_mask: Factor of each head, (A,).

        Returns:
            The context (B, S, A·D); the local weights (B, A, S, G + W + 1) and the global ones (B, A, S, G) if the
            plan needs them.
        """
        context, weights = self._local(hidden_states, plan)
        if head_mask is not None:
            context = context * head_mask.astype(context.dtype)[:, None]
            weights = None if weights is None else weights * head_mask.astype(weights.dtype)[:, None, None]
        if plan.local is not None:  # padding gets 0, global tokens their own context
            context = jnp.where(plan.local[..., None, None], context, 0)
        global_weights = None
        if plan.positions is not None:
            global_context, global_weights = self._global(hidden_states, plan, head_mask)
            if shared_axis() is not None:
                assert plan.owned is not None
                global_context = jnp.where(plan.owned[..., None, None], global_context, 0)
            rows = jnp.arange(context.shape[0])[:, None]
            context = context.at[rows, plan.positions].add(global_context)  # an empty slot adds 0 to the first token
        return context.reshape(*context.shape[:2], -1), weights, global_weights

    def _local(self, hidden_states: Array, plan: GlobalPlan) -> tuple[Array, Array | None]:
        """Context of the windows (B, S, A, D) and the weights, if the plan needs them."""
        query, key, value = (self._split(layer(hidden_states)) for layer in (self.query, self.key, self.value))
        extra = None
        if plan.positions is not None:
            extra = ExtraKeys(_pick(key, plan), _pick(value, plan), plan.filled)
        radius = self.config.window_of(self.layer_index) // 2
        arguments: dict[str, Any] = {
            "left": radius,
            "right": radius,
            "scale": 1.0 / math.sqrt(query.shape[-1]),
            "mask": plan.local,
            "extra": extra,
            "implementation": plan.implementation,
            **self._dropout(plan),
        }
        if not plan.needs_weights:
            return sliding_window_attention(query, key, value, **arguments), None
        context, weights = sliding_window_attention_weights(query, key, value, **arguments)
        weights = weights_by_offset(weights, left=radius, right=radius, length=query.shape[1])
        if plan.local is not None:
            weights = jnp.where(plan.local[:, None, :, None], weights, 0)
        return context, weights

    def _global(self, hidden_states: Array, plan: GlobalPlan, head_mask: Array | None) -> tuple[Array, Array | None]:
        """Context of the global tokens (B, G, A, D) and their weights (B, A, S, G), if the plan needs them."""
        assert plan.filled is not None
        query = self._split(self.query_global(_pick(hidden_states, plan)))
        mask = plan.filled[:, None, :, None]
        mask = mask if plan.real is None else mask & plan.real[:, None, None, :]
        if self._may_fold(query):
            context, weights = self._folded(query, hidden_states, mask, head_mask, **self._dropout(plan))
        else:
            key, value = (self._split(layer(hidden_states)) for layer in (self.key_global, self.value_global))
            context, weights = eager_attention(
                query, key, value, mask=mask, head_mask=head_mask, shared=True, **self._dropout(plan)
            )
        return context, weights.swapaxes(2, 3) if plan.needs_weights else None

    def _may_fold(self, query: Array) -> bool:
        """True if it is cheaper not to project all tokens, and nobody changes what the projections do or looks on."""
        if query.shape[1] >= query.shape[3] or must_call_parts(self):
            return False
        return is_plain(self.key_global) and is_plain(self.value_global)

    def _folded(
        self, query: Array, hidden_states: Array, mask: Array, head_mask: Array | None, **dropout: Any
    ) -> tuple[Array, Array]:
        """The same by q·(K x) = (Kᵀq)·x, as the softmax drops q·b, and Σ p (V x + b) = V (Σ p x) + b Σ p."""
        batch, slots, heads, size = query.shape
        kernel, _ = self._by_head(self.key_global)
        folded = jnp.einsum("bgad,had->bgah", query, kernel, preferred_element_type=jnp.float32).astype(self.dtype)
        states = hidden_states[:, :, None]  # one head that all A·G queries share
        sums, weights = eager_attention(
            folded.reshape(batch, slots * heads, 1, -1),
            states,
            states,
            mask=jnp.repeat(mask, heads, axis=2),
            scale=1.0 / math.sqrt(size),
            shared=True,
            **dropout,
        )
        weights = weights.reshape(batch, slots, heads, -1).swapaxes(1, 2)  # (B, A, G, S)
        kernel, bias = self._by_head(self.value_global)
        sums = sums.reshape(batch, slots, heads, -1)
        context = jnp.einsum("bgah,had->bgad", sums, kernel, preferred_element_type=jnp.float32)
        share = total(weights.sum(axis=-1, dtype=jnp.float32)).swapaxes(1, 2)
        context = context + share[..., None] * bias
        if head_mask is not None:
            context = context * head_mask[:, None]
            weights = weights * head_mask.astype(weights.dtype)[:, None, None]
        return context.astype(self.dtype), weights

    def _by_head(self, layer: Dense) -> tuple[Array, Array]:
        """Kernel (H, A, D) and bias (A, D) of a projection."""
        parameters, heads = layer.variables["params"], self.config.num_attention_heads
        kernel = parameters["kernel"].astype(self.dtype)
        return kernel.reshape(kernel.shape[0], heads, -1), parameters["bias"].astype(jnp.float32).reshape(heads, -1)

    def _projection(self) -> Dense:
        return Dense(self.config.hidden_size, kernel_init=kernel_init(self.config), dtype=self.dtype)

    def _split(self, states: Array) -> Array:
        """(B, S, A·D) -> (B, S, A, D)."""
        return states.reshape(*states.shape[:2], self.config.num_attention_heads, -1)

    def _dropout(self, plan: GlobalPlan) -> dict[str, Any]:
        rate = 0.0 if plan.deterministic else self.config.attention_probs_dropout_prob
        return {"dropout": rate, "dropout_rng": self.make_rng("dropout") if rate > 0.0 else None}


def _pick(states: Array, plan: GlobalPlan) -> Array:
    """The global tokens, (B, G, ...), of (B, S, ...)."""
    picked = states[jnp.arange(states.shape[0])[:, None], plan.positions]
    if shared_axis() is None:
        return picked
    assert plan.owned is not None
    return total(jnp.where(plan.owned.reshape(*plan.owned.shape, *[1] * (states.ndim - 2)), picked, 0))


class FlaxLongformerAttention(NumberedPart):
    """Attention with output projection, residual and norm, and projections of its own for global tokens."""

    config: LongformerConfig

    def setup(self) -> None:
        """Make the parts."""
        self.self = FlaxLongformerSelfAttention(self.config, self.layer_index, dtype=self.dtype)
        self.output = AddAndNorm(self.config, dtype=self.dtype)

    def __call__(
        self, hidden_states: Array, plan: GlobalPlan, head_mask: Array | None
    ) -> tuple[Array, Array | None, Array | None]:
        """(B, S, H) -> (B, S, H), local weights, global weights."""
        context, weights, global_weights = self.self(hidden_states, plan, head_mask)
        return self.output(context, hidden_states, deterministic=plan.deterministic), weights, global_weights


class FlaxLongformerLayer(PostNormFeedForward):
    """One transformer layer: attention, feed-forward.

    Attributes:
        config: Settings of the model.
        layer_index: Number of the layer.
    """

    config: LongformerConfig
    layer_index: int
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Make the parts."""
        self.attention = FlaxLongformerAttention(self.config, self.layer_index, dtype=self.dtype)
        super().setup()

    def __call__(
        self, hidden_states: Array, plan: GlobalPlan, head_mask: Array | None
    ) -> tuple[Array, Array | None, Array | None]:
        """(B, S, H) -> (B, S, H), local weights, global weights."""
        hidden_states, weights, global_weights = self.attention(hidden_states, plan, head_mask)
        return self.feed_forward(hidden_states, deterministic=plan.deterministic), weights, global_weights


class FlaxLongformerLayers(Stack):
    """The layers, named by their index as in checkpoint keys."""

    config: LongformerConfig

    def setup(self) -> None:
        """Make the parts."""
        layer: Any = nn.remat(FlaxLongformerLayer) if self.gradient_checkpointing else FlaxLongformerLayer
        self.layers = [
            layer(self.config, index, dtype=self.dtype, name=str(index))
            for index in range(self.config.num_hidden_layers)
        ]

    def __call__(
        self, hidden_states: Array, plan: GlobalPlan, head_mask: Array | None
    ) -> tuple[Arrays, Arrays, Arrays]:
        """(B, S, H) -> states (the given ones first), local weights, global weights, by layer."""
        states, weights, global_weights = [hidden_states], [], []
        for index, layer in enumerate(self.layers):
            hidden_states, local, of_global = layer(
                hidden_states, plan, None if head_mask is None else head_mask[index]
            )
            states.append(hidden_states)
            weights.append(local)
            global_weights.append(of_global)
        return tuple(states), tuple(weights), tuple(global_weights)


class FlaxLongformerEncoder(Stack):
    """The stack of layers."""

    config: LongformerConfig

    def setup(self) -> None:
        """Make the parts."""
        self.layer = FlaxLongformerLayers(self.config, self.dtype, self.gradient_checkpointing)

    def __call__(
        self, hidden_states: Array, plan: GlobalPlan, head_mask: Array | None
    ) -> tuple[Arrays, Arrays, Arrays]:
        """(B, S, H) -> states (the given ones first), local weights, global weights, by layer."""
        return self.layer(hidden_states, plan, head_mask)
