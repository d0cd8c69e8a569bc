"""What another program on the same cores costs, with threads that spin while they wait and with threads that sleep.

`python -m benchmarks.busy` writes `benchmarks/results/busy.json`; it takes about seven minutes on two cores. Each work
runs alone and beside a program that keeps one core busy, with the settings of PyTorch and with those of the command
`longspan` (`longspan.machine.share_cores`). Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.machine import Setting, machine

RESULTS = Path(__file__).parent / "results" / "busy.json"
#: settings of threads -> what sets them
SETTINGS = {"spin": "pass", "sleep": "from longspan.machine import share_cores; share_cores()"}
RUNS = 3
#: a program that computes for as long as the one that started it lives
BUSY = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"


def works() -> dict[str, Callable[[], Any]]:
    """What is timed."""
    from benchmarks.cases import longformer
    from benchmarks.cases.sentence_encoder import documents, minilm
    from longspan import SentenceEncoder

    encoder, texts = SentenceEncoder(minilm()), documents()
    long = longformer.forward("float32", 1, 4096, layers=2).ours
    return {
        "query": lambda: encoder.encode(["How do I read a file line by line?"]),
        "texts": lambda: encoder.encode(texts),
        "longformer": long,
    }


def measure() -> dict[str, float]:
    """Median seconds of each work."""
    found = {}
    for name, run in works().items():
        run()
        seconds = []
        for _ in range(RUNS):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        found[name] = statistics.median(seconds)
    return found


@contextmanager
def busy_core(wanted: bool) -> Iterator[None]:
    """Another program that computes; in a session of its own, as a browser would."""
    if not wanted:
        yield
        return
    other = subprocess.Popen([sys.executable, "-c", BUSY, str(os.getpid())], start_new_session=True)
    try:
        yield
    finally:
        other.kill()
        other.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    rounds: dict[str, list[dict[str, float]]] = {}
    for _ in range(asked.rounds):
        for setting, code in SETTINGS.items():
            for is_busy in (False, True):
                run = f"{code}; import json; from benchmarks.busy import measure; print(json.dumps(measure()))"
                with busy_core(is_busy):
                    done = subprocess.run([sys.executable, "-c", run], stdout=subprocess.PIPE, text=True, check=True)
                rounds.setdefault(f"{setting}/{'busy' if is_busy else 'alone'}", []).append(
                    json.loads(done.stdout.splitlines()[-1])
                )
    seconds = {
        name: {work: statistics.median(one[work] for one in several) for work in several[0]}
        for name, several in rounds.items()
    }
    RESULTS.write_text(
        json.dumps({"machine": machine(Setting()), "seconds": seconds, "rounds": rounds}, indent=1) + "\n"
    )
    for name, found in seconds.items():
        print(name, {work: round(value, 4) for work, value in found.items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
