"""Walks a Keras model's own tree, gives each weight its canonical key, and fills it from a checkpoint.

Keys follow public attributes and list indices: `model.bert.encoder.layer[0].attention.self.query` holds
`bert.encoder.layer.0.attention.self.query.weight`. Two rules complete that:

- A trailing underscore of an attribute is dropped: `output_` is `output`, which every Keras layer has as a property.
- The weights of Keras' own layers have other names, and `Dense` another orientation (`LEAF_RULES`). A Keras layer that
  has weights and no rule is an error. Weights of our own layers keep the name and orientation of the key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from longspan.checkpoints.dtypes import Array
from longspan.checkpoints.files import CheckpointReader
from longspan.checkpoints.names import ParameterNames
from longspan.checkpoints.report import LoadReport, plan_load
from longspan.checkpoints.writer import LazyTensor
from longspan.errors import CheckpointError


@dataclass(frozen=True)
class LeafRule:
    """What a checkpoint calls one weight of a Keras layer.

    Attributes:
        name: Last part of the key.
        initializer: Attribute of the layer that draws the first values.
        transposed: The checkpoint holds the transpose.
    """

    name: str
    initializer: str
    transposed: bool = False


#: layer type -> attribute -> rule
LEAF_RULES: dict[type, dict[str, LeafRule]] = {
    keras.layers.Dense: {
        "kernel": LeafRule("weight", "kernel_initializer", transposed=True),
        "bias": LeafRule("bias", "bias_initializer"),
    },
    keras.layers.Embedding: {"embeddings": LeafRule("weight", "embeddings_initializer")},
    keras.layers.LayerNormalization: {
        "gamma": LeafRule("weight", "gamma_initializer"),
        "beta": LeafRule("bias", "beta_initializer"),
    },
}


@dataclass(frozen=True)
class Leaf:
    """One weight of a model.

    Attributes:
        key: Canonical key.
        variable: The weight.
        transposed: The checkpoint holds its transpose.
        initialise: Draws new values in the variable's own orientation.
    """

    key: str
    variable: keras.Variable
    transposed: bool
    initialise: Callable[[], Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in a checkpoint."""
        shape = tuple(self.variable.shape)
        return shape[::-1] if self.transposed else shape

    @property
    def dtype(self) -> str:
        """Name of the element type."""
        return str(keras.backend.standardize_dtype(self.variable.dtype))

    def read(self) -> Array:
        """The values in the orientation of a checkpoint."""
        values = to_numpy(self.variable)
        return np.ascontiguousarray(values.T) if self.transposed else values

    def assign(self, values: Array) -> None:
        """Take values in the orientation of a checkpoint."""
        if values.dtype.name != self.dtype:
            values = to_numpy(ops.cast(values, self.dtype))
        tensor = ops.convert_to_tensor(values)
        self.variable.assign(ops.transpose(tensor) if self.transposed else tensor)


def to_numpy(value: Any) -> Array:
    """The values of a tensor or variable as a NumPy array, which may share their memory."""
    if keras.backend.backend() == "tensorflow":  # Keras' own conversion makes NumPy 2 warn
        return np.asarray(value)
    values: Array = ops.convert_to_numpy(value)
    return values


def leaves(model: keras.layers.Layer) -> dict[str, Leaf]:
    """All weights of a built model by their canonical keys.

    Raises:
        CheckpointError: a weight has no key: its layer's type has no leaf rule, or it hides in no public attribute.
    """
    found = {leaf.key: leaf for leaf in _walk(model, "")}
    known = {id(leaf.variable) for leaf in found.values()}
    hidden = [weight.path for weight in model.weights if id(weight) not in known]
    if hidden:
        raise CheckpointError(
            f"Every weight must lie in a public attribute of its layer to have a key. Received: {', '.join(hidden)}"
        )
    return found


