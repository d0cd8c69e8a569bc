"""longspan: long-document transformers for PyTorch, Keras 3 and JAX.

Importing this package imports no framework: each public name is loaded when it is first used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lazy_loader

__version__ = "0.2.0"

_load: Callable[[str], Any]
_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    try:
        return _load(name)
    except ModuleNotFoundError as error:
        from longspan.errors import missing_framework

        translated = missing_framework(name, error)
        if translated is None:
            raise
        raise translated from None
