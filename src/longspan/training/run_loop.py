"""What the loops of Flax and Keras share: evaluations, early stopping, checkpoints, the result.

The loss of a step is the weighted mean over its terms, whatever forward passes and devices they are spread over:

    loss = sum over all samples of the step of (weight * term) / sum of the weights
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from longspan.errors import InputError
from longspan.training.array_folder import ArrayFolder
from longspan.training.batches import Step, rate_factor
from longspan.training.memory import Plan
from longspan.training.progress import TrainingProgress
from longspan.training.run_base import RunBase
from longspan.training.run_folder import Position
from longspan.training.runs import Prepared, TrainReport, write_report


class RunLoop(RunBase, ABC):
    """One run in one process, on arrays; arguments as of `RunBase`."""

    def __init__(self, prepared: Prepared, *, show_progress: bool) -> None:
        super().__init__(prepared, show_progress=show_progress)
        self.folder = ArrayFolder(prepared.output)

    # What a framework does

    @abstractmethod
    def restore(self, checkpoint: Path) -> Position:
        """Bring the run back to a checkpoint."""

    @abstractmethod
    def save(self) -> None:
        """Save all that the run needs to go on."""

    @abstractmethod
    def save_best(self) -> None:
        """Keep the weights as the best."""

    @abstractmethod
    def write_best(self, output: Path) -> None:
        """Write the best weights in the form in which they load anywhere."""

    @abstractmethod
    def train(self, steps: list[Step]) -> None:
        """Steps of an epoch, up to its end or that of the run; `after_step` is called behind each."""

    @abstractmethod
    def measure(self, indices: Any) -> tuple[int, float]:
        """Bytes that a forward pass keeps for the backward pass, and seconds of both."""

    @abstractmethod
    def parameter_sizes(self) -> list[tuple[int, int, bool]]:
        """Numbers and bytes of the parameters, and whether they are trained."""

    def samples(self, indices: Any) -> list[Any]:
        """Samples by their numbers."""
        return [self._prepared.samples[index] for index in indices]

    def weight(self, step: Step) -> float:
        """What all samples of a step count."""
        total: float = sum(sample.weight for indices in step.passes for sample in self.samples(indices))
        return max(total, 1e-12)

    # The run

    def run(self) -> TrainReport:
        """Train, and write the result.

        Raises:
            InputError: the output belongs to another run, or the loss is no number.
        """
        identity = self._prepared.identity()
        self.folder.begin(identity, resume=self.options.resume and not self.options.overwrite)
        checkpoint = self.folder.newest()
        if checkpoint is not None:
            self.position = self.restore(checkpoint)
        self._open_log()
        with TrainingProgress(self.num_steps, self.position.step, show=self._show) as self._progress:
            while not self.position.done:
                self.task.epoch = self.position.epoch
                self._steps = self.epoch(self.position.epoch)
                self.train(self._steps[self.position.step_of_epoch :])
        self._close_log()
        return self._finish(identity)

    def after_step(self, loss: float) -> None:
        """Log, evaluate and save what is due after a step.

        Raises:
            InputError: the loss is no number.
        """
        position = self.position
        if not math.isfinite(loss):
            raise InputError(
                f"The loss must be a number: lower learning_rate. Received: {loss} at step {position.step + 1}"
            )
        self._note(self._steps[position.step_of_epoch], loss)
        is_epoch_over = position.step_of_epoch == len(self._steps)
        is_last = position.step == self.num_steps or is_epoch_over
        if self._is_due(self.options.eval_steps, at_end=is_last):
            self._evaluate()
        if self._is_due(self.options.save_steps, at_end=is_last or position.done):
            if is_epoch_over:
                position.epoch, position.step_of_epoch = position.epoch + 1, 0
            position.done |= position.step == self.num_steps
            self.save()

    def _note(self, step: Step, loss: float) -> None:
        position, num_tokens = self.position, sum(self._lengths[index] for one in step.passes for index in one)
        position.step, position.step_of_epoch = position.step + 1, position.step_of_epoch + 1
        position.tokens += num_tokens
        self._progress.step(position.step, num_tokens, loss)
        if position.step % self.options.log_steps == 0 or position.step == self.num_steps:
            self._progress.log(position.step, loss)
            rate = self.options.rate * rate_factor(position.step, self.num_steps, self.options.warmup)
            speed = round(self._progress.tokens_per_second, 1)
            self._write_log("train", {"loss": loss, "learning_rate": rate, "tokens_per_second": speed})

    def _evaluate(self) -> None:
        position, task = self.position, self.task
        if not self._prepared.validation:
            return
        metrics: dict[str, float] = task.evaluate(self._prepared.validation)
        sign = -1 if task.wants_least else 1
        value = sign * metrics[task.best_metric]
        is_best = position.best is None or value > sign * position.best[task.best_metric]
        if is_best:
            position.best, position.worse = {**metrics, "step": position.step}, 0
            self.save_best()
        else:
            position.worse += 1
            position.done = 0 < self.options.patience <= position.worse
        self._progress.evaluated(position.step, metrics, is_best=is_best)
        self._write_log("eval", metrics)

    def _finish(self, identity: dict[str, Any]) -> TrainReport:
        """Write the best model, or the last if nothing was evaluated, in the form in which it loads anywhere."""
        if self.position.best is None:
            self.save_best()
        report = self._prepared.report(self.position.step, self.position.tokens, self.position.best or {})
        self.write_best(report.output)
        write_report(report, identity, self._card(report))
        self.folder.remove()
        return report

    def plan(self) -> Plan:
        """What the run will cost; measures a pass of the widest samples."""
        every = [indices for step in self.epoch(0) for indices in step.passes]
        widest = max(every, key=lambda indices: sum(self._widths[index] for index in indices))
        kept, seconds = self.measure(widest)
        sizes = self.parameter_sizes()
        numbers, weights = (sum(values) for values in list(zip(*sizes, strict=True))[:2])
        trained, gradients = (sum(one[place] for one in sizes if one[2]) for place in (0, 1))
        epoch = sum(self._lengths)
        share = self.num_steps / max(1, sum(len(self.epoch(number)) for number in range(self.options.epochs)))
        tokens = epoch * self.options.epochs * share
        return Plan(
            documents=self._prepared.num_documents, samples=len(self._lengths), tokens=epoch, steps=self.num_steps,
            parameters=numbers, trained=trained, weights_bytes=weights, gradients_bytes=gradients,
            optimizer_bytes=2 * gradients, activations_bytes=kept, checkpoint_bytes=weights + 2 * gradients,
            seconds=tokens * seconds / sum(self._lengths[index] for index in widest),
        )  # fmt: skip
