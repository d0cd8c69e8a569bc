"""Longformer in Keras 3 (Beltagy et al., 2020, https://arxiv.org/abs/2004.05150): the backbone, then the task classes.

Axes: B batch, S tokens, H width, A heads, L layers, N classes, C choices, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from longspan.checkpoints.names import ParameterNames
from longspan.models.longformer.config import LongformerConfig
from longspan.models.longformer.keras_layers import (
    LongformerEncoder,
    after_separator,
    before_separator,
    first_token,
    make_plan,
)
from longspan.models.longformer.keras_outputs import (
    TFLongformerBaseModelOutputWithPooling,
    TFLongformerMaskedLMOutput,
    TFLongformerMultipleChoiceModelOutput,
    TFLongformerQuestionAnsweringModelOutput,
    TFLongformerSequenceClassifierOutput,
    TFLongformerTokenClassifierOutput,
)
from longspan.models.longformer.names import NAMES
from longspan.nn.keras.base import TFPreTrainedModel, register
from longspan.nn.keras.checks import Size, check_input, input_shape
from longspan.nn.keras.heads import FirstTokenClassificationHead, LanguageModelHead, Pooler
from longspan.nn.keras.inputs import unpack_inputs
from longspan.nn.keras.masks import drop_unseen_faults, expand_head_mask
from longspan.nn.keras.outputs import TFModelOutput, resolve
from longspan.nn.keras.post_norm import Embeddings, positions_behind_padding, prune_layers
from longspan.nn.keras.resizing import replace_layer
from longspan.nn.keras.runtime import after, values_visible
from longspan.nn.keras.tasks import (
    Inputs,
    MultipleChoiceModel,
    QuestionAnsweringModel,
    Scores,
    SequenceClassificationModel,
    TaskModel,
    TokenClassificationModel,
)
from longspan.ops.keras import Tensor
from longspan.ops.keras.sliding_window import DISPATCHER


class TFLongformerPreTrainedModel(TFPreTrainedModel):
    """What all Longformer classes share."""

    config_class: ClassVar[type[LongformerConfig]] = LongformerConfig
    base_model_prefix: ClassVar[str] = "longformer"
    names: ClassVar[ParameterNames] = NAMES
    config: LongformerConfig

    @classmethod
    def check_implementation(cls, name: str) -> None:
        """Raise `InputError` unless `name` is an implementation of sliding-window attention."""
        DISPATCHER.check_name(name)


@register
class TFLongformerModel(TFLongformerPreTrainedModel):
    """Longformer without a head: an encoder whose attention is linear in the length.

    Each token sees a window of neighbours; tokens with global attention see all tokens and are seen by all. Nothing is
    padded to the window.

    Args:
        config: Settings; the weights are random.
        add_pooling_layer: Have the pooler, which gives `pooler_output`.
        **kwargs: `name`, `dtype`, `trainable`.

    Example:
        >>> import numpy as np
        >>> from longspan import LongformerConfig, TFLongformerModel
        >>> config = LongformerConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, attention_window=4)
        >>> ids, first = np.array([[0, 7, 8, 9, 10, 2]]), np.array([[1, 0, 0, 0, 0, 0]])
        >>> output = TFLongformerModel(config)(ids, global_attention_mask=first, output_attentions=True)
        >>> [tuple(states.shape) for states in (output.last_hidden_state, output.attentions[0])]
        [(1, 6, 32), (1, 2, 6, 6)]
    """

    def __init__(self, config: LongformerConfig, add_pooling_layer: bool = True, *inputs: Any, **kwargs: Any) -> None:
        super().__init__(config, *inputs, **kwargs)
        policy, padding = self.dtype_policy, config.pad_token_id
        self.embeddings = Embeddings(config, position_padding=padding, dtype=policy, name="embeddings")
        self.encoder = LongformerEncoder(config, dtype=policy, name="encoder")
        self.pooler = None
        if add_pooling_layer:
            size, stddev = config.hidden_size, config.initializer_range
            self.pooler = Pooler(hidden_size=size, stddev=stddev, dtype=policy, name="pooler")
        self.build()

    def get_config(self) -> dict[str, Any]:
        """Everything that `from_config` needs to make the same model, without weights."""
        return {**super().get_config(), "add_pooling_layer": self.pooler is not None}

    def get_input_embeddings(self) -> keras.layers.Embedding:
        """The word embeddings."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: keras.layers.Embedding) -> None:
        """Replace the word embeddings by others that are built."""
        replace_layer(self.embeddings, "word_embeddings", value)

    def _prune_heads(self, heads_to_prune: Mapping[int, list[int]]) -> None:
        prune_layers(self.encoder.layer, heads_to_prune)

    @unpack_inputs
    def call(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = False,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: Token ids, (B, S); or all inputs, as list, tuple or dict. Exactly one of ids and `inputs_embeds`
                is given.
            attention_mask: 1 for real tokens, 0 for padding, 2 for tokens with global attention, (B, S). States at
                padding are unspecified.
            head_mask: 1 keeps a head, 0 removes it, (A,) or (L, A).
            global_attention_mask: Nonzero for tokens with global attention, (B, S); default: none. Rows may differ in
                their number; padding never attends, whatever this mask says there. A program that XLA or JAX compiles
                has room for `config.num_global_slots` in a row: a row with more becomes NaN.
            token_type_ids: Segment of each token, (B, S); default 0.
            position_ids: Position of each token, (B, S); default: counted over the ids that are not padding, from
                `pad_token_id + 1` on.
            inputs_embeds: Embedded tokens, (B, S, H).
            output_attentions: Return attention weights; L × (B, A, S, G + W + 1) and L × (B, A, S, G), see
                `keras_outputs.py`.
            output_hidden_states: Return hidden states, (L + 1) × (B, S, H).
            return_dict: Return a `ModelOutput` rather than a tuple. Default as configured; a TensorFlow graph always
                returns a `ModelOutput` unless False is passed.
            training: Apply dropout.

        Returns:
            `TFLongformerBaseModelOutputWithPooling`.

        Raises:
            InputError: shapes disagree, an id is out of range, or the input is longer than the positions.
        """
        config = self.config
        shape = input_shape(input_ids, inputs_embeds)
        sizes = {"batch": shape[0], "tokens": shape[1]}
        assertions = check_input(input_ids, "input_ids", config, **sizes)
        assertions += check_input(token_type_ids, "token_type_ids", config, **sizes)
        plan = make_plan(
            config,
            shape=shape,
            attention_mask=attention_mask,
            global_attention_mask=global_attention_mask,
            needs_weights=resolve(output_attentions, config.output_attentions),
        )
        if inputs_embeds is not None:
            inputs_embeds = drop_unseen_faults(inputs_embeds, attention_mask)
        positions, more = self._positions(input_ids, position_ids, shape)
        with after([*assertions, *more]):
            hidden_states = self.embeddings(
                input_ids,
                inputs_embeds=inputs_embeds,
                token_type_ids=token_type_ids,
                position_ids=positions,
                training=training,
            )
        if plan.too_many is not None:
            hidden_states = ops.where(plan.too_many[:, None, None], np.nan, hidden_states)
        last_hidden_state, hidden, attentions, global_attentions = self.encoder(
            hidden_states,
            plan=plan,
            head_mask=expand_head_mask(
                head_mask, num_layers=config.num_hidden_layers, num_heads=config.num_attention_heads
            ),
            output_hidden_states=resolve(output_hidden_states, config.output_hidden_states),
            training=training,
        )
        output = TFLongformerBaseModelOutputWithPooling(
            last_hidden_state=last_hidden_state,
            pooler_output=None if self.pooler is None else self.pooler(last_hidden_state),
            hidden_states=hidden,
            attentions=attentions,
            global_attentions=global_attentions,
        )
        return self.finish(output, return_dict)

    def _positions(
        self, input_ids: Tensor | None, position_ids: Tensor | None, shape: tuple[Size, Size]
    ) -> tuple[Tensor, list[Any]]:
        """Rows of the position table, (B, S) or (1, S), and assertions."""
        if position_ids is None:
            return positions_behind_padding(self.config, input_ids, length=shape[1])
        assertions = check_input(position_ids, "position_ids", self.config, batch=shape[0], tokens=shape[1])
        return ops.cast(position_ids, "int32"), assertions


class TFLongformerTask(TaskModel, TFLongformerPreTrainedModel):
    """A Longformer with a head: its inputs, and which tokens attend globally by default."""

    base_class = TFLongformerModel
    input_names: ClassVar[tuple[str, ...]] = (
        "input_ids",
        "attention_mask",
        "head_mask",
        "global_attention_mask",
        "token_type_ids",
        "position_ids",
        "inputs_embeds",
    )

    def default_global_tokens(self, inputs: Inputs) -> Tensor | None:
        """Tokens with global attention if no mask says it, boolean (B, S); here none."""
        return None

    def encode(self, inputs: Inputs, training: bool | None) -> Any:
        """The outputs of the backbone, with the default of the class where `global_attention_mask` is missing."""
        if "global_attention_mask" not in inputs:
            tokens = self.default_global_tokens(inputs)
            inputs = inputs if tokens is None else {**inputs, "global_attention_mask": tokens}
        return super().encode(inputs, training)


class TFLongformerLabelTask(TFLongformerTask):
    """A Longformer with a head whose labels are one tensor, `labels`; the arguments have an order of their own."""

    @unpack_inputs
    def call(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, head_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None, position_ids: Tensor | None = None,
        global_attention_mask: Tensor | None = None, inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None, output_hidden_states: bool | None = None,
        return_dict: bool | None = None, labels: Tensor | None = None, training: bool | None = False,
    ) -> Any:  # fmt: skip
        """Run the model; inputs as in `TFLongformerModel.call`, `labels` and what is returned as the class says.

        Args:
            global_attention_mask: Default: what `default_global_tokens` of the class says.
        """
        row = (input_ids, attention_mask, head_mask, global_attention_mask, token_type_ids, position_ids, inputs_embeds)
        return self.run(row, (output_attentions, output_hidden_states, return_dict, training), {"labels": labels})


@register
class TFLongformerForMaskedLM(TFLongformerTask):
    """Longformer that predicts masked tokens; `labels` are their ids, -100 elsewhere, (B, S).

    Example:
        >>> import numpy as np
        >>> from longspan import LongformerConfig, TFLongformerForMaskedLM
        >>> config = LongformerConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        >>> tuple(TFLongformerForMaskedLM(config)(np.array([[0, 7, 4, 2]])).logits.shape)
        (1, 4, 30522)
    """

    output_class = TFLongformerMaskedLMOutput
    token_label: ClassVar[str | None] = "labels"

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

    @unpack_inputs
    def call(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, head_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None, output_hidden_states: bool | None = None,
        return_dict: bool | None = None, labels: Tensor | None = None, training: bool | None = False,
    ) -> Any:  # fmt: skip
        """Run the model; inputs as in `TFLongformerModel.call`, `labels` as the class says."""
        row = (input_ids, attention_mask, head_mask, global_attention_mask, token_type_ids, position_ids, inputs_embeds)
        return self.run(row, (output_attentions, output_hidden_states, return_dict, training), {"labels": labels})


@register
class TFLongformerForSequenceClassification(SequenceClassificationModel, TFLongformerLabelTask):
    """Longformer with a classification or regression head on the first token, which attends globally by default.

    `labels` are class indices (B,), targets of a regression (B,) or (B, N), or multi-hot floats (B, N).

    Example:
        >>> import numpy as np
        >>> from longspan import LongformerConfig, TFLongformerForSequenceClassification
        >>> config = LongformerConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, num_labels=3)
        >>> tuple(TFLongformerForSequenceClassification(config)(np.array([[0, 7, 8, 2]])).logits.shape)
        (1, 3)
    """

    output_class = TFLongformerSequenceClassifierOutput

    def make_head(self) -> None:
        """Make the layers of the head."""
        rate, policy = self.config.hidden_dropout_prob, self.dtype_policy
        self.classifier = FirstTokenClassificationHead(self.config, dropout=rate, dtype=policy, name="classifier")

    def head(self, outputs: TFModelOutput, training: bool | None) -> Scores:
        """Scores of the classes, (B, N)."""
        return {"logits": self.classifier(outputs["last_hidden_state"], training=training)}

    def default_global_tokens(self, inputs: Inputs) -> Tensor:
        """The first token."""
        return first_token(_shape(inputs))


@register
class TFLongformerForMultipleChoice(MultipleChoiceModel, TFLongformerLabelTask):
    """Longformer that scores each of several choices, (B, C, S); a choice attends globally by default.

    `labels` are the indices of the correct choices, (B,). By default all tokens behind the first two separators are
    global; a row without a separator takes its first token, with a warning.

    Example:
        >>> import numpy as np
        >>> from longspan import LongformerConfig, TFLongformerForMultipleChoice
        >>> config = LongformerConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        >>> choices = np.array([[[0, 7, 2, 2, 8, 2], [0, 7, 2, 2, 9, 2]]])
        >>> tuple(TFLongformerForMultipleChoice(config)(choices).logits.shape)
        (1, 2)
    """

    output_class = TFLongformerMultipleChoiceModelOutput

    def default_global_tokens(self, inputs: Inputs) -> Tensor:
        """The choice."""
        ids, separator = inputs.get("input_ids"), self.config.sep_token_id
        choice, lacking = after_separator(ids, shape=_shape(inputs), separator=separator)
        _warn_if_any(lacking, "a choice: no separator")
        return choice


@register
class TFLongformerForTokenClassification(TokenClassificationModel, TFLongformerLabelTask):
    """Longformer with a classification head on every token; `labels` are class indices, -100 is ignored, (B, S).

    Example:
        >>> import numpy as np
        >>> from longspan import LongformerConfig, TFLongformerForTokenClassification
        >>> config = LongformerConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, num_labels=5)
        >>> tuple(TFLongformerForTokenClassification(config)(np.array([[0, 7, 8, 2]])).logits.shape)
        (1, 4, 5)
    """

    output_class = TFLongformerTokenClassifierOutput


@register
class TFLongformerForQuestionAnswering(QuestionAnsweringModel, TFLongformerTask):
    """Longformer that scores each token as start and as end of an answer; the question attends globally by default.

    `start_positions` and `end_positions` are the tokens where the answer starts and ends, (B,); outside the sequence
    they do not count. The question is all before the first separator; in a row without one, all before segment 1;
    else the first token, with a warning.

    Example:
        >>> import numpy as np
        >>> from longspan import LongformerConfig, TFLongformerForQuestionAnswering
        >>> config = LongformerConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        >>> tuple(TFLongformerForQuestionAnswering(config)(np.array([[0, 7, 2, 2, 8, 9, 2]])).start_logits.shape)
        (1, 7)
    """

    output_class = TFLongformerQuestionAnsweringModelOutput

    @unpack_inputs
    def call(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, head_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None, output_hidden_states: bool | None = None,
        return_dict: bool | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None,
        training: bool | None = False,
    ) -> Any:  # fmt: skip
        """Run the model; inputs as in `TFLongformerModel.call`, positions as the class says."""
        row = (input_ids, attention_mask, head_mask, global_attention_mask, token_type_ids, position_ids, inputs_embeds)
        labels = {"start_positions": start_positions, "end_positions": end_positions}
        return self.run(row, (output_attentions, output_hidden_states, return_dict, training), labels)

    def default_global_tokens(self, inputs: Inputs) -> Tensor:
        """The question."""
        ids, types, separator = inputs.get("input_ids"), inputs.get("token_type_ids"), self.config.sep_token_id
        question, lacking = before_separator(ids, types, shape=_shape(inputs), separator=separator)
        _warn_if_any(lacking, "a question: no separator and no token of segment 1")
        return question


def _shape(inputs: Inputs) -> tuple[Size, Size]:
    """(B, S)."""
    return input_shape(inputs.get("input_ids"), inputs.get("inputs_embeds"))


def _warn_if_any(lacking: Tensor, what: str) -> None:
    rows = np.asarray(lacking) if values_visible(lacking) else np.zeros(0, bool)
    if rows.any():
        warnings.warn(
            f"the model cannot find {what} in {rows.sum()} of {len(rows)} rows; global attention is on their first "
            "token. Pass global_attention_mask",
            stacklevel=3,
        )
