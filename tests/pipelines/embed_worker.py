"""Runs a command of longspan that has `--output` in child processes and kills them at random moments.

Libraries are imported once and each run is forked, so that dozens of runs take seconds.

Usage: `embed_worker.py KILLS FOLDER NAME ARGUMENTS...` writes FOLDER/undisturbed/NAME in one run. Then it kills KILLS
runs that write FOLDER/killed/NAME, each going on from the one before, and lets one finish. Runs that finish too early
are kept as FOLDER/early-N/NAME, and the next begins anew. Alone, an argument is a list of such arguments in JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from longspan.cli.main import app
from longspan.cli.running import run
from longspan.pipelines.backends import torch as _backend  # noqa: F401 - imported before the fork
from longspan.search import parquet

#: Exit codes of a finished run; in that of 3 something was left out.
DONE = (0, 3)


def start(arguments: list[str], output: Path) -> int:
    """Fork a run; its process id."""
    output.parent.mkdir(exist_ok=True)
    child = os.fork()
    if child == 0:
        os._exit(run(app, [*arguments, "--output", str(output)]))
    return child


def finish(child: int) -> None:
    """Wait for a run that must succeed."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in DONE:
        sys.exit(f"a run ended with exit code {code}")


def was_killed(child: int, delay: float) -> bool:
    """Kill a run after `delay` seconds, unless it is through by then."""
    deadline = time.monotonic() + delay
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if os.waitstatus_to_exitcode(status) not in DONE:
                sys.exit(f"a run ended with status {status}")
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def is_finished(output: Path) -> bool:
    """True if nothing was left to do but to end the process. The folder of an index is there from the start."""
    return output.is_file() and not output.with_name(f".{output.name}.work").exists()


def kill_runs(kills: int, folder: Path, name: str, arguments: list[str]) -> None:
    """Kill runs, then let one finish."""
    finish(start(arguments, folder / "warm-up" / name))
    begin = time.monotonic()
    finish(start(arguments, folder / "undisturbed" / name))
    duration = time.monotonic() - begin
    draw = random.Random(kills)
    output = folder / "killed" / name
    killed = early = 0
    while killed < kills:
        had_work = was_killed(start(arguments, output), draw.uniform(0, duration))
        if had_work and not is_finished(output):
            killed += 1
        else:
            output.parent.rename(folder / f"early-{early}")
            early += 1
    finish(start(arguments, output))


def main() -> None:
    """Do what the command line says, once or for each of a list."""
    torch.set_num_threads(1)
    parquet.import_pyarrow()
    given = sys.argv[1:]
    for kills, folder, name, *arguments in json.loads(given[0]) if len(given) == 1 else [given]:
        kill_runs(int(kills), Path(folder), name, arguments)


if __name__ == "__main__":
    main()
