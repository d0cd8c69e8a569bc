"""How far a run is, and where its time goes."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from longspan.documents.document import Problem
from longspan.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID


#: Characters that control a terminal: C0, C1, directions of writing, and halves of pairs.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


_NOTEBOOK_WIDTH = 100


class Progress:
    """Told by a run how far it is; this one shows nothing."""

    def start(self, num_documents: int | None, total: int | None) -> None:
        """The run begins: `num_documents` documents, `total` characters or bytes; None if unknown."""

    def advance(self, amount: int, num_tokens: int) -> None:
        """`amount` of the total, `num_tokens` tokens, are done."""

    def finish_documents(self, count: int) -> None:
        """`count` documents are done."""

    def report(self, problem: Problem) -> None:
        """Something was left out."""


class ProgressBar(Progress):
    """A bar of `rich`, with documents, tokens and tokens a second.

    Args:
        console: Where it is drawn; on anything but a terminal only problems are written.
        unit: What documents are called.
    """

    def __init__(self, console: Console, *, unit: str = "documents") -> None:
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._unit = unit
        self._console = console
        self._bar = RichProgress(
            BarColumn(bar_width=None),
            TextColumn("{task.fields[counts]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._num_documents: int | None = None
        self._documents = self._tokens = 0

    def start(self, num_documents: int | None, total: int | None) -> None:
        """Draw the empty bar."""
        self._num_documents = num_documents
        self._task = self._bar.add_task("", total=total, counts=self._counts(0.0))
        self._bar.start()

    def stop(self) -> None:
        """Take the bar away."""
        self._bar.stop()

    def advance(self, amount: int, num_tokens: int) -> None:
        """Move the bar."""
        self._tokens += num_tokens
        self._update(amount)

    def finish_documents(self, count: int) -> None:
        """Count documents."""
        self._documents += count
        self._update(0)

    def report(self, problem: Problem) -> None:
        """Write the problem above the bar."""
        self._console.print(
            printable(f"skipped {problem}"), style="yellow", markup=False, highlight=False, soft_wrap=True
        )

    def _update(self, amount: int) -> None:
        if self._task is not None:
            elapsed = self._bar.tasks[0].elapsed or 0.0
            self._bar.update(self._task, advance=amount, counts=self._counts(elapsed))

    def _counts(self, elapsed: float) -> str:
        total = "" if self._num_documents is None else f"/{self._num_documents:,}"
        rate = f" ({self._tokens / elapsed:,.0f}/s)" if elapsed > 0 and self._tokens else ""
        return f"{self._documents:,}{total} {self._unit} · {self._tokens:,} tokens{rate}"


@contextmanager
def progress_bar(show: bool, *, unit: str = "documents") -> Iterator[Progress]:
    """A bar on the standard error stream while the block runs, or nothing if `show` is False."""
    if not show:
        yield Progress()
        return
    from rich.console import Console

    console = Console(file=sys.stderr)
    if console.is_jupyter:  # its own bars need a further package; lines that are written over do not
        console = Console(file=sys.stderr, force_jupyter=False, force_terminal=True, width=_NOTEBOOK_WIDTH)
    bar = ProgressBar(console, unit=unit)
    try:
        yield bar
    finally:
        bar.stop()


class Stopwatch:
    """Sums the seconds of named stages.

    Attributes:
        seconds: Stage -> seconds so far, in the order in which stages were first entered.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Add the time of a block to `stage`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def printable(text: str) -> str:
    """`text` on one line, its control characters as escapes, so that none reaches a terminal."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class ProblemError(InputError):
    """Something cannot be read, and the run was asked to stop at that."""
