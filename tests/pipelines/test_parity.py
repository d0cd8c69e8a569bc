"""Results of the tasks equal those of the reference's pipelines."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.pipelines.task_models import KINDS, TEXTS, make_task_model

from longspan import pipeline
from longspan.errors import InputError

#: Scores of the reference are of float32.
TOLERANCE = 1e-5
CONTEXT = "Ada Lovelace was born in London in 1815. She wrote the first program for the Analytical Engine."


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Callable[..., tuple[Any, Any]]:
    """Makes our pipeline and the reference's for a task and a kind of tokenizer."""
    transformers = pytest.importorskip("transformers")
    made: dict[Any, tuple[Any, Any]] = {}

    def make(task: str, kind: str, **settings: Any) -> tuple[Any, Any]:
        key = (task, kind, *settings.items())
        if key not in made:
            folder = make_task_model(tmp_path_factory.mktemp("task") / "m", task, kind, minilm_dir, **settings)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                theirs = transformers.pipeline(task, str(folder), device="cpu")
            made[key] = pipeline(task, folder), theirs
        return made[key]

    return make


def same(ours: Any, theirs: Any) -> None:
    """Equal but for scores, which are close."""
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key, value in theirs.items():
            same(ours[key], value)
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), (ours, theirs)
        for mine, value in zip(ours, theirs, strict=True):
            same(mine, value)
    elif isinstance(theirs, float | np.floating):
        assert type(ours) is float
        assert abs(ours - float(theirs)) <= TOLERANCE * max(1.0, abs(float(theirs)))
    else:
        assert ours == theirs


