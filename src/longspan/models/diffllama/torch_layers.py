"""Layers of DiffLlama in PyTorch: Llama with the attention of the Differential Transformer (Ye et al., 2024).

Axes: B batch, S tokens, T keys, H width, A softmax maps, K key/value heads, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from longspan.errors import InputError
from longspan.models.diffllama.config import DiffLlamaConfig
from longspan.nn.torch.activations import get_activation
from longspan.nn.torch.apply import may_overwrite, project, tokenwise
from longspan.nn.torch.cache import Cache, DynamicCache, LegacyCache, as_cache
from longspan.nn.torch.checks import values_visible
from longspan.nn.torch.masks import extend_mask
from longspan.nn.torch.resizing import keep_features, remaining_features
from longspan.ops.torch.differential import DifferentialAttention, differential_attention
from longspan.ops.torch.rms_norm import rms_norm
from longspan.ops.torch.rotary import apply_rotary, rotary_cos_sin, select_frequencies
from longspan.shapes import check_shape


@dataclass(frozen=True)
class AttentionPlan:
    """How all layers of one call attend.

    Attributes:
        cos: Rotary table, (B or 1, S, 1, D).
        sin: Signed rotary table, (B or 1, S, 1, D).
        position: Place of each query among the keys, (S,); None: the queries are the last keys.
        key_mask: Boolean, (B, T), True = attend; None for all.
        segment_ids: Segment of each token of packed documents, (B, S); None for one segment.
        implementation: `"auto"` or the name of an implementation.
        output_weights: The maps are returned.
    """

    cos: Tensor
    sin: Tensor
    position: Tensor | None
    key_mask: Tensor | None
    segment_ids: Tensor | None
    implementation: str
    output_weights: bool


@dataclass(frozen=True)
class Positions:
    """Where the tokens of a call stand.

    Attributes:
        position_ids: For the rotary tables, (B or 1, S).
        cache_position: Places in the sequence, (S,).
        query_position: The same, or None if the queries are simply the last keys.
        segment_ids: Documents of a packed batch, (B, S), or None.
    """

    position_ids: Tensor
    cache_position: Tensor
    query_position: Tensor | None
    segment_ids: Tensor | None


def make_positions(
    *,
    batch: int,
    length: int,
    device: torch.device,
    position_ids: Tensor | None,
    cache_position: Tensor | None,
    attention_mask: Tensor | None,
    cache: Cache | None,
) -> Positions:
    """Complete the positions of a call; arguments as in `DiffLlamaModel.forward`.

    Raises:
        InputError: a shape does not fit.
    """
    check_shape(cache_position, (length,), name="cache_position", axes="(tokens,)")
    if position_ids is not None and tuple(position_ids.shape) not in ((batch, length), (1, length)):
        raise InputError(
            f"position_ids must have the shape (batch, tokens) = ({batch}, {length}), or (1, tokens). "
            f"Received: {tuple(position_ids.shape)}"
        )
    places = cache_position
    if places is None:
        past = 0 if cache is None else cache.get_seq_length()
        places = past + torch.arange(length, device=device)
    fixed_size = cache is not None and cache.get_max_cache_shape() is not None
    packed = position_ids is not None and attention_mask is None and cache is None
    return Positions(
        position_ids=places[None] if position_ids is None else position_ids,
        cache_position=places,
        query_position=places if fixed_size else cache_position,
        segment_ids=_documents(position_ids).expand(batch, -1) if packed and position_ids is not None else None,
    )


def _documents(position_ids: Tensor) -> Tensor:
    """Number the documents of packed rows: a position that does not follow the one before starts a new document."""
    starts = position_ids[:, 1:] != position_ids[:, :-1] + 1
    return torch.cat((torch.zeros_like(position_ids[:, :1]), starts.cumsum(dim=-1)), dim=-1)


def make_key_mask(attention_mask: Tensor | None, *, batch: int, length: int, cache: Cache | None) -> Tensor | None:
    """Bring a padding mask to the keys of a call.

    Args:
        attention_mask: (B, past + S), nonzero = attend; None for all.
        batch: B.
        length: S.
        cache: Keys of earlier tokens.

    Returns:
        Boolean, (B, T), or None if nothing is known to be hidden.

    Raises:
        InputError: the shape does not fit.
    """
    if attention_mask is None:
        return None
    capacity = None if cache is None else cache.get_max_cache_shape()
    num_keys = attention_mask.shape[-1]
    if capacity is None:
        num_keys = length if cache is None else length + int(cache.get_seq_length())
    if tuple(attention_mask.shape) != (batch, num_keys) or (capacity is not None and num_keys > capacity):
        raise InputError(
            "attention_mask must have the shape (batch, tokens in the cache + new tokens) = "
            f"({batch}, {num_keys if capacity is None else f'up to {capacity}'}). "
            f"Received: {tuple(attention_mask.shape)}"
        )
    mask = attention_mask if attention_mask.dtype == torch.bool else attention_mask != 0
    if _readable(mask) and bool(mask.all()):
        return None
    return mask if capacity is None else extend_mask(mask, capacity)


def _readable(mask: Tensor) -> bool:
    """True if the values may be looked at. On an accelerator that is one wait, which the leaner kernels repay."""
    if mask.is_cuda:
        return not torch.compiler.is_compiling() and not torch.cuda.is_current_stream_capturing()
    return values_visible(mask)


def make_cache(
    past_key_values: Cache | LegacyCache | None, *, use_cache: bool, config: DiffLlamaConfig
) -> Cache | None:
    """The cache that a call reads and fills: the given one, one that shares the given tuples, a new one, or none.

    Raises:
        InputError: the cache has another number of layers than the model.
    """
    past_key_values = as_cache(past_key_values)
    if past_key_values is None:
        return DynamicCache() if use_cache else None
    cache = past_key_values if isinstance(past_key_values, Cache) else DynamicCache.from_legacy_cache(past_key_values)
    if len(cache) not in (0, config.num_hidden_layers):
        raise InputError(
            f"past_key_values must hold one entry for each of the {config.num_hidden_layers} layers. "
            f"Received: {len(cache)}"
        )
    return cache


#: reparametrisation vectors of λ
LAMBDA_NAMES = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")


class DiffLlamaRMSNorm(nn.Module):
    """w · x / √(mean(x²) + ε) (Zhang and Sennrich, 2019)."""

    def __init__(self, *, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., H) -> (..., H)."""
        return rms_norm(hidden_states, self.weight, self.eps)

    def extra_repr(self) -> str:
        """Shape and ε."""
        return f"{tuple(self.weight.shape)}, eps={self.eps}"


