"""Training in JAX and Flax, as tasks see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array

from longspan.inputs import IGNORE_INDEX
from longspan.models.registry import Framework
from longspan.training.backends.base import TrainingBackend
from longspan.training.options import TrainOptions
from longspan.training.task import Sample, TensorBatch, TrainingTask

#: Arguments of a call that shape its program.
Settings = tuple[tuple[str, Any], ...]


class Backend(TrainingBackend):
    """Flax. XLA compiles one program a shape, so passes come in few shapes."""

    framework: ClassVar[Framework] = "flax"
    fixed_shapes = True

    def __init__(self) -> None:
        self._program: Any = None

    def _read(self, model_class: Any, name: str, settings: dict[str, Any], options: TrainOptions) -> Any:
        further = {"seed": options.seed, "gradient_checkpointing": options.gradient_checkpointing}
        return model_class.from_pretrained(name, dtype=options.precision, **further, **settings)

    def place(self, batch: TensorBatch, device: Any) -> TensorBatch:
        """Arrays of JAX, with integers of 32 bits; `device` may be a sharding."""
        inputs, targets = (jax.device_put(_narrow(arrays), device) for arrays in (batch.inputs, batch.targets))
        return TensorBatch(inputs, targets, jax.device_put(batch.weights, device))

    def _loss_of(self, task: TrainingTask, samples: Sequence[Sample]) -> float:
        if self._program is None:  # a backend is that of one task
            self._program = jax.jit(partial(loss_of, task), static_argnames="settings")
        batch = task.arrays(samples, task.shape_of(samples))
        settings, placed = settings_of(task, batch), self.place(batch, None)
        params = jax.device_put(task.model.params, jax.devices()[0])
        return float(self._program(params, as_tree(placed), None, settings=settings))

    def cross_entropy(self, logits: Array, labels: Array, class_weights: npt.NDArray[Any] | None = None) -> Array:
        """As the base says."""
        counts = labels != IGNORE_INDEX
        safe = jnp.where(counts, labels, 0)
        log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        picked = jnp.take_along_axis(log_probabilities, safe[..., None], axis=-1)[..., 0]
        if class_weights is not None:
            picked = picked * jnp.asarray(class_weights, jnp.float32)[safe]
        return -jnp.where(counts, picked, 0.0)

    def binary_cross_entropy(self, logits: Array, labels: Array, positive_weights: npt.NDArray[Any]) -> Array:
        """As the base says."""
        scores, weights = logits.astype(jnp.float32), jnp.asarray(positive_weights, jnp.float32)
        terms = weights * labels * jax.nn.softplus(-scores) + (1 - labels) * jax.nn.softplus(scores)
        return terms.mean(-1)

    def squared_error(self, logits: Array, labels: Array) -> Array:
        """As the base says."""
        return jnp.square(logits.astype(jnp.float32).reshape(-1) - labels)

    def hide(self, logits: Array, mask: Array | None) -> Array:
        """As the base says."""
        logits = logits.astype(jnp.float32)
        return logits if mask is None else jnp.where(mask != 0, logits, jnp.finfo(jnp.float32).min)

    def cosines(self, vectors: Array) -> Array:
        """As the base says."""
        others = jnp.swapaxes(vectors[:, 1:], 0, 1).reshape(-1, vectors.shape[-1])
        return jnp.matmul(vectors[:, 0], others.T, precision=jax.lax.Precision.HIGHEST)

    def cosines_of_pairs(self, vectors: Array) -> Array:
        """As the base says."""
        return (vectors[:, 0] * vectors[:, 1]).sum(-1)

    def total(self, terms: Array, weights: Array | None = None) -> Array:
        """As the base says."""
        return (terms if weights is None else terms * weights).sum()


def _narrow(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    return {
        name: array if np.issubdtype(array.dtype, np.floating) else array.astype(np.int32)
        for name, array in arrays.items()
    }


def settings_of(task: TrainingTask, batch: TensorBatch) -> Settings:
    """Arguments of a call that follow from the values of its inputs, which a program cannot see."""
    return tuple(task.model.program_settings(_narrow(batch.inputs)).items())


def as_tree(batch: TensorBatch) -> dict[str, Any]:
    """A batch as nested dicts, which JAX looks into."""
    return {"inputs": batch.inputs, "targets": batch.targets, "weights": batch.weights}


def loss_of(task: TrainingTask, params: Any, batch: Mapping[str, Any], key: Array | None, *, settings: Settings) -> Any:
    """The summed loss of a forward pass.

    Args:
        task: The task, with its model.
        params: Parameters.
        batch: What `as_tree` gives.
        key: Random key of dropout; None drops nothing.
        settings: What `settings_of` gives.
    """
    outputs = task.model(
        **batch["inputs"], **dict(settings), params=params, train=key is not None, dropout_rng=key, return_dict=True
    )
    return task.loss(outputs, TensorBatch(**batch))
