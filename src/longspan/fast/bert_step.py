"""BERT's token step in PyTorch: what `BertLMHeadModel` computes for one more token of each row.

Axes: R rows, T cached and new tokens, H width, A heads, D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from longspan.fast.few_rows import FewRowsLinear
from longspan.fast.token_step import additive_mask, attend_to_cache, is_plain_step, joined, packs
from longspan.generation.torch_lean import StepRequest
from longspan.models.bert.torch_backbone import BertEmbeddings, BertEncoder, BertLayer, BertSelfAttention
from longspan.models.bert.torch_model import BertHeads, BertLMPredictionHead
from longspan.models.bert.torch_model import BertLMHeadModel as BertLMHeadModel
from longspan.nn.torch.growing_cache import GrowingCache
from longspan.nn.torch.heads import PredictionHeadTransform
from longspan.nn.torch.post_norm import AddAndNorm, Intermediate, PostNormAttention

_PARTS = (
    BertEmbeddings,
    BertEncoder,
    BertLayer,
    BertSelfAttention,
    BertHeads,
    BertLMPredictionHead,
    PredictionHeadTransform,
    PostNormAttention,
    AddAndNorm,
    Intermediate,
    nn.Linear,
    nn.Embedding,
    nn.LayerNorm,
    nn.Dropout,
    nn.ModuleList,
)


class BertStep:
    """One more token of each row.

    Args:
        model: A `BertLMHeadModel`.
        cache: Holds the tokens before.
        request: What the step is wanted for.
    """

    def __init__(self, model: Any, cache: GrowingCache, request: StepRequest) -> None:
        packed, rows = packs(request, _weights(model)), request.rows
        embeddings, head = model.bert.embeddings, model.cls.predictions
        self.words, self.norm = embeddings.word_embeddings, embeddings.LayerNorm
        # all tokens are of the first segment: (positions, H)
        self.places = (embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]).detach()
        self.layers = [_LayerStep(layer, cache, packed=packed, rows=rows) for layer in model.bert.encoder.layer]
        self.transform = joined([head.transform.dense], packed=packed, rows=rows)
        self.activation, self.head_norm = head.transform.activation, head.transform.LayerNorm
        self.head = joined([head.decoder], packed=packed, rows=rows)
        self.padding = None if request.mask is None else additive_mask(request.mask)[:, None]  # (R, 1, capacity)

    @classmethod
    def make(cls, model: Any, request: StepRequest) -> BertStep | None:
        """A step for this model and cache, or None if only the model itself can serve."""
        cache, config = request.cache, model.config
        if not isinstance(cache, GrowingCache) or config.attn_implementation not in ("auto", "sdpa"):
            return None
        if config.position_embedding_type != "absolute" or request.capacity > config.max_position_embeddings:
            return None
        parts = (model.bert.embeddings, model.bert.encoder, model.cls)
        is_plain = is_plain_step(model, parts, _PARTS) and is_plain_step(model.bert, parts, _PARTS)
        return cls(model, cache, request) if is_plain else None

    def __call__(self, tokens: Tensor, *, past: int, position_ids: Tensor | None) -> Tensor:
        """Ids (R,) behind `past` tokens, at positions (R, 1), or at `past` if None -> logits (R, V)."""
        places = self.places[past] if position_ids is None else self.places[position_ids[:, 0]]
        bias = None if self.padding is None else self.padding[:, :, : past + 1]
        x = self.norm(self.words(tokens) + places)
        for layer in self.layers:
            x = layer(x, bias)
        return self.head(self.head_norm(self.activation(self.transform(x))))


class _LayerStep:
    def __init__(self, layer: Any, cache: GrowingCache, *, packed: bool, rows: int) -> None:
        attention, after = layer.attention.self, layer.attention.output
        self.cache, self.index, self.shape = cache, attention.layer_index, (3, -1, attention.attention_head_size)
        self.scale = attention.attention_head_size**-0.5
        self.activation = layer.intermediate.activation
        self.norm, self.last_norm = after.LayerNorm, layer.output.LayerNorm

        def linear(*projections: Any) -> FewRowsLinear:
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
    for part in (model.bert.encoder, model.cls):
        for module in part.modules():
            if isinstance(module, nn.Linear):
                yield module.weight
