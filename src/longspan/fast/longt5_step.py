"""LongT5's token step in PyTorch: what `LongT5ForConditionalGeneration` computes for one more token of each row.

Axes: B sources, R rows (B times the rows of each source), T cached and new tokens, S source tokens, H width, A heads,
D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from longspan.fast.few_rows import FewRows, FewRowsNorm, one_query_scores, one_query_values
from longspan.fast.token_step import additive_mask, attend_to_cache, is_plain_step, joined, packs
from longspan.generation.torch_lean import StepRequest
from longspan.models.longt5.torch_decoder import (
    LongT5CrossAttention,
    LongT5Decoder,
    LongT5DecoderBlock,
    LongT5LayerCrossAttention,
    LongT5LayerSelfAttention,
    LongT5SelfAttention,
)
from longspan.models.longt5.torch_layers import (
    LongT5DenseActDense,
    LongT5DenseGatedActDense,
    LongT5LayerFF,
    LongT5LayerNorm,
    RelativeBuckets,
)
from longspan.models.longt5.torch_model import LongT5ForConditionalGeneration as LongT5ForConditionalGeneration
from longspan.nn.torch.cache import EncoderDecoderCache
from longspan.nn.torch.dropout import Dropout
from longspan.nn.torch.growing_cache import GrowingCache

_PARTS = (
    LongT5Decoder,
    LongT5DecoderBlock,
    LongT5LayerSelfAttention,
    LongT5LayerCrossAttention,
    LongT5LayerFF,
    LongT5SelfAttention,
    LongT5CrossAttention,
    LongT5DenseActDense,
    LongT5DenseGatedActDense,
    LongT5LayerNorm,
    RelativeBuckets,
    nn.Linear,
    nn.Embedding,
    Dropout,
    nn.ModuleList,
)


class LongT5Step:
    """One more token of each row.

    Args:
        model: A `LongT5ForConditionalGeneration`.
        cache: Holds the tokens before, and the keys and values of the sources.
        request: What the step is wanted for.
    """

    def __init__(self, model: Any, cache: EncoderDecoderCache, request: StepRequest) -> None:
        decoder, config = model.decoder, model.config
        weight = model.lm_head.weight
        packed, rows = packs(request, _weights(model)), request.rows
        self.embed = decoder.embed_tokens
        self.layers = [_LayerStep(block, cache, packed=packed, rows=rows) for block in decoder.block]
        self.norm = FewRowsNorm(decoder.final_layer_norm.weight, decoder.final_layer_norm.eps)
        self.factor = config.d_model**-0.5 if config.tie_word_embeddings else 1.0
        self.head = joined([model.lm_head], packed=packed, rows=rows)
        self.capacity = request.capacity
        distances = torch.arange(1 - request.capacity, 1, device=weight.device)  # key minus query; the newest is last
        embedding = decoder.block[0].layer[0].SelfAttention.relative_attention_bias
        self.bias = embedding(decoder.buckets(distances)).t().float().contiguous()  # (A, capacity)
        self.padding = None if request.mask is None else additive_mask(request.mask)[:, None]  # (R, 1, capacity)
        source = request.source_mask
        self.source = None if source is None or bool((source != 0).all()) else additive_mask(source != 0)[:, None, None]

    @classmethod
    def make(cls, model: Any, request: StepRequest) -> LongT5Step | None:
        """A step for this model and cache, or None if only the model itself can serve."""
        cache, source = request.cache, request.source_mask
        if not (isinstance(cache, EncoderDecoderCache) and isinstance(cache.self_attention_cache, GrowingCache)):
            return None
        if source is not None and (source.dim() != 2 or not bool((source != 0).any(dim=1).all())):
            return None
        if not is_plain_step(model, (model.decoder, model.lm_head), _PARTS):
            return None
        return cls(model, cache, request)

    def __call__(self, tokens: Tensor, *, past: int, position_ids: Tensor | None) -> Tensor:
        """Ids (R,) behind `past` tokens -> logits (R, V); positions are relative."""
        bias = self.bias[:, self.capacity - past - 1 :]  # (A, T)
        if self.padding is not None:
            bias = bias + self.padding[:, :, : past + 1]  # (R, A, T)
        x = self.embed(tokens)
        for layer in self.layers:
            x = x + layer.attend(x, bias)
            x = x + layer.attend_to_source(x, self.source)
            x = x + layer.feed_forward(x)
        x = self.norm(x)
        return self.head(x * self.factor if self.factor != 1.0 else x)


class _LayerStep:
    def __init__(self, block: Any, cache: EncoderDecoderCache, *, packed: bool, rows: int) -> None:
        own, cross, last = block.layer
        attention, to_source, dense = own.SelfAttention, cross.EncDecAttention, last.DenseReluDense
        assert isinstance(cache.self_attention_cache, GrowingCache)
        self.cache, self.index = cache.self_attention_cache, attention.layer_index
        self.num_heads, self.size = attention.num_heads, attention.head_size
        key, value = cache.cross_attention_cache[self.index]
        self.source_key, self.source_value = key.contiguous().flatten(0, 1), value.contiguous().flatten(0, 1)
        self.num_sources = key.shape[0]
        self.norm, self.cross_norm, self.dense_norm = (
            FewRowsNorm(layer.layer_norm.weight, layer.layer_norm.eps) for layer in (own, cross, last)
        )
        self.activation, self.is_gated = dense.activation, isinstance(dense, LongT5DenseGatedActDense)

        def linear(*projections: Any) -> FewRows:
            return joined(projections, packed=packed, rows=rows)

        self.project, self.merge = linear(attention.q, attention.k, attention.v), linear(attention.o)
        self.ask, self.merge_source = linear(to_source.q), linear(to_source.o)
        self.rise = linear(dense.wi_0, dense.wi_1) if self.is_gated else linear(dense.wi)
        self.fall = linear(dense.wo)

    def attend(self, x: Tensor, bias: Tensor) -> Tensor:
        """Self-attention of the new tokens, (R, H) -> (R, H), given a bias (A, T) or (R, A, T)."""
        heads = self.project(self.norm(x)).view(x.shape[0], 3, self.num_heads, self.size)
        return self.merge(attend_to_cache(heads, self.cache, self.index, bias=bias))

    def attend_to_source(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Cross-attention of the new tokens, (R, H) -> (R, H), given an additive mask (B, 1, 1, S)."""
        rows = x.shape[0]
        query = self.ask(self.cross_norm(x)).view(self.num_sources, -1, self.num_heads, self.size)
        query = query.transpose(1, 2).flatten(0, 1)  # (B·A, R/B, D)
        scores = one_query_scores(query, self.source_key)
        if mask is not None:
            scores = (scores.unflatten(0, (self.num_sources, -1)) + mask).flatten(0, 1)
        context = one_query_values(scores.softmax(dim=-1), self.source_value)
        context = context.view(self.num_sources, self.num_heads, -1, self.size).transpose(1, 2)
        return self.merge_source(context.reshape(rows, -1))

    def feed_forward(self, x: Tensor) -> Tensor:
        """(R, H) -> (R, H)."""
        states = self.rise(self.dense_norm(x))
        if not self.is_gated:
            return self.fall(self.activation(states))
        gate, states = states.chunk(2, dim=-1)
        return self.fall(self.activation(gate) * states)


def _weights(model: Any) -> Iterator[Tensor]:
    """The weights of all products."""
    for block in model.decoder.block:
        for module in block.modules():
            if isinstance(module, nn.Linear):
                yield module.weight
    yield model.lm_head.weight
