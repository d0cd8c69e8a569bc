"""Longformer finds answers at every depth of a long document by its global attention on the question."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.pipelines.planted import ANSWER, LONG_POSITIONS, NAME, QUESTIONS, filler, make_long_finder, plant

from longspan import pipeline

WORDS_OF_20000_TOKENS = 15_000
#: both ends, the edge of the first window, and places all over the document; more of the latter two take long
DEPTHS = [0, 1, 150, 152, 154, *range(1700, WORDS_OF_20000_TOKENS, 3402), WORDS_OF_20000_TOKENS]
MORE_DEPTHS = [149, 151, 153, 155, *range(3401, WORDS_OF_20000_TOKENS, 3402)]


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return pipeline("question-answering", make_long_finder(tmp_path_factory.mktemp("finder")))


def both(depth: int, seed: int) -> tuple[str, dict[str, int]]:
    """A text of 20,000 tokens with one phrase at a depth and the other far away, and their first characters."""
    words = filler(WORDS_OF_20000_TOKENS, seed)
    far = (depth + WORDS_OF_20000_TOKENS // 2) % WORDS_OF_20000_TOKENS
    first, last = sorted((depth, far))
    phrases = (ANSWER, NAME) if seed % 2 else (NAME, ANSWER)
    text, end = plant(words, phrases[1], last)
    text, begin = plant(text[:end].split(" ")[:-1], phrases[0], first)[0] + " " + text[end:], 0
    return text, {phrase: text.index(phrase, begin) for phrase in phrases}


@pytest.mark.parametrize("depth", [*DEPTHS, *(pytest.param(depth, marks=pytest.mark.wide) for depth in MORE_DEPTHS)])
def test_each_question_finds_its_own_answer(answer: Any, depth: int) -> None:
    text, starts = both(depth, seed=depth)
    assert len(answer.tokenizer(text, verbose=False).input_ids) > 20_000
    for question, phrase in QUESTIONS.items():
        found = answer(question=question, context=text)
        assert (found["answer"], found["start"], found["end"]) == (phrase, starts[phrase], starts[phrase] + len(phrase))


def test_it_is_the_global_attention_that_tells(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text, _ = both(7000, seed=3)
    job = type(answer)._job

    def on_first_token_only(self: Any, item: Any, tokens: Any, options: Any) -> Any:
        made = job(self, item, tokens, options)
        return replace(made, rows=[replace(row, is_global=np.arange(len(row)) == 0) for row in made.rows])

    right = [answer(question=question, context=text)["answer"] for question in QUESTIONS]
    monkeypatch.setattr(type(answer), "_job", on_first_token_only)
    blind = [answer(question=question, context=text)["answer"] for question in QUESTIONS]
    assert right == list(QUESTIONS.values())
    assert len(set(blind)) == 1, "without it both questions are the same"


def test_results_do_not_depend_on_batches(answer: Any) -> None:
    inputs = [
        {"question": question, "context": plant(filler(count, count), phrase, count // 2)[0]}
        for count in (3, 700, 40, 1500)
        for question, phrase in QUESTIONS.items()
    ]
    expected = answer(inputs, top_k=3)
    for settings in ({"batch_tokens": LONG_POSITIONS}, {"batch_tokens": 1 << 16}, {"batch_size": 1}):
        for mine, other in zip(answer(inputs, top_k=3, **settings), expected, strict=True):
            assert [(a["start"], a["end"], a["answer"]) for a in mine] == [
                (a["start"], a["end"], a["answer"]) for a in other
            ]
            np.testing.assert_allclose([a["score"] for a in mine], [a["score"] for a in other], rtol=0, atol=1e-5)
