"""What training needs of each framework: one small module a framework, behind one base class."""

from __future__ import annotations

import importlib

from longspan.errors import missing_framework
from longspan.training.backends.base import TrainingBackend

__all__ = ["TrainingBackend", "load_backend"]


def load_backend(framework: str) -> TrainingBackend:
    """The backend of `"torch"`, `"flax"` or `"keras"`.

    Raises:
        MissingFrameworkError: the framework is not installed.
    """
    try:
        module = importlib.import_module(f"longspan.training.backends.{framework}")
    except ModuleNotFoundError as error:
        raise missing_framework(f"framework={framework!r}", error) or error from None
    backend: TrainingBackend = module.Backend()
    return backend
