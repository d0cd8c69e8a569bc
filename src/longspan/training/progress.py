"""What a run shows: loss, tokens a second, time left; a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from longspan.pipelines.run.progress import printable


class TrainingProgress:
    """Draws how far a run is on the standard error stream.

    Args:
        num_steps: Steps of the run.
        done: Steps that an earlier run has done.
        show: False draws nothing.
    """

    def __init__(self, num_steps: int, done: int, *, show: bool) -> None:
        self._console = Console(file=sys.stderr, soft_wrap=True)
        self._show = show
        self._num_steps = num_steps
        self._done = done
        self._tokens = 0
        self._begin = time.perf_counter()
        columns = (BarColumn(), TextColumn("{task.fields[text]}"), TimeElapsedColumn(), TextColumn("left"))
        hidden = not (show and self._console.is_terminal)
        self._bar = Progress(*columns, TimeRemainingColumn(), console=self._console, transient=True, disable=hidden)
        self._task = self._bar.add_task("", total=num_steps, completed=done, text="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second since the run began."""
        return self._tokens / max(1e-9, time.perf_counter() - self._begin)

    def step(self, step: int, num_tokens: int, loss: float) -> None:
        """A step is done."""
        self._tokens += num_tokens
        self._bar.update(self._task, completed=step, text=self._text(step, loss))

    def log(self, step: int, loss: float) -> None:
        """Write a line, where no bar is drawn."""
        if self._show and not self._console.is_terminal:
            seconds = (time.perf_counter() - self._begin) / max(1, step - self._done) * (self._num_steps - step)
            self._write(f"{self._text(step, loss)} · {_duration(seconds)} left")

    def evaluated(self, step: int, metrics: Mapping[str, Any], *, is_best: bool) -> None:
        """Write the metrics of an evaluation."""
        if self._show:
            values = " ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            self._write(f"step {step:,}: {values}{' (best)' if is_best else ''}")

    def _text(self, step: int, loss: float) -> str:
        return f"step {step:,}/{self._num_steps:,} · loss {loss:.4f} · {self.tokens_per_second:,.0f} tokens/s"

    def _write(self, line: str) -> None:
        self._console.print(printable(line), markup=False, highlight=False)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
