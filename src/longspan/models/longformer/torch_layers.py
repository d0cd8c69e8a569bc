"""Layers of Longformer in PyTorch (Beltagy et al., 2020, https://arxiv.org/abs/2004.05150).

Axes: B batch, S tokens, H width, A heads, D head size, G global tokens, W attention window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from longspan.errors import InputError
from longspan.models.longformer.config import LongformerConfig
from longspan.nn.torch.apply import lookup, may_overwrite, may_replace, project
from longspan.nn.torch.base import CheckpointedLayers
from longspan.nn.torch.dropout import Dropout
from longspan.nn.torch.outputs import Tensors
from longspan.nn.torch.post_norm import PostNormAttention, PostNormFeedForward
from longspan.ops.torch.context import ContextShard, count_all, running_count, softmax, token_places, total
from longspan.ops.torch.modes import is_traced
from longspan.ops.torch.sliding_window import (
    ExtraKeys,
    sliding_window_attention,
    sliding_window_attention_weights,
    weights_by_offset,
)
from longspan.ops.torch.sliding_window_blocked import weigh_by_offset
from longspan.shapes import check_shape


@dataclass(frozen=True)
class GlobalPlan:
    """Who attends how in one call.

    Attributes:
        real: Tokens that are not padding, boolean (B, S); None if all are.
        is_global: Tokens with global attention, (B, S); None if there is no slot.
        positions: Token of each slot in ascending order, 0 for an empty slot, (B, G).
        filled: Slots that hold a token, (B, G).
        owned: Slots whose token is of this process, (B, G).
        shard: The share of the sequence that this process holds; None for all of it.
        needs_weights: Attention weights are returned.
        implementation: Name of the implementation of sliding-window attention.
    """

    real: Tensor | None
    is_global: Tensor | None
    positions: Tensor | None
    filled: Tensor | None
    needs_weights: bool
    implementation: str
    owned: Tensor | None = None
    shard: ContextShard | None = None

    @property
    def local(self) -> Tensor | None:
        """Tokens that see and are seen through the window: real, without global attention, (B, S); None if all."""
        if self.is_global is None:
            return self.real
        return ~self.is_global if self.real is None else self.real & ~self.is_global


def make_plan(
    config: LongformerConfig,
    *,
    shape: tuple[int, int],
    device: torch.device,
    attention_mask: Tensor | None,
    global_attention_mask: Tensor | None,
    needs_weights: bool,
    shard: ContextShard | None = None,
) -> GlobalPlan:
    """Merge the two masks of a call; a global token at padding is padding.

    Args:
        config: Settings of the model.
        shape: (B, S).
        device: Where the plan lives.
        attention_mask: 0 for padding, 1 for a real token, 2 for a global one, (B, S); None for no padding.
        global_attention_mask: Nonzero for global attention, (B, S).
        needs_weights: Attention weights are returned.
        shard: The share of the sequence that this process holds; None for all of it.

    Raises:
        InputError: a mask has the wrong shape.
    """
    check_shape(attention_mask, shape, name="attention_mask", axes="(batch, tokens)")
    check_shape(global_attention_mask, shape, name="global_attention_mask", axes="(batch, tokens)")
    real = None if attention_mask is None else attention_mask.to(device) != 0
    if real is not None and not is_traced(real) and bool(real.all()):
        real = None
    is_global = None if global_attention_mask is None else global_attention_mask.to(device) != 0
    if is_global is not None and real is not None:  # padding never attends
        is_global = is_global & real
    if attention_mask is not None and attention_mask.dtype != torch.bool:
        marked = attention_mask.to(device) > 1
        is_global = marked if is_global is None else is_global | marked
    if is_global is None:
        slots = 0
    elif is_traced(is_global):
        slots = config.num_global_slots
        is_global = _check_slots(is_global, slots)
    else:
        slots = _num_slots(is_global, shard)
    if slots == 0 or is_global is None:
        return GlobalPlan(real, None, None, None, needs_weights, config.attn_implementation, shard=shard)
    positions, filled, owned = _fill_slots(is_global, slots, shard)
    return GlobalPlan(real, is_global, positions, filled, needs_weights, config.attn_implementation, owned, shard)


def _num_slots(is_global: Tensor, shard: ContextShard | None = None) -> int:
    """Largest number of global tokens of a row."""
    return int(count_all(is_global, shard).amax()) if is_global.numel() > 0 else 0


def _check_slots(is_global: Tensor, slots: int) -> Tensor:
    """Give back the mask, in a graph that fails when a row has more global tokens than `slots`."""
    if is_global.device.type == "cpu" and not torch.compiler.is_exporting():
        return torch.ops.longspan.check_global_slots(is_global, slots)
    # needs nothing of longspan where an exported graph is loaded, and no wait for the device
    torch._assert_async((is_global.sum(dim=1) <= slots).all(), _too_many(slots))
    return is_global


@torch.library.custom_op("longspan::check_global_slots", mutates_args=())
def _check_global_slots(is_global: Tensor, slots: int) -> Tensor:
    if _num_slots(is_global) > slots:
        raise InputError(f"{_too_many(slots)}. Received: {_num_slots(is_global)}")
    return is_global.clone()


@_check_global_slots.register_fake
def _(is_global: Tensor, slots: int) -> Tensor:
    return torch.empty_like(is_global)


def _too_many(slots: int) -> str:
    return f"a traced graph takes at most config.num_global_slots={slots} global tokens per row"


def _fill_slots(is_global: Tensor, slots: int, shard: ContextShard | None) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of the global tokens of each row, which slots they fill, and which are here, each (B, slots)."""
    batch, length = is_global.shape
    slot = running_count(is_global, shard) - 1
    slot = torch.where(is_global & (slot < slots), slot, slots)  # one slot more takes all other tokens
    token = torch.arange(length, device=is_global.device).expand(batch, length)
    positions = torch.zeros(batch, slots + 1, dtype=torch.long, device=is_global.device)
    positions = positions.scatter(1, slot, token)[:, :slots]
    filled = owned = torch.arange(slots, device=is_global.device) < count_all(is_global, shard)
    if shard is not None:
        owned = torch.zeros(batch, slots + 1, dtype=torch.bool, device=is_global.device)
        owned = owned.scatter(1, slot, is_global)[:, :slots]
    return torch.where(owned, positions, 0), filled, owned


