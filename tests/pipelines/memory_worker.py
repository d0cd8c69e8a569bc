"""Runs a task on documents that are made when they are asked for: `memory_worker.py MODEL TASK DOCUMENTS [LIBRARY]`.

Prints the growth of the peak of resident memory in bytes, and the number of results. With a LIBRARY, `longspan` or
`transformers`, the growth is that above the loaded model, otherwise above what a few documents have left.
"""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

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


def main(model: str, task: str, count: int, library: str | None = None) -> None:
    """Measure."""
    pipeline = importlib.import_module(library or "longspan").pipeline
    run = pipeline(task, model, **({} if library else {"batch_tokens": 512}))
    if library is None:
        list(run(documents(20)))
    texts = list(documents(count, 1)) if library else documents(count)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    number = sum(1 for _ in run(texts))
    print(status("VmHWM") - before, number)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
