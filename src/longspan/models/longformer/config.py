"""Settings of Longformer."""

from __future__ import annotations

from typing import ClassVar

from longspan.configuration import PretrainedConfig, require
from longspan.ranges import Count, Deviation, Epsilon, FewCount, Probability, TokenId, WindowSize


class LongformerConfig(PretrainedConfig):
    """Settings of a Longformer model; the defaults are those of the reference.

    Args:
        attention_window: Width of the attention window in tokens, without the token itself: half of it lies on either
            side. One even positive number for all layers, or one per layer.
        vocab_size: Number of tokens in the vocabulary.
        hidden_size: Width of the hidden states.
        num_hidden_layers: Number of transformer layers.
        num_attention_heads: Attention heads of each layer; must divide `hidden_size`.
        intermediate_size: Width of the feed-forward layers.
        hidden_act: Activation of the feed-forward layers, e.g. `"gelu"` (erf form).
        hidden_dropout_prob: Dropout of embeddings and sub-layer outputs.
        attention_probs_dropout_prob: Dropout of attention weights.
        max_position_embeddings: Rows of the position table. Positions begin at `pad_token_id + 1`, so the longest
            input has `max_position_embeddings - pad_token_id - 1` tokens.
        type_vocab_size: Number of segments.
        initializer_range: Standard deviation of the normal initialiser.
        layer_norm_eps: Epsilon of layer normalisation.
        onnx_export: Kept as it is; no effect, since every graph can be exported.
        num_global_slots: Global tokens per row that a traced graph (torch.compile, torch.export) has room for. In
            eager mode the number is counted instead.
        **kwargs: Settings of `PretrainedConfig`.

    Raises:
        ConfigError: a value breaks a rule.

    Example:
        >>> from longspan import LongformerConfig
        >>> LongformerConfig(num_hidden_layers=2, attention_window=[32, 64]).window_of(1)
        64
    """

    model_type: ClassVar[str] = "longformer"
    own_settings: ClassVar[frozenset[str]] = frozenset({"num_global_slots"})

    attention_window: WindowSize | list[WindowSize] = 512
    vocab_size: Count = 30522
    hidden_size: Count = 768
    num_hidden_layers: FewCount = 12
    num_attention_heads: FewCount = 12
    intermediate_size: Count = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: Probability = 0.1
    attention_probs_dropout_prob: Probability = 0.1
    max_position_embeddings: Count = 512
    type_vocab_size: Count = 2
    initializer_range: Deviation = 0.02
    layer_norm_eps: Epsilon = 1e-12
    onnx_export: bool = False
    num_global_slots: Count = 64
    sep_token_id: TokenId | None = 2
    pad_token_id: TokenId | None = 1
    bos_token_id: TokenId | None = 0
    eos_token_id: TokenId | list[TokenId] | None = 2

    def window_of(self, layer: int) -> int:
        """Width of the attention window of a layer."""
        return self.attention_window if isinstance(self.attention_window, int) else self.attention_window[layer]

    @property
    def max_length(self) -> int:
        """Longest input in tokens."""
        return self.max_position_embeddings - (self.pad_token_id or 0) - 1

    def validate(self) -> None:
        """Check the rules of Longformer's settings."""
        super().validate()
        require(
            self.hidden_size % self.num_attention_heads == 0,
            "num_attention_heads must divide hidden_size",
            hidden_size=self.hidden_size,
            num_attention_heads=self.num_attention_heads,
        )
        require(
            self.pad_token_id is not None, "pad_token_id must be set: positions are counted from it", pad_token_id=None
        )
        require(
            self.max_length > 0,
            "max_position_embeddings must exceed pad_token_id + 1: positions begin there",
            max_position_embeddings=self.max_position_embeddings,
            pad_token_id=self.pad_token_id,
        )
        self._validate_windows()

    def _validate_windows(self) -> None:
        if isinstance(self.attention_window, list | tuple):
            require(
                len(self.attention_window) == self.num_hidden_layers,
                "attention_window must be one number or one per layer",
                attention_window=self.attention_window,
                num_hidden_layers=self.num_hidden_layers,
            )
        for layer in range(self.num_hidden_layers):
            window = self.window_of(layer)
            require(
                isinstance(window, int) and window > 0 and window % 2 == 0,
                "attention_window must be even and positive",
                attention_window=window,
                layer=layer,
            )
