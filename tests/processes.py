"""Runs programs that start processes of their own, none of which outlives the test."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

_TAIL = 4000


def run_group(
    command: Sequence[str | os.PathLike[str]],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and end what it has left behind.

    What it writes goes to files: a process that it leaves would hold a pipe open, and who reads that waits for ever.

    Args:
        command: The program and its arguments.
        timeout: Seconds after which it and its processes are killed.
        env: Its environment; None for this process's.
        cwd: Its folder; None for this process's.

    Raises:
        AssertionError: with the end of what it wrote, if it took longer.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=env, cwd=cwd, start_new_session=True)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            written = f"{_written(out)[-_TAIL:]}\n{_written(err)[-_TAIL:]}"
            raise AssertionError(f"{command} took more than {timeout:g} s:\n{written}") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return subprocess.CompletedProcess(process.args, process.returncode, _written(out), _written(err))


def _written(file: IO[str]) -> str:
    file.seek(0)
    return file.read()
