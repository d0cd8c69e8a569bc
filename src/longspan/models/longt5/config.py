"""Settings of LongT5."""

from __future__ import annotations

from typing import ClassVar

from longspan.configuration import PretrainedConfig, require
from longspan.ranges import Count, Deviation, Epsilon, FewCount, Number, Probability, TokenId

ENCODER_ATTENTION_TYPES = ("local", "transient-global")


class LongT5Config(PretrainedConfig):
    """Settings of a LongT5 model; the defaults are those of the reference.

    Args:
        vocab_size: Number of tokens in the vocabulary.
        d_model: Width of the hidden states.
        d_kv: Size of an attention head.
        d_ff: Width of the feed-forward layers.
        num_layers: Number of encoder layers.
        num_decoder_layers: Number of decoder layers; None takes `num_layers`.
        num_heads: Attention heads of each layer.
        local_radius: Tokens that an encoder token sees on either side.
        global_block_size: Tokens that one summary stands for, in transient-global attention.
        relative_attention_num_buckets: Buckets of relative positions.
        relative_attention_max_distance: Distance from which all positions share the last bucket.
        dropout_rate: Dropout of embeddings, attention weights and sub-layer outputs.
        layer_norm_epsilon: Epsilon of the root-mean-square norms.
        initializer_factor: Factor of all initial standard deviations.
        feed_forward_proj: Activation of the feed-forward layers, `"relu"`, or with a gate, `"gated-gelu"` (which is
            the tanh form of GELU, as in T5 1.1).
        encoder_attention_type: `"local"` or `"transient-global"`.
        use_cache: Return keys and values of the decoder.
        is_gated_act: The feed-forward layers have a gate; follows from `feed_forward_proj`.
        dense_act_fn: Name of their activation; follows from `feed_forward_proj`.
        **kwargs: Settings of `PretrainedConfig`.

    Raises:
        ConfigError: a value breaks a rule.

    Example:
        >>> from longspan import LongT5Config
        >>> config = LongT5Config(num_layers=3, feed_forward_proj="gated-gelu")
        >>> config.num_decoder_layers, config.is_gated_act, config.dense_act_fn
        (3, True, 'gelu_new')
    """

    model_type: ClassVar[str] = "longt5"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    }

    vocab_size: Count = 32128
    d_model: Count = 512
    d_kv: Count = 64
    d_ff: Count = 2048
    num_layers: FewCount = 6
    num_decoder_layers: FewCount | None = None
    num_heads: FewCount = 8
    local_radius: Count = 127
    global_block_size: Count = 16
    relative_attention_num_buckets: Number = 32
    relative_attention_max_distance: Number = 128
    dropout_rate: Probability = 0.1
    layer_norm_epsilon: Epsilon = 1e-6
    initializer_factor: Deviation = 1.0
    feed_forward_proj: str = "relu"
    is_encoder_decoder: bool = True
    encoder_attention_type: str = "local"
    use_cache: bool = True
    pad_token_id: TokenId | None = 0
    eos_token_id: TokenId | list[TokenId] | None = 1
    is_gated_act: bool | None = None
    dense_act_fn: str | None = None

    def validate(self) -> None:
        """Check the rules of LongT5's settings, and fill in those that follow from others."""
        super().validate()
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_layers
        require(
            self.encoder_attention_type in ENCODER_ATTENTION_TYPES,
            f"encoder_attention_type must be one of {', '.join(ENCODER_ATTENTION_TYPES)}",
            encoder_attention_type=self.encoder_attention_type,
        )
        self._validate_buckets()
        self._derive_activation()

    def _validate_buckets(self) -> None:
        buckets, distance = self.relative_attention_num_buckets, self.relative_attention_max_distance
        require(
            buckets >= 4 and buckets % 2 == 0,
            "relative_attention_num_buckets must be even and at least 4: one half lies on either side, and half of "
            "that is exact",
            relative_attention_num_buckets=buckets,
        )
        require(
            distance > buckets // 2,
            "relative_attention_max_distance must exceed half of relative_attention_num_buckets, the exact distances",
            relative_attention_max_distance=distance,
            relative_attention_num_buckets=buckets,
        )

    def _derive_activation(self) -> None:
        *gate, activation = self.feed_forward_proj.split("-")
        require(
            gate in ([], ["gated"]) and activation != "",
            "feed_forward_proj must be the name of an activation, or 'gated-' and that name",
            feed_forward_proj=self.feed_forward_proj,
        )
        if self.is_gated_act is None:
            self.is_gated_act = bool(gate)
        if self.dense_act_fn is None:
            self.dense_act_fn = "gelu_new" if self.feed_forward_proj == "gated-gelu" else activation
