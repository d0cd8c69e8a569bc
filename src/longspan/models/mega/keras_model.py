"""MEGA in Keras 3 (Ma et al., 2022, https://arxiv.org/abs/2209.10655): the task classes.

The layers are in `keras_layers.py`, the backbone is in `keras_backbone.py`.
Axes: B batch, S tokens, D width, N classes, C choices, V vocabulary.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import keras
from keras import ops

from longspan.configuration import require
from longspan.generation.keras_mixin import TFCausalGenerationMixin
from longspan.models.mega.config import MegaConfig
from longspan.models.mega.keras_backbone import TFMegaModel, TFMegaPreTrainedModel
from longspan.nn.keras.base import register
from longspan.nn.keras.heads import FirstTokenClassificationHead, VocabularyHead
from longspan.nn.keras.inputs import unpack_inputs
from longspan.nn.keras.outputs import (
    KeyValues,
    TFCausalLMOutputWithCrossAttentions,
    TFMaskedLMOutput,
    TFModelOutput,
    TFMultipleChoiceModelOutput,
    TFQuestionAnsweringModelOutput,
    TFSequenceClassifierOutput,
    TFTokenClassifierOutput,
)
from longspan.nn.keras.resizing import replace_layer, resize_linear
from longspan.nn.keras.tasks import (
    CausalLMModel,
    MultipleChoiceModel,
    QuestionAnsweringModel,
    Scores,
    SequenceClassificationModel,
    TaskModel,
    TokenClassificationModel,
)
from longspan.ops.keras import Tensor

__all__ = [
    "TFMegaForCausalLM",
    "TFMegaForMaskedLM",
    "TFMegaForMultipleChoice",
    "TFMegaForQuestionAnswering",
    "TFMegaForSequenceClassification",
    "TFMegaForTokenClassification",
    "TFMegaModel",
    "TFMegaPreTrainedModel",
]


class TFMegaTask(TaskModel, TFMegaPreTrainedModel):
    """A MEGA with a head: its inputs."""

    base_class = TFMegaModel
    input_names: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", "token_type_ids", "inputs_embeds")


class TFMegaLabelTask(TFMegaTask):
    """A MEGA with a head whose labels are one tensor, `labels`."""

    @unpack_inputs
    def call(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None,
        output_attentions: bool | None = None, output_hidden_states: bool | None = None,
        return_dict: bool | None = None, training: bool | None = False,
    ) -> Any:  # fmt: skip
        """Run the model; inputs as in `TFMegaModel.call`, `labels` and what is returned as the class says."""
        row = (input_ids, attention_mask, token_type_ids, inputs_embeds)
        return self.run(row, (output_attentions, output_hidden_states, return_dict, training), {"labels": labels})


class MegaTiedHead(VocabularyHead):
    """Scores E x + b over the vocabulary, with the word embeddings E."""

    def prepare(self, hidden_states: Tensor) -> Tensor:
        """(N, D), as it is."""
        return hidden_states


class TFMegaWordTask(TFMegaTask):
    """A MEGA that scores the vocabulary at each token."""

    token_label: ClassVar[str | None] = "labels"
    #: attribute of the layer that scores
    head_name: ClassVar[str]

    def make_head(self) -> None:
        """Make the layers of the head."""
        config, self.dense = self.config, None
        if config.add_lm_hidden_dense_layer:
            self.dense = self.make_linear(config.hidden_size, "dense")
        head: keras.layers.Layer
        if config.tie_word_embeddings:
            head = MegaTiedHead(config, dtype=self.dtype_policy, name=self.head_name)
        else:
            head = self.make_linear(config.vocab_size, self.head_name)
        setattr(self, self.head_name, head)

    def head(self, outputs: TFModelOutput, training: bool | None) -> Scores:
        """Scores of the vocabulary, (B, S, V)."""
        states, score = outputs["last_hidden_state"], getattr(self, self.head_name)
        states = states if self.dense is None else ops.tanh(self.dense(states))
        if self.config.tie_word_embeddings:
            return {"logits": score(states, word_embeddings=self.get_input_embeddings())}
        return {"logits": score(states)}

    def resize_output_embeddings(self, size: int, *, mean_resizing: bool) -> None:
        """Give the projection onto the vocabulary `size` outputs."""
        head = getattr(self, self.head_name)
        if self.config.tie_word_embeddings:
            head.resize(size, mean_resizing=mean_resizing)
        else:
            replace_layer(self, self.head_name, resize_linear(head, size, mean_resizing=mean_resizing))


@register
class TFMegaForCausalLM(TFCausalGenerationMixin, CausalLMModel, TFMegaWordTask):
    """MEGA as a causal language model; needs `config.is_decoder=True` and `config.bidirectional=False`.

    `labels` are ids, -100 is ignored, (B, S); the shift by one token happens here. A call returns
    `TFCausalLMOutputWithCrossAttentions`.

    Args:
        config: Settings; the weights are random.
        **kwargs: `name`, `dtype`, `trainable`.

    Raises:
        ConfigError: the settings would show a token its future.

    Example:
        >>> import numpy as np
        >>> from longspan import MegaConfig, TFMegaForCausalLM
        >>> model = TFMegaForCausalLM(MegaConfig(num_hidden_layers=1, is_decoder=True, bidirectional=False))
        >>> tuple(model(np.array([[0, 3141, 6]])).logits.shape)
        (1, 3, 30522)
        >>> tuple(model.generate(np.array([[0, 3141, 6]]), max_new_tokens=2, min_new_tokens=2).shape)
        (1, 5)
    """

    output_class = TFCausalLMOutputWithCrossAttentions
    head_name = "lm_head"

    def __init__(self, config: MegaConfig, *inputs: Any, **kwargs: Any) -> None:
        super().__init__(config, *inputs, **kwargs)
        require(
            config.is_decoder,
            "TFMegaForCausalLM needs is_decoder=True and bidirectional=False: otherwise a token sees its future",
            is_decoder=config.is_decoder,
            bidirectional=config.bidirectional,
        )

    def max_positions(self) -> int | None:
        """Tokens that a simple bias reaches; chunks and a rotary bias have no limit."""
        config = self.config
        unlimited = config.use_chunking or config.relative_positional_bias == "rotary"
        return None if unlimited else config.bias_positions

    def of_places(self, positions: Tensor, write_at: Any) -> dict[str, Any]:
        """None: positions are relative, and the cache counts the tokens that it holds."""
        return {}

    @unpack_inputs
    def call(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None, inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None, past_key_values: KeyValues | None = None, output_attentions: bool | None = None,
        output_hidden_states: bool | None = None, return_dict: bool | None = None, training: bool | None = False,
    ) -> Any:  # fmt: skip
        """Run the model; inputs as in `TFMegaModel.call`, `labels` as the class says."""
        return self.run(
            (input_ids, attention_mask, token_type_ids, inputs_embeds),
            (output_attentions, output_hidden_states, return_dict, training),
            {"labels": labels},
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
        )


@register
class TFMegaForMaskedLM(TFMegaWordTask):
    """MEGA that predicts masked tokens; `labels` are their ids, -100 elsewhere, (B, S).

    A call returns `TFMaskedLMOutput`.

    Args:
        config: Settings; the weights are random.
        **kwargs: `name`, `dtype`, `trainable`.

    Example:
        >>> import numpy as np
        >>> from longspan import MegaConfig, TFMegaForMaskedLM
        >>> tuple(TFMegaForMaskedLM(MegaConfig(num_hidden_layers=1))(np.array([[0, 133, 812, 2]])).logits.shape)
        (1, 4, 30522)
    """

    output_class = TFMaskedLMOutput
    head_name = "mlm_head"

    def __init__(self, config: MegaConfig, *inputs: Any, **kwargs: Any) -> None:
        super().__init__(config, *inputs, **kwargs)
        if config.is_decoder:
            warnings.warn("TFMegaForMaskedLM should see both directions: set config.is_decoder=False", stacklevel=2)

    @unpack_inputs
    def call(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None, inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None, output_attentions: bool | None = None,
        output_hidden_states: bool | None = None, return_dict: bool | None = None, training: bool | None = False,
    ) -> Any:  # fmt: skip
        """Run the model; inputs as in `TFMegaModel.call`, `labels` as the class says."""
        return self.run(
            (input_ids, attention_mask, token_type_ids, inputs_embeds),
            (output_attentions, output_hidden_states, return_dict, training),
            {"labels": labels},
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
        )


@register
class TFMegaForSequenceClassification(SequenceClassificationModel, TFMegaLabelTask):
    """MEGA with a classifier or regressor on the first token.

    `labels` are class indices (B,), targets of a regression (B,) or (B, N), or multi-hot floats (B, N). A call returns
    `TFSequenceClassifierOutput`.

    Example:
        >>> import numpy as np
        >>> from longspan import MegaConfig, TFMegaForSequenceClassification
        >>> model = TFMegaForSequenceClassification(MegaConfig(num_hidden_layers=1, num_labels=3))
        >>> tuple(model(np.array([[0, 133, 2]])).logits.shape)
        (1, 3)
    """

    output_class = TFSequenceClassifierOutput

    def make_head(self) -> None:
        """Make the layers of the head."""
        rate, policy = self.make_dropout().rate, self.dtype_policy
        self.classifier = FirstTokenClassificationHead(self.config, dropout=rate, dtype=policy, name="classifier")

    def head(self, outputs: TFModelOutput, training: bool | None) -> Scores:
        """Scores of the classes, (B, N)."""
        return {"logits": self.classifier(outputs["last_hidden_state"], training=training)}


@register
class TFMegaForMultipleChoice(MultipleChoiceModel, TFMegaTask):
    """MEGA that scores several continuations of one text.

    Inputs have an axis of choices, (B, C, S); `labels` are the indices of the right ones, (B,). A call returns
    `TFMultipleChoiceModelOutput`.

    Example:
        >>> import numpy as np
        >>> from longspan import MegaConfig, TFMegaForMultipleChoice
        >>> model = TFMegaForMultipleChoice(MegaConfig(num_hidden_layers=1))
        >>> tuple(model(np.array([[[0, 133, 2], [0, 812, 2]]])).logits.shape)
        (1, 2)
    """

    output_class = TFMultipleChoiceModelOutput

    def make_dropout(self) -> keras.layers.Dropout:
        """That of the hidden states, whatever `classifier_dropout` says."""
        return keras.layers.Dropout(self.config.hidden_dropout_prob, dtype=self.dtype_policy)

    @unpack_inputs
    def call(
        self, input_ids: Tensor | None = None, token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None, labels: Tensor | None = None, inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None, output_hidden_states: bool | None = None,
        return_dict: bool | None = None, training: bool | None = False,
    ) -> Any:  # fmt: skip
        """Run the model; inputs as in `TFMegaModel.call` with an axis of choices, `labels` as the class says."""
        row = (input_ids, attention_mask, token_type_ids, inputs_embeds)
        return self.run(row, (output_attentions, output_hidden_states, return_dict, training), {"labels": labels})


@register
class TFMegaForTokenClassification(TokenClassificationModel, TFMegaLabelTask):
    """MEGA with a classifier on every token; `labels` are class indices, -100 is ignored, (B, S).

    A call returns `TFTokenClassifierOutput`.

    Example:
        >>> import numpy as np
        >>> from longspan import MegaConfig, TFMegaForTokenClassification
        >>> model = TFMegaForTokenClassification(MegaConfig(num_hidden_layers=1, num_labels=9))
        >>> tuple(model(np.array([[0, 133, 2]])).logits.shape)
        (1, 3, 9)
    """

    output_class = TFTokenClassifierOutput


@register
class TFMegaForQuestionAnswering(QuestionAnsweringModel, TFMegaTask):
    """MEGA that finds the span of an answer: scores of being its first and its last token.

    `start_positions` and `end_positions` are those tokens, (B,); outside the sequence they do not count. A call returns
    `TFQuestionAnsweringModelOutput`.

    Example:
        >>> import numpy as np
        >>> from longspan import MegaConfig, TFMegaForQuestionAnswering
        >>> output = TFMegaForQuestionAnswering(MegaConfig(num_hidden_layers=1))(np.array([[0, 133, 2]]))
        >>> tuple(output.start_logits.shape), tuple(output.end_logits.shape)
        ((1, 3), (1, 3))
    """

    output_class = TFQuestionAnsweringModelOutput

    @unpack_inputs
    def call(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None, inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None, end_positions: Tensor | None = None,
        output_attentions: bool | None = None, output_hidden_states: bool | None = None,
        return_dict: bool | None = None, training: bool | None = False,
    ) -> Any:  # fmt: skip
        """Run the model; inputs as in `TFMegaModel.call`, positions as the class says."""
        row = (input_ids, attention_mask, token_type_ids, inputs_embeds)
        labels = {"start_positions": start_positions, "end_positions": end_positions}
        return self.run(row, (output_attentions, output_hidden_states, return_dict, training), labels)
