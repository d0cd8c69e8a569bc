"""BERT in Keras 3 (Devlin et al., 2018, https://arxiv.org/abs/1810.04805): the classes with heads.

Axes: B batch, S tokens, H width, N classes, C choices, V vocabulary. The backbone is in `keras_backbone.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

from keras import ops

from longspan.errors import InputError
from longspan.generation.keras_mixin import TFCausalGenerationMixin
from longspan.models.bert.config import BertConfig
from longspan.models.bert.keras_backbone import TFBertModel, TFBertPreTrainedModel
from longspan.models.bert.keras_layers import BertHeads
from longspan.nn.keras.base import register
from longspan.nn.keras.inputs import unpack_inputs
from longspan.nn.keras.losses import cross_entropy
from longspan.nn.keras.outputs import (
    KeyValues,
    Tensors,
    TFCausalLMOutputWithCrossAttentions,
    TFMaskedLMOutput,
    TFModelOutput,
    TFMultipleChoiceModelOutput,
    TFNextSentencePredictorOutput,
    TFQuestionAnsweringModelOutput,
    TFSequenceClassifierOutput,
    TFTokenClassifierOutput,
    model_output,
    resolve,
)
from longspan.nn.keras.tasks import (
    CausalLMModel,
    Flags,
    Labels,
    MultipleChoiceModel,
    PooledClassificationModel,
    QuestionAnsweringModel,
    Scores,
    SequenceClassificationModel,
    TaskModel,
    TokenClassificationModel,
)
from longspan.ops.keras import Tensor

__all__ = [
    "TFBertForMaskedLM",
    "TFBertForMultipleChoice",
    "TFBertForNextSentencePrediction",
    "TFBertForPreTraining",
    "TFBertForPreTrainingOutput",
    "TFBertForQuestionAnswering",
    "TFBertForSequenceClassification",
    "TFBertForTokenClassification",
    "TFBertLMHeadModel",
    "TFBertModel",
    "TFBertPreTrainedModel",
]


class TFBertTask(TaskModel, TFBertPreTrainedModel):
    """A backbone named `bert`, and a head."""

    base_class = TFBertModel
    input_names = (
        "input_ids", "attention_mask", "token_type_ids", "position_ids", "head_mask", "inputs_embeds"
    )  # fmt: skip

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
        """Run the model; inputs as in `TFBertModel.call`, `labels` and what is returned as the class says."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        flags = (output_attentions, output_hidden_states, return_dict, training)
        return self.run(inputs, flags, {"labels": labels})

    def run(self, inputs: tuple[Any, ...], flags: Flags, labels: Labels, **further: Any) -> Any:
        """As of every class; states at padding are computed where the loss reads them."""
        return super().run(inputs, flags, labels, padding_states=self.states_read(labels, flags[-1]), **further)


class TFBertWordTask(TFBertTask):
    """A BERT class whose `cls.predictions` scores the vocabulary."""

    has_next_sentence_head: ClassVar[bool] = False
    cls: BertHeads

    def make_head(self) -> None:
        """Make the layers of the head."""
        self.cls = BertHeads(
            self.config,
            predictions=True,
            seq_relationship=self.has_next_sentence_head,
            dtype=self.dtype_policy,
            name="cls",
        )

    def head(self, outputs: TFModelOutput, training: bool | None) -> Scores:
        """Scores of the vocabulary, (B, S, V)."""
        return {"logits": self._predict(outputs)}

    def _predict(self, outputs: TFModelOutput) -> Tensor:
        table = self.get_input_embeddings()
        return self.cls.predictions(outputs["last_hidden_state"], word_embeddings=table)

    def resize_output_embeddings(self, size: int, *, mean_resizing: bool) -> None:
        """Give the projection onto the vocabulary `size` outputs."""
        self.cls.predictions.resize(size, mean_resizing=mean_resizing)


