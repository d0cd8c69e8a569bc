"""DiffLlama in Keras 3 (Ye et al., 2024, https://arxiv.org/abs/2410.05258): the task classes.

Axes: B batch, S tokens, T keys, H width, A softmax maps, L layers, N classes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import keras
from keras import ops

from longspan.checkpoints.names import ParameterNames
from longspan.errors import InputError
from longspan.generation.keras_mixin import TFCausalGenerationMixin
from longspan.models.diffllama.keras_backbone import TFDiffLlamaModel, TFDiffLlamaPreTrainedModel
from longspan.models.diffllama.names import QUESTION_ANSWERING_NAMES
from longspan.nn.keras.base import register
from longspan.nn.keras.inputs import unpack_inputs
from longspan.nn.keras.layers import score_rows, take_tokens
from longspan.nn.keras.outputs import (
    KeyValues,
    Tensors,
    TFModelOutput,
    TFQuestionAnsweringModelOutput,
    TFTokenClassifierOutput,
    model_output,
    resolve,
)
from longspan.nn.keras.resizing import replace_layer, resize_linear
from longspan.nn.keras.tasks import (
    CausalLMModel,
    Inputs,
    QuestionAnsweringModel,
    Scores,
    SequenceClassificationModel,
    TaskModel,
)
from longspan.ops.keras import Tensor

__all__ = [
    "TFDiffLlamaForCausalLM",
    "TFDiffLlamaForQuestionAnswering",
    "TFDiffLlamaForSequenceClassification",
    "TFDiffLlamaForTokenClassification",
    "TFDiffLlamaModel",
    "TFDiffLlamaPreTrainedModel",
]


@model_output
class TFDiffLlamaCausalLMOutput(TFModelOutput):
    """`loss` (1,), next-token `logits` (B, S, V); `differential_attentions` as of `TFDiffLlamaModelOutput`."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: KeyValues | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    differential_attentions: Tensors | None = None


@model_output
class TFDiffLlamaSequenceClassifierOutput(TFDiffLlamaCausalLMOutput):
    """`loss` (1,), `logits` (B, N); `differential_attentions` as of `TFDiffLlamaModelOutput`."""


@model_output
class TFDiffLlamaQuestionAnsweringOutput(TFQuestionAnsweringModelOutput):
    """`loss` (1,), `start_logits` and `end_logits` (B, S); `differential_attentions` as of `TFDiffLlamaModelOutput`."""

    differential_attentions: Tensors | None = None


@model_output
class TFDiffLlamaTokenClassifierOutput(TFTokenClassifierOutput):
    """`loss` (1,), `logits` (B, S, N); `differential_attentions` as of `TFDiffLlamaModelOutput`."""

    differential_attentions: Tensors | None = None


class TFDiffLlamaTask(TaskModel, TFDiffLlamaPreTrainedModel):
    """A DiffLlama with a head: its inputs."""

    base_class = TFDiffLlamaModel
    has_pooler = None
    input_names: ClassVar[tuple[str, ...]] = (
        "input_ids",
        "attention_mask",
        "position_ids",
        "past_key_values",
        "inputs_embeds",
        "use_cache",
    )


class TFDiffLlamaLabelTask(TFDiffLlamaTask):
    """A DiffLlama with a head whose labels are one tensor, `labels`."""

    @unpack_inputs
    def call(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None, past_key_values: KeyValues | None = None,
        inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None,
        output_attentions: bool | None = None, output_hidden_states: bool | None = None,
        return_dict: bool | None = None, training: bool | None = False, *,
        output_differential_attentions: bool = False,
    ) -> Any:  # fmt: skip
        """Run the model; inputs as in `TFDiffLlamaModel.call`, `labels` and what is returned as the class says.

        Args:
            use_cache: Return keys and values, if the output of the class has them; default False.
        """
        row = (input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, bool(use_cache))
        flags = (output_attentions, output_hidden_states, return_dict, training)
        return self.run(row, flags, {"labels": labels}, output_differential_attentions=output_differential_attentions)


