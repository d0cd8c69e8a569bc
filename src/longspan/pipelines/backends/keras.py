"""Batches of encoders and of models with heads in Keras 3.

On TensorFlow one graph serves every shape; on JAX XLA compiles one program a shape, so shapes are few.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from longspan.auto import TFAutoModel
from longspan.checkpoints.hub import Source
from longspan.checkpoints.keras import to_numpy
from longspan.errors import InputError
from longspan.models.registry import Framework
from longspan.nn.keras.plain import Traced
from longspan.nn.keras.runtime import compile_program, is_tensorflow
from longspan.pipelines.backends import base
from longspan.pipelines.backends.base import Floats, Ids, Mask

#: Shape and type of each argument of a graph.
Specs = Sequence[tuple[list[None], str]]
_POOLING_SPECS: Specs = [([None] * 2, "int32"), ([None] * 2, "bool"), ([None] * 3, "float32"), ([None] * 2, "bool")]


def pool(states: Any, weights: Any, max_mask: Any | None) -> Any:
    """Pooled states (B, M (+ 1), H) of states (B, S, H); see `base.Encoder.encode_batch`."""
    states = ops.cast(states, "float32")
    pooled = ops.matmul(weights, states)
    if max_mask is None:
        return pooled
    # looked up, not `max`: its gradient compares states, which XLA may compute again with other rounding
    places = ops.argmax(ops.where(max_mask[:, :, None], states, -np.inf), axis=1, keepdims=True)
    return ops.concatenate([pooled, ops.take_along_axis(states, places, axis=1)], axis=1)


class _KerasBackend(base.Backend):
    framework: ClassVar[Framework] = "keras"
    fixed_shapes: ClassVar[bool] = keras.backend.backend() == "jax"

    def _place(
        self,
        model: Source | Any,
        model_class: Any,
        device: str | None,
        dtype: str | None,
        settings: Any,
        max_length: int | None = None,
    ) -> None:
        self.device = _check_device(device)
        if isinstance(model, Source):
            policy = "float32" if dtype in (None, "float32") else f"mixed_{dtype}"
            with _on_device(self.device):
                model = base.lengthened(base.load(model, model_class, policy, settings), max_length)
        self.model = model
        self._programs: dict[Any, Any] = {}
        self._traced = Traced(self.model)
        #: graphs traced (TensorFlow) or programs compiled (JAX) so far
        self.num_programs = 0

    def _run(self, key: Any, function: Callable[..., Any], specs: Specs, arrays: Sequence[Any]) -> list[Floats]:
        """Results of a function of arrays, compiled under a key, as float32 arrays."""
        traced = Traced(self.model)
        if traced != self._traced:  # a tool changed a layer
            self._programs, self._traced = {}, traced
        if key not in self._programs:

            def counted(*inputs: Any) -> Any:
                self.num_programs += 1  # runs when it is traced, not when its program runs
                return function(*inputs)

            tensorflow = is_tensorflow()
            self._programs[key] = _make_graph(counted, specs) if tensorflow else compile_program(self.model, counted)
        with _on_device(self.device):
            results = [np.asarray(ops.convert_to_numpy(result)) for result in self._programs[key](*arrays)]
            if self.fixed_shapes and any(np.isnan(result).any() for result in results):
                # a program has room for so many global tokens; a call that sees their values for any number
                results = [np.asarray(ops.convert_to_numpy(result)) for result in function(*arrays)]
        return results

    @property
    def on_cpu(self) -> bool:
        """Whether the model runs on the CPU."""
        return not _accelerators() if self.device is None else self.device.lower().startswith("cpu")

    @property
    def environment(self) -> dict[str, Any]:
        """What numbers depend on besides the checkpoint."""
        return {
            "versions": {"keras": keras.__version__, "backend": keras.backend.backend()},
            "device": "cpu" if self.on_cpu else "accelerator",
            "dtype": self.model.dtype_policy.name,
            "precision": keras.config.floatx(),
        }


class EncoderBackend(_KerasBackend, base.Encoder):
    """An encoder model in Keras; see `longspan.pipelines.backends.base.Encoder`.

    Args:
        source: Where the model is.
        device: `"cpu"`, `"gpu"`, or one of several as `"gpu:1"`; None takes Keras' default.
        dtype: Type of the computation, e.g. `"bfloat16"`; weights stay in float32.
        attn_implementation: Name of an implementation of attention; None chooses.
        max_length: Longest input wanted. A BERT or RoBERTa with fewer positions becomes a Longformer (see `to_long`).

    Raises:
        InputError: the device does not exist.
    """

    def __init__(
        self,
        source: Source,
        *,
        device: str | None,
        dtype: str | None,
        attn_implementation: str | None,
        max_length: int | None,
    ) -> None:
        self._place(source, TFAutoModel, device, dtype, {"attn_implementation": attn_implementation}, max_length)

    def encode_batch(self, input_ids: Ids, attention_mask: Mask, weights: Floats, max_mask: Mask | None) -> Floats:
        """Pooled states (B, M (+ 1), H) of a batch; see `longspan.pipelines.backends.base.Encoder.encode_batch`."""
        with_max = max_mask is not None
        pool = partial(_pooled_states, self.model, with_max)
        arrays = input_ids.astype(np.int32), attention_mask, weights, attention_mask if max_mask is None else max_mask
        return self._run(with_max, pool, _POOLING_SPECS, arrays)[0]


class TaskBackend(_KerasBackend, base.TaskModel):
    """A model with the head of a task in Keras; arguments as of `longspan.pipelines.backends.base.LoadedModel`."""

    def _forward(self) -> Callable[..., Any]:
        call: Callable[..., Any] = self.model.call
        return call

    def run(self, inputs: base.Inputs, wanted: Ids | None = None) -> dict[str, Floats]:
        """Outputs of a batch; see `longspan.pipelines.backends.base.TaskModel.run`."""
        names = tuple(inputs)
        function = partial(_task_outputs, self.model, names, self._outputs, self._has_choices)
        specs = [([None, None], "int32")] * len(names)
        arrays = self._run(names, function, specs, [array.astype(np.int32) for array in inputs.values()])
        if wanted is not None:
            arrays = [array[np.arange(len(wanted))[:, None], wanted] for array in arrays]
        return dict(zip(self._outputs, arrays, strict=True))


class WriterBackend(_KerasBackend, base.BatchWriter):
    """A model that generates in Keras; arguments as of `longspan.pipelines.backends.base.LoadedModel`."""

    def _generate(self, ids: Any, mask: Any, settings: Mapping[str, Any]) -> Any:
        with _on_device(self.device):
            return to_numpy(self.model.generate(ids, attention_mask=mask, **settings))


def _task_outputs(
    model: Any, names: tuple[str, ...], outputs: tuple[str, ...], has_choices: bool, *inputs: Any
) -> list[Any]:
    named = {name: array[:, None] if has_choices else array for name, array in zip(names, inputs, strict=True)}
    results = model(named, training=False)
    return [ops.cast(results[name], "float32") for name in outputs]


def _pooled_states(
    model: Any, with_max: bool, input_ids: Any, attention_mask: Any, weights: Any, max_mask: Any
) -> list[Any]:
    mask = ops.cast(attention_mask, "int32")
    states = model(input_ids, attention_mask=mask, training=False).last_hidden_state
    return [pool(states, weights, max_mask if with_max else None)]


def _on_device(name: str | None) -> AbstractContextManager[Any]:
    if name is None:
        return nullcontext()
    context: AbstractContextManager[Any] = keras.device(name)
    return context


def _make_graph(function: Any, specs: Specs) -> Any:
    """A TensorFlow graph of `function` that serves arrays of any size; `specs` are their shapes and types."""
    import tensorflow as tf

    signature = [tf.TensorSpec(shape, dtype) for shape, dtype in specs]
    return tf.function(function, input_signature=signature, autograph=False)


def _accelerators() -> list[str]:
    """Names of devices besides the CPU, which TensorFlow would quietly do without."""
    if not is_tensorflow():
        return []
    import tensorflow as tf

    return [device.name.removeprefix("/device:").lower() for device in tf.config.list_logical_devices("GPU")]


def _check_device(name: str | None) -> str | None:
    if name is None:
        return None
    known = ["cpu", "cpu:0", *_accelerators(), *(["gpu"] if _accelerators() else [])]
    if is_tensorflow() and name.lower() not in known:
        raise InputError(f"device must be one of {', '.join(known)} on this machine. Received: device={name!r}")
    return name
