"""What runs the batches of a pipeline: one small class a framework, behind one protocol."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from longspan.checkpoints.hub import Source
from longspan.errors import InputError, missing_framework

#: framework -> module here that holds its `EncoderBackend`
_MODULES = {name: f"longspan.pipelines.backends.{name}" for name in ("torch", "flax", "keras")}
_DTYPES = ("float32", "bfloat16", "float16")

Inputs = Mapping[str, npt.NDArray[Any]]


class Encoder(Protocol):
    """An encoder model on a device.

    Attributes:
        fixed_shapes: Whether every new shape costs a compilation, so that batches should come in few shapes.
    """

    fixed_shapes: ClassVar[bool]

    @property
    def max_positions(self) -> int | None:
        """Most tokens the model reads at once, special tokens included; None if it has no limit."""
        ...

    @property
    def hidden_size(self) -> int:
        """Length H of a token's state."""
        ...

    @property
    def batch_tokens(self) -> int:
        """Positions of a batch that suit the device."""
        ...

    def reading(self, num_tokens: int) -> AbstractContextManager[object]:
        """What to hold while batches of so many tokens in all are run."""
        ...

    def encode_batch(
        self,
        input_ids: npt.NDArray[np.int64],
        attention_mask: npt.NDArray[np.bool_],
        weights: npt.NDArray[np.float32],
        max_mask: npt.NDArray[np.bool_] | None,
    ) -> npt.NDArray[np.float32]:
        """Pooled states of a batch.

        Args:
            input_ids: (B, S) token ids, padded on the right.
            attention_mask: (B, S), True at real tokens; rows without any fill a batch up.
            weights: (B, M, S) weight of each token for each vector that is wanted.
            max_mask: (B, S), True at the tokens whose greatest value is wanted as one more vector; None for none.

        Returns:
            (B, M (+ 1), H) float32: the weighted sums, and the maximum last.
        """
        ...


class TaskModel(Protocol):
    """A model with the head of a task on a device.

    Attributes:
        fixed_shapes: Whether every new shape costs a compilation, so that batches should come in few shapes.
    """

    fixed_shapes: ClassVar[bool]

    @property
    def config(self) -> Any:
        """The model's configuration."""
        ...

    @property
    def max_positions(self) -> int | None:
        """Most tokens the model reads at once, special tokens included; None if it has no limit."""
        ...

    @property
    def batch_tokens(self) -> int:
        """Positions of a batch that suit the device."""
        ...

    @property
    def input_names(self) -> frozenset[str]:
        """Names of the inputs that the model takes."""
        ...

    def reading(self, num_tokens: int) -> AbstractContextManager[object]:
        """What to hold while batches of so many tokens in all are run."""
        ...

    def run(self, inputs: Inputs, wanted: npt.NDArray[np.int64] | None = None) -> dict[str, npt.NDArray[np.float32]]:
        """Outputs of a batch.

        Args:
            inputs: (B, S) arrays by name: `input_ids` and `attention_mask` (True at real tokens; rows without any fill
                a batch up) always, others as `input_names` allows.
            wanted: (B, P) tokens whose outputs are wanted; None for all.

        Returns:
            float32 arrays under the names that `longspan.tasks.TASKS` lists, `(B, ...)`.
        """
        ...


class Writer(Protocol):
    """A model that generates, on a device."""

    @property
    def model(self) -> Any:
        """The model."""
        ...

    def write(self, rows: Sequence[Sequence[int]], settings: Mapping[str, Any]) -> list[list[int]]:
        """What the model writes for a batch.

        Args:
            rows: Token ids of each prompt, or of each input of the encoder.
            settings: Settings of `generate`; also `seed`, which makes sampling repeat exactly.

        Returns:
            New token ids, prompts not included, of each row; for `num_return_sequences` above 1 of so many rows for
            each prompt.
        """
        ...


def longest_input(config: Any) -> int | None:
    """Most tokens that a model reads at once, special tokens included; None if it has no limit."""
    if config.model_type == "longformer":  # its position table begins with rows that no token has
        return int(config.max_length)
    if config.model_type == "mega":  # chunks and rotary biases reach any length
        is_bounded = config.relative_positional_bias == "simple" and not config.use_chunking
        return int(config.bias_positions) if is_bounded else None
    limit: int | None = getattr(config, "max_position_embeddings", None)
    return limit


