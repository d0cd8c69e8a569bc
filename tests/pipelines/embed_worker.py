"""Runs a command of longspan that has `--output` in child processes and kills them at random moments.

Usage: `python -m tests.pipelines.embed_worker CASES`, a list of `[KILLS, FOLDER, NAME, ARGUMENTS...]` in JSON. Each
writes FOLDER/undisturbed/NAME in one run. Then it kills KILLS runs that write FOLDER/killed/NAME, each going on from
the one before, and lets one finish. Runs that finish too early are kept as FOLDER/early-N/NAME, and the next begins
anew. Where a run fails, FOLDER/failed says how, and the next case is taken.
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
from tests import forked

from longspan.cli.main import app
from longspan.cli.running import run
from longspan.search import parquet

#: Exit codes of a finished run; in that of 3 something was left out.
DONE = (0, 3)


def start(arguments: list[str], output: Path) -> int:
    """Fork a run; its process id."""
    output.parent.mkdir(exist_ok=True)
    return forked.start(lambda: run(app, [*arguments, "--output", str(output)]))


class RunError(Exception):
    """A run that was not killed did not succeed."""


def check(code: int) -> None:
    """Raise `RunError` unless it is the exit code of a run that succeeded."""
    if code not in DONE:
        raise RunError(f"a run ended with exit code {code}")


def was_killed(child: int, delay: float) -> bool:
    """Kill a run after `delay` seconds, unless it is through by then."""
    deadline = time.monotonic() + delay
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            check(os.waitstatus_to_exitcode(status))
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def is_finished(output: Path) -> bool:
    """True if nothing was left to do but to end the process. The folder of an index is there from the start."""
    return output.is_file() and not output.with_name(f".{output.name}.work").exists()


def kill_runs(kills: int, folder: Path, name: str, arguments: list[str]) -> None:
    """Kill runs, each in another part of an undisturbed one's time, in any order; then let one finish."""
    output = folder / "warm-up" / name
    output.parent.mkdir()
    check(forked.import_what_runs_need(lambda: run(app, [*arguments, "--output", str(output)])))
    begin = time.monotonic()
    check(forked.finish(start(arguments, folder / "undisturbed" / name)))
    duration = time.monotonic() - begin
    draw = random.Random(kills)
    output = folder / "killed" / name
    early = 0
    for part in draw.sample(range(kills), kills):
        delay = (part + draw.random()) / kills * duration
        while not was_killed(start(arguments, output), delay) or is_finished(output):
            output.parent.rename(folder / f"early-{early}")
            early += 1
            delay *= 0.9  # the machine may be less busy than it was
    check(forked.finish(start(arguments, output)))


def main() -> None:
    """Do what the command line says."""
    torch.set_num_threads(1)
    parquet.import_pyarrow()
    for kills, folder, name, *arguments in json.loads(sys.argv[1]):
        try:
            kill_runs(int(kills), Path(folder), name, arguments)
        except RunError as error:
            Path(folder, "failed").write_text(str(error))


if __name__ == "__main__":
    main()
