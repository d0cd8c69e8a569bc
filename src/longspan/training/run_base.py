"""What the loops of all frameworks share: the order of steps, the log and its curves, the model card."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from longspan.training.batches import Step, plan_epoch
from longspan.training.board import Board, writer_class
from longspan.training.card import model_card
from longspan.training.run_folder import LOG, Log, Position
from longspan.training.runs import Prepared, TrainReport

_COLUMNS = ["step", "epoch", "tokens", "loss", "learning_rate", "tokens_per_second"]


class RunBase:
    """One run.

    Args:
        prepared: Data, model and settings.
        show_progress: Draw progress on the standard error stream.

    Attributes:
        position: How far it is.
    """

    def __init__(self, prepared: Prepared, *, show_progress: bool) -> None:
        self.options = prepared.options
        self.task = prepared.task
        self.position = Position()
        self._prepared = prepared
        self._show = show_progress
        self._log: Log | None = None
        self._board: Board | None = None
        if self.options.tensorboard:
            writer_class()  # if it is missing that is said before anything is trained
        self._lengths: list[int] = [sample.length for sample in prepared.samples]
        self._widths: list[int] = [prepared.task.width_of(sample) for sample in prepared.samples]

    def epoch(self, number: int) -> list[Step]:
        """The steps of an epoch."""
        sizes = {"batch_tokens": self.options.batch_tokens, "micro_tokens": self.options.micro_tokens}
        return plan_epoch(self._lengths, self._widths, epoch=number, seed=self.options.seed, **sizes)

    @cached_property
    def num_steps(self) -> int:
        """Steps of the run."""
        count = sum(len(self.epoch(number)) for number in range(self.options.epochs))
        return count if self.options.max_steps is None else min(count, self.options.max_steps)

    def _open_log(self) -> None:
        names = self.task.metric_names if self._prepared.validation else ()
        self._log = Log(self._prepared.output / LOG, [*_COLUMNS, *names], self.position.step)
        if self.options.tensorboard:
            self._board = Board(self._prepared.output, self.position.step)

    def _write_log(self, kind: str, values: dict[str, float]) -> None:
        place = {"step": self.position.step, "epoch": self.position.epoch, "tokens": self.position.tokens}
        if self._log is not None:
            self._log.write({**place, **values})
        if self._board is not None:
            self._board.write(kind, self.position.step, values)

    def _close_log(self) -> None:
        if self._board is not None:
            self._board.close()

    def _is_due(self, every: int | None, *, at_end: bool) -> bool:
        return at_end or (every is not None and self.position.step % every == 0)

    def _card(self, report: TrainReport) -> str:
        facts: dict[str, Any] = {
            "model": self._prepared.model_name, "pipeline": self.task.pipeline_task, "documents": report.documents,
            "windows": len(self._prepared.samples), "validation documents": report.validated,
            "left out": len(report.problems), "steps": report.steps, "tokens": report.tokens,
        }  # fmt: skip
        return model_card(self.task.name, report.output.name, facts, report.metrics, self.options.identity())
