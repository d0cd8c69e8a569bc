"""Extractive question answering: the places of a document that answer a question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from longspan.documents.tokens import Tokens
from longspan.errors import InputError
from longspan.pipelines.base import Job, Pipeline, check_text
from longspan.pipelines.long.merging import Floats, SpanLogits, best_spans, characters_of
from longspan.pipelines.long.rows import Row
from longspan.pipelines.options import Options, check_at_least, warn_of_old_word

#: More spans than answers are looked at, as several may be the same words.
_MORE_SPANS = 10


@dataclass(frozen=True)
class QuestionAnsweringOptions(Options):
    """Options of question answering, besides those of every task.

    Attributes:
        top_k: Most answers a question gets.
        doc_stride: The reference's name of `stride`.
        max_seq_len: The reference's name of `max_length`; unlike there, the default is all that the model reads.
        max_question_len: Most tokens of a question; what follows them is not read. Default all.
        max_answer_len: Most tokens of an answer.
        handle_impossible_answer: Let "no answer" (an empty one) compete.
        align_to_words: Widen answers to whole words.
    """

    top_k: int = 1
    doc_stride: int | None = None
    max_seq_len: int | None = None
    max_question_len: int | None = None
    max_answer_len: int = 15
    handle_impossible_answer: bool = False
    align_to_words: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("top_k", self.top_k, 1)
        check_at_least("max_question_len", self.max_question_len, 1)
        check_at_least("max_answer_len", self.max_answer_len, 1)
        for ours, theirs in (("stride", self.doc_stride), ("max_length", self.max_seq_len)):
            if theirs is not None:
                object.__setattr__(self, ours, theirs)

    def _renamed(self, settings: dict[str, Any]) -> dict[str, Any]:
        number = settings.pop("topk", None)
        if number is not None and settings.get("top_k") is None:
            warn_of_old_word("topk", "top_k")
            settings["top_k"] = number
        return settings


class QuestionAnsweringPipeline(Pipeline):
    """Finds answers in texts of any length; see `Pipeline` for the arguments.

    A long context is read in overlapping windows, each beside the whole question, and the scores of all windows are
    made comparable by one normalisation over the whole document. Longformer's class token and question have global
    attention. A result is a dict with `score`, `answer` and the characters `start` to `end` of the context; with
    `top_k` above 1 a list of them. Answers of the same words are one, with the sum of their scores and the place of the
    best. A context without text has the answer `""` with score 0.

    Options: `QuestionAnsweringOptions`.

    Example:
        >>> from longspan import pipeline
        >>> answer = pipeline("question-answering", "./my-longformer")  # doctest: +SKIP
        >>> answer(question="Where was she born?", context="A whole book ...")  # doctest: +SKIP
        {'score': 0.93, 'start': 70211, 'end': 70217, 'answer': 'London'}
    """

    task: ClassVar[str] = "question-answering"
    options_class: ClassVar[type[Options]] = QuestionAnsweringOptions

    def __call__(
        self,
        inputs: Any = None,
        *more: str,
        question: str | list[str] | None = None,
        context: str | list[str] | None = None,
        **settings: Any,
    ) -> Any:
        """Answer questions.

        Args:
            inputs: A dict `{"question": ..., "context": ...}`, or any iterable of them; or a question, with the context
                as the second argument.
            *more: The context.
            question: One question or a list of them.
            context: One context for all questions, or one for each.
            **settings: Options for this call.

        Returns:
            The result of one question, or a list of results (a generator for iterables that are no lists).

        Raises:
            InputError: an input or option breaks a rule.
        """
        if question is not None or context is not None:
            inputs = _pairs(question, context)
        elif more:
            inputs = {"question": inputs, "context": more[0]}
        if isinstance(inputs, list | tuple) and len(inputs) == 1:
            inputs = inputs[0]
        return super().__call__(inputs, **settings)

    def _texts(self, item: Any) -> list[str]:
        if not isinstance(item, Mapping) or not {"question", "context"} <= set(item):
            keys = sorted(item) if isinstance(item, Mapping) else type(item).__name__
            raise InputError(f"A question must be a dict with the keys question and context. Received: {keys}")
        texts = [check_text(item["question"], "question"), check_text(item["context"], "context")]
        if not texts[0].strip():
            raise InputError(f"question must not be empty. Received: {texts[0]!r}")
        return texts

    def _alignment(self, options: Options) -> dict[str, bool]:
        return {"with_offsets": True, "with_words": True}

    def _job(self, item: Mapping[str, str], tokens: list[Tokens], options: QuestionAnsweringOptions) -> Job:
        template = self._template(is_pair=True)
        asked, document = tokens[0].ids[: options.max_question_len], tokens[1]
        if not len(document.ids):  # nothing to read, and no answer in it
            return Job(item["context"], document, [], [], 0, len(asked))
        windows = self._windows(len(document.ids), template.num_special + len(asked), options)
        question_first = self.tokenizer.padding_side == "right"
        rows, lead = [], 0
        for start, stop in windows:
            part = document.ids[start:stop]
            sequences = (asked, part) if question_first else (part, asked)
            row, begins = template.wrap(*sequences)
            lead, begin = begins[question_first], begins[not question_first]
            rows.append(replace(row, is_global=_question_mask(row, begin, len(asked))))
        return Job(item["context"], document, windows, rows, lead, len(asked))

    def _pick(self, outputs: dict[str, Floats], row: Row, job: Job, options: QuestionAnsweringOptions) -> SpanLogits:
        num_others = self._template(is_pair=True).num_special + job.extra
        start, end = (
            outputs[name][job.lead : job.lead + len(row) - num_others].astype(np.float64)
            for name in ("start_logits", "end_logits")
        )
        has_null = self.tokenizer.cls_token_id is not None and row.ids[0] == self.tokenizer.cls_token_id
        null = (float(outputs["start_logits"][0]), float(outputs["end_logits"][0])) if has_null else None
        return SpanLogits(start, end, null)

    def _finish(self, job: Job, picked: list[SpanLogits], options: QuestionAnsweringOptions) -> Any:
        if not picked:
            return {"score": 0.0, "start": 0, "end": 0, "answer": ""}
        count = 2 * options.top_k + _MORE_SPANS if options.align_to_words else options.top_k
        spans, no_answer = best_spans(picked, job.windows, count=count, max_length=options.max_answer_len)
        answers: dict[str, dict[str, Any]] = {}
        for span in spans:
            start, end = characters_of(span, job.tokens, align_to_words=options.align_to_words)
            text = job.text[start:end]
            if text.lower() in answers:
                answers[text.lower()]["score"] += span.score
            else:
                answers[text.lower()] = {"score": span.score, "start": start, "end": end, "answer": text}
        found = list(answers.values())
        if options.handle_impossible_answer:
            found.append({"score": no_answer, "start": 0, "end": 0, "answer": ""})
        found = sorted(found, key=lambda answer: -answer["score"])[: options.top_k]
        return found[0] if len(found) == 1 else found


def _question_mask(row: Row, begin: int, length: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Global attention on the class token and the question."""
    positions = np.arange(len(row))
    mask: np.ndarray[Any, np.dtype[np.bool_]] = (positions == 0) | ((positions >= begin) & (positions < begin + length))
    return mask


def _pairs(question: Any, context: Any) -> list[dict[str, Any]]:
    if question is None or context is None:
        missing = "question" if question is None else "context"
        raise InputError(f"question and context must be given together. Received: {missing}=None")
    if isinstance(question, str) and isinstance(context, str):
        return [{"question": question, "context": context}]
    questions = [question] if isinstance(question, str) else list(question)
    contexts = [context] * len(questions) if isinstance(context, str) else list(context)
    if len(questions) != len(contexts):
        raise InputError(
            "There must be one context for all questions or one for each. "
            f"Received: {len(questions)} questions, {len(contexts)} contexts"
        )
    return [{"question": q, "context": c} for q, c in zip(questions, contexts, strict=True)]
