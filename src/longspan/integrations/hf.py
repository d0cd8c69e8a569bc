"""The Trainer of `transformers` saves a configuration only with models of its own base class: give a model that base.

Everything else of that library asks for attributes and methods, which the models have without this.
"""

from __future__ import annotations

import functools
from typing import Any, TypeVar

ModelType = TypeVar("ModelType")


def adapt(model: ModelType) -> ModelType:
    """Make a PyTorch model an instance of `transformers.PreTrainedModel` as well; nothing else about it changes.

    The Trainer then writes `config.json` beside the weights of every checkpoint and loads the best one at the end, and
    the checkpoints load here and there. What longspan defines goes before what `transformers` defines.

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

    return type(ours.__name__, (ours, theirs), {"__module__": ours.__module__, "__reduce_ex__": reduce})


def _restore(ours: Any) -> Any:
    return adapt(ours.__new__(ours))
