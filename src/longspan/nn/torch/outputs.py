"""Outputs of the PyTorch models.

Axes: B batch, S tokens, T target tokens, H width, A heads, N classes, C choices, V vocabulary, L layers.
Shared meanings, not repeated below: `hidden_states` holds L+1 tensors (B, S, H), the embeddings first; `attentions`
holds L tensors (B, A, S, S) of weights after the softmax; `cross_attentions` L tensors (B, A, T, S);
`past_key_values` is a cache for faster decoding. Each is present only if it was asked for.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, TypeVar, dataclass_transform

from torch import Tensor
from torch.utils import _pytree as pytree

from longspan.model_output import ModelOutput
from longspan.model_output import finish as finish
from longspan.model_output import resolve as resolve
from longspan.nn.torch.cache import Cache, LegacyCache

Tensors = tuple[Tensor, ...]


class DictOutput(ModelOutput, dict[str, Any]):
    """A `ModelOutput` that is a `dict`: training loops ask with `isinstance`, and compiled code reads its storage.

    The dict holds the present fields in their order; setting a field either way sets both. As in the reference, a dict
    given instead of the first field stands for all fields, and further keys, which pipelines add, go behind them.
    """

    _fields: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        first = getattr(self, self._fields[0])
        if isinstance(first, dict) and len(self) == 1:
            setattr(self, self._fields[0], None)
            for name, value in first.items():
                self[name] = value

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name not in self._fields:
            return
        if value is None:
            dict.pop(self, name, None)
            return
        behind = [] if name in self else self._fields[self._fields.index(name) + 1 :]
        dict.__setitem__(self, name, value)
        for later in behind:
            if later in self:
                dict.__setitem__(self, later, dict.pop(self, later))

    def __getitem__(self, key: Any) -> Any:
        return dict.__getitem__(self, key) if isinstance(key, str) else self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if key in self._fields:
            setattr(self, key, value)
        else:
            object.__setattr__(self, key, value)
            dict.__setitem__(self, key, value)

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        self.pop(key)

    def to_tuple(self) -> tuple[Any, ...]:
        """The present fields in their order."""
        return tuple(dict.values(self))

    def pop(self, key: str, *default: Any) -> Any:
        """Take a field away and return it; an absent one gives `default`, or a KeyError."""
        value = dict.get(self, key, *default) if default else dict.__getitem__(self, key)
        if key in self._fields:
            setattr(self, key, None)
        elif key in self:
            dict.pop(self, key)
        return value

    def update(self, *pairs: Any, **fields: Any) -> None:
        """Set several fields."""
        for name, value in dict(*pairs, **fields).items():
            self[name] = value

    def setdefault(self, key: str, default: Any = None) -> Any:
        """The value of a field, which is set first if it is absent."""
        if key not in self:
            self[key] = default
        return dict.get(self, key)

    def __reduce__(self) -> tuple[Any, ...]:
        further = [(key, value) for key, value in self.items() if key not in self._fields]
        return type(self), tuple(getattr(self, name) for name in self._fields), None, None, iter(further)

    __iter__ = dict.__iter__
    __len__ = dict.__len__
    __contains__ = dict.__contains__
    __eq__ = dict.__eq__
    __hash__ = None
    get = dict.get
    keys = dict.keys
    values = dict.values
    items = dict.items


OutputType = TypeVar("OutputType", bound=DictOutput)


@dataclass_transform()
def model_output(cls: type[OutputType]) -> type[OutputType]:
    """Class decorator: make `cls` a dataclass that `torch.compile`, `torch.export`, DDP and `vmap` can look into."""
    cls = dataclasses.dataclass(eq=False)(cls)
    cls._fields = tuple(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]  # now it is one
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
class BaseModelOutput(DictOutput):
    """`last_hidden_state` (B, S, H)."""

    last_hidden_state: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@model_output
class BaseModelOutputWithPast(DictOutput):
    """`last_hidden_state` (B, S, H) of a causal decoder."""

    last_hidden_state: Tensor | None = None
    past_key_values: Cache | LegacyCache | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@model_output
class BaseModelOutputWithPooling(DictOutput):
    """`last_hidden_state` (B, S, H) and `pooler_output` (B, H)."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@model_output
class BaseModelOutputWithPastAndCrossAttentions(BaseModelOutputWithPast):
    """`last_hidden_state` (B, T, H) of a decoder with cross-attention."""

    cross_attentions: Tensors | None = None


@model_output
class BaseModelOutputWithPoolingAndCrossAttentions(DictOutput):
    """`last_hidden_state` (B, S, H) and `pooler_output` (B, H) of a model that can be an encoder or a decoder."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: Tensors | None = None
    past_key_values: Cache | LegacyCache | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


@model_output
class LogitsOutputWithPast(DictOutput):
    """`loss` (0-d) and `logits` of a causal decoder, whose axes the subclasses say."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | LegacyCache | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@model_output
class CausalLMOutputWithPast(LogitsOutputWithPast):
    """`loss` (0-d), next-token `logits` (B, S, V)."""


@model_output
class CausalLMOutputWithCrossAttentions(LogitsOutputWithPast):
    """`loss` (0-d), next-token `logits` (B, S, V)."""

    cross_attentions: Tensors | None = None


@model_output
class LogitsOutput(DictOutput):
    """`loss` (0-d) and `logits`, whose axes the subclasses say."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@model_output
class MaskedLMOutput(LogitsOutput):
    """`loss` (0-d), `logits` (B, S, V)."""


@model_output
class NextSentencePredictorOutput(LogitsOutput):
    """`loss` (0-d), `logits` (B, 2): scores of "B continues A" and of "B is random"."""


@model_output
class SequenceClassifierOutput(LogitsOutput):
    """`loss` (0-d), `logits` (B, N)."""


@model_output
class SequenceClassifierOutputWithPast(LogitsOutputWithPast):
    """`loss` (0-d), `logits` (B, N) of a causal decoder."""


@model_output
class MultipleChoiceModelOutput(LogitsOutput):
    """`loss` (0-d), `logits` (B, C); the batch axis of states and attentions is B·C."""


@model_output
class TokenClassifierOutput(LogitsOutput):
    """`loss` (0-d), `logits` (B, S, N)."""


@model_output
class QuestionAnsweringModelOutput(DictOutput):
    """`loss` (0-d), `start_logits` and `end_logits` (B, S)."""

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@model_output
class Seq2SeqModelOutput(DictOutput):
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
class Seq2SeqLMOutput(DictOutput):
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
