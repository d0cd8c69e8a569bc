"""The run on disk, whatever its framework: a folder of checkpoints that appear whole or not at all, and the log."""

from __future__ import annotations

import csv
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longspan.errors import InputError
from longspan.pipelines.run.identity import differences
from longspan.search.shards import atomic_write, sync_folder

FOLDER = ".longspan-train"
LOG = "log.csv"
PARTIAL = "partial"
POSITION = "position.json"
_PREFIX = "checkpoint-"
_IDENTITY = "identity.json"


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


class CheckpointFolder:
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

    def keep(self, partial: Path, step: int) -> None:
        """Let a checkpoint that is all written take the place of the one before."""
        _flush(partial)
        final = self.path / f"{_PREFIX}{step:09d}"
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        sync_folder(self.path)
        for old in self.path.glob(f"{_PREFIX}*"):
            if old != final:
                shutil.rmtree(old)

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path)


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
