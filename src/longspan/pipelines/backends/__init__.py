"""What runs the batches of a pipeline: one small module a framework, behind one set of base classes."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from longspan.checkpoints.files import open_checkpoint
from longspan.checkpoints.hub import Source
from longspan.configuration import SOURCE_ARGUMENTS, PretrainedConfig
from longspan.errors import InputError, missing_framework
from longspan.pipelines.backends.base import INT8, Encoder, TaskModel, Writer, longest_input

__all__ = [
    "Encoder",
    "TaskModel",
    "Writer",
    "load_encoder",
    "load_task_model",
    "load_writer",
    "longest_input",
]

#: framework -> module here that holds its backends
_MODULES = {name: f"longspan.pipelines.backends.{name}" for name in ("torch", "flax", "keras")}
_DTYPES = ("float32", "bfloat16", "float16")


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
        dtype: `"float32"` (the default), `"bfloat16"`, `"float16"` or, in PyTorch on a CPU, `"int8"`.
        attn_implementation: Implementation of attention; None chooses.
        max_length: Longest input wanted; a backend that can lengthen a model does so.

    Raises:
        InputError: there is no such framework, device or dtype.
        MissingFrameworkError: the framework is not installed.
    """
    _check_int8(framework, dtype)
    module = _import_backend(framework, dtype, dtypes=(*_DTYPES, INT8))
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
    settings: Mapping[str, Any] | None = None,
) -> TaskModel:
    """Load the model of a task.

    Args:
        framework: `"torch"`, `"flax"` or `"keras"`.
        model: Where the model is, or a model of that framework.
        task: A key of `longspan.tasks.TASKS`.
        device: Device in the framework's words; None chooses.
        dtype: `"float32"` (the default), `"bfloat16"`, `"float16"`, or `"auto"` for that of the stored weights.
        settings: Further arguments of `from_pretrained`.

    Raises:
        InputError: there is no such framework, device or dtype.
        ConfigError: the family has no class for the task in this framework.
        MissingFrameworkError: the framework is not installed.
    """
    dtype = _stored_dtype(model) if dtype == "auto" else dtype
    module = _import_backend(framework, dtype)
    task_model: TaskModel = module.TaskBackend(model, task=task, device=device, dtype=dtype, settings=settings or {})
    return task_model


def load_writer(
    framework: str,
    model: Source | Any,
    task: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Writer:
    """Load a model that generates.

    Args:
        framework: `"torch"`, `"flax"` or `"keras"`.
        model: Where the model is, or a model of that framework.
        task: `"text-generation"` or `"text2text-generation"`.
        device: Device in the framework's words; None chooses.
        dtype: `"float32"` (the default), `"bfloat16"`, `"float16"`, `"auto"` for that of the stored weights, or, in
            PyTorch on a CPU, `"int8"` for weights of linear layers in 8 bits.
        settings: Further arguments of `from_pretrained`.

    Raises:
        InputError: there is no such framework, device or dtype, or its models do not generate.
        ConfigError: the family has no class for the task in this framework.
        MissingFrameworkError: the framework is not installed.
    """
    dtype = _stored_dtype(model) if dtype == "auto" else dtype
    _check_int8(framework, dtype)
    writer: Writer = _import_backend(framework, dtype, dtypes=(*_DTYPES, INT8)).WriterBackend(
        model, task=task, device=device, dtype=dtype, settings=settings or {}
    )
    if not hasattr(writer.model, "generate"):
        raise InputError(f"model must be one that writes: one with generate. Received: {type(writer.model).__name__}")
    if writer.model.config.is_encoder_decoder != (task == "text2text-generation"):
        kind = "with" if task == "text2text-generation" else "without"
        raise InputError(f"{task} needs a model {kind} an encoder. Received: {type(writer.model).__name__}")
    return writer


def _check_int8(framework: str, dtype: str | None) -> None:
    if dtype == INT8 and framework != "torch":
        raise InputError(f"dtype='int8' needs framework='torch'. Received: framework={framework!r}")


def _stored_dtype(model: Source | Any) -> str | None:
    """The dtype that a checkpoint's settings name, else that of its weights; None for a loaded model."""
    if not isinstance(model, Source):
        return None
    settings = PretrainedConfig.get_config_dict(model.name, **{name: getattr(model, name) for name in SOURCE_ARGUMENTS})
    named = settings.get("dtype") or settings.get("torch_dtype")
    if named is not None:
        return str(named).removeprefix("torch.")
    with open_checkpoint(model) as weights:
        return weights.float_dtype


def _import_backend(framework: str, dtype: str | None, *, dtypes: tuple[str, ...] = _DTYPES) -> Any:
    if framework not in _MODULES:
        raise InputError(f"framework must be one of {', '.join(_MODULES)}. Received: framework={framework!r}")
    if dtype is not None and dtype not in dtypes:
        raise InputError(f"dtype must be one of {', '.join(dtypes)}. Received: dtype={dtype!r}")
    try:
        return importlib.import_module(_MODULES[framework])
    except ModuleNotFoundError as error:
        translated = missing_framework(f"framework={framework!r}", error)
        if translated is None:
            raise
        raise translated from None
