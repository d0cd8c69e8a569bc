"""RoBERTa and XLM-R in Flax (Liu et al., 2019, https://arxiv.org/abs/1907.11692; Conneau et al., 2020).

BERT's layers and task classes with other positions and heads; XLM-R's differ in the configuration alone.
Axes: B batch, S tokens, H width, N classes, V vocabulary.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from jax import Array

from longspan.checkpoints.names import ParameterNames
from longspan.models.bert.flax_backbone import FlaxBertModule, FlaxBertPreTrainedModel
from longspan.models.bert.flax_layers import FlaxBertEmbeddings
from longspan.models.bert.flax_model import (
    FlaxBertForCausalLM,
    FlaxBertForMaskedLM,
    FlaxBertForMultipleChoice,
    FlaxBertForMultipleChoiceModule,
    FlaxBertForQuestionAnswering,
    FlaxBertForQuestionAnsweringModule,
    FlaxBertForTokenClassification,
    FlaxBertForTokenClassificationModule,
    FlaxBertModel,
    FlaxBertTaskModule,
)
from longspan.models.roberta.config import RobertaConfig, XLMRobertaConfig
from longspan.models.roberta.names import NAMES
from longspan.nn.flax.checks import check_length, values_visible
from longspan.nn.flax.heads import LanguageModelHead
from longspan.nn.flax.outputs import (
    FlaxCausalLMOutputWithCrossAttentions,
    FlaxMaskedLMOutput,
    FlaxSequenceClassifierOutput,
)
from longspan.nn.flax.tasks import FirstTokenClassificationModule


class FlaxRobertaEmbeddings(FlaxBertEmbeddings):
    """BERT's, with a position for padding."""

    pads_positions = True


class FlaxRobertaModule(FlaxBertModule):
    """The backbone as a `linen.Module`; `FlaxRobertaModel` wraps it."""

    config: RobertaConfig
    embeddings_class = FlaxRobertaEmbeddings

    def default_positions(self, input_ids: Array, past: Array | int) -> Array:
        """Positions behind the padding id, counted over the tokens that are not padding, (B, S)."""
        padding = self.config.pad_token_id or 0
        is_token = input_ids != padding
        return (is_token.cumsum(axis=1) + past) * is_token + padding


class FlaxRobertaPreTrainedModel(FlaxBertPreTrainedModel):
    """What all Flax RoBERTa classes share."""

    config_class: ClassVar[type[RobertaConfig]] = RobertaConfig
    base_model_prefix: ClassVar[str] = "roberta"
    names: ClassVar[ParameterNames] = NAMES
    config: RobertaConfig

    @property
    def most_tokens(self) -> int:
        """Tokens that have a position embedding."""
        return self.config.max_length

    def _check_length(self, input_ids: Any) -> None:
        if values_visible(input_ids) and input_ids.size > 0:  # padding takes no position
            longest = int((np.asarray(input_ids) != self.config.pad_token_id).sum(axis=-1).max())
            check_length(longest, self.most_tokens, limit_name="max_position_embeddings - pad_token_id - 1")


class FlaxRobertaModel(FlaxRobertaPreTrainedModel, FlaxBertModel):
    """RoBERTa without a head: a `FlaxBertModel` whose positions count the tokens that are not padding.

    The first token has the position `pad_token_id + 1`, padding has `pad_token_id`; given `position_ids` are taken as
    they are. `add_pooling_layer=False` leaves out the pooler, which gives `pooler_output`.

    Example:
        >>> import numpy as np
        >>> from longspan import FlaxRobertaModel, RobertaConfig
        >>> model = FlaxRobertaModel(RobertaConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
        >>> model(np.array([[0, 31414, 2]])).last_hidden_state.shape
        (1, 3, 32)
    """

    module_class = FlaxRobertaModule


class FlaxRobertaTaskModule(FlaxBertTaskModule):
    """A RoBERTa, with a pooler or not, and a head."""

    config: RobertaConfig
    backbone_name = "roberta"
    backbone_class = FlaxRobertaModule


class FlaxRobertaLMModule(FlaxRobertaTaskModule):
    """A RoBERTa that scores the vocabulary at each token."""

    def setup(self) -> None:
        """Make the parts."""
        super().setup()
        self.lm_head = LanguageModelHead(self.config, dtype=self.dtype)

    def head(self, outputs: Any, *, deterministic: bool) -> Array:
        """Scores of the vocabulary, (B, S, V)."""
        return self.lm_head(outputs.last_hidden_state, self.roberta.embeddings.word_embeddings)


