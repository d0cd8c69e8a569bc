"""Runs in forked processes: what all of them need is imported once, in the process that forks."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import sys
from collections.abc import Callable


def start(act: Callable[[], int]) -> int:
    """Fork a process that ends with the exit code that `act` gives; its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = act()
            sys.stdout.flush()
        finally:
            os._exit(code)
    return child


def finish(child: int) -> int:
    """Wait for a process: its exit code, that of a shell if a signal ended it."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else 128 - code


def import_what_runs_need(act: Callable[[], int]) -> int:
    """Run `act` in a forked process and import here what it imported there; its exit code.

    The process that forks never runs anything itself: threads that a library starts do not survive a fork.
    """
    known = set(sys.modules)
    reader, writer = os.pipe()

    def tell() -> int:
        code = act()
        new = [name for name in list(sys.modules) if name not in known]
        os.write(writer, json.dumps(new).encode())
        return code

    child = start(tell)
    os.close(writer)
    with os.fdopen(reader, "rb") as told:
        names = json.loads(told.read() or b"[]")
    for name in names:
        with contextlib.suppress(ImportError):  # modules that others make while they run
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a search for garbage in a child would copy every page that it shares
    return finish(child)
