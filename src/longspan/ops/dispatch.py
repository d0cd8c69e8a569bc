"""Which implementation of an operation runs.

An implementation has a name and says *why not* when it cannot serve a request. A name of this package that cannot
serve raises with that reason. `"auto"` chooses, in a stated order, and logs once what it chose; a name of the reference
that cannot serve is a choice too, as there, with one warning in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

from longspan.errors import InputError

logger = logging.getLogger("longspan")

Request = TypeVar("Request")

#: the reference's names of implementations; where an operation has none of that name, they leave the choice to it
REFERENCE_NAMES = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")

#: reason why an implementation cannot serve a request, or None if it can
WhyNot = Callable[[Request], str | None]

_recorders: ContextVar[tuple[list[str], ...]] = ContextVar("longspan_recorders", default=())
_announced: set[str] = set()


class Dispatcher(Generic[Request]):
    """Chooses among the named implementations of one operation.

    Args:
        operation: Name of the operation, for messages.
        implementations: Name -> `why_not(request)`; `"auto"` tries them in this order.

    Example:
        >>> def odd(n): return "n must be even" if n % 2 else None
        >>> dispatcher = Dispatcher("toy", {"fast": odd, "slow": lambda n: None})
        >>> dispatcher.choose("auto", 3)
        'slow'
    """

    def __init__(self, operation: str, implementations: Mapping[str, WhyNot[Request]]) -> None:
        self.operation = operation
        self.implementations = dict(implementations)

    def check_name(self, name: str) -> None:
        """Raise `InputError` unless `name` is `"auto"`, an implementation, or one of the reference's."""
        if name != "auto" and name not in self.implementations and name not in REFERENCE_NAMES:
            known = ", ".join(["auto", *self.implementations])
            raise InputError(f"attn_implementation must be one of {known} for {self.operation}. Received: {name!r}")

    def choose(self, name: str, request: Request, *, tracing: bool = False) -> str:
        """The name of the implementation that serves `request`.

        Args:
            name: `"auto"`, or the name that must serve. A name of the reference that is none of this operation's, or
                cannot serve, stands for `"auto"`: the results are the same, only the way there differs.
            request: What is asked of the operation.
            tracing: A graph is being traced: neither log nor record.

        Raises:
            InputError: the name is unknown or cannot serve; the message says why.
        """
        self.check_name(name)
        reason = self.implementations[name](request) if name in self.implementations else None
        if name in self.implementations and reason is None:
            chosen = name
        else:
            chosen = next(key for key, why_not in self.implementations.items() if why_not(request) is None)
        if reason is not None:
            message = f"attn_implementation={name!r} cannot serve this call of {self.operation}: {reason}"
            if name not in REFERENCE_NAMES:
                raise InputError(message)
            if not tracing:
                _log_once(logging.WARNING, f"{message}; {chosen!r} serves it")
        if not tracing:
            _log_once(logging.INFO, f"{self.operation} runs attn_implementation={chosen!r}")
            record(chosen)
        return chosen


def _log_once(level: int, message: str) -> None:
    if message not in _announced:
        _announced.add(message)
        logger.log(level, message)


def record(implementation: str) -> None:
    """Tell the open `recording()` blocks that an implementation runs."""
    for recorder in _recorders.get():
        recorder.append(implementation)


@contextmanager
def recording() -> Iterator[list[str]]:
    """Collect the names of the implementations that run inside the block, in order.

    Example:
        >>> with recording() as ran:
        ...     record("sdpa")
        >>> ran
        ['sdpa']
    """
    ran: list[str] = []
    token = _recorders.set((*_recorders.get(), ran))
    try:
        yield ran
    finally:
        _recorders.reset(token)