class FlaxRobertaForMaskedLMModule(FlaxRobertaLMModule):
    """`FlaxRobertaForMaskedLM` as a `linen.Module`."""

    output_class = FlaxMaskedLMOutput


class FlaxRobertaForMaskedLM(FlaxRobertaPreTrainedModel, FlaxBertForMaskedLM):
    """RoBERTa that predicts masked tokens.

    Calls return `FlaxMaskedLMOutput`.

    Example:
        >>> import numpy as np
        >>> from longspan import FlaxRobertaForMaskedLM, RobertaConfig
        >>> model = FlaxRobertaForMaskedLM(RobertaConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
        >>> model(np.array([[0, 50264, 2]])).logits.shape
        (1, 3, 50265)
    """

    module_class = FlaxRobertaForMaskedLMModule


class FlaxRobertaForCausalLMModule(FlaxRobertaLMModule):
    """`FlaxRobertaForCausalLM` as a `linen.Module`."""

    output_class = FlaxCausalLMOutputWithCrossAttentions


class FlaxRobertaForCausalLM(FlaxRobertaPreTrainedModel, FlaxBertForCausalLM):
    """RoBERTa that predicts the next token; set `config.is_decoder=True`.

    Calls return `FlaxCausalLMOutputWithCrossAttentions`.

    Example:
        >>> import numpy as np
        >>> from longspan import FlaxRobertaForCausalLM, RobertaConfig
        >>> config = RobertaConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, is_decoder=True)
        >>> FlaxRobertaForCausalLM(config)(np.array([[0, 31414, 2]])).logits.shape
        (1, 3, 50265)
    """

    module_class = FlaxRobertaForCausalLMModule
    architecture = ""

    @property
    def first_position(self) -> int:
        """Position of a row's first token: behind that of padding."""
        return (self.config.pad_token_id or 0) + 1


class FlaxRobertaForSequenceClassificationModule(FirstTokenClassificationModule, FlaxRobertaTaskModule):
    """`FlaxRobertaForSequenceClassification` as a `linen.Module`."""

    output_class = FlaxSequenceClassifierOutput


class FlaxRobertaForSequenceClassification(FlaxRobertaPreTrainedModel):
    """RoBERTa with a classification or regression head on the first token.

    Calls return `FlaxSequenceClassifierOutput`.

    Example:
        >>> import numpy as np
        >>> from longspan import FlaxRobertaForSequenceClassification, RobertaConfig
        >>> config = RobertaConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, num_labels=3)
        >>> FlaxRobertaForSequenceClassification(config)(np.array([[0, 31414, 2]])).logits.shape
        (1, 3)
    """

    module_class = FlaxRobertaForSequenceClassificationModule

    @property
    def reads_first_state(self) -> bool:
        """The head reads each row's first token, also where that is padding."""
        return True


class FlaxRobertaForTokenClassificationModule(FlaxRobertaTaskModule, FlaxBertForTokenClassificationModule):
    """`FlaxRobertaForTokenClassification` as a `linen.Module`."""


class FlaxRobertaForTokenClassification(FlaxRobertaPreTrainedModel, FlaxBertForTokenClassification):
    """RoBERTa with a classification head on every token.

    Calls return `FlaxTokenClassifierOutput`.

    Example:
        >>> import numpy as np
        >>> from longspan import FlaxRobertaForTokenClassification, RobertaConfig
        >>> config = RobertaConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, num_labels=5)
        >>> FlaxRobertaForTokenClassification(config)(np.array([[0, 31414, 2]])).logits.shape
        (1, 3, 5)
    """

    module_class = FlaxRobertaForTokenClassificationModule


class FlaxRobertaForQuestionAnsweringModule(FlaxRobertaTaskModule, FlaxBertForQuestionAnsweringModule):
    """`FlaxRobertaForQuestionAnswering` as a `linen.Module`."""


class FlaxRobertaForQuestionAnswering(FlaxRobertaPreTrainedModel, FlaxBertForQuestionAnswering):
    """RoBERTa that scores each token as start and as end of an answer.

    Calls return `FlaxQuestionAnsweringModelOutput`.

    Example:
        >>> import numpy as np
        >>> from longspan import FlaxRobertaForQuestionAnswering, RobertaConfig
        >>> config = RobertaConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        >>> FlaxRobertaForQuestionAnswering(config)(np.array([[0, 31414, 2]])).start_logits.shape
        (1, 3)
    """

    module_class = FlaxRobertaForQuestionAnsweringModule


