"""Inputs, options, Longformer's global attention, zero-shot labels, and what is said to wrong arguments."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.pipelines.task_models import TEXTS, make_task_model

from longspan import pipeline
from longspan.documents.windows import context_borders, owned_ranges, plan_windows
from longspan.errors import ConfigError, InputError

TASKS = ("text-classification", "question-answering", "multiple-choice", "fill-mask")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("longformers")
    return {task: make_task_model(root / task, task, "byte_level", minilm_dir) for task in TASKS}


@given(st.integers(1, 400), st.integers(2, 40), st.data())
def test_each_token_and_span_belongs_to_the_window_with_the_most_context(
    num_tokens: int, capacity: int, data: Any
) -> None:
    overlap = data.draw(st.integers(0, capacity - 1))
    windows = plan_windows(num_tokens, capacity, overlap)
    ranges = owned_ranges(windows)
    assert [token for first, last in ranges for token in range(first, last)] == list(range(num_tokens))
    assert all(start <= first <= last <= stop for (start, stop), (first, last) in zip(windows, ranges, strict=True))
    borders = context_borders(windows)
    first = data.draw(st.integers(0, num_tokens - 1))
    last = data.draw(st.integers(first, min(num_tokens, first + capacity) - 1))
    holders = [n for n, (start, stop) in enumerate(windows) if start <= first and last < stop]
    if holders:
        [chosen] = [n for n in range(len(windows)) if borders[n] < first + last <= borders[n + 1]]
        contexts = {n: min(first - windows[n][0], windows[n][1] - 1 - last) for n in holders}
        assert chosen in holders
        assert contexts[chosen] >= max(contexts.values()) - 1, "sizes differ by one, and so may contexts"


def seen_masks(run: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen = []
    forward = run.model.run

    def record(inputs: Any, wanted: Any = None) -> Any:
        seen.append(inputs)
        return forward(inputs, wanted)

    monkeypatch.setattr(run.model, "run", record)
    return seen


@pytest.mark.parametrize("task", TASKS)
def test_longformers_get_global_attention_where_the_task_needs_it(
    folders: dict[str, Path], task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = pipeline(task, folders[task])
    seen = seen_masks(run, monkeypatch)
    question, choice, text = "Who wrote it?", "Ada", TEXTS[0] * 12
    run({"text-classification": text, "fill-mask": text + "<mask>",
         "question-answering": {"question": question, "context": text},
         "multiple-choice": {"prompt": text, "choices": [choice, "No one"]}}[task])  # fmt: skip
    assert seen
    assert sum(len(inputs["input_ids"]) for inputs in seen) > 1 or task == "fill-mask"
    for inputs in seen:
        assert "token_type_ids" not in inputs
        if task == "fill-mask":
            assert "global_attention_mask" not in inputs
            continue
        for ids, mask in zip(inputs["input_ids"], inputs["global_attention_mask"], strict=True):
            marked = run.tokenizer.decode(ids[mask == 1].tolist())
            if task == "multiple-choice":
                assert marked.replace("</s>", "").replace("<pad>", "") in (choice, "No one")
            else:
                assert marked == {"text-classification": "<s>", "question-answering": f"<s>{question}"}[task]


def test_iterators_give_iterators_that_read_ahead_a_bounded_number(folders: dict[str, Path]) -> None:
    run = pipeline("text-classification", folders["text-classification"])
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        for number in itertools.count():
            read += 1
            yield f"text {number} " * 200

    results = run(endless())
    first = [next(results) for _ in range(3)]
    assert first == run([f"text {number} " * 200 for number in range(3)])
    assert read < 5000
    assert list(run(iter(()))) == run([]) == run(()) == []


def test_options_hold_for_the_calls_that_do_not_say_otherwise(folders: dict[str, Path]) -> None:
    run = pipeline("text-classification", folders["text-classification"], top_k=2)
    assert len(run([TEXTS[0]])[0]) == 2
    assert len(run([TEXTS[0]], top_k=1)[0]) == 1
    assert len(run.updated(top_k=1)([TEXTS[0]])[0]) == 1


def test_zero_shot_classification() -> None:
    classify = pipeline("zero-shot-classification", candidate_labels="cooking, law")
    texts = ["Simmer the onions for ten minutes.", "The court dismissed the appeal. " * 100]
    results = classify(texts)
    assert [result["labels"][0] for result in results] == ["cooking", "law"]
    assert [result["sequence"] for result in results] == texts
    for result in results:
        assert sum(result["scores"]) == pytest.approx(1)
        assert result["scores"] == sorted(result["scores"], reverse=True)
    several = classify(texts[0], ["cooking", "kitchen", "law"], multi_label=True)
    assert all(0 <= score <= 1 for score in several["scores"])
    assert list(classify(iter(texts))) == results
    with pytest.raises(InputError, match="hypothesis_template must hold {}. Received: hypothesis_template='x'"):
        classify(texts, hypothesis_template="x")
    with pytest.raises(
        InputError, match=r"candidate_labels must be at least one label. Received: candidate_labels=\[\]"
    ):
        classify(texts, [])
    with pytest.raises(InputError, match="The options of zero-shot-classification are .*Received: top_k"):
        classify(texts, top_k=1)
    with pytest.raises(InputError, match="text must be a string. Received: int"):
        classify([3])
    with pytest.raises(InputError, match="tokenizer must be None: a sentence encoder brings its own"):
        pipeline("zero-shot-classification", tokenizer="x")


def test_multiple_choice_scores_choices_together(folders: dict[str, Path]) -> None:
    choose = pipeline("multiple-choice", folders["multiple-choice"])
    found = choose(prompt=TEXTS[0], choices=["yes", "no", "in London, perhaps"])
    assert found["answer"] == ["yes", "no", "in London, perhaps"][found["choice"]]
    assert sum(found["scores"]) == pytest.approx(1)
    assert found["score"] == max(found["scores"])
    row = choose.tokenizer([TEXTS[0]] * 3, ["yes", "no", "in London, perhaps"], padding=True, return_tensors="pt")
    logits = choose.model.model(**{name: value[None] for name, value in row.items()}).logits[0].detach()
    assert np.allclose(found["scores"], logits.softmax(0), atol=1e-5)


CALLS = [
    ("text-classification", {"inputs": 3}, "inputs must be one input of text-classification or an .* Received: int"),
    ("text-classification", {"inputs": [3]}, "text must be a string. Received: int"),
    ("text-classification", {"inputs": {"txt": "a"}}, r"must have the keys text and text_pair. Received: \['txt'\]"),
    ("text-classification", {"inputs": "a", "top_k": 0}, "top_k must be at least 1. Received: top_k=0"),
    ("text-classification", {"inputs": "a", "function_to_apply": "exp"}, "function_to_apply must be one of sigmoid"),
    (
        "text-classification",
        {"inputs": "a", "window_pooling": "sum"},
        "window_pooling must be one of mean, max, weight",
    ),
    ("text-classification", {"inputs": "a", "batch_tokens": 0}, "batch_tokens must be at least 1"),
    ("text-classification", {"inputs": "a", "batch_size": 0}, "batch_size must be at least 1. Received: batch_size=0"),
    (
        "text-classification",
        {"inputs": "a", "colour": 1},
        "The options of text-classification are .* Received: colour=1",
    ),
    ("text-classification", {"inputs": "a", "truncation": 7}, "truncation must be True or False.*truncation=7"),
    ("question-answering", {"inputs": "a"}, "must be a dict with the keys question and context. Received: str"),
    ("question-answering", {"question": "a"}, "question and context must be given together. Received: context=None"),
    ("question-answering", {"question": ["a", "b", "c"], "context": ["a", "b"]}, "3 questions, 2 contexts"),
    ("question-answering", {"question": " ", "context": "a"}, "question must not be empty. Received: ' '"),
    ("question-answering", {"question": "a", "context": "b", "top_k": 0}, "top_k must be at least 1"),
    ("question-answering", {"question": "a", "context": "b", "max_answer_len": 0}, "max_answer_len must be at least 1"),
    ("question-answering", {"question": "a", "context": "b", "k": 2}, "The options of .* Received: k=2"),
    ("question-answering", {"question": "a", "context": "b", "max_question_len": 0}, "max_question_len must be at"),
    ("multiple-choice", {"inputs": {"prompt": "a"}}, r"the keys prompt and choices. Received: \['prompt'\]"),
    ("multiple-choice", {"prompt": "a", "choices": ["b"]}, "choices must be a list of at least two texts"),
    ("multiple-choice", {"prompt": "a", "choices": ["b", 3]}, "Each choice must be a string. Received: int"),
    ("fill-mask", {"inputs": "a"}, "A text must hold the mask token <mask>. Received: a text without it"),
    (
        "fill-mask",
        {"inputs": "a<mask>", "targets": []},
        r"targets must name at least one token. Received: targets=\[\]",
    ),
]


@pytest.mark.parametrize(("task", "arguments", "message"), CALLS)
def test_wrong_calls(folders: dict[str, Path], task: str, arguments: dict[str, Any], message: str) -> None:
    run = pipeline(task, folders[task])
    with pytest.raises(InputError, match=message):
        run(**arguments)


def test_wrong_pipelines(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["text-classification"]
    with pytest.raises(InputError, match="task must be one of text-classification, .*Received: task='colour'"):
        pipeline("colour", folder)
    with pytest.raises(InputError, match="model must be named"):
        pipeline("fill-mask")
    (tmp_path / "config.json").write_text('{"model_type": "longt5"}')
    with pytest.raises(InputError, match="task must be given: .* does not say what it is for"):
        pipeline(model=tmp_path)
    with pytest.raises(InputError, match="framework must be one of torch, flax, keras. Received: framework='mxnet'"):
        pipeline("fill-mask", folder, framework="mxnet")
    with pytest.raises(InputError, match="aggregation_strategy must be one of none, simple, first, average, max"):
        pipeline("ner", folder, aggregation_strategy="best")
    with pytest.raises(ConfigError, match="'longt5' must have a class for the task 'text-classification'"):
        pipeline("text-classification", tmp_path)
    assert pipeline("sentiment-analysis", folder, device=-1).task == "text-classification"


def test_targets_that_are_no_tokens_are_said(folders: dict[str, Path]) -> None:
    fill = pipeline("fill-mask", folders["fill-mask"])
    with pytest.warns(UserWarning, match="the target 'Zyxwv' is no token; its first one, .*, stands for it"):
        found = fill("a <mask>", targets=["Zyxwv"])
    assert len(found) == 1
    with pytest.warns(UserWarning, match="the target '' has no token and is left out"), pytest.raises(InputError):
        fill("a <mask>", targets=[""])
