"""Layers of Longformer in PyTorch (Beltagy et al., 2020, https://arxiv.org/abs/2004.05150).

Axes: B batch, S tokens, H width, A heads, D head size, G global tokens, W attention window.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longspan.models.longformer.config import LongformerConfig
from longspan.models.longformer.torch_global import GlobalPlan
from longspan.nn.torch.activations import get_activation
from longspan.nn.torch.apply import lookup, may_replace, project, tokenwise
from longspan.nn.torch.base import CheckpointedLayers
from longspan.nn.torch.outputs import Tensors
from longspan.nn.torch.resizing import keep_features, remaining_features
from longspan.ops.torch.sliding_window import (
    ExtraKeys,
    sliding_window_attention,
    sliding_window_attention_weights,
    weights_by_offset,
)


class LongformerEmbeddings(nn.Module):
    """LayerNorm(word + position + segment), with dropout; positions are counted over real tokens, from pad id + 1.

    Args:
        config: Settings of the model.
    """

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__()
        padding = config.pad_token_id
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=padding)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
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

    Args:
        config: Settings of the model.
        layer_index: Index of the layer.
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
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
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
        context, weights = self._local(hidden_states, plan)
        if head_mask is not None:
            context = context * head_mask
            weights = None if weights is None else weights * head_mask
        context = context.transpose(1, 2).flatten(2)
        if plan.local is not None:  # padding gets 0, global tokens their own context
            context = context.masked_fill(~plan.local[..., None], 0.0)
        if plan.positions is None:
            return self._with_global_projections(context), weights, None
        global_context, global_weights = self._global(hidden_states, plan, head_mask)
        places = plan.positions[..., None].expand_as(global_context)  # an empty slot adds 0 to the first token
        return context.scatter_add(1, places, global_context.to(context.dtype)), weights, global_weights

    def _local(self, hidden_states: Tensor, plan: GlobalPlan) -> tuple[Tensor, Tensor | None]:
        """Context of the windows (B, A, S, D) and the weights, if the plan needs them."""
        query, key, value = (self._split(project(layer, hidden_states)) for layer in (self.query, self.key, self.value))
        extra = None
        if plan.positions is not None:
            extra = ExtraKeys(_pick(key, plan.positions), _pick(value, plan.positions), plan.filled)
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
            return sliding_window_attention(query, key, value, **arguments), None
        context, weights = sliding_window_attention_weights(query, key, value, **arguments)
        weights = weights_by_offset(weights, left=self.radius, right=self.radius, length=query.shape[2])
        if plan.local is not None:
            weights = weights.masked_fill(~plan.local[:, None, :, None], 0.0)
        return context, weights

    def _global(
        self, hidden_states: Tensor, plan: GlobalPlan, head_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Context of the global tokens (B, G, A·D) and their weights (B, A, S, G), if the plan needs them."""
        assert plan.positions is not None
        assert plan.filled is not None
        states = _pick(hidden_states.unsqueeze(1), plan.positions).squeeze(1)  # (B, G, H)
        query = self._split(project(self.query_global, states)) / math.sqrt(self.attention_head_size)  # (B, A, G, D)
        is_cheaper = query.shape[2] < self.attention_head_size
        folded = is_cheaper and may_replace(self.key_global) and may_replace(self.value_global)
        scores = self._folded_scores(query, hidden_states) if folded else self._plain_scores(query, hidden_states)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if plan.real is not None:
            scores = scores.masked_fill(~plan.real[:, None, None, :], torch.finfo(scores.dtype).min)
        weights = torch.softmax(scores, dim=-1).masked_fill(~plan.filled[:, None, :, None], 0.0)
        weights = self.dropout(weights.to(hidden_states.dtype))
        if head_mask is not None:
            weights = weights * head_mask
        context = self._folded_sum(weights, hidden_states) if folded else self._plain_sum(weights, hidden_states)
        return context.transpose(1, 2).flatten(2), weights.transpose(2, 3) if plan.needs_weights else None

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


def _pick(states: Tensor, positions: Tensor) -> Tensor:
    """Tokens `positions` (B, G) of (B, A, S, D)."""
    return states.gather(2, positions[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3]))