class FlaxRobertaForMultipleChoiceModule(FlaxRobertaTaskModule, FlaxBertForMultipleChoiceModule):
    """`FlaxRobertaForMultipleChoice` as a `linen.Module`."""

    @property
    def dropout_rate(self) -> float:
        """Probability of the dropout before the head."""
        return self.config.hidden_dropout_prob


class FlaxRobertaForMultipleChoice(FlaxRobertaPreTrainedModel, FlaxBertForMultipleChoice):
    """RoBERTa that scores each of several choices from its pooled first token.

    Ids and masks have an axis of choices, (B, C, S). Calls return `FlaxMultipleChoiceModelOutput`.

    Example:
        >>> import numpy as np
        >>> from longspan import FlaxRobertaForMultipleChoice, RobertaConfig
        >>> config = RobertaConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        >>> FlaxRobertaForMultipleChoice(config)(np.array([[[0, 31414, 2], [0, 812, 2]]])).logits.shape
        (1, 2)
    """

    module_class = FlaxRobertaForMultipleChoiceModule


class FlaxXLMRobertaModel(FlaxRobertaModel):
    """XLM-R without a head: a `FlaxRobertaModel`.

    Example:
        >>> from longspan import FlaxXLMRobertaModel
        >>> FlaxXLMRobertaModel.config_class.model_type
        'xlm-roberta'
    """

    config_class = XLMRobertaConfig


class FlaxXLMRobertaForMaskedLM(FlaxRobertaForMaskedLM):
    """XLM-R that predicts masked tokens: a `FlaxRobertaForMaskedLM`.

    Example:
        >>> from longspan import FlaxXLMRobertaForMaskedLM
        >>> FlaxXLMRobertaForMaskedLM.config_class.model_type
        'xlm-roberta'
    """

    config_class = XLMRobertaConfig


class FlaxXLMRobertaForCausalLM(FlaxRobertaForCausalLM):
    """XLM-R that predicts the next token; set `config.is_decoder=True`: a `FlaxRobertaForCausalLM`.

    Example:
        >>> from longspan import FlaxXLMRobertaForCausalLM
        >>> FlaxXLMRobertaForCausalLM.config_class.model_type
        'xlm-roberta'
    """

    config_class = XLMRobertaConfig


class FlaxXLMRobertaForSequenceClassification(FlaxRobertaForSequenceClassification):
    """XLM-R with a classification or regression head on the first token: a `FlaxRobertaForSequenceClassification`.

    Example:
        >>> from longspan import FlaxXLMRobertaForSequenceClassification
        >>> FlaxXLMRobertaForSequenceClassification.config_class.model_type
        'xlm-roberta'
    """

    config_class = XLMRobertaConfig


class FlaxXLMRobertaForTokenClassification(FlaxRobertaForTokenClassification):
    """XLM-R with a classification head on every token: a `FlaxRobertaForTokenClassification`.

    Example:
        >>> from longspan import FlaxXLMRobertaForTokenClassification
        >>> FlaxXLMRobertaForTokenClassification.config_class.model_type
        'xlm-roberta'
    """

    config_class = XLMRobertaConfig


class FlaxXLMRobertaForQuestionAnswering(FlaxRobertaForQuestionAnswering):
    """XLM-R that scores each token as start and as end of an answer: a `FlaxRobertaForQuestionAnswering`.

    Example:
        >>> from longspan import FlaxXLMRobertaForQuestionAnswering
        >>> FlaxXLMRobertaForQuestionAnswering.config_class.model_type
        'xlm-roberta'
    """

    config_class = XLMRobertaConfig


class FlaxXLMRobertaForMultipleChoice(FlaxRobertaForMultipleChoice):
    """XLM-R that scores each of several choices: a `FlaxRobertaForMultipleChoice`.

    Example:
        >>> from longspan import FlaxXLMRobertaForMultipleChoice
        >>> FlaxXLMRobertaForMultipleChoice.config_class.model_type
        'xlm-roberta'
    """

    config_class = XLMRobertaConfig


# the modules are RoBERTa's; under these names the reference has them
FlaxXLMRobertaModule = FlaxRobertaModule
FlaxXLMRobertaForMaskedLMModule = FlaxRobertaForMaskedLMModule
FlaxXLMRobertaForCausalLMModule = FlaxRobertaForCausalLMModule
FlaxXLMRobertaForSequenceClassificationModule = FlaxRobertaForSequenceClassificationModule
FlaxXLMRobertaForTokenClassificationModule = FlaxRobertaForTokenClassificationModule
FlaxXLMRobertaForQuestionAnsweringModule = FlaxRobertaForQuestionAnsweringModule
FlaxXLMRobertaForMultipleChoiceModule = FlaxRobertaForMultipleChoiceModule
