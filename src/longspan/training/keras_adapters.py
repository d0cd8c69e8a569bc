"""LoRA in Keras: `enable_lora` of its dense layers, in the places and of the size that PyTorch's adapters have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras

from longspan.checkpoints.keras import leaves
from longspan.errors import InputError
from longspan.integrations.peft import TARGET_MODULES
from longspan.training.sentences.keras import SentenceModel


def enable_adapters(model: Any, rank: int) -> None:
    """Train adapters beside the projections of the family's table, and a new head, in place of all weights.

    Args:
        model: A model of longspan, or what is trained of a sentence encoder; it is changed.
        rank: Rank of the adapters; their product counts twice, as in PyTorch.

    Raises:
        InputError: the family has no entry in the table.
    """
    for variable in model.weights:
        variable.trainable = False
    model = model.transformer if isinstance(model, SentenceModel) else model
    family = model.config.model_type
    if family not in TARGET_MODULES:
        raise InputError(f"With LoRA, model_type must be one of {', '.join(TARGET_MODULES)}. Received: {family}")
    places = leaves(model)
    heads = _new_heads(model)
    for key, leaf in places.items():
        leaf.variable.trainable = _part(model, key) in heads
    names = {id(leaf.variable): key.split(".")[-2] for key, leaf in places.items() if key.count(".")}
    for layer in _dense_layers(model):
        if names[id(layer.kernel)] in TARGET_MODULES[family]:
            layer.enable_lora(rank, lora_alpha=2 * rank)


def merge(trained: Any, plain: Any) -> Any:
    """`plain`, a model without adapters, with the weights of another of its kind, whose adapters are added to them."""
    for ours, theirs in zip(_layers(plain), _layers(trained), strict=True):
        if isinstance(ours, keras.layers.Dense):
            ours.kernel.assign(theirs.kernel)
            if ours.bias is not None:
                ours.bias.assign(theirs.bias)
        else:
            for variable, value in zip(_own_weights(ours), _own_weights(theirs), strict=True):
                variable.assign(value)
    return plain


def _new_heads(model: Any) -> set[str]:
    """Names of the parts that the checkpoint lacked."""
    report = model.load_report
    drawn = [] if report is None else [*report.initialised, *(key for key, *_ in report.mismatched)]
    return {_part(model, key) for key in drawn}


def _part(model: Any, key: str) -> str:
    """The part of the model that a weight belongs to, by the first word of its key."""
    return key.removeprefix(f"{model.base_model_prefix}.").partition(".")[0]


def _layers(model: Any) -> Sequence[keras.layers.Layer]:
    return list(model._flatten_layers())


def _dense_layers(model: Any) -> Iterator[keras.layers.Dense]:
    return (layer for layer in _layers(model) if isinstance(layer, keras.layers.Dense))


def _own_weights(layer: Any) -> list[keras.Variable]:
    """Weights that a layer holds itself."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]
