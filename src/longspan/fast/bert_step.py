"""BERT's and RoBERTa's token step in PyTorch: what their causal language models compute for one more token of each row.

Axes: R rows, T cached and new tokens, H width, A heads, D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longspan.fast.few_rows import FewRows
from longspan.fast.token_step import additive_mask, attend_to_cache, is_plain_step, joined, packs
from longspan.generation.torch_lean import StepRequest
from longspan.models.bert.torch_backbone import BertEmbeddings, BertEncoder, BertLayer, BertSelfAttention
from longspan.models.bert.torch_model import BertHeads, BertLMPredictionHead
from longspan.models.bert.torch_model import BertLMHeadModel as BertLMHeadModel
from longspan.models.roberta.torch_model import RobertaForCausalLM as RobertaForCausalLM
from longspan.models.roberta.torch_model import XLMRobertaForCausalLM as XLMRobertaForCausalLM
from longspan.nn.torch.dropout import Dropout
from longspan.nn.torch.growing_cache import GrowingCache
from longspan.nn.torch.heads import LanguageModelHead, PredictionHeadTransform
from longspan.nn.torch.post_norm import AddAndNorm, Intermediate, PostNormAttention

_PARTS = (
    BertEmbeddings,
    BertEncoder,
    BertLayer,
    BertSelfAttention,
    BertHeads,
    BertLMPredictionHead,
    PredictionHeadTransform,
    LanguageModelHead,
    PostNormAttention,
    AddAndNorm,
    Intermediate,
    nn.Linear,
    nn.Embedding,
    nn.LayerNorm,
    Dropout,
    nn.ModuleList,
)


class _Parts(NamedTuple):
    """Of a model: its backbone, its head, and the dense layer, activation, norm and decoder of that."""

    backbone: Any
    head: nn.Module
    dense: nn.Linear
    activation: Any
    norm: nn.LayerNorm
    decoder: nn.Linear


def _parts(model: Any) -> _Parts:
    if isinstance(model, RobertaForCausalLM):
        head = model.lm_head
        return _Parts(model.roberta, head, head.dense, F.gelu, head.layer_norm, head.decoder)
    transform, decoder = model.cls.predictions.transform, model.cls.predictions.decoder
    return _Parts(model.bert, model.cls, transform.dense, transform.activation, transform.LayerNorm, decoder)


class BertStep:
    """One more token of each row.

    Args:
        model: A `BertLMHeadModel`, `RobertaForCausalLM` or `XLMRobertaForCausalLM`.
        cache: Holds the tokens before.
        request: What the step is wanted for.
    """

    def __init__(self, model: Any, cache: GrowingCache, request: StepRequest) -> None:
        packed, rows, parts = packs(request, _weights(model)), request.rows, _parts(model)
        embeddings = parts.backbone.embeddings
        self.words, self.norm = embeddings.word_embeddings, embeddings.LayerNorm
        # all tokens are of the first segment: (positions, H)
        self.places = (embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]).detach()
        #: the id whose place is its own; others stand behind it
        self.pad = model.config.pad_token_id if isinstance(model, RobertaForCausalLM) else None
        self.layers = [_LayerStep(layer, cache, packed=packed, rows=rows) for layer in parts.backbone.encoder.layer]
        self.transform = joined([parts.dense], packed=packed, rows=rows)
        self.activation, self.head_norm = parts.activation, parts.norm
        self.head = joined([parts.decoder], packed=packed, rows=rows)
        self.padding = None if request.mask is None else additive_mask(request.mask)[:, None]  # (R, 1, capacity)

    @classmethod
    def make(cls, model: Any, request: StepRequest) -> BertStep | None:
        """A step for this model and cache, or None if only the model itself can serve."""
        cache, config = request.cache, model.config
        if not isinstance(cache, GrowingCache) or config.attn_implementation not in ("auto", "sdpa"):
            return None
        if config.position_embedding_type != "absolute" or request.capacity > model.max_positions():
            return None
        backbone, head, *_ = _parts(model)
        parts = (backbone.embeddings, backbone.encoder, head)
        is_plain = is_plain_step(model, parts, _PARTS) and is_plain_step(backbone, parts, _PARTS)
        return cls(model, cache, request) if is_plain else None

    def __call__(self, tokens: Tensor, *, past: int, position_ids: Tensor | None) -> Tensor:
        """Ids (R,) behind `past` tokens, at positions (R, 1), or at `past` if None -> logits (R, V)."""
        places = self.places[self._positions(tokens, past, position_ids)]
        bias = None if self.padding is None else self.padding[:, :, : past + 1]
        x = self.norm(self.words(tokens) + places)
        for layer in self.layers:
            x = layer(x, bias)
        return self.head(self.head_norm(self.activation(self.transform(x))))

    def _positions(self, tokens: Tensor, past: int, position_ids: Tensor | None) -> Tensor | int:
        """Rows of the table of places, (R,) or one for all."""
        if position_ids is not None:
            return position_ids[:, 0]
        return past if self.pad is None else torch.where(tokens == self.pad, self.pad, past + 1 + self.pad)


class _LayerStep:
    def __init__(self, layer: Any, cache: GrowingCache, *, packed: bool, rows: int) -> None:
        attention, after = layer.attention.self, layer.attention.output
        self.cache, self.index, self.shape = cache, attention.layer_index, (3, -1, attention.attention_head_size)
        self.scale = attention.attention_head_size**-0.5
        self.activation = layer.intermediate.activation
        self.norm, self.last_norm = after.LayerNorm, layer.output.LayerNorm

        def linear(*projections: Any) -> FewRows:
            return joined(projections, packed=packed, rows=rows)

        self.project, self.merge = linear(attention.query, attention.key, attention.value), linear(after.dense)
        self.rise, self.fall = linear(layer.intermediate.dense), linear(layer.output.dense)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """(R, H) -> (R, H), given an additive mask (R, 1, T)."""
        heads = self.project(x).unflatten(-1, self.shape)
        context = attend_to_cache(heads, self.cache, self.index, bias=bias, scale=self.scale)
        x = self.norm(self.merge(context) + x)
        return self.last_norm(self.fall(self.activation(self.rise(x))) + x)


def _weights(model: Any) -> Iterator[Tensor]:
    """The weights of all products."""
    backbone, head, *_ = _parts(model)
    for part in (backbone.encoder, head):
        for module in part.modules():
            if isinstance(module, nn.Linear):
                yield module.weight
