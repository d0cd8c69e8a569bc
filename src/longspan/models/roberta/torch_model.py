"""RoBERTa and XLM-R in PyTorch (Liu et al., 2019, https://arxiv.org/abs/1907.11692; Conneau et al., 2020).

BERT's layers and task classes with other positions and heads. XLM-R has the same classes under names of its own.
Axes: B batch, S tokens, H width, N classes, C choices, V vocabulary.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from longspan.checkpoints.names import ParameterNames
from longspan.models.bert.torch_backbone import BertModel, BertPreTrainedModel
from longspan.models.bert.torch_model import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForTokenClassification,
    BertLabelTask,
    BertLMHeadModel,
    BertTask,
    BertWordTask,
)
from longspan.models.roberta.config import RobertaConfig, XLMRobertaConfig
from longspan.models.roberta.names import NAMES
from longspan.nn.torch.checks import check_length, values_visible
from longspan.nn.torch.heads import LanguageModelHead
from longspan.nn.torch.tasks import FirstTokenClassificationModel, MultipleChoiceModel


class RobertaPreTrainedModel(BertPreTrainedModel):
    """What all RoBERTa classes share."""

    config_class: ClassVar[type[RobertaConfig]] = RobertaConfig
    base_model_prefix: ClassVar[str] = "roberta"
    names: ClassVar[ParameterNames] = NAMES
    config: RobertaConfig


class RobertaModel(RobertaPreTrainedModel, BertModel):
    """RoBERTa without a head: a `BertModel` whose positions count the tokens that are not padding.

    The first token has the position `pad_token_id + 1`, padding has `pad_token_id`; given `position_ids` are taken as
    they are. Arguments of `forward` are those of `BertModel.forward`.

    Args:
        config: Settings; the weights are random.
        add_pooling_layer: Have the pooler, which gives `pooler_output`.

    Example:
        >>> import torch
        >>> from longspan import RobertaConfig, RobertaModel
        >>> model = RobertaModel(RobertaConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
        >>> model(torch.tensor([[0, 31414, 2]])).last_hidden_state.shape
        torch.Size([1, 3, 32])
    """

    def __init__(self, config: RobertaConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config, add_pooling_layer)
        self.embeddings.position_embeddings.padding_idx = config.pad_token_id  # padding learns no position

    def default_positions(self, input_ids: Tensor | None, cache_position: Tensor) -> Tensor:
        """Positions behind the padding id: of the tokens that are not padding, or of all embeddings, (B, S)."""
        assert self.config.pad_token_id is not None
        padding = self.config.pad_token_id
        if input_ids is None:
            positions = cache_position[None] + padding + 1
        else:
            is_token = input_ids != padding
            positions = (is_token.cumsum(dim=1) + cache_position[:1]) * is_token + padding
        if values_visible(positions) and positions.numel() > 0:
            limit_name = "max_position_embeddings - pad_token_id - 1"
            check_length(int(positions.amax()) - padding, self.config.max_length, limit_name=limit_name)
        return positions


class RobertaTask(RobertaPreTrainedModel, BertTask):
    """A RoBERTa with a head."""

    backbone: ClassVar[type[BertModel]] = RobertaModel
    roberta: RobertaModel


class RobertaWordTask(RobertaTask, BertWordTask):
    """A RoBERTa that scores the words of its vocabulary at each token."""

    output_embeddings = "lm_head.decoder"

    def add_head(self) -> None:
        """Make the head."""
        config = self.config
        self.lm_head = LanguageModelHead(
            hidden_size=config.hidden_size, vocab_size=config.vocab_size, layer_norm_eps=config.layer_norm_eps
        )

    def head(self, outputs: Any) -> Tensor:
        """Scores of the vocabulary, (B, S, V)."""
        return self.lm_head(outputs.last_hidden_state)


class RobertaForMaskedLM(RobertaWordTask, BertForMaskedLM):
    """RoBERTa that predicts masked tokens.

    Example:
        >>> import torch
        >>> from longspan import RobertaConfig, RobertaForMaskedLM
        >>> model = RobertaForMaskedLM(RobertaConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
        >>> model(torch.tensor([[0, 50264, 2]])).logits.shape
        torch.Size([1, 3, 50265])
    """


class RobertaForCausalLM(RobertaWordTask, BertLMHeadModel):
    """RoBERTa that predicts the next token; set `config.is_decoder=True`.

    Example:
        >>> import torch
        >>> from longspan import RobertaConfig, RobertaForCausalLM
        >>> config = RobertaConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, is_decoder=True)
        >>> model = RobertaForCausalLM(config)
        >>> model.generate(torch.tensor([[0, 31414]]), max_new_tokens=2, min_new_tokens=2).shape
        torch.Size([1, 4])
    """

    def max_positions(self) -> int:
        """Tokens that have a position embedding."""
        return self.config.max_length

    def positions_of(self, mask: Tensor) -> Tensor:
        """Positions of a prompt's tokens, (B, S), from its mask: they begin behind the padding id."""
        return super().positions_of(mask) + (self.config.pad_token_id or 0) + 1


class RobertaForSequenceClassification(FirstTokenClassificationModel, RobertaTask, BertLabelTask):
    """RoBERTa with a classification or regression head on the first token.

    Labels are class indices (B,), regression targets (B,) or (B, N), or multi-hot floats (B, N).

    Example:
        >>> import torch
        >>> from longspan import RobertaConfig, RobertaForSequenceClassification
        >>> config = RobertaConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, num_labels=3)
        >>> RobertaForSequenceClassification(config)(torch.tensor([[0, 31414, 2]])).logits.shape
        torch.Size([1, 3])
    """

    def encode(self, inputs: dict[str, Any]) -> Any:
        """As `TaskModel.encode`; the head reads the first token also where that is padding."""
        reads_padding = inputs["padding_states"] or self.roberta.first_is_padding(inputs["attention_mask"])
        return super().encode({**inputs, "padding_states": reads_padding})


class RobertaForTokenClassification(RobertaTask, BertForTokenClassification):
    """RoBERTa with a classification head on every token; labels are class indices, -100 is ignored, (B, S).

    Example:
        >>> import torch
        >>> from longspan import RobertaConfig, RobertaForTokenClassification
        >>> config = RobertaConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, num_labels=5)
        >>> RobertaForTokenClassification(config)(torch.tensor([[0, 31414, 2]])).logits.shape
        torch.Size([1, 3, 5])
    """


class RobertaForQuestionAnswering(RobertaTask, BertForQuestionAnswering):
    """RoBERTa that scores each token as start and as end of an answer.

    Example:
        >>> import torch
        >>> from longspan import RobertaConfig, RobertaForQuestionAnswering
        >>> config = RobertaConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        >>> RobertaForQuestionAnswering(config)(torch.tensor([[0, 31414, 2]])).start_logits.shape
        torch.Size([1, 3])
    """


class RobertaForMultipleChoice(MultipleChoiceModel, RobertaTask):
    """RoBERTa that scores each of several choices from its pooled first token.

    Example:
        >>> import torch
        >>> from longspan import RobertaConfig, RobertaForMultipleChoice
        >>> config = RobertaConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        >>> RobertaForMultipleChoice(config)(torch.tensor([[[0, 31414, 2], [0, 812, 2]]])).logits.shape
        torch.Size([1, 2])
    """

    @property
    def head_dropout(self) -> float:
        """Probability of the dropout before the head."""
        return self.config.hidden_dropout_prob

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model; inputs as in `BertModel.forward`, each with an axis of choices: (B, C, S).

        Args:
            labels: Index of the correct choice, (B,).
        """
        row = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        return self.run(row, (labels,), output_attentions, output_hidden_states, return_dict)


class XLMRobertaModel(RobertaModel):
    """XLM-R without a head: a `RobertaModel`.

    Args:
        config: Settings; the weights are random.
        add_pooling_layer: Have the pooler, which gives `pooler_output`.

    Example:
        >>> from longspan import XLMRobertaModel
        >>> XLMRobertaModel.config_class.model_type
        'xlm-roberta'
    """

    config_class = XLMRobertaConfig


class XLMRobertaForMaskedLM(RobertaForMaskedLM):
    """XLM-R that predicts masked tokens: a `RobertaForMaskedLM`.

    Example:
        >>> from longspan import XLMRobertaForMaskedLM
        >>> XLMRobertaForMaskedLM.config_class.model_type
        'xlm-roberta'
    """

    config_class = XLMRobertaConfig


class XLMRobertaForCausalLM(RobertaForCausalLM):
    """XLM-R that predicts the next token; set `config.is_decoder=True`: a `RobertaForCausalLM`.

    Example:
        >>> from longspan import XLMRobertaForCausalLM
        >>> XLMRobertaForCausalLM.config_class.model_type
        'xlm-roberta'
    """

    config_class = XLMRobertaConfig


class XLMRobertaForSequenceClassification(RobertaForSequenceClassification):
    """XLM-R with a classification or regression head on the first token: a `RobertaForSequenceClassification`.

    Example:
        >>> from longspan import XLMRobertaForSequenceClassification
        >>> XLMRobertaForSequenceClassification.config_class.model_type
        'xlm-roberta'
    """

    config_class = XLMRobertaConfig


class XLMRobertaForTokenClassification(RobertaForTokenClassification):
    """XLM-R with a classification head on every token: a `RobertaForTokenClassification`.

    Example:
        >>> from longspan import XLMRobertaForTokenClassification
        >>> XLMRobertaForTokenClassification.config_class.model_type
        'xlm-roberta'
    """

    config_class = XLMRobertaConfig


class XLMRobertaForQuestionAnswering(RobertaForQuestionAnswering):
    """XLM-R that scores each token as start and as end of an answer: a `RobertaForQuestionAnswering`.

    Example:
        >>> from longspan import XLMRobertaForQuestionAnswering
        >>> XLMRobertaForQuestionAnswering.config_class.model_type
        'xlm-roberta'
    """

    config_class = XLMRobertaConfig


class XLMRobertaForMultipleChoice(RobertaForMultipleChoice):
    """XLM-R that scores each of several choices: a `RobertaForMultipleChoice`.

    Example:
        >>> from longspan import XLMRobertaForMultipleChoice
        >>> XLMRobertaForMultipleChoice.config_class.model_type
        'xlm-roberta'
    """

    config_class = XLMRobertaConfig
