"""The best spans of a document that was read in windows, against the definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pipelines import task_models

from longspan import pipeline
from longspan.documents.windows import plan_windows
from longspan.pipelines.long.merging import SpanLogits, best_spans


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(2, 12), st.integers(1, 6), st.integers(0, 10_000), st.booleans())
def test_spans_are_those_of_the_definition(
    num_tokens: int, capacity: int, max_length: int, seed: int, has_null: bool
) -> None:
    """Start and end are each normalised over all tokens, at their greatest, and over the surest class token."""
    draw = np.random.default_rng(seed)
    windows = plan_windows(num_tokens, capacity, min(capacity // 3, capacity - 1))
    logits = [
        SpanLogits(
            *(draw.normal(0, 2, stop - start) for _ in range(2)), tuple(draw.normal(0, 2, 2)) if has_null else None
        )
        for start, stop in windows
    ]
    greatest = np.full((2, num_tokens), -np.inf)
    for window, (start, stop) in zip(logits, windows, strict=True):
        greatest[:, start:stop] = np.maximum(greatest[:, start:stop], [window.start, window.end])
    null = min((window.null for window in logits if window.null), key=sum, default=None)
    sums = [np.exp(greatest[side]).sum() + (0 if null is None else np.exp(null[side])) for side in (0, 1)]
    spans, no_answer = best_spans(logits, windows, count=5, max_length=max_length)
    assert no_answer == pytest.approx(0 if null is None else np.exp(sum(null)) / sums[0] / sums[1])
    assert len({(span.first, span.last) for span in spans}) == len(spans) <= 5
    begins = [start for start, _ in windows]
    every = []
    for first in range(num_tokens):
        for last in range(first, min(first + max_length, num_tokens)):
            held = [(abs(start + stop - 1 - first - last), number)
                    for number, (start, stop) in enumerate(windows) if start <= first and last < stop]  # fmt: skip
            if held:
                near = min(held)[0]
                every.append([
                    np.exp(logits[number].start[first - begins[number]] + logits[number].end[last - begins[number]])
                    / np.prod(sums)
                    for distance, number in held
                    if distance == near
                ])  # fmt: skip
    best = sorted((max(scores) for scores in every), reverse=True)[:5]
    least = sorted((min(scores) for scores in every), reverse=True)[:5]
    for span, high, low in zip(spans, best, least, strict=False):
        assert low * (1 - 1e-9) <= span.score <= high * (1 + 1e-9)


def test_a_window_that_is_sure_of_nothing_does_not_win() -> None:
    """By itself the second window would give its one token all the probability."""
    sure = SpanLogits(np.array([0.0, 9.0, 0.0]), np.array([0.0, 9.0, 0.0]), (0.0, 0.0))
    alone = SpanLogits(np.array([1.0]), np.array([1.0]), (-9.0, -9.0))
    spans, _ = best_spans([sure, alone], [(0, 3), (3, 4)], count=2, max_length=1)
    assert (spans[0].first, spans[0].last) == (1, 1)
    assert spans[0].score > 0.99
    assert spans[1].score < 0.01


def test_the_default_window_is_all_that_the_model_reads(
    tmp_path: Path, minilm_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_models, "POSITIONS", 600)
    run = pipeline(
        "question-answering", task_models.make_task_model(tmp_path, "question-answering", "wordpiece", minilm_dir)
    )
    item = {"question": "Who wrote it?", "context": " ".join(task_models.TEXTS * 30)}
    assert run.window_length(run.options) == 600
    assert all(384 < len(row) <= 600 for row in run.prepare(item, run.options).rows)
    smaller = run.options.updated({"max_seq_len": 384, "doc_stride": 128}, run.task)
    assert max(len(row) for row in run.prepare(item, smaller).rows) <= 384
    asked = run.options.updated({"max_question_len": 2}, run.task)
    assert run.prepare(item, asked).extra == 2