@model_output
class TFBertForPreTrainingOutput(TFModelOutput):
    """`loss` (1,), `prediction_logits` (B, S, V), `seq_relationship_logits` (B, 2)."""

    loss: Tensor | None = None
    prediction_logits: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@register
class TFBertForPreTraining(TFBertWordTask):
    """BERT with the two heads of its pre-training: masked language modelling and next sentence prediction.

    `labels` are the ids of the masked tokens, -100 elsewhere, (B, S); `next_sentence_label` is 0 if the second segment
    continues the first, 1 if it is random, (B,). A call returns `TFBertForPreTrainingOutput`, whose loss is the sum of
    both and needs both labels.

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
    output_class = TFBertForPreTrainingOutput
    token_label: ClassVar[str | None] = "labels"
    has_pooler = has_next_sentence_head = True

    def head(self, outputs: TFModelOutput, training: bool | None) -> Scores:
        """Scores of the vocabulary, (B, S, V), and of the two classes of the pair, (B, 2)."""
        pair = self.cls.seq_relationship(outputs["pooler_output"])
        return {"prediction_logits": self._predict(outputs), "seq_relationship_logits": pair}

    def task_loss(self, output: TFModelOutput, labels: Mapping[str, Tensor], weights: Tensor | None = None) -> Tensor:
        """The sum of both losses, (1,)."""
        name, pair = "next_sentence_label", ops.reshape(labels["next_sentence_label"], (-1,))
        masked = cross_entropy(output["prediction_logits"], labels["labels"], weights=weights)
        return masked + cross_entropy(output["seq_relationship_logits"], pair, name=name, weights=weights)

    @unpack_inputs
    def call(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None, output_attentions: bool | None = None,
        output_hidden_states: bool | None = None, return_dict: bool | None = None, labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None, training: bool | None = False,
    ) -> Any:  # fmt: skip
        """Run the model; inputs as in `TFBertModel.call`, labels as the class says."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        flags = (output_attentions, output_hidden_states, return_dict, training)
        return self.run(inputs, flags, {"labels": labels, "next_sentence_label": next_sentence_label})


@register
class TFBertLMHeadModel(TFCausalGenerationMixin, CausalLMModel, TFBertWordTask):
    """BERT as a causal language model; set `config.is_decoder=True`.

    `labels` are ids, -100 is ignored, (B, S); the shift by one token happens here. A call returns
    `TFCausalLMOutputWithCrossAttentions`.

    Example:
        >>> import numpy as np
        >>> from longspan import BertConfig, TFBertLMHeadModel
        >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, is_decoder=True)
        >>> output = TFBertLMHeadModel(config)(np.array([[101, 7592, 102]]))
        >>> tuple(output.logits.shape), tuple(output.past_key_values[0][0].shape)
        ((1, 3, 30522), (1, 2, 3, 16))
    """

    output_class = TFCausalLMOutputWithCrossAttentions

    def __init__(self, config: BertConfig, *inputs: Any, **kwargs: Any) -> None:
        """Make the backbone and the head; warn unless `config.is_decoder` fits.

        Args:
            config: Settings; the weights are random.
            *inputs: None: the configuration is all.
            **kwargs: `name`, `dtype` (a dtype policy such as `"mixed_bfloat16"`), `trainable`.
        """
        super().__init__(config, *inputs, **kwargs)
        if not config.is_decoder:
            name = type(self).__name__
            warnings.warn(f"{name} attends in both directions unless config.is_decoder=True", stacklevel=2)

    def max_positions(self) -> int:
        """Tokens that have a position embedding."""
        return self.config.max_position_embeddings

    def init_cache(self, batch_size: int, max_length: int) -> KeyValues:
        """An empty cache of a fixed size for incremental decoding.

        Args:
            batch_size: B.
            max_length: Number of tokens that fit, T.

        Returns:
            L × (key, value) of zeros, (B, A, T, D), to be passed as `past_key_values` together with `cache_position`,
            `position_ids` and an `attention_mask` (B, T). Each call returns it filled further; with cross-attention
            keys and values of the encoder's states are added.

        Raises:
            InputError: the model is no decoder.
        """
        if not self.config.is_decoder:
            raise InputError("generating needs a decoder: config.is_decoder=True. Received: is_decoder=False")
        attentions = [layer.attention.self for layer in self.get_base_model().encoder.layer]
        heads = [(layer.num_attention_heads, layer.attention_head_size) for layer in attentions]
        zeros = [ops.zeros((batch_size, number, max_length, size), self.compute_dtype) for number, size in heads]
        return tuple((part, part) for part in zeros)

    @unpack_inputs
    def call(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None, encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None, past_key_values: KeyValues | None = None,
        use_cache: bool | None = None, output_attentions: bool | None = None,
        output_hidden_states: bool | None = None, return_dict: bool | None = None, labels: Tensor | None = None,
        training: bool | None = False, *, cache_position: Tensor | None = None,
    ) -> Any:  # fmt: skip
        """Run the model; inputs as in `TFBertModel.call`, `labels` as the class says."""
        return self.run(
            (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds),
            (output_attentions, output_hidden_states, return_dict, training),
            {"labels": labels},
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            cache_position=cache_position,
            use_cache=resolve(use_cache, self.config.use_cache) and labels is None,
        )


