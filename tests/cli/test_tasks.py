"""`longspan classify | tag | answer | choose | fill`: words and files in, rows and exit codes out."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.documents.test_readers import make_pdf
from tests.pipelines.planted import ANSWER, NAME, QUESTION, filler, make_finder, plant
from tests.pipelines.task_models import make_task_model

from longspan import pipeline
from longspan.cli.main import app
from longspan.cli.running import run

Outcome = tuple[int, str, str]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def call(*arguments: object) -> Outcome:
        code = run(app, [str(argument) for argument in arguments])
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return call


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "tag": make_finder(root / "tag", "token-classification"),
        "answer": make_finder(root / "answer", "question-answering"),
        "classify": make_task_model(root / "classify", "text-classification", "wordpiece", minilm_dir, num_labels=3),
        "choose": make_task_model(root / "choose", "multiple-choice", "wordpiece", minilm_dir),
        "fill": make_task_model(root / "fill", "fill-mask", "wordpiece", minilm_dir),
    }


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("command", ["classify", "tag", "answer", "choose", "fill"])
def test_help_shows_examples_and_exit_codes(cli: Any, command: str) -> None:
    code, out, err = cli(command, "--help")
    assert (code, err) == (0, "")
    assert f"longspan {command} " in out
    assert "Examples" in out
    assert "130 interrupted" in " ".join(out.split())


def test_tag_says_where_entities_stand(cli: Any, models: dict[str, Path], tmp_path: Path) -> None:
    first, _ = plant([word.strip() for word in filler(50, 1)], NAME, 20)
    text = "\n".join([first, "open the file", first])
    (tmp_path / "a.md").write_text(text)
    (tmp_path / "b.html").write_text(f"<html><body><p>open</p>\n<p>read {NAME} log</p></body></html>")
    code, out, err = cli("tag", tmp_path, "--model", models["tag"])
    assert (code, err) == (0, "")
    rows = rows_of(out)
    assert [(Path(row["path"]).name, row["line"], row["label"], row["text"]) for row in rows] == [
        ("a.md", 1, "PER", NAME),
        ("a.md", 3, "PER", NAME),
        ("b.html", 2, "PER", NAME),
    ]
    assert text[rows[1]["start"] : rows[1]["end"]] == NAME


@pytest.mark.parametrize("name", ["records.jsonl", "records.csv", "records.tsv", "records.parquet", "records.jsonl.gz"])
def test_answers_to_records_of_every_kind(cli: Any, models: dict[str, Path], tmp_path: Path, name: str) -> None:
    texts = [plant(filler(count, count), ANSWER, count // 2)[0] for count in (40, 300)]
    records = [{"question": QUESTION, "context": text} for text in texts]
    path = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(records), path)
    elif "jsonl" in name:
        data = "".join(json.dumps(record) + "\n" for record in records).encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["question", "context"], delimiter="\t" if name.endswith("tsv") else ",")
            writer.writeheader()
            writer.writerows(records)
    code, out, err = cli("answer", path, "-m", models["answer"], "--text-field", "context")
    assert (code, err) == (0, "")
    rows = rows_of(out)
    assert [(row["record"], row["answer"], row["rank"]) for row in rows] == [(0, ANSWER, 1), (1, ANSWER, 1)]
    assert [texts[row["record"]][row["start"] : row["end"]] for row in rows] == [ANSWER, ANSWER]


def test_answer_to_one_question_from_the_standard_input(
    cli: Any, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    text, start = plant(filler(200, 3), ANSWER, 100)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    code, out, _ = cli("answer", "-", "-Q", QUESTION, "-m", models["answer"])
    [row] = rows_of(out)
    assert (code, row["path"], row["start"]) == (0, "-", start)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_outputs_hold_the_same_rows(cli: Any, models: dict[str, Path], tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.txt").write_text(" ".join(filler(10 + 60 * number, number)))
    output = tmp_path / f"out{suffix}"
    code, out, err = cli("classify", folder, "-m", models["classify"], "-o", output, "-k", 2, "--window-pooling", "max")
    assert (code, out, err) == (0, f"{output}: 5 documents, 10 rows\n", "")
    if suffix == ".jsonl":
        rows = rows_of(output.read_text())
    elif suffix == ".csv":
        with output.open(newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        rows = pq.read_table(output).to_pylist()
    run_ = pipeline("text-classification", models["classify"], window_pooling="max", top_k=2)
    expected = [label for labels in run_([path.read_text() for path in sorted(folder.iterdir())]) for label in labels]
    assert [(row["label"], round(float(row["score"]), 5)) for row in rows] == [
        (label["label"], round(label["score"], 5)) for label in expected
    ]
    assert [path.name for path in tmp_path.iterdir() if path != folder] == [output.name]


def test_choose_and_fill(cli: Any, models: dict[str, Path], tmp_path: Path) -> None:
    records = tmp_path / "quiz.jsonl"
    records.write_text(json.dumps({"text": "Open the file.", "choices": ["yes", "no", "maybe"]}) + "\n")
    _, own, _ = cli("choose", records, "-m", models["choose"])
    _, given, _ = cli("choose", records, "-m", models["choose"], "-c", "no", "-c", "yes")
    assert rows_of(own)[0]["answer"] in ("yes", "no", "maybe")
    assert rows_of(given)[0]["answer"] in ("yes", "no")
    gaps = tmp_path / "gaps.txt"
    gaps.write_text("The [MASK] file and the [MASK].")
    code, out, _ = cli("fill", gaps, "-m", models["fill"], "-k", 2)
    assert code == 0
    assert [(row["mask"], row["rank"]) for row in rows_of(out)] == [(0, 1), (0, 2), (1, 1), (1, 2)]


def test_bad_records_are_named_and_the_rest_is_done(cli: Any, models: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    lines = ['{"text": "open the file"}', "{broken", '{"other": 1}', '{"text": ""}', '{"text": "log"}']
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "b.txt").write_bytes(b"\x00\x01\x02 binary")
    (folder / "c.txt").write_text("")
    (folder / "d.csv").write_text("text,n\nread,1\nwrite,2,3\n")
    (folder / "e.parquet").write_bytes(b"no parquet")
    (folder / "f.txt").write_text("word " * 600_000)  # 3 MB in one line: longer than any block that is read or run
    output = tmp_path / "out.jsonl"
    code, out, err = cli("classify", folder, "-m", models["classify"], "-o", output, "--on-long", "truncate")
    assert code == 3
    assert out.splitlines() == [f"{output}: 4 documents, 4 rows", "7 left out (named above)"]
    for place, reason in (
        ("a.jsonl:2", "no valid JSON"),
        ("a.jsonl:3", "no field 'text'; the record has 'other'"),
        ("a.jsonl:4", "no text"),
        ("b.txt", "binary file, not text"),
        ("c.txt", "no text"),
        ("d.csv:3", "more cells than the 2 columns of the header"),
        ("e.parquet", "damaged Parquet file"),
    ):
        assert any(f"{place}: {reason}" in line for line in err.splitlines()), (place, err)
    assert [Path(row["path"]).name for row in rows_of(output.read_text())] == ["a.jsonl", "a.jsonl", "d.csv", "f.txt"]
    code, _, err = cli("classify", folder, "-m", models["classify"], "-o", tmp_path / "strict.csv", "--strict")
    assert code == 1
    assert "With --strict everything must be usable. Received:" in err


def test_texts_that_a_task_cannot_use_are_left_out(cli: Any, models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "no mask"}\n{"text": "a [MASK]"}\n')
    code, out, err = cli("fill", tmp_path / "a.jsonl", "-m", models["fill"], "-k", 1)
    assert (code, len(rows_of(out))) == (3, 1)
    assert "a.jsonl:1: A text must hold the mask token [MASK]. Received: a text without it" in err
    (tmp_path / "long.txt").write_text("word " * 300)
    code, out, err = cli("classify", tmp_path / "long.txt", "-m", models["classify"], "--on-long", "error")
    assert (code, out) == (3, "")
    assert "must fit max_length=128 tokens" in err
    code, out, err = cli("answer", tmp_path / "long.txt", "-m", models["answer"])
    assert (code, out) == (3, "")
    assert "question must be a string. Received: NoneType" in err


def test_errors(cli: Any, models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("open")
    arguments = ("classify", tmp_path / "a.txt", "-m", models["classify"])
    assert "The output must end in .jsonl, .csv, .parquet. Received:" in cli(*arguments, "-o", tmp_path / "out.txt")[2]
    code, _, err = cli(*arguments, "--on-long", "cut")
    assert (code, err.count("on_long must be one of window, truncate, error. Received: on_long='cut'")) == (1, 1)
    code, _, err = cli(*arguments, "--window-pooling", "sum", "--json")
    assert json.loads(err)["error"]["message"].startswith("window_pooling must be one of mean, max, weighted")
    (tmp_path / "out.csv").write_text("kept")
    code, _, err = cli(*arguments, "-o", tmp_path / "out.csv")
    assert code == 1
    assert "The output must not exist yet (or give --overwrite)" in err
    assert (tmp_path / "out.csv").read_text() == "kept"
    assert cli(*arguments, "-o", tmp_path / "out.csv", "--overwrite")[0] == 0
    assert cli("classify", tmp_path / "none.txt", "-m", models["classify"])[0] == 1
    assert cli("classify", tmp_path / "a.txt")[0] == 2
    assert cli("classify", "-", "-m", models["classify"], "--input-format", "exe")[0] == 2


def test_an_interrupted_run_goes_on_only_with_the_same_settings(
    cli: Any, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longspan.pipelines.run import journal as task_journal

    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"open {number}"}) + "\n" for number in range(200)))
    output = tmp_path / "out.jsonl"
    arguments = ("classify", path, "-m", models["classify"], "-o", output)
    steps = []

    def append_two(journal: Path, values: dict[str, Any]) -> None:
        steps.append(values)
        if len(steps) > 3:
            raise KeyboardInterrupt
        append(journal, values)

    append = task_journal.append_line
    monkeypatch.setattr(task_journal, "append_line", append_two)
    assert cli(*arguments)[0] == 130
    monkeypatch.setattr(task_journal, "append_line", append)
    journal = tmp_path / ".out.jsonl.work" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"torn": ')
    code, _, err = cli(*arguments, "-k", 2)
    assert code == 1
    assert "goes on with the same inputs and settings (or starts over with --no-resume)" in err
    assert cli(*arguments)[0] == 0
    resumed = output.read_text()
    assert cli(*arguments, "--overwrite")[0] == 0
    assert output.read_text() == resumed
    assert len(rows_of(resumed)) == 200


def test_scores_of_windows(cli: Any, models: dict[str, Path], tmp_path: Path) -> None:
    text = " ".join(filler(400, 5))
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt").write_text("open")
    code, out, err = cli("classify", tmp_path, "-m", models["classify"], "--windows", "-k", 2)
    assert (code, err) == (0, "")
    rows = rows_of(out)
    long = [row for row in rows if row["path"].endswith("a.txt") and row["rank"] == 1]
    assert [row["window"] for row in long] == list(range(len(long)))
    assert len(long) > 2
    assert (long[0]["start"], long[-1]["end"]) == (0, len(text))
    assert sum(row["window_score"] for row in long) / len(long) == pytest.approx(long[0]["score"], abs=1e-6)
    assert len({row["window_score"] for row in long}) > 1
    short = [row for row in rows if row["path"].endswith("b.txt")]
    assert [(row["rank"], row["window"], row["start"], row["end"]) for row in short] == [(1, 0, 0, 4), (2, 0, 0, 4)]
    assert short[0]["window_score"] == short[0]["score"]


def test_labels_in_words(cli: Any, tmp_path: Path) -> None:
    texts = ["Simmer the onions for ten minutes.", "The court dismissed the appeal.", "He scored in the last minute."]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    labels = [word for label in ("cooking", "law", "football") for word in ("--label", label)]
    output = tmp_path / "out.csv"
    code, out, err = cli("classify", tmp_path / "a.jsonl", *labels, "-k", 2, "-o", output)
    assert (code, out, err) == (0, f"{output}: 3 documents, 6 rows\n", "")
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows if row["rank"] == "1"] == ["cooking", "law", "football"]
    expected = pipeline("zero-shot-classification", candidate_labels=["cooking", "law", "football"])(texts)
    assert [float(row["score"]) for row in rows] == pytest.approx(
        [score for found in expected for score in found["scores"][:2]], abs=1e-5
    )


def test_pdf_pages(cli: Any, models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(make_pdf(["open the file", f"read {NAME} log", "write"]))
    (tmp_path / "scan.pdf").write_bytes(make_pdf(["", ""]))
    (tmp_path / "torn.pdf").write_bytes(make_pdf(["text"])[:200])
    code, out, err = cli("tag", tmp_path, "-m", models["tag"])
    assert code == 3
    assert [row["page"] for row in rows_of(out) if row["text"] == NAME] == [2]
    assert "scan.pdf: PDF of 2 pages without text (scanned pages need OCR first)" in err
    assert "torn.pdf: damaged PDF (" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("tag", "-m", "tag", "--ignore", "CITY"), 1, "Labels to leave out must be among B-PER, I-PER, O, PER."),
        (("tag", "-m", "tag", "--strategy", "best"), 1, "aggregation_strategy must be one of none, simple"),
        (("classify",), 2, "give a model, or labels by --label"),
        (("classify", "-l", "a", "-l", "b", "--windows"), 2, "labels in words have one score a document"),
        (("classify", "-l", "a", "-l", "b", "--stride", "3"), 1, "Zero-shot classification knows no stride"),
        (("classify", "-l", "a", "-k", "0"), 1, "top_k must be at least 1. Received: top_k=0"),
    ],
)  # fmt: skip
def test_errors_are_machine_readable(
    cli: Any, models: dict[str, Path], tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    (tmp_path / "a.txt").write_text("open")
    words = [
        models[word] if before == "-m" else word for before, word in zip(("", *arguments), arguments, strict=False)
    ]
    actual, out, err = cli(words[0], tmp_path / "a.txt", *words[1:], "--json")
    assert (actual, out) == (code, "")
    assert message in json.loads(err)["error"]["message"]


def test_encodings_and_limits_are_said(cli: Any, models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("これは日本語の文章です。長い文書を読む。".encode("shift_jis"))
    (tmp_path / "b.txt").write_bytes(b"x" * 2000)
    output = tmp_path / "rows.jsonl"
    code, out, err = cli("classify", tmp_path, "-m", models["classify"], "-o", output, "--limit", "bytes=1k")
    assert code == 3
    assert f"{tmp_path / 'a.txt'}: not UTF-8, read as cp932" in out
    assert "larger than the limit of 1,024 bytes" in err
    code, out, err = cli("classify", tmp_path / "a.txt", "-m", models["classify"])
    assert (code, err.strip()) == (0, f"{tmp_path / 'a.txt'}: not UTF-8, read as cp932")
