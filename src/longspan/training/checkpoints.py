"""The run of PyTorch on disk: weights and moments of all processes, the state of random numbers, the best weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from longspan.checkpoints.formats_pytorch import PytorchReader
from longspan.search.shards import atomic_write
from longspan.training.run_folder import PARTIAL, POSITION, CheckpointFolder, Position
from longspan.training.sharding import restore_state, state_of

if TYPE_CHECKING:
    from longspan.training.loop import Loop

_BEST = "best.pt"
_STATE = "state.pt"
_RANDOM = "random-{}.pt"


class RunFolder(CheckpointFolder):
    """The folder of a run in PyTorch; see `CheckpointFolder`."""

    def save(self, loop: Loop) -> None:
        """Save all that the run needs to go on, with any number of processes; all processes call it."""
        accelerator, partial = loop.accelerator, self.path / PARTIAL
        tensors, groups = state_of(loop.model, loop.optimizer.optimizer)
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            torch.save(tensors, partial / _STATE)
            scaler = None if accelerator.scaler is None else accelerator.scaler.state_dict()
            settings = {"optimizer": groups, "schedule": loop.schedule.state_dict(), "scaler": scaler}
            (partial / POSITION).write_text(json.dumps({**asdict(loop.position), **settings}), encoding="utf-8")
        accelerator.wait_for_everyone()
        torch.save(_random_state(accelerator.device), partial / _RANDOM.format(accelerator.process_index))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            self.keep(partial, loop.position.step)
        accelerator.wait_for_everyone()

    def restore(self, loop: Loop, checkpoint: Path) -> Position:
        """Bring the run back to a checkpoint; all processes call it.

        A process that the saved run lacked draws its dropout anew.
        """
        accelerator = loop.accelerator
        found = json.loads((checkpoint / POSITION).read_text(encoding="utf-8"))
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
