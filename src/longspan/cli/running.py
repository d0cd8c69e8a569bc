"""From exceptions to one clear line and an exit code."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import typer

from longspan.errors import LongspanError

FAILED = 1
NOT_UNDERSTOOD = 2
SOMETHING_LEFT_OUT = 3
INTERRUPTED = 130


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
    with warnings.catch_warnings():
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
            code = _explain(error, as_json)
    if code == INTERRUPTED:
        _show_error("interrupted: finished work is kept, the same command goes on", "Interrupted", as_json)
    return code if isinstance(code, int) else 0


def _explain(error: Exception, as_json: bool) -> int:
    if hasattr(error, "format_message"):  # the command was not understood; typer's class for that is private
        if not as_json and hasattr(error, "show"):
            error.show()
        else:
            _show_error(error.format_message(), "UsageError", as_json)
        return NOT_UNDERSTOOD
    if isinstance(error, LongspanError | OSError | MemoryError):
        _show_error(str(error) or type(error).__name__, type(error).__name__, as_json)
    else:
        message = f"unexpected {type(error).__name__}: {error} (longspan --debug ... shows where; please report it)"
        _show_error(message, type(error).__name__, as_json)
    return FAILED


def _show_error(message: str, kind: str, as_json: bool) -> None:
    if as_json:
        line = json.dumps({"error": {"type": kind, "message": message}})
    else:
        line = f"error: {' '.join(message.split())}"
    typer.echo(line, err=True)


def _show_warning(message: Warning | str, *details: Any, **more: Any) -> None:
    typer.echo(f"warning: {' '.join(str(message).split())}", err=True)
