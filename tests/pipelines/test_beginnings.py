"""Truncation tokenizes only what is read, with the tokens of the whole text."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.pipelines.task_models import KINDS, TEXTS, make_task_model, make_tokenizer

import longspan.pipelines.long.rows as beginnings
from longspan import SentenceEncoder, pipeline
from longspan.documents.tokens import tokenize
from longspan.errors import InputError

SPACES = [" ", "  ", "\n", "\n\n \t", "\u00a0", " " * 50]
ODD = ["日本語" * 40, "x" * 3000, "naïve" * 300, "<mask>", "[MASK]", "<extra_id_1>", "\u0301\u0301", "…" * 90, "ΟΔΟΣ"]


def make_text(seed: int, count: int) -> str:
    draw = random.Random(seed)
    words = [*" ".join(TEXTS).split(), *ODD]
    weights = [8] * (len(words) - len(ODD)) + [1] * len(ODD)
    chosen = draw.choices(words, weights, k=count)
    return "".join(word + draw.choice(SPACES if draw.random() < 0.2 else [" "]) for word in chosen)


@pytest.fixture(scope="module", params=KINDS)
def fast(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    return make_tokenizer(folder, request.param, minilm_dir).backend_tokenizer


@pytest.mark.parametrize("most", [1, 20, 300])
def test_tokens_are_those_of_the_whole_text(fast: Any, most: int) -> None:
    texts = ["", "a", *(make_text(seed, count) for seed, count in enumerate([3, 100, 500, 2000, 1500, 900, 1200]))]
    whole = tokenize(fast, texts, with_words=True)
    found = beginnings.tokenize_beginnings(fast, texts, most, with_words=True)
    assert any(len(few.ids) < len(every.ids) for few, every in zip(found, whole, strict=True))
    for few, every in zip(found, whole, strict=True):
        count = len(few.ids)
        assert count >= min(most, len(every.ids))
        for name in ("ids", "starts", "ends", "words"):
            np.testing.assert_array_equal(getattr(few, name), getattr(every, name)[:count])


@pytest.mark.parametrize("text", ["x" * 400_000, " " * 400_000 + "end", "日" * 300_000, "x" * 300_000 + " a b c d e"])
def test_texts_without_words_are_read_as_far_as_needed(fast: Any, text: str) -> None:
    [whole], [found] = tokenize(fast, [text]), beginnings.tokenize_beginnings(fast, [text], 16)
    assert len(found.ids) >= min(16, len(whole.ids))
    np.testing.assert_array_equal(found.ids, whole.ids[: len(found.ids)])


TASKS = {
    "text-classification": lambda text: text,
    "token-classification": lambda text: text,
    "feature-extraction": lambda text: text,
    "question-answering": lambda text: {"question": "Who wrote it?", "context": text},
    "multiple-choice": lambda text: {"prompt": text, "choices": ["yes", "no"]},
    "fill-mask": lambda text: "[MASK] " + text,
}


@pytest.mark.parametrize("task", TASKS)
def test_ten_megabytes_in_one_line_cost_what_their_beginning_costs(
    tmp_path: Path, minilm_dir: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = pipeline(task, make_task_model(tmp_path, task, "wordpiece", minilm_dir), on_long="truncate")
    seen: list[int] = []
    monkeypatch.setattr(
        beginnings,
        "tokenize",
        lambda fast, texts, **rest: seen.extend(map(len, texts)) or tokenize(fast, texts, **rest),
    )
    line = "the first program was written in London by Ada, who had read of looms " * 150_000
    assert len(line) > 10_000_000
    found = run(TASKS[task](line))
    assert sum(seen) < 5000
    assert found == run(TASKS[task](line[:5000]))
    if task == "fill-mask":
        with pytest.raises(InputError, match="A mask must stand in the part of the text that is read"):
            run(line + "[MASK]")


def test_embeddings_too(tiny: SentenceEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "open the log file " * 2000
    seen: list[int] = []
    monkeypatch.setattr(
        beginnings,
        "tokenize",
        lambda fast, texts, **rest: seen.extend(map(len, texts)) or tokenize(fast, texts, **rest),
    )
    long, short = tiny.encode([text, text[:3000]], on_long="truncate")
    assert max(seen) < 3000
    np.testing.assert_array_equal(long, short)
    whole = tiny.encode(text)
    assert not np.allclose(long, whole)
    prompted = tiny.encode([text], on_long="truncate", prompt="read the ")
    np.testing.assert_allclose(prompted, tiny.encode([text[:3000]], on_long="truncate", prompt="read the "), atol=1e-6)


@pytest.mark.slow
def test_a_megabyte_in_one_line_is_read_window_by_window(tmp_path: Path, minilm_dir: Path) -> None:
    line = "the first program was written in London by Ada, who had read of looms " * 15_000
    tag = pipeline("token-classification", make_task_model(tmp_path, "token-classification", "wordpiece", minilm_dir))
    begin = time.process_time()
    found = tag(line, stride=0)
    assert time.process_time() - begin < 12, "a step that is quadratic in the 240,000 tokens would take longer"
    assert found[-1]["end"] > len(line) - 100
    assert all(line[entity["start"] : entity["end"]].lower() == entity["word"].lstrip("#") for entity in found[-500:])