@register
class TFBertForMaskedLM(TFBertWordTask):
    """BERT that predicts masked tokens.

    `labels` are the ids of the masked tokens, -100 elsewhere, (B, S). A call returns `TFMaskedLMOutput`.

    Example:
        >>> import numpy as np
        >>> from longspan import BertConfig, TFBertForMaskedLM
        >>> model = TFBertForMaskedLM(BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
        >>> tuple(model(np.array([[101, 103, 102]])).logits.shape)
        (1, 3, 30522)
    """

    output_class = TFMaskedLMOutput
    token_label: ClassVar[str | None] = "labels"

    def __init__(self, config: BertConfig, *inputs: Any, **kwargs: Any) -> None:
        """Make the backbone and the head; warn unless `config.is_decoder` fits.

        Args:
            config: Settings; the weights are random.
            *inputs: None: the configuration is all.
            **kwargs: `name`, `dtype` (a dtype policy such as `"mixed_bfloat16"`), `trainable`.
        """
        super().__init__(config, *inputs, **kwargs)
        if config.is_decoder:
            name = type(self).__name__
            warnings.warn(f"{name} should see both directions: set config.is_decoder=False", stacklevel=2)


@register
class TFBertForNextSentencePrediction(TFBertTask):
    """BERT that tells whether the second segment continues the first.

    `next_sentence_label` is 0 if it does, 1 if it is random, (B,). A call returns `TFNextSentencePredictorOutput`.

    Example:
        >>> import numpy as np
        >>> from longspan import BertConfig, TFBertForNextSentencePrediction
        >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        >>> tuple(TFBertForNextSentencePrediction(config)(np.array([[101, 7592, 102]])).logits.shape)
        (1, 2)
    """

    targets: ClassVar[Mapping[str, str]] = {"next_sentence_label": "logits"}
    output_class = TFNextSentencePredictorOutput
    has_pooler = True

    def make_head(self) -> None:
        """Make the layers of the head."""
        self.cls = BertHeads(self.config, predictions=False, seq_relationship=True, dtype=self.dtype_policy, name="cls")

    def head(self, outputs: TFModelOutput, training: bool | None) -> Scores:
        """Scores of the two classes, (B, 2)."""
        return {"logits": self.cls.seq_relationship(outputs["pooler_output"])}

    def task_loss(self, output: TFModelOutput, labels: Mapping[str, Tensor], weights: Tensor | None = None) -> Tensor:
        """Cross-entropy of the two classes, (1,)."""
        label = ops.reshape(labels["next_sentence_label"], (-1,))
        return cross_entropy(output["logits"], label, name="next_sentence_label", weights=weights)

    @unpack_inputs
    def call(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None, output_attentions: bool | None = None,
        output_hidden_states: bool | None = None, return_dict: bool | None = None,
        next_sentence_label: Tensor | None = None, training: bool | None = False,
    ) -> Any:  # fmt: skip
        """Run the model; inputs as in `TFBertModel.call`, `next_sentence_label` as the class says."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        flags = (output_attentions, output_hidden_states, return_dict, training)
        return self.run(inputs, flags, {"next_sentence_label": next_sentence_label})


@register
class TFBertForSequenceClassification(SequenceClassificationModel, PooledClassificationModel, TFBertTask):
    """BERT with a classification or regression head on the pooled first token.

    `labels` are class indices (B,), regression targets (B,) or (B, N), or multi-hot floats (B, N); see
    `longspan.nn.keras.losses.sequence_classification_loss`. A call returns `TFSequenceClassifierOutput`.

    Example:
        >>> import numpy as np
        >>> from longspan import BertConfig, TFBertForSequenceClassification
        >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, num_labels=3)
        >>> model = TFBertForSequenceClassification(config)
        >>> output = model(np.array([[101, 7592, 102]]), labels=np.array([2]))
        >>> tuple(output.logits.shape), tuple(output.loss.shape)
        ((1, 3), (1,))
    """

    output_class = TFSequenceClassifierOutput


@register
class TFBertForMultipleChoice(MultipleChoiceModel, TFBertTask):
    """BERT that scores each of several choices from its pooled first token.

    Inputs have an axis of choices, (B, C, S); `labels` are the indices of the correct ones, (B,). A call returns
    `TFMultipleChoiceModelOutput`.

    Example:
        >>> import numpy as np
        >>> from longspan import BertConfig, TFBertForMultipleChoice
        >>> model = TFBertForMultipleChoice(BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
        >>> tuple(model(np.array([[[101, 7592, 102], [101, 2088, 102]]])).logits.shape)
        (1, 2)
    """

    output_class = TFMultipleChoiceModelOutput


@register
class TFBertForTokenClassification(TokenClassificationModel, TFBertTask):
    """BERT with a classification head on every token.

    `labels` are the class indices of the tokens, -100 is ignored, (B, S). A call returns `TFTokenClassifierOutput`.

    Example:
        >>> import numpy as np
        >>> from longspan import BertConfig, TFBertForTokenClassification
        >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, num_labels=5)
        >>> tuple(TFBertForTokenClassification(config)(np.array([[101, 7592, 102]])).logits.shape)
        (1, 3, 5)
    """

    output_class = TFTokenClassifierOutput


@register
class TFBertForQuestionAnswering(QuestionAnsweringModel, TFBertTask):
    """BERT that scores each token as start and as end of an answer.

    `start_positions` and `end_positions` are the tokens where the answer starts and ends, (B,); outside the sequence
    they do not count. The loss scores every position, padding included, and labels may come to `compute_loss` after the
    scores are made; so the batch is never packed. A call returns `TFQuestionAnsweringModelOutput`.

    Example:
        >>> import numpy as np
        >>> from longspan import BertConfig, TFBertForQuestionAnswering
        >>> model = TFBertForQuestionAnswering(BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
        >>> tuple(model(np.array([[101, 7592, 102]])).start_logits.shape)
        (1, 3)
    """

    output_class = TFQuestionAnsweringModelOutput

    @unpack_inputs
    def call(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None, output_attentions: bool | None = None,
        output_hidden_states: bool | None = None, return_dict: bool | None = None,
        start_positions: Tensor | None = None, end_positions: Tensor | None = None, training: bool | None = False,
    ) -> Any:  # fmt: skip
        """Run the model; inputs as in `TFBertModel.call`, positions as the class says."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        flags = (output_attentions, output_hidden_states, return_dict, training)
        return self.run(inputs, flags, {"start_positions": start_positions, "end_positions": end_positions})
