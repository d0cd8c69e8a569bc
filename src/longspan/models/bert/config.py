"""Settings of BERT."""

from __future__ import annotations

from typing import ClassVar

from longspan.configuration import PretrainedConfig, require
from longspan.ranges import Count, Deviation, Epsilon, FewCount, Probability, TokenId

POSITION_EMBEDDING_TYPES = ("absolute", "relative_key", "relative_key_query")


class BertConfig(PretrainedConfig):
    """Settings of a BERT model; the defaults are those of `bert-base-uncased`.

    Args:
        vocab_size: Number of tokens in the vocabulary.
        hidden_size: Width of the hidden states.
        num_hidden_layers: Number of transformer layers.
        num_attention_heads: Attention heads of each layer; must divide `hidden_size`.
        intermediate_size: Width of the feed-forward layers.
        hidden_act: Activation of the feed-forward layers, e.g. `"gelu"` (erf form) or `"gelu_new"` (tanh form).
        hidden_dropout_prob: Dropout of embeddings and sub-layer outputs.
        attention_probs_dropout_prob: Dropout of attention weights.
        max_position_embeddings: Longest input, in tokens.
        type_vocab_size: Number of segments.
        initializer_range: Standard deviation of the normal initialiser.
        layer_norm_eps: Epsilon of layer normalisation.
        position_embedding_type: `"absolute"`, `"relative_key"` (Shaw et al., 2018) or `"relative_key_query"`
            (Huang et al., 2020).
        use_cache: Return keys and values in decoder mode.
        classifier_dropout: Dropout before a classification head; None takes `hidden_dropout_prob`.
        **kwargs: Settings of `PretrainedConfig`.

    Raises:
        ConfigError: a value breaks a rule.

    Example:
        >>> from longspan import BertConfig
        >>> BertConfig(hidden_size=128, num_attention_heads=2).hidden_size
        128
    """

    model_type: ClassVar[str] = "bert"

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
    pad_token_id: TokenId | None = 0
    position_embedding_type: str = "absolute"
    use_cache: bool = True
    classifier_dropout: Probability | None = None

    def validate(self) -> None:
        """Check the rules of BERT's settings."""
        super().validate()
        require(
            self.hidden_size % self.num_attention_heads == 0,
            "num_attention_heads must divide hidden_size",
            hidden_size=self.hidden_size,
            num_attention_heads=self.num_attention_heads,
        )
        require(
            self.position_embedding_type in POSITION_EMBEDDING_TYPES,
            f"position_embedding_type must be one of {', '.join(POSITION_EMBEDDING_TYPES)}",
            position_embedding_type=self.position_embedding_type,
        )
        require(
            self.is_decoder or not self.add_cross_attention,
            "add_cross_attention needs is_decoder=True",
            add_cross_attention=self.add_cross_attention,
            is_decoder=self.is_decoder,
        )
