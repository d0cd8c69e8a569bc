"""Summaries of documents of any length: what is read and written at each step, and the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.pipelines.task_models import make_summarizer

from longspan import pipeline
from longspan.documents.tokens import tokenize

_WORDS = "open the log file and read what Ada wrote in London about an engine of brass"
WORDS = _WORDS.split()
#: One word that no other text holds.
KEY = "Zanzibar"


class Copier:
    """Stands for a model that writes the first tokens of what it reads, and the key if it reads it."""

    def __init__(self, model: Any, key: list[int]) -> None:
        self.model, self.key = model, key
        self.steps: list[tuple[list[int], list[int]]] = []

    def write(self, rows: Sequence[Sequence[int]], settings: Mapping[str, Any]) -> list[list[int]]:
        """Copies, with an end token and padding behind, as a model writes them."""
        most = settings["max_new_tokens"]
        written = []
        for row in rows:
            own = [token for token in row if token > 1]
            has_key = any(own[place : place + len(self.key)] == self.key for place in range(len(own)))
            first = self.key if has_key else []
            new = [*first, *own[: most - len(first)]][:most]
            self.steps.append((list(row), new))
            written += [[*new, 1, 0, 0]] * (settings.get("num_return_sequences") or 1)
        return written


@pytest.fixture(scope="module")
def summarize(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Any:
    folder = make_summarizer(tmp_path_factory.mktemp("longt5"), minilm_dir)
    return pipeline("summarization", folder, batch_tokens=1 << 20)


def ids_of(run: Any, text: str) -> list[int]:
    return tokenize(run.tokenizer.backend_tokenizer, [text], with_offsets=False)[0].ids.tolist()


def covered(rows: list[list[int]], stride: int) -> list[int]:
    """The tokens of overlapping rows, each once."""
    tokens = rows[0]
    for row in rows[1:]:
        assert stride == 0 or tokens[-stride:] == row[:stride]
        tokens = tokens + row[stride:]
    return tokens


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 400), st.integers(9, 60), st.data())
def test_nothing_is_lost_between_the_steps(
    summarize: Any, monkeypatch: pytest.MonkeyPatch, num_words: int, limit: int, data: Any
) -> None:
    """Every token of the text is read, every token of a summary is read by the next step, and the budget is kept."""
    budget = data.draw(st.integers(1, 80))
    stride = data.draw(st.integers(0, limit - 3))
    text = " ".join(WORDS[number * 7 % len(WORDS)] for number in range(num_words))
    copier = Copier(summarize.model, ids_of(summarize, KEY))
    monkeypatch.setattr(summarize, "_writer", copier)
    found = summarize(text, max_new_tokens=budget, max_input_length=limit, stride=stride, return_tensors=True)
    written = [token for token in found[0]["summary_token_ids"] if token > 1]
    assert 0 < len(written) <= budget
    left, expected = copier.steps, ids_of(summarize, text)
    while True:
        count, rows = 0, []
        while not rows or covered(rows, stride) != expected:  # the windows of one step
            row = [token for token in left[count][0] if token != 1]
            assert len(row) < limit
            rows.append(row)
            count += 1
        parts = [new for _, new in left[:count]]
        left = left[count:]
        if not left:
            break  # the last step, of one window or of several that keep within the budget together
        assert all(len(part) <= (limit - 1 - stride) // 2 for part in parts)
        together = [token for part in parts for token in part]
        again = ids_of(summarize, " ".join(summarize.tokenizer.decode(part).strip() for part in parts))
        assert len(together) > budget, "what keeps within the budget is not summarised again"
        first = [token for token in left[0][0] if token != 1]
        assert again[: len(first)] == first or together[: len(first)] == first
        expected = again if again[: len(first)] == first and len(again) <= len(together) + len(parts) else together
    assert written == [token for part in parts for token in part]


#: each depth with one budget in every run of the tests, with both in the wide one
DEPTHS = [0, 1, 500, 2999, 6000, 11_998, 11_999]


@pytest.mark.parametrize(
    ("budget", "depth"),
    [
        pytest.param(budget, depth, marks=() if number % 2 == turn else pytest.mark.wide)
        for turn, budget in enumerate([12, 60])
        for number, depth in enumerate(DEPTHS)
    ],
)
def test_what_every_step_keeps_reaches_the_summary(
    summarize: Any, monkeypatch: pytest.MonkeyPatch, depth: int, budget: int
) -> None:
    words = [WORDS[number * 7 % len(WORDS)] for number in range(12_000)]
    text = " ".join([*words[:depth], KEY, *words[depth:]])
    copier = Copier(summarize.model, ids_of(summarize, KEY))
    monkeypatch.setattr(summarize, "_writer", copier)
    [found] = summarize(text, max_new_tokens=budget, max_input_length=128)
    assert KEY in found["summary_text"]
    assert len(copier.steps) > 100
    assert 0 < len(ids_of(summarize, found["summary_text"])) <= budget + 1, "the key begins a text in any case"


def test_prefixes_are_put_before_each_window(summarize: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    copier = Copier(summarize.model, ids_of(summarize, KEY))
    monkeypatch.setattr(summarize, "_writer", copier)
    prefix = "read: "
    before = ids_of(summarize, "read:")
    summarize(["a short one", " ".join(WORDS * 20)], prefix=prefix, max_new_tokens=10, max_input_length=40)
    assert len(copier.steps) > 8
    assert all(row[: len(before)] == before and len(row) <= 40 for row, _ in copier.steps)


def test_several_summaries_and_lengths(summarize: Any) -> None:
    text = " ".join(WORDS * 20)
    settings = {"max_input_length": 60, "num_beams": 2}
    both = summarize(text, max_new_tokens=6, num_return_sequences=2, **settings)
    assert len(both) == 2
    one = summarize(text, max_new_tokens=6, **settings)
    assert summarize(text, max_length=7, **settings) == one, "the start token counts"
    assert summarize(text, max_new_tokens=6, min_length=4, **settings)[0]["summary_text"]
    assert summarize([text, "a b"], max_new_tokens=6, **settings) == [
        *one,
        *summarize("a b", max_new_tokens=6, **settings),
    ]
    ids = summarize(text, max_new_tokens=6, return_tensors=True, **settings)[0]["summary_token_ids"]
    assert summarize.tokenizer.decode(ids, skip_special_tokens=True) == one[0]["summary_text"]


def test_progress_counts_texts_and_tokens(summarize: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from longspan.pipelines.run.progress import Progress

    seen = {"tokens": 0, "documents": 0}
    monkeypatch.setattr(Progress, "advance", lambda self, amount, count: seen.update(tokens=seen["tokens"] + count))
    monkeypatch.setattr(
        Progress, "finish_documents", lambda self, count: seen.update(documents=seen["documents"] + count)
    )
    summarize(["open the log", "a b"], max_new_tokens=3)
    assert seen == {"tokens": sum(len(ids_of(summarize, text)) + 1 for text in ("open the log", "a b")), "documents": 2}
