"""What the active backend can do at the moment: may values be looked at, may shapes depend on values."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras

from longspan.ops.keras import Tensor


def is_tensorflow() -> bool:
    """True if TensorFlow computes."""
    return bool(keras.backend.backend() == "tensorflow")


def values_visible(tensor: Tensor) -> bool:
    """True if looking at the values of `tensor` is possible and cheap: TensorFlow, eager, on a CPU."""
    if not is_tensorflow():
        return False
    import tensorflow as tf

    return tf.executing_eagerly() and tf.is_tensor(tensor) and "CPU" in tensor.device


def is_concrete(tensor: Tensor) -> bool:
    """True if `tensor` has values: nothing is traced, compiled or inferred. An accelerator has to be waited for."""
    if is_symbolic():
        return False
    if is_tensorflow():
        return not is_traced_by_tensorflow()
    if keras.backend.backend() == "jax":
        return not isinstance(tensor, importlib.import_module("jax.core").Tracer)
    return not importlib.import_module("torch").compiler.is_compiling()


def in_graph(tensor: Tensor) -> bool:
    """True if a TensorFlow graph that will run is being traced; shape inference of symbolic tensors does not run."""
    if not is_tensorflow() or is_symbolic():
        return False
    import tensorflow as tf

    return tf.is_tensor(tensor) and not tf.executing_eagerly()


def is_traced_by_tensorflow() -> bool:
    """True while TensorFlow traces a function or infers shapes."""
    if not is_tensorflow():
        return False
    import tensorflow as tf

    return not tf.executing_eagerly()


def shapes_may_depend_on_values() -> bool:
    """True if an operation may return a tensor whose shape follows from values: TensorFlow outside XLA."""
    return is_tensorflow() and not is_symbolic() and not is_compiled_by_xla()


def is_symbolic() -> bool:
    """True if only shapes are inferred, for a call with symbolic `KerasTensor`s."""
    from keras.src.backend.common.symbolic_scope import in_symbolic_scope

    return bool(in_symbolic_scope())


def is_compiled_by_xla() -> bool:
    """True inside `tf.function(jit_compile=True)` and `compile(jit_compile=True)`, where all shapes are static."""
    import tensorflow as tf
    from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

    return not tf.executing_eagerly() and bool(GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))


def runs_on_cpu() -> bool:
    """True if the backend sees no accelerator."""
    backend = keras.backend.backend()
    if backend == "jax":
        return bool(importlib.import_module("jax").default_backend() == "cpu")
    if backend == "torch":
        return bool(importlib.import_module("keras.src.backend.torch.core").get_device() == "cpu")
    import tensorflow as tf

    return all(device.device_type == "CPU" for device in tf.config.list_logical_devices())


def assert_in_graph(condition: Any, message: str) -> Any:
    """Stop a TensorFlow graph with `InvalidArgumentError` and this message unless a boolean tensor is true.

    Returns:
        The assertion, for `after`: operations that do not wait for it may fail first, in words of their own.
    """
    import tensorflow as tf

    return tf.debugging.Assert(condition, [message])


def after(assertions: Sequence[Any]) -> AbstractContextManager[Any]:
    """A context whose operations run when these assertions of a TensorFlow graph have held."""
    if not assertions:
        return nullcontext()
    import tensorflow as tf

    dependencies: AbstractContextManager[Any] = tf.control_dependencies(assertions)
    return dependencies


def compile_program(model: keras.Model, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of nested tensors as a program of XLA, compiled anew for other shapes; as it is on PyTorch.

    The model's variables are read whenever the program runs.

    Args:
        model: What the function computes with.
        function: Takes and returns nested tensors by place, and changes no variable.
    """
    if is_tensorflow():
        import tensorflow as tf

        compiled: Callable[..., Any] = tf.function(function, jit_compile=True, autograph=False)
        return compiled
    if keras.backend.backend() == "torch":
        torch = importlib.import_module("torch")
        without_gradients: Callable[..., Any] = torch.no_grad()(function)
        return without_gradients

    def pure(values: Sequence[Any], *arguments: Any) -> Any:
        with keras.StatelessScope(state_mapping=zip(model.variables, values, strict=True)):
            return function(*arguments)

    program = importlib.import_module("jax").jit(pure)
    return lambda *arguments: program([variable.value for variable in model.variables], *arguments)
