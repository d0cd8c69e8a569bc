"""Training in Keras, as tasks see it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
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

    def _read(self, model_class: Any, name: str, settings: dict[str, Any], options: TrainOptions) -> Any:
        keras.utils.set_random_seed(options.seed)
        policy = "float32" if options.precision == "float32" else f"mixed_{options.precision}"
        with on_device(options.device):
            return model_class.from_pretrained(name, dtype=policy, **settings)

    def place(self, batch: TensorBatch, device: Any) -> TensorBatch:
        """Tensors of Keras' backend, where this puts them."""
        inputs, targets = (
            {name: _tensor(array) for name, array in arrays.items()} for arrays in (batch.inputs, batch.targets)
        )
        return TensorBatch(inputs, targets, _tensor(batch.weights))

    def _loss_of(self, task: TrainingTask, samples: Sequence[Sample]) -> float:
        with on_device(task.options.device):
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

    def total(self, terms: Any, weights: Any | None = None) -> Any:
        """As the base says."""
        return ops.sum(terms if weights is None else terms * weights)


def on_device(name: str | None) -> AbstractContextManager[Any]:
    """Where Keras computes in the block; None leaves that to Keras."""
    context: AbstractContextManager[Any] = nullcontext() if name is None else keras.device(name)
    return context


def _tensor(array: npt.NDArray[Any]) -> Any:
    return ops.convert_to_tensor(array, "float32" if array.dtype.kind == "f" else "int32")


def call_settings(model: Any) -> dict[str, Any]:
    """Arguments of every call in training: no cache, where the model would keep one."""
    return {"use_cache": False} if "use_cache" in model.call_signature_parameters else {}
