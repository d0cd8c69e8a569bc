"""Settings of DiffLlama."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, ClassVar

from longspan.configuration import PretrainedConfig, require
from longspan.ops.rotary_tables import normalise, rotary_table
from longspan.ranges import Count, Deviation, Epsilon, FewCount, Number, PositiveNumber, Probability, TokenId

logger = logging.getLogger("longspan")


@functools.cache
def _warn_of_key_without_effect(kind: str) -> None:
    """Say once that a documented key does nothing."""
    logger.warning(
        "rope_scaling['original_max_position_embeddings'] has no effect for rope_type %r, as in the reference: scaling "
        "begins behind max_position_embeddings",
        kind,
    )


class DiffLlamaConfig(PretrainedConfig):
    """Settings of a DiffLlama model; the defaults resemble `kajuma/DiffLlama-0.3B-handcut`.

    Args:
        vocab_size: Number of tokens in the vocabulary.
        hidden_size: Width of the hidden states.
        intermediate_size: Width of the feed-forward layers.
        num_hidden_layers: Number of layers.
        num_attention_heads: Softmax maps of each layer, an even number: maps j and j + half are subtracted.
        num_key_value_heads: Key/value heads of each layer; must divide `num_attention_heads`. Default: as many.
        hidden_act: Activation of the feed-forward layers, a name or a function.
        max_position_embeddings: Longest input that the model is meant for. Longer ones run; `dynamic` and `longrope`
            scaling change there.
        initializer_range: Standard deviation of the normal initialiser.
        rms_norm_eps: Epsilon of the root-mean-square norms.
        use_cache: Return keys and values for faster decoding.
        pad_token_id: Id of the padding token.
        bos_token_id: Id of the beginning-of-sequence token.
        eos_token_id: Id of the end-of-sequence token.
        tie_word_embeddings: Share the input embedding with the output projection.
        rope_theta: Base θ of the rotary position embeddings.
        rope_scaling: None, or a dict with `rope_type` (or the older `type`) and the keys of that kind:

            - `"default"`: no other key.
            - `"linear"`: `factor`.
            - `"dynamic"`: `factor`; `original_max_position_embeddings` is kept but has no effect, as in the reference:
              scaling begins behind `max_position_embeddings`.
            - `"yarn"`: `factor`; optional `attention_factor`, `beta_fast` (32), `beta_slow` (1),
              `original_max_position_embeddings`, `mscale`, `mscale_all_dim`, `truncate` (True).
            - `"longrope"`: `short_factor` and `long_factor`, lists of `head_dim / 2` numbers; optional `factor`,
              `attention_factor`. The long list holds behind `max_position_embeddings`, or behind
              `original_max_position_embeddings` given *beside* `rope_scaling`; inside it has no effect, as in the
              reference.
            - `"llama3"`, also spelled `"diffllama3"`: `factor`, `low_freq_factor`, `high_freq_factor`,
              `original_max_position_embeddings`.
        attention_bias: Have biases in the query, key, value and output projections.
        attention_dropout: Dropout of the attention maps.
        lambda_std_dev: Standard deviation of the initial λ vectors.
        head_dim: Size of a head, an even number. Default: `hidden_size // num_attention_heads`.
        **kwargs: Settings of `PretrainedConfig`.

    Raises:
        ConfigError: a value breaks a rule.

    Example:
        >>> from longspan import DiffLlamaConfig
        >>> config = DiffLlamaConfig(num_attention_heads=16, rope_scaling={"type": "linear", "factor": 2})
        >>> config.num_key_value_heads, config.head_dim, config.rope_scaling["rope_type"]
        (16, 128, 'linear')
    """

    model_type: ClassVar[str] = "diffllama"
    attribute_map: ClassVar[dict[str, str]] = {
        "n_positions": "max_position_embeddings",
        "n_layers": "num_hidden_layers",
    }

    vocab_size: Count = 32000
    hidden_size: Count = 2048
    intermediate_size: Count = 8192
    num_hidden_layers: FewCount = 16
    num_attention_heads: FewCount = 32
    num_key_value_heads: Number | None = None
    hidden_act: str | Callable[..., Any] = "silu"
    max_position_embeddings: Count = 2048
    initializer_range: Deviation = 0.02
    rms_norm_eps: Epsilon = 1e-5
    use_cache: bool = True
    pad_token_id: TokenId | None = None
    bos_token_id: TokenId | None = 1
    eos_token_id: TokenId | list[TokenId] | None = 2
    tie_word_embeddings: bool = False
    rope_theta: PositiveNumber = 10000.0
    rope_scaling: dict[str, Any] | None = None
    attention_bias: bool = False
    attention_dropout: Probability = 0.0
    lambda_std_dev: Deviation = 0.1
    head_dim: Number | None = None

    def validate(self) -> None:
        """Check the rules of DiffLlama's settings; fill in those that follow from others."""
        super().validate()
        self._validate_heads()
        self.rope_scaling = normalise(self.rope_scaling, head_dim=self.size_of_heads)
        self._validate_rope()

    @property
    def size_of_heads(self) -> int:
        """`head_dim`, once it is filled in."""
        assert self.head_dim is not None
        return self.head_dim

    @property
    def num_kv_heads(self) -> int:
        """`num_key_value_heads`, once it is filled in."""
        assert self.num_key_value_heads is not None
        return self.num_key_value_heads

    def _validate_heads(self) -> None:
        num_maps = self.num_attention_heads
        require(
            num_maps % 2 == 0,
            "num_attention_heads must be even: maps are subtracted in pairs",
            num_attention_heads=num_maps,
        )
        if self.num_key_value_heads is None:
            self.num_key_value_heads = num_maps
        require(
            self.num_key_value_heads > 0 and num_maps % self.num_key_value_heads == 0,
            "num_key_value_heads must divide num_attention_heads",
            num_key_value_heads=self.num_key_value_heads,
            num_attention_heads=num_maps,
        )
        if self.head_dim is None:
            require(
                self.hidden_size % num_maps == 0,
                "num_attention_heads must divide hidden_size unless head_dim is given",
                hidden_size=self.hidden_size,
                num_attention_heads=num_maps,
            )
            self.head_dim = self.hidden_size // num_maps
        require(
            self.head_dim > 0 and self.head_dim % 2 == 0,
            "head_dim must be positive and even: rotary embeddings turn pairs",
            head_dim=self.head_dim,
        )

    def _validate_rope(self) -> None:
        self.rotary_table()
        scaling = self.rope_scaling or {}
        if scaling.get("rope_type") in ("dynamic", "longrope") and scaling.get("original_max_position_embeddings"):
            _warn_of_key_without_effect(scaling["rope_type"])

    def rotary_table(self) -> Any:
        """The rotary frequencies that these settings describe, a `longspan.ops.rotary_tables.RotaryTable`."""
        return rotary_table(
            self.rope_scaling,
            head_dim=self.size_of_heads,
            theta=self.rope_theta,
            max_position_embeddings=self.max_position_embeddings,
            original_max_position_embeddings=vars(self).get("original_max_position_embeddings"),
        )
