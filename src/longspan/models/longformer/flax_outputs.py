"""Outputs of the Flax Longformer.

Axes: B batch, S tokens, H width, A heads, W attention window of a layer, G largest number of global tokens of a row.

`attentions` holds L arrays (B, A, S, G + W + 1): the weights from each token to the global tokens in the order of
their positions (0 for a row that has fewer), then to the tokens of its window, from W/2 before it to W/2 after it.
Global tokens in a window count among the first G only, so their place in the window is 0. The rows of global tokens
are 0: their weights are in `global_attentions`, L arrays (B, A, S, G), [..., j, g] being that of the global token g
to the token j. It is absent if no token is global.
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
