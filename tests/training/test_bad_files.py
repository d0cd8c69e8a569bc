"""What each format and task can hold that cannot be learnt from: named with its file, row, column and reason."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.training.conftest import write_lines

from longspan.training.options import TrainOptions
from longspan.training.records import records_of
from longspan.training.runs import TASKS, make_task

GOOD = {
    "classify": {"text": "open the file", "label": "fine"},
    "tag": {"words": ["open", "log"], "labels": ["O", "B-BUG"]},
    "answer": {"question": "what?", "context": "open log", "answers": {"text": ["log"], "answer_start": [5]}},
    "choose": {"prompt": "open", "choices": ["a", "b"], "label": 1},
    "summarize": {"text": "open the file", "summary": "open"},
    "fill": {"text": "open the file"},
    "generate": {"text": "open the file"},
    "embed": {"anchor": "open", "positive": "read"},
}
#: task, what is put in the place of the second record's values (None: left out), column, reason
RECORDS = [
    ("classify", {"text": None}, "text", "is missing; there are label"),
    ("classify", {"text": 7}, "text", "must be a string. Received: int"),
    ("classify", {"text": " "}, "text", "must hold text. Received: a blank"),
    ("classify", {"label": None}, "label", "is missing; there are text"),
    ("classify", {"label": " "}, "label", "must hold a label. Received: a blank"),
    ("classify", {"label": {"name": "fine"}}, "label", "must be a label, a list of labels or a number"),
    ("tag", {"labels": ["O"]}, "labels", "must have a label for each of the 2 words"),
    ("tag", {"words": None}, "words", "is missing; there are labels"),
    ("answer", {"context": None}, "context", "is missing"),
    ("answer", {"question": ["what?"]}, "question", "must be a string. Received: list"),
    ("answer", {"answers": {"text": ["log"], "answer_start": [1]}}, "answers", "must name a place of the context"),
    ("choose", {"choices": ["a"]}, "choices", "must hold two texts or more"),
    ("choose", {"label": 4}, "label", "must be an index or a text of the choices"),
    ("choose", {"prompt": None}, "prompt", "is missing"),
    ("summarize", {"summary": None}, "summary", "is missing; there are text"),
    ("summarize", {"summary": ""}, "summary", "must hold text. Received: a blank"),
    ("fill", {"text": []}, "text", "must be a string. Received: list"),
    ("generate", {"text": None}, "text", "is missing"),
    ("embed", {"positive": None}, "positive", "is missing"),
    ("embed", {"anchor": " "}, "anchor", "must hold text"),
]  # fmt: skip


class Rows:
    """Rows of a table in memory, as a `datasets.Dataset` gives them: missing values are None."""

    def __init__(self, records):
        names = list(dict.fromkeys(name for record in records for name in record))
        self._rows = [{name: record.get(name) for name in names} for record in records]

    def __len__(self):
        return len(self._rows)

    def __iter__(self):
        return iter(self._rows)


def problems_of(task, data):
    """What is left out of data."""
    one = make_task(task, TrainOptions())
    columns = {"layout": one.layout, "text_field": one.text_column, "label_field": one.label_column}
    taken = one.take(records_of(data, **columns))
    return taken.problems, len(taken.examples)


def test_every_task_is_here():
    assert {task for task, *_ in RECORDS} == GOOD.keys() == TASKS.keys()


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "memory", "table"])
@pytest.mark.parametrize(("task", "changes", "name", "reason"), RECORDS)
def test_records(tmp_path, task, changes, name, reason, kind):
    changed = {key: value for key, value in {**GOOD[task], **changes}.items() if value is not None}
    records = [GOOD[task], changed, GOOD[task]]
    path, data = tmp_path / f"data.{kind}", records
    if kind == "jsonl":
        data = write_lines(path, records)
    elif kind == "table":
        data = Rows(records)
    elif kind == "parquet":
        try:
            pq.write_table(pa.Table.from_pylist(records), path)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            pytest.skip("a column of Parquet has one type")
        data = path
    (problem,), count = problems_of(task, data)
    assert count == 2
    assert problem.line == 2
    assert problem.path == (str(path) if kind in ("jsonl", "parquet") else "data")
    assert f"column {name!r}" in problem.reason
    if kind != "table":  # a table has every column
        assert reason in problem.reason


SQUAD = {"context": "open log", "qas": [{"question": "what?", "answers": [{"text": "log", "answer_start": 5}]}]}
#: task, name of the file, its bytes, line, reason, records that can be used
FILES = [
    ("classify", "a.csv", b"text,label\nopen,fine\nopen,fine,more\nread,fine\n", 3, "more cells than the 2 columns", 2),
    ("classify", "a.csv", b"text,label\nopen,fine\nopen\n", 3, "column 'label' is missing; there are text", 1),
    ("classify", "a.tsv", b"text\tlabel\nopen\tfine\n\tfine\n", 3, "column 'text' must hold text", 1),
    ("classify", "a.jsonl", b'{"text": "open", "label": "fine"}\n{"text": \n', 2, "no valid JSON", 1),
    ("classify", "a.jsonl", b'{"text": "open", "label": "fine"}\n7\n', 2, "must be an object. Received: int", 1),
    ("classify", "a.parquet", b"PAR1 and nothing more", None, "", 0),
    ("classify", "fine/a.txt", b"  \n", None, "column 'text' must hold text. Received: a blank", 0),
    ("classify", "a.txt", b"open", None, "column 'label' is missing; there are text", 0),
    ("classify", "fine/a.pdf", b"%PDF-1.4 broken", None, "", 0),
    ("tag", "a.conll", b"open O\nlog B-BUG\n\nread\n\nfile O\n", 4, "a word and a label. Received: 'read'", 2),
    ("tag", "a.conll", b"open O\n\nlog\t\n", 3, "must have a word and a label. Received: 'log\\t'", 1),
    ("tag", "a.bio", b"open\tO\n\xff\tO\n", None, "no valid UTF-8 (byte 7)", 0),
    ("answer", "a.json", b"{", None, "no SQuAD JSON", 0),
    ("answer", "a.json", b'{"data": [{"title": "a"}]}', None, "KeyError: 'paragraphs'", 0),
    ("answer", "a.json", {"data": [{"paragraphs": [SQUAD, {"context": "x"}]}]}, None,
     "data[0].paragraphs[1] must have a list qas", 1),
    ("answer", "a.json", {"data": [{"paragraphs": []}, {"paragraphs": [{**SQUAD, "qas": [*SQUAD["qas"], 7]}]}]}, 2,
     "data[1].paragraphs[0].qas[1] must be an object", 1),
    ("answer", "a.json", {"data": [{"paragraphs": [{"qas": SQUAD["qas"]}]}]}, 1,
     "column 'context' must be a string. Received: NoneType", 0),
    ("answer", "a.json", {"data": [{"paragraphs": [SQUAD, {**SQUAD, "context": "open file"}]}]}, 2,
     "column 'answers' must name a place of the context", 1),
]  # fmt: skip


@pytest.mark.parametrize(("task", "name", "content", "line", "reason", "usable"), FILES)
def test_files(tmp_path, task, name, content, line, reason, usable):
    path = tmp_path / "data" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    (problem, *_), count = problems_of(task, tmp_path / "data")
    assert count == usable
    assert problem.path.endswith(name)
    assert problem.line == line
    assert reason in problem.reason
    assert problem.reason
