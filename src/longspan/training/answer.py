"""Training for extractive question answering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from longspan.documents.document import replace_surrogates
from longspan.errors import InputError
from longspan.training import metrics
from longspan.training.records import Record
from longspan.training.task import Array, Example, Sample, TensorBatch, TrainingTask, text_of


class AnswerTask(TrainingTask):
    """Places of a document that answer a question. Windows without the answer learn that it is not there.

    A record has `question`, `context` and `answers`: `{"text": [...], "answer_start": [...]}` or a list of
    `{"text": ..., "answer_start": ...}`; none says that there is no answer. Windows of a question count one together.
    """

    name: ClassVar[str] = "answer"
    pipeline_task: ClassVar[str] = "question-answering"
    model_task: ClassVar[str] = "question-answering"
    text_field: ClassVar[str] = "context"
    label_field: ClassVar[str] = "answers"
    layout: ClassVar[str] = "squad"
    metric: ClassVar[str] = "f1"
    metric_names = ("exact_match", "f1")
    #: Whether some questions have no answer.
    may_be_impossible = False

    def example(self, record: Record) -> Example:
        """A question with its context, and (start, end, text) of its answers."""
        context, question = (replace_surrogates(text_of(record, name)) for name in (self.text_column, "question"))
        answers = record.values.get(self.label_column)
        if isinstance(answers, Mapping):
            texts, starts = (list(answers.get(name, ())) for name in ("text", "answer_start"))
            if len(texts) != len(starts):
                raise InputError(f"column {self.label_column!r} must have an answer_start for each text. "
                                 f"Received: {len(starts)} for {len(texts)}")  # fmt: skip
            answers = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
        if not isinstance(answers, list):
            raise InputError(f"column {self.label_column!r} must hold answers. Received: {type(answers).__name__}")
        return Example(
            {"question": question, "context": context}, [self._span(answer, context) for answer in answers], record
        )

    def _span(self, answer: Any, context: str) -> tuple[int, int, str]:
        values = answer if isinstance(answer, Mapping) else {}
        text, start = values.get("text"), values.get("answer_start")
        if not isinstance(text, str) or not text.strip() or not isinstance(start, int | np.integer):
            raise InputError(f"column {self.label_column!r} must hold text and answer_start. Received: {answer!r}")
        begin = int(start)
        if begin < 0 or context[begin : begin + len(text)] != replace_surrogates(text):
            raise InputError(f"column {self.label_column!r} must name a place of the context where the text stands. "
                             f"Received: {answer!r}")  # fmt: skip
        return begin, begin + len(text), text

    def learn_labels(self, examples: Sequence[Example], known: Mapping[str, int]) -> None:
        """Take note whether some questions have no answer."""
        self.may_be_impossible = any(not example.target for example in examples)

    def samples(self, examples: Sequence[Example]) -> list[list[Sample] | InputError]:
        """One sample a window; the first answer is the one that is learnt."""
        return [
            job if isinstance(job, InputError) else self._of_windows(example, job)
            for example, job in zip(examples, self.windows_of(examples), strict=True)
        ]

    def _of_windows(self, example: Example, job: Any) -> list[Sample]:
        first, last = -1, -1
        if example.target:
            start, end, _ = example.target[0]
            first = int(np.searchsorted(job.tokens.ends, start, side="right"))
            last = int(np.searchsorted(job.tokens.starts, end, side="left")) - 1
        samples = []
        for row, (begin, stop) in zip(job.rows, job.windows, strict=True):
            if begin <= first <= last < stop:
                places = (job.lead + first - begin, job.lead + last - begin)
            elif self.tokenizer.cls_token_id is not None and row.ids[0] == self.tokenizer.cls_token_id:
                places = (0, 0)
            else:  # nothing that could say "not here"
                continue
            targets = dict(zip(("start_positions", "end_positions"), map(np.int64, places), strict=True))
            samples.append(Sample([row], targets, 1 / len(job.rows)))
        return samples

    def loss(self, outputs: Any, batch: TensorBatch) -> Any:
        """Mean of the cross-entropies of start and end over the real tokens of a window."""
        mask = batch.inputs.get("attention_mask")
        start, end = (
            self.backend.cross_entropy(
                self.backend.hide(outputs[f"{side}_logits"], mask), batch.targets[f"{side}_positions"]
            )
            for side in ("start", "end")
        )
        return self.backend.total((start + end) / 2, batch.weights)

    def evaluate(self, examples: Sequence[Example]) -> dict[str, float]:
        """Exact match and F1 of words as SQuAD's script has them, on whole documents."""
        options = self.pipe.options.updated({"handle_impossible_answer": self.may_be_impossible}, self.name)
        found = [result["answer"] for result in self.pipe.run([example.item for example in examples], options=options)]
        return metrics.answers(found, [[text for *_, text in example.target] for example in examples])


