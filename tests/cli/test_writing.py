"""`longspan summarize` and `longspan generate` over many records: rows, places, errors, and going on."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.documents.test_readers import make_pdf
from tests.pipelines.explained import make_model
from tests.pipelines.task_models import TEXTS

from longspan import pipeline
from longspan.cli.main import app
from longspan.cli.running import run

Outcome = tuple[int, str, str]
LIMIT = ("--max-new-tokens", 6)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def call(*arguments: object) -> Outcome:
        code = run(app, [str(argument) for argument in arguments])
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return call


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("writing")
    return {name: make_model(root / name, name, minilm_dir) for name in ("longt5", "diffllama-lm")}


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "records.jsonl"
    texts = [TEXTS[0][:12], " ".join(TEXTS * 9), "Ada wrote it."]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def texts_of(path: Path) -> list[str]:
    return [record["text"] for record in rows_of(path.read_text())]


def test_summaries_of_records_equal_those_of_the_pipeline(cli: Any, models: dict[str, Path], records: Path) -> None:
    output = records.with_name("out.jsonl")
    arguments = ("summarize", records, "-m", models["longt5"], *LIMIT, "--prefix", "sum: ")
    code, out, err = cli(*arguments, "-o", output)
    assert (code, out, err) == (0, f"{output}: 3 documents, 3 rows\n", "")
    rows = rows_of(output.read_text())
    assert [(row["path"], row["record"], row["line"], row["rank"]) for row in rows] == [
        (str(records), 0, 1, 1), (str(records), 1, 2, 1), (str(records), 2, 3, 1)]  # fmt: skip
    summarize = pipeline("summarization", models["longt5"], max_new_tokens=6, num_beams=1, prefix="sum: ")
    assert [row["written"] for row in rows] == [found["summary_text"] for found in summarize(texts_of(records))]
    assert len({row["written"] for row in rows}) > 1
    code, out, _ = cli(*arguments)
    assert (code, rows_of(out)) == (0, rows), "without an output the rows are printed"


def test_prompts_of_records(cli: Any, models: dict[str, Path], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"ask": text}) + "\n" for text in TEXTS[:4]))
    arguments = ("generate", "--file", prompts, "--text-field", "ask", *LIMIT)
    code, out, err = cli(*arguments, "-m", models["diffllama-lm"], "--temperature", 0.8, "--seed", 5)
    assert (code, err) == (0, "")
    write = pipeline("text-generation", models["diffllama-lm"], max_new_tokens=6, return_full_text=False,
                     do_sample=True, temperature=0.8, seed=5)  # fmt: skip
    assert [row["written"] for row in rows_of(out)] == [found[0]["generated_text"] for found in write(TEXTS[:4])]
    output = tmp_path / "out.csv"
    code, out, err = cli(*arguments, "-m", models["longt5"], "-o", output)
    assert (code, out, err) == (0, f"{output}: 4 documents, 4 rows\n", "")
    answer = pipeline("text2text-generation", models["longt5"], max_new_tokens=6, num_beams=1)
    assert answer(TEXTS[0])[0]["generated_text"] in output.read_text()


@pytest.mark.parametrize("name", ["diffllama-lm", "longt5"])
def test_rows_end_at_a_text(cli: Any, models: dict[str, Path], tmp_path: Path, name: str) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:4]))
    arguments = ("generate", "--file", prompts, "-m", models[name], *LIMIT)
    whole = [row["written"] for row in rows_of(cli(*arguments)[1])]
    stop = whole[0].split()[1]
    code, out, err = cli(*arguments, "--stop", stop)
    assert (code, err) == (0, "")
    ended = [row["written"] for row in rows_of(out)]
    output = tmp_path / "out.jsonl"
    assert cli(*arguments, "--stop", stop, "-o", output)[0] == 0
    assert rows_of(output.read_text()) == rows_of(out)
    assert stop in ended[0]
    assert len(ended[0]) < len(whole[0])
    for before, after in zip(whole, ended, strict=True):
        assert before.startswith(after)
        assert before == after or stop in after
    shown = cli("generate", TEXTS[0], "-m", models[name], *LIMIT, "--stop", stop)[1].strip()
    assert shown.removeprefix("##") == ended[0].strip(), "but for the mark of a stream that begins inside of a word"


def test_long_texts(cli: Any, models: dict[str, Path], records: Path) -> None:
    arguments = ("summarize", records, "-m", models["longt5"], *LIMIT, "--max-length", 40)
    code, out, err = cli(*arguments, "--on-long", "error")
    assert (code, [row["record"] for row in rows_of(out)]) == (3, [0, 2])
    assert "records.jsonl:2: A text must fit max_input_length=40 tokens with on_long='error'. Received:" in err
    windows, truncated = (rows_of(cli(*arguments, "--on-long", how)[1]) for how in ("window", "truncate"))
    assert len(windows) == len(truncated) == 3
    assert windows[1] != truncated[1]
    assert (windows[0], windows[2]) == (truncated[0], truncated[2])
    single = records.with_name("a.txt")
    single.write_text(texts_of(records)[1])
    code, out, _ = cli("summarize", single, "-m", models["longt5"], *LIMIT, "--max-length", 40)
    assert rows_of(out)[0]["written"] == windows[1]["written"]


def test_a_pdf_and_the_standard_input(
    cli: Any, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.pdf").write_bytes(make_pdf(["Ada wrote a program.", "It was the first."]))
    code, shown, err = cli("summarize", tmp_path / "a.pdf", "-m", models["longt5"], *LIMIT)
    assert (code, err) == (0, "")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((tmp_path / "a.pdf").read_bytes())))
    code, _, _ = cli("summarize", "-", "-m", models["longt5"], *LIMIT, "-o", tmp_path / "o.jsonl",
                       "--input-format", "pdf")  # fmt: skip
    [row] = rows_of((tmp_path / "o.jsonl").read_text())
    assert (code, row["path"], row["page"], row["written"].strip()) == (0, "-", 1, shown.strip())


def test_bad_records_are_named_and_the_rest_is_done(cli: Any, models: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "Ada"}\n{broken\n{"other": 1}\n{"text": " "}\n')
    (folder / "b.txt").write_bytes(b"\x00\x01 binary")
    (folder / "c.txt").write_text("")
    output = tmp_path / "out.parquet"
    arguments = ("summarize", folder, "-m", models["longt5"], *LIMIT, "-o", output)
    code, out, err = cli(*arguments)
    assert (code, out.splitlines()) == (3, [f"{output}: 1 documents, 1 rows", "5 left out (named above)"])
    for place in ("a.jsonl:2: no valid JSON", "a.jsonl:3: no field 'text'", "a.jsonl:4: no text", "b.txt: binary file",
                  "c.txt: no text"):  # fmt: skip
        assert place in err
    code, out, err = cli(*arguments, "--overwrite", "--json")
    found = json.loads(out)
    assert (code, err, found["documents"], len(found["problems"])) == (3, "", 1, 5)
    code, _, err = cli(*arguments, "--overwrite", "--strict", "--json")
    assert code == 1
    error = json.loads(err)["error"]
    assert error["type"] == "ProblemError"
    assert error["message"].startswith("With --strict everything must be usable. Received: ")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("summarize", "a.txt", "-m", "longt5", "-o", "out.txt"), 1, "The output must end in .jsonl, .csv, .parquet"),
        (("summarize", "a.txt", "-m", "longt5", "--on-long", "cut"), 1, "on_long must be one of window, truncate"),
        (("summarize", "a.txt", "b.txt", "-m", "longt5"), 1, "No such file or directory: 'b.txt'"),
        (("summarize", "a.txt", "-m", "diffllama-lm", "-o", "o.csv"), 1, "summarize needs a model with an encoder"),
        (("summarize", "a.txt", "-m", "longt5", "-o", "o.csv", "--max-input", "3"), 2, "give --max-length and"),
        (("generate", "x", "-m", "longt5", "--stop", "x", "--framework", "flax"), 1, "--stop needs --framework torch"),
        (("generate", "x", "-m", "longt5", "-o", "o.csv"), 1, "--output takes what --file or the standard input holds"),
        (("generate", "-f", "a.txt", "-m", "longt5", "-o", "o.csv", "--max-input", "3"), 2, "rows know no --max-input"),
        (("generate", "-f", "a.txt", "-m", "longt5", "-o", "o.csv", "--stop", "x", "--framework", "flax"), 1,
         "--stop needs --framework torch. Received: --framework flax"),
        (("generate", "-f", "a.txt", "-m", "longt5", "-o", "o.csv", "--top-p", "2"), 1, "top_p must lie in (0, 1]"),
        (("generate", "-f", "z.txt", "-m", "longt5", "-o", "o.csv"), 1, "Each path must exist. Received: z.txt"),
        (("summarize", "bad.txt", "-m", "longt5"), 1, "A document must be readable. Received: bad.txt: binary file"),
    ],
)  # fmt: skip
def test_errors(
    cli: Any, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...], code: int, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("Ada")
    (tmp_path / "bad.txt").write_bytes(b"\x00\x01")
    words = [models.get(word, word) for word in arguments]
    actual, out, err = cli(*words, "--json")
    assert (actual, out) == (code, "")
    assert message in json.loads(err)["error"]["message"]


def test_an_interrupted_run_goes_on(
    cli: Any, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longspan.pipelines.run import journal as task_journal

    records = tmp_path / "a.jsonl"
    records.write_text("".join(json.dumps({"text": f"Ada {number}"}) + "\n" for number in range(150)))
    output = tmp_path / "out.jsonl"
    arguments = ("summarize", records, "-m", models["longt5"], "--max-new-tokens", 3, "-o", output)
    append, lines = task_journal.append_line, []

    def append_two(journal: Path, values: dict[str, Any]) -> None:
        lines.append(values)
        if len(lines) > 2:
            raise KeyboardInterrupt
        append(journal, values)

    monkeypatch.setattr(task_journal, "append_line", append_two)
    assert cli(*arguments)[0] == 130
    assert not output.exists()
    monkeypatch.setattr(task_journal, "append_line", append)
    code, _, err = cli(*arguments, "--num-beams", 2)
    assert code == 1
    assert "goes on with the same inputs and settings (or starts over with --no-resume)" in err
    assert cli(*arguments)[0] == 0
    resumed = output.read_text()
    assert cli(*arguments, "--overwrite")[0] == 0
    assert output.read_text() == resumed
    assert len(rows_of(resumed)) == 150
