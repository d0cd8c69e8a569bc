"""Blocks of task heads that more than one family uses."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longspan.nn.torch.activations import get_activation
from longspan.nn.torch.apply import project
from longspan.nn.torch.dropout import Dropout
from longspan.ops.torch.context import ReadsContext, first_state
from longspan.shapes import num_choices_of


class Pooler(ReadsContext, nn.Module):
    """tanh(W h₀ + b) of the first token's state (BERT, Longformer).

    Args:
        hidden_size: Width H.
    """

    def __init__(self, *, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, S, H) -> (B, H)."""
        return torch.tanh(project(self.dense, first_state(hidden_states, self.context_shard)))


class FirstTokenClassificationHead(ReadsContext, nn.Module):
    """dropout → dense → tanh → dropout → projection of the first token's state (Longformer, MEGA).

    Args:
        hidden_size: Width H.
        dropout: Dropout probability.
        num_labels: Number of classes N.
    """

    def __init__(self, *, hidden_size: int, dropout: float, num_labels: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.dropout = Dropout(dropout)
        self.out_proj = nn.Linear(hidden_size, num_labels)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, S, H) -> (B, N)."""
        pooled = self.dropout(first_state(hidden_states, self.context_shard))
        return project(self.out_proj, self.dropout(torch.tanh(project(self.dense, pooled))))


class LanguageModelHead(nn.Module):
    """Scores over the vocabulary, decoder(LayerNorm(gelu(W x + b))) (Longformer, RoBERTa).

    Args:
        hidden_size: Width H.
        vocab_size: Size of the vocabulary V.
        layer_norm_eps: Epsilon of the norm.
    """

    def __init__(self, *, hidden_size: int, vocab_size: int, layer_norm_eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.layer_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.decoder = nn.Linear(hidden_size, vocab_size)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, S, H) -> (B, S, V)."""
        return project(self.decoder, self.layer_norm(F.gelu(project(self.dense, hidden_states))))


class PredictionHeadTransform(nn.Module):
    """dense → activation → layer norm, before the vocabulary projection of BERT.

    Args:
        hidden_size: Width H.
        activation: Name of the activation.
        layer_norm_eps: Epsilon of the norm.
    """

    def __init__(self, *, hidden_size: int, activation: str, layer_norm_eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.activation = get_activation(activation)
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, S, H) -> (B, S, H)."""
        return self.LayerNorm(project(self.dense, hidden_states, self.activation))


def fold_choices(*inputs: Tensor | None) -> tuple[int, tuple[Tensor | None, ...]]:
    """Fold the axis of choices into the batch: (B, C, ...) -> C and (B·C, ...); `num_choices_of` says what fits."""
    folded = tuple(None if tensor is None else tensor.flatten(0, 1) for tensor in inputs)
    return num_choices_of(inputs), folded
