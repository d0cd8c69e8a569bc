"""Outputs of the Keras models.

Axes: B batch, S tokens, T target tokens, H width, A heads, N classes, C choices, V vocabulary, L layers.
Shared meanings, not repeated below: `hidden_states` holds L+1 tensors (B, S, H), the embeddings first; `attentions`
holds L tensors (B, A, S, S) of weights after the softmax; `cross_attentions` L tensors (B, A, T, S);
`past_key_values` L tuples of keys and values (B, A, S, D) for faster decoding. Each is present only if it was asked
for. A `loss` has the shape (1,).
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator, MutableMapping
from typing import Any, Self, TypeVar, dataclass_transform

import keras
from keras.src.tree.tree_api import register_tree_node_class

from longspan.model_output import ModelOutput
from longspan.model_output import resolve as resolve
from longspan.ops.keras import Tensor

Tensors = tuple[Tensor, ...]
#: per layer (key, value), or (self key, self value, cross key, cross value)
KeyValues = tuple[Tensors, ...]


class TFModelOutput(ModelOutput, MutableMapping[str, Any]):
    """A `ModelOutput` that Keras, `tf.nest` and the trees of JAX and PyTorch can look into."""

    def __post_init__(self) -> None:
        # `tf.function` rebuilds a mapping that it returns from an iterator of (key, value)
        first = dataclasses.fields(self)[0].name  # type: ignore[arg-type]  # every subclass is a dataclass
        pairs = getattr(self, first)
        if isinstance(pairs, Iterator):
            setattr(self, first, None)
            self.update(pairs)

    def __delitem__(self, key: str) -> None:
        self[key] = None

    # `tf.nest` sorts the keys of mappings, Keras keeps the order given here

    def tree_flatten(self) -> tuple[list[Any], tuple[str, ...]]:
        """The present fields and their names."""
        return list(self.values()), tuple(self.keys())

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], values: Any) -> Self:
        """The inverse of `tree_flatten`."""
        return cls(**dict(zip(names, values, strict=True)))

    torchtree_flatten = tree_flatten

    @classmethod
    def torchtree_unflatten(cls, values: Any, names: tuple[str, ...]) -> Self:
        """The inverse of `torchtree_flatten`."""
        return cls.tree_unflatten(names, values)

    def torchtree_flatten_with_keys(self) -> tuple[list[Any], tuple[str, ...]]:
        """Like `torchtree_flatten`, each value with its key."""
        keys = importlib.import_module("torch.utils._pytree")
        return [(keys.MappingKey(name), value) for name, value in self.items()], tuple(self.keys())


OutputType = TypeVar("OutputType", bound=TFModelOutput)


@dataclass_transform()
def model_output(cls: type[OutputType]) -> type[OutputType]:
    """Class decorator: make `cls` a dataclass that the trees of Keras and its backend can look into."""
    cls = dataclasses.dataclass(eq=False)(cls)
    register_tree_node_class(cls)
    if keras.backend.backend() == "jax":  # what a jitted function returns must be a tree of JAX itself
        trees = importlib.import_module("jax.tree_util")
        trees.register_pytree_node(cls, cls.tree_flatten, cls.tree_unflatten)
    return cls


@model_output
class TFBaseModelOutput(TFModelOutput):
    """`last_hidden_state` (B, S, H)."""

    last_hidden_state: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@model_output
class TFBaseModelOutputWithPooling(TFModelOutput):
    """`last_hidden_state` (B, S, H) and `pooler_output` (B, H)."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@model_output
class TFBaseModelOutputWithPoolingAndCrossAttentions(TFModelOutput):
    """`last_hidden_state` (B, S, H) and `pooler_output` (B, H) of a model that can be an encoder or a decoder."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    past_key_values: KeyValues | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


@model_output
class TFBaseModelOutputWithPastAndCrossAttentions(TFModelOutput):
    """`last_hidden_state` (B, T, H) of a decoder."""

    last_hidden_state: Tensor | None = None
    past_key_values: KeyValues | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


@model_output
class TFSeq2SeqModelOutput(TFModelOutput):
    """`last_hidden_state` (B, T, H) of the decoder, `encoder_last_hidden_state` (B, S, H)."""

    last_hidden_state: Tensor | None = None
    past_key_values: KeyValues | None = None
    decoder_hidden_states: Tensors | None = None
    decoder_attentions: Tensors | None = None
    cross_attentions: Tensors | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: Tensors | None = None
    encoder_attentions: Tensors | None = None


@model_output
class TFSeq2SeqLMOutput(TFModelOutput):
    """`loss` (1,), `logits` (B, T, V), `encoder_last_hidden_state` (B, S, H)."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: KeyValues | None = None
    decoder_hidden_states: Tensors | None = None
    decoder_attentions: Tensors | None = None
    cross_attentions: Tensors | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: Tensors | None = None
    encoder_attentions: Tensors | None = None


@model_output
class TFCausalLMOutputWithCrossAttentions(TFModelOutput):
    """`loss` (1,), next-token `logits` (B, S, V)."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: KeyValues | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


@model_output
class TFLogitsOutput(TFModelOutput):
    """`loss` (1,) and `logits`, whose axes the subclasses say."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@model_output
class TFMaskedLMOutput(TFLogitsOutput):
    """`loss` (1,), `logits` (B, S, V)."""


@model_output
class TFNextSentencePredictorOutput(TFLogitsOutput):
    """`loss` (1,), `logits` (B, 2): scores of "B continues A" and of "B is random"."""


@model_output
class TFSequenceClassifierOutput(TFLogitsOutput):
    """`loss` (1,), `logits` (B, N)."""


@model_output
class TFMultipleChoiceModelOutput(TFLogitsOutput):
    """`loss` (1,), `logits` (B, C); the batch axis of states and attentions is B·C."""


@model_output
class TFTokenClassifierOutput(TFLogitsOutput):
    """`loss` (1,), `logits` (B, S, N)."""


@model_output
class TFQuestionAnsweringModelOutput(TFModelOutput):
    """`loss` (1,), `start_logits` and `end_logits` (B, S)."""

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


def flatten_names(output: TFModelOutput) -> dict[str, Tensor]:
    """The tensors of an output by name; those of a tuple are numbered, as in `hidden_states_0`.

    Example:
        >>> flatten_names(TFBaseModelOutput(last_hidden_state=1, hidden_states=(2, 3)))
        {'last_hidden_state': 1, 'hidden_states_0': 2, 'hidden_states_1': 3}
    """

    def flatten(name: str, value: Any) -> dict[str, Tensor]:
        if not isinstance(value, tuple | list):
            return {name: value}
        parts = (flatten(f"{name}_{index}", part) for index, part in enumerate(value))
        return {key: tensor for part in parts for key, tensor in part.items()}

    return {key: tensor for name, value in output.items() for key, tensor in flatten(name, value).items()}
