"""A loop over blocks whose memory is that of one block and of what the loop carries."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from longspan.ops.keras import Tensor

Step = Callable[[Any, tuple[Tensor, ...]], tuple[Any, Tensor]]


def computes_on_cpu() -> bool:
    """True if the backend sees no accelerator."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return all(device.device_type == "CPU" for device in tf.config.list_logical_devices())
    if keras.backend.backend() == "jax":
        return bool(importlib.import_module("jax").default_backend() == "cpu")
    return not importlib.import_module("torch").cuda.is_available()


def is_compiled(tensor: Tensor) -> bool:
    """False for a plain call on JAX, whose loops are programs of their own."""
    if keras.backend.backend() != "jax":
        return True
    return isinstance(tensor, importlib.import_module("jax").core.Tracer)


def scan(
    step: Step, carry: Any, xs: tuple[Tensor, ...], *, result: tuple[Any, Any] | None = None
) -> tuple[Any, Tensor]:
    """`jax.lax.scan` on every backend; on TensorFlow Keras' own returns nothing but the carry of each step.

    Args:
        step: Maps the carry and the slice of each of `xs` to the carry, and to a tensor.
        carry: What the first step gets.
        xs: Tensors (N, ...).
        result: Shape and dtype of the tensor of each step; default: those of the first slice.

    Returns:
        The last carry, and the tensors of all steps, (N, ...).
    """
    if keras.backend.backend() != "tensorflow":
        last: tuple[Any, Tensor] = ops.scan(step, carry, xs)
        return last
    import tensorflow as tf

    count, first = tf.shape(xs[0])[0], xs[0]
    shape, dtype = (first.shape[1:], first.dtype) if result is None else result
    results = tf.TensorArray(dtype, count, element_shape=shape)

    def body(index: Tensor, carry: Any, results: Any) -> tuple[Tensor, Any, Any]:
        carry, result = step(carry, tuple(x[index] for x in xs))
        return index + 1, carry, results.write(index, result)

    # steps that run side by side would each hold a block; XLA differentiates a loop whose longest run is known
    _, carry, results = tf.while_loop(
        lambda index, *_: index < count,
        body,
        (0, carry, results),
        parallel_iterations=1,
        maximum_iterations=first.shape[0],
    )
    return carry, results.stack()
