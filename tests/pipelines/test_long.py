"""Documents longer than the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.pipelines.planted import ANSWER, NAME, QUESTION, filler, make_finder, plant

from longspan import pipeline
from longspan.errors import InputError

WORDS_OF_20000_TOKENS = 15_000


@pytest.fixture(scope="module")
def finders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    tasks = ("token-classification", "question-answering", "text-classification")
    root = tmp_path_factory.mktemp("finders")
    return {task: pipeline(task, make_finder(root / task, task)) for task in tasks}


def test_entities_planted_at_every_depth_are_found_once_with_their_characters(finders: dict[str, Any]) -> None:
    tag = finders["token-classification"]
    words = filler(WORDS_OF_20000_TOKENS, seed=1)
    assert len(tag.tokenizer(" ".join(words), verbose=False).input_ids) > 20_000
    pieces, starts, length = [], [], 0
    for place in range(0, len(words), 211):  # prime: the phrases meet windows at every place
        text, start = plant(words[place : place + 211], NAME, 100)
        pieces.append(text)
        starts.append(length + start)
        length += len(text) + 1
    text = " ".join(pieces)
    entities = tag(text, aggregation_strategy="simple")
    assert [(entity["start"], entity["end"]) for entity in entities] == [(s, s + len(NAME)) for s in starts]
    assert {entity["entity_group"] for entity in entities} == {"PER"}
    assert {text[entity["start"] : entity["end"]] for entity in entities} == {NAME}


def test_an_answer_planted_at_any_depth_is_found(finders: dict[str, Any]) -> None:
    answer = finders["question-answering"]
    words = filler(WORDS_OF_20000_TOKENS, seed=2)
    depths = [0, 1, 37, 38, 39, 40, 41, *range(1500, WORDS_OF_20000_TOKENS, 1501), len(words)]
    for depth in depths:
        text, start = plant(words, ANSWER, depth)
        found = answer(question=QUESTION, context=text)
        assert (found["start"], found["end"]) == (start, start + len(ANSWER)), depth
        assert found["answer"] == ANSWER
        assert 0 < found["score"] <= 1


def test_the_same_answer_in_two_windows_is_one(finders: dict[str, Any]) -> None:
    text, _ = plant(filler(300, seed=3), ANSWER, 150)
    answers = finders["question-answering"](question=QUESTION, context=text, top_k=5, stride=30)
    assert len({answer["answer"].lower() for answer in answers}) == len(answers) == 5


def test_no_answer_wins_where_there_is_none(finders: dict[str, Any]) -> None:
    answer = finders["question-answering"]
    without = answer(question=QUESTION, context=" ".join(filler(2000, seed=4)), handle_impossible_answer=True)
    assert without["answer"] == ""
    text, start = plant(filler(2000, seed=4), ANSWER, 1000)
    found = answer(question=QUESTION, context=text, handle_impossible_answer=True)
    assert found["start"] == start


def test_classification_finds_the_window_that_matters(finders: dict[str, Any]) -> None:
    classify = finders["text-classification"]
    text, start = plant(filler(3000, seed=5), NAME, 2100)
    [best] = classify(text, window_pooling="max", return_windows=True, top_k=1)
    assert best["label"] == "LABEL_1"
    window = max(best["windows"], key=lambda window: window["score"])
    assert window["start"] < start + len(NAME)
    assert start < window["end"]
    assert best["score"] == pytest.approx(window["score"])
    assert classify(text)[0]["label"] == "LABEL_0", "the mean is that of the many windows without it"


@pytest.mark.parametrize("pooling", ["mean", "max", "weighted"])
def test_pooling_of_windows(finders: dict[str, Any], pooling: str) -> None:
    classify = finders["text-classification"]
    text = " ".join(filler(200, seed=6))
    labels = classify(text, top_k=None, window_pooling=pooling, return_windows=True, stride=0, max_length=40)
    for label in labels:
        scores = [window["score"] for window in label["windows"]]
        assert len(scores) > 3
        lengths = [len(classify.tokenizer(text[w["start"] : w["end"]]).input_ids) - 2 for w in label["windows"]]
        expected = {"mean": np.mean(scores), "max": max(scores), "weighted": np.average(scores, weights=lengths)}
        assert label["score"] == pytest.approx(float(expected[pooling]), abs=1e-6)


@pytest.mark.parametrize("task", ["token-classification", "question-answering", "text-classification"])
def test_results_do_not_depend_on_batches(finders: dict[str, Any], task: str) -> None:
    texts = [
        plant(filler(count, seed=count), NAME + " " + ANSWER, count // 2)[0] for count in (3, 80, 700, 12, 250, 41)
    ]
    inputs: Any = texts
    if task == "question-answering":
        inputs = [{"question": QUESTION, "context": text} for text in texts]
    run = finders[task]
    expected = run(inputs)
    for settings in ({"batch_tokens": 64}, {"batch_tokens": 300}, {"batch_size": 1}, {"batch_tokens": 1 << 20}):
        assert _rounded(run(inputs, **settings)) == _rounded(expected)
    assert [_rounded(run(item)) for item in inputs] == [_rounded(_single(task, result)) for result in expected]


def _single(task: str, result: Any) -> Any:
    return [result] if task == "text-classification" else result


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 5) if isinstance(value, float) else value


def test_truncation_reads_the_beginning_and_errors_say_how_long_the_text_is(finders: dict[str, Any]) -> None:
    tag = finders["token-classification"]
    early, late = (plant(filler(300, seed=8), NAME, place)[0] for place in (5, 200))
    settings = {"aggregation_strategy": "simple"}
    assert tag(early, on_long="truncate", **settings) == tag(early, truncation=True, **settings) != []
    assert tag(late, on_long="truncate", **settings) == []
    with pytest.raises(InputError, match=r"must fit max_length=64 tokens with on_long='error'. Received: \d{3} tokens"):
        tag(late, on_long="error")
    with pytest.raises(InputError, match="on_long must be one of window, truncate, error. Received: on_long='cut'"):
        tag(late, on_long="cut")
    with pytest.raises(InputError, match="stride must be at least 0 and below the 62 tokens.*Received: stride=62"):
        tag(late, stride=62)
    with pytest.raises(InputError, match=r"max_length must lie in \[1, 64\]. Received: max_length=65"):
        tag(late, max_length=65)
    with pytest.raises(InputError, match="A window must hold at least one token.*Received: room for 0"):
        tag(late, max_length=2)


def test_masks_of_a_long_text_and_states_of_a_long_text(tmp_path: Path, minilm_dir: Path) -> None:
    from tests.pipelines.task_models import make_task_model

    fill = pipeline("fill-mask", make_task_model(tmp_path / "mask", "fill-mask", "wordpiece", minilm_dir))
    before, behind = "the long road " * 300, " ends here" * 300
    window = fill("the long road " * 10 + "[MASK]" + " ends here" * 10, top_k=3)
    found = fill(before + "[MASK]" + behind, top_k=3)
    assert len(found) == len(window) == 3
    assert found[0]["sequence"].count("the long road") == 300
    assert len(fill("[MASK] " + before + "[MASK] " + behind + "[MASK]", top_k=1)) == 3
    with pytest.raises(InputError, match="must stand in the part of the text that is read"):
        fill(before + "[MASK]", on_long="truncate")

    folder = make_task_model(tmp_path / "base", "feature-extraction", "wordpiece", minilm_dir)
    extract = pipeline("feature-extraction", folder, return_tensors=True)
    text = before[:3000]
    states = extract(text)
    assert states.shape == (1, len(extract.tokenizer(text, verbose=False).input_ids), 24)
    assert extract(text, on_long="truncate").shape[1] == 128
    parts = [extract(text, max_length=length, on_long="truncate") for length in (100, 128)]
    two = extract(" ".join(["the"] * 150), max_length=100, stride=20)  # windows of 85 tokens: 0-85 and 65-150
    left, right = (extract(" ".join(["the"] * 85)) for _ in range(2))
    assert np.allclose(two[0, : 1 + 75], left[0, : 1 + 75], atol=1e-5)
    assert np.allclose(two[0, 1 + 75 :], right[0, 1 + 10 :], atol=1e-5)
    assert [part.shape[1] for part in parts] == [100, 128]
