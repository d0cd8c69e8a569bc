"""Layers that LongT5's encoder and decoder share, in PyTorch (Guo et al., 2022, https://arxiv.org/abs/2112.07916).

Axes: B batch, S tokens, H width, F width of the feed-forward layers, A heads, D head size.

In float16 the residual and the last product of the feed-forward layers are float32: their values outgrow float16.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longspan.models.longt5.config import LongT5Config
from longspan.nn.torch.activations import get_activation
from longspan.nn.torch.apply import may_overwrite, project, tokenwise
from longspan.nn.torch.dropout import Dropout
from longspan.nn.torch.plain import is_plain
from longspan.ops import patterns
from longspan.ops.torch.rms_norm import rms_norm


def linear(in_features: int, out_features: int, *, std: float) -> nn.Linear:
    """A projection without bias that remembers the standard deviation of its initial weights."""
    projection = nn.Linear(in_features, out_features, bias=False)
    projection.init_std = std  # type: ignore[assignment]  # a mark, no tensor
    return projection


def embedding(num_embeddings: int, embedding_dim: int, *, std: float) -> nn.Embedding:
    """An embedding that remembers the standard deviation of its initial weights."""
    table = nn.Embedding(num_embeddings, embedding_dim)
    table.init_std = std  # type: ignore[assignment]  # a mark, no tensor
    return table


class LongT5LayerNorm(nn.Module):
    """w · x / √(mean(x²) + ε) (Zhang and Sennrich, 2019), in the dtype of w."""

    def __init__(self, config: LongT5Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.d_model))
        self.eps = config.layer_norm_epsilon

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., H) -> (..., H)."""
        if hidden_states.dtype == self.weight.dtype:
            return rms_norm(hidden_states, self.weight, self.eps)
        return rms_norm(hidden_states, self.weight.to(hidden_states.dtype), self.eps).to(self.weight.dtype)


class LongT5DenseActDense(nn.Module):
    """W₂ act(W₁ x)."""

    def __init__(self, config: LongT5Config) -> None:
        super().__init__()
        self.wi = linear(config.d_model, config.d_ff, std=config.d_model**-0.5)
        self.wo = linear(config.d_ff, config.d_model, std=config.d_ff**-0.5)
        self.dropout = Dropout(config.dropout_rate)
        self.activation = get_activation(config.dense_act_fn or "relu")

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, S, H) -> (B, S, H)."""
        states = project(self.wi, hidden_states, self.activation)
        return project_wide(self.wo, self.dropout(states), hidden_states.dtype)


class LongT5DenseGatedActDense(nn.Module):
    """W₂ (act(W₀ x) ⊙ W₁ x) (Shazeer, 2020)."""

    def __init__(self, config: LongT5Config) -> None:
        super().__init__()
        self.wi_0 = linear(config.d_model, config.d_ff, std=config.d_model**-0.5)
        self.wi_1 = linear(config.d_model, config.d_ff, std=config.d_model**-0.5)
        self.wo = linear(config.d_ff, config.d_model, std=config.d_ff**-0.5)
        self.dropout = Dropout(config.dropout_rate)
        self.activation = get_activation(config.dense_act_fn or "gelu_new")

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, S, H) -> (B, S, H)."""
        gate, states = project(self.wi_0, hidden_states, self.activation), project(self.wi_1, hidden_states)
        if gate.dtype == torch.float16:
            gate = gate.float()
        product = gate.mul_(states) if may_overwrite(self) else gate * states
        return project_wide(self.wo, self.dropout(product), hidden_states.dtype)


