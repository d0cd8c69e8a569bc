"""What all training tasks share: from records to examples, windows with targets, batches, a loss, an evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from longspan.checkpoints.hub import Source
from longspan.documents.document import Problem
from longspan.errors import InputError
from longspan.inputs import IGNORE_INDEX
from longspan.pipelines.backends.base import longest_input
from longspan.pipelines.long.rows import Row
from longspan.pipelines.pipeline import pipeline
from longspan.pipelines.run.batching import round_length
from longspan.training.backends import load_backend
from longspan.training.options import TrainOptions
from longspan.training.records import Record

Values = Mapping[str, Any]
Array = npt.NDArray[Any]
#: Samples of a pass of fixed shape that is not full, if they are enough.
_FEW_SAMPLES = (1, 8)
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
    """One forward pass, in arrays of NumPy or tensors of a framework.

    Attributes:
        inputs: Arguments of the model, (B, S) or (B, C, S).
        targets: Targets by name, (B, ...).
        weights: (B,) what each sample counts.
    """

    inputs: dict[str, Any]
    targets: dict[str, Any]
    weights: Any


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
        backend: What the task needs of the framework.
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
    #: Targets are numbers of the tokens that the model reads.
    has_token_targets: ClassVar[bool] = False
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
        self.backend = load_backend(options.framework)
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
    def loss(self, outputs: Any, batch: TensorBatch) -> Any:
        """The weighted sum of the terms of the loss, 0-d, as a formula over terms that `backend` computes."""

    @abstractmethod
    def evaluate(self, examples: Sequence[Example]) -> dict[str, float]:
        """Metrics on whole documents."""

    # What they share

    @property
    def best_metric(self) -> str:
        """Name of the metric that says which model is best."""
        return self.options.metric or self.metric

    @property
    def runner(self) -> Any:
        """What runs the batches of the pipeline; None without a pipeline."""
        return None if self.pipe is None else self.pipe.model

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
        return self.backend.load(name, self.model_task, self.model_settings(), self.options)

    def open(self, model: Any, tokenizer: Any) -> None:
        """Take the model in training; its pipeline makes windows and evaluates."""
        self.model, self.tokenizer = model, tokenizer
        device = None if self.backend.framework == "torch" else self.options.device  # accelerate moves that later
        self.pipe = pipeline(self.pipeline_task, model, tokenizer, device=device, **self.options.windows())

    def place(self, device: Any) -> None:
        """Tell the pipeline where accelerate has put the model."""
        self.pipe.model.device = device

    def save(self, model: Any, output: Path) -> None:
        """Write a trained model in the form in which it loads anywhere."""
        model.save_pretrained(output)
        self.tokenizer.save_pretrained(output)

    def batch(self, samples: Sequence[Sample], device: Any = None) -> TensorBatch:
        """Samples of one forward pass, as tensors of the framework."""
        return self.backend.place(self.arrays(samples), device)

    def arrays(self, samples: Sequence[Sample], shape: tuple[int, int] | None = None) -> TensorBatch:
        """Samples of one forward pass, in NumPy; token targets are padded with -100.

        Args:
            samples: What is read together.
            shape: Samples and tokens to pad to, default none: copies of the last sample, which count nothing, fill up.
        """
        num_samples, length = (len(samples), None) if shape is None else shape
        filled = [*samples, *[samples[-1]] * (num_samples - len(samples))]
        inputs = self.stack([row for sample in filled for row in sample.rows], length)
        weights = np.array([sample.weight for sample in filled], np.float32)
        weights[len(samples) :] = 0
        targets = {}
        for name in samples[0].targets:
            targets[name] = _stack([sample.targets[name] for sample in filled], length if self.has_token_targets else 0)
            if np.issubdtype(targets[name].dtype, np.integer):
                targets[name][len(samples) :] = IGNORE_INDEX
        return TensorBatch(self.arrange(inputs, num_samples), targets, weights)

    def shape_of(self, samples: Sequence[Sample], *, multiple: int = 1) -> tuple[int, int]:
        """Samples and tokens to pad a pass to, so that few shapes occur: 1, 8 or as many as a pass can hold.

        Args:
            samples: What is read together.
            multiple: Of what the number of samples is to be a multiple.
        """
        positions, length = (max(map(size, samples)) for size in (self.width_of, self._padded))
        options = self.options
        full = max(len(samples), min(options.micro_tokens, 3 * options.batch_tokens // 2) // positions)
        count = next((few for few in _FEW_SAMPLES if len(samples) <= few < full), full)
        return -(-count // multiple) * multiple, length

    def width_of(self, sample: Sample) -> int:
        """Positions that a pass holds for each of its samples if this one is the longest, padding included."""
        return len(sample.rows) * self._padded(sample)

    def _padded(self, sample: Sample) -> int:
        """Tokens to which the rows of a sample are padded."""
        longest = max(map(len, sample.rows))
        return round_length(longest, longest_input(self.model.config)) if self.backend.fixed_shapes else longest

    def stack(self, rows: list[Row], length: int | None = None) -> dict[str, Array]:
        """Arrays of rows, padded to so many tokens, or to the longest."""
        arrays: dict[str, Array] = self.pipe.stack_rows(rows, length)
        return arrays

    def arrange(self, inputs: dict[str, Array], num_samples: int) -> dict[str, Array]:
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


def _stack(values: Sequence[Array], length: int | None = None) -> Array:
    """Arrays of any size in one, those of one axis of at least `length`, padded with -100."""
    arrays = [np.asarray(value) for value in values]
    sizes = [max(array.shape[axis] for array in arrays) for axis in range(arrays[0].ndim)]
    shape = (len(arrays), *(max(size, length or 0) for size in sizes))
    stacked = np.full(shape, IGNORE_INDEX, arrays[0].dtype)
    for index, array in enumerate(arrays):
        place: Any = (index, *(slice(size) for size in array.shape))
        stacked[place] = array
    return stacked
