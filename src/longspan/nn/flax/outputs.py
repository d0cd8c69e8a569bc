"""Outputs of the Flax models; all are pytrees.

Axes: B batch, S tokens, T target tokens, H width, A heads, N classes, C choices, V vocabulary, L layers.
Shared meanings, not repeated below: `hidden_states` holds L+1 arrays (B, S, H), the embeddings first; `attentions`
holds L arrays (B, A, S, S) of weights after the softmax; `cross_attentions` L arrays (B, A, T, S); `past_key_values` is
the cache of `init_cache`, filled further. Each is present only if it was asked for.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, dataclass_transform

from jax import Array, tree_util

from longspan.model_output import ModelOutput
from longspan.model_output import finish as finish
from longspan.model_output import resolve as resolve

Arrays = tuple[Array, ...]
#: nested dicts of arrays, as linen's "cache" collection
FlaxCache = dict[str, Any]
OutputType = TypeVar("OutputType", bound=ModelOutput)


@dataclass_transform()
def model_output(cls: type[OutputType]) -> type[OutputType]:
    """Class decorator: make `cls` a dataclass that is a pytree of its present fields."""
    cls = dataclasses.dataclass(eq=False)(cls)
    tree_util.register_pytree_with_keys(
        cls,
        lambda output: ([(tree_util.GetAttrKey(name), output[name]) for name in output], tuple(output.keys())),
        lambda names, values: cls(**dict(zip(names, values, strict=True))),
    )
    return cls


@model_output
class FlaxBaseModelOutput(ModelOutput):
    """`last_hidden_state` (B, S, H)."""

    last_hidden_state: Array | None = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@model_output
class FlaxBaseModelOutputWithPooling(ModelOutput):
    """`last_hidden_state` (B, S, H) and `pooler_output` (B, H)."""

    last_hidden_state: Array | None = None
    pooler_output: Array | None = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@model_output
class FlaxBaseModelOutputWithPoolingAndCrossAttentions(ModelOutput):
    """`last_hidden_state` (B, S, H) and `pooler_output` (B, H) of a decoder."""

    last_hidden_state: Array | None = None
    pooler_output: Array | None = None
    hidden_states: Arrays | None = None
    past_key_values: FlaxCache | None = None
    attentions: Arrays | None = None
    cross_attentions: Arrays | None = None


@model_output
class FlaxBaseModelOutputWithPastAndCrossAttentions(ModelOutput):
    """`last_hidden_state` (B, T, H) of a decoder."""

    last_hidden_state: Array | None = None
    past_key_values: FlaxCache | None = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None
    cross_attentions: Arrays | None = None


@model_output
class FlaxSeq2SeqModelOutput(ModelOutput):
    """`last_hidden_state` (B, T, H) of the decoder, and what the encoder gave."""

    last_hidden_state: Array | None = None
    past_key_values: FlaxCache | None = None
    decoder_hidden_states: Arrays | None = None
    decoder_attentions: Arrays | None = None
    cross_attentions: Arrays | None = None
    encoder_last_hidden_state: Array | None = None
    encoder_hidden_states: Arrays | None = None
    encoder_attentions: Arrays | None = None


@model_output
class FlaxSeq2SeqLMOutput(ModelOutput):
    """Next-token `logits` (B, T, V), and what the encoder gave."""

    logits: Array | None = None
    past_key_values: FlaxCache | None = None
    decoder_hidden_states: Arrays | None = None
    decoder_attentions: Arrays | None = None
    cross_attentions: Arrays | None = None
    encoder_last_hidden_state: Array | None = None
    encoder_hidden_states: Arrays | None = None
    encoder_attentions: Arrays | None = None


@model_output
class FlaxCausalLMOutputWithCrossAttentions(ModelOutput):
    """Next-token `logits` (B, S, V)."""

    logits: Array | None = None
    past_key_values: FlaxCache | None = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None
    cross_attentions: Arrays | None = None


@model_output
class FlaxLogitsOutput(ModelOutput):
    """`logits`, whose axes the subclasses say."""

    logits: Array | None = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@model_output
class FlaxMaskedLMOutput(FlaxLogitsOutput):
    """`logits` (B, S, V)."""


@model_output
class FlaxNextSentencePredictorOutput(FlaxLogitsOutput):
    """`logits` (B, 2): scores of "B continues A" and of "B is random"."""


@model_output
class FlaxSequenceClassifierOutput(FlaxLogitsOutput):
    """`logits` (B, N)."""


@model_output
class FlaxMultipleChoiceModelOutput(FlaxLogitsOutput):
    """`logits` (B, C); the batch axis of states and attentions is B·C."""


@model_output
class FlaxTokenClassifierOutput(FlaxLogitsOutput):
    """`logits` (B, S, N)."""


@model_output
class FlaxQuestionAnsweringModelOutput(ModelOutput):
    """`start_logits` and `end_logits` (B, S)."""

    start_logits: Array | None = None
    end_logits: Array | None = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None
