"""From exceptions to one clear line and an exit code."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from longspan.errors import LongspanError

FAILED = 1
NOT_UNDERSTOOD = 2
SOMETHING_LEFT_OUT = 3
INTERRUPTED = 130
#: Signals that end a command as an interrupt does; Windows has no hang-up.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class _StoppedError(KeyboardInterrupt):
    """A signal asks the command to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run a command line.

    Args:
        app: The commands.
        arguments: Words of the command line. With `--json` errors are one line of JSON, with `--debug` they come with
            their traceback.

    Returns:
        The exit code.
    """
    as_json = "--json" in arguments
    stopped: list[int] = []
    with warnings.catch_warnings(), _signals_interrupt(stopped), _interrupts_are_heard():
        warnings.showwarning = _show_warning
        try:
            code = typer.main.get_command(app).main(list(arguments), prog_name="longspan", standalone_mode=False)
            sys.stdout.flush()
        except SystemExit as error:  # typer ends so where the reader of our output has closed the pipe
            code = error.code
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = FAILED
        except (KeyboardInterrupt, typer.Abort):
            code = INTERRUPTED
        except Exception as error:
            if "--debug" in arguments:
                raise
            code = INTERRUPTED if _stems_from_interrupt(error) else _explain(error, as_json)
    if code == INTERRUPTED:
        how = f"stopped by {signal.Signals(stopped[0]).name}" if stopped else "interrupted"
        code = 128 + stopped[0] if stopped else code
        _show_error(f"{how}: finished work is kept, the same command goes on", "Interrupted", as_json)
    return code if isinstance(code, int) else 0


@contextmanager
def _signals_interrupt(stopped: list[int]) -> Iterator[None]:
    """Let the signals that end a process interrupt the command, which then says how to go on; `stopped` gets them."""

    def stop(number: int, frame: Any) -> None:
        stopped.append(number)
        raise _StoppedError(number)

    usual = {}
    if threading.current_thread() is threading.main_thread():
        # what is ignored stays so: nohup has its command outlive the terminal
        usual = {number: signal.signal(number, stop) for number in _SIGNALS
                 if signal.getsignal(number) != signal.SIG_IGN}  # fmt: skip
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


@contextmanager
def _interrupts_are_heard() -> Iterator[None]:
    """Interrupt again where a library swallowed the first: in a finaliser or a callback nothing can be raised."""
    usual = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            number = getattr(unraisable.exc_value, "number", signal.SIGINT)
            threading.Timer(0.01, os.kill, [os.getpid(), number]).start()
        else:
            usual(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = usual


def _stems_from_interrupt(error: BaseException) -> bool:
    """True if a library turned an interrupt into an error of its own."""
    cause = error.__cause__ or error.__context__
    return cause is not None and (isinstance(cause, KeyboardInterrupt) or _stems_from_interrupt(cause))


def _explain(error: Exception, as_json: bool) -> int:
    if hasattr(error, "format_message"):  # the command was not understood; typer's class for that is private
        if not as_json and hasattr(error, "show"):
            error.show()
        else:
            _show_error(error.format_message(), "UsageError", as_json)
        return NOT_UNDERSTOOD
    if isinstance(error, LongspanError | OSError | MemoryError):
        _show_error(str(error) or type(error).__name__, type(error).__name__, as_json, getattr(error, "topic", ""))
    else:
        message = f"unexpected {type(error).__name__}: {error} (longspan --debug ... shows where; please report it)"
        _show_error(message, type(error).__name__, as_json)
    return FAILED


def _show_error(message: str, kind: str, as_json: bool, topic: str = "") -> None:
    from longspan.pipelines.run.progress import printable

    if as_json:
        line = json.dumps({"error": {"type": kind, "message": message, "topic": topic}})
    else:
        more = f" (what to do: longspan doctor --error {topic})" if topic else ""
        line = printable(f"error: {' '.join(message.split())}{more}")
    typer.echo(line, err=True)


def _show_warning(message: Warning | str, *details: Any, **more: Any) -> None:
    from longspan.pipelines.run.progress import printable

    typer.echo(printable(f"warning: {' '.join(str(message).split())}"), err=True)
