"""What the layers of BERT and Longformer share: they normalise after adding (Vaswani et al., 2017).

Axes: H width, F width of the feed-forward layers, D head size. `tokens` in a shape stands for (B, S), or for (N,) in a
packed batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor, nn

from longspan.nn.torch.activations import get_activation
from longspan.nn.torch.apply import project, tokenwise
from longspan.nn.torch.dropout import Dropout
from longspan.nn.torch.resizing import keep_features, remaining_features


class Intermediate(nn.Module):
    """activation(W x + b)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = get_activation(config.hidden_act)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(tokens, H) -> (tokens, F)."""
        return project(self.dense, hidden_states, self.activation)


class AddAndNorm(nn.Module):
    """LayerNorm(x + dropout(W c + b))."""

    def __init__(self, config: Any, *, input_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(input_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor, residual: Tensor) -> Tensor:
        """(tokens, input_size), (tokens, H) -> (tokens, H)."""
        return self.LayerNorm(self.dropout(project(self.dense, hidden_states)) + residual)


class PostNormAttention(nn.Module):
    """Attention with output projection, residual and norm.

    Args:
        config: Settings of the model.
        attention: Maps (tokens, H) to a context (tokens, H) and weights; has `attention_head_size`.
    """

    #: the layers of the attention whose output features belong to heads
    projections: ClassVar[tuple[str, ...]] = ("query", "key", "value")

    def __init__(self, config: Any, attention: nn.Module) -> None:
        super().__init__()
        self.self = attention
        self.output = AddAndNorm(config, input_size=config.hidden_size)
        self.pruned_heads: set[int] = set()
        self.original_num_heads = config.num_attention_heads

    def forward(self, hidden_states: Tensor, *, head_mask: Tensor | None = None, **arguments: Any) -> tuple[Any, ...]:
        """(tokens, H) -> (tokens, H) and the weights; arguments of the attention, with a factor of all A heads."""
        if head_mask is not None and self.pruned_heads:
            head_mask = head_mask[:, [head for head in range(self.original_num_heads) if head not in self.pruned_heads]]
        context, *weights = self.self(hidden_states, head_mask=head_mask, **arguments)
        return self.output(context, hidden_states), *weights

    def prune_heads(self, heads: Iterable[int]) -> None:
        """Remove heads, given by their original numbers, for good."""
        attention: Any = self.self
        removed, features = remaining_features(
            heads,
            num_heads=self.original_num_heads,
            head_size=attention.attention_head_size,
            already_pruned=self.pruned_heads,
        )
        features = features.to(self.output.dense.weight.device)
        for name in self.projections:
            setattr(attention, name, keep_features(getattr(attention, name), features, axis=0))
        self.output.dense = keep_features(self.output.dense, features, axis=1)
        self.pruned_heads |= removed
        attention.num_attention_heads = self.original_num_heads - len(self.pruned_heads)


class PostNormFeedForward(nn.Module):
    """The second half of a layer, LayerNorm(x + W₂ act(W₁ x)); subclasses add the first half."""

    def add_feed_forward(self, config: Any) -> None:
        """Make the modules, behind those of the attention."""
        self.intermediate = Intermediate(config)
        self.output = AddAndNorm(config, input_size=config.intermediate_size)
        self.intermediate_size = config.intermediate_size
        self.chunk_size_feed_forward = config.chunk_size_feed_forward

    def feed_forward(self, hidden_states: Tensor) -> Tensor:
        """(tokens, H) -> (tokens, H), for `chunk_size_feed_forward` tokens at a time if that is set."""
        return tokenwise(
            self._feed_forward,
            hidden_states,
            owner=self,
            width=self.intermediate_size,
            chunk_size=self.chunk_size_feed_forward,
        )

    def _feed_forward(self, hidden_states: Tensor) -> Tensor:
        return self.output(self.intermediate(hidden_states), hidden_states)
