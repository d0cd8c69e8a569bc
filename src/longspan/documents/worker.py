"""The process in which PDF and Parquet files are parsed, so that one made to harm costs a named file and no more.

Run as `python -m longspan.documents.worker`; `longspan.documents.isolated` talks to it over pipes. A request is a line
of JSON and, unless that names a path, the bytes of the file. Replies are lines of JSON: `{"values": …}` any number of
times, then `{"end": true}` or `{"error": …}`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from typing import IO, Any

from longspan.documents.document import UnreadableError
from longspan.documents.limits import ReadLimits
from longspan.documents.pdf import pdf_pages
from longspan.documents.tables import parquet_rows

_READERS = {"pdf": pdf_pages, "parquet": parquet_rows}
#: Seconds after which a worker ends by itself if whoever asked it is gone.
_GRACE_SECONDS = 5


def main() -> None:
    """Answer requests until the standard input ends."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a parser prints is no reply
    while line := requests.readline():
        request = json.loads(line)
        limits = ReadLimits(**request["limits"])
        data = None if request["size"] is None else requests.read(request["size"])
        try:
            _limit_memory(limits.memory)
            _answer(replies, _READERS[request["kind"]](data if data is not None else request["path"], limits), limits)
            reply: dict[str, Any] = {"end": True}
        except UnreadableError as error:
            reply = {"error": error.reason}
        except MemoryError:
            reply = {"error": f"needs more memory than the limit of {limits.memory:,} bytes"}
        except Exception as error:  # a parser fed with damaged files fails in every way there is
            reply = {"error": f"damaged file ({type(error).__name__}: {' '.join(str(error).split())[:300]})"}
        del data
        _send(replies, reply)


def _answer(replies: IO[bytes], values: Iterator[Any], limits: ReadLimits) -> None:
    while True:
        _alarm(limits.seconds + _GRACE_SECONDS)
        try:
            value = next(values, None)
        finally:
            _alarm(0)
        if value is None:
            return
        _send(replies, {"values": value})


def _send(replies: IO[bytes], reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply, default=str).encode() + b"\n")
    replies.flush()


def _alarm(seconds: int) -> None:
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)


def _limit_memory(extra: int) -> None:
    """Let this process have `extra` bytes more than it has now, where the system can say."""
    try:
        import resource
        from pathlib import Path

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ModuleNotFoundError, OSError):
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = pages * resource.getpagesize() + extra
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


if __name__ == "__main__":
    main()
