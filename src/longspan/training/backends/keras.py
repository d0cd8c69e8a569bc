"""Training in Keras, as tasks see it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, ClassVar

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from longspan.checkpoints.keras import to_numpy
from longspan.errors import InputError
from longspan.inputs import IGNORE_INDEX
from longspan.models.registry import Framework
from longspan.nn.keras.runtime import is_tensorflow
from longspan.training.backends.base import TrainingBackend
from longspan.training.options import TrainOptions
from longspan.training.task import Sample, TensorBatch, TrainingTask

_LEAST = float(np.finfo(np.float32).min)


class Backend(TrainingBackend):
    """Keras, on TensorFlow, where one graph serves every shape, or on JAX, where each shape is a program."""

    framework: ClassVar[Framework] = "keras"

    def __init__(self) -> None:
        name = keras.backend.backend()
        if name not in ("tensorflow", "jax"):
            raise InputError(
                "framework='keras' trains on TensorFlow and JAX; PyTorch is framework='torch'. "
                f"Received: KERAS_BACKEND={name}"
            )
        self.fixed_shapes = not is_tensorflow()

    def seed(self, number: int) -> None:
        """As the base says."""
        keras.utils.set_random_seed(number)

    def _read(self, model_class: Any, name: str, settings: dict[str, Any], options: TrainOptions) -> Any:
        self.seed(options.seed)
        policy = "float32" if options.precision == "float32" else f"mixed_{options.precision}"
        return model_class.from_pretrained(name, dtype=policy, **settings)

    def scope(self, options: TrainOptions) -> AbstractContextManager[Any]:
        """As the base says: a device, and with `devices` so many that hold all weights and share batches.

        Raises:
            InputError: there are fewer devices, or Keras computes on TensorFlow.
        """
        return _scope(options)

    def place(self, batch: TensorBatch, device: Any) -> TensorBatch:
        """Tensors of Keras' backend, where this puts them."""
        inputs, targets = (
            {name: _tensor(array) for name, array in arrays.items()} for arrays in (batch.inputs, batch.targets)
        )
        return TensorBatch(inputs, targets, _tensor(batch.weights))

    def _loss_of(self, task: TrainingTask, samples: Sequence[Sample]) -> float:
        with self.scope(task.options):
            batch = self.place(task.arrays(samples, task.shape_of(samples) if self.fixed_shapes else None), None)
            outputs = task.model(**batch.inputs, **call_settings(task.model), training=False)
            return float(to_numpy(task.loss(outputs, batch)))

    def cross_entropy(self, logits: Any, labels: Any, class_weights: npt.NDArray[Any] | None = None) -> Any:
        """As the base says."""
        labels = ops.cast(labels, "int32")
        counts = ops.cast(labels != IGNORE_INDEX, "float32")
        safe = ops.where(labels == IGNORE_INDEX, 0, labels)
        terms = ops.sparse_categorical_crossentropy(safe, ops.cast(logits, "float32"), from_logits=True)
        if class_weights is not None:
            terms = terms * ops.take(ops.convert_to_tensor(class_weights, "float32"), safe, axis=0)
        return terms * counts

    def binary_cross_entropy(self, logits: Any, labels: Any, positive_weights: npt.NDArray[Any]) -> Any:
        """As the base says."""
        scores, weights = ops.cast(logits, "float32"), ops.convert_to_tensor(positive_weights, "float32")
        terms = weights * labels * ops.softplus(-scores) + (1 - labels) * ops.softplus(scores)
        return ops.mean(terms, axis=-1)

    def squared_error(self, logits: Any, labels: Any) -> Any:
        """As the base says."""
        return ops.square(ops.reshape(ops.cast(logits, "float32"), (-1,)) - labels)

    def hide(self, logits: Any, mask: Any) -> Any:
        """As the base says."""
        logits = ops.cast(logits, "float32")
        return logits if mask is None else ops.where(ops.cast(mask, "bool"), logits, _LEAST)

    def cosines(self, vectors: Any) -> Any:
        """As the base says."""
        others = ops.reshape(ops.swapaxes(vectors[:, 1:], 0, 1), (-1, vectors.shape[-1]))
        return ops.matmul(vectors[:, 0], ops.transpose(others))

    def cosines_of_pairs(self, vectors: Any) -> Any:
        """As the base says."""
        return ops.sum(vectors[:, 0] * vectors[:, 1], axis=-1)

    def total(self, terms: Any, weights: Any | None = None) -> Any:
        """As the base says."""
        return ops.sum(terms if weights is None else terms * weights)


@contextmanager
def _scope(options: TrainOptions) -> Iterator[None]:
    with ExitStack() as stack:
        if options.device is not None:
            stack.enter_context(keras.device(options.device))
        if options.devices > 1:
            stack.enter_context(_distribution(options).scope())
        yield


def _distribution(options: TrainOptions) -> keras.distribution.DataParallel:
    """Weights on all devices, batches shared by their first axis."""
    if is_tensorflow():
        raise InputError(
            "devices needs KERAS_BACKEND=jax, framework='flax' or the processes of accelerate launch in PyTorch: Keras "
            f"shares batches among devices on JAX alone. Received: devices={options.devices} on TensorFlow"
        )
    there = keras.distribution.list_devices(options.device)
    if options.devices > len(there):
        raise InputError(
            f"devices must be at most the {len(there)} that Keras finds. Received: devices={options.devices}"
        )
    return keras.distribution.DataParallel(devices=there[: options.devices], auto_shard_dataset=False)


def _tensor(array: npt.NDArray[Any]) -> Any:
    return ops.convert_to_tensor(array, "float32" if array.dtype.kind == "f" else "int32")


def call_settings(model: Any) -> dict[str, Any]:
    """Arguments of every call in training: no cache, where the model would keep one."""
    return {"use_cache": False} if "use_cache" in model.call_signature_parameters else {}
