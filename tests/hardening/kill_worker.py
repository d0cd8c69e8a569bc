"""Runs `longspan embed` in forked processes that meet a fault at one of the calls which make work durable.

Usage: `python -m tests.hardening.kill_worker FOLDER MODEL CORPUS PLAN`. PLAN is JSON: a list of `[name, update, fault,
call]`. Each case writes FOLDER/CASE/NAME, with `update` over an index of an older corpus, and meets `fault` at that
call of `os.fsync`, `Path.replace` or `Path.unlink`; then the same command runs to its end. A line of JSON tells what
came of it. The fault is the name of a signal, one of `ERRORS` or `size` (a limit of the size of files, in bytes
at `call`).
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests import forked

from longspan.cli.main import app
from longspan.cli.running import run
from longspan.search import parquet
from longspan.search.index import open_index

Fault = Callable[[], None]
#: What the system says of a disk that is full, of one that became read-only, and of a user's share that is used up.
ERRORS = {"full": errno.ENOSPC, "read-only": errno.EROFS, "quota": errno.EDQUOT}


def run_with(arguments: list[str], errors: Path, prepare: Fault) -> int:
    """A run in this process; `prepare` is called before."""
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    prepare()
    return run(app, arguments)


def fork(arguments: list[str], errors: Path, prepare: Fault) -> int:
    """Exit code of a run in a process of its own, that of a shell if a signal ended it; `prepare` is called in it."""
    return forked.finish(forked.start(lambda: run_with(arguments, errors, prepare)))


def at_call(number: int, fault: Fault) -> None:
    """Let the `number`th of the calls that make work durable meet a fault, before it does anything."""
    count = 0

    def guarded(usual: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                fault()
            return usual(*args, **kwargs)

        return call

    os.fsync = guarded(os.fsync)
    Path.replace = guarded(Path.replace)  # type: ignore[method-assign]
    Path.unlink = guarded(Path.unlink)  # type: ignore[method-assign]


def failing(number: int) -> Fault:
    """A call that the system refuses, as on a full disk."""

    def fail() -> None:
        raise OSError(number, os.strerror(number))

    return fail


def prepare_for(fault: str, call: int) -> Fault:
    """What a child does to meet its fault."""
    if fault == "none":
        return lambda: None
    if fault in ERRORS:
        return lambda: at_call(call, failing(ERRORS[fault]))
    if fault == "size":

        def limit() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (call, call))

        return limit
    number = getattr(signal, fault)

    def stop() -> None:
        os.kill(os.getpid(), number)
        time.sleep(5)  # the handler runs before this ends

    return lambda: at_call(call, stop)


def state_of(output: Path, old: int, new: int) -> str:
    """`none`, `old` or `new`, if the output is that whole index; else what is wrong."""
    if not (output / "manifest.json").exists() if output.suffix not in (".npz", ".parquet") else not output.exists():
        return "none"
    try:
        store = open_index(output)
        rows = store.rows(0, store.info.num_passages)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return {old: "old", new: "new"}.get(len(rows), f"{len(rows)} rows")


def main() -> None:
    """Run the plan."""
    folder, model, corpus = map(Path, sys.argv[1:4])
    torch.set_num_threads(1)
    parquet.import_pyarrow()
    paths = sorted(corpus.iterdir())
    common = ["--model", str(model), "--batch-tokens", "64", "--quiet"]
    whole: dict[str, Path] = {}
    before: dict[str, Path] = {}
    for name in ("out.parquet", "out.npz", "out.index"):
        for kind, inputs, found in (("old", paths[:1], before), ("new", paths, whole)):
            found[name] = folder / kind / name
            found[name].parent.mkdir(exist_ok=True)
            line = ["embed", *map(str, inputs), "-o", str(found[name]), *common]
            # of the first of each kind of output, what it imports is imported here
            begin = forked.import_what_runs_need if kind == "old" else lambda act: forked.finish(forked.start(act))
            assert begin(lambda line=line: run_with(line, folder / "err", lambda: None)) == 0
    sizes = {kind: open_index(found["out.npz"]).info.num_passages for kind, found in (("old", before), ("new", whole))}
    for index, (name, update, fault, call) in enumerate(json.loads(sys.argv[4])):
        output = folder / f"case{index}" / name
        output.parent.mkdir()
        if update:
            copy = shutil.copytree if before[name].is_dir() else shutil.copy
            copy(before[name], output)
        line = ["embed", *map(str, paths), "-o", str(output), *common]
        code = fork(line, folder / "err", prepare_for(fault, call))
        found = {
            "code": code,
            "state": state_of(output, sizes["old"], sizes["new"]),
            "said": (folder / "err").read_text(),
        }
        found["again"] = fork(line, folder / "err", lambda: None)
        found["end"] = state_of(output, sizes["old"], sizes["new"])
        found["left"] = sorted(path.name for path in output.parent.iterdir())
        if output.is_file() and not update:
            found["equal"] = output.read_bytes() == whole[name].read_bytes()
        shutil.rmtree(output.parent)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
