"""Every format of data gives the same windows; what cannot be used is named with its place, column and reason."""

from __future__ import annotations

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.training.conftest import SETTINGS, documents, write_lines

from longspan.cli.main import app
from longspan.cli.running import run
from longspan.errors import InputError
from longspan.training.options import TrainOptions
from longspan.training.runs import finetune, prepare

DATA = documents(6, seed=1)


def write_csv(path, records, delimiter=","):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(records)
    return path


def write_parquet(path, records):
    pq.write_table(pa.Table.from_pylist(records), path)
    return path


def write_folders(path, records):
    for index, record in enumerate(records):
        file = path / record["label"] / "more" / f"{index}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(record["text"])
    return path


WRITERS = {
    "data.jsonl": write_lines, "data.csv": write_csv, "data.parquet": write_parquet, "folders": write_folders,
    "data.tsv": lambda path, records: write_csv(path, records, "\t"),
}  # fmt: skip


def ready(encoder, data, **settings):
    options = TrainOptions.of({**SETTINGS, "validation_split": 0.0, **settings})
    return prepare("classify", encoder, data, "unused", validation=None, options=options)


def windows(prepared):
    return sorted((sample.rows[0].ids.tolist(), int(sample.targets["labels"])) for sample in prepared.samples)


@pytest.mark.parametrize("name", WRITERS)
def test_formats(encoder, tmp_path, name):
    expected = windows(ready(encoder, DATA))
    assert len(expected) > len(DATA)
    assert windows(ready(encoder, WRITERS[name](tmp_path / name, DATA))) == expected


def test_any_mappings_and_other_columns(encoder):
    data = ({"body": record["text"], "stars": index % 2 + 9} for index, record in enumerate(DATA))
    prepared = ready(encoder, data, text_field="body", label_field="stars")
    assert prepared.task.labels == ["9", "10"]  # by number
    assert len(prepared.samples) == len(windows(ready(encoder, DATA)))


BAD = [
    ("bad.jsonl", '{"text": "open", "label": "fine"\n', 3, "no valid JSON"),
    ("bad.jsonl", '{"text": "open"}\n', 3, "column 'label' is missing; there are text"),
    ("bad.jsonl", '{"text": 3, "label": "fine"}\n', 3, "column 'text' must be a string. Received: int"),
    ("bad.jsonl", '{"text": "open", "label": {}}\n', 3, "column 'label' must be a label, a list of labels or a number"),
    ("bad.jsonl", '{"text": "open", "label": ""}\n', 3, "column 'label' must hold a label. Received: a blank"),
    ("bad.jsonl", '["open"]\n', 3, "a record must be an object. Received: list"),
    ("bad.csv", "open,fine,more\n", 4, "more cells than the 2 columns"),
    ("bad.csv", " ,fine\n", 4, "column 'text' must hold text. Received: a blank"),
    ("bad.csv", "open\n", 4, "column 'label' is missing; there are text"),
    ("bad.parquet", None, 3, "column 'text' is missing; there are label"),
]


@pytest.mark.parametrize(("name", "line", "number", "reason"), BAD)
def test_bad_records_are_named_and_left_out(encoder, tmp_path, name, line, number, reason):
    path = tmp_path / name
    if line is None:
        write_parquet(path, [*DATA[:2], {"text": None, "label": "fine"}, *DATA[2:]])
    else:
        lines = WRITERS[f"data{path.suffix}"](path, DATA).read_text().splitlines(keepends=True)
        path.write_text("".join([*lines[: number - 1], line, *lines[number - 1 :]]))
    prepared = ready(encoder, path)
    (problem,) = prepared.problems
    assert (problem.path, problem.line) == (str(path), number)
    assert reason in problem.reason
    assert windows(prepared) == windows(ready(encoder, DATA))
    with pytest.raises(InputError, match="With strict everything must be usable"):
        ready(encoder, path, strict=True)


@pytest.mark.parametrize("name", ["data.csv", "data.parquet", "data.jsonl"])
def test_damaged_files_are_named(encoder, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"\xff\x00PAR1" * 9)
    with pytest.raises(InputError, match=f"There must be a record that can be learnt from.*{name}"):
        ready(encoder, path)
    prepared = ready(encoder, [path, write_lines(tmp_path / "good.jsonl", DATA)])
    assert prepared.problems
    assert {problem.path for problem in prepared.problems} == {str(path)}


def test_labels_that_training_lacks(encoder):
    options = TrainOptions.of(SETTINGS)
    unknown = [DATA[0] | {"label": "new"}, DATA[1]]
    prepared = prepare("classify", encoder, DATA, "unused", validation=unknown, options=options)
    assert [str(problem) for problem in prepared.problems] == [
        "data:1: column 'label' must hold labels of the training data. Received: 'new'"
    ]
    assert len(prepared.validation) == 1


def test_numbers_must_be_numbers(encoder):
    data = [record | {"label": value} for record, value in zip(DATA, ["1", 2, "x", "nan", 0.5, "1e3"], strict=True)]
    prepared = ready(encoder, data, problem="regression")
    assert [problem.line for problem in prepared.problems] == [3, 4]
    assert prepared.num_documents == 4


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"epoch": 3}, "The options of training are epochs, .*Received: epoch=3"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"precision": "int8"}, "precision must be one of"),
        ({"metric": "bleu"}, "metric must be one of accuracy, f1. Received: metric='bleu'"),
        ({"validation_split": 1.0}, "validation_split must lie in"),
        ({"max_length": 900}, "max_length must lie in"),
    ],
)
def test_wrong_arguments(encoder, tmp_path, settings, reason):
    with pytest.raises(InputError, match=reason):
        finetune("classify", encoder, DATA, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_unknown_tasks_and_data(encoder, tmp_path):
    with pytest.raises(InputError, match="task must be one of classify"):
        finetune("paint", encoder, DATA, tmp_path / "out")
    with pytest.raises(InputError, match="There must be two labels or more to learn. Received: fine"):
        finetune("classify", encoder, DATA[1::2], tmp_path / "out")
    with pytest.raises(InputError, match="Each path must exist"):
        finetune("classify", encoder, tmp_path / "none.csv", tmp_path / "out")
    with pytest.raises(InputError, match="data must be paths or an iterable of mappings. Received: dict"):
        finetune("classify", encoder, DATA[0], tmp_path / "out")


def test_the_command_counts_what_it_leaves_out(encoder, tmp_path, capsys):
    path = write_lines(tmp_path / "data.jsonl", [*DATA, {"text": "open"}])
    line = ["train", "classify", str(path), "--model", str(encoder), "--output", str(tmp_path / "out")]
    assert run(app, [*line, "--epochs", "1", "--device", "cpu", "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert report["problems"] == [{"path": str(path), "line": 7, "reason": "column 'label' is missing; there are text"}]
    assert report["documents"] == 6
    assert run(app, [*line, "--epochs", "1", "--device", "cpu"]) == 3
    said = capsys.readouterr()
    assert "an earlier run had completed it" in said.out
    assert f"skipped {path}:7: column 'label' is missing" in said.err
    assert run(app, [*line, "--epochs", "9", "--strict"]) == 1
    assert run(app, [*line, "--epoch", "9"]) == 2
