"""Outputs of the Flax Longformer; `attentions` and `global_attentions` are as in `torch_outputs.py`.

Axes: B batch, S tokens, H width, N classes, C choices, V vocabulary.
"""

from __future__ import annotations

from longspan.nn.flax.outputs import (
    Arrays,
    FlaxBaseModelOutputWithPooling,
    FlaxMaskedLMOutput,
    FlaxMultipleChoiceModelOutput,
    FlaxQuestionAnsweringModelOutput,
    FlaxSequenceClassifierOutput,
    FlaxTokenClassifierOutput,
    model_output,
)


@model_output
class FlaxLongformerBaseModelOutputWithPooling(FlaxBaseModelOutputWithPooling):
    """`last_hidden_state` (B, S, H) and `pooler_output` (B, H)."""

    global_attentions: Arrays | None = None


@model_output
class FlaxLongformerMaskedLMOutput(FlaxMaskedLMOutput):
    """`logits` (B, S, V)."""

    global_attentions: Arrays | None = None


@model_output
class FlaxLongformerQuestionAnsweringModelOutput(FlaxQuestionAnsweringModelOutput):
    """`start_logits` and `end_logits` (B, S)."""

    global_attentions: Arrays | None = None


@model_output
class FlaxLongformerSequenceClassifierOutput(FlaxSequenceClassifierOutput):
    """`logits` (B, N)."""

    global_attentions: Arrays | None = None


@model_output
class FlaxLongformerMultipleChoiceModelOutput(FlaxMultipleChoiceModelOutput):
    """`logits` (B, C); the batch axis of states and attentions is B·C."""

    global_attentions: Arrays | None = None


@model_output
class FlaxLongformerTokenClassifierOutput(FlaxTokenClassifierOutput):
    """`logits` (B, S, N)."""

    global_attentions: Arrays | None = None
