"""RoBERTa and XLM-R in Keras 3 (Liu et al., 2019, https://arxiv.org/abs/1907.11692; Conneau et al., 2020).

BERT's layers and task classes with other positions and heads; XLM-R's differ in the configuration alone.
Axes: B batch, S tokens, H width, N classes, C choices, V vocabulary.
"""

from __future__ import annotations

from typing import Any, ClassVar

from keras import ops

from longspan.checkpoints.names import ParameterNames
from longspan.models.bert.keras_backbone import TFBertModel, TFBertPreTrainedModel
from longspan.models.bert.keras_model import (
    TFBertForMaskedLM,
    TFBertForMultipleChoice,
    TFBertForQuestionAnswering,
    TFBertForTokenClassification,
    TFBertLMHeadModel,
    TFBertTask,
    TFBertWordTask,
)
from longspan.models.roberta.config import RobertaConfig, XLMRobertaConfig
from longspan.models.roberta.names import NAMES
from longspan.nn.keras.base import register
from longspan.nn.keras.checks import Size, input_shape
from longspan.nn.keras.heads import FirstTokenClassificationHead, LanguageModelHead
from longspan.nn.keras.outputs import TFModelOutput, TFSequenceClassifierOutput
from longspan.nn.keras.post_norm import positions_behind_padding
from longspan.nn.keras.tasks import Inputs, Scores, SequenceClassificationModel
from longspan.ops.keras import Tensor


class TFRobertaPreTrainedModel(TFBertPreTrainedModel):
    """What all RoBERTa classes share."""

    config_class: ClassVar[type[RobertaConfig]] = RobertaConfig
    base_model_prefix: ClassVar[str] = "roberta"
    names: ClassVar[ParameterNames] = NAMES
    config: RobertaConfig


@register
class TFRobertaModel(TFRobertaPreTrainedModel, TFBertModel):
    """RoBERTa without a head: a `TFBertModel` whose positions count the tokens that are not padding.

    The first token has the position `pad_token_id + 1`, padding has `pad_token_id`; given `position_ids` are taken as
    they are. Arguments of a call are those of `TFBertModel.call`.

    Args:
        config: Settings; the weights are random.
        add_pooling_layer: Have the pooler, which gives `pooler_output`.
        **kwargs: `name`, `dtype`, `trainable`.

    Example:
        >>> import numpy as np
        >>> from longspan import RobertaConfig, TFRobertaModel
        >>> model = TFRobertaModel(RobertaConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
        >>> tuple(model(np.array([[0, 31414, 2]])).last_hidden_state.shape)
        (1, 3, 32)
    """

    @property
    def position_padding(self) -> int | None:
        """The id of the padding token; its row learns nothing."""
        return self.config.pad_token_id

    def default_positions(self, input_ids: Tensor | None, length: Size, past_length: Size) -> tuple[Tensor, list[Any]]:
        """Positions behind the padding id: of the tokens that are not padding, or of all embeddings."""
        return positions_behind_padding(self.config, input_ids, length=length, past_length=past_length)


class TFRobertaTask(TFRobertaPreTrainedModel, TFBertTask):
    """A RoBERTa with a head."""

    base_class = TFRobertaModel


class TFRobertaWordTask(TFRobertaTask, TFBertWordTask):
    """A RoBERTa that scores the words of its vocabulary at each token."""

    def make_head(self) -> None:
        """Make the layers of the head."""
        self.lm_head = LanguageModelHead(self.config, dtype=self.dtype_policy, name="lm_head")

    def head(self, outputs: TFModelOutput, training: bool | None) -> Scores:
        """Scores of the vocabulary, (B, S, V)."""
        table = self.get_input_embeddings()
        return {"logits": self.lm_head(outputs["last_hidden_state"], word_embeddings=table)}

    def resize_output_embeddings(self, size: int, *, mean_resizing: bool) -> None:
        """Give the projection onto the vocabulary `size` outputs."""
        self.lm_head.resize(size, mean_resizing=mean_resizing)


@register
class TFRobertaForMaskedLM(TFRobertaWordTask, TFBertForMaskedLM):
    """RoBERTa that predicts masked tokens; see `TFBertForMaskedLM`.

    Example:
        >>> import numpy as np
        >>> from longspan import RobertaConfig, TFRobertaForMaskedLM
        >>> config = RobertaConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        >>> tuple(TFRobertaForMaskedLM(config)(np.array([[0, 50264, 2]])).logits.shape)
        (1, 3, 50265)
    """


@register
class TFRobertaForCausalLM(TFRobertaWordTask, TFBertLMHeadModel):
    """RoBERTa that predicts the next token; set `config.is_decoder=True`. See `TFBertLMHeadModel`.

    Example:
        >>> import numpy as np
        >>> from longspan import RobertaConfig, TFRobertaForCausalLM
        >>> config = RobertaConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, is_decoder=True)
        >>> tuple(TFRobertaForCausalLM(config)(np.array([[0, 31414]])).logits.shape)
        (1, 2, 50265)
    """

    @property
    def first_position(self) -> int:
        """Position of a row's first token: behind that of padding."""
        return (self.config.pad_token_id or 0) + 1

    def max_positions(self) -> int:
        """Tokens that have a position embedding."""
        return self.config.max_length


