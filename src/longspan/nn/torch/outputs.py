"""Outputs of the PyTorch models.

Axes: B batch, S tokens, T target tokens, H width, A heads, N classes, C choices, V vocabulary, L layers.
Shared meanings, not repeated below: `hidden_states` holds L+1 tensors (B, S, H), the embeddings first; `attentions`
holds L tensors (B, A, S, S) of weights after the softmax; `cross_attentions` L tensors (B, A, T, S);
`past_key_values` is a cache for faster decoding. Each is present only if it was asked for.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, dataclass_transform

from torch import Tensor
from torch.utils import _pytree as pytree

from longspan.model_output import ModelOutput
from longspan.nn.torch.cache import Cache, LegacyCache

Tensors = tuple[Tensor, ...]
OutputType = TypeVar("OutputType", bound=ModelOutput)


@dataclass_transform()
def model_output(cls: type[OutputType]) -> type[OutputType]:
    """Class decorator: make `cls` a dataclass that `torch.compile`, `torch.export`, DDP and `vmap` can look into."""
    cls = dataclasses.dataclass(eq=False)(cls)
    pytree.register_pytree_node(
        cls,
        lambda output: (list(output.values()), (cls, tuple(output.keys()))),
        lambda values, context: context[0](**dict(zip(context[1], values, strict=True))),
        serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        to_dumpable_context=lambda context: list(context[1]),
        from_dumpable_context=lambda names: (cls, tuple(names)),
        flatten_with_keys_fn=lambda output: (
            [(pytree.MappingKey(name), value) for name, value in output.items()],
            (cls, tuple(output.keys())),
        ),
    )
    return cls


@model_output
class BaseModelOutput(ModelOutput):
    """`last_hidden_state` (B, S, H)."""

    last_hidden_state: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@model_output
class BaseModelOutputWithPast(ModelOutput):
    """`last_hidden_state` (B, S, H) of a causal decoder."""

    last_hidden_state: Tensor | None = None
    past_key_values: Cache | LegacyCache | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@model_output
class BaseModelOutputWithPooling(ModelOutput):
    """`last_hidden_state` (B, S, H) and `pooler_output` (B, H)."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@model_output
class BaseModelOutputWithPastAndCrossAttentions(ModelOutput):
    """`last_hidden_state` (B, T, H) of a decoder with cross-attention."""

    last_hidden_state: Tensor | None = None
    past_key_values: Cache | LegacyCache | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


@model_output
class BaseModelOutputWithPoolingAndCrossAttentions(ModelOutput):
    """`last_hidden_state` (B, S, H) and `pooler_output` (B, H) of a model that can be an encoder or a decoder."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: Tensors | None = None
    past_key_values: Cache | LegacyCache | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


@model_output
class CausalLMOutputWithPast(ModelOutput):
    """`loss` (0-d), next-token `logits` (B, S, V)."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | LegacyCache | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@model_output
class CausalLMOutputWithCrossAttentions(ModelOutput):
    """`loss` (0-d), next-token `logits` (B, S, V)."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | LegacyCache | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


@model_output
class MaskedLMOutput(ModelOutput):
    """`loss` (0-d), `logits` (B, S, V)."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@model_output
class NextSentencePredictorOutput(ModelOutput):
    """`loss` (0-d), `logits` (B, 2): scores of "B continues A" and of "B is random"."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@model_output
class SequenceClassifierOutput(ModelOutput):
    """`loss` (0-d), `logits` (B, N)."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@model_output
class SequenceClassifierOutputWithPast(ModelOutput):
    """`loss` (0-d), `logits` (B, N) of a causal decoder."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | LegacyCache | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@model_output
class MultipleChoiceModelOutput(ModelOutput):
    """`loss` (0-d), `logits` (B, C); the batch axis of states and attentions is B·C."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@model_output
class TokenClassifierOutput(ModelOutput):
    """`loss` (0-d), `logits` (B, S, N)."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@model_output
class QuestionAnsweringModelOutput(ModelOutput):
    """`loss` (0-d), `start_logits` and `end_logits` (B, S)."""

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@model_output
class Seq2SeqModelOutput(ModelOutput):
    """`last_hidden_state` (B, T, H) of the decoder, `encoder_last_hidden_state` (B, S, H)."""

    last_hidden_state: Tensor | None = None
    past_key_values: Cache | LegacyCache | None = None
    decoder_hidden_states: Tensors | None = None
    decoder_attentions: Tensors | None = None
    cross_attentions: Tensors | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: Tensors | None = None
    encoder_attentions: Tensors | None = None


@model_output
class Seq2SeqLMOutput(ModelOutput):
    """`loss` (0-d), `logits` (B, T, V), `encoder_last_hidden_state` (B, S, H)."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | LegacyCache | None = None
    decoder_hidden_states: Tensors | None = None
    decoder_attentions: Tensors | None = None
    cross_attentions: Tensors | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: Tensors | None = None
    encoder_attentions: Tensors | None = None


def resolve(flag: bool | None, default: bool) -> bool:
    """An explicit argument wins over the configuration."""
    return default if flag is None else flag


def finish(output: ModelOutput, return_dict: bool) -> Any:
    """The output itself, or its present fields as a plain tuple."""
    return output if return_dict else output.to_tuple()
