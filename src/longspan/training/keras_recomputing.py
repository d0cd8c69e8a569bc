"""Gradient checkpointing in Keras: a layer keeps its input alone, and is computed again in the backward pass.

`keras.remat` of a layer's `call` as it is draws other dropout in the second pass on TensorFlow, and carries the state
of random numbers out of the program on JAX. So a layer is made a function of weights and inputs, which changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

import keras
from keras import ops


def recompute_layers(model: keras.layers.Layer) -> None:
    """Let the layers of a model's stacks be computed again in the backward pass, when they train.

    Of what a layer gives beside states, such as attention maps, nothing is then there.
    """
    for layer in _stacked(model):
        layer.call = partial(_recomputed, layer, layer.call)


def _stacked(layer: keras.layers.Layer) -> Iterator[Any]:
    """The layers that public lists hold, outermost lists alone."""
    lists = [value for name, value in vars(layer).items() if not name.startswith("_") and isinstance(value, list)]
    found = [item for items in lists for item in items if isinstance(item, keras.layers.Layer)]
    if found:
        yield from found
    else:
        for part in layer._layers:
            yield from _stacked(part)


def _recomputed(layer: Any, call: Callable[..., Any], states: Any, *, training: bool | None = None, **rest: Any) -> Any:
    """What `call` gives, with None in the place of everything but states."""
    if not training:
        return call(states, training=training, **rest)
    given: list[Any] = []
    arguments = _taken_out((states, rest), given)
    trained, others = layer.trainable_variables, layer.non_trainable_variables
    values, fixed = _AsStored()(trained=lambda: trained, others=lambda: others)
    num_others = 0

    def function(*tensors: Any) -> Any:
        nonlocal num_others
        own, their = tensors[: len(values)], iter(tensors[len(values) :])
        states, rest = _put_back(arguments, their)
        with keras.StatelessScope(state_mapping=[*zip(trained, own, strict=True), *zip(others, fixed, strict=True)]):
            found, *further = call(states, training=True, **rest)
        num_others = len(further)
        return found

    found = keras.remat(function)(*values, *given)
    generators = {id(each): each for part in layer._flatten_layers() for each in part._seed_generators}
    for generator in generators.values():
        generator.next()  # as each dropout did, in vain
    return found, *[None] * num_others


class _AsStored(keras.layers.Layer):
    """Reads variables as they are stored inside a layer of mixed precision, which would read them in half precision."""

    def __init__(self) -> None:
        super().__init__(autocast=False, dtype="float32")

    def call(self, *, trained: Callable[[], Any], others: Callable[[], Any]) -> tuple[list[Any], list[Any]]:
        """The values of both. They come in functions, as Keras reads variables among the arguments of a layer itself.

        The second are copies: TensorFlow's reads see what is assigned later.
        """
        return [ops.convert_to_tensor(each.value) for each in trained()], [each.value * 1 for each in others()]


class _Place:
    """Where a tensor was taken out."""


def _taken_out(value: Any, found: list[Any]) -> Any:
    """A structure with a place for each tensor that may have a gradient; these are added to `found`."""
    if keras.ops.is_tensor(value):
        if not keras.backend.is_float_dtype(value.dtype):
            return value
        found.append(value)
        return _Place()
    return _mapped(value, lambda part: _taken_out(part, found))


def _put_back(value: Any, tensors: Iterator[Any]) -> Any:
    return next(tensors) if isinstance(value, _Place) else _mapped(value, lambda part: _put_back(part, tensors))


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """A structure of dicts, tuples, lists and dataclasses with a function of its parts; anything else as it is."""
    if isinstance(value, dict):
        return {key: function(part) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(function, value))
    if isinstance(value, list | tuple):
        return type(value)(map(function, value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: function(getattr(value, each.name)) for each in fields(value) if each.init})
    return value