def first_token(shape: tuple[int, int], device: torch.device, shard: ContextShard | None = None) -> Tensor:
    """Global attention on the first token of each row, (B, S)."""
    return (token_places(shape[1], device, shard) == 0).expand(shape)


def before_separator(
    input_ids: Tensor | None,
    token_type_ids: Tensor | None,
    *,
    shape: tuple[int, int],
    separator: int | None,
    shard: ContextShard | None = None,
) -> tuple[Tensor, Tensor]:
    """Global attention on the question: all tokens before the first separator.

    A row without a separator takes the tokens before its first one of segment 1; without that, its first token.

    Args:
        input_ids: (B, S).
        token_type_ids: (B, S).
        shape: (B, S).
        separator: Id of the separator.
        shard: The share of the sequence that this process holds; None for all of it.

    Returns:
        The mask (B, S), and the rows (B,) where neither was found.
    """
    device = next((x.device for x in (input_ids, token_type_ids) if x is not None), torch.device("cpu"))
    nothing = torch.zeros(shape, dtype=torch.bool, device=device)
    is_separator = nothing if input_ids is None or separator is None else input_ids == separator
    is_second = nothing if token_type_ids is None else token_type_ids == 1
    found = count_all(is_separator, shard) > 0
    border = torch.where(found, is_separator, is_second)
    before = running_count(border, shard) == 0
    lacking = count_all(border, shard) == 0
    return torch.where(lacking, first_token(shape, device, shard), before), lacking.squeeze(1)


