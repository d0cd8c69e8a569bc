"""Layers of DiffLlama in PyTorch: Llama with the attention of the Differential Transformer (Ye et al., 2024).

Axes: B batch, S tokens, T keys, H width, A softmax maps, K key/value heads, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from longspan.models.diffllama.config import DiffLlamaConfig
from longspan.models.diffllama.torch_attention import AttentionPlan
from longspan.nn.torch.activations import get_activation
from longspan.nn.torch.apply import project, tokenwise
from longspan.nn.torch.cache import Cache
from longspan.nn.torch.resizing import keep_features, remaining_features
from longspan.ops.torch.differential import DifferentialAttention, differential_attention
from longspan.ops.torch.rms_norm import rms_norm
from longspan.ops.torch.rotary import apply_rotary, rotary_cos_sin, select_frequencies

#: reparametrisation vectors of λ
LAMBDA_NAMES = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")


class DiffLlamaRMSNorm(nn.Module):
    """w · x / √(mean(x²) + ε) (Zhang and Sennrich, 2019).

    Args:
        hidden_size: Width H.
        eps: ε.
    """

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
    """Rotary tables of the configured kind of scaling.

    Args:
        config: Settings of the model.
    """

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

    Args:
        config: Settings of the model.
        layer_index: Index of the layer.
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
    """down(act(gate(x)) ∘ up(x)) (Shazeer, 2020).

    Args:
        config: Settings of the model.
    """

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
        gate = self.activation(project(self.gate_proj, hidden_states))
        return project(self.down_proj, gate * project(self.up_proj, hidden_states))


class DiffLlamaDecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        config: Settings of the model.
        layer_index: Index of the layer.
    """

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
