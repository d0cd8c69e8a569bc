"""LongT5's encoder in PyTorch (Guo et al., 2022, https://arxiv.org/abs/2112.07916).

Axes: B batch, S tokens, H width, A heads, D head size, L layers, R radius, G summaries, N blocks of R + 1 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from longspan.models.longt5.config import LongT5Config
from longspan.models.longt5.torch_layers import (
    LongT5LayerAttention,
    LongT5LayerFF,
    LongT5LayerNorm,
    LongT5Projections,
    RelativeBuckets,
    begin_residual,
    end_residual,
    relative_embedding,
)
from longspan.nn.torch.apply import may_overwrite, project
from longspan.nn.torch.base import CheckpointedLayers
from longspan.nn.torch.checks import check_ids, input_shape
from longspan.nn.torch.dropout import Dropout
from longspan.nn.torch.masks import expand_head_mask, finite_at_padding
from longspan.nn.torch.outputs import BaseModelOutput, finish, resolve
from longspan.ops.torch.context import ContextShard, ReadsContext, count_all, running_count, total
from longspan.ops.torch.sliding_window import (
    ExtraKeys,
    sliding_window_attention,
    sliding_window_attention_weights,
)
from longspan.shapes import check_shape


@dataclass(frozen=True)
class Summaries:
    """Which tokens each summary of transient-global attention stands for.

    Blocks count the real tokens of a row, so padding may lie on either side. Tokens that do not fill a block belong to
    the last full one; a row shorter than one block has no summary.

    Attributes:
        number: Summaries that there is room for, G. The last one is never filled: it takes the tokens that belong to
            no summary.
        block: Summary of each token, (B, S).
        position: Where each token stands on the axis of the summaries, (B, S).
        filled: Summaries that exist, (B, G).
        shard: The share of the sequence that this process holds; None for all of it. Summaries are of all.
    """

    number: int
    block: Tensor
    position: Tensor
    filled: Tensor
    shard: ContextShard | None = None

    @classmethod
    def from_mask(cls, real: Tensor, block_size: int, shard: ContextShard | None = None) -> Summaries:
        """Divide the real tokens (B, S) into blocks."""
        number = real.shape[1] * (1 if shard is None else shard.size) // block_size + 1
        if torch.compiler.is_compiling():  # or the graph would be specialised to one
            number = torch.sym_max(number, 2)
        count = running_count(real, shard)
        full = count_all(real, shard) // block_size  # (B, 1)
        position = torch.minimum((count - 1).clamp(min=0) // block_size, (full - 1).clamp(min=0))
        block = torch.where(real & (full > 0), position, number - 1)
        filled = torch.arange(number, device=real.device) < full
        return cls(number, block, position, filled, shard)

    def add_up(self, hidden_states: Tensor) -> Tensor:
        """Sum the states (B, S, H) of each block, (B·G, H)."""
        batch, _, width = hidden_states.shape
        row = torch.arange(batch, device=hidden_states.device)[:, None] * self.number
        wide = torch.promote_types(hidden_states.dtype, torch.float32)
        sums = torch.zeros(batch * self.number, width, dtype=wide, device=hidden_states.device)
        sums = sums.index_add(0, (self.block + row).flatten(), hidden_states.flatten(0, 1).to(wide))
        return total(sums, self.shard).to(hidden_states.dtype)


@dataclass(frozen=True)
class EncoderPlan:
    """What all encoder layers of one call share.

    Attributes:
        real: Tokens that are not padding, boolean (B, S); None if all are.
        buckets: Bucket of each relative position of the window, (2R + 1,).
        summaries: Blocks of transient-global attention; None for local attention.
        summary_buckets: Bucket of each relative position of the summaries, (2G - 1,).
        needs_weights: Attention weights are returned.
        implementation: Name of the implementation of sliding-window attention.
        bias: Bias by relative position of the window, (A, 2R + 1); the first layer adds it.
        summary_bias: The same of the summaries, (A, 2G - 1).
        shard: The share of the sequence that this process holds; None for all of it.
    """

    real: Tensor | None
    buckets: Tensor
    summaries: Summaries | None
    summary_buckets: Tensor | None
    needs_weights: bool
    implementation: str
    bias: Tensor | None = None
    summary_bias: Tensor | None = None
    shard: ContextShard | None = None


class LongT5LocalAttention(LongT5Projections):
    """Attention to the tokens at most R away.

        cᵢ = Σⱼ softmax(qᵢ·kⱼ + b(j - i)) vⱼ      over |i - j| ≤ R

    Args:
        config: Settings of the model.
        has_relative_attention_bias: Hold b; the first layer does, and all layers use it.
    """

    def __init__(self, config: LongT5Config, *, has_relative_attention_bias: bool) -> None:
        super().__init__(config)
        self.radius, self.global_block_size = config.local_radius, config.global_block_size
        self.has_relative_attention_bias = has_relative_attention_bias
        if has_relative_attention_bias:
            self.relative_attention_bias = relative_embedding(config)

    def forward(
        self, hidden_states: Tensor, *, plan: EncoderPlan, head_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from (B, S, H) to themselves.

        Returns:
            (B, S, H), and the weights (B, N, A, R + 1, 3 (R + 1) + G) if the plan needs them: the tokens of the block
            before, of the block and of the block behind, then the summaries.
        """
        context, weights = self._attend(hidden_states, plan, head_mask)
        return self.merge(context), weights

    def _attend(
        self, hidden_states: Tensor, plan: EncoderPlan, head_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The contexts (B, A, S, D), and the weights if the plan needs them; queries, keys and values end with it."""
        arguments: dict[str, Any] = {
            "left": self.radius,
            "right": self.radius,
            "scale": 1.0,
            "mask": plan.real,
            "bias": plan.bias,
            "extra": self._summaries(hidden_states, plan),
            "dropout": self.dropout,
            "implementation": plan.implementation,
        }
        query, key, value = (self.split(project(layer, hidden_states)) for layer in (self.q, self.k, self.v))
        if not plan.needs_weights:
            arguments |= {"shard": plan.shard, "overwrite_query": may_overwrite(self)}
            context = sliding_window_attention(query, key, value, **arguments)
            return context if head_mask is None else context * head_mask, None
        _, weights = sliding_window_attention_weights(query, key, value, rows=self.radius + 1, **arguments)
        weights = self._in_three_blocks(weights, hidden_states.shape[1] // self.global_block_size)
        weights = weights if head_mask is None else weights * head_mask
        return self._weigh(weights, value, arguments["extra"]), weights

    def add_biases(self, plan: EncoderPlan) -> EncoderPlan:
        """Add the biases, which the first layer holds for all."""
        if plan.bias is not None:
            return plan
        bias = self.relative_attention_bias(plan.buckets).movedim(-1, 0)
        if plan.summary_buckets is None:
            return replace(plan, bias=bias)
        summaries: Any = self.global_relative_attention_bias
        return replace(plan, bias=bias, summary_bias=summaries(plan.summary_buckets).movedim(-1, 0))

    def _summaries(self, hidden_states: Tensor, plan: EncoderPlan) -> ExtraKeys | None:
        """Keys that all tokens see; none in local attention."""
        return None

    def _in_three_blocks(self, weights: Tensor, num_summaries: int) -> Tensor:
        """(B, A, N, R + 1, G + 3R + 1), summaries first -> (B, N, A, R + 1, 3 (R + 1) + num_summaries)."""
        span = 3 * self.radius + 1
        extra, window = weights.split((weights.shape[-1] - span, span), dim=-1)
        extra = extra[..., :num_summaries]
        return torch.cat((nn.functional.pad(window, (1, 1)), extra), dim=-1).transpose(1, 2)

    def _weigh(self, weights: Tensor, value: Tensor, summaries: ExtraKeys | None) -> Tensor:
        """Σⱼ wᵢⱼ vⱼ, (B, A, S, D), from the weights that are returned, so that they are part of the graph."""
        rows, length = self.radius + 1, value.shape[2]
        padding = weights.shape[1] * rows - length
        blocks = nn.functional.pad(value, (0, 0, rows, rows + padding)).unfold(
            2, 3 * rows, rows
        )  # (B, A, N, D, 3R + 3)
        if summaries is not None:
            several = summaries.value[:, :, None, : weights.shape[-1] - 3 * rows].mT.expand(
                -1, -1, blocks.shape[2], -1, -1
            )
            blocks = torch.cat((blocks, several), dim=-1)
        return (weights.transpose(1, 2) @ blocks.mT).flatten(2, 3)[:, :, :length]


class LongT5TransientGlobalAttention(LongT5LocalAttention):
    """Attention to the tokens at most R away and to a summary of every block of tokens.

    The summary of a block is the normalised sum of its states, made anew in every layer; keys and values of both kinds
    come from the same projections:

        cᵢ = Σⱼ softmax(qᵢ·kⱼ + b(j - i)) vⱼ      over |i - j| ≤ R and all blocks g, with b'(g - block(i)) for a block

    Args:
        config: Settings of the model.
        has_relative_attention_bias: Hold b and b'; the first layer does, and all layers use them.
    """

    def __init__(self, config: LongT5Config, *, has_relative_attention_bias: bool) -> None:
        super().__init__(config, has_relative_attention_bias=has_relative_attention_bias)
        if has_relative_attention_bias:
            self.global_relative_attention_bias = relative_embedding(config)
        self.global_input_layer_norm = LongT5LayerNorm(config)

    def _summaries(self, hidden_states: Tensor, plan: EncoderPlan) -> ExtraKeys | None:
        if plan.summaries is None:
            return None
        states = self.global_input_layer_norm(plan.summaries.add_up(hidden_states))  # (B·G, H)
        shape = (hidden_states.shape[0], plan.summaries.number)
        key, value = (self.split(project(layer, states).unflatten(0, shape)) for layer in (self.k, self.v))
        return ExtraKeys(key, value, plan.summaries.filled, plan.summary_bias, plan.summaries.position)


class LongT5LayerLocalSelfAttention(LongT5LayerAttention):
    """x + dropout(attention(norm(x))), with local attention."""

    attention_name = "LocalSelfAttention"

    def __init__(self, config: LongT5Config, *, has_relative_attention_bias: bool) -> None:
        attention = LongT5LocalAttention(config, has_relative_attention_bias=has_relative_attention_bias)
        super().__init__(config, attention)


class LongT5LayerTransientGlobalSelfAttention(LongT5LayerAttention):
    """x + dropout(attention(norm(x))), with transient-global attention."""

    attention_name = "TransientGlobalSelfAttention"

    def __init__(self, config: LongT5Config, *, has_relative_attention_bias: bool) -> None:
        attention = LongT5TransientGlobalAttention(config, has_relative_attention_bias=has_relative_attention_bias)
        super().__init__(config, attention)


class LongT5EncoderBlock(nn.Module):
    """One encoder layer: attention, feed-forward.

    Args:
        config: Settings of the model.
        has_relative_attention_bias: Hold the biases of all layers.
    """

    def __init__(self, config: LongT5Config, *, has_relative_attention_bias: bool) -> None:
        super().__init__()
        is_local = config.encoder_attention_type == "local"
        attention = LongT5LayerLocalSelfAttention if is_local else LongT5LayerTransientGlobalSelfAttention
        self.layer = nn.ModuleList(
            [attention(config, has_relative_attention_bias=has_relative_attention_bias), LongT5LayerFF(config)]
        )

    def forward(
        self, hidden_states: Tensor, *, plan: EncoderPlan, head_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """(B, S, H) -> (B, S, H), the weights, and the biases for the layers behind."""
        first: Any = self.layer[0]
        plan = first.attention.add_biases(plan)
        hidden_states, weights = first(hidden_states, plan=plan, head_mask=head_mask)
        return self.layer[1](hidden_states), weights, plan.bias, plan.summary_bias


class LongT5Encoder(ReadsContext, CheckpointedLayers):
    """The embeddings and the stack of encoder layers.

    Args:
        config: Settings of the model.
        embed_tokens: The embeddings, which all parts of a model share.
    """

    def __init__(self, config: LongT5Config, embed_tokens: nn.Embedding) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = embed_tokens
        self.block = nn.ModuleList(
            [LongT5EncoderBlock(config, has_relative_attention_bias=index == 0) for index in range(config.num_layers)]
        )
        self.final_layer_norm = LongT5LayerNorm(config)
        self.dropout = Dropout(config.dropout_rate)
        self.buckets = RelativeBuckets(config, bidirectional=True)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Encode ids (B, S) or embeddings (B, S, H); arguments and result as in `LongT5EncoderModel.forward`."""
        config = self.config
        shape = input_shape(input_ids, inputs_embeds)
        inputs_embeds = finite_at_padding(inputs_embeds, attention_mask)
        if input_ids is not None:
            check_ids(input_ids, config.vocab_size, name="input_ids", limit_name="vocab_size")
            inputs_embeds = self.embed_tokens(input_ids)
        assert inputs_embeds is not None
        check_shape(attention_mask, shape, name="attention_mask", axes="(batch, tokens)")
        plan = self._plan(inputs_embeds, attention_mask, resolve(output_attentions, config.output_attentions))
        head_mask = expand_head_mask(head_mask, num_layers=config.num_layers, num_heads=config.num_heads)
        keeps_states = resolve(output_hidden_states, config.output_hidden_states)
        dtype = inputs_embeds.dtype
        hidden_states = begin_residual(self.dropout(inputs_embeds))
        del inputs_embeds  # the layers run without it
        states, attentions = [], []
        for index, block in enumerate(self.block):
            if keeps_states:
                states.append(end_residual(hidden_states, dtype))
            hidden_states, weights, bias, summary_bias = self.run_layer(
                block, hidden_states, plan=plan, head_mask=None if head_mask is None else head_mask[index]
            )
            plan = replace(plan, bias=bias, summary_bias=summary_bias)
            attentions.append(weights)
        hidden_states = self.dropout(self.final_layer_norm(hidden_states))
        output = BaseModelOutput(
            last_hidden_state=hidden_states,
            hidden_states=(*states, hidden_states) if keeps_states else None,
            attentions=tuple(attentions) if plan.needs_weights else None,
        )
        return finish(output, resolve(return_dict, config.return_dict))

    def _plan(self, inputs_embeds: Tensor, attention_mask: Tensor | None, needs_weights: bool) -> EncoderPlan:
        config, device, shard = self.config, inputs_embeds.device, self.context_shard
        if shard is not None:
            shape = (inputs_embeds.shape[0], inputs_embeds.shape[1])
            shard.check_call(shape, device, needs_weights=needs_weights, reach=config.local_radius)
        real = None if attention_mask is None else attention_mask.to(device) != 0
        buckets = self.buckets(torch.arange(-config.local_radius, config.local_radius + 1, device=device))
        summaries = summary_buckets = None
        if config.encoder_attention_type == "transient-global":
            everything = torch.ones(inputs_embeds.shape[:2], dtype=torch.bool, device=device)
            summaries = Summaries.from_mask(everything if real is None else real, config.global_block_size, shard)
            summary_buckets = self.buckets(torch.arange(1 - summaries.number, summaries.number, device=device))
        implementation = config.attn_implementation
        return EncoderPlan(real, buckets, summaries, summary_buckets, needs_weights, implementation, shard=shard)


def blocked_attentions_to_dense(attentions: Tensor, length: int) -> Tensor:
    """Bring an encoder layer's attention weights to one row and one column per token.

    Args:
        attentions: A layer's weights, (B, N, A, R + 1, 3 (R + 1) + G): each block of queries sees the tokens of the
            block before it, its own and those of the block behind it, then the G summaries.
        length: Number of tokens S.

    Returns:
        (B, A, S, S); with summaries, (B, A, S, S + G), the summaries last.

    Example:
        >>> import torch
        >>> from longspan import LongT5Config, LongT5EncoderModel
        >>> config = LongT5Config(d_model=8, d_kv=4, num_heads=2, num_layers=1, local_radius=2)
        >>> output = LongT5EncoderModel(config)(torch.tensor([[5, 6, 7, 8, 9, 10, 1]]), output_attentions=True)
        >>> output.attentions[0].shape, blocked_attentions_to_dense(output.attentions[0], 7).shape
        (torch.Size([1, 3, 2, 3, 9]), torch.Size([1, 2, 7, 7]))
    """
    batch, blocks, heads, rows, columns = attentions.shape
    window, summaries = attentions.split((3 * rows, columns - 3 * rows), dim=-1)
    dense = attentions.new_zeros(batch, heads, blocks, rows, (blocks + 2) * rows)
    for block in range(blocks):
        dense[:, :, block, :, block * rows : (block + 3) * rows] = window[:, block]
    dense = dense.flatten(2, 3)[:, :, :length, rows : rows + length]
    return torch.cat((dense, summaries.transpose(1, 2).flatten(2, 3)[:, :, :length]), dim=-1)
