"""Which package holds the classes of a model type.

Everything is a string, so that looking a family up imports nothing.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import Any, Literal

from longspan.errors import ConfigError, InputError, missing_framework
from longspan.tasks import TASKS

Framework = Literal["torch", "flax", "keras"]

#: framework -> (module of a family, what comes before the class names)
_FRAMEWORKS: dict[Framework, tuple[str, str]] = {
    "torch": ("torch_model", ""),
    "flax": ("flax_model", "Flax"),
    "keras": ("keras_model", "TF"),
}
_ALIASES = {"pt": "torch", "tf": "keras", "jax": "flax"}


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        package: Package of the family, e.g. `"longspan.models.bert"`.
        prefix: Beginning of its class names, e.g. `"Bert"`; `Flax` and `TF` come before it.
    """

    package: str
    prefix: str


FAMILIES: dict[str, Family] = {
    "bert": Family("longspan.models.bert", "Bert"),
    "diffllama": Family("longspan.models.diffllama", "DiffLlama"),
    "mega": Family("longspan.models.mega", "Mega"),
    "longformer": Family("longspan.models.longformer", "Longformer"),
    "longt5": Family("longspan.models.longt5", "LongT5"),
    "roberta": Family("longspan.models.roberta", "Roberta"),
    "xlm-roberta": Family("longspan.models.roberta", "XLMRoberta"),
}


def get_family(model_type: str | None) -> Family:
    """The family of a model type.

    Raises:
        ConfigError: the model type is unknown.
    """
    if model_type not in FAMILIES:
        raise ConfigError(f"model_type must be one of {', '.join(FAMILIES)}. Received: model_type={model_type!r}")
    return FAMILIES[model_type]


def get_config_class(model_type: str | None) -> Any:
    """The configuration class of a model type."""
    family = get_family(model_type)
    return getattr(importlib.import_module(f"{family.package}.config"), f"{family.prefix}Config")


def get_model_class(model_type: str | None, task: str, framework: Framework) -> Any:
    """The class of a family for a task in a framework.

    Args:
        model_type: E.g. `"bert"`.
        task: A key of `longspan.tasks.TASKS`.
        framework: `"torch"`, `"flax"` or `"keras"`.

    Raises:
        ConfigError: the model type is unknown, or the family has no such class.
        MissingFrameworkError: the framework is not installed.
    """
    family = get_family(model_type)
    module_name, before = _FRAMEWORKS[framework]
    names = [f"{before}{family.prefix}{suffix}" for suffix in TASKS[task].suffixes]
    try:
        module = importlib.import_module(f"{family.package}.{module_name}")
    except ModuleNotFoundError as error:
        if error.name == f"{family.package}.{module_name}":
            raise ConfigError(
                f"{model_type!r} has no classes for {framework}. Received: framework={framework!r}"
            ) from None
        raise missing_framework(names[0], error) or error from None
    for name in names:
        if hasattr(module, name):
            return getattr(module, name)
    raise ConfigError(f"{model_type!r} must have a class for the task {task!r}. It has none of {', '.join(names)}")


def framework_of(model: object) -> str | None:
    """Framework of a model of longspan; None if `model` is none."""
    for base in type(model).__mro__:
        parts = base.__module__.split(".")
        if parts[:2] == ["longspan", "nn"] and parts[2] in _FRAMEWORKS:
            return parts[2]
    return None


def resolve_framework(asked: str | None, model: Any) -> str:
    """The framework that is asked for, or that of a loaded model; raises `InputError` if they differ."""
    if isinstance(model, str | os.PathLike):
        return "torch" if asked is None else _ALIASES.get(asked, asked)
    known = framework_of(model)
    if known is None:
        raise InputError(
            f"model must be a directory, a hub repository or a model of longspan. Received: {type(model).__name__}"
        )
    if asked is not None and _ALIASES.get(asked, asked) != known:
        raise InputError(f"framework must be that of the model, {known!r}. Received: framework={asked!r}")
    return known
