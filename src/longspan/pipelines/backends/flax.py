"""Batches of encoders, of models with heads and of models that generate in JAX and Flax.

XLA compiles one program a shape, so shapes are few.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import flax
import jax
import jax.numpy as jnp
import numpy as np

from longspan.auto import FlaxAutoModel
from longspan.checkpoints.hub import Source
from longspan.errors import InputError
from longspan.models.registry import Framework
from longspan.nn.flax.checks import is_intercepted
from longspan.pipelines.backends import base
from longspan.pipelines.backends.base import Floats, Ids, Mask


def pool(states: jax.Array, weights: jax.Array, max_mask: jax.Array | None) -> jax.Array:
    """Pooled states (B, M (+ 1), H) of states (B, S, H); see `base.Encoder.encode_batch`."""
    states = states.astype(jnp.float32)
    pooled = jnp.einsum("bms,bsh->bmh", weights, states, precision=jax.lax.Precision.HIGHEST)
    if max_mask is None:
        return pooled
    # looked up, not `max`: its gradient compares states, which a program may compute again with other rounding
    places = jnp.where(max_mask[:, :, None], states, -jnp.inf).argmax(axis=1, keepdims=True)
    return jnp.concatenate([pooled, jnp.take_along_axis(states, places, axis=1)], axis=1)


class _FlaxBackend(base.Backend):
    framework: ClassVar[Framework] = "flax"
    fixed_shapes: ClassVar[bool] = True

    def _place(
        self,
        model: Source | Any,
        model_class: Any,
        device: str | None,
        dtype: str | None,
        settings: Any,
        max_length: int | None = None,
    ) -> None:
        self.device = _device(device)
        if isinstance(model, Source):
            model = base.load(model, model_class, jnp.dtype(dtype or "float32"), settings)
            model = base.lengthened(model, max_length)
        self.model = model
        self._params = jax.device_put(model.params, self.device)
        #: programs compiled so far
        self.num_programs = 0

    def take(self, params: Any) -> None:
        """Compute with other parameters from now on."""
        self._params = jax.device_put(params, self.device)

    @property
    def on_cpu(self) -> bool:
        """Whether the model runs on the CPU."""
        return bool(self.device.platform == "cpu")

    @property
    def environment(self) -> dict[str, Any]:
        """What numbers depend on besides the checkpoint."""
        return {
            "versions": {"jax": jax.__version__, "flax": flax.__version__},
            "device": self.device.platform,
            "dtype": jnp.dtype(self.model.dtype).name,
            "precision": str(getattr(jax.config, "jax_default_matmul_precision", None)),
        }


class EncoderBackend(_FlaxBackend, base.Encoder):
    """An encoder model in Flax; see `longspan.pipelines.backends.base.Encoder`.

    Args:
        source: Where the model is.
        device: `"cpu"`, `"gpu"`, `"tpu"`, or one of several as `"gpu:1"`; None takes JAX's default.
        dtype: Type of the computation, e.g. `"bfloat16"`; parameters stay in float32.
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
        self._place(source, FlaxAutoModel, device, dtype, {"attn_implementation": attn_implementation}, max_length)
        self._program = jax.jit(self._pooled_states)

    def encode_batch(self, input_ids: Ids, attention_mask: Mask, weights: Floats, max_mask: Mask | None) -> Floats:
        """Pooled states (B, M (+ 1), H) of a batch; see `longspan.pipelines.backends.base.Encoder.encode_batch`."""
        batch = jax.device_put((input_ids.astype(np.int32), attention_mask, weights, max_mask), self.device)
        program = self._pooled_states if is_intercepted() else self._program
        return np.asarray(program(self._params, *batch))

    def _pooled_states(
        self,
        params: Any,
        input_ids: jax.Array,
        attention_mask: jax.Array,
        weights: jax.Array,
        max_mask: jax.Array | None,
    ) -> jax.Array:
        self.num_programs += 1  # runs when a shape is traced, not when its program runs
        states = self.model(input_ids, attention_mask=attention_mask, params=params).last_hidden_state
        return pool(states, weights, max_mask)


class TaskBackend(_FlaxBackend, base.TaskModel):
    """A model with the head of a task in Flax; arguments as of `longspan.pipelines.backends.base.LoadedModel`."""

    def __init__(self, model: Source | Any, **arguments: Any) -> None:
        super().__init__(model, **arguments)
        self._program = jax.jit(self._run, static_argnames="settings")

    def run(self, inputs: base.Inputs, wanted: Ids | None = None) -> dict[str, Floats]:
        """Outputs of a batch; see `longspan.pipelines.backends.base.TaskModel.run`."""
        arrays = {name: array.astype(np.int32) for name, array in inputs.items()}
        if self._has_choices:
            arrays = {name: array[:, None] for name, array in arrays.items()}
        settings = tuple(self.model.program_settings(arrays).items())
        program = self._run if is_intercepted() else self._program
        outputs = program(self._params, *jax.device_put((arrays, wanted), self.device), settings=settings)
        return {name: np.asarray(value) for name, value in outputs.items()}

    def _run(
        self,
        params: Any,
        inputs: dict[str, jax.Array],
        wanted: jax.Array | None,
        *,
        settings: tuple[tuple[str, Any], ...],
    ) -> dict[str, jax.Array]:
        self.num_programs += 1  # runs when a shape is traced, not when its program runs
        outputs = self.model(**inputs, **dict(settings), params=params)
        results = {name: outputs[name].astype(jnp.float32) for name in self._outputs}
        if wanted is None:
            return results
        rows = jnp.arange(wanted.shape[0])[:, None]
        return {name: values[rows, wanted] for name, values in results.items()}


class WriterBackend(_FlaxBackend, base.BatchWriter):
    """A model that generates in Flax; arguments as of `longspan.pipelines.backends.base.LoadedModel`."""

    def _generate(self, ids: Any, mask: Any, settings: Mapping[str, Any]) -> Any:
        seed = settings.get("seed")
        with jax.default_device(self.device):
            return self.model.generate(
                ids,
                attention_mask=mask,
                params=self._params,
                prng_key=None if seed is None else jax.random.PRNGKey(seed),
                **{name: value for name, value in settings.items() if name != "seed"},
            ).sequences


def _device(name: str | None) -> jax.Device:
    if name is None:
        return jax.devices()[0]
    platform, _, number = name.partition(":")
    try:
        return jax.devices(platform)[int(number or 0)]
    except (RuntimeError, ValueError, IndexError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"device must exist on this machine. Received: device={name!r} ({reason})") from error
