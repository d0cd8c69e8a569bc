"""Whether calling a layer does what its class says: the condition of going around a call, or of calling in a loop."""

from __future__ import annotations

from typing import Any

import keras

from longspan.ops.fast_paths import is_off

#: layers of Keras that the models consist of, and what they do unless somebody patches the class
_CALLS = {
    kind: kind.call
    for kind in (
        keras.layers.Dense,
        keras.layers.Embedding,
        keras.layers.LayerNormalization,
        keras.layers.BatchNormalization,
        keras.layers.Dropout,
    )
}


def is_plain(*layers: keras.layers.Layer) -> bool:
    """True if these layers and those inside them are ours or Keras' own, and none has a `call` put in its place.

    Tools wrap a layer, derive from its class, or set `layer.call`. Weights in 8 bits and adapters of Keras are settings
    of a layer that a caller who reads weights has to ask for by itself.
    """
    return all(
        _is_known(type(part)) and "call" not in vars(part) for layer in layers for part in layer._flatten_layers()
    )


class Traced:
    """What programs traced of a model depend on, besides their inputs and the values of weights.

    Args:
        model: A Keras model with a `config`.
    """

    def __init__(self, model: Any) -> None:
        layers = list(model._flatten_layers())
        calls = [vars(layer)["call"] for layer in layers if "call" in vars(layer)]
        self._objects = [*layers, *model.variables, *calls]  # kept, so that no other object gets the id of one
        self._settings = f"{vars(model.config)!r}, {is_off()}"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Traced) or self._settings != other._settings:
            return False
        return list(map(id, self._objects)) == list(map(id, other._objects))

    __hash__ = None  # type: ignore[assignment]  # settings of a model change


def _is_known(kind: type[keras.layers.Layer]) -> bool:
    owner: Any = next(base for base in kind.__mro__ if "call" in vars(base))
    call = owner.call
    return owner.__module__.startswith(("longspan.", "keras.")) and call is _CALLS.get(owner, call)
