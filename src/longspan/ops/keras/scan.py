"""A loop over blocks whose memory is that of one block and of what the loop carries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from longspan.ops.keras import Tensor

Step = Callable[[Any, tuple[Tensor, ...]], tuple[Any, Tensor]]


def scan(step: Step, carry: Any, xs: tuple[Tensor, ...]) -> tuple[Any, Tensor]:
    """`jax.lax.scan` on every backend; on TensorFlow Keras' own returns nothing but the carry of each step.

    Args:
        step: Maps the carry and the slice of each of `xs` to the carry, and to a tensor that has the shape and dtype of
            the first slice.
        carry: What the first step gets.
        xs: Tensors (N, ...).

    Returns:
        The last carry, and the tensors of all steps, (N, ...).
    """
    if keras.backend.backend() != "tensorflow":
        last: tuple[Any, Tensor] = ops.scan(step, carry, xs)
        return last
    import tensorflow as tf

    count, first = tf.shape(xs[0])[0], xs[0]
    results = tf.TensorArray(first.dtype, count, element_shape=first.shape[1:])

    def body(index: Tensor, carry: Any, results: Any) -> tuple[Tensor, Any, Any]:
        carry, result = step(carry, tuple(x[index] for x in xs))
        return index + 1, carry, results.write(index, result)

    # steps that run side by side would each hold a block
    _, carry, results = tf.while_loop(lambda index, *_: index < count, body, (0, carry, results), parallel_iterations=1)
    return carry, results.stack()
