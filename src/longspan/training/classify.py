"""Training for text classification: one label, several, or numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from longspan.errors import InputError
from longspan.training import metrics
from longspan.training.options import TrainOptions
from longspan.training.records import Record
from longspan.training.task import Example, Sample, TensorBatch, TrainingTask, column, number, text_of

_PROBLEM_TYPES = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
}


class ClassifyTask(TrainingTask):
    """Labels of whole documents. Each window of a document learns its label and counts as its share of the document."""

    name: ClassVar[str] = "classify"
    pipeline_task: ClassVar[str] = "text-classification"
    model_task: ClassVar[str] = "text-classification"
    metric: ClassVar[str] = "accuracy"

    def __init__(self, options: TrainOptions) -> None:
        super().__init__(options)
        self.problem = options.problem
        self._weights: Any = None

    @property
    def best_metric(self) -> str:
        """Accuracy, macro-F1 for several labels, mean squared error for numbers."""
        default = {"multi": "f1", "regression": "mse"}.get(self.problem, self.metric)
        return self.options.metric or default

    @property
    def metric_names(self) -> tuple[str, ...]:  # type: ignore[override]  # which they are is known when labels are
        """Those of the kind of labels."""
        return {"multi": ("accuracy", "f1", "f1_micro"), "regression": ("mse", "pearson")}.get(
            self.problem, ("accuracy", "f1")
        )

    def example(self, record: Record) -> Example:
        """A text and its label: a string or whole number, several of them, or a number."""
        text = text_of(record, self.text_column)
        label = column(
            record, self.label_column, (str, int, float, list, tuple), "a label, a list of labels or a number"
        )
        if self.options.problem == "regression":
            return Example(text, number(label, self.label_column), record)
        several = isinstance(label, list | tuple)
        if self.options.problem == "multi" and isinstance(label, str):
            label = [part.strip() for part in label.split(self.options.label_separator) if part.strip()]
        elif self.options.problem == "single" and several:
            raise InputError(f"column {self.label_column!r} must hold one label. Received: {label!r}")
        names = [_name(each) for each in label] if isinstance(label, list | tuple) else [_name(label)]
        if any(not name for name in names):
            raise InputError(f"column {self.label_column!r} must hold a label. Received: a blank")
        return Example(text, names if self.options.problem == "multi" or several else names[0], record)

    def learn_labels(self, examples: Sequence[Example], known: Mapping[str, int]) -> None:
        """Classes in the model's order if it has all of them, else sorted, numbers by value."""
        if self.problem == "auto":
            self.problem = "multi" if any(isinstance(example.target, list) for example in examples) else "single"
        if self.problem == "regression":
            return
        counts = Counter(name for example in examples for name in _names(example.target))
        is_known = set(counts) <= set(known)
        self.labels = sorted(known, key=lambda name: known[name]) if is_known else sorted(counts, key=_order)
        if len(self.labels) < 2 and self.problem == "single":
            raise InputError(f"There must be two labels or more to learn. Received: {', '.join(self.labels)}")
        self._weights = self.class_weights(np.array([counts[name] for name in self.labels]))

    def check_target(self, example: Example) -> None:
        """Refuse a label that the training data lacks."""
        missing = [name for name in _names(example.target) if self.problem != "regression" and name not in self.labels]
        if missing:
            raise InputError(f"column {self.label_column!r} must hold labels of the training data. "
                             f"Received: {missing[0]!r}")  # fmt: skip

    def model_settings(self) -> dict[str, Any]:
        """Number, names and kind of the labels; a head of another size is drawn anew."""
        names = self.labels or ["value"]
        return {
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
            "problem_type": _PROBLEM_TYPES[self.problem],
            "ignore_mismatched_sizes": True,
        }

    def samples(self, examples: Sequence[Example]) -> list[list[Sample] | InputError]:
        """One sample a window."""
        found: list[list[Sample] | InputError] = []
        for example, job in zip(examples, self.windows_of(examples), strict=True):
            if isinstance(job, InputError):
                found.append(job)
                continue
            target, weight = self._target(example)
            found.append([Sample([row], {"labels": target}, weight / len(job.rows)) for row in job.rows])
        return found

    def _target(self, example: Example) -> tuple[Any, float]:
        """The label as the loss takes it, and what the document counts."""
        if self.problem == "regression":
            return np.float32(example.target), 1.0
        indices = [self.labels.index(name) for name in _names(example.target)]
        if self.problem == "single":
            return np.int64(indices[0]), float(self._weights[indices[0]])
        marks = np.zeros(len(self.labels), np.float32)
        marks[indices] = 1
        return marks, 1.0

    def loss(self, outputs: Any, batch: TensorBatch) -> Any:
        """Cross-entropy, mean binary cross-entropy of the classes, or squared error."""
        logits, labels = outputs.logits, batch.targets["labels"]
        if self.problem == "single":
            terms = self.backend.cross_entropy(logits, labels)
        elif self.problem == "multi":
            terms = self.backend.binary_cross_entropy(logits, labels, self._weights)
        else:
            terms = self.backend.squared_error(logits, labels)
        return self.backend.total(terms, batch.weights)

    def evaluate(self, examples: Sequence[Example]) -> dict[str, float]:
        """Accuracy and macro-F1 of documents, or error and correlation of numbers."""
        options = self.pipe.options.updated({"top_k": None}, self.name)
        results = list(self.pipe.run([example.item for example in examples], options=options))
        scores = np.array([[one["score"] for one in sorted(result, key=self._index)] for result in results])
        if self.problem == "regression":
            return metrics.regression(scores[:, 0], np.array([example.target for example in examples]))
        truth = np.array([self._marks(example) for example in examples])
        if self.problem == "multi":
            return metrics.multi_label(scores > 0.5, truth)
        return metrics.single_label(scores.argmax(1), truth.argmax(1))

    def _index(self, result: Mapping[str, Any]) -> int:
        return self.labels.index(result["label"]) if self.labels else 0

    def _marks(self, example: Example) -> list[bool]:
        names = _names(example.target)
        return [name in names for name in self.labels]


def _names(target: Any) -> list[str]:
    return target if isinstance(target, list) else [target]


def _name(label: Any) -> str:
    """A label in words; `3.0`, as tables write whole numbers beside blanks, is `3`."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return str(label).strip()


def _order(name: str) -> tuple[bool, int, str]:
    number = int(name) if name.lstrip("-").isdecimal() else None
    return number is None, number or 0, name