def quiet(function: Any, *args: Any, **kwargs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


@pytest.mark.parametrize("kind", KINDS)
def test_text_classification(pairs: Any, kind: str) -> None:
    ours, theirs = pairs("text-classification", kind, num_labels=4)
    assert ours.framework == "torch"
    same(ours(TEXTS[0]), theirs(TEXTS[0]))
    same(ours(TEXTS), theirs(TEXTS))
    same(ours(TEXTS[0], top_k=2), theirs(TEXTS[0], top_k=2))
    same(ours(TEXTS, top_k=None), theirs(TEXTS, top_k=None))
    for function in ("sigmoid", "softmax", "none"):
        same(ours(TEXTS, top_k=None, function_to_apply=function), theirs(TEXTS, top_k=None, function_to_apply=function))
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    same(ours(pair), theirs(pair))
    same(ours([pair, pair]), theirs([pair, pair]))
    long = " ".join(TEXTS * 10)
    same(ours(long, truncation=True), theirs(long, truncation=True))


@pytest.mark.parametrize(
    "settings", [{"num_labels": 1}, {"num_labels": 3, "problem_type": "multi_label_classification"},
                 {"num_labels": 2, "problem_type": "regression"}], ids=["one-label", "multi-label", "regression"],
)  # fmt: skip
def test_scores_of_problem_types(pairs: Any, settings: dict[str, Any]) -> None:
    ours, theirs = pairs("text-classification", "wordpiece", **settings)
    same(ours(TEXTS, top_k=None), theirs(TEXTS, top_k=None))


def test_top_k_of_the_constructor(pairs: Any) -> None:
    _, theirs = pairs("text-classification", "wordpiece", num_labels=4)
    transformers = pytest.importorskip("transformers")
    folder = theirs.model.name_or_path
    theirs = transformers.pipeline("text-classification", folder, top_k=2, device="cpu")
    same(pipeline("text-classification", folder, top_k=2)(TEXTS[0]), theirs(TEXTS[0]))


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
@pytest.mark.parametrize("kind", KINDS)
def test_token_classification(pairs: Any, kind: str, strategy: str) -> None:
    ours, theirs = pairs("token-classification", kind)
    expected = quiet(theirs, TEXTS, aggregation_strategy=strategy)
    same(ours(TEXTS, aggregation_strategy=strategy), expected)
    assert sum(map(len, expected)) > 8, "the model must find something"
    same(ours(TEXTS[1], aggregation_strategy=strategy), quiet(theirs, TEXTS[1], aggregation_strategy=strategy))
    ignored = ["PER", "B-LOC", "MISC"]
    same(
        ours(TEXTS, aggregation_strategy=strategy, ignore_labels=ignored),
        quiet(theirs, TEXTS, aggregation_strategy=strategy, ignore_labels=ignored),
    )


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_words(pairs: Any, kind: str, strategy: str) -> None:
    """Inputs that are split into words."""
    ours, theirs = pairs("token-classification", kind)
    words = [text.split() for text in TEXTS]
    settings = {"is_split_into_words": True, "aggregation_strategy": strategy}
    expected = quiet(theirs, words, **settings)
    assert sum(map(len, expected)) > 8, "the model must find something"
    same(ours(words, **settings), expected)
    same(ours(words[1], **settings), quiet(theirs, words[1], **settings))
    settings["delimiter"] = " / "
    found = ours(words[1], **settings)
    same(found, quiet(theirs, words[1], **settings))
    text = " / ".join(words[1])
    assert all(text[entity["start"] : entity["end"]] for entity in found[0])
    assert list(ours(iter(words), **settings)) == ours(words, **settings)


def test_long_lists_of_words(pairs: Any) -> None:
    ours, _ = pairs("token-classification", "wordpiece")
    words = " ".join(TEXTS * 20).replace("'", "").split()
    [split] = ours(words, is_split_into_words=True, aggregation_strategy="simple")
    whole = ours(" ".join(words), aggregation_strategy="simple")
    assert len(whole) > 50
    same([[entity["start"], entity["end"], entity["score"]] for entity in split],
         [[entity["start"], entity["end"], entity["score"]] for entity in whole])  # fmt: skip
    assert ours([], is_split_into_words=True) == [] == ours([[]], is_split_into_words=True)[0]
    with pytest.raises(InputError, match="With is_split_into_words an input must be a list of words. Received: str"):
        ours("one text", is_split_into_words=True)
    with pytest.raises(InputError, match="Each word must be a string. Received: int"):
        ours([["a", 3]], is_split_into_words=True)


def test_words_need_a_tokenizer_that_can_tell_them_apart(pairs: Any) -> None:
    ours, theirs = pairs("token-classification", "byte_level")
    with pytest.raises(AssertionError, match="add_prefix_space=True"):
        theirs([["a", "b"]], is_split_into_words=True)
    with pytest.raises(InputError, match="add_prefix_space=True"):
        ours([["a", "b"]], is_split_into_words=True)


def test_arguments_of_the_tokenizer(pairs: Any) -> None:
    long = " ".join(TEXTS * 10)
    ours, theirs = pairs("text-classification", "wordpiece", num_labels=4)
    same(ours([long, "a"], truncation=True, max_length=20, padding=True),
         theirs([long, "a"], truncation=True, max_length=20, padding=True))  # fmt: skip
    with pytest.raises(InputError, match="padding must be one of True, False, longest.*Received: padding='left'"):
        ours("a", padding="left")
    ours, theirs = pairs("feature-extraction", "wordpiece")
    kwargs = {"truncation": True, "max_length": 12}
    same(ours(long, tokenize_kwargs=kwargs), theirs(long, tokenize_kwargs=kwargs))
    ours, theirs = pairs("fill-mask", "wordpiece")
    text = "A [MASK] program. " + long
    same(ours(text, tokenizer_kwargs=kwargs), theirs(text, tokenizer_kwargs=kwargs))


@pytest.mark.parametrize("kind", KINDS)
def test_question_answering(pairs: Any, kind: str) -> None:
    ours, theirs = pairs("question-answering", kind)
    questions = ["Where was she born?", "What did she write?"]
    same(ours(question=questions[0], context=CONTEXT), quiet(theirs, question=questions[0], context=CONTEXT))
    same(ours(question=questions, context=CONTEXT), quiet(theirs, question=questions, context=CONTEXT))
    for settings in (
        {"top_k": 4},
        {"top_k": 3, "align_to_words": False},
        {"top_k": 5, "max_answer_len": 2},
        {"top_k": 3, "handle_impossible_answer": True},
    ):
        mine = ours(question=questions[0], context=CONTEXT, **settings)
        same(mine, quiet(theirs, question=questions[0], context=CONTEXT, **settings))
        for answer in mine:
            assert CONTEXT[answer["start"] : answer["end"]] == answer["answer"]
    same(ours({"question": questions[1], "context": TEXTS[1]}), quiet(theirs, question=questions[1], context=TEXTS[1]))


@pytest.mark.parametrize(
    ("task", "inputs", "old"),
    [
        ("text-classification", {"inputs": TEXTS[0]}, {"return_all_scores": True}),
        ("text-classification", {"inputs": TEXTS}, {"return_all_scores": True}),
        ("text-classification", {"inputs": TEXTS[0]}, {"return_all_scores": False}),
        ("text-classification", {"inputs": TEXTS[0]}, {"return_all_scores": True, "top_k": 2}),
        ("token-classification", {"inputs": TEXTS}, {"grouped_entities": True}),
        ("token-classification", {"inputs": TEXTS}, {"grouped_entities": True, "ignore_subwords": True}),
        ("token-classification", {"inputs": TEXTS}, {"grouped_entities": False, "aggregation_strategy": "max"}),
        ("question-answering", {"question": "Where?", "context": CONTEXT}, {"topk": 3}),
    ],
)
def test_old_words_mean_what_they_meant(pairs: Any, task: str, inputs: Any, old: dict[str, Any]) -> None:
    ours, theirs = pairs(task, "wordpiece", **({"num_labels": 4} if task == "text-classification" else {}))
    expected = quiet(theirs, **inputs, **old)
    if "top_k" in old:
        same(ours(**inputs, **old), expected)
    else:
        with pytest.warns(UserWarning, match=f"{next(iter(old))}.* is deprecated: it is read as"):
            found = ours(**inputs, **old)
        same(found, expected)


@pytest.mark.parametrize("kind", ["wordpiece", "byte_level"])
def test_fill_mask(pairs: Any, kind: str) -> None:
    ours, theirs = pairs("fill-mask", kind)
    mask = ours.tokenizer.mask_token
    one = f"The first {mask} was written in London."
    two = f"The {mask} program, {mask} 1843."
    same(ours(one), theirs(one))
    same(ours([one, two]), theirs([one, two]))
    same(ours([one]), theirs([one]))
    same(ours(two, top_k=2), theirs(two, top_k=2))
    vocabulary = sorted(ours.tokenizer.get_vocab())
    targets = [vocabulary[500], vocabulary[700], vocabulary[1]]
    same(ours(one, targets=targets), theirs(one, targets=targets))
    same(ours(one, targets=targets, top_k=2), theirs(one, targets=targets, top_k=2))


@pytest.mark.parametrize("kind", KINDS)
def test_feature_extraction(pairs: Any, kind: str) -> None:
    ours, theirs = pairs("feature-extraction", kind)
    same(ours(TEXTS[0]), theirs(TEXTS[0]))
    same(ours(TEXTS[:2]), theirs(TEXTS[:2]))
    tensor = ours(TEXTS[0], return_tensors=True)
    assert type(tensor) is type(theirs(TEXTS[0], return_tensors=True))
    assert tensor.shape == theirs(TEXTS[0], return_tensors=True).shape