class ChooseTask(TrainingTask):
    """The best of several texts for a document. A record has `prompt`, `choices` and `label` (index or text)."""

    name: ClassVar[str] = "choose"
    pipeline_task: ClassVar[str] = "multiple-choice"
    model_task: ClassVar[str] = "multiple-choice"
    text_field: ClassVar[str] = "prompt"
    metric: ClassVar[str] = "accuracy"
    metric_names = ("accuracy",)
    _num_choices = 0

    def example(self, record: Record) -> Example:
        """A prompt with its choices, and the index of the right one."""
        prompt, choices = text_of(record, self.text_column), record.values.get("choices")
        if isinstance(choices, str):
            choices = choices.split(self.options.label_separator)
        if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(each, str) for each in choices):
            raise InputError(f"column 'choices' must hold two texts or more. Received: {choices!r}")
        label = record.values.get(self.label_column)
        if label in choices:
            label = choices.index(label)
        text = str(label)
        if not text.isdecimal() or int(text) >= len(choices):
            raise InputError(f"column {self.label_column!r} must be an index or a text of the choices. "
                             f"Received: {label!r}")  # fmt: skip
        return Example({"prompt": prompt, "choices": choices}, int(text), record)

    def learn_labels(self, examples: Sequence[Example], known: Mapping[str, int]) -> None:
        """Take note of the number of choices, which all records must have."""
        self._num_choices = len(examples[0].item["choices"])

    def samples(self, examples: Sequence[Example]) -> list[list[Sample] | InputError]:
        """One sample a window, with a row for each choice."""
        found: list[list[Sample] | InputError] = []
        for example, job in zip(examples, self.windows_of(examples), strict=True):
            count = len(example.item["choices"])
            if isinstance(job, InputError):
                found.append(job)
            elif count != self._num_choices:
                found.append(InputError(f"column 'choices' must hold {self._num_choices}, as the first record does. "
                                        f"Received: {count}"))  # fmt: skip
            else:
                rows = [job.rows[begin : begin + count] for begin in range(0, len(job.rows), count)]
                target = {"labels": np.int64(example.target)}
                found.append([Sample(of_window, target, 1 / len(rows)) for of_window in rows])
        return found

    def arrange(self, inputs: dict[str, Array], num_samples: int) -> dict[str, Array]:
        """Rows by sample and choice, (B, C, S)."""
        return {name: value.reshape(num_samples, -1, value.shape[-1]) for name, value in inputs.items()}

    def loss(self, outputs: Any, batch: TensorBatch) -> Any:
        """Cross-entropy over the choices."""
        return self.backend.total(self.backend.cross_entropy(outputs.logits, batch.targets["labels"]), batch.weights)

    def evaluate(self, examples: Sequence[Example]) -> dict[str, float]:
        """Part of the prompts with the right choice."""
        found = [result["choice"] for result in self.pipe.run([example.item for example in examples])]
        return {
            "accuracy": float(np.mean([one == example.target for one, example in zip(found, examples, strict=True)]))
        }
