"""Settings of MEGA."""

from __future__ import annotations

from typing import ClassVar

from longspan.configuration import PretrainedConfig, require
from longspan.ranges import Count, Deviation, FewCount, Number, Probability, TokenId

NORMALIZATION_TYPES = ("scalenorm", "layernorm", "rmsnorm", "batchnorm", "syncbatchnorm")
ACTIVATIONS = ("silu", "relu", "linear", "gelu", "gelu_accurate")
ATTENTION_ACTIVATIONS = ("softmax", "laplace", "relu2")
RELATIVE_POSITIONAL_BIASES = ("rotary", "simple")


class MegaConfig(PretrainedConfig):
    """Settings of a MEGA model; the defaults are close to `mnaylor/mega-base-wikitext`.

    A decoder needs `is_decoder=True` and `bidirectional=False`; a decoder that attends to an encoder
    `add_cross_attention=True` as well. The models check that, so that a configuration can be changed step by step.

    Args:
        vocab_size: Number of tokens in the vocabulary.
        hidden_size: Width of the hidden states.
        num_hidden_layers: Number of layers.
        intermediate_size: Width of the attention's values.
        ema_projection_size: Averages that the damped EMA keeps per channel.
        bidirectional: The EMA runs in both directions; must be False in a decoder.
        shared_representation_size: Width of queries and keys, which share one projection.
        use_chunking: Attend within chunks of `chunk_size` tokens: time and memory linear in the length.
        chunk_size: Tokens of a chunk; −1 for none. Inputs need not be a multiple of it.
        truncation: Tokens that the EMA sees; None for all.
        normalize_before_mega: Normalise before (True) or after (False) the gated attention.
        normalization_type: `"scalenorm"`, `"layernorm"`, `"rmsnorm"`, `"batchnorm"` or `"syncbatchnorm"`.
        norm_affine: The normalisations have learned scales (and shifts).
        activation: Activation of the layers: `"silu"`, `"relu"`, `"linear"`, `"gelu"` or `"gelu_accurate"`.
        attention_activation: `"softmax"`, `"laplace"` or `"relu2"`.
        dropout_prob: Dropout of EMA, attention and feed-forward outputs.
        hidden_dropout_prob: Dropout of the attention's values and, unless `classifier_dropout` is set, of heads.
        attention_probs_dropout_prob: Dropout of the attention weights.
        use_feature_dropout: Drop whole features of a sequence rather than single numbers.
        use_normalized_ffn: Have a feed-forward layer after the attention.
        nffn_hidden_size: Width of that feed-forward layer.
        normalize_before_ffn: Normalise before (True) or after (False) it.
        nffn_activation_dropout_prob: Dropout after its activation.
        max_positions: Longest input of the `"simple"` bias, in tokens (with `chunk_size`, that is the longest); a
            `"rotary"` bias has no limit.
        add_token_type_embeddings: Have embeddings of `token_type_ids`.
        type_vocab_size: Number of token types.
        initializer_range: Standard deviation of the normal initialiser.
        ema_delta_alpha_range: Standard deviation of the initial damping and decay logits of the EMA.
        ema_beta_range: Standard deviation of its expansion, around 1, −1, 1, −1, ...
        ema_gamma_omega_range: Standard deviation of its projection and residual weights.
        pad_token_id: Id of the padding token.
        bos_token_id: Id of the beginning-of-sequence token.
        eos_token_id: Id of the end-of-sequence token.
        relative_positional_bias: `"rotary"` or `"simple"`.
        classifier_dropout: Dropout before a classification head; None takes `hidden_dropout_prob`.
        use_cache: Return states for faster decoding (a decoder only).
        add_lm_hidden_dense_layer: Have a dense layer with tanh before the language modelling head.
        num_attention_heads: Always 1: MEGA's attention has one head. The reference's files hold it.
        **kwargs: Settings of `PretrainedConfig`, among them `is_decoder` and `add_cross_attention`.

    Raises:
        ConfigError: a value breaks a rule.

    Example:
        >>> from longspan import MegaConfig
        >>> MegaConfig(use_chunking=True, chunk_size=128).relative_positional_bias
        'rotary'
    """

    model_type: ClassVar[str] = "mega"
    #: MEGA's attention has one head; not a setting, but asked for by code that handles every family

    vocab_size: Count = 30522
    hidden_size: Count = 128
    num_hidden_layers: FewCount = 4
    intermediate_size: Count = 256
    ema_projection_size: Count = 16
    bidirectional: bool = True
    shared_representation_size: Count = 64
    use_chunking: bool = False
    chunk_size: Number = -1
    truncation: Number | None = None
    normalize_before_mega: bool = True
    normalization_type: str = "scalenorm"
    norm_affine: bool = True
    activation: str = "silu"
    attention_activation: str = "softmax"
    dropout_prob: Probability = 0.1
    hidden_dropout_prob: Probability = 0.1
    attention_probs_dropout_prob: Probability = 0.1
    use_feature_dropout: bool = False
    use_normalized_ffn: bool = True
    nffn_hidden_size: Count = 256
    normalize_before_ffn: bool = True
    nffn_activation_dropout_prob: Probability = 0.1
    max_positions: Count = 2048
    add_token_type_embeddings: bool = False
    type_vocab_size: Count = 2
    initializer_range: Deviation = 0.02
    ema_delta_alpha_range: Deviation = 0.2
    ema_beta_range: Deviation = 0.02
    ema_gamma_omega_range: Deviation = 1.0
    pad_token_id: TokenId | None = 1
    bos_token_id: TokenId | None = 0
    eos_token_id: TokenId | list[TokenId] | None = 2
    relative_positional_bias: str = "rotary"
    classifier_dropout: Probability | None = None
    use_cache: bool = True
    add_lm_hidden_dense_layer: bool = True
    num_attention_heads: FewCount = 1

    @property
    def bias_positions(self) -> int:
        """Tokens that the `"simple"` bias reaches: `chunk_size` if that is set, else `max_positions`."""
        return self.max_positions if self.chunk_size < 0 else self.chunk_size

    def validate(self) -> None:
        """Check the rules of MEGA's settings."""
        super().validate()
        require(
            self.num_attention_heads == 1, "num_attention_heads must be 1", num_attention_heads=self.num_attention_heads
        )
        self._validate_choices()
        self._validate_positions()

    def _validate_choices(self) -> None:
        for name, choices in (
            ("normalization_type", NORMALIZATION_TYPES),
            ("activation", ACTIVATIONS),
            ("attention_activation", ATTENTION_ACTIVATIONS),
            ("relative_positional_bias", RELATIVE_POSITIONAL_BIASES),
        ):
            value = getattr(self, name)
            require(value in choices, f"{name} must be one of {', '.join(choices)}", **{name: value})

    def _validate_positions(self) -> None:
        require(
            not self.use_chunking or self.chunk_size > 0,
            "use_chunking needs a positive chunk_size",
            use_chunking=self.use_chunking,
            chunk_size=self.chunk_size,
        )
        require(
            self.truncation is None or self.truncation > 0,
            "truncation must be None or positive",
            truncation=self.truncation,
        )
        require(
            self.relative_positional_bias != "rotary" or self.shared_representation_size % 2 == 0,
            "a rotary bias needs an even shared_representation_size",
            shared_representation_size=self.shared_representation_size,
        )
        require(
            self.relative_positional_bias != "simple" or 0 < self.bias_positions <= self.max_positions,
            "a simple bias needs 0 < chunk_size <= max_positions (or chunk_size < 0 for no chunks)",
            chunk_size=self.chunk_size,
            max_positions=self.max_positions,
        )
