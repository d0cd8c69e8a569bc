"""Layers of Longformer in Keras 3 (Beltagy et al., 2020, https://arxiv.org/abs/2004.05150).

Axes: B batch, S tokens, H width, A heads, D head size, G global tokens, W attention window.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
from keras import ops

from longspan.models.longformer.config import LongformerConfig
from longspan.nn.keras.checks import Size, check_shape
from longspan.nn.keras.layers import Block, linear, take_tokens, tokenwise
from longspan.nn.keras.masks import as_boolean
from longspan.nn.keras.outputs import Tensors
from longspan.nn.keras.plain import is_plain
from longspan.nn.keras.post_norm import PostNormAttention, PostNormFeedForward
from longspan.nn.keras.runtime import is_concrete, shapes_may_depend_on_values
from longspan.ops.fast_paths import is_off
from longspan.ops.keras import Tensor
from longspan.ops.keras.attention import Dropout, mask_to_bias, softmax
from longspan.ops.keras.sliding_window import ExtraKeys, sliding_window_attention, weights_by_offset


@dataclass(frozen=True)
class GlobalPlan:
    """Who attends how in one call.

    Attributes:
        real: Tokens that are not padding, boolean (B, S); None if all are.
        is_global: Tokens with global attention, (B, S); None if there is no slot.
        positions: Token of each slot in ascending order, 0 for an empty slot, (B, G).
        filled: Slots that hold a token, (B, G).
        slot: The slot of each global token, any for the others, (B, S).
        too_many: Rows with more global tokens than slots, which no compiled program can refuse, (B,); or None.
        needs_weights: Attention weights are returned.
        implementation: Name of the implementation of sliding-window attention.
    """

    real: Tensor | None
    is_global: Tensor | None
    positions: Tensor | None
    filled: Tensor | None
    slot: Tensor | None
    too_many: Tensor | None
    needs_weights: bool
    implementation: str

    @property
    def local(self) -> Tensor | None:
        """Tokens that see and are seen through the window: real, without global attention, (B, S); None if all."""
        if self.is_global is None:
            return self.real
        others = ops.logical_not(self.is_global)
        return others if self.real is None else ops.logical_and(self.real, others)


def make_plan(
    config: LongformerConfig,
    *,
    shape: tuple[Size, Size],
    attention_mask: Tensor | None,
    global_attention_mask: Tensor | None,
    needs_weights: bool,
) -> GlobalPlan:
    """Merge the two masks of a call; a global token at padding is padding.

    Args:
        config: Settings of the model.
        shape: (B, S).
        attention_mask: 0 for padding, 1 for a real token, 2 for a global one, (B, S); None for no padding.
        global_attention_mask: Nonzero for global attention, (B, S).
        needs_weights: Attention weights are returned.

    Raises:
        InputError: a mask has the wrong shape.
    """
    check_shape(attention_mask, shape, name="attention_mask", axes="(batch, tokens)")
    check_shape(global_attention_mask, shape, name="global_attention_mask", axes="(batch, tokens)")
    real = None if attention_mask is None else as_boolean(attention_mask)
    is_global = None if global_attention_mask is None else as_boolean(global_attention_mask)
    if is_global is not None and real is not None:  # padding never attends
        is_global = ops.logical_and(is_global, real)
    if attention_mask is not None and keras.backend.standardize_dtype(attention_mask.dtype) != "bool":
        marked = ops.greater(attention_mask, 1)
        is_global = marked if is_global is None else ops.logical_or(is_global, marked)
    if real is not None and is_concrete(real) and bool(ops.all(real)):
        real = None
    slots: Size = 0
    count = None if is_global is None else ops.sum(ops.cast(is_global, "int32"), axis=1)
    if count is not None and is_concrete(count):
        slots = int(ops.max(count)) if count.shape[0] else 0
    elif count is not None and shapes_may_depend_on_values():
        slots = ops.maximum(ops.max(count), 1)
    elif count is not None:
        least = min if isinstance(shape[1], int) else ops.minimum
        slots = least(config.num_global_slots, shape[1])
    if count is None or (isinstance(slots, int) and slots == 0):
        return GlobalPlan(real, None, None, None, None, None, needs_weights, config.attn_implementation)
    too_many = None if is_concrete(count) or shapes_may_depend_on_values() else count > slots
    slot = ops.clip(ops.cumsum(ops.cast(is_global, "int32"), axis=1) - 1, 0, slots - 1)
    positions, filled = _fill_slots(is_global, slots, shape[1])
    implementation = config.attn_implementation
    return GlobalPlan(real, is_global, positions, filled, slot, too_many, needs_weights, implementation)


def _fill_slots(is_global: Tensor, slots: Size, length: Size) -> tuple[Tensor, Tensor]:
    """Positions of the global tokens of each row and which slots they fill, both (B, slots)."""
    to_the_end = length - ops.arange(length, dtype="int32")  # falls from token to token, and is nowhere 0
    values, positions = ops.top_k(ops.where(is_global, to_the_end, 0), slots)
    filled = values > 0
    return ops.where(filled, ops.cast(positions, "int32"), 0), filled


def first_token(shape: tuple[Size, Size]) -> Tensor:
    """Global attention on the first token of each row, (B, S)."""
    return ops.broadcast_to(ops.arange(shape[1]) == 0, shape)


def before_separator(
    input_ids: Tensor | None, token_type_ids: Tensor | None, *, shape: tuple[Size, Size], separator: int | None
) -> tuple[Tensor, Tensor]:
    """Global attention on the question: all tokens before the first separator.

    A row without a separator takes the tokens before its first one of segment 1; without that, its first token.

    Args:
        input_ids: (B, S).
        token_type_ids: (B, S).
        shape: (B, S).
        separator: Id of the separator.

    Returns:
        The mask (B, S), and the rows (B,) where neither was found.
    """
    nothing = ops.zeros(shape, dtype="bool")
    is_separator = nothing if input_ids is None or separator is None else ops.equal(input_ids, separator)
    is_second = nothing if token_type_ids is None else ops.equal(token_type_ids, 1)
    border = ops.where(ops.any(is_separator, axis=1, keepdims=True), is_separator, is_second)
    before = _seen(border) == 0
    lacking = ops.logical_not(ops.any(border, axis=1))
    return ops.where(lacking[:, None], first_token(shape), before), lacking


def after_separator(
    input_ids: Tensor | None, *, shape: tuple[Size, Size], separator: int | None
) -> tuple[Tensor, Tensor]:
    """Global attention on the choice: all tokens behind the first separator and the one that follows it.

    Args:
        input_ids: (B, S).
        shape: (B, S).
        separator: Id of the separator.

    Returns:
        The mask (B, S), and the rows (B,) without a separator, which take their first token.
    """
    if input_ids is None or separator is None:
        return first_token(shape), ops.ones(shape[:1], dtype="bool")
    seen = _seen(ops.equal(input_ids, separator))
    behind = ops.pad(seen, ((0, 0), (2, 0)))[:, : shape[1]] > 0  # two tokens later
    lacking = ops.max(seen, axis=1) == 0
    return ops.where(lacking[:, None], first_token(shape), behind), lacking


def _seen(tokens: Tensor) -> Tensor:
    """How many of these tokens, boolean (B, S), stand at or before each place."""
    return ops.cumsum(ops.cast(tokens, "int32"), axis=1)


class LongformerSelfAttention(Block):
    """Windowed attention, plus global attention of a few tokens, without the output projection.

    A token i without global attention sees its window and the global tokens g, in one softmax:

        cᵢ = Σⱼ softmax(q(xᵢ)·k(xⱼ)/√D) v(xⱼ)      over |i - j| ≤ W/2 and all g

    A global token sees all tokens, through projections of its own:

        c_g = Σⱼ softmax(q'(x_g)·k'(xⱼ)/√D) v'(xⱼ)      over all j

    Few tokens are global, so k' and v' are applied to them and not to all tokens, unless somebody changed what these
    layers do: q'·(K'x) = (K'ᵀq')·x, and Σ p (V'x) = V'(Σ p x).
    """

    def __init__(self, config: LongformerConfig, *, num_heads: int, window: int, **kwargs: Any) -> None:
        super().__init__(config.hidden_size, **kwargs)
        self.num_attention_heads = num_heads
        self.attention_head_size = config.hidden_size // config.num_attention_heads
        size, policy = num_heads * self.attention_head_size, self.dtype_policy
        project = partial(linear, size, stddev=config.initializer_range, dtype=policy)
        self.query, self.key, self.value = project(name="query"), project(name="key"), project(name="value")
        self.query_global, self.key_global = project(name="query_global"), project(name="key_global")
        self.value_global = project(name="value_global")
        self.dropout = keras.layers.Dropout(config.attention_probs_dropout_prob, dtype=policy)
        self.radius = window // 2

    def call(
        self,
        hidden_states: Tensor,
        *,
        plan: GlobalPlan,
        head_mask: Tensor | None = None,
        training: bool | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Attend from (B, S, H) to themselves.

        Args:
            hidden_states: (B, S, H).
            plan: Who attends how.
            head_mask: Factor of each head, (1, A, 1, 1).
            training: Apply dropout.

        Returns:
            The context (B, S, A·D); the local weights (B, A, S, G + W + 1) and the global ones (B, A, S, G) if the
            plan needs them.
        """
        dropout = partial(self.dropout, training=training) if training else None
        context, weights = self._local(hidden_states, plan, dropout)
        if head_mask is not None:
            head_mask = ops.cast(head_mask, context.dtype)
            context = context * head_mask
            weights = None if weights is None else weights * head_mask
        context = self._merge(context)
        if plan.local is not None:  # padding gets 0, global tokens their own context
            context = context * ops.cast(plan.local[..., None], context.dtype)
        if plan.positions is None:
            return self._with_global_projections(context, hidden_states, training), weights, None
        global_context, global_weights = self._global(hidden_states, plan, head_mask, dropout)
        assert plan.is_global is not None
        own = take_tokens(global_context, plan.slot)
        return ops.where(plan.is_global[..., None], own, context), weights, global_weights

    def _local(self, hidden_states: Tensor, plan: GlobalPlan, dropout: Dropout | None) -> tuple[Tensor, Tensor | None]:
        """Context of the windows (B, A, S, D) and the weights, if the plan needs them."""
        query, key, value = (self._split(layer(hidden_states)) for layer in (self.query, self.key, self.value))
        extra = None
        if plan.positions is not None:
            extra_key, extra_value = (take_tokens(states, plan.positions) for states in (key, value))
            extra = ExtraKeys(_swap(extra_key), _swap(extra_value), plan.filled)
        context, weights = sliding_window_attention(
            _swap(query),
            _swap(key),
            _swap(value),
            left=self.radius,
            right=self.radius,
            scale=1.0 / math.sqrt(self.attention_head_size),
            mask=plan.local,
            extra=extra,
            dropout=dropout,
            needs_weights=plan.needs_weights,
            implementation=plan.implementation,
        )
        if weights is None:
            return context, None
        length = ops.shape(query)[1]
        weights = weights_by_offset(weights, left=self.radius, right=self.radius, length=length)
        if plan.local is not None:
            weights = weights * ops.cast(plan.local[:, None, :, None], weights.dtype)
        return context, weights

    def _global(
        self, hidden_states: Tensor, plan: GlobalPlan, head_mask: Tensor | None, dropout: Dropout | None
    ) -> tuple[Tensor, Tensor | None]:
        """Context of the global tokens (B, G, A·D) and their weights (B, A, S, G), if the plan needs them."""
        filled = plan.filled
        assert filled is not None
        states = take_tokens(hidden_states, plan.positions)  # (B, G, H)
        query = _swap(self._split(self.query_global(states))) / math.sqrt(self.attention_head_size)  # (B, A, G, D)

        def attend(folded: bool) -> tuple[Tensor, Tensor]:
            scores = (self._folded_scores if folded else self._plain_scores)(query, hidden_states)
            scores = ops.cast(scores, "float32")
            if plan.real is not None:
                scores = scores + mask_to_bias(plan.real[:, None, None, :])
            weights = softmax(scores) * ops.cast(filled[:, None, :, None], "float32")
            weights = ops.cast(weights, hidden_states.dtype)
            weights = weights if dropout is None else dropout(weights)
            weights = weights if head_mask is None else weights * head_mask
            return (self._folded_sum if folded else self._plain_sum)(weights, hidden_states), weights

        folds = self._may_fold(ops.shape(query)[2])
        if isinstance(folds, bool):
            context, weights = attend(folds)
        else:
            context, weights = ops.cond(folds, lambda: attend(True), lambda: attend(False))
        return self._merge(context), ops.transpose(weights, (0, 1, 3, 2)) if plan.needs_weights else None

    def _may_fold(self, slots: Size) -> Any:
        """True, or a tensor of it, if it is cheaper not to project all tokens, and nobody changed the projections."""
        layers = (self.key_global, self.value_global)
        linear = all(type(layer) is keras.layers.Dense and not layer.quantization_mode for layer in layers)
        return linear and is_plain(*layers) and not is_off() and slots < self.attention_head_size

    def _folded_scores(self, query: Tensor, hidden_states: Tensor) -> Tensor:
        """q·(K x + b) = (Kᵀq)·x + q·b, (B, A, G, S)."""
        kernel, bias = self._by_head(self.key_global)
        batch, heads, slots, _ = ops.shape(query)
        folded = ops.matmul(query, ops.transpose(kernel, (0, 2, 1)))  # (B, A, G, H)
        folded = ops.transpose(ops.reshape(folded, (batch, heads * slots, self.width)), (0, 2, 1))
        scores = ops.matmul(hidden_states, folded)  # in this order no copy of all tokens is made to transpose them
        scores = ops.reshape(scores, (batch, ops.shape(hidden_states)[1], heads, slots))
        return ops.transpose(scores, (0, 2, 3, 1)) + ops.matmul(query, bias[..., None])

    def _folded_sum(self, weights: Tensor, hidden_states: Tensor) -> Tensor:
        """Σ p (V x + b) = V (Σ p x) + b Σ p, (B, A, G, D)."""
        kernel, bias = self._by_head(self.value_global)
        batch, heads, slots, length = ops.shape(weights)
        states = ops.matmul(ops.reshape(weights, (batch, heads * slots, length)), hidden_states)
        states = ops.reshape(states, (batch, heads, slots, self.width))
        return ops.matmul(states, kernel) + ops.sum(weights, axis=-1, keepdims=True) * bias[:, None]

    def _plain_scores(self, query: Tensor, hidden_states: Tensor) -> Tensor:
        return ops.matmul(query, ops.transpose(self._split(self.key_global(hidden_states)), (0, 2, 3, 1)))

    def _plain_sum(self, weights: Tensor, hidden_states: Tensor) -> Tensor:
        return ops.matmul(weights, _swap(self._split(self.value_global(hidden_states))))

    def _by_head(self, layer: keras.layers.Dense) -> tuple[Tensor, Tensor]:
        """Kernel (A, H, D) and bias (A, D) of a projection, adapters of Keras included."""
        heads, size = self.num_attention_heads, self.attention_head_size
        kernel, bias = (ops.cast(weight, self.compute_dtype) for weight in (layer.kernel, layer.bias))
        kernel = ops.transpose(ops.reshape(kernel, (self.width, heads, size)), (1, 0, 2))
        return kernel, ops.reshape(bias, (heads, size))

    def _with_global_projections(self, context: Tensor, hidden_states: Tensor, training: bool | None) -> Tensor:
        """Let the unused global projections take part with weight 0: Keras warns of weights without a gradient."""
        if not training:
            return context
        unused = (self.query_global, self.key_global, self.value_global)
        return context + sum(0.0 * layer(hidden_states[:, :1]) for layer in unused)

    def _split(self, states: Tensor) -> Tensor:
        """(B, S, A·D) -> (B, S, A, D)."""
        batch, length = ops.shape(states)[:2]
        return ops.reshape(states, (batch, length, self.num_attention_heads, self.attention_head_size))

    def _merge(self, context: Tensor) -> Tensor:
        """(B, A, S, D) -> (B, S, A·D)."""
        batch, _, length, _ = ops.shape(context)
        size = self.num_attention_heads * self.attention_head_size
        return ops.reshape(_swap(context), (batch, length, size))


def _swap(states: Tensor) -> Tensor:
    """(B, S, A, D) <-> (B, A, S, D)."""
    return ops.transpose(states, (0, 2, 1, 3))


class LongformerAttention(PostNormAttention):
    """Attention with output projection, residual and norm, and projections of its own for global tokens."""

    projections = ("query", "key", "value", "query_global", "key_global", "value_global")

    def __init__(
        self, config: LongformerConfig, *, layer_index: int, pruned_heads: Iterable[int] = (), **kwargs: Any
    ) -> None:
        pruned, window = frozenset(pruned_heads), config.window_of(layer_index)
        heads = config.num_attention_heads - len(pruned)
        attention = LongformerSelfAttention(config, num_heads=heads, window=window, dtype=kwargs["dtype"], name="self")
        super().__init__(config, attention, pruned_heads=pruned, **kwargs)

    def call(
        self, hidden_states: Tensor, *, plan: GlobalPlan, head_mask: Tensor | None, training: bool | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(B, S, H) -> (B, S, H), local weights, global weights."""
        head_mask = self.mask_of_remaining(head_mask)
        context, *weights = self.self(hidden_states, plan=plan, head_mask=head_mask, training=training)
        return self.output_(context, hidden_states, training=training), *weights


class LongformerLayer(PostNormFeedForward):
    """One transformer layer: attention, feed-forward."""

    def __init__(
        self, config: LongformerConfig, *, layer_index: int, pruned_heads: Iterable[int] = (), **kwargs: Any
    ) -> None:
        super().__init__(config.hidden_size, **kwargs)
        self.attention = LongformerAttention(
            config, layer_index=layer_index, pruned_heads=pruned_heads, dtype=self.dtype_policy, name="attention"
        )
        self.add_feed_forward(config)

    def call(
        self, hidden_states: Tensor, *, plan: GlobalPlan, head_mask: Tensor | None, training: bool | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(B, S, H) -> (B, S, H), local weights, global weights."""
        hidden_states, *weights = self.attention(hidden_states, plan=plan, head_mask=head_mask, training=training)
        apply = partial(self.feed_forward, training=training)
        parts = (self.intermediate, self.output_)
        return tokenwise(apply, hidden_states, parts=parts, width=self.inner_size, training=training), *weights


class LongformerEncoder(Block):
    """The stack of layers."""

    def __init__(self, config: LongformerConfig, **kwargs: Any) -> None:
        super().__init__(config.hidden_size, **kwargs)
        pruned, policy = config.pruned_heads, self.dtype_policy
        self.layer = [
            LongformerLayer(
                config, layer_index=index, pruned_heads=pruned.get(index, ()), dtype=policy, name=f"layer_{index}"
            )
            for index in range(config.num_hidden_layers)
        ]

    def call(
        self,
        hidden_states: Tensor,
        *,
        plan: GlobalPlan,
        head_mask: Tensor | None,
        output_hidden_states: bool,
        training: bool | None = None,
    ) -> tuple[Tensor, Tensors | None, Tensors | None, Tensors | None]:
        """(B, S, H) -> last states (B, S, H), hidden states, attentions, global attentions."""
        states, attentions, global_attentions = [], [], []
        for index, layer in enumerate(self.layer):
            if output_hidden_states:
                states.append(hidden_states)
            hidden_states, weights, global_weights = layer(
                hidden_states, plan=plan, head_mask=None if head_mask is None else head_mask[index], training=training
            )
            attentions.append(weights)
            global_attentions.append(global_weights)
        return (
            hidden_states,
            (*states, hidden_states) if output_hidden_states else None,
            tuple(attentions) if plan.needs_weights else None,
            tuple(global_attentions) if plan.needs_weights and plan.is_global is not None else None,
        )
