"""Training in PyTorch, as tasks see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from longspan.inputs import IGNORE_INDEX
from longspan.models.registry import Framework
from longspan.training.backends.base import TrainingBackend
from longspan.training.options import TrainOptions
from longspan.training.task import Sample, TensorBatch, TrainingTask


class Backend(TrainingBackend):
    """PyTorch."""

    framework: ClassVar[Framework] = "torch"

    def seed(self, number: int) -> None:
        """As the base says."""
        torch.manual_seed(number)

    def _read(self, model_class: Any, name: str, settings: dict[str, Any], options: TrainOptions) -> Any:
        self.seed(options.seed)
        return model_class.from_pretrained(name, **settings)

    def place(self, batch: TensorBatch, device: Any) -> TensorBatch:
        """Tensors; a mask that hides nothing is left out."""
        arrays = dict(batch.inputs)
        if arrays["attention_mask"].all():
            del arrays["attention_mask"]
        return TensorBatch(
            {name: torch.from_numpy(array).to(device) for name, array in arrays.items()},
            {name: torch.from_numpy(array).to(device) for name, array in batch.targets.items()},
            torch.from_numpy(batch.weights).to(device),
        )

    @torch.inference_mode()
    def _loss_of(self, task: TrainingTask, samples: Sequence[Sample]) -> float:
        batch = task.batch(samples, next(task.model.parameters()).device)
        return float(task.loss(task.run(task.model, batch), batch))

    def cross_entropy(self, logits: Tensor, labels: Tensor, class_weights: npt.NDArray[Any] | None = None) -> Tensor:
        """As the base says."""
        weights = None if class_weights is None else _like(class_weights, logits)
        return weighted_cross_entropy(logits, labels, weights)

    def binary_cross_entropy(self, logits: Tensor, labels: Tensor, positive_weights: npt.NDArray[Any]) -> Tensor:
        """As the base says."""
        logits, weights = logits.float(), _like(positive_weights, logits)
        return F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights, reduction="none").mean(-1)

    def squared_error(self, logits: Tensor, labels: Tensor) -> Tensor:
        """As the base says."""
        differences: Tensor = logits.float().reshape(-1) - labels
        return differences**2

    def hide(self, logits: Tensor, mask: Tensor | None) -> Tensor:
        """As the base says."""
        logits = logits.float()
        return logits if mask is None else logits.masked_fill(~mask.bool(), torch.finfo(logits.dtype).min)

    def cosines(self, vectors: Tensor) -> Tensor:
        """As the base says."""
        return vectors[:, 0] @ vectors[:, 1:].transpose(0, 1).flatten(0, 1).T

    def cosines_of_pairs(self, vectors: Tensor) -> Tensor:
        """As the base says."""
        return (vectors[:, 0] * vectors[:, 1]).sum(-1)

    def total(self, terms: Tensor, weights: Tensor | None = None) -> Tensor:
        """As the base says."""
        return (terms if weights is None else terms * weights).sum()


def _like(array: npt.NDArray[Any], tensor: Tensor) -> Tensor:
    return torch.tensor(np.asarray(array), dtype=torch.float32, device=tensor.device)


def weighted_cross_entropy(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """The terms -w log p of labels that are not -100, 0 for the others; logits (..., N), labels (...)."""
    flat = F.cross_entropy(
        logits.float().reshape(-1, logits.shape[-1]),
        labels.reshape(-1),
        weight=class_weights,
        ignore_index=IGNORE_INDEX,
        reduction="none",
    )
    return flat.view(labels.shape)
