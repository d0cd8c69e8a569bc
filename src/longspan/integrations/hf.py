"""Parts of `transformers` ask for its own classes: give a model that base, and its outputs theirs.

The Trainer saves a configuration only with models of its base class, and the feature-extraction pipeline counts the
fields of outputs of its class. Everything else there asks for attributes and methods, which the models have anyway.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, TypeVar

from longspan.nn.torch.outputs import DictOutput

ModelType = TypeVar("ModelType")


def adapt(model: ModelType) -> ModelType:
    """Make a PyTorch model an instance of `transformers.PreTrainedModel` as well; nothing else about it changes.

    The Trainer then writes `config.json` beside the weights of every checkpoint and loads the best one at the end, and
    the checkpoints load here and there. What longspan defines goes before what `transformers` defines. A call returns
    the same fields in a `transformers.utils.ModelOutput`, which its pipelines can count.

    Args:
        model: The model, which is changed in place.

    Returns:
        The same object.

    Example:
        >>> from longspan import BertConfig, BertForMaskedLM
        >>> from longspan.integrations.hf import adapt
        >>> config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> model = adapt(BertForMaskedLM(config))
        >>> import transformers
        >>> isinstance(model, transformers.PreTrainedModel), isinstance(model, BertForMaskedLM)
        (True, True)
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        kind: Any = type(model)
        model.__class__ = _with_base(kind, PreTrainedModel)
    return model


@functools.cache
def _with_base(ours: Any, theirs: Any) -> Any:
    """A class of the name of `ours` that derives from both; it pickles as `ours` and is adapted again."""

    def reduce(self: Any, protocol: Any) -> Any:
        return _restore, (ours,), self.__dict__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return as_theirs(ours.__call__(self, *args, **kwargs))

    body = {"__module__": ours.__module__, "__reduce_ex__": reduce, "__call__": call}
    return type(ours.__name__, (ours, theirs), body)


def as_theirs(output: Any) -> Any:
    """An output of longspan as one of `transformers`, with the same fields and tensors; anything else as it is."""
    if not isinstance(output, DictOutput):
        return output
    fields = [output.get(name) for name in output._fields]
    return _output_class(type(output))(*fields)  # by place: newer releases rename fields that come by name


@functools.cache
def _output_class(ours: type[DictOutput]) -> Any:
    """A class of the name and with the fields of `ours` that `transformers` takes for one of its own."""
    from transformers.utils.generic import ModelOutput

    def reduce(self: Any) -> Any:
        return as_theirs, (ours(**self),)

    fields = [(name, Any, dataclasses.field(default=None)) for name in ours._fields]
    body = {"__reduce__": reduce, "__module__": __name__}
    return dataclasses.make_dataclass(ours.__name__, fields, bases=(ModelOutput,), namespace=body)


def _restore(ours: Any) -> Any:
    return adapt(ours.__new__(ours))
