"""What all training tasks share: from records to examples, windows with targets, batches, a loss, an evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from longspan.checkpoints.hub import Source
from longspan.documents.document import Problem
from longspan.errors import InputError
from longspan.inputs import IGNORE_INDEX
from longspan.pipelines.backends.base import class_for
from longspan.pipelines.long.rows import Row
from longspan.pipelines.pipeline import pipeline
from longspan.training.options import TrainOptions
from longspan.training.records import Record

Values = Mapping[str, Any]
Array = npt.NDArray[Any]
_LEAST_IS_BEST = ("loss", "mse", "perplexity")


@dataclass(frozen=True, eq=False)
class Example:
    """A document and what is to be learnt of it.

    Attributes:
        item: Input of the task's pipeline.
        target: The label, in the words of the data.
        record: Where it is from.
    """

    item: Any
    target: Any
    record: Record


@dataclass(frozen=True, eq=False)
class Sample:
    """A window, or rows that belong together, with its targets.

    Attributes:
        rows: What the model reads; one but for multiple choice and pairs.
        targets: By name: a number, (S,) numbers of its tokens, or (N,) of the classes.
        weight: What it counts in the mean of a step: the sum of the weights of its terms.
    """

    rows: list[Row]
    targets: dict[str, Any]
    weight: float = 1.0

    @property
    def length(self) -> int:
        """Tokens of all rows."""
        return sum(map(len, self.rows))


@dataclass(frozen=True)
class TensorBatch:
    """One forward pass.

    Attributes:
        inputs: Arguments of the model, (B, S) or (B, C, S).
        targets: Targets by name, (B, ...).
        weights: (B,) what each sample counts.
    """

    inputs: dict[str, Tensor]
    targets: dict[str, Tensor]
    weights: Tensor


@dataclass
class Taken:
    """What a set of data gave.

    Attributes:
        examples: What can be used: a list, or what grows as one.
        problems: What was left out, and why.
    """

    examples: Any = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


class TrainingTask(ABC):
    """A task to train a model for.

    Args:
        options: Settings of the run.

    Attributes:
        labels: The classes in the order of their indices; empty if the task has none.
        epoch: Number of the epoch, for tasks that draw anew in each.
        pipe: The pipeline of the model in training, which makes windows and evaluates.
        model: The model in training.
        tokenizer: Its tokenizer.
    """

    #: Name of the task, and of the pipeline that the result is for.
    name: ClassVar[str]
    pipeline_task: ClassVar[str]
    #: A key of `longspan.tasks.TASKS`, which names the model's class.
    model_task: ClassVar[str]
    #: Default columns of text and label.
    text_field: ClassVar[str] = "text"
    label_field: ClassVar[str] = "label"
    #: What text files hold; see `longspan.training.records.records_of`.
    layout: ClassVar[str] = ""
    #: Metric that says which model is best.
    metric: ClassVar[str]
    #: Names of all metrics.
    metric_names: tuple[str, ...]

    def __init__(self, options: TrainOptions) -> None:
        self.options = options
        self.text_column = options.text_field or self.text_field
        self.label_column = options.label_field or self.label_field
        self.labels: list[str] = []
        self.epoch = 0
        self.pipe: Any = None
        self.model: Any = None
        self.tokenizer: Any = None

    # What a task says

    @abstractmethod
    def example(self, record: Record) -> Example:
        """What a record holds; raises `InputError` with column and reason if it cannot be used."""

    def learn_labels(self, examples: Sequence[Example], known: Mapping[str, int]) -> None:
        """Take note of the classes of the training examples; `known` are those of the model, by name."""
        self.labels = []

    def check_target(self, example: Example) -> None:
        """Raise `InputError` if a validation example has a label that training does not."""
        return

    def model_settings(self) -> dict[str, Any]:
        """Further arguments of `from_pretrained`."""
        return {}

    @abstractmethod
    def samples(self, examples: Sequence[Example]) -> list[list[Sample] | InputError]:
        """For each example its windows with targets, or why it has none."""

    def check_samples(self, samples: Sequence[Sample]) -> None:
        """Raise `InputError` if nothing can be learnt from what training has."""
        return

    @abstractmethod
    def loss(self, outputs: Any, batch: TensorBatch) -> Tensor:
        """The weighted sum of the terms of the loss, 0-d."""

    @abstractmethod
    def evaluate(self, examples: Sequence[Example]) -> dict[str, float]:
        """Metrics on whole documents."""

    # What they share

    @property
    def best_metric(self) -> str:
        """Name of the metric that says which model is best."""
        return self.options.metric or self.metric

    @property
    def wants_least(self) -> bool:
        """True if the best model is the one with the least metric."""
        return self.best_metric in _LEAST_IS_BEST

    def take(self, found: Iterable[Record | Problem], into: Any = None) -> Taken:
        """Examples of records, added to `into`; with `strict` the first problem raises `InputError`."""
        taken = Taken() if into is None else Taken(into)
        for record in found:
            try:
                if isinstance(record, Problem):
                    raise InputError(str(record))
                taken.examples.append(self.example(record))
            except InputError as error:
                problem = record if isinstance(record, Problem) else record.problem(error)
                if self.options.strict:
                    raise InputError(f"With strict everything must be usable. Received: {problem}") from error
                taken.problems.append(problem)
        return taken

    def source(self, name: str) -> Source:
        """Where the model and its tokenizer are."""
        return Source(name)

    def load(self, name: str) -> Any:
        """The model of a directory or hub repository, with the head that the task wants; its weights are drawn anew."""
        torch.manual_seed(self.options.seed)
        model_class = class_for(Source(name), self.model_task, "torch")
        return model_class.from_pretrained(name, **self.model_settings())

    def open(self, model: Any, tokenizer: Any) -> None:
        """Take the model in training; its pipeline makes windows and evaluates."""
        self.model, self.tokenizer = model, tokenizer
        self.pipe = pipeline(self.pipeline_task, model, tokenizer, **self.options.windows())

    def place(self, device: torch.device) -> None:
        """Tell the pipeline where accelerate has put the model."""
        self.pipe.model.device = device

    def save(self, model: Any, output: Path) -> None:
        """Write a trained model in the form in which it loads anywhere."""
        model.save_pretrained(output)
        self.tokenizer.save_pretrained(output)

    def batch(self, samples: Sequence[Sample], device: torch.device) -> TensorBatch:
        """Samples of one forward pass; token targets are padded with -100."""
        rows = [row for sample in samples for row in sample.rows]
        arrays = self.stack(rows)
        if arrays["attention_mask"].all():
            del arrays["attention_mask"]
        inputs = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        targets = {name: _stack([sample.targets[name] for sample in samples]).to(device) for name in samples[0].targets}
        weights = torch.tensor([sample.weight for sample in samples], dtype=torch.float32, device=device)
        return TensorBatch(self.arrange(inputs, len(samples)), targets, weights)

    def stack(self, rows: list[Row]) -> dict[str, Array]:
        """Arrays of rows, padded."""
        arrays: dict[str, Array] = self.pipe.stack_rows(rows)
        return arrays

    def arrange(self, inputs: dict[str, Tensor], num_samples: int) -> dict[str, Any]:
        """Arguments of the model, from those of single rows."""
        return inputs

    def run(self, model: Any, batch: TensorBatch) -> Any:
        """Outputs of the model."""
        return model(**batch.inputs)

    def windows_of(self, examples: Sequence[Example]) -> list[Any]:
        """For each example the pipeline's job, with tokens and windows, or an `InputError`."""
        jobs: list[Any] = self.pipe.prepare_block([example.item for example in examples], self.pipe.options)
        return jobs

    def class_weights(self, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Weight of each class: 1, or the number of all examples over N times that of the class (`balanced`)."""
        if self.options.class_weights == "none":
            return np.ones(len(counts))
        return np.asarray(counts.sum() / (len(counts) * np.maximum(counts, 1)), np.float64)


def column(record: Record, name: str, kind: type | tuple[type, ...] = str, meaning: str = "a string") -> Any:
    """A value of a record; raises `InputError`, which names the column, unless it is of a kind."""
    if name not in record.values:
        there = ", ".join(map(str, record.values)) or "none"
        raise InputError(f"column {name!r} is missing; there are {there}")
    value = record.values[name]
    if hasattr(value, "tolist"):  # of NumPy or Arrow
        value = value.tolist()
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"column {name!r} must be {meaning}. Received: {type(value).__name__}")
    return value


def text_of(record: Record, name: str) -> str:
    """A text of a record; raises `InputError` if it is missing or blank."""
    text: str = column(record, name)
    if not text.strip():
        raise InputError(f"column {name!r} must hold text. Received: a blank")
    return text


def number(value: Any, name: str) -> float:
    """The number of a column, which files may write as text; raises `InputError` if it is none."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = float("nan")
    if not np.isfinite(found):
        raise InputError(f"column {name!r} must hold a number. Received: {value!r}")
    return found


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


def _stack(values: Sequence[Array]) -> Tensor:
    arrays = [np.asarray(value) for value in values]
    shape = (len(arrays), *(max(array.shape[axis] for array in arrays) for axis in range(arrays[0].ndim)))
    stacked = np.full(shape, IGNORE_INDEX, arrays[0].dtype)
    for index, array in enumerate(arrays):
        place: Any = (index, *(slice(size) for size in array.shape))
        stacked[place] = array
    return torch.from_numpy(stacked)