def after_separator(
    input_ids: Tensor | None, *, shape: tuple[int, int], separator: int | None, shard: ContextShard | None = None
) -> tuple[Tensor, Tensor]:
    """Global attention on the choice: all tokens behind the first separator and the one that follows it.

    Args:
        input_ids: (B, S).
        shape: (B, S).
        separator: Id of the separator.
        shard: The share of the sequence that this process holds; None for all of it.

    Returns:
        The mask (B, S), and the rows (B,) without a separator, which take their first token.
    """
    if input_ids is None or separator is None:
        device = torch.device("cpu") if input_ids is None else input_ids.device
        return first_token(shape, device, shard), torch.ones(shape[0], dtype=torch.bool, device=device)
    is_separator = input_ids == separator
    behind = running_count(running_count(is_separator, shard) > 0, shard) > 2  # two tokens later
    lacking = count_all(is_separator, shard) == 0
    return torch.where(lacking, first_token(shape, input_ids.device, shard), behind), lacking.squeeze(1)


class LongformerEmbeddings(nn.Module):
    """LayerNorm(word + position + segment), with dropout; positions are counted over real tokens, from pad id + 1."""

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__()
        padding = config.pad_token_id
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=padding)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size, padding_idx=padding)

    def forward(
        self,
        *,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor,
    ) -> Tensor:
        """Embed ids (B, S) or embeddings (B, S, H) into (B, S, H)."""
        embeddings = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        embeddings = embeddings + lookup(self.token_type_embeddings, token_type_ids, like=embeddings)
        embeddings = embeddings + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(embeddings))