@register
class TFDiffLlamaForCausalLM(TFCausalGenerationMixin, CausalLMModel, TFDiffLlamaTask):
    """DiffLlama with a language modelling head.

    `labels` are ids aligned with `input_ids` (the model shifts them), -100 is ignored, (B, S). A call returns
    `TFDiffLlamaCausalLMOutput`.

    Example:
        >>> import numpy as np
        >>> from longspan import DiffLlamaConfig, TFDiffLlamaForCausalLM
        >>> config = DiffLlamaConfig(
        ...     vocab_size=100, hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=1
        ... )
        >>> model = TFDiffLlamaForCausalLM(config)
        >>> first = model(np.array([[1, 5, 7]]))
        >>> second = model(np.array([[9]]), past_key_values=first.past_key_values)
        >>> tuple(second.logits.shape), tuple(second.past_key_values[0][0].shape)
        ((1, 1, 100), (1, 4, 4, 8))
        >>> tuple(model.generate(np.array([[1, 5, 7]]), max_new_tokens=2, min_new_tokens=2).shape)
        (1, 5)
    """

    output_class = TFDiffLlamaCausalLMOutput
    of_last_token: ClassVar[Mapping[str, Any]] = {"logits_to_keep": 1}

    def make_head(self) -> None:
        """Make the projection onto the vocabulary, unless it is the embedding."""
        if not self.config.tie_word_embeddings:
            self.lm_head = self.make_linear(self.config.vocab_size, "lm_head", use_bias=False)

    def resize_output_embeddings(self, size: int, *, mean_resizing: bool) -> None:
        """Give the projection onto the vocabulary, if it is not tied, `size` outputs."""
        if not self.config.tie_word_embeddings:
            replace_layer(self, "lm_head", resize_linear(self.lm_head, size, mean_resizing=mean_resizing))

    def encode(self, inputs: Inputs, training: bool | None) -> Any:
        """The outputs of the backbone; of the last states, those that `logits_to_keep` names."""
        kept = inputs.pop("logits_to_keep", 0)
        outputs = super().encode(inputs, training)
        outputs["last_hidden_state"] = _kept_tokens(outputs["last_hidden_state"], kept)
        return outputs

    def head(self, outputs: TFModelOutput, training: bool | None) -> Scores:
        """Scores of the vocabulary, (B, S, V)."""
        states = outputs["last_hidden_state"]
        if not self.config.tie_word_embeddings:
            return {"logits": self.lm_head(states)}
        shape = ops.shape(states)
        scores = score_rows(ops.reshape(states, (-1, shape[2])), self.get_input_embeddings())
        return {"logits": ops.reshape(scores, (*shape[:2], scores.shape[-1]))}

    @unpack_inputs
    def call(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None, past_key_values: KeyValues | None = None,
        inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None,
        output_attentions: bool | None = None, output_hidden_states: bool | None = None,
        cache_position: Tensor | None = None, logits_to_keep: Any = 0, return_dict: bool | None = None,
        training: bool | None = False, *, output_differential_attentions: bool = False,
    ) -> Any:  # fmt: skip
        """Run the model; inputs as in `TFDiffLlamaModel.call`, `labels` as the class says.

        Args:
            use_cache: Return keys and values; default as configured, but not in training and not with labels.
            logits_to_keep: Compute the logits of the last `logits_to_keep` tokens only; 0 computes all. A 1-D tensor
                holds the indices of the tokens. Labels need all logits.
        """
        use_cache = resolve(use_cache, self.config.use_cache and not training and labels is None)
        return self.run(
            (input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache),
            (output_attentions, output_hidden_states, return_dict, training),
            {"labels": labels},
            cache_position=cache_position,
            logits_to_keep=logits_to_keep,
            output_differential_attentions=output_differential_attentions,
        )


def _kept_tokens(hidden_states: Tensor, logits_to_keep: Any) -> Tensor:
    """The states (B, S', H) that are to be scored: the last few of (B, S, H), the indexed ones, or all for 0."""
    if not isinstance(logits_to_keep, int):
        if len(logits_to_keep.shape) != 1:
            axes = len(logits_to_keep.shape)
            raise InputError(f"logits_to_keep must be an int or a 1-D tensor of indices. Received: {axes} axes")
        return ops.take(hidden_states, logits_to_keep, axis=1)
    if logits_to_keep < 0:
        raise InputError(f"logits_to_keep must be 0 (all) or positive. Received: {logits_to_keep}")
    return hidden_states if logits_to_keep == 0 else hidden_states[:, -logits_to_keep:]


