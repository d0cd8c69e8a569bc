"""Tasks on batches of columns: dicts, DataFrames and Arrow tables, in processes that got them by pickle."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas
import pyarrow
import pytest
from tests.pipelines.task_models import make_summarizer, make_task_model

import longspan
from longspan.batch import Answer, Classify, Embed, Summarize, Tag
from longspan.errors import InputError

TEXTS = ["Ada wrote the first program in London.", "a", " ".join(["long and longer"] * 120), ""]
QUESTIONS = ["Who wrote?", "What?", "How long?", "Why?"]


@pytest.fixture(scope="module")
def models(tmp_path_factory, minilm_dir):
    """A folder for each task."""
    folder = tmp_path_factory.mktemp("models")
    tasks = ("text-classification", "token-classification", "question-answering")
    found = {task: make_task_model(folder / task, task, "wordpiece", minilm_dir) for task in tasks}
    found["summarization"] = make_summarizer(folder / "summarization", minilm_dir)
    return {"embed": minilm_dir, **found}


CASES = {
    "embed": lambda models: Embed(models["embed"], normalize=True),
    "classify": lambda models: Classify(models["text-classification"]),
    "tag": lambda models: Tag(models["token-classification"], aggregation_strategy="simple", on_long="window"),
    "answer": lambda models: Answer(models["question-answering"], question="Who wrote the program?"),
    "summarize": lambda models: Summarize(models["summarization"], max_new_tokens=5, min_new_tokens=5),
}


def direct(case, models):
    """What the pipelines say."""
    if case == "embed":
        return {"embedding": longspan.SentenceEncoder(models["embed"]).encode(TEXTS, normalize=True)}
    if case == "classify":
        results = longspan.pipeline("text-classification", models["text-classification"])(TEXTS)
        return {name: [result[name] for result in results] for name in ("label", "score")}
    if case == "tag":
        options = {"aggregation_strategy": "simple", "on_long": "window"}
        return {"entities": longspan.pipeline("ner", models["token-classification"], **options)(TEXTS)}
    if case == "summarize":
        write = longspan.pipeline("summarization", models["summarization"])
        return {"summary": [result["summary_text"] for result in write(TEXTS, max_new_tokens=5, min_new_tokens=5)]}
    answer = longspan.pipeline("question-answering", models["question-answering"])
    results = answer([{"question": "Who wrote the program?", "context": text} for text in TEXTS])
    return {name: [result[name] for result in results] for name in Answer.adds}


def column(batch, name):
    values = batch[name]
    return values.to_pylist() if hasattr(values, "to_pylist") else list(values)


@pytest.mark.parametrize("case", CASES)
def test_columns_are_added_to_batches_of_every_kind(case, models):
    task = CASES[case](models)
    expected = direct(case, models)
    assert list(expected) == list(task.adds)
    columns = {"text": TEXTS, "id": [4, 3, 2, 1]}
    travelled = pickle.loads(pickle.dumps(task))
    for run, batch in (
        (task, columns),
        (travelled, {"text": np.array(TEXTS, object), "id": np.arange(4, 0, -1)}),
        (copy.deepcopy(task), pandas.DataFrame(columns)),
        (task, pyarrow.table(columns)),
    ):
        result = run(batch)
        assert type(result) is type(batch)
        assert column(result, "id") == [4, 3, 2, 1]
        for name, values in expected.items():
            if name == "embedding":
                found = np.array(column(result, name), np.float32)
                np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-6)
            else:
                assert column(result, name) == list(values)


def test_a_bad_record_costs_no_other(models):
    classify, embed = CASES["classify"](models), CASES["embed"](models)
    good = classify({"text": TEXTS})
    found = classify({"text": [TEXTS[0], None, 7, *TEXTS[1:]]})
    assert found["label"] == [good["label"][0], None, None, *good["label"][1:]]
    assert [error is None for error in found["error"]] == [True, False, False, True, True, True]
    frame = classify(pandas.DataFrame({"text": [TEXTS[0], None]}))  # where what is missing is NaN
    assert frame["error"].isna().tolist() == [True, False]
    assert frame["error"][1] == found["error"][1]
    for texts in (TEXTS[:1], [None]):
        schema = classify(pyarrow.table({"text": pyarrow.array(texts, pyarrow.string())})).schema
        assert [str(schema.field(name).type) for name in ("label", "score", "error")] == ["string", "double", "string"]
    vectors = embed({"text": [None, TEXTS[0]]})
    assert np.isnan(vectors["embedding"][0]).all()
    assert np.isfinite(vectors["embedding"][1]).all()
    assert "must be a string" in vectors["error"][0]
    strict = Embed(models["embed"], on_long="error")({"text": TEXTS})
    assert [error is not None for error in strict["error"]] == [False, False, True, False]
    with pytest.raises(InputError, match="string"):
        Classify(models["text-classification"], error=None)({"text": [None]})
    assert "error" not in Classify(models["text-classification"], error=None)({"text": ["good"]})


def test_questions_of_a_column(models):
    answer = Answer(models["question-answering"], question_column="question")
    found = answer({"text": TEXTS, "question": QUESTIONS})
    pipeline = longspan.pipeline("question-answering", models["question-answering"])
    expected = pipeline([{"question": q, "context": text} for q, text in zip(QUESTIONS, TEXTS, strict=True)])
    assert found["answer"] == [result["answer"] for result in expected]
    assert found["start"] == [result["start"] for result in expected]


def test_an_empty_batch_and_a_result_that_is_there_already(models):
    embed, classify = CASES["embed"](models), CASES["classify"](models)
    assert embed({"text": []})["embedding"].shape == (0, 384)
    table = pyarrow.table({"text": TEXTS, "label": ["old"] * 4})
    assert "old" not in column(classify(table), "label")


def test_what_cannot_be_done_is_said(models):
    with pytest.raises(InputError, match="directory or a hub repository"):
        Embed(longspan.SentenceEncoder(models["embed"]))
    with pytest.raises(InputError, match="must have the column 'text'"):
        CASES["classify"](models)({"body": TEXTS})
    with pytest.raises(InputError, match="Either question or question_column"):
        Answer(models["question-answering"])
    with pytest.raises(InputError, match="A batch must be"):
        CASES["classify"](models)(TEXTS)


def test_threads_share_one_model(models):
    classify = CASES["classify"](models)
    expected = CASES["classify"](models)({"text": TEXTS})
    with ThreadPoolExecutor(4) as threads:
        runners = list(threads.map(lambda _: classify.runner, range(4)))
        results = list(threads.map(classify, [{"text": TEXTS}] * 4))
    assert len({id(runner) for runner in runners}) == 1
    assert all(result["score"] == expected["score"] for result in results)
