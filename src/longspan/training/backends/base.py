"""What a task needs of a framework: its model, its tensors, and the terms of which losses are made.

A task says its loss once, as a formula over these terms, which every framework computes in float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import numpy.typing as npt

from longspan.checkpoints.hub import Source
from longspan.models.registry import Framework
from longspan.pipelines.backends.base import class_for
from longspan.pipelines.run.batching import plan_batches

if TYPE_CHECKING:
    from longspan.training.options import TrainOptions
    from longspan.training.task import Sample, TensorBatch, TrainingTask


class TrainingBackend(ABC):
    """A framework, as tasks see it."""

    framework: ClassVar[Framework]
    #: Every new shape costs a compilation, so that passes should come in few shapes.
    fixed_shapes: bool = False

    def load(self, name: str, model_task: str, settings: dict[str, Any], options: TrainOptions) -> Any:
        """The model of a directory or hub repository for a task; what it lacks is drawn by the seed.

        Args:
            name: Directory or hub repository.
            model_task: A key of `longspan.tasks.TASKS`.
            settings: Further arguments of `from_pretrained`.
            options: Settings of the run.

        Raises:
            ConfigError: the family has no class for the task in this framework.
        """
        with self.scope(options):
            return self._read(class_for(Source(name), model_task, self.framework), name, settings, options)

    def scope(self, options: TrainOptions) -> AbstractContextManager[Any]:
        """Where the framework puts what is made in the block, if it has to be told so beforehand."""
        return nullcontext()

    @abstractmethod
    def _read(self, model_class: Any, name: str, settings: dict[str, Any], options: TrainOptions) -> Any:
        """The model of a class."""

    def seed(self, number: int) -> None:
        """Let what is drawn from now on follow from a number, where a framework has a state for that."""
        return

    @abstractmethod
    def place(self, batch: TensorBatch, device: Any) -> TensorBatch:
        """The arrays of a batch as tensors of the framework, on a device of it."""

    def summed_loss(self, task: TrainingTask, samples: Sequence[Sample]) -> float:
        """The loss of samples, summed over them, by the model of the task as it is."""
        total = 0.0
        for one in plan_batches([sample.length for sample in samples], task.options.micro_tokens):
            total += self._loss_of(task, [samples[index] for index in one.indices])
        return total

    @abstractmethod
    def _loss_of(self, task: TrainingTask, samples: Sequence[Sample]) -> float:
        """The summed loss of a forward pass without dropout."""

    # The terms of losses

    @abstractmethod
    def cross_entropy(self, logits: Any, labels: Any, class_weights: npt.NDArray[Any] | None = None) -> Any:
        """The terms -w log p (...) of labels that are not -100, 0 for the others; logits (..., N), labels (...)."""

    @abstractmethod
    def binary_cross_entropy(self, logits: Any, labels: Any, positive_weights: npt.NDArray[Any]) -> Any:
        """The mean over classes of -(w y log p + (1 - y) log(1 - p)), (B,); logits and labels (B, N), weights (N,)."""

    @abstractmethod
    def squared_error(self, logits: Any, labels: Any) -> Any:
        """Squared differences (B,) of logits (B, 1) and labels (B,)."""

    @abstractmethod
    def hide(self, logits: Any, mask: Any) -> Any:
        """Logits in float32, the least number where the mask is 0; None hides nothing."""

    @abstractmethod
    def cosines(self, vectors: Any) -> Any:
        """Products (B, (T - 1) B) of each first vector of (B, T, D) with all second ones, then with all third ones."""

    @abstractmethod
    def cosines_of_pairs(self, vectors: Any) -> Any:
        """Products (B,) of the first two vectors of (B, T, D)."""

    @abstractmethod
    def total(self, terms: Any, weights: Any | None = None) -> Any:
        """The sum of all terms, each times its weight, 0-d."""
