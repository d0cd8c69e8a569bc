"""Settings of RoBERTa and XLM-R."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from longspan.configuration import require
from longspan.models.bert.config import BertConfig
from longspan.ranges import Count, TokenId


class RobertaConfig(BertConfig):
    """Settings of a RoBERTa model: those of BERT, with positions that begin behind the padding token's id.

    Args:
        **kwargs: Settings of `BertConfig`. `max_position_embeddings` counts `pad_token_id + 1` rows that no token uses:
            512 tokens need 514.

    Raises:
        ConfigError: a value breaks a rule.

    Example:
        >>> from longspan import RobertaConfig
        >>> RobertaConfig(max_position_embeddings=514).max_length
        512
    """

    model_type: ClassVar[str] = "roberta"

    vocab_size: Count = 50265
    pad_token_id: TokenId | None = 1
    bos_token_id: TokenId | None = 0
    eos_token_id: TokenId | list[TokenId] | None = 2

    @property
    def max_length(self) -> int:
        """Longest input, in tokens."""
        return self.max_position_embeddings - (self.pad_token_id or 0) - 1

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **overrides: Any) -> Any:
        """As `PretrainedConfig.from_dict`; the classes of RoBERTa read a configuration of XLM-R as such."""
        if cls is RobertaConfig and config_dict.get("model_type") == XLMRobertaConfig.model_type:
            return XLMRobertaConfig.from_dict(config_dict, **overrides)
        return super().from_dict(config_dict, **overrides)

    def validate(self) -> None:
        """Check the rules of RoBERTa's settings."""
        super().validate()
        require(
            self.pad_token_id is not None and self.max_length > 0,
            "pad_token_id must be given and lie below max_position_embeddings - 1: positions begin behind it",
            pad_token_id=self.pad_token_id,
            max_position_embeddings=self.max_position_embeddings,
        )


class XLMRobertaConfig(RobertaConfig):
    """Settings of an XLM-R model: RoBERTa with a vocabulary of a hundred languages.

    Args:
        **kwargs: Settings of `RobertaConfig`.

    Example:
        >>> from longspan import XLMRobertaConfig
        >>> XLMRobertaConfig().model_type
        'xlm-roberta'
    """

    model_type: ClassVar[str] = "xlm-roberta"

    vocab_size: Count = 30522
