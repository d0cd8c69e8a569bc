"""DiffLlama's token step in PyTorch: what `DiffLlamaForCausalLM` computes for one more token of each row.

Axes: R rows, T cached and new tokens, H width, F width of the feed-forward layers, A softmax maps, K key/value heads,
D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from longspan.fast.few_rows import FewRows, FewRowsNorm, one_query_attention
from longspan.fast.token_step import is_plain_step, joined, packs
from longspan.generation.torch_lean import StepRequest
from longspan.models.diffllama.torch_backbone import DiffLlamaModel
from longspan.models.diffllama.torch_layers import (
    DiffLlamaAttention,
    DiffLlamaDecoderLayer,
    DiffLlamaMLP,
    DiffLlamaRMSNorm,
    DiffLlamaRotaryEmbedding,
)
from longspan.models.diffllama.torch_model import DiffLlamaForCausalLM as DiffLlamaForCausalLM
from longspan.nn.torch.growing_cache import GrowingCache
from longspan.ops.torch.rotary import apply_rotary

_PARTS = (
    DiffLlamaModel,
    DiffLlamaDecoderLayer,
    DiffLlamaAttention,
    DiffLlamaMLP,
    DiffLlamaRMSNorm,
    DiffLlamaRotaryEmbedding,
    nn.Linear,
    nn.Embedding,
    nn.ModuleList,
)


class DiffLlamaStep:
    """One more token of each row.

    Args:
        model: A `DiffLlamaForCausalLM`.
        cache: Holds the tokens before.
        request: What the step is wanted for.
    """

    def __init__(self, model: Any, cache: GrowingCache, request: StepRequest) -> None:
        packed = packs(request, _weights(model))
        backbone = model.model
        self.embed, self.rotary = backbone.embed_tokens, backbone.rotary_emb
        self.dtype, self.mask = backbone.embed_tokens.weight.dtype, request.mask
        self.layers = [_LayerStep(layer, cache, packed=packed, rows=request.rows) for layer in backbone.layers]
        self.norm = FewRowsNorm(backbone.norm.weight, backbone.norm.eps)
        self.head = joined([model.lm_head], packed=packed, rows=request.rows)
        self.tables: tuple[Tensor, Tensor] | None = None
        if self.rotary.table.limit is None:  # angles do not depend on the length
            positions = torch.arange(request.capacity, device=model.lm_head.weight.device)
            cos, sin = self.rotary(positions[None], self.dtype)
            self.tables = cos[0], sin[0]  # (capacity, 1, D)

    @classmethod
    def make(cls, model: Any, request: StepRequest) -> DiffLlamaStep | None:
        """A step for this model and cache, or None if only the model itself can serve."""
        cache = request.cache
        if not isinstance(cache, GrowingCache) or model.config.attn_implementation not in ("auto", "chunked"):
            return None
        return cls(model, cache, request) if is_plain_step(model, (model.model, model.lm_head), _PARTS) else None

    def __call__(self, tokens: Tensor, *, past: int, position_ids: Tensor | None) -> Tensor:
        """Ids (R,) behind `past` tokens, at positions (R, 1), or at `past` if None -> logits (R, V)."""
        cos, sin = self._angles(tokens, past, position_ids)
        mask = None if self.mask is None else self.mask[:, : past + 1]
        x = self.embed(tokens)
        for layer in self.layers:
            x = x + layer.attend(x, cos, sin, mask)
            x = x + layer.feed_forward(x)
        return self.head(self.norm(x))

    def _angles(self, tokens: Tensor, past: int, position_ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rotary tables of the new tokens, (R or 1, 1, D)."""
        if self.tables is None:
            if position_ids is None:
                position_ids = torch.full((1, 1), past, device=tokens.device)
            cos, sin = self.rotary(position_ids, self.dtype)
            return cos[:, 0], sin[:, 0]
        cos, sin = self.tables
        if position_ids is None:
            return cos[past : past + 1], sin[past : past + 1]
        rows = position_ids[:, 0]
        return cos[rows], sin[rows]


class _LayerStep:
    def __init__(self, layer: Any, cache: GrowingCache, *, packed: bool, rows: int) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.cache, self.index = cache, attention.layer_index
        self.num_maps, self.num_kv, self.size = attention.num_maps, attention.num_kv_heads, attention.head_dim
        self.scale, self.lam = self.size**-0.5, attention.lambda_full()
        self.activation = mlp.activation
        self.norm = FewRowsNorm(layer.input_layernorm.weight, layer.input_layernorm.eps)
        self.mlp_norm = FewRowsNorm(layer.post_attention_layernorm.weight, layer.post_attention_layernorm.eps)
        factor = layer.input_layernorm.weight.new_full((2 * self.size,), 1.0 - attention.lambda_init)
        self.head_norm = FewRowsNorm(factor, attention.eps)

        def linear(*projections: Any) -> FewRows:
            return joined(projections, packed=packed, rows=rows)

        self.project = linear(attention.q_proj, attention.k_proj, attention.v_proj)
        self.merge = linear(attention.o_proj)
        self.gate_and_up = linear(mlp.gate_proj, mlp.up_proj)
        self.down = linear(mlp.down_proj)

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of the new tokens, (R, H) -> (R, H), given tables (R or 1, 1, D) and a mask (R, T)."""
        rows, turned = x.shape[0], self.num_maps + self.num_kv
        heads = self.project(self.norm(x)).view(rows, turned + self.num_kv, self.size)
        query_and_key = apply_rotary(heads[:, :turned], cos, sin)
        keys, values = self.cache.extend(self.index)
        keys[:, :, -1] = query_and_key[:, self.num_maps :]
        values[:, :, -1] = heads[:, turned:]
        query = query_and_key[:, : self.num_maps, None]
        context = one_query_attention(query, keys, values, self.lam, key_mask=mask, scale=self.scale)
        return self.merge(self.head_norm(context).view(rows, -1))

    def feed_forward(self, x: Tensor) -> Tensor:
        """(R, H) -> (R, H)."""
        gate, up = self.gate_and_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return self.down(self.activation(gate) * up)


def _weights(model: Any) -> Iterator[Tensor]:
    """The weights of all products."""
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        for projection in (*projections, mlp.gate_proj, mlp.up_proj, mlp.down_proj):
            yield projection.weight
    yield model.lm_head.weight
