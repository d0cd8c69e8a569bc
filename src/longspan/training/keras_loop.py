"""The loop in Keras: `fit` on a `PyDataset` of forward passes, AdamW that accumulates them, a callback after each step.

Keras accumulates a fixed number of passes. Steps of equal size in tokens have more or fewer of them: one that lacks
some gets passes of a short sample that count nothing. Losses are scaled so that Keras' mean over the passes is the
weighted mean over the terms of the step.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops
from safetensors.numpy import load_file, save_file

from longspan.checkpoints.keras import to_numpy
from longspan.errors import InputError
from longspan.nn.keras.runtime import is_tensorflow, runs_on_cpu
from longspan.training.backends.keras import call_settings
from longspan.training.batches import Step, rate_factor
from longspan.training.keras_adapters import enable_adapters, merge
from longspan.training.keras_recomputing import recompute_layers
from longspan.training.run_folder import Position
from longspan.training.run_loop import RunLoop
from longspan.training.runs import Prepared
from longspan.training.task import TensorBatch, TrainingTask

#: Inputs, targets and weights of a pass, as `fit` takes them.
Pass = tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]], npt.NDArray[Any]]
_SCALE = "scale_of_pass"
_EPSILON = 1e-8
_STATUS = Path("/proc/self/status")


class StepLoss(keras.metrics.Metric):
    """The loss of the passes since the last step, from their scaled losses.

    Args:
        num_passes: Passes of a step.
    """

    def __init__(self, num_passes: int) -> None:
        super().__init__(name="step_loss")
        self._num_passes = num_passes
        self._count = self.add_variable((), "zeros", dtype="int32", name="count")
        self._total = self.add_variable((), "zeros", dtype="float32", name="total")

    def update_state(self, loss: Any) -> None:
        """Take the loss of a pass."""
        is_first = ops.equal(self._count % self._num_passes, 0)
        self._total.assign(ops.where(is_first, loss, self._total + loss))
        self._count.assign_add(1)

    def result(self) -> Any:
        """The loss of the step, when its last pass is done."""
        return self._total / self._num_passes


class Rate(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate at a pass.

    Args:
        highest: The highest.
        num_steps: Steps of the run.
        warmup: Part of them in which it rises.
        num_passes: Passes of a step.
    """

    def __init__(self, highest: float, num_steps: int, warmup: float, num_passes: int) -> None:
        self._settings = {"highest": highest, "num_steps": num_steps, "warmup": warmup, "num_passes": num_passes}

    def __call__(self, step: Any) -> Any:
        """The rate of the step to which a pass belongs."""
        settings = self._settings
        done = ops.cast(ops.floor_divide(step, settings["num_passes"]), "float32")
        factor = rate_factor(done, int(settings["num_steps"]), settings["warmup"], least=ops.minimum)
        return settings["highest"] * factor

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return dict(self._settings)


class AdamW(keras.optimizers.AdamW):
    """Keras' AdamW with epsilon behind the correction of the second moment, where PyTorch and optax add it.

    Keras adds it to the root of the moment itself, which is smaller by a factor of 30 in the first step.
    """

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Move a variable."""
        step = ops.cast(self.iterations + 1, "float32")
        self.epsilon = _EPSILON * ops.sqrt(1 - ops.power(self.beta_2, step))
        super().update_step(gradient, variable, learning_rate)
        self.epsilon = _EPSILON


class Learner(keras.Model):
    """A model, and the loss of a task as what `fit` minimises.

    Args:
        task: The task, with its model.
        num_passes: Passes of a step.
    """

    def __init__(self, task: TrainingTask, num_passes: int) -> None:
        super().__init__(name="learner")
        self.autocast = False
        self.learnt = task.model
        self.step_loss = StepLoss(num_passes)
        self._task = task
        self._settings = call_settings(task.model)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Outputs of the model."""
        return self.learnt(**inputs, **self._settings, training=training)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """The loss of a pass, scaled so that the mean over the passes of a step is the loss of the step."""
        targets = {name: value for name, value in y.items() if name != _SCALE}
        loss = self._task.loss(y_pred, TensorBatch(x, targets, sample_weight)) * y[_SCALE][0]
        self.step_loss.update_state(loss)
        return loss


