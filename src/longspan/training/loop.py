"""The loop, on accelerate: steps of equal size in tokens, evaluations, checkpoints, and the folder of the result.

The loss of a step is the weighted mean over its terms, whatever forward passes and processes they are spread over:

    loss = sum over all samples of the step of (weight * term) / sum of the weights
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType

from longspan.errors import InputError
from longspan.training.batches import Step
from longspan.training.checkpoints import RunFolder
from longspan.training.memory import Plan, measure
from longspan.training.optimizer import make_optimizer, make_schedule, with_adapters
from longspan.training.progress import TrainingProgress
from longspan.training.run_base import RunBase
from longspan.training.runs import Prepared, TrainReport, write_report
from longspan.training.sharding import shard, whole, whole_weights
from longspan.training.task import TensorBatch

_PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


class Loop(RunBase):
    """One run in PyTorch; arguments as of `RunBase`."""

    def __init__(self, prepared: Prepared, *, show_progress: bool) -> None:
        super().__init__(prepared, show_progress=show_progress)
        AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
        GradientState._reset_state()
        self.accelerator = Accelerator(
            mixed_precision=_PRECISIONS[self.options.precision], cpu=self.options.device == "cpu"
        )
        self.base = self.task.model
        self._begin_model()
        self.folder = RunFolder(prepared.output)

    def _begin_model(self) -> None:
        """Give the model what training adds to it, and hand it to accelerate with its optimizer."""
        model: Any = self.base
        if self.options.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        if self.options.lora:
            model = with_adapters(model, self.options.lora, self.options.seed)
        torch.manual_seed(self.options.seed + self.accelerator.process_index)  # of dropout
        model.train()
        if self._is_split():
            model = shard(model, self.base._no_split_modules, self.accelerator.device)
            self.model = self.accelerator.prepare_model(model, evaluation_mode=True)  # DDP has nothing to add to it
            self.optimizer = self.accelerator.prepare_optimizer(make_optimizer(model, self.options))
        else:
            self.model, self.optimizer = self.accelerator.prepare(model, make_optimizer(model, self.options))
        self.task.place(self.accelerator.device)
        self.schedule = make_schedule(self.optimizer.optimizer, self.num_steps, self.options.warmup)

    def _is_split(self) -> bool:
        """Whether the loop splits the model; where accelerate is told to do so, that does it."""
        accelerator = self.accelerator
        if not self.options.shard or accelerator.num_processes == 1:
            return False
        if self.options.precision == "float16":
            raise InputError("shard needs precision float32 or bfloat16. Received: float16")
        return bool(accelerator.distributed_type != DistributedType.FSDP)

    def batch(self, indices: Any) -> TensorBatch:
        """Samples of a forward pass."""
        samples = [self._prepared.samples[index] for index in indices]
        batch: TensorBatch = self.task.batch(samples, self.accelerator.device)
        return batch

    # The run

    def run(self) -> TrainReport:
        """Train, and write the result.

        Raises:
            InputError: the output belongs to another run, or the loss is no number.
        """
        identity = self._prepared.identity()
        if self.accelerator.is_main_process:
            resume = self.options.resume and not self.options.overwrite
            self.folder.begin(identity, resume=resume)
        self.accelerator.wait_for_everyone()
        checkpoint = self.folder.newest()
        if checkpoint is not None:
            self.position = self.folder.restore(self, checkpoint)
        is_main = self.accelerator.is_main_process
        if is_main:
            self._open_log()
        with TrainingProgress(self.num_steps, self.position.step, show=self._show and is_main) as self._progress:
            while not self.position.done:
                self._train_epoch()
        self._close_log()
        return self._finish(identity)

    def _train_epoch(self) -> None:
        self.task.epoch = self.position.epoch
        steps = self.epoch(self.position.epoch)
        for step in islice(steps, self.position.step_of_epoch, None):
            loss = self.step(step)
            self._note(step, loss)
            is_last = self.position.step == self.num_steps or self.position.step_of_epoch == len(steps)
            if self._is_due(self.options.eval_steps, at_end=is_last):
                self._evaluate()
            if self._is_due(self.options.save_steps, at_end=is_last) or self.position.done:
                if self.position.step_of_epoch == len(steps):
                    self.position.epoch, self.position.step_of_epoch = self.position.epoch + 1, 0
                self.position.done |= self.position.step == self.num_steps
                self.folder.save(self)
            if self.position.done:
                return

    def step(self, step: Step) -> float:
        """One step of the optimizer; its loss.

        Raises:
            InputError: the loss is no number.
        """
        loss = self.accumulate(step)
        if not math.isfinite(loss):
            raise InputError(
                "The loss must be a number: lower learning_rate, or use bfloat16 in place of float16. "
                f"Received: {loss} at step {self.position.step + 1}"
            )
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.options.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def accumulate(self, step: Step) -> float:
        """The loss of a step; its gradients are left in the parameters."""
        accelerator = self.accelerator
        weight = sum(self._prepared.samples[index].weight for indices in step.passes for index in indices)
        scale = accelerator.num_processes / max(weight, 1e-12)  # processes' gradients are averaged
        total = torch.zeros((), device=accelerator.device)
        shares = list(step.share(accelerator.process_index, accelerator.num_processes))
        for number, (indices, counts) in enumerate(shares, start=1):
            batch = self.batch(indices)
            with nullcontext() if number == len(shares) else accelerator.no_sync(self.model):
                loss = self.task.loss(self.task.run(self.model, batch), batch) * (scale * counts)
                accelerator.backward(loss)
            total += loss.detach()
        return float(accelerator.reduce(total, "mean"))

    def _note(self, step: Step, loss: float) -> None:
        num_tokens = sum(self._lengths[index] for indices in step.passes for index in indices)
        position = self.position
        position.step += 1
        position.step_of_epoch += 1
        position.tokens += num_tokens
        self._progress.step(position.step, num_tokens, loss)
        if position.step % self.options.log_steps == 0 or position.step == self.num_steps:
            self._progress.log(position.step, loss)
            rate, speed = float(self.schedule.get_last_lr()[0]), round(self._progress.tokens_per_second, 1)
            self._write_log("train", {"loss": loss, "learning_rate": rate, "tokens_per_second": speed})

    # Evaluation

    def evaluate(self) -> dict[str, float]:
        """Metrics on the validation data. Every process evaluates all of it, so that all know which model is best."""
        self.model.eval()
        with whole(self.model):
            metrics: dict[str, float] = self.task.evaluate(self._prepared.validation)
        self.model.train()
        return metrics

    def _evaluate(self) -> None:
        position = self.position
        if not self._prepared.validation:
            return
        metrics = self.evaluate()
        name, sign = self.task.best_metric, -1 if self.task.wants_least else 1
        is_best = position.best is None or sign * metrics[name] > sign * position.best[name]
        if is_best:
            position.best, position.worse = {**metrics, "step": position.step}, 0
            self._save_best()
        else:
            position.worse += 1
            position.done = 0 < self.options.patience <= position.worse
        self._progress.evaluated(position.step, metrics, is_best=is_best)
        self._write_log("eval", metrics)

    def _save_best(self) -> None:
        state = whole_weights(self.model)
        if self.accelerator.is_main_process:
            self.folder.save_best(state)

    # The result

    def _finish(self, identity: dict[str, Any]) -> TrainReport:
        """Write the best model, or the last if nothing was evaluated, in the form in which it loads anywhere."""
        if self.position.best is None:
            self._save_best()
        report = self._prepared.report(self.position.step, self.position.tokens, self.position.best or {})
        if self.accelerator.is_main_process:
            model = self.task.load(self._prepared.model_name)
            trained = with_adapters(model, self.options.lora, self.options.seed) if self.options.lora else model
            trained.load_state_dict(self.folder.best())
            self.task.save(trained.merge_and_unload() if self.options.lora else model, report.output)
            write_report(report, identity, self._card(report))
            self.folder.remove()
        self.accelerator.wait_for_everyone()
        return report

    def plan(self) -> Plan:
        """What the run will cost; measures a pass of the widest samples."""
        widest = max(self.epoch(0), key=self._width)
        passes = max(widest.passes, key=lambda indices: sum(self._widths[index] for index in indices))
        kept, seconds = measure(self.task, self.model, self.batch(passes))
        sizes = [(each.numel() * each.element_size(), each.requires_grad) for each in self.base.parameters()]
        weights, trained = sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)
        counts = [(each.numel(), each.requires_grad) for each in self.base.parameters()]
        epoch = sum(self._lengths)
        share = self.num_steps / max(1, sum(len(self.epoch(number)) for number in range(self.options.epochs)))
        return Plan(
            documents=self._prepared.num_documents, samples=len(self._lengths), tokens=epoch, steps=self.num_steps,
            parameters=sum(count for count, _ in counts), trained=sum(count for count, used in counts if used),
            weights_bytes=weights, gradients_bytes=trained, optimizer_bytes=2 * trained, activations_bytes=kept,
            seconds=epoch * self.options.epochs * share * seconds / sum(self._lengths[index] for index in passes),
            checkpoint_bytes=weights + 2 * trained,
        )  # fmt: skip

    def _width(self, step: Step) -> int:
        return max(sum(self._widths[int(index)] for index in indices) for indices in step.passes)