class LongformerSelfOutput(nn.Module):
    """LayerNorm(x + dropout(W c + b)).

    Args:
        config: Settings of the model.
        input_size: Width of c.
    """

    def __init__(self, config: LongformerConfig, *, input_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(input_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor, residual: Tensor) -> Tensor:
        """(B, S, input_size), (B, S, H) -> (B, S, H)."""
        return self.LayerNorm(self.dropout(project(self.dense, hidden_states)) + residual)


class LongformerAttention(nn.Module):
    """Attention with output projection, residual and norm.

    Args:
        config: Settings of the model.
        layer_index: Index of the layer.
    """

    def __init__(self, config: LongformerConfig, *, layer_index: int) -> None:
        super().__init__()
        self.self = LongformerSelfAttention(config, layer_index=layer_index)
        self.output = LongformerSelfOutput(config, input_size=config.hidden_size)
        self.pruned_heads: set[int] = set()
        self.original_num_heads = config.num_attention_heads

    def forward(self, hidden_states: Tensor, **arguments: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(B, S, H) -> (B, S, H) and both kinds of weights; arguments of `LongformerSelfAttention`."""
        context, weights, global_weights = self.self(hidden_states, **arguments)
        return self.output(context, hidden_states), weights, global_weights

    def prune_heads(self, heads: list[int]) -> None:
        """Remove heads, given by their original numbers, for good, from the local and the global projections."""
        removed, features = remaining_features(
            heads,
            num_heads=self.original_num_heads,
            head_size=self.self.attention_head_size,
            already_pruned=self.pruned_heads,
        )
        features = features.to(self.output.dense.weight.device)
        for name in ("query", "key", "value", "query_global", "key_global", "value_global"):
            setattr(self.self, name, keep_features(getattr(self.self, name), features, axis=0))
        self.output.dense = keep_features(self.output.dense, features, axis=1)
        self.pruned_heads |= removed
        self.self.num_attention_heads = self.original_num_heads - len(self.pruned_heads)


class LongformerIntermediate(nn.Module):
    """activation(W x + b).

    Args:
        config: Settings of the model.
    """

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = get_activation(config.hidden_act)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, S, H) -> (B, S, intermediate_size)."""
        return self.activation(project(self.dense, hidden_states))


class LongformerLayer(nn.Module):
    """One transformer layer: attention, feed-forward.

    Args:
        config: Settings of the model.
        layer_index: Index of the layer.
    """

    def __init__(self, config: LongformerConfig, *, layer_index: int) -> None:
        super().__init__()
        self.attention = LongformerAttention(config, layer_index=layer_index)
        self.intermediate = LongformerIntermediate(config)
        self.output = LongformerSelfOutput(config, input_size=config.intermediate_size)
        self.intermediate_size = config.intermediate_size
        self.chunk_size_feed_forward = config.chunk_size_feed_forward

    def forward(
        self, hidden_states: Tensor, *, plan: GlobalPlan, head_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(B, S, H) -> (B, S, H), local weights, global weights."""
        hidden_states, weights, global_weights = self.attention(hidden_states, plan=plan, head_mask=head_mask)
        return self.feed_forward(hidden_states), weights, global_weights

    def feed_forward(self, hidden_states: Tensor) -> Tensor:
        """(B, S, H) -> (B, S, H), for `chunk_size_feed_forward` tokens at a time if that is set."""
        return tokenwise(
            self._feed_forward,
            hidden_states,
            owner=self,
            width=self.intermediate_size,
            chunk_size=self.chunk_size_feed_forward,
        )

    def _feed_forward(self, hidden_states: Tensor) -> Tensor:
        return self.output(self.intermediate(hidden_states), hidden_states)


class LongformerEncoder(CheckpointedLayers):
    """The stack of layers.

    Args:
        config: Settings of the model.
    """

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


class LongformerLMHead(nn.Module):
    """Scores over the vocabulary: decoder(LayerNorm(gelu(W x + b))).

    Args:
        config: Settings of the model.
    """

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, S, H) -> (B, S, V)."""
        return project(self.decoder, self.layer_norm(F.gelu(project(self.dense, hidden_states))))
