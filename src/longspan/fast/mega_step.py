"""MEGA's token step in PyTorch: what `MegaForCausalLM` computes for one more token of each row.

The averages, keys and values of earlier tokens stay in the model's own `MegaCache`, which the step writes on.

Axes: R rows, L held tokens, T held tokens and the new one, D width, Z width of queries and keys, V width of values,
N dimensions of the average.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from longspan.fast.few_rows import FewRowsNorm, one_query_scores, one_query_values
from longspan.fast.token_step import is_plain_step, joined, packs
from longspan.generation.torch_lean import StepRequest
from longspan.models.mega.torch_backbone import MegaEmbeddings
from longspan.models.mega.torch_cache import MegaCache, MegaLayerCache
from longspan.models.mega.torch_layers import (
    MegaBlock,
    MegaDropout,
    MegaMovingAverageGatedAttention,
    MegaMultiDimensionDampedEma,
    MegaNormalizedFeedForwardNetwork,
    MegaRotaryRelativePositionalBias,
    MegaSimpleRelativePositionalBias,
)
from longspan.models.mega.torch_masks import in_open_chunk
from longspan.models.mega.torch_model import MegaForCausalLM as MegaForCausalLM
from longspan.models.mega.torch_norms import MegaRMSNorm, MegaScaleNorm, MegaSequenceNorm
from longspan.ops.torch.gated_attention import Settings, attention_weights, rotary_table

_PARTS = (
    MegaEmbeddings,
    MegaBlock,
    MegaMovingAverageGatedAttention,
    MegaMultiDimensionDampedEma,
    MegaNormalizedFeedForwardNetwork,
    MegaRotaryRelativePositionalBias,
    MegaSimpleRelativePositionalBias,
    MegaSequenceNorm,
    MegaScaleNorm,
    MegaRMSNorm,
    MegaDropout,
    nn.Linear,
    nn.Embedding,
    nn.LayerNorm,
    nn.ModuleList,
)


class MegaStep:
    """One more token of each row.

    Args:
        model: A `MegaForCausalLM`.
        cache: Holds what earlier tokens left.
        request: What the step is wanted for.
    """

    def __init__(self, model: Any, cache: MegaCache, request: StepRequest) -> None:
        packed, rows, config = packs(request, _weights(model)), request.rows, model.config
        embedding = model.mega.embedding_layer
        self.words = embedding.word_embeddings
        # all tokens are of the first type
        self.kind = embedding.token_type_embeddings.weight[0].detach() if embedding.use_token_types else None
        self.chunk_size = config.chunk_size if config.use_chunking else None
        reach = request.capacity if self.chunk_size is None else self.chunk_size
        room = request.capacity if self.chunk_size is None else None
        self.layers = [_LayerStep(layer, reach, room, packed=packed, rows=rows) for layer in model.mega.layers]
        self.dense = None if model.dense is None else joined([model.dense], packed=packed, rows=rows)
        self.head = joined([model.lm_head], packed=packed, rows=rows)
        self.cache, self.mask, self.starts = cache, request.mask, cache.starts

    @classmethod
    def make(cls, model: Any, request: StepRequest) -> MegaStep | None:
        """A step for this model and cache, or None if only the model itself can serve."""
        cache, config = request.cache, model.config
        if not isinstance(cache, MegaCache) or config.attn_implementation != "auto":
            return None
        if config.add_cross_attention or config.truncation is not None:
            return None
        parts = [model.mega.embedding_layer, model.mega.layers, model.lm_head]
        parts += [] if model.dense is None else [model.dense]
        is_plain = is_plain_step(model, parts, _PARTS) and is_plain_step(model.mega, parts, _PARTS)
        return cls(model, cache, request) if is_plain else None

    def __call__(self, tokens: Tensor, *, past: int, position_ids: Tensor | None) -> Tensor:
        """Ids (R,) behind `past` tokens -> logits (R, V); positions are relative."""
        held = self.cache.layers[0].key.shape[1]
        mask = self._mask(past, held)
        x = self.words(tokens)
        x = x if self.kind is None else x + self.kind
        layers = []
        for layer, before in zip(self.layers, self.cache.layers, strict=True):
            x, after = layer(x, before, mask)
            layers.append(after)
        unseen = self._unseen(held + 1)
        if unseen:
            layers = [kept._replace(key=kept.key[:, unseen:], value=kept.value[:, unseen:]) for kept in layers]
        self.cache.layers, self.cache.num_tokens = tuple(layers), past + 1
        self.cache.mask = None if self.mask is None else self.mask[:, past - held + unseen : past + 1]
        return self.head(x if self.dense is None else torch.tanh(self.dense(x)))

    def _mask(self, past: int, held: int) -> Tensor | None:
        """Which of the held tokens and the new one may be seen, (R, T); None for all."""
        mask = None if self.mask is None else self.mask[:, past - held : past + 1]
        if self.chunk_size is None:
            return mask
        begun = in_open_chunk(self.starts, self.chunk_size, read=past, held=held)
        if begun is None:
            return mask
        begun = torch.cat([begun, begun.new_ones(begun.shape[0], 1)], dim=1)
        return begun if mask is None else mask & begun

    def _unseen(self, count: int) -> int:
        """How many of the first of `count` tokens the next one does not see; see `held_keys`."""
        if self.chunk_size is None:
            return 0
        if self.starts is not None:  # each row may be at another place of its chunk
            return max(count - (self.chunk_size - 1), 0)
        return count - count % self.chunk_size


class _LayerStep:
    def __init__(self, layer: Any, reach: int, room: int | None, *, packed: bool, rows: int) -> None:
        attention, dense = layer.mega_layer, layer.nffn
        like = attention.ema_gate.residual_weight
        self.average = _Average(attention.ema_gate)
        self.norm, self.norm_first = _norm(attention.norm, like), attention.normalize_before
        self.activation, self.weights = attention.activation, attention.attention_activation
        self.sizes, self.widths = attention.sizes, (attention.qk_weight.shape[1], attention.v_proj.out_features)
        self.scale, self.shift = attention.qk_weight.detach()[:, None], attention.qk_bias.detach()[:, None]
        self.bias = _bias_behind(attention.rel_pos_bias, reach)
        self.value = joined([attention.v_proj], packed=packed, rows=rows)
        self.mix, self.merge = (
            joined([projection], packed=packed, rows=rows) for projection in (attention.mx_proj, attention.h_proj)
        )
        self.keys, self.values = _Row(room), _Row(room)
        self.has_dense = dense is not None
        if dense is not None:
            self.dense_norm, self.dense_norm_first = _norm(dense.norm, like), dense.normalize_before
            self.dense_activation = dense.activation
            self.rise, self.fall = (joined([part], packed=packed, rows=rows) for part in (dense.fc1, dense.fc2))

    def __call__(self, x: Tensor, before: MegaLayerCache, mask: Tensor | None) -> tuple[Tensor, MegaLayerCache]:
        """(R, D) -> (R, D), and what is kept of all tokens so far."""
        normalized = self.norm(x) if self.norm_first else x
        value = self.activation(self.value(normalized))
        averaged, state = self.average(normalized, before.ema_state)
        update, shared_and_gate, candidate = self.mix(averaged).split(self.sizes, dim=-1)
        shared, gate = nn.functional.silu(shared_and_gate).split(self.widths, dim=-1)
        query, key = torch.addcmul(self.shift, shared, self.scale)  # (2, R, Z)
        keys, values = self.keys.append(before.key, key), self.values.append(before.value, value)
        attended = self._attend(query[:, None], keys, values, mask)
        candidate = self.activation(self.merge(attended * gate) + candidate)
        x = torch.lerp(x, candidate, torch.sigmoid(update))
        x = x if self.norm_first else self.norm(x)
        return (self._feed_forward(x) if self.has_dense else x), MegaLayerCache(keys, values, state)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """(R, 1, Z), (R, T, Z) and (R, T, V) -> (R, V)."""
        count = keys.shape[1]
        scores = one_query_scores(query, keys)
        if self.weights == "softmax":
            scores = scores * query.shape[-1] ** -0.5
        else:
            scores = scores / (count if mask is None else mask.sum(dim=-1)[:, None, None])
        scores += self.bias[self.bias.shape[0] - count :]
        weights = attention_weights(scores, mask, _settings(self.weights, count), overwrite=True)
        return one_query_values(weights, values)[:, 0]

    def _feed_forward(self, x: Tensor) -> Tensor:
        states = self.dense_norm(x) if self.dense_norm_first else x
        x = x + self.fall(self.dense_activation(self.rise(states)))
        return x if self.dense_norm_first else self.dense_norm(x)


class _Average:
    """silu(EMA(x) + ω ⊙ x) of one token, in float32; see `MegaMultiDimensionDampedEma`."""

    def __init__(self, gate: MegaMultiDimensionDampedEma) -> None:
        coefficients, _ = gate.coefficients()
        self.weight, self.projection = coefficients.input_weight, coefficients.output_weight
        self.decay = torch.exp(coefficients.log_decay)
        self.residual = gate.residual_weight.detach().to(self.decay.dtype)

    def __call__(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """(R, D) and h (R, D, N) -> (R, D) and the new h."""
        wide = x.to(self.decay.dtype)
        state = torch.addcmul(self.weight * wide[..., None], self.decay, state)
        averaged = torch.addcmul((state * self.projection).sum(dim=-1), wide, self.residual)
        return nn.functional.silu(averaged).to(x.dtype), state


class _Row:
    """Keys or values of a layer, which grow by one token at a time.

    Args:
        capacity: Tokens at most, for which room is made; None to copy them, where there are always few.
    """

    def __init__(self, capacity: int | None) -> None:
        self.capacity = capacity
        self.room = self.given = torch.empty(0)

    def append(self, held: Tensor, new: Tensor) -> Tensor:
        """(R, L, …) and (R, …) -> (R, L + 1, …)."""
        length = held.shape[1]
        if self.capacity is None:
            return torch.cat([held, new[:, None]], dim=1)
        if held is not self.given:  # the first token, or rows have changed places
            self.room = held.new_empty(held.shape[0], self.capacity, held.shape[2])
            self.room[:, :length] = held
        self.room[:, length] = new
        self.given = self.room[:, : length + 1]
        return self.given


def _settings(activation: str, count: int) -> Settings:
    return Settings(activation, causal=False, offset=count - 1, centre=0, dropout=0.0, seed=0)


def _norm(norm: MegaSequenceNorm, like: Tensor) -> Any:
    """The norm as a function of (R, D), for D features as in `like` (D,)."""
    inner = norm.norm
    if isinstance(inner, nn.LayerNorm):
        return inner
    assert isinstance(inner, MegaScaleNorm | MegaRMSNorm)
    given = inner.scalar if isinstance(inner, MegaScaleNorm) else inner.weight
    return FewRowsNorm(torch.ones_like(like) if given is None else given.detach().expand_as(like), norm.eps)


def _bias_behind(bias: Any, reach: int) -> Tensor:
    """Bias of the last token to those before it, the farthest first and itself last, (reach,), float32."""
    if isinstance(bias, MegaSimpleRelativePositionalBias):
        return bias.rel_pos_bias.detach()[: bias.centre + 1].float()
    alpha = bias.alpha.detach()
    turned = bias(rotary_table(reach, alpha.shape[1], device=alpha.device))
    return (turned.query @ turned.key[0]).flip(0).detach()


def _weights(model: Any) -> Iterator[Tensor]:
    """The weights of all products."""
    for layer in model.mega.layers:
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                yield module.weight
    if model.dense is not None:
        yield model.dense.weight
    yield model.lm_head.weight
