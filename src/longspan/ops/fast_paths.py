"""The door to `longspan.fast`: kernels that compute what the definitions compute, sooner.

Models and operations ask here by name and have a definition at hand for the answer None, so that the package may be
switched off, or be absent.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from longspan.machine import lacks_products

logger = logging.getLogger("longspan")
#: why an implementation of the package cannot serve
NOT_AVAILABLE = "longspan.fast, where it lives, is switched off (longspan.plain) or absent"
_PACKAGE = "longspan.fast"
_is_off: ContextVar[bool] = ContextVar("longspan_plain", default=False)
_found: dict[str, Callable[..., Any] | None] = {}


@contextmanager
def plain() -> Iterator[None]:
    """Compute by the definitions alone, without kernels, blocks and token steps that are there for speed.

    It holds for the calls that the present thread (or task) makes inside the block; the numbers are the same up to
    rounding. Half precision then stays half precision on CPUs that have no instructions for it, in programs that are
    traced inside the block too. It is for looking at a model as its paper writes it, and for finding out whether a
    surprise is ours.

    Example:
        >>> import torch
        >>> import longspan
        >>> config = longspan.BertConfig(hidden_size=64, num_attention_heads=2, num_hidden_layers=1, vocab_size=100)
        >>> model = longspan.BertModel(config).eval()
        >>> with longspan.plain(), torch.no_grad():
        ...     model(torch.tensor([[1, 2, 3]])).last_hidden_state.shape
        torch.Size([1, 3, 64])
    """
    token = _is_off.set(True)
    try:
        yield
    finally:
        _is_off.reset(token)


def is_off() -> bool:
    """True inside `plain`."""
    return _is_off.get()


def is_available() -> bool:
    """True if the package is there and switched on (for PyTorch)."""
    return not _is_off.get() and _find("matmul.linear") is not None


def widens(dtype: str) -> bool:
    """True if a CPU is to compute in float32 what is asked for in `dtype`, half precision that it has no products for.

    Weights stay as they are stored, outputs have the dtype that was asked for. `plain` leaves all in half precision.
    """
    if _is_off.get() or not lacks_products(dtype):
        return False
    say_widened(dtype)
    return True


@functools.cache
def say_widened(dtype: str) -> None:
    """Say once that products are taken in float32 instead of `dtype`."""
    logger.info("this CPU has no instructions for products in %s: they are taken in float32", dtype)


def fast_path(name: str) -> Callable[..., Any] | None:
    """The function `"module.function"` of `longspan.fast`; None if the package is absent or switched off."""
    return None if _is_off.get() else _find(name)


def _find(name: str) -> Callable[..., Any] | None:
    try:
        return _found[name]
    except KeyError:
        pass
    module, _, function = name.rpartition(".")
    try:
        found = importlib.import_module(f"{_PACKAGE}.{module}")
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith(_PACKAGE):
            raise
        _found[name] = None
    else:
        _found[name] = getattr(found, function)
    return _found[name]
