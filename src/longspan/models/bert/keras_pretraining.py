"""BERT in Keras 3 (Devlin et al., 2018, https://arxiv.org/abs/1810.04805): the classes with the heads of pretraining.

Axes: B batch, S tokens, H width, A heads, D head size, L layers, N classes, C choices, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

from keras import ops

from longspan.checkpoints.keras import to_numpy
from longspan.models.bert.config import BertConfig
from longspan.models.bert.keras_backbone import TFBertModel, TFBertPreTrainedModel
from longspan.models.bert.keras_layers import BertHeads
from longspan.nn.keras.base import register
from longspan.nn.keras.inputs import unpack_inputs
from longspan.nn.keras.losses import (
    causal_lm_loss,
    cross_entropy,
)
from longspan.nn.keras.outputs import (
    KeyValues,
    Tensors,
    TFCausalLMOutputWithCrossAttentions,
    TFMaskedLMOutput,
    TFModelOutput,
    TFNextSentencePredictorOutput,
    model_output,
    resolve,
)
from longspan.nn.keras.resizing import replace_layer, replace_variable, resize_linear, resize_rows
from longspan.ops.keras import Tensor


@model_output
class TFBertForPreTrainingOutput(TFModelOutput):
    """`loss` (1,), `prediction_logits` (B, S, V), `seq_relationship_logits` (B, 2)."""

    loss: Tensor | None = None
    prediction_logits: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


class _WithPredictionHead(TFBertPreTrainedModel):
    """A BERT class whose `cls.predictions` scores the vocabulary."""

    bert: TFBertModel
    cls: BertHeads

    def build(self, input_shape: Any = None) -> None:
        """Make the weights."""
        if not self.built:
            self.cls.build()

    def resize_output_embeddings(self, size: int, *, mean_resizing: bool) -> None:
        """Give the projection onto the vocabulary `size` outputs."""
        head = self.cls.predictions
        bias = resize_rows(to_numpy(head.bias), size, initialise=ops.zeros, mean_resizing=mean_resizing)
        replace_variable(head, "bias", bias)
        if not head.is_tied:
            replace_layer(head, "decoder", resize_linear(head.decoder, size, mean_resizing=mean_resizing))

    def _predict(self, hidden_states: Tensor) -> Tensor:
        """Scores of the vocabulary, (B, S, H) -> (B, S, V)."""
        shape = ops.shape(hidden_states)
        table = ops.convert_to_tensor(self.get_input_embeddings().embeddings)
        logits = self.cls.predictions(ops.reshape(hidden_states, (-1, shape[-1])), word_embeddings=table)
        return ops.reshape(logits, (*shape[:2], logits.shape[-1]))


@register
class TFBertForPreTraining(_WithPredictionHead):
    """BERT with the two heads of its pre-training: masked language modelling and next sentence prediction.

    Args:
        config: Settings; the weights are random.
        **kwargs: `name`, `dtype`, `trainable`.

    Example:
        >>> import numpy as np
        >>> from longspan import BertConfig, TFBertForPreTraining
        >>> model = TFBertForPreTraining(BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
        >>> output = model(np.array([[101, 7592, 102]]))
        >>> tuple(output.prediction_logits.shape), tuple(output.seq_relationship_logits.shape)
        ((1, 3, 30522), (1, 2))
    """

    targets: ClassVar[Mapping[str, str]] = {
        "labels": "prediction_logits",
        "next_sentence_label": "seq_relationship_logits",
    }

    def __init__(self, config: BertConfig, *inputs: Any, **kwargs: Any) -> None:
        super().__init__(config, *inputs, **kwargs)
        self.bert = TFBertModel(config, dtype=self.dtype_policy, name="bert")
        self.cls = BertHeads(config, predictions=True, seq_relationship=True, dtype=self.dtype_policy, name="cls")
        self.build()

    def task_loss(self, output: TFModelOutput, labels: Mapping[str, Tensor]) -> Tensor:
        """The sum of both losses, (1,)."""
        return cross_entropy(output["prediction_logits"], labels["labels"]) + cross_entropy(
            output["seq_relationship_logits"],
            ops.reshape(labels["next_sentence_label"], (-1,)),
            name="next_sentence_label",
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
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        training: bool | None = False,
    ) -> Any:
        """Run the model; inputs as in `TFBertModel.call`.

        Args:
            labels: Ids of the masked tokens, -100 elsewhere, (B, S).
            next_sentence_label: 0 if the second segment continues the first, 1 if it is random, (B,).

        Returns:
            `TFBertForPreTrainingOutput`; the loss is the sum of both and needs both labels.
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
        output = TFBertForPreTrainingOutput(
            prediction_logits=self._predict(outputs.last_hidden_state),
            seq_relationship_logits=self.cls.seq_relationship(outputs.pooler_output),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        self.with_loss(output, labels=labels, next_sentence_label=next_sentence_label)
        return self.finish(output, return_dict)


@register
class TFBertLMHeadModel(_WithPredictionHead):
    """BERT as a causal language model; set `config.is_decoder=True`.

    Args:
        config: Settings; the weights are random.
        **kwargs: `name`, `dtype`, `trainable`.

    Example:
        >>> import numpy as np
        >>> from longspan import BertConfig, TFBertLMHeadModel
        >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, is_decoder=True)
        >>> output = TFBertLMHeadModel(config)(np.array([[101, 7592, 102]]))
        >>> tuple(output.logits.shape), tuple(output.past_key_values[0][0].shape)
        ((1, 3, 30522), (1, 2, 3, 16))
    """

    targets: ClassVar[Mapping[str, str]] = {"labels": "logits"}

    def __init__(self, config: BertConfig, *inputs: Any, **kwargs: Any) -> None:
        super().__init__(config, *inputs, **kwargs)
        if not config.is_decoder:
            warnings.warn("TFBertLMHeadModel attends in both directions unless config.is_decoder=True", stacklevel=2)
        self.bert = TFBertModel(config, add_pooling_layer=False, dtype=self.dtype_policy, name="bert")
        self.cls = BertHeads(config, predictions=True, seq_relationship=False, dtype=self.dtype_policy, name="cls")
        self.build()

    def task_loss(self, output: TFModelOutput, labels: Mapping[str, Tensor]) -> Tensor:
        """Next-token cross-entropy, (1,)."""
        return causal_lm_loss(output["logits"], labels["labels"])

    def align(self, labels: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The score at i belongs to the label at i + 1."""
        return labels[:, 1:], scores[:, :-1]

    @unpack_inputs
    def call(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: KeyValues | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        labels: Tensor | None = None,
        training: bool | None = False,
    ) -> Any:
        """Run the model; inputs as in `TFBertModel.call`.

        Args:
            labels: Ids, -100 is ignored, (B, S); the shift by one token happens here.

        Returns:
            `TFCausalLMOutputWithCrossAttentions`.
        """
        outputs = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=resolve(use_cache, self.config.use_cache) and labels is None,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            training=training,
        )
        output = TFCausalLMOutputWithCrossAttentions(
            logits=self._predict(outputs.last_hidden_state),
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )
        self.with_loss(output, labels=labels)
        return self.finish(output, return_dict)


@register
class TFBertForMaskedLM(_WithPredictionHead):
    """BERT that predicts masked tokens.

    Args:
        config: Settings; the weights are random.
        **kwargs: `name`, `dtype`, `trainable`.

    Example:
        >>> import numpy as np
        >>> from longspan import BertConfig, TFBertForMaskedLM
        >>> model = TFBertForMaskedLM(BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
        >>> tuple(model(np.array([[101, 103, 102]])).logits.shape)
        (1, 3, 30522)
    """

    targets: ClassVar[Mapping[str, str]] = {"labels": "logits"}

    def __init__(self, config: BertConfig, *inputs: Any, **kwargs: Any) -> None:
        super().__init__(config, *inputs, **kwargs)
        if config.is_decoder:
            warnings.warn("TFBertForMaskedLM should see both directions: set config.is_decoder=False", stacklevel=2)
        self.bert = TFBertModel(config, add_pooling_layer=False, dtype=self.dtype_policy, name="bert")
        self.cls = BertHeads(config, predictions=True, seq_relationship=False, dtype=self.dtype_policy, name="cls")
        self.build()

    def task_loss(self, output: TFModelOutput, labels: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy of the masked tokens, (1,)."""
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
            labels: Ids of the masked tokens, -100 elsewhere, (B, S).

        Returns:
            `TFMaskedLMOutput`.
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
        output = TFMaskedLMOutput(
            logits=self._predict(outputs.last_hidden_state),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        self.with_loss(output, labels=labels)
        return self.finish(output, return_dict)


@register
class TFBertForNextSentencePrediction(TFBertPreTrainedModel):
    """BERT that tells whether the second segment continues the first.

    Args:
        config: Settings; the weights are random.
        **kwargs: `name`, `dtype`, `trainable`.

    Example:
        >>> import numpy as np
        >>> from longspan import BertConfig, TFBertForNextSentencePrediction
        >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        >>> tuple(TFBertForNextSentencePrediction(config)(np.array([[101, 7592, 102]])).logits.shape)
        (1, 2)
    """

    targets: ClassVar[Mapping[str, str]] = {"next_sentence_label": "logits"}

    def __init__(self, config: BertConfig, *inputs: Any, **kwargs: Any) -> None:
        super().__init__(config, *inputs, **kwargs)
        self.bert = TFBertModel(config, dtype=self.dtype_policy, name="bert")
        self.cls = BertHeads(config, predictions=False, seq_relationship=True, dtype=self.dtype_policy, name="cls")
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Make the weights."""
        if not self.built:
            self.cls.build()

    def task_loss(self, output: TFModelOutput, labels: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy of the two classes, (1,)."""
        label = ops.reshape(labels["next_sentence_label"], (-1,))
        return cross_entropy(output["logits"], label, name="next_sentence_label")

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
        next_sentence_label: Tensor | None = None,
        training: bool | None = False,
    ) -> Any:
        """Run the model; inputs as in `TFBertModel.call`.

        Args:
            next_sentence_label: 0 if the second segment continues the first, 1 if it is random, (B,).

        Returns:
            `TFNextSentencePredictorOutput`.
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
        output = TFNextSentencePredictorOutput(
            logits=self.cls.seq_relationship(outputs.pooler_output),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        self.with_loss(output, next_sentence_label=next_sentence_label)
        return self.finish(output, return_dict)
