"""Inputs at the edges: blank texts among others, strides that fit no window, tags of other schemes, notebooks."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.pipelines.explained import make_model
from tests.pipelines.task_models import TEXTS, make_task_model

from longspan import pipeline
from longspan.documents.tokens import Tokens
from longspan.errors import InputError
from longspan.pipelines.explain.explanation import explain
from longspan.pipelines.long.aggregation import Aggregator

TASKS = ["text-classification", "token-classification", "question-answering", "feature-extraction", "multiple-choice"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("rough")
    return {task: make_task_model(root / task, task, "wordpiece", minilm_dir) for task in TASKS}


def item_of(task: str, text: str) -> Any:
    """An input of a task whose document is `text`."""
    if task == "question-answering":
        return {"question": "Who wrote it?", "context": text}
    return {"prompt": text, "choices": ["a file", "a log"]} if task == "multiple-choice" else text


@pytest.mark.parametrize("task", TASKS)
def test_a_blank_text_costs_no_other_its_result(models: dict[str, Path], task: str) -> None:
    run = pipeline(task, models[task])
    items = [item_of(task, text) for text in (TEXTS[0], "", " \n", TEXTS[1])]
    found = run(items)
    assert len(found) == 4
    good = run([items[0], items[3]])
    assert [json.dumps(found[index], default=str)[:26] for index in (0, 3)] == [
        json.dumps(each, default=str)[:26] for each in good
    ]
    if task == "question-answering":
        nothing = {"score": 0.0, "start": 0, "end": 0, "answer": ""}
        assert found[1:3] == [nothing, nothing]
        assert run(items[1], top_k=3) == nothing
        transformers = pytest.importorskip("transformers")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = transformers.pipeline(task, str(models[task]), device="cpu")(**items[2])
        assert (theirs["answer"], theirs["score"]) == ("", 0)
        with pytest.raises(InputError, match="question must not be empty. Received: ' '"):
            run(question=" ", context="a")


def test_a_stride_must_be_below_the_window(models: dict[str, Path]) -> None:
    for task in ("question-answering", "text-classification"):
        run = pipeline(task, models[task])
        short = item_of(task, TEXTS[0])
        for settings in ({"stride": 200}, {"stride": 30, "max_length": 30}, {"stride": -1}):
            with pytest.raises(
                InputError, match=r"stride must be at least 0 and below the \d+ tokens of a window. Rec"
            ):
                run([short], **settings)
        assert run([short], stride=29, max_length=30)


@pytest.mark.parametrize("name", ["bert", "longt5"])
def test_explaining_nothing(tmp_path: Path, minilm_dir: Path, name: str) -> None:
    run = pipeline(
        "summarization" if name == "longt5" else "feature-extraction", make_model(tmp_path, name, minilm_dir)
    )
    rules = {
        "bert": "A document to explain must hold text. Received: ",
        "longt5": "A text must have at least one token",
    }
    for text in ("", " \n "):
        with pytest.raises(InputError, match=rules[name]):
            explain(run, text)


class _Vocabulary:
    """Stands for a tokenizer of three words."""

    unk_token_id = None

    def __init__(self) -> None:
        self.backend_tokenizer = type("Fast", (), {"decoder": None, "model": None})()

    def get_vocab(self) -> dict[str, int]:
        return {"x": 0}


SCHEMES = {
    "IOBES": ("B-A", "I-A", "E-A", "S-A", "E-B", "O"),
    "BILOU": ("B-A", "I-A", "L-A", "U-A", "L-B", "O"),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("strategy", ["simple", "first", "average", "max"])
def test_tags_of_other_schemes(scheme: str, strategy: str) -> None:
    labels = SCHEMES[scheme]
    tags = [0, 1, 2, 2, 3, 3, 5, 0, 0, 1, 4, 5, 3]
    expected = [
        ("A", 0, 3),
        ("A", 3, 4),
        ("A", 4, 5),
        ("A", 5, 6),
        ("A", 7, 8),
        ("A", 8, 10),
        ("B", 10, 11),
        ("A", 12, 13),
    ]
    count = len(tags)
    tokens = Tokens(np.zeros(count, np.int32), 2 * np.arange(count), 2 * np.arange(count) + 1)
    scores = np.full((count, len(labels)), 0.01, np.float32)
    scores[np.arange(count), tags] = 0.9
    found = Aggregator(_Vocabulary(), dict(enumerate(labels))).entities("x " * count, tokens, scores, strategy, ("O",))
    assert [(one["entity_group"], one["start"] // 2, one["end"] // 2 + 1) for one in found] == expected


def test_marks_of_a_scheme_count_only_where_all_labels_have_them() -> None:
    aggregator = Aggregator(_Vocabulary(), {0: "O", 1: "B-PER", 2: "E-MAIL", 3: "MISC"})
    assert not aggregator._ends.any()
    assert aggregator._kinds.tolist() == [0, 1, 2, 3], "a kind may be called E-MAIL"


def test_a_notebook_shows_progress(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    pipeline("text-classification", models["text-classification"])(TEXTS, show_progress=True)
    assert "5/5 documents" in capsys.readouterr().err
    classify = pipeline("zero-shot-classification", candidate_labels=["law", "cooking"])
    found = classify(TEXTS[:2], show_progress=True)
    assert "2/2 documents" in capsys.readouterr().err
    assert found == classify(TEXTS[:2])
    assert capsys.readouterr().err == ""


def test_strategies_in_capitals(models: dict[str, Path]) -> None:
    tag = pipeline("token-classification", models["token-classification"], aggregation_strategy="SIMPLE")
    assert tag(TEXTS[0]) == tag(TEXTS[0], aggregation_strategy="simple")
