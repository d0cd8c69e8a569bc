"""Kills training at seeded moments, lets each run go on, and says what came of it. Run by test_train_kills.py.

`python -m tests.hardening.train_kill_worker FOLDER MODEL DATA MOMENTS [FRAMEWORK]`: MOMENTS is JSON, a list of
`[kind, part]`.
`call` kills at that part of the operations on files that an undisturbed run does in its output, `time` at that part of
its seconds. Every run is a forked process, so that libraries are imported once. Prints a line of JSON for each.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tests import forked

from longspan.cli.main import app
from longspan.cli.running import run

EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.listdir", "os.scandir")
#: of the log the one column that tells time
TIMED = "tokens_per_second"


def run_in(command: list[str], folder: Path, prepare: Callable[[], None]) -> int:
    """A run in a folder, in this process; `prepare` is called before."""
    os.chdir(folder)
    prepare()
    return run(app, command)


def fork(command: list[str], folder: Path, prepare: Callable[[], None]) -> int:
    """Exit code of a run in a process and a folder of its own, that of a shell if a signal ended it."""
    return forked.finish(forked.start(lambda: run_in(command, folder, prepare)))


def count_calls(reached: Callable[[int], None]) -> None:
    """Tell how many operations on files of the output there were, at each."""
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event in EVENTS and arguments and f"{os.sep}out" in f"{os.sep}{arguments[0]}":
            count += 1
            reached(count)

    sys.addaudithook(hook)


def die() -> None:
    """What `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def fault(kind: str, part: float, calls: int, seconds: float) -> Callable[[], None]:
    """What a child does to be killed at its moment."""
    if kind == "call":
        number = 1 + int(part * calls)
        return lambda: count_calls(lambda count: die() if count == number else None)
    timer = threading.Timer(part * seconds, die)
    timer.daemon = True
    return timer.start


def content(output: Path) -> dict[str, object]:
    """All files by their names; of the log the rows without what tells time."""
    found: dict[str, object] = {
        str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()
    }
    header, *rows = [line.split(",") for line in (output / "log.csv").read_text().splitlines()]
    found["log.csv"] = [[cell for name, cell in zip(header, row, strict=True) if name != TIMED] for row in rows]
    return found


def main() -> None:
    """Run the plan."""
    folder, model, data = (Path(name).resolve() for name in sys.argv[1:4])
    framework = sys.argv[5] if len(sys.argv) > 5 else "torch"
    torch.set_num_threads(1)
    command = ["train", "classify", str(data), "--model", str(model), "--output", "out", "--device", "cpu", "--quiet"]
    command += ["--epochs", "2", "--batch-tokens", "300", "--save-steps", "2", "--log-steps", "1", "--eval-steps", "3"]
    command += ["--framework", framework]

    def note() -> None:
        count_calls(lambda count: Path("calls").write_text(str(count)))

    (folder / "warm-up").mkdir()
    assert forked.import_what_runs_need(lambda: run_in(command, folder / "warm-up", note)) == 0
    (folder / "undisturbed").mkdir()
    begin = time.monotonic()
    assert fork(command, folder / "undisturbed", lambda: None) == 0
    seconds = time.monotonic() - begin
    calls = int((folder / "warm-up" / "calls").read_text())
    expected = content(folder / "undisturbed" / "out")
    for number, (kind, part) in enumerate(json.loads(sys.argv[4])):
        case = folder / str(number)
        case.mkdir()
        while (code := fork(command, case, fault(kind, part, calls, seconds))) == 0:
            part /= 2  # the clock came too late
            shutil.rmtree(case / "out")
        again = fork(command, case, lambda: None)
        found = content(case / "out") if again == 0 else {}
        unequal = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        left = sorted(path.name for path in case.iterdir() if path.name != "out")
        print(json.dumps({"code": code, "again": again, "unequal": unequal, "left": left}))
        shutil.rmtree(case)


if __name__ == "__main__":
    main()
