"""The journal of a task on files: what is done, in lines that a crash can only cut at their end."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longspan.errors import InputError
from longspan.pipelines.run.identity import differences
from longspan.search.lines import append_line, parse_line
from longspan.search.shards import sync_folder

_FORMAT = {"format": "longspan-task", "version": 2}
_FINISHED = "finished"


class TaskJournal:
    """Lines of JSON, numbered and each with a checksum: what the run is, one a block, and that it is finished.

    Args:
        path: The file; made if it does not exist.
        header: What the run is, as JSON values.
        resume: Go on after the lines that are there. False starts over.

    Attributes:
        steps: What each block of an earlier run left.
        finished: What an earlier run that finished its output left; None if none did.

    Raises:
        InputError: the lines that are there are of another run.
    """

    def __init__(self, path: Path, header: dict[str, Any], *, resume: bool) -> None:
        self._path = path
        self.steps: list[dict[str, Any]] = []
        self.finished: dict[str, Any] | None = None
        if not resume:
            path.unlink(missing_ok=True)
        lines = self._take_over({**_FORMAT, **header}) if path.exists() else []
        self._count = len(lines)
        if not lines:
            self._append({**_FORMAT, **header})
            sync_folder(path.parent)
        if len(lines) > 1 and _FINISHED in lines[-1]:
            self.finished = lines.pop()[_FINISHED]
        self.steps = lines[1:]

    def append(self, step: dict[str, Any]) -> None:
        """Add what a block left, durably."""
        self._append(step)

    def finish(self, summary: dict[str, Any]) -> None:
        """Note that the output is whole."""
        self._append({_FINISHED: summary})

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of all blocks.

        Raises:
            InputError: somebody else has written to the journal.
        """
        with self._path.open("rb") as file:
            for line in file:
                values = parse_line(line)
                if values is None:
                    raise InputError(f"A journal must be left alone while its run goes on. Received: {self._path}")
                yield from values.get("rows", ())

    def remove(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)

    def _append(self, values: dict[str, Any]) -> None:
        append_line(self._path, {"number": self._count, **values})
        self._count += 1

    def _take_over(self, header: dict[str, Any]) -> list[dict[str, Any]]:
        """The lines before the first that is torn, damaged or missing; what comes after them is cut off."""
        lines: list[dict[str, Any]] = []
        with self._path.open("r+b") as file:
            num_bytes = 0
            for line in file:
                values = parse_line(line)
                if values is None or values.pop("number", None) != len(lines):
                    if line.endswith(b"\n"):
                        warnings.warn(
                            f"{self._path} is damaged at line {len(lines) + 1}: what follows is done again",
                            stacklevel=5,
                        )
                    break
                lines.append(values)
                num_bytes += len(line)
            if lines and lines[0] != header:
                raise InputError(
                    "An interrupted run goes on with the same inputs and settings (or starts over with --no-resume). "
                    f"Received: others than those of {self._path.parent}: {', '.join(differences(lines[0], header))}"
                )
            file.truncate(num_bytes)
        return lines