def _walk(layer: keras.layers.Layer, prefix: str) -> Iterator[Leaf]:
    if type(layer).__module__.partition(".")[0] == "keras" or isinstance(layer, tuple(LEAF_RULES)):
        yield from _keras_leaves(layer, prefix)
        return
    attributes = {**vars(layer), **vars(layer).get("_modules", {})}  # the PyTorch backend keeps sub-layers in _modules
    for name, value in attributes.items():
        if name.startswith("_"):
            continue
        key = prefix + name.removesuffix("_")
        if isinstance(value, keras.Variable):
            yield Leaf(key, value, transposed=False, initialise=_own_initialiser(layer, name, value))
        elif isinstance(value, keras.layers.Layer):
            yield from _walk(value, key + ".")
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                if isinstance(item, keras.layers.Layer):
                    yield from _walk(item, f"{key}.{index}.")


def _own_initialiser(layer: keras.layers.Layer, name: str, variable: keras.Variable) -> Callable[[], Any]:
    draw = getattr(layer, "initializers", {}).get(name, ops.zeros)
    return lambda: draw(tuple(variable.shape), dtype=variable.dtype)


def _keras_leaves(layer: keras.layers.Layer, prefix: str) -> Iterator[Leaf]:
    rules = next((rules for kind, rules in LEAF_RULES.items() if isinstance(layer, kind)), {})
    if layer.weights and not rules:
        raise CheckpointError(
            f"A layer type needs a leaf rule to be in a checkpoint: {', '.join(kind.__name__ for kind in LEAF_RULES)}. "
            f"Received: {type(layer).__name__} at {prefix.removesuffix('.')!r}"
        )
    for attribute, rule in rules.items():
        variable = getattr(layer, attribute)
        if variable is None:
            continue
        if not isinstance(variable, keras.Variable):
            raise CheckpointError(
                f"A {type(layer).__name__} layer in a checkpoint must hold its {attribute} as one variable. "
                f"Received: {prefix.removesuffix('.')!r}, which is quantised or has adapters (LoRA)"
            )
        yield Leaf(prefix + rule.name, variable, rule.transposed, _initialiser(layer, rule, variable))


def _initialiser(layer: keras.layers.Layer, rule: LeafRule, variable: keras.Variable) -> Callable[[], Any]:
    return lambda: getattr(layer, rule.initializer)(tuple(variable.shape), dtype=variable.dtype)


def fill(
    model: keras.layers.Layer,
    reader: CheckpointReader,
    *,
    names: ParameterNames,
    config: object,
    strict: bool = True,
    ignore_mismatched_sizes: bool = False,
) -> LoadReport:
    """Fill every weight of `model` from a checkpoint, one tensor at a time, cast to the dtype of the weight.

    Args:
        model: Built model, whose weights may hold anything.
        reader: The open checkpoint.
        names: Facts about the family's parameter names.
        config: Configuration of the model; it switches ties on and off.
        strict: Missing and unexpected keys raise.
        ignore_mismatched_sizes: Tensors of another shape are initialised instead of raising.

    Returns:
        What became of every key.

    Raises:
        CheckpointError: listing every key that is missing, unexpected or of another shape.
    """
    targets = leaves(model)
    plan = plan_load(
        {key: leaf.shape for key, leaf in targets.items()},
        reader,
        names,
        config,
        shared=_shared_keys(targets, names, config),
        strict=strict,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
    )
    for key in plan.fresh:
        targets[key].variable.assign(targets[key].initialise())
    for key, stored in plan.sources.items():
        targets[key].assign(reader.read(stored))
    return plan.report


def _shared_keys(targets: Mapping[str, Leaf], names: ParameterNames, config: object) -> list[str]:
    """Keys of tied parameters: the model has the layer around them, and uses the owner's variable in their place."""
    return [
        tie.target
        for tie in names.active_ties(config)
        if tie.target not in targets
        and tie.source in targets
        and any(key.startswith(tie.target.rsplit(".", 2)[0] + ".") for key in targets)
    ]


def tensors_to_save(model: keras.layers.Layer) -> dict[str, LazyTensor]:
    """The weights of a model by key, read when they are written; tied ones once, under the key that owns them."""
    return {key: LazyTensor(leaf.shape, leaf.dtype, leaf.read) for key, leaf in leaves(model).items()}