class Passes(keras.utils.PyDataset):
    """The forward passes of the steps of an epoch, each step of equally many.

    Args:
        loop: Makes the passes.
        steps: The steps.
    """

    def __init__(self, loop: KerasLoop, steps: list[Step]) -> None:
        super().__init__()
        self._loop = loop
        self._steps = steps
        self._has_begun = False

    def __len__(self) -> int:
        return len(self._steps) * self._loop.num_passes

    def on_epoch_begin(self) -> None:
        """Note that passes are wanted from now on."""
        self._has_begun = True

    def __getitem__(self, index: int) -> Pass:
        place, number = divmod(index, self._loop.num_passes)
        if self._has_begun or not is_tensorflow() or len(self) == 1:
            return self._loop.batch(self._steps[place], number)
        # TensorFlow takes for fixed what the first two have in common: here they differ in all that may differ; a
        # single pass is what it is
        return self._loop.batch(self._steps[place], number, more=8 * (1 + index % 2))


class AfterPass(keras.callbacks.Callback):
    """Calls the loop after each step, and ends `fit` when the run is over.

    Args:
        loop: The loop.
    """

    def __init__(self, loop: KerasLoop) -> None:
        super().__init__()
        self._loop = loop

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Call the loop behind the last pass of a step."""
        if (batch + 1) % self._loop.num_passes:
            return
        model = self.model  # on JAX, this brings the variables up to date
        self._loop.after_step(float(logs["step_loss"]))
        model.stop_training = self._loop.position.done


class KerasLoop(RunLoop):
    """One run in Keras; arguments as of `RunBase`.

    Attributes:
        num_passes: Forward passes of each step.
        learner: What `fit` trains.
    """

    def __init__(self, prepared: Prepared, *, show_progress: bool) -> None:
        super().__init__(prepared, show_progress=show_progress)
        epochs = map(self.epoch, range(self.options.epochs))
        self.num_passes = max(len(step.passes) for steps in epochs for step in steps)
        self._shortest = int(np.argmin(self._widths))
        with self._scope():
            if self.options.lora:
                enable_adapters(self.task.model, self.options.lora)
            if self.options.gradient_checkpointing:
                recompute_layers(self.task.model)
            self.learner = Learner(self.task, self.num_passes)
            # XLA makes TensorFlow's products on a CPU slower, and a program for every shape
            jit_compile = False if is_tensorflow() and runs_on_cpu() else "auto"
            self.learner.compile(self._make_optimizer(), jit_compile=jit_compile)

    def _scope(self) -> AbstractContextManager[Any]:
        """Where variables are and passes are computed."""
        scope: AbstractContextManager[Any] = self.task.backend.scope(self.options)
        return scope

    def _make_optimizer(self) -> keras.optimizers.Optimizer:
        """AdamW on clipped gradients; biases and norms, which have one axis, do not decay."""
        options, trained = self.options, self.learner.trainable_variables
        optimizer = AdamW(
            Rate(options.rate, self.num_steps, options.warmup, self.num_passes),
            weight_decay=options.weight_decay,
            epsilon=_EPSILON,
            global_clipnorm=options.max_grad_norm,
            gradient_accumulation_steps=self.num_passes if self.num_passes > 1 else None,
        )
        optimizer.exclude_from_weight_decay([variable for variable in trained if len(variable.shape) <= 1])
        optimizer.build(trained)
        return optimizer

    # Steps

    def train(self, steps: list[Step]) -> None:
        """Steps of an epoch, up to its end or that of the run."""
        with self._scope():
            self.learner.fit(Passes(self, steps), shuffle=False, verbose=0, callbacks=[AfterPass(self)])

    def batch(self, step: Step, number: int, *, more: int = 0) -> Pass:
        """A pass of a step.

        Args:
            step: The step.
            number: Which of its passes; those that it lacks are a sample that counts nothing.
            more: Samples and tokens to add to the pass as padding.
        """
        is_there = number < len(step.passes)
        samples = self.samples(step.passes[number] if is_there else [self._shortest])
        count, length = self.task.shape_of(samples, multiple=self.options.devices)
        is_fixed = bool(more or self.task.backend.fixed_shapes)
        batch = self.task.arrays(samples, (count + more, length) if is_fixed else None)
        scale = np.full(len(batch.weights), is_there * self.num_passes / self.weight(step), np.float32)
        inputs, targets = (
            {name: _as_keras_has_it(array, more) for name, array in arrays.items()}
            for arrays in (batch.inputs, batch.targets)
        )
        return inputs, {**targets, _SCALE: scale}, batch.weights

    # What is kept

    def _variables(self) -> list[Any]:
        return [*self.learner.variables, *self.learner.optimizer.variables]

    def save(self) -> None:
        """Save all variables of model and optimizer, those of dropout too, and the position."""
        arrays = {str(number): to_numpy(each) for number, each in enumerate(self._variables())}
        self.folder.save(lambda path: save_file(arrays, path), self.position)

    def restore(self, checkpoint: Path) -> Position:
        """Bring variables and position back."""
        path, position = self.folder.state_of(checkpoint)
        _assign(self._variables(), load_file(path))
        return position

    def save_best(self) -> None:
        """Keep the weights as the best."""
        weights = enumerate(self.task.model.weights)
        self.folder.save_best({str(number): to_numpy(each) for number, each in weights})

    def write_best(self, output: Path) -> None:
        """Write the best weights with the tokenizer; adapters are merged into them."""
        model = self.task.model
        _assign(model.weights, self.folder.best())
        self.task.save(merge(model, self.task.load(self._prepared.model_name)) if self.options.lora else model, output)

    # The plan

    def parameter_sizes(self) -> list[tuple[int, int, bool]]:
        """Numbers and bytes of the parameters, and whether they are trained."""
        numbers = [(int(np.prod(each.shape)), each.trainable) for each in self.task.model.weights]
        return [(number, 4 * number, is_trained) for number, is_trained in numbers]

    def measure(self, indices: Any) -> tuple[int, float]:
        """Memory that a step of one pass takes beside gradients, as Linux tells it, and its seconds."""
        if not _STATUS.exists():
            raise InputError(
                f"The plan of framework='keras' reads memory from {_STATUS}, which is Linux's. Received: another system"
            )
        inputs, targets, weights = self.batch(Step([indices]), 0)
        seconds = []
        for _ in range(2):  # the first one traces
            before = _memory("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # forget the high-water mark
            begin = time.perf_counter()
            with self._scope():
                self.learner.train_on_batch(inputs, targets, weights)
            seconds.append(time.perf_counter() - begin)
        gradients = sum(size for _, size, is_trained in self.parameter_sizes() if is_trained)
        return max(0, _memory("VmHWM") - before - gradients), seconds[-1]


def _as_keras_has_it(array: npt.NDArray[Any], more: int) -> npt.NDArray[Any]:
    """Numbers of tokens in 32 bits, with so many tokens more, as have weights in pooling, (B, M, S)."""
    is_float = array.dtype.kind == "f"
    if is_float and array.ndim < 3:
        return array
    padding = [(0, 0)] * (array.ndim - 1) + [(0, more * (array.ndim > 1))]
    return np.pad(array if is_float else array.astype(np.int32), padding)


def _assign(variables: list[Any], values: dict[str, npt.NDArray[Any]]) -> None:
    for number, variable in enumerate(variables):
        variable.assign(values[str(number)])


def _memory(name: str) -> int:
    """A line of this process's status in bytes: VmRSS, resident memory; VmHWM, the most that it was."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])