@register
class TFRobertaForSequenceClassification(SequenceClassificationModel, TFRobertaTask):
    """RoBERTa with a classification or regression head on the first token.

    Labels and output as of `TFBertForSequenceClassification`.

    Example:
        >>> import numpy as np
        >>> from longspan import RobertaConfig, TFRobertaForSequenceClassification
        >>> config = RobertaConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, num_labels=3)
        >>> tuple(TFRobertaForSequenceClassification(config)(np.array([[0, 31414, 2]])).logits.shape)
        (1, 3)
    """

    output_class = TFSequenceClassifierOutput

    def make_head(self) -> None:
        """Make the layers of the head."""
        rate, policy = self.make_dropout().rate, self.dtype_policy
        self.classifier = FirstTokenClassificationHead(self.config, dropout=rate, dtype=policy, name="classifier")

    def encode(self, inputs: Inputs, training: bool | None) -> Any:
        """As of every class; the head reads the first token also where that is padding."""
        shape = input_shape(inputs.get("input_ids"), inputs.get("inputs_embeds"))
        first = ops.broadcast_to(ops.arange(shape[1]) == 0, shape)
        return super().encode({**inputs, "padding_states": first}, training)

    def head(self, outputs: TFModelOutput, training: bool | None) -> Scores:
        """Scores of the classes, (B, N)."""
        return {"logits": self.classifier(outputs["last_hidden_state"], training=training)}


@register
class TFRobertaForTokenClassification(TFRobertaTask, TFBertForTokenClassification):
    """RoBERTa with a classification head on every token; see `TFBertForTokenClassification`.

    Example:
        >>> import numpy as np
        >>> from longspan import RobertaConfig, TFRobertaForTokenClassification
        >>> config = RobertaConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, num_labels=5)
        >>> tuple(TFRobertaForTokenClassification(config)(np.array([[0, 31414, 2]])).logits.shape)
        (1, 3, 5)
    """


@register
class TFRobertaForQuestionAnswering(TFRobertaTask, TFBertForQuestionAnswering):
    """RoBERTa that scores each token as start and as end of an answer; see `TFBertForQuestionAnswering`.

    Example:
        >>> import numpy as np
        >>> from longspan import RobertaConfig, TFRobertaForQuestionAnswering
        >>> config = RobertaConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        >>> tuple(TFRobertaForQuestionAnswering(config)(np.array([[0, 31414, 2]])).start_logits.shape)
        (1, 3)
    """


@register
class TFRobertaForMultipleChoice(TFRobertaTask, TFBertForMultipleChoice):
    """RoBERTa that scores each of several choices; see `TFBertForMultipleChoice`.

    Example:
        >>> import numpy as np
        >>> from longspan import RobertaConfig, TFRobertaForMultipleChoice
        >>> config = RobertaConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        >>> tuple(TFRobertaForMultipleChoice(config)(np.array([[[0, 31414, 2], [0, 812, 2]]])).logits.shape)
        (1, 2)
    """


@register
class TFXLMRobertaModel(TFRobertaModel):
    """XLM-R without a head: a `TFRobertaModel`.

    Args:
        config: Settings; the weights are random.
        add_pooling_layer: Have the pooler, which gives `pooler_output`.
        **kwargs: `name`, `dtype`, `trainable`.

    Example:
        >>> from longspan import TFXLMRobertaModel
        >>> TFXLMRobertaModel.config_class.model_type
        'xlm-roberta'
    """

    config_class = XLMRobertaConfig


@register
class TFXLMRobertaForMaskedLM(TFRobertaForMaskedLM):
    """XLM-R that predicts masked tokens: a `TFRobertaForMaskedLM`.

    Example:
        >>> from longspan import TFXLMRobertaForMaskedLM
        >>> TFXLMRobertaForMaskedLM.config_class.model_type
        'xlm-roberta'
    """

    config_class = XLMRobertaConfig


@register
class TFXLMRobertaForCausalLM(TFRobertaForCausalLM):
    """XLM-R that predicts the next token; set `config.is_decoder=True`: a `TFRobertaForCausalLM`.

    Example:
        >>> from longspan import TFXLMRobertaForCausalLM
        >>> TFXLMRobertaForCausalLM.config_class.model_type
        'xlm-roberta'
    """

    config_class = XLMRobertaConfig


@register
class TFXLMRobertaForSequenceClassification(TFRobertaForSequenceClassification):
    """XLM-R with a classification or regression head on the first token: a `TFRobertaForSequenceClassification`.

    Example:
        >>> from longspan import TFXLMRobertaForSequenceClassification
        >>> TFXLMRobertaForSequenceClassification.config_class.model_type
        'xlm-roberta'
    """

    config_class = XLMRobertaConfig


@register
class TFXLMRobertaForTokenClassification(TFRobertaForTokenClassification):
    """XLM-R with a classification head on every token: a `TFRobertaForTokenClassification`.

    Example:
        >>> from longspan import TFXLMRobertaForTokenClassification
        >>> TFXLMRobertaForTokenClassification.config_class.model_type
        'xlm-roberta'
    """

    config_class = XLMRobertaConfig


@register
class TFXLMRobertaForQuestionAnswering(TFRobertaForQuestionAnswering):
    """XLM-R that scores each token as start and as end of an answer: a `TFRobertaForQuestionAnswering`.

    Example:
        >>> from longspan import TFXLMRobertaForQuestionAnswering
        >>> TFXLMRobertaForQuestionAnswering.config_class.model_type
        'xlm-roberta'
    """

    config_class = XLMRobertaConfig


@register
class TFXLMRobertaForMultipleChoice(TFRobertaForMultipleChoice):
    """XLM-R that scores each of several choices: a `TFRobertaForMultipleChoice`.

    Example:
        >>> from longspan import TFXLMRobertaForMultipleChoice
        >>> TFXLMRobertaForMultipleChoice.config_class.model_type
        'xlm-roberta'
    """

    config_class = XLMRobertaConfig
