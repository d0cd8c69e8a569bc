"""Runs of tasks on files: what makes two runs the same, what a damaged journal does, and what stops a run."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.pipelines.task_models import make_task_model

from longspan.cli.main import app
from longspan.cli.running import run
from longspan.documents.readers import ReadOptions
from longspan.pipelines.file_tasks import open_task
from longspan.pipelines.fill_mask import FillMaskOptions
from longspan.pipelines.multiple_choice import MultipleChoiceOptions
from longspan.pipelines.question_answering import QuestionAnsweringOptions
from longspan.pipelines.run import journal as task_journal
from longspan.pipelines.run import task_run
from longspan.pipelines.run.identity import differences
from longspan.pipelines.run.task_run import RunOptions, TaskRun
from longspan.pipelines.text_classification import TextClassificationOptions
from longspan.pipelines.token_classification import TokenClassificationOptions
from longspan.search.lines import append_line, parse_line

#: Another value for every option that changes a result.
CHANGED: dict[str, Any] = {
    "on_long": "truncate", "stride": 3, "max_length": 40, "batch_tokens": 99, "batch_size": 3, "top_k": 2,
    "function_to_apply": "none", "window_pooling": "max", "return_windows": True, "aggregation_strategy": "first",
    "ignore_labels": ("I-PER",), "is_split_into_words": True, "delimiter": "|", "doc_stride": 4, "max_seq_len": 30,
    "max_question_len": 9, "max_answer_len": 7, "handle_impossible_answer": True, "align_to_words": False,
    "targets": ("a",), "text_field": "body", "max_bytes": 10,
}  # fmt: skip
OPTIONS = [
    FillMaskOptions,
    MultipleChoiceOptions,
    QuestionAnsweringOptions,
    TextClassificationOptions,
    TokenClassificationOptions,
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Path:
    return make_task_model(tmp_path_factory.mktemp("task") / "model", "text-classification", "wordpiece", minilm_dir)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            code = run(app, [str(argument) for argument in arguments])
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return call


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"open {number}"}) + "\n" for number in range(200)))
    return path


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int, how: BaseException | Callable[[], None]) -> None:
    """Let the next run stop at a line of its journal."""
    lines: list[dict[str, Any]] = []

    def append(path: Path, values: dict[str, Any]) -> None:
        lines.append(values)
        if len(lines) == after:
            if isinstance(how, BaseException):
                raise how
            how()
        append_line(path, values)

    monkeypatch.setattr(task_journal, "append_line", append)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options.__name__)
def test_every_option_is_part_of_the_identity(model: Path, options: type[Any]) -> None:
    task, pipeline = open_task("classify", {"model": str(model)}, {})

    def identity(settings: Any, run_options: RunOptions | None = None) -> dict[str, Any]:
        return TaskRun(task, pipeline, settings=settings, options=run_options).identity()

    usual = identity(options())
    for field in dataclasses.fields(options):
        if field.name != "show_progress":
            other = identity(options(**{field.name: CHANGED[field.name]}))
            assert f"options.{field.name}" in differences(usual, other)
    for field in dataclasses.fields(ReadOptions):
        value = CHANGED.get(field.name, "other")
        other = identity(options(), RunOptions(read=dataclasses.replace(ReadOptions(), **{field.name: value})))
        assert differences(usual, other) == [f"read.{field.name}"]
    assert differences(usual, identity(options(), RunOptions(extra={"question": "who?"}))) == ["extra.question"]
    assert differences(usual, identity(options(), RunOptions(block_documents=9))) == ["block"]


def test_what_runs_the_model_is_part_of_the_identity(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    import longspan

    def identity(**place: Any) -> dict[str, Any]:
        task, pipeline = open_task("classify", {"model": str(model), **place}, {})
        return TaskRun(task, pipeline).identity()

    usual = identity()
    assert set(usual) >= {
        "longspan",
        "framework",
        "versions",
        "device",
        "dtype",
        "precision",
        "implementation",
        "model",
    }
    assert differences(usual, identity(dtype="bfloat16")) == ["config", "dtype"]
    assert set(differences(usual, identity(framework="flax"))) >= {"framework", "versions.flax", "versions.torch"}
    assert differences(usual, identity(attn_implementation="eager")) == ["implementation"]
    assert differences(usual, identity(model_kwargs={"layer_norm_eps": 1e-3})) == ["config"]
    monkeypatch.setattr(longspan, "__version__", "9.9")
    monkeypatch.setattr(torch, "__version__", "8.8")
    torch.set_float32_matmul_precision("high")
    try:
        assert differences(usual, identity()) == ["longspan", "precision", "versions.torch"]
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_run_with_another_dtype_does_not_go_on(
    cli: Any, model: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("classify", records, "-m", model, "-o", records.with_name("out.jsonl"))
    interrupt(monkeypatch, 3, KeyboardInterrupt())
    assert cli(*arguments)[0] == 130
    monkeypatch.setattr(task_journal, "append_line", append_line)
    code, _, err = cli(*arguments, "--dtype", "bfloat16")
    assert code == 1
    assert "goes on with the same inputs and settings" in err
    assert "settings.dtype" in err
    assert cli(*arguments)[0] == 0


@pytest.mark.parametrize("damage", ["edited", "removed", "torn"])
def test_a_damaged_journal_is_found_out(
    cli: Any, model: Path, records: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    output = records.with_name("out.jsonl")
    arguments = ("classify", records, "-m", model, "-o", output)
    assert cli(*arguments)[0] == 0
    expected = output.read_text()
    output.unlink()
    interrupt(monkeypatch, 4, KeyboardInterrupt())
    assert cli(*arguments)[0] == 130
    monkeypatch.setattr(task_journal, "append_line", append_line)
    path = records.with_name(".out.jsonl.work") / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3
    if damage == "edited":
        lines[1] = lines[1].replace(b'"score": 0.', b'"score": 9.', 1)
    elif damage == "removed":
        del lines[1]
    else:
        lines[2] = lines[2][:-9]
    path.write_bytes(b"".join(lines))
    code, _, err = cli(*arguments)
    assert code == 0
    assert ("journal.jsonl is damaged at line 2: what follows is done again" in err) == (damage != "torn")
    assert output.read_text() == expected


def test_lines_carry_sums(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    values = {"score": 0.1, "text": "naïve \ud800 \x85", "nested": [{"a": None}]}
    append_line(path, values)
    line = path.read_bytes()
    assert parse_line(line) == values
    for place in range(len(line)):
        changed = bytearray(line)
        changed[place] ^= 1
        assert parse_line(bytes(changed)) != {}
        assert parse_line(bytes(changed)) in (None, values)
    assert parse_line(b"[" * 100_000 + b"\n") is None


def test_a_run_killed_after_it_finished_is_complete(
    cli: Any, model: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = records.with_name("out.jsonl")
    arguments = ("classify", records, "-m", model, "-o", output)
    remove = task_run._remove
    monkeypatch.setattr(task_run, "_remove", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
    code, out, _ = cli(*arguments)
    assert (code, out) == (130, f"{output}: 200 documents, 200 rows\n")
    monkeypatch.setattr(task_run, "_remove", remove)
    expected = output.read_bytes()
    folder = records.with_name(".out.jsonl.work")
    for kept in ("journal.jsonl", None):  # with the journal, and with the empty folder alone
        if kept is None:
            folder.mkdir()
        code, out, err = cli(*arguments)
        assert (code, out, err) == (0, f"{output}: an earlier run had completed it\n", "")
        assert output.read_bytes() == expected
        assert not folder.exists()
    assert "The output must not exist yet" in cli(*arguments)[2]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_says_how_to_go_on(
    cli: Any, model: Path, records: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    output = records.with_name("out.jsonl")
    arguments = ("classify", records, "-m", model, "-o", output)
    number = getattr(signal, name)
    inherited = signal.signal(number, signal.SIG_DFL)  # under nohup it is ignored
    try:
        interrupt(monkeypatch, 3, lambda: os.kill(os.getpid(), number))
        code, _, err = cli(*arguments)
        assert code == 128 + number
        assert f"error: stopped by {name}: finished work is kept, the same command goes on" in err
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, inherited)
    monkeypatch.setattr(task_journal, "append_line", append_line)
    assert cli(*arguments)[0] == 0
    assert len(output.read_text().splitlines()) == 200


def test_names_control_neither_terminals_nor_tables(cli: Any, model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["=cmd()|x.txt", "-minus.txt", "@at.txt", "plain.txt"]
    for name in names:
        Path(name).write_text("open")
    evil = "\x1b]0;title\x07\x9b31m.txt"
    Path(evil).write_bytes(b"\x00\x01")
    code, out, err = cli("classify", *[f"./{name}" for name in names], f"./{evil}", "-m", model, "-o", "=out.csv")
    assert code == 3
    assert "\\x1b]0;title\\x07\\x9b31m.txt" in err
    assert not {"\x1b", "\x07", "\x9b"} & {*out, *err}
    with Path("=out.csv").open(newline="") as file:
        found = [row["path"] for row in csv.DictReader(file)]
    assert found == [name if name[0].isalpha() else f"'{name}" for name in names]
    code, out, err = cli("classify", f"./{evil}x", "-m", model)
    assert (code, "\x1b" in err) == (1, False)


def test_cells_that_look_like_formulas(tmp_path: Path) -> None:
    from longspan.pipelines.run.tables import json_line, write_table

    rows = [{"label": value, "score": -1.0} for value in ("=1+1", "+a", "-a", "@a", "\ta", "a=", "")]
    write_table(tmp_path / "out.csv", tmp_path / "scratch", {"label": "string", "score": "double"}, lambda: rows)
    with (tmp_path / "out.csv").open(newline="") as file:
        found = [(row["label"], row["score"]) for row in csv.DictReader(file)]
    assert found == [(f"'{row['label']}" if row["label"][:1] in "=+-@\t" and row["label"] else row["label"], "-1.0")
                     for row in rows]  # fmt: skip
    line = json_line({"label": "\x9b31m\x7f\u202e"})
    assert line == '{"label": "\\u009b31m\\u007f\\u202e"}'
    assert json.loads(line) == {"label": "\x9b31m\x7f\u202e"}
