"""BERT in Keras 3 (Devlin et al., 2018, https://arxiv.org/abs/1810.04805): the classes that classify texts and tokens.

Axes: B batch, S tokens, H width, A heads, D head size, L layers, N classes, C choices, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from keras import ops

from longspan.models.bert.config import BertConfig
from longspan.models.bert.keras_backbone import TFBertModel, TFBertPreTrainedModel
from longspan.nn.keras.base import register
from longspan.nn.keras.heads import fold_choices
from longspan.nn.keras.inputs import unpack_inputs
from longspan.nn.keras.losses import (
    cross_entropy,
    question_answering_loss,
    sequence_classification_loss,
)
from longspan.nn.keras.outputs import (
    TFModelOutput,
    TFMultipleChoiceModelOutput,
    TFQuestionAnsweringModelOutput,
    TFSequenceClassifierOutput,
    TFTokenClassifierOutput,
)
from longspan.ops.keras import Tensor


@register
class TFBertForSequenceClassification(TFBertPreTrainedModel):
    """BERT with a classification or regression head on the pooled first token.

    Args:
        config: Settings; the weights are random.
        **kwargs: `name`, `dtype`, `trainable`.

    Example:
        >>> import numpy as np
        >>> from longspan import BertConfig, TFBertForSequenceClassification
        >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, num_labels=3)
        >>> model = TFBertForSequenceClassification(config)
        >>> output = model(np.array([[101, 7592, 102]]), labels=np.array([2]))
        >>> tuple(output.logits.shape), tuple(output.loss.shape)
        ((1, 3), (1,))
    """

    targets: ClassVar[Mapping[str, str]] = {"labels": "logits"}

    def __init__(self, config: BertConfig, *inputs: Any, **kwargs: Any) -> None:
        super().__init__(config, *inputs, **kwargs)
        self.bert = TFBertModel(config, dtype=self.dtype_policy, name="bert")
        self.dropout = self._classifier_dropout()
        self.classifier = self._linear(config.num_labels, "classifier")
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Make the weights."""
        if not self.built:
            self.classifier.build((None, self.config.hidden_size))

    def task_loss(self, output: TFModelOutput, labels: Mapping[str, Tensor]) -> Tensor:
        """Mean squared error, cross-entropy or binary cross-entropy, by `problem_type`, (1,)."""
        return sequence_classification_loss(self.config, output["logits"], labels["labels"])

    @unpack_inputs
    def call(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        labels: Tensor | None = None,
        training: bool | None = False,
    ) -> Any:
        """Run the model; inputs as in `TFBertModel.call`.

        Args:
            labels: Class indices (B,), regression targets (B,) or (B, N), or multi-hot floats (B, N); see
                `longspan.nn.keras.losses.sequence_classification_loss`.

        Returns:
            `TFSequenceClassifierOutput`.
        """
        outputs = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            training=training,
        )
        output = TFSequenceClassifierOutput(
            logits=self.classifier(self.dropout(outputs.pooler_output, training=training)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        self.with_loss(output, labels=labels)
        return self.finish(output, return_dict)


@register
class TFBertForMultipleChoice(TFBertPreTrainedModel):
    """BERT that scores each of several choices from its pooled first token.

    Args:
        config: Settings; the weights are random.
        **kwargs: `name`, `dtype`, `trainable`.

    Example:
        >>> import numpy as np
        >>> from longspan import BertConfig, TFBertForMultipleChoice
        >>> model = TFBertForMultipleChoice(BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
        >>> tuple(model(np.array([[[101, 7592, 102], [101, 2088, 102]]])).logits.shape)
        (1, 2)
    """

    targets: ClassVar[Mapping[str, str]] = {"labels": "logits"}

    def __init__(self, config: BertConfig, *inputs: Any, **kwargs: Any) -> None:
        super().__init__(config, *inputs, **kwargs)
        self.bert = TFBertModel(config, dtype=self.dtype_policy, name="bert")
        self.dropout = self._classifier_dropout()
        self.classifier = self._linear(1, "classifier")
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Make the weights."""
        if not self.built:
            self.classifier.build((None, self.config.hidden_size))

    def task_loss(self, output: TFModelOutput, labels: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy over the choices, (1,)."""
        return cross_entropy(output["logits"], ops.reshape(labels["labels"], (-1,)))

    @unpack_inputs
    def call(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        labels: Tensor | None = None,
        training: bool | None = False,
    ) -> Any:
        """Run the model; inputs as in `TFBertModel.call`, each with an axis of choices: (B, C, S).

        Args:
            labels: Index of the correct choice, (B,).

        Returns:
            `TFMultipleChoiceModelOutput`.
        """
        num_choices, (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds) = fold_choices(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
        )
        outputs = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            training=training,
        )
        scores = self.classifier(self.dropout(outputs.pooler_output, training=training))
        output = TFMultipleChoiceModelOutput(
            logits=ops.reshape(scores, (-1, num_choices)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        self.with_loss(output, labels=labels)
        return self.finish(output, return_dict)


@register
class TFBertForTokenClassification(TFBertPreTrainedModel):
    """BERT with a classification head on every token.

    Args:
        config: Settings; the weights are random.
        **kwargs: `name`, `dtype`, `trainable`.

    Example:
        >>> import numpy as np
        >>> from longspan import BertConfig, TFBertForTokenClassification
        >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, num_labels=5)
        >>> tuple(TFBertForTokenClassification(config)(np.array([[101, 7592, 102]])).logits.shape)
        (1, 3, 5)
    """

    targets: ClassVar[Mapping[str, str]] = {"labels": "logits"}

    def __init__(self, config: BertConfig, *inputs: Any, **kwargs: Any) -> None:
        super().__init__(config, *inputs, **kwargs)
        self.bert = TFBertModel(config, add_pooling_layer=False, dtype=self.dtype_policy, name="bert")
        self.dropout = self._classifier_dropout()
        self.classifier = self._linear(config.num_labels, "classifier")
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Make the weights."""
        if not self.built:
            self.classifier.build((None, self.config.hidden_size))

    def task_loss(self, output: TFModelOutput, labels: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy of the tokens, (1,)."""
        return cross_entropy(output["logits"], labels["labels"])

    @unpack_inputs
    def call(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        labels: Tensor | None = None,
        training: bool | None = False,
    ) -> Any:
        """Run the model; inputs as in `TFBertModel.call`.

        Args:
            labels: Class index of each token, -100 is ignored, (B, S).

        Returns:
            `TFTokenClassifierOutput`.
        """
        outputs = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            training=training,
        )
        output = TFTokenClassifierOutput(
            logits=self.classifier(self.dropout(outputs.last_hidden_state, training=training)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        self.with_loss(output, labels=labels)
        return self.finish(output, return_dict)


@register
class TFBertForQuestionAnswering(TFBertPreTrainedModel):
    """BERT that scores each token as start and as end of an answer.

    The loss scores every position, padding included, and labels may come to `compute_loss` after the scores are made;
    so the batch is never packed.

    Args:
        config: Settings; the weights are random.
        **kwargs: `name`, `dtype`, `trainable`.

    Example:
        >>> import numpy as np
        >>> from longspan import BertConfig, TFBertForQuestionAnswering
        >>> model = TFBertForQuestionAnswering(BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
        >>> tuple(model(np.array([[101, 7592, 102]])).start_logits.shape)
        (1, 3)
    """

    targets: ClassVar[Mapping[str, str]] = {"start_positions": "start_logits", "end_positions": "end_logits"}

    def __init__(self, config: BertConfig, *inputs: Any, **kwargs: Any) -> None:
        super().__init__(config, *inputs, **kwargs)
        self.bert = TFBertModel(config, add_pooling_layer=False, dtype=self.dtype_policy, name="bert")
        self.qa_outputs = self._linear(2, "qa_outputs")
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Make the weights."""
        if not self.built:
            self.qa_outputs.build((None, self.config.hidden_size))

    def task_loss(self, output: TFModelOutput, labels: Mapping[str, Tensor]) -> Tensor:
        """Mean of the start and the end cross-entropy, (1,)."""
        return question_answering_loss(
            output["start_logits"], output["end_logits"], labels["start_positions"], labels["end_positions"]
        )

    @unpack_inputs
    def call(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        training: bool | None = False,
    ) -> Any:
        """Run the model; inputs as in `TFBertModel.call`.

        Args:
            start_positions: Token where the answer starts, (B,); outside the sequence it does not count.
            end_positions: Token where it ends, (B,).

        Returns:
            `TFQuestionAnsweringModelOutput`.
        """
        outputs = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            training=training,
            padding_states=True,
        )
        start_logits, end_logits = ops.unstack(self.qa_outputs(outputs.last_hidden_state), 2, axis=-1)
        output = TFQuestionAnsweringModelOutput(
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        self.with_loss(output, start_positions=start_positions, end_positions=end_positions)
        return self.finish(output, return_dict)
