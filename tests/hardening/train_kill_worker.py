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
import torch._dynamo  # the first optimizer asks for it
import torch._inductor

from longspan.cli.main import app
from longspan.cli.running import run
from longspan.training import classify as _classify  # noqa: F401 - as what follows it, imported before the fork
from longspan.training import spill as _spill  # noqa: F401 - imported before the fork
from longspan.training.runs import loop_class

EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.listdir", "os.scandir")
#: of the log the one column that tells time
TIMED = "tokens_per_second"


def fork(command: list[str], folder: Path, prepare: Callable[[], None]) -> int:
    """Exit code of a run in a folder of its own, that of a shell if a signal ended it."""
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        prepare()
        code = run(app, command)
        sys.stdout.flush()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else 128 - code


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
    loop_class(framework)  # imported before the fork
    command = ["train", "classify", str(data), "--model", str(model), "--output", "out", "--device", "cpu", "--quiet"]
    command += ["--epochs", "2", "--batch-tokens", "300", "--save-steps", "2", "--log-steps", "1", "--eval-steps", "3"]
    command += ["--framework", framework]

    def note() -> None:
        count_calls(lambda count: Path("calls").write_text(str(count)))

    for name, prepare in (("warm-up", note), ("undisturbed", lambda: None)):
        (folder / name).mkdir()
        begin = time.monotonic()
        assert fork(command, folder / name, prepare) == 0
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
