"""Outputs of the PyTorch Longformer.

Axes: B batch, S tokens, H width, A heads, W attention window of a layer, G largest number of global tokens of a row.

`attentions` holds L tensors (B, A, S, G + W + 1): the weights from each token to the global tokens in the order of
their positions (0 for a row that has fewer), then to the tokens of its window, from W/2 before it to W/2 after it.
Global tokens in a window count among the first G only, so their place in the window is 0. The rows of global tokens
are 0: their weights are in `global_attentions`, L tensors (B, A, S, G), [..., j, g] being that of the global token g
to the token j. It is absent if no token is global.
"""

from __future__ import annotations

from longspan.nn.torch.outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    Tensors,
    TokenClassifierOutput,
    model_output,
)


@model_output
class LongformerBaseModelOutputWithPooling(BaseModelOutputWithPooling):
    """`last_hidden_state` (B, S, H) and `pooler_output` (B, H)."""

    global_attentions: Tensors | None = None


@model_output
class LongformerMaskedLMOutput(MaskedLMOutput):
    """`loss` (0-d), `logits` (B, S, V)."""

    global_attentions: Tensors | None = None


@model_output
class LongformerQuestionAnsweringModelOutput(QuestionAnsweringModelOutput):
    """`loss` (0-d), `start_logits` and `end_logits` (B, S)."""

    global_attentions: Tensors | None = None


@model_output
class LongformerSequenceClassifierOutput(SequenceClassifierOutput):
    """`loss` (0-d), `logits` (B, N)."""

    global_attentions: Tensors | None = None


@model_output
class LongformerMultipleChoiceModelOutput(MultipleChoiceModelOutput):
    """`loss` (0-d), `logits` (B, C); the batch axis of states and attentions is B·C."""

    global_attentions: Tensors | None = None


@model_output
class LongformerTokenClassifierOutput(TokenClassifierOutput):
    """`loss` (0-d), `logits` (B, S, N)."""

    global_attentions: Tensors | None = None
