"""Runs tasks on documents that are made when they are asked for, and says by how much the peak of memory grows.

`python -m tests.pipelines.memory_worker JOBS`: JSON, a list of `[library, model, task, count, ...]`. Each runs in a
forked process and prints a line of JSON: for each count of documents in turn the peak of resident memory so far, in
bytes above that of the loaded model. The library is `longspan`, or `transformers` for short documents in a list.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tests import forked

WORDS = ["open", "the", "log", "file", "and", "read", "what", "Ada", "wrote", "in", "London", "about", "the", "engine"]


def documents(count: int, longer: int = 5) -> Iterator[str]:
    """Documents of 60 to 400 words; every hundredth is so many times as long."""
    for number in range(count):
        size = 60 + number * 37 % 340
        times = longer if number % 100 == 0 else 1
        yield " ".join(WORDS[(number + place) % len(WORDS)] for place in range(size * times))


def status(field: str) -> int:
    """A line of this process's status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure(library: str, model: str, task: str, *counts: int) -> int:
    """Measure in this process."""
    # documents that come one by one go through small batches
    is_stream = library == "longspan" and len(counts) > 1
    run = importlib.import_module(library).pipeline(task, model, **({"batch_tokens": 512} if is_stream else {}))
    before, peaks = status("VmRSS"), []
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    for count in counts:
        texts = documents(count) if is_stream else list(documents(count, 1))
        assert sum(1 for _ in run(texts)) == count
        peaks.append(status("VmHWM") - before)
    print(json.dumps(peaks), flush=True)
    return 0


def main() -> None:
    """Measure each job."""
    jobs = json.loads(sys.argv[1])
    importlib.import_module("longspan.pipelines.backends.torch")
    for library, *_ in jobs:
        importlib.import_module(library)
    for job in jobs:
        assert forked.finish(forked.start(lambda job=job: measure(*job))) == 0


if __name__ == "__main__":
    main()
