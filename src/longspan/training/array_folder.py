"""The run of Flax or Keras on disk: its state as the framework writes it, the best weights as arrays by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy.typing as npt
from safetensors.numpy import load_file, save

from longspan.search.shards import atomic_write
from longspan.training.run_folder import PARTIAL, POSITION, CheckpointFolder, Position

_BEST = "best.safetensors"
_STATE = "state"


class ArrayFolder(CheckpointFolder):
    """The folder of a run whose weights are arrays; see `CheckpointFolder`."""

    def save(self, write: Callable[[Path], None], position: Position) -> None:
        """Save all that the run needs to go on.

        Args:
            write: Writes the state of the run to a path that does not exist yet.
            position: How far the run is.
        """
        partial = self.path / PARTIAL
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        write((partial / _STATE).absolute())
        (partial / POSITION).write_text(json.dumps(asdict(position)), encoding="utf-8")
        self.keep(partial, position.step)

    def state_of(self, checkpoint: Path) -> tuple[Path, Position]:
        """Where the state of a checkpoint is, and how far the run was."""
        position = Position(**json.loads((checkpoint / POSITION).read_text(encoding="utf-8")))
        return (checkpoint / _STATE).absolute(), position

    def save_best(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Keep weights as the best."""
        path = self.path / _BEST
        with atomic_write(path, path.with_suffix(".partial")) as file:
            file.write(save(dict(arrays)))

    def best(self) -> dict[str, npt.NDArray[Any]]:
        """The best weights."""
        return dict(load_file(self.path / _BEST))
