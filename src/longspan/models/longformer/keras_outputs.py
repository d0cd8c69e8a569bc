"""Outputs of the Keras Longformer; `attentions` and `global_attentions` are as in `torch_outputs.py`.

Axes: B batch, S tokens, H width, N classes, C choices, V vocabulary. In a graph that is compiled by XLA or by JAX the
number G of global tokens is `config.num_global_slots` (at most S), in another graph at least 1; the rest holds zeros.
"""

from __future__ import annotations

from longspan.nn.keras.outputs import (
    Tensors,
    TFBaseModelOutputWithPooling,
    TFMaskedLMOutput,
    TFMultipleChoiceModelOutput,
    TFQuestionAnsweringModelOutput,
    TFSequenceClassifierOutput,
    TFTokenClassifierOutput,
    model_output,
)


@model_output
class TFLongformerBaseModelOutputWithPooling(TFBaseModelOutputWithPooling):
    """`last_hidden_state` (B, S, H) and `pooler_output` (B, H)."""

    global_attentions: Tensors | None = None


@model_output
class TFLongformerMaskedLMOutput(TFMaskedLMOutput):
    """`loss` (1,), `logits` (B, S, V)."""

    global_attentions: Tensors | None = None


@model_output
class TFLongformerQuestionAnsweringModelOutput(TFQuestionAnsweringModelOutput):
    """`loss` (1,), `start_logits` and `end_logits` (B, S)."""

    global_attentions: Tensors | None = None


@model_output
class TFLongformerSequenceClassifierOutput(TFSequenceClassifierOutput):
    """`loss` (1,), `logits` (B, N)."""

    global_attentions: Tensors | None = None


@model_output
class TFLongformerMultipleChoiceModelOutput(TFMultipleChoiceModelOutput):
    """`loss` (1,), `logits` (B, C); the batch axis of states and attentions is B·C."""

    global_attentions: Tensors | None = None


@model_output
class TFLongformerTokenClassifierOutput(TFTokenClassifierOutput):
    """`loss` (1,), `logits` (B, S, N)."""

    global_attentions: Tensors | None = None
