"""Training for token classification: entities, or labels of words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from longspan.documents.document import replace_surrogates
from longspan.documents.tokens import Tokens
from longspan.documents.windows import owned_ranges
from longspan.errors import InputError
from longspan.inputs import IGNORE_INDEX
from longspan.training import metrics
from longspan.training.options import TrainOptions
from longspan.training.records import Record
from longspan.training.task import Example, Sample, TensorBatch, TrainingTask, column, text_of

_OUTSIDE = "O"
#: Characters `start` to `end` and the label of the first token there.
Stretch = tuple[int, int, str]


class TagTask(TrainingTask):
    """Labels of tokens. Each token learns in the window that shows it with the most context, and counts once.

    Of a word labelled `B-X` the tokens after the first are `I-X`. A record has `words` and `labels`, or `text` and
    `entities` (`start`, `end`, `label`).
    """

    name: ClassVar[str] = "tag"
    pipeline_task: ClassVar[str] = "token-classification"
    model_task: ClassVar[str] = "token-classification"
    has_token_targets: ClassVar[bool] = True
    label_field: ClassVar[str] = "labels"
    layout: ClassVar[str] = "conll"
    metric: ClassVar[str] = "f1"
    metric_names = ("precision", "recall", "f1")

    def __init__(self, options: TrainOptions) -> None:
        super().__init__(options)
        self._weights: Any = None

    def example(self, record: Record) -> Example:
        """A text, and the stretches of it that have labels."""
        if "entities" in record.values:
            text = text_of(record, self.text_column)
            return Example(
                text, [self._entity(each, text) for each in column(record, "entities", list, "a list")], record
            )
        words = [replace_surrogates(str(word)) for word in column(record, "words", list, "a list of words")]
        labels = column(record, self.label_column, list, "a list of labels")
        if len(words) != len(labels) or not words:
            raise InputError(f"column {self.label_column!r} must have a label for each of the {len(words)} words. "
                             f"Received: {len(labels)}")  # fmt: skip
        if not all(isinstance(label, str) and label for label in labels):
            raise InputError(f"column {self.label_column!r} must hold labels as strings. Received: {labels!r}")
        ends = np.cumsum([len(word) + 1 for word in words]) - 1
        stretches = [
            (int(end) - len(word), int(end), label)
            for word, end, label in zip(words, ends, labels, strict=True)
            if label != _OUTSIDE
        ]
        return Example(" ".join(words), stretches, record)

    def _entity(self, entity: Any, text: str) -> Stretch:
        values = entity if isinstance(entity, Mapping) else {}
        start, end, label = (values.get(name) for name in ("start", "end", "label"))
        if not isinstance(start, int) or not isinstance(end, int) or not isinstance(label, str):
            raise InputError(f"column 'entities' must hold start, end and label. Received: {entity!r}")
        if not 0 <= start < end <= len(text):
            raise InputError(
                f"column 'entities' must lie in the {len(text)} characters of the text. Received: {entity!r}"
            )
        return start, end, f"B-{label}"

    def learn_labels(self, examples: Sequence[Example], known: Mapping[str, int]) -> None:
        """`O`, and the labels of the data with those of continuations."""
        found = {label for example in examples for *_, label in example.target}
        found |= {_continued(label) for label in found}
        if not found:
            raise InputError("There must be a label other than O to learn. Received: none")
        is_known = found | {_OUTSIDE} <= set(known)
        self.labels = sorted(known, key=lambda name: known[name]) if is_known else [_OUTSIDE, *sorted(found)]

    def check_target(self, example: Example) -> None:
        """Refuse a label that the training data lacks."""
        missing = [label for *_, label in example.target if label not in self.labels]
        if missing:
            raise InputError(f"column {self.label_column!r} must hold labels of the training data. "
                             f"Received: {missing[0]!r}")  # fmt: skip

    def model_settings(self) -> dict[str, Any]:
        """Number and names of the labels."""
        names = dict(enumerate(self.labels))
        return {"num_labels": len(names), "id2label": names, "label2id": {name: index for index, name in names.items()},
                "ignore_mismatched_sizes": True}  # fmt: skip

    def samples(self, examples: Sequence[Example]) -> list[list[Sample] | InputError]:
        """One sample a window."""
        jobs = self.windows_of(examples)
        of_documents = [
            None if isinstance(job, InputError) else self._token_labels(example.target, job.tokens)
            for example, job in zip(examples, jobs, strict=True)
        ]
        if self._weights is None:  # the first data are those to learn from
            labels = [each for each in of_documents if each is not None]
            counts = np.bincount(np.concatenate(labels), minlength=len(self.labels)) if labels else np.ones(0, np.int64)
            self._weights = self.class_weights(counts)
        return [
            job if labels is None else self._of_windows(job, labels)
            for job, labels in zip(jobs, of_documents, strict=True)
        ]

    def _token_labels(self, stretches: Sequence[Stretch], tokens: Tokens) -> npt.NDArray[np.int64]:
        labels = np.zeros(len(tokens.ids), np.int64)
        labels[:] = self.labels.index(_OUTSIDE)
        for start, end, label in stretches:
            first = int(np.searchsorted(tokens.ends, start, side="right"))
            stop = int(np.searchsorted(tokens.starts, end, side="left"))
            if stop > first:
                labels[first:stop] = self.labels.index(_continued(label))
                labels[first] = self.labels.index(label)
        return labels

    def _of_windows(self, job: Any, labels: npt.NDArray[np.int64]) -> list[Sample]:
        samples = []
        for row, (start, _), (first, last) in zip(job.rows, job.windows, owned_ranges(job.windows), strict=True):
            targets = np.full(len(row), IGNORE_INDEX, np.int64)
            targets[job.lead + first - start : job.lead + last - start] = labels[first:last]
            samples.append(Sample([row], {"labels": targets}, float(self._weights[labels[first:last]].sum())))
        return samples

    def loss(self, outputs: Any, batch: TensorBatch) -> Any:
        """Cross-entropy of each token."""
        return self.backend.total(self.backend.cross_entropy(outputs.logits, batch.targets["labels"], self._weights))

    def evaluate(self, examples: Sequence[Example]) -> dict[str, float]:
        """Precision, recall and F1 of entities in whole documents."""
        options = self.pipe.options.updated({"aggregation_strategy": "simple"}, self.name)
        results = self.pipe.run([example.item for example in examples], options=options)
        found = [
            {(one["entity_group"], *_trimmed(example.item, one["start"], one["end"])) for one in result}
            for example, result in zip(examples, results, strict=True)
        ]
        return metrics.entities(found, [_entities(example) for example in examples])


def _continued(label: str) -> str:
    return f"I-{label[2:]}" if label.startswith("B-") else label


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    inner = text[start:end]
    return start + len(inner) - len(inner.lstrip()), end - len(inner) + len(inner.rstrip())


def _entities(example: Example) -> set[tuple[str, int, int]]:
    """Entities of the stretches: one that continues its neighbour, with only white space between, is part of it."""
    joined: list[list[Any]] = []
    for start, end, label in sorted(example.target):
        kind = label[2:] if label[:2] in ("B-", "I-") else label
        is_next = bool(joined) and joined[-1][0] == kind and not example.item[joined[-1][2] : start].strip()
        if is_next and not label.startswith("B-"):
            joined[-1][2] = end
        else:
            joined.append([kind, start, end])
    return {(kind, *_trimmed(example.item, start, end)) for kind, start, end in joined}