class DiffLlamaRotaryEmbedding(nn.Module):
    """Rotary tables of the configured kind of scaling."""

    inv_freq: Tensor
    long_inv_freq: Tensor | None

    def __init__(self, config: DiffLlamaConfig) -> None:
        super().__init__()
        self.table = config.rotary_table()
        self._make_buffers(None)

    def _make_buffers(self, device: torch.device | None) -> None:
        long = self.table.long_frequencies
        self.register_buffer("inv_freq", torch.tensor(self.table.frequencies, device=device), persistent=False)
        self.register_buffer(
            "long_inv_freq", None if long is None else torch.tensor(long, device=device), persistent=False
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DiffLlamaRotaryEmbedding:
        """Follow a change of device but not of dtype: rounded frequencies would turn far tokens by whole radians."""
        super()._apply(fn, recurse)
        self._make_buffers(self.inv_freq.device)
        return self

    def forward(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Positions (B, S) -> cos and signed sin, (B, S, 1, D)."""
        frequencies = select_frequencies(
            self.table, position_ids, frequencies=self.inv_freq, long_frequencies=self.long_inv_freq
        )
        return rotary_cos_sin(frequencies, position_ids, attention_factor=self.table.attention_factor, dtype=dtype)


class DiffLlamaAttention(nn.Module):
    """Differential attention with rotary positions and grouped keys and values.

        λ = exp(λ_q1 · λ_k1) − exp(λ_q2 · λ_k2) + λ_init,  λ_init = 0.8 − 0.6 · exp(−0.3 · layer)
        head_j = (1 − λ_init) · RMSNorm((softmax(Q_j Kᵀ/√D) − λ · softmax(Q_{j+A/2} Kᵀ/√D)) V_j)

    The layer counts from 0. λ is computed and applied in float32, whatever the dtype of the weights.
    """

    def __init__(self, config: DiffLlamaConfig, *, layer_index: int) -> None:
        super().__init__()
        self.layer_index = layer_index
        self.num_maps, self.num_kv_heads = config.num_attention_heads, config.num_kv_heads
        self.head_dim = config.size_of_heads
        self.dropout = config.attention_dropout
        self.eps = config.rms_norm_eps
        width, bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(width, self.num_maps * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, self.num_kv_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, self.num_kv_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(self.num_maps * self.head_dim, width, bias=bias)
        self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * layer_index)
        for name in LAMBDA_NAMES:
            self.register_parameter(name, nn.Parameter(torch.empty(self.head_dim)))
        self.pruned_heads: set[int] = set()
        self.original_num_heads = self.num_maps // 2

    def lambda_full(self) -> Tensor:
        """λ, 0-d float32."""
        q1, k1, q2, k2 = (getattr(self, name).float() for name in LAMBDA_NAMES)
        return torch.exp((q1 * k1).sum()) - torch.exp((q2 * k2).sum()) + self.lambda_init

    def forward(
        self, hidden_states: Tensor, *, plan: AttentionPlan, cache: Cache | None, cache_position: Tensor | None
    ) -> tuple[Tensor, DifferentialAttention]:
        """(B, S, H) -> (B, S, H), and the maps if the plan asks for them."""
        query = self._split(project(self.q_proj, hidden_states), self.num_maps)
        key = self._split(project(self.k_proj, hidden_states), self.num_kv_heads)
        value = self._split(project(self.v_proj, hidden_states), self.num_kv_heads).transpose(1, 2)
        cos, sin = plan.cos.to(query.dtype), plan.sin.to(query.dtype)
        query = apply_rotary(query, cos, sin).transpose(1, 2)  # (B, A, S, D)
        key = apply_rotary(key, cos, sin).transpose(1, 2)  # (B, K, S, D)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_index, cache_position)
        attended = differential_attention(
            query,
            key,
            value,
            self.lambda_full(),
            implementation=plan.implementation,
            position=plan.position,
            key_mask=plan.key_mask,
            segment_ids=plan.segment_ids,
            dropout=self.dropout if self.training else 0.0,
            output_weights=plan.output_weights,
            overwrite_query=may_overwrite(self),
        )
        heads = attended.output.flatten(2)  # (B, S, A·D)
        return tokenwise(self._project_out, heads, owner=self.o_proj, width=heads.shape[-1]), attended

    def _project_out(self, heads: Tensor) -> Tensor:
        """(..., A·D) -> (..., H)."""
        normed = rms_norm(heads.unflatten(-1, (-1, 2 * self.head_dim)), 1.0 - self.lambda_init, self.eps)
        return project(self.o_proj, normed.flatten(-2))

    def _split(self, states: Tensor, num_heads: int) -> Tensor:
        """(B, S, heads · D) -> (B, S, heads, D)."""
        return states.unflatten(-1, (num_heads, self.head_dim))

    def prune_heads(self, heads: Iterable[int]) -> None:
        """Remove differential heads (pairs of maps j and j + A/2), given by their original numbers, for good.

        Keys and values of the remaining maps are no longer shared: each map gets its own copy.
        """
        removed, features = remaining_features(
            heads, num_heads=self.original_num_heads, head_size=1, already_pruned=self.pruned_heads
        )
        if not removed:
            return
        half, group = self.num_maps // 2, self.num_maps // self.num_kv_heads
        maps = torch.cat((features, features + half))
        self.q_proj = keep_features(self.q_proj, self._features(maps), axis=0)
        self.k_proj = keep_features(self.k_proj, self._features(maps // group), axis=0)
        self.v_proj = keep_features(self.v_proj, self._features(maps // group), axis=0)
        self.o_proj = keep_features(self.o_proj, self._features(features, size=2 * self.head_dim), axis=1)
        self.pruned_heads |= removed
        self.num_maps = self.num_kv_heads = len(maps)

    def _features(self, heads: Tensor, size: int | None = None) -> Tensor:
        """Indices of the features that belong to the named heads."""
        size = self.head_dim if size is None else size
        return (heads[:, None] * size + torch.arange(size)).reshape(-1).to(self.q_proj.weight.device)


class DiffLlamaMLP(nn.Module):
    """down(act(gate(x)) ∘ up(x)) (Shazeer, 2020)."""

    def __init__(self, config: DiffLlamaConfig) -> None:
        super().__init__()
        self.inner_size = config.intermediate_size
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.activation = get_activation(config.hidden_act)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, S, H) -> (B, S, H)."""
        return tokenwise(self._feed_forward, hidden_states, owner=self, width=self.inner_size)

    def _feed_forward(self, hidden_states: Tensor) -> Tensor:
        gate = project(self.gate_proj, hidden_states, self.activation)
        return project(self.down_proj, gate * project(self.up_proj, hidden_states))


class DiffLlamaDecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: DiffLlamaConfig, *, layer_index: int) -> None:
        super().__init__()
        self.self_attn = DiffLlamaAttention(config, layer_index=layer_index)
        self.inner_size = config.intermediate_size
        self.mlp = DiffLlamaMLP(config)
        self.input_layernorm = DiffLlamaRMSNorm(hidden_size=config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = DiffLlamaRMSNorm(hidden_size=config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states: Tensor, **arguments: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(B, S, H) -> (B, S, H), the maps and their differences; arguments of `DiffLlamaAttention`."""
        attended, maps = self.self_attn(self.input_layernorm(hidden_states), **arguments)
        hidden_states = hidden_states + attended
        normed = self.post_attention_layernorm(hidden_states)
        hidden_states = tokenwise(self.mlp, normed, owner=self, width=self.inner_size, residual=hidden_states)
        return hidden_states, maps.weights, maps.differential_weights
