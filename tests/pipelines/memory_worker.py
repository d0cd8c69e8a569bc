"""Runs a task on documents that are made when they are asked for: `memory_worker.py MODEL TASK DOCUMENTS`.

Prints the growth of the peak of resident memory in bytes, and the number of results.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from longspan import pipeline

WORDS = ["open", "the", "log", "file", "and", "read", "what", "Ada", "wrote", "in", "London", "about", "the", "engine"]


def documents(count: int) -> Iterator[str]:
    """Documents of 60 to 400 words; every hundredth is longer than the model."""
    for number in range(count):
        size = 60 + number * 37 % 340
        yield " ".join(WORDS[(number + place) % len(WORDS)] for place in range(size * (5 if number % 100 == 0 else 1)))


def status(field: str) -> int:
    """A line of this process's status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main(model: str, task: str, count: int) -> None:
    """Measure."""
    run = pipeline(task, model, batch_tokens=512)
    list(run(documents(20)))
    before = status("VmRSS")
    number = sum(1 for _ in run(documents(count)))
    print(status("VmHWM") - before, number)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