def load_encoder(
    framework: str,
    source: Source,
    *,
    device: str | None = None,
    dtype: str | None = None,
    attn_implementation: str | None = None,
    max_length: int | None = None,
) -> Encoder:
    """Load the model of a pipeline.

    Args:
        framework: `"torch"`, `"flax"` or `"keras"`.
        source: Where the model is.
        device: Device in the framework's words; None chooses.
        dtype: `"float32"` (the default), `"bfloat16"` or `"float16"`.
        attn_implementation: Implementation of attention; None chooses.
        max_length: Longest input wanted; a backend that can lengthen a model does so.

    Raises:
        InputError: there is no such framework, device or dtype.
        MissingFrameworkError: the framework is not installed.
    """
    module = _import_backend(framework, dtype)
    encoder: Encoder = module.EncoderBackend(
        source, device=device, dtype=dtype, attn_implementation=attn_implementation, max_length=max_length
    )
    return encoder


def load_task_model(
    framework: str,
    model: Source | Any,
    task: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    attn_implementation: str | None = None,
) -> TaskModel:
    """Load the model of a task.

    Args:
        framework: `"torch"`, `"flax"` or `"keras"`.
        model: Where the model is, or a model of that framework.
        task: A key of `longspan.tasks.TASKS`.
        device: Device in the framework's words; None chooses.
        dtype: `"float32"` (the default), `"bfloat16"` or `"float16"`.
        attn_implementation: Implementation of attention; None chooses.

    Raises:
        InputError: there is no such framework, device or dtype.
        ConfigError: the family has no class for the task in this framework.
        MissingFrameworkError: the framework is not installed.
    """
    module = _import_backend(framework, dtype)
    task_model: TaskModel = module.TaskBackend(
        model, task=task, device=device, dtype=dtype, attn_implementation=attn_implementation
    )
    return task_model


def load_writer(
    framework: str, model: Source | Any, task: str, *, device: str | None = None, dtype: str | None = None
) -> Writer:
    """Load a model that generates.

    Args:
        framework: `"torch"` or `"flax"`.
        model: Where the model is, or a model of that framework.
        task: `"text-generation"` or `"text2text-generation"`.
        device: Device in the framework's words; None chooses.
        dtype: `"float32"` (the default), `"bfloat16"` or `"float16"`.

    Raises:
        InputError: there is no such framework, device or dtype, or its models do not generate.
        ConfigError: the family has no class for the task in this framework.
        MissingFrameworkError: the framework is not installed.
    """
    if framework == "keras":
        raise InputError(
            "Models of torch and flax write text; those of Keras have no generate. Received: framework='keras'"
        )
    writer: Writer = _import_backend(framework, dtype).WriterBackend(model, task=task, device=device, dtype=dtype)
    if not hasattr(writer.model, "generate"):
        raise InputError(f"model must be one that writes: one with generate. Received: {type(writer.model).__name__}")
    if writer.model.config.is_encoder_decoder != (task == "text2text-generation"):
        kind = "with" if task == "text2text-generation" else "without"
        raise InputError(f"{task} needs a model {kind} an encoder. Received: {type(writer.model).__name__}")
    return writer


def framework_of(model: object) -> str | None:
    """Framework of a model of longspan; None if `model` is none."""
    for base in type(model).__mro__:
        parts = base.__module__.split(".")
        if parts[:2] == ["longspan", "nn"] and parts[2] in _MODULES:
            return parts[2]
    return None


def _import_backend(framework: str, dtype: str | None) -> Any:
    if framework not in _MODULES:
        raise InputError(f"framework must be one of {', '.join(_MODULES)}. Received: framework={framework!r}")
    if dtype is not None and dtype not in _DTYPES:
        raise InputError(f"dtype must be one of {', '.join(_DTYPES)}. Received: dtype={dtype!r}")
    try:
        return importlib.import_module(_MODULES[framework])
    except ModuleNotFoundError as error:
        translated = missing_framework(f"framework={framework!r}", error)
        if translated is None:
            raise
        raise translated from None
