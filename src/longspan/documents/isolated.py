"""Reading PDF and Parquet files in another process, under limits of time and memory."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from longspan.documents.document import UnreadableError
from longspan.documents.limits import ReadLimits
from longspan.documents.streams import open_file, read_content

if TYPE_CHECKING:
    from longspan.documents.walk import SourceFile

_NEEDS = {"pdf": ("PDF", "pypdf"), "parquet": ("Parquet", "pyarrow")}


def read_isolated(source: SourceFile, limits: ReadLimits) -> Iterator[Any]:
    """What the worker reads of a PDF or Parquet file, piece by piece.

    Args:
        source: The file, of kind `"pdf"` or `"parquet"`.
        limits: What it may cost.

    Raises:
        UnreadableError: the library is not installed, the file is damaged, or it passes a limit.
    """
    label, module = _NEEDS[source.kind]
    if find_spec(module) is None:
        raise UnreadableError(f"reading {label} needs {module}: pip install 'longspan[documents]'")
    data = read_content(source, limits.bytes) if source.path.suffix.lower() == ".gz" else None
    if data is None:
        open_file(source).close()  # a file that cannot be opened is named as such here
        if source.kind == "pdf" and source.size > limits.bytes:
            raise UnreadableError(f"larger than the limit of {limits.bytes:,} bytes")
    worker = _take_worker()
    finished = False
    try:
        worker.ask(source, data, limits)
        while (reply := worker.reply(limits.seconds)).get("end") is None:
            if "error" in reply:
                finished = True
                raise UnreadableError(reply["error"])
            yield reply["values"]
        finished = True
    finally:
        if finished:
            _idle.append(worker)
        else:
            worker.end()


class _Worker:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "longspan.documents.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # an interrupt of this program must not leave half a reply
        )

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, source: SourceFile, data: bytes | None, limits: ReadLimits) -> None:
        request = {
            "kind": source.kind,
            "path": os.path.abspath(source.path),  # noqa: PTH100 - links stay
            "size": None if data is None else len(data),
            "limits": asdict(limits),
        }
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request).encode() + b"\n" + (data or b""))
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise UnreadableError("the process that reads such files has ended") from error

    def reply(self, seconds: int) -> dict[str, Any]:
        """The next reply; the process is killed if it takes longer than `seconds`."""
        assert self._process.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(seconds, stop)
        timer.daemon = True
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if line.endswith(b"\n"):
            reply: dict[str, Any] = json.loads(line)
            return reply
        if late.is_set():
            raise UnreadableError(f"takes longer than the limit of {seconds} seconds")
        raise UnreadableError(f"damaged file (its parser ended with code {self._process.wait()})")

    def end(self) -> None:
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:  # an unsent request
                continue
        self._process.wait()


_idle: list[_Worker] = []


def _take_worker() -> _Worker:
    while _idle:
        worker = _idle.pop()
        if worker.is_alive():
            return worker
        worker.end()
    return _Worker()


@atexit.register
def _end_workers() -> None:
    while _idle:
        _idle.pop().end()


if hasattr(os, "register_at_fork"):  # the pipes belong to the parent
    os.register_at_fork(after_in_child=_idle.clear)