class LongT5LayerFF(nn.Module):
    """x + dropout(FF(norm(x)))."""

    def __init__(self, config: LongT5Config) -> None:
        super().__init__()
        kind = LongT5DenseGatedActDense if config.is_gated_act else LongT5DenseActDense
        self.DenseReluDense = kind(config)
        self.inner_size = config.d_ff
        self.layer_norm = LongT5LayerNorm(config)
        self.dropout = Dropout(config.dropout_rate)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, S, H) -> (B, S, H)."""
        return tokenwise(self._feed_forward, hidden_states, owner=self, width=self.inner_size)

    def _feed_forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + self.dropout(self.DenseReluDense(self.layer_norm(hidden_states)))


class LongT5LayerAttention(nn.Module):
    """x + dropout(attention(norm(x))); subclasses say what attends, and its name in checkpoints."""

    attention_name: ClassVar[str]

    def __init__(self, config: LongT5Config, attention: nn.Module) -> None:
        super().__init__()
        self.add_module(self.attention_name, attention)
        self.layer_norm = LongT5LayerNorm(config)
        self.dropout = Dropout(config.dropout_rate)

    @property
    def attention(self) -> Any:
        """The attention, whatever its name in checkpoints."""
        return getattr(self, self.attention_name)

    def forward(self, hidden_states: Tensor, *others: Tensor, **arguments: Any) -> tuple[Tensor, Tensor | None]:
        """(B, S, H) -> (B, S, H) and the weights; the other arguments are those of the attention."""
        context, weights = self.attention(self.layer_norm(hidden_states), *others, **arguments)
        return hidden_states + self.dropout(context), weights


class LongT5Projections(nn.Module):
    """The four projections of an attention layer; without scaling, which T5 leaves to the initial weights."""

    def __init__(self, config: LongT5Config) -> None:
        super().__init__()
        width, inner = config.d_model, config.num_heads * config.d_kv
        self.q = linear(width, inner, std=(width * config.d_kv) ** -0.5)
        self.k = linear(width, inner, std=width**-0.5)
        self.v = linear(width, inner, std=width**-0.5)
        self.o = linear(inner, width, std=inner**-0.5)
        self.num_heads, self.head_size = config.num_heads, config.d_kv
        self.dropout_rate = config.dropout_rate

    def split(self, states: Tensor) -> Tensor:
        """(B, S, A·D) -> (B, A, S, D)."""
        return states.unflatten(-1, (self.num_heads, self.head_size)).transpose(1, 2)

    def merge(self, context: Tensor) -> Tensor:
        """(B, A, S, D) -> (B, S, H)."""
        return project(self.o, context.transpose(1, 2).flatten(2))

    @property
    def dropout(self) -> float:
        """Dropout of the weights in the present mode."""
        return self.dropout_rate if self.training else 0.0


class RelativeBuckets(nn.Module):
    """The bucket of a relative position; farther positions than the largest distance share its bucket.

    Args:
        config: Settings of the model.
        bidirectional: Keys after the query have buckets of their own.
    """

    table: Tensor

    def __init__(self, config: LongT5Config, *, bidirectional: bool) -> None:
        super().__init__()
        self.max_distance = config.relative_attention_max_distance
        table = patterns.bucket_table(
            bidirectional=bidirectional,
            num_buckets=config.relative_attention_num_buckets,
            max_distance=self.max_distance,
        )
        self.register_buffer("table", torch.tensor(table), persistent=False)

    def forward(self, relative_position: Tensor) -> Tensor:
        """Integers (...) -> integers (...)."""
        return self.table[relative_position.clamp(-self.max_distance, self.max_distance) + self.max_distance]


def relative_embedding(config: LongT5Config) -> nn.Embedding:
    """Bias of each bucket and head."""
    return embedding(config.relative_attention_num_buckets, config.num_heads, std=config.d_model**-0.5)


def project_wide(projection: nn.Module, states: Tensor, dtype: torch.dtype) -> Tensor:
    """Apply a projection; in float16, with a float32 product and result.

    What somebody put in the place of the projection gets and gives float16, the largest numbers cut to its range.
    """
    if dtype != torch.float16:
        return project(projection, states)
    if type(projection) is nn.Linear and is_plain(projection):
        return F.linear(states.float(), projection.weight.float())
    return projection(end_residual(states, dtype)).float()


def begin_residual(embeddings: Tensor) -> Tensor:
    """The residual that the layers add to: float32 for float16."""
    return embeddings.float() if embeddings.dtype == torch.float16 else embeddings


def end_residual(hidden_states: Tensor, dtype: torch.dtype) -> Tensor:
    """A residual in the dtype of the model, without infinities."""
    if hidden_states.dtype == dtype:
        return hidden_states
    limit = torch.finfo(dtype).max
    return hidden_states.clamp(-limit, limit).to(dtype)
