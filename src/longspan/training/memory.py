"""What a run will cost: a model of memory, and the time of one measured step."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from longspan.training.task import TensorBatch, TrainingTask

if TYPE_CHECKING:
    from torch import Tensor, nn

_MIB = 1 << 20


@dataclass(frozen=True)
class Plan:
    """What a run will cost on this machine.

    Attributes:
        documents: Documents to learn from.
        samples: Windows of them.
        tokens: Tokens of an epoch.
        steps: Steps of the run.
        parameters: Parameters of the model.
        trained: Those that are trained.
        weights_bytes: Memory of the weights.
        gradients_bytes: Memory of their gradients.
        optimizer_bytes: Memory of the optimizer's two moments.
        activations_bytes: What the largest forward pass keeps for the backward pass, as measured.
        seconds: Time of the run, from the tokens a second of that pass; evaluations not counted.
        checkpoint_bytes: Disk space of a checkpoint of the run.
    """

    documents: int
    samples: int
    tokens: int
    steps: int
    parameters: int
    trained: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    seconds: float
    checkpoint_bytes: int

    @property
    def bytes(self) -> int:
        """Memory of the run at its peak, without what libraries themselves need."""
        return self.weights_bytes + self.gradients_bytes + self.optimizer_bytes + self.activations_bytes

    def to_dict(self) -> dict[str, Any]:
        """All values by name."""
        return {**asdict(self), "bytes": self.bytes}

    def __str__(self) -> str:
        parts = {"weights": self.weights_bytes, "gradients": self.gradients_bytes, "optimizer": self.optimizer_bytes,
                 "activations": self.activations_bytes}  # fmt: skip
        memory = " + ".join(f"{value / _MIB:,.0f} {name}" for name, value in parts.items())
        return (
            f"{self.documents:,} documents, {self.samples:,} windows, {self.tokens:,} tokens an epoch\n"
            f"{self.steps:,} steps; {self.trained:,} of {self.parameters:,} parameters are trained\n"
            f"memory: {self.bytes / _MIB:,.0f} MiB = {memory}\n"
            f"time: about {self.seconds / 60:,.1f} minutes without evaluations\n"
            f"disk: {2 * self.checkpoint_bytes / _MIB:,.0f} MiB while it runs"
        )


def measure(task: TrainingTask, model: nn.Module, batch: TensorBatch) -> tuple[int, float]:
    """Bytes that a forward pass keeps for the backward pass, and seconds of both; gradients are thrown away."""
    import torch  # other frameworks make plans too

    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    seconds = []
    for _ in range(2):  # the first one warms up
        begin = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = task.loss(task.run(model, batch), batch)
        torch.autograd.backward(loss)
        if loss.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
        model.zero_grad(set_to_none=True)
    return sum(kept.values()), seconds[-1]