class LongformerSelfAttention(nn.Module):
    """Windowed attention, plus global attention of a few tokens, without the output projection.

    A token i without global attention sees its window and the global tokens g, in one softmax:

        cᵢ = Σⱼ softmax(q(xᵢ)·k(xⱼ)/√D) v(xⱼ)      over |i - j| ≤ W/2 and all g

    A global token sees all tokens, through projections of its own:

        c_g = Σⱼ softmax(q'(x_g)·k'(xⱼ)/√D) v'(xⱼ)      over all j

    Few tokens are global, so k' and v' are applied to them and not to all tokens, unless somebody changed what these
    layers do: q'·(K'x) = (K'ᵀq')·x, and Σ p (V'x) = V'(Σ p x).
    """

    def __init__(self, config: LongformerConfig, *, layer_index: int) -> None:
        super().__init__()
        self.num_attention_heads = config.num_attention_heads
        self.attention_head_size = config.hidden_size // config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.query_global = nn.Linear(config.hidden_size, config.hidden_size)
        self.key_global = nn.Linear(config.hidden_size, config.hidden_size)
        self.value_global = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = Dropout(config.attention_probs_dropout_prob)
        self.radius = config.window_of(layer_index) // 2

    def forward(
        self, hidden_states: Tensor, *, plan: GlobalPlan, head_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Attend from (B, S, H) to themselves.

        Args:
            hidden_states: (B, S, H).
            plan: Who attends how.
            head_mask: Factor of each head, (1, A, 1, 1).

        Returns:
            The context (B, S, A·D); the local weights (B, A, S, G + W + 1) and the global ones (B, A, S, G) if the
            plan needs them.
        """
        context, weights = self._local(hidden_states, plan, head_mask)
        context = context.transpose(1, 2).flatten(2)
        if plan.local is not None:  # padding gets 0, global tokens their own context
            context = context.masked_fill(~plan.local[..., None], 0.0)
        if plan.positions is None:
            return self._with_global_projections(context), weights, None
        global_context, global_weights = self._global(hidden_states, plan, head_mask)
        if plan.shard is not None and plan.owned is not None:
            global_context = global_context.masked_fill(~plan.owned[..., None], 0.0)
        places = plan.positions[..., None].expand_as(global_context)  # an empty slot adds 0 to the first token
        return context.scatter_add(1, places, global_context.to(context.dtype)), weights, global_weights

    def _local(self, hidden_states: Tensor, plan: GlobalPlan, head_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Context of the windows (B, A, S, D) and the weights, if the plan needs them."""
        query, key, value = (self._split(project(layer, hidden_states)) for layer in (self.query, self.key, self.value))
        extra = None
        if plan.positions is not None:
            extra = ExtraKeys(_pick(key, plan), _pick(value, plan), plan.filled)
        arguments: dict[str, Any] = {
            "left": self.radius,
            "right": self.radius,
            "scale": 1.0 / math.sqrt(self.attention_head_size),
            "mask": plan.local,
            "extra": extra,
            "dropout": self.dropout.p if self.training else 0.0,
            "implementation": plan.implementation,
        }
        if not plan.needs_weights:
            arguments |= {"shard": plan.shard, "overwrite_query": may_overwrite(self)}
            context = sliding_window_attention(query, key, value, **arguments)
            return context if head_mask is None else context * head_mask, None
        _, weights = sliding_window_attention_weights(query, key, value, **arguments)
        weights = weights_by_offset(weights, left=self.radius, right=self.radius, length=query.shape[2])
        if plan.local is not None:
            weights = weights.masked_fill(~plan.local[:, None, :, None], 0.0)
        weights = weights if head_mask is None else weights * head_mask
        return weigh_by_offset(weights, value, left=self.radius, right=self.radius, extra=extra), weights

    def _global(
        self, hidden_states: Tensor, plan: GlobalPlan, head_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Context of the global tokens (B, G, A·D) and their weights (B, A, S, G), if the plan needs them."""
        assert plan.filled is not None
        states = _pick(hidden_states.unsqueeze(1), plan).squeeze(1)  # (B, G, H)
        query = self._split(project(self.query_global, states)) / math.sqrt(self.attention_head_size)  # (B, A, G, D)
        is_cheaper = query.shape[2] < self.attention_head_size
        folded = is_cheaper and may_replace(self.key_global) and may_replace(self.value_global)
        scores = self._folded_scores(query, hidden_states) if folded else self._plain_scores(query, hidden_states)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if plan.real is not None:
            scores = scores.masked_fill(~plan.real[:, None, None, :], torch.finfo(scores.dtype).min)
        weights = softmax(scores, plan.shard).masked_fill(~plan.filled[:, None, :, None], 0.0)
        weights = self.dropout(weights.to(hidden_states.dtype))
        if head_mask is not None:
            weights = weights * head_mask
        returned = weights.transpose(2, 3)
        weights = returned.transpose(2, 3)  # the context is made from what is returned: gradients reach it
        context = self._folded_sum(weights, hidden_states) if folded else self._plain_sum(weights, hidden_states)
        context = total(context, plan.shard)
        return context.transpose(1, 2).flatten(2), returned if plan.needs_weights else None

    def _folded_scores(self, query: Tensor, hidden_states: Tensor) -> Tensor:
        """q·(K x + b) = (Kᵀq)·x + q·b, (B, A, G, S)."""
        weight, bias = self._by_head(self.key_global)
        folded = torch.matmul(query, weight)  # (B, A, G, H)
        scores = torch.matmul(folded.flatten(1, 2), hidden_states.transpose(1, 2)).unflatten(1, folded.shape[1:3])
        return scores + torch.matmul(query, bias.unsqueeze(-1))

    def _folded_sum(self, weights: Tensor, hidden_states: Tensor) -> Tensor:
        """Σ p (V x + b) = V (Σ p x) + b Σ p, (B, A, G, D)."""
        weight, bias = self._by_head(self.value_global)
        states = torch.matmul(weights.flatten(1, 2), hidden_states).unflatten(1, weights.shape[1:3])  # (B, A, G, H)
        return torch.matmul(states, weight.transpose(1, 2)) + weights.sum(dim=-1, keepdim=True) * bias.unsqueeze(1)

    def _plain_scores(self, query: Tensor, hidden_states: Tensor) -> Tensor:
        return torch.matmul(query, self._split(project(self.key_global, hidden_states)).transpose(2, 3))

    def _plain_sum(self, weights: Tensor, hidden_states: Tensor) -> Tensor:
        return torch.matmul(weights, self._split(project(self.value_global, hidden_states)))

    def _by_head(self, linear: nn.Linear) -> tuple[Tensor, Tensor]:
        """Weight (A, D, H) and bias (A, D) of a projection."""
        heads = (self.num_attention_heads, self.attention_head_size)
        return linear.weight.unflatten(0, heads), linear.bias.unflatten(0, heads)

    def _with_global_projections(self, context: Tensor) -> Tensor:
        """Let the unused global projections take part with weight 0: distributed training waits for all gradients."""
        if not (self.training and torch.is_grad_enabled()):
            return context
        unused = (self.query_global, self.key_global, self.value_global)
        return context + 0.0 * sum(parameter.flatten()[0] for linear in unused for parameter in linear.parameters())

    def _split(self, states: Tensor) -> Tensor:
        """(B, S, A·D) -> (B, A, S, D)."""
        return states.unflatten(-1, (self.num_attention_heads, self.attention_head_size)).transpose(1, 2)


def _pick(states: Tensor, plan: GlobalPlan) -> Tensor:
    """The global tokens, (B, A, G, D), of (B, A, S, D)."""
    assert plan.positions is not None
    places = plan.positions[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
    picked = states.gather(2, places)
    if plan.shard is None or plan.owned is None:
        return picked
    return plan.shard.total(picked.masked_fill(~plan.owned[:, None, :, None], 0.0))


class LongformerAttention(PostNormAttention):
    """Attention with output projection, residual and norm, and projections of its own for global tokens."""

    projections = ("query", "key", "value", "query_global", "key_global", "value_global")


class LongformerLayer(PostNormFeedForward):
    """One transformer layer: attention, feed-forward."""

    def __init__(self, config: LongformerConfig, *, layer_index: int) -> None:
        super().__init__()
        self.attention = LongformerAttention(config, LongformerSelfAttention(config, layer_index=layer_index))
        self.add_feed_forward(config)

    def forward(
        self, hidden_states: Tensor, *, plan: GlobalPlan, head_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(B, S, H) -> (B, S, H), local weights, global weights."""
        hidden_states, weights, global_weights = self.attention(hidden_states, plan=plan, head_mask=head_mask)
        return self.feed_forward(hidden_states), weights, global_weights


class LongformerEncoder(CheckpointedLayers):
    """The stack of layers."""

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            [LongformerLayer(config, layer_index=index) for index in range(config.num_hidden_layers)]
        )

    def forward(
        self, hidden_states: Tensor, *, plan: GlobalPlan, head_mask: Tensor | None, output_hidden_states: bool
    ) -> tuple[Tensor, Tensors | None, Tensors | None, Tensors | None]:
        """(B, S, H) -> last states (B, S, H), hidden states, attentions, global attentions."""
        states, attentions, global_attentions = [], [], []
        for index, layer in enumerate(self.layer):
            if output_hidden_states:
                states.append(hidden_states)
            hidden_states, weights, global_weights = self.run_layer(
                layer, hidden_states, plan=plan, head_mask=None if head_mask is None else head_mask[index]
            )
            attentions.append(weights)
            global_attentions.append(global_weights)
        return (
            hidden_states,
            (*states, hidden_states) if output_hidden_states else None,
            tuple(attentions) if plan.needs_weights else None,
            tuple(global_attentions) if plan.needs_weights and plan.is_global is not None else None,
        )
