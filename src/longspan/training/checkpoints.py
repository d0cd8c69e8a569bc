"""The run on disk: checkpoints that appear whole or not at all, the best weights, the log."""

from __future__ import annotations

import csv
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from longspan.checkpoints.formats_pytorch import PytorchReader
from longspan.errors import InputError
from longspan.pipelines.run.identity import differences
from longspan.search.shards import atomic_write, sync_folder
from longspan.training.sharding import restore_state, state_of

if TYPE_CHECKING:
    from longspan.training.loop import Loop

FOLDER = ".longspan-train"
LOG = "log.csv"
_PREFIX = "checkpoint-"
_PARTIAL = "partial"
_POSITION = "position.json"
_IDENTITY = "identity.json"
_BEST = "best.pt"
_STATE = "state.pt"
_RANDOM = "random-{}.pt"


@dataclass
class Position:
    """How far a run is.

    Attributes:
        epoch: Number of the epoch, from 0.
        step_of_epoch: Steps done in it.
        step: Steps done in all.
        tokens: Tokens read.
        best: The best metrics, and their step.
        worse: Evaluations since the best one.
        done: The run has ended.
    """

    epoch: int = 0
    step_of_epoch: int = 0
    step: int = 0
    tokens: int = 0
    best: dict[str, float] | None = None
    worse: int = 0
    done: bool = False


class RunFolder:
    """The folder of a run inside its output.

    Args:
        output: Folder of the result.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.path = output / FOLDER

    def begin(self, identity: dict[str, Any], *, resume: bool) -> None:
        """Make the folder, or go on with the one that is there.

        Raises:
            InputError: it is that of another run.
        """
        if not resume:
            shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / _IDENTITY
        if file.exists():
            earlier = json.loads(file.read_text(encoding="utf-8"))
            differing = differences(earlier, json.loads(json.dumps(identity)))
            if differing:
                raise InputError(
                    "An interrupted run goes on with the same data and settings (or starts over with --no-resume). "
                    f"Received: others than those of {self.output}: {', '.join(differing)}"
                )
            return
        with atomic_write(file, file.with_suffix(".partial")) as out:
            out.write(json.dumps(identity).encode())

    def newest(self) -> Path | None:
        """The newest checkpoint; None if there is none."""
        return max(self.path.glob(f"{_PREFIX}*"), default=None)

    def save(self, loop: Loop) -> None:
        """Save all that the run needs to go on, with any number of processes; all processes call it."""
        accelerator, partial = loop.accelerator, self.path / _PARTIAL
        tensors, groups = state_of(loop.model, loop.optimizer.optimizer)
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            torch.save(tensors, partial / _STATE)
            scaler = None if accelerator.scaler is None else accelerator.scaler.state_dict()
            settings = {"optimizer": groups, "schedule": loop.schedule.state_dict(), "scaler": scaler}
            (partial / _POSITION).write_text(json.dumps({**asdict(loop.position), **settings}), encoding="utf-8")
        accelerator.wait_for_everyone()
        torch.save(_random_state(accelerator.device), partial / _RANDOM.format(accelerator.process_index))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            self._keep(partial, loop.position.step)
        accelerator.wait_for_everyone()

    def _keep(self, partial: Path, step: int) -> None:
        """Let a checkpoint that is all written take the place of the one before."""
        _flush(partial)
        final = self.path / f"{_PREFIX}{step:09d}"
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        sync_folder(self.path)
        for old in self.path.glob(f"{_PREFIX}*"):
            if old != final:
                shutil.rmtree(old)

    def restore(self, loop: Loop, checkpoint: Path) -> Position:
        """Bring the run back to a checkpoint; all processes call it.

        A process that the saved run lacked draws its dropout anew.
        """
        accelerator = loop.accelerator
        found = json.loads((checkpoint / _POSITION).read_text(encoding="utf-8"))
        groups, schedule, scaler = (found.pop(name) for name in ("optimizer", "schedule", "scaler"))
        restore_state(loop.model, loop.optimizer.optimizer, _tensors(checkpoint / _STATE), groups)
        loop.schedule.load_state_dict(schedule)
        if accelerator.scaler is not None and scaler is not None:
            accelerator.scaler.load_state_dict(scaler)
        random = checkpoint / _RANDOM.format(accelerator.process_index)
        if random.exists():
            _set_random_state(_tensors(random), accelerator.device)
        return Position(**found)

    def save_best(self, state: dict[str, Any]) -> None:
        """Keep weights as the best."""
        path = self.path / _BEST
        with atomic_write(path, path.with_suffix(".partial")) as file:
            torch.save(state, file)

    def best(self) -> dict[str, Any]:
        """The best weights."""
        return _tensors(self.path / _BEST)

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path)


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    with PytorchReader(path) as reader:  # ours, which knows tensors only
        return {reader.native_name(key): reader.read_torch(key) for key in reader}


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Of the generators that dropout draws from."""
    state = {"cpu": torch.get_rng_state()}
    return state if device.type == "cpu" else {**state, device.type: torch.get_device_module(device).get_rng_state()}


def _set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type in state and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[device.type])


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        else:
            sync_folder(path)
    sync_folder(folder)


class Log:
    """`log.csv`: a line for every few steps and for each evaluation.

    Args:
        path: The file; lines after `step`, of a run that goes on from there, are cut off.
        columns: Its columns; the first is `step`.
        step: Steps that are done.
    """

    def __init__(self, path: Path, columns: list[str], step: int) -> None:
        self._path = path
        self._columns = columns
        kept: list[dict[str, str]] = []
        if path.exists() and step:
            with path.open(newline="", encoding="utf-8") as file:
                kept = [
                    row for row in csv.DictReader(file) if (row["step"] or "").isdecimal() and int(row["step"]) <= step
                ]
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)

    def write(self, values: dict[str, Any]) -> None:
        """Add a line."""
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns, extrasaction="ignore").writerow(values)
