"""Runs `longspan train` in one process, in two under DDP, and in two that split the model; says what they agree on.

    python -m tests.training.processes_worker FOLDER CASES

CASES is JSON: `{name: arguments of longspan train}`. Each run is forked, so that libraries are imported once. Prints
for each case the losses and metrics of its runs, how far their gradients of the first step and their weights lie
apart, and for the first case what comes of runs that are interrupted and go on with other processes.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the first optimizer asks for it
import torch._inductor
from rouge_score import rouge_scorer as _rouge  # noqa: F401 - as what follows it, imported before the fork
from safetensors.torch import load_file
from tests import forked
from tests.training.conftest import read_csv
from torch import distributed as dist

from longspan.cli.main import app
from longspan.cli.running import run
from longspan.training import classify as _classify  # noqa: F401 - imported before the fork
from longspan.training import language as _language  # noqa: F401 - imported before the fork
from longspan.training import sharding as _sharding  # noqa: F401 - imported before the fork
from longspan.training import spill as _spill  # noqa: F401 - imported before the fork
from longspan.training.checkpoints import RunFolder
from longspan.training.loop import Loop

STOPPED = 9
#: processes, further arguments
WAYS: dict[str, tuple[int, list[str]]] = {"one": (1, []), "ddp": (2, []), "fsdp2": (2, ["--shard"])}


def note_gradients(path: Path) -> None:
    """Keep the gradients of the first step, as the optimizer finds them, and of what kind they are."""
    usual, steps = Loop.accumulate, []

    def accumulate(self: Loop, step: Any) -> float:
        loss = usual(self, step)
        steps.append(step)
        if len(steps) == 1:
            found = {name: each.grad for name, each in self.model.named_parameters() if each.grad is not None}
            kinds = sorted({type(gradient).__name__ for gradient in found.values()})
            whole = {
                name.removeprefix("module."): each.full_tensor() if kinds == ["DTensor"] else each
                for name, each in found.items()
            }
            shared = [len(step.passes) for step in self.epoch(0)]
            if self.accelerator.is_main_process:
                torch.save({"gradients": whole, "kinds": kinds, "passes": shared}, path)
        return loss

    Loop.accumulate = accumulate  # type: ignore[method-assign]  # watched in this process alone


def stop_after_saving() -> None:
    """End every process when the run is saved for the first time, as if it had been killed."""
    usual = RunFolder.save

    def save(self: RunFolder, loop: Loop) -> None:
        usual(self, loop)
        os._exit(STOPPED)

    RunFolder.save = save  # type: ignore[method-assign]  # ends this process


def train(way: str, output: Path, command: list[str], *, stop: bool = False) -> None:
    """A run with the processes of a way."""
    count, further = WAYS[way]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])

    def work(rank: int) -> int:
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
        if count > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        note_gradients(output.with_suffix(".pt"))
        if stop:
            stop_after_saving()
        code = run(app, ["train", *command, "--output", str(output), "--device", "cpu", "--quiet", *further])
        sys.stdout.flush()
        if count > 1:
            dist.barrier()
        return code

    if count == 1 and not stop:
        codes = {forked.import_what_runs_need(lambda: work(0))}
    else:
        children = [forked.start(lambda rank=rank: work(rank)) for rank in range(count)]
        codes = {forked.finish(child) for child in children}
    if codes != {STOPPED if stop else 0}:
        sys.exit(f"{output}: exit codes {codes}")


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest difference, in parts of the largest value; infinite if the names differ."""
    if one.keys() != other.keys():
        return float("inf")
    largest = max(float(each.abs().max()) for each in one.values())
    return max(float((one[name] - other[name]).abs().max()) for name in one) / largest


def rows_of(output: Path) -> list[dict[str, float]]:
    """The log's losses and metrics."""
    places = ("epoch", "tokens", "tokens_per_second")
    rows = read_csv(output / "log.csv")
    return [{name: float(value) for name, value in row.items() if value and name not in places} for row in rows]


def told(output: Path, expected: Path) -> dict[str, Any]:
    """What a run came to, beside the one in one process."""
    first, second = (torch.load(path.with_suffix(".pt")) for path in (output, expected))
    weights = [load_file(path / "model.safetensors") for path in (output, expected)]
    return {"rows": rows_of(output), "kinds": first["kinds"], "passes": first["passes"],
            "gradients": difference(first["gradients"], second["gradients"]), "weights": difference(*weights),
            "left": sorted(path.name for path in output.glob(".*"))}  # fmt: skip


def main() -> None:
    """Run the cases."""
    folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    for number, (name, command) in enumerate(cases.items()):
        outputs = {way: folder / f"{name}-{way}" for way in WAYS}
        for way, output in outputs.items():
            train(way, output, command)
        found = {way: told(output, outputs["one"]) for way, output in outputs.items()}
        for before, after in (("fsdp2", "one"), ("one", "fsdp2"), ("fsdp2", "ddp")) if number == 0 else ():
            output = folder / f"{name}-{before}-{after}"
            train(before, output, command, stop=True)
            train(after, output, command)
            found[f"{before} {after}"] = {
                "rows": rows_of(output),
                "left": sorted(path.name for path in output.glob(".*")),
            }
        print(json.dumps([name, found]), flush=True)


if __name__ == "__main__":
    main()