@register
class TFDiffLlamaForSequenceClassification(SequenceClassificationModel, TFDiffLlamaLabelTask):
    """DiffLlama with a linear classifier on the last real token of each row.

    The last real token is the rightmost one that is not `config.pad_token_id`; it is simply the last token if no
    padding id is set or if `inputs_embeds` are given. `labels` are class indices (B,), targets of a regression (B,) or
    (B, N), or multi-hot floats (B, N). A call returns `TFDiffLlamaSequenceClassifierOutput`.

    Example:
        >>> import numpy as np
        >>> from longspan import DiffLlamaConfig, TFDiffLlamaForSequenceClassification
        >>> config = DiffLlamaConfig(
        ...     hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=1, pad_token_id=0
        ... )
        >>> tuple(TFDiffLlamaForSequenceClassification(config)(np.array([[1, 5, 7], [1, 6, 0]])).logits.shape)
        (2, 2)
    """

    output_class = TFDiffLlamaSequenceClassifierOutput

    def make_head(self) -> None:
        """Make the layers of the head."""
        self.score = self.make_linear(self.config.num_labels, "score", use_bias=False)

    def _may_pad(self, inputs: Mapping[str, Any], *, training: bool) -> bool:
        return self.config.pad_token_id is not None and super()._may_pad(inputs, training=training)

    def encode(self, inputs: Inputs, training: bool | None) -> Any:
        """The outputs of the backbone, of whose last states the last real token's is kept, (B, H)."""
        outputs = super().encode(inputs, training)
        states, ids, padding = outputs["last_hidden_state"], inputs.get("input_ids"), self.config.pad_token_id
        outputs["last_hidden_state"] = states[:, -1] if ids is None or padding is None else _last(states, ids, padding)
        return outputs

    def head(self, outputs: TFModelOutput, training: bool | None) -> Scores:
        """Scores of the classes, (B, N)."""
        return {"logits": self.score(outputs["last_hidden_state"])}


def _last(hidden_states: Tensor, input_ids: Tensor, padding: int) -> Tensor:
    """The state of each row's last token that is not padding, (B, S, H) -> (B, H)."""
    places = ops.arange(ops.shape(input_ids)[1], dtype="int32")
    last = ops.max(places * ops.cast(ops.not_equal(input_ids, padding), "int32"), axis=1, keepdims=True)
    return take_tokens(hidden_states, last)[:, 0]


@register
class TFDiffLlamaForQuestionAnswering(QuestionAnsweringModel, TFDiffLlamaTask):
    """DiffLlama with scores for the start and the end of an answer at each token.

    `start_positions` and `end_positions` are the tokens where the answer starts and ends, (B,); outside the sequence
    they do not count. A call returns `TFDiffLlamaQuestionAnsweringOutput`.

    Example:
        >>> import numpy as np
        >>> from longspan import DiffLlamaConfig, TFDiffLlamaForQuestionAnswering
        >>> config = DiffLlamaConfig(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=1)
        >>> output = TFDiffLlamaForQuestionAnswering(config)(np.array([[1, 5, 7]]))
        >>> tuple(output.start_logits.shape), tuple(output.end_logits.shape)
        ((1, 3), (1, 3))
    """

    base_model_prefix: ClassVar[str] = "transformer"
    names: ClassVar[ParameterNames] = QUESTION_ANSWERING_NAMES
    output_class = TFDiffLlamaQuestionAnsweringOutput

    @unpack_inputs
    def call(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None, past_key_values: KeyValues | None = None,
        inputs_embeds: Tensor | None = None, start_positions: Tensor | None = None,
        end_positions: Tensor | None = None, output_attentions: bool | None = None,
        output_hidden_states: bool | None = None, return_dict: bool | None = None, training: bool | None = False, *,
        output_differential_attentions: bool = False,
    ) -> Any:  # fmt: skip
        """Run the model; inputs as in `TFDiffLlamaModel.call`, positions as the class says."""
        row = (input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, False)
        flags = (output_attentions, output_hidden_states, return_dict, training)
        labels = {"start_positions": start_positions, "end_positions": end_positions}
        return self.run(row, flags, labels, output_differential_attentions=output_differential_attentions)


@register
class TFDiffLlamaForTokenClassification(TFDiffLlamaLabelTask):
    """DiffLlama with a linear classifier on every token; `labels` are classes, -100 is ignored, (B, S).

    The dropout before it is `config.classifier_dropout`, else `config.hidden_dropout`, else 0.1, as in the reference. A
    call returns `TFDiffLlamaTokenClassifierOutput`.

    Example:
        >>> import numpy as np
        >>> from longspan import DiffLlamaConfig, TFDiffLlamaForTokenClassification
        >>> config = DiffLlamaConfig(
        ...     hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=1, num_labels=5
        ... )
        >>> tuple(TFDiffLlamaForTokenClassification(config)(np.array([[1, 5, 7]])).logits.shape)
        (1, 3, 5)
    """

    output_class = TFDiffLlamaTokenClassifierOutput
    token_label: ClassVar[str | None] = "labels"

    def make_head(self) -> None:
        """Make the layers of the head."""
        settings = (getattr(self.config, name, None) for name in ("classifier_dropout", "hidden_dropout"))
        rate = next((value for value in settings if value is not None), 0.1)
        self.dropout = keras.layers.Dropout(rate, dtype=self.dtype_policy)
        self.score = self.make_linear(self.config.num_labels, "score")

    def head(self, outputs: TFModelOutput, training: bool | None) -> Scores:
        """Scores of the classes, (B, S, N)."""
        return {"logits": self.score(self.dropout(outputs["last_hidden_state"], training=training))}
