"""The command line as users meet it: words in, exit code and two streams out."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

import longspan
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


#: A process that was started in the background ignores interrupts, and hands that on to its children. The child takes
#: it back itself: `preexec_fn` would fork, which a process that has run JAX must not.
HEED_INTERRUPTS = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("longspan", run_name="__main__", alter_sys=True)
"""


def spawn(*arguments: object, heed_interrupts: bool = False, **kwargs: object) -> subprocess.Popen[str]:
    start = ["-c", HEED_INTERRUPTS] if heed_interrupts else ["-m", "longspan"]
    command = [sys.executable, *start, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "1000", "OPENBLAS_THREAD_TIMEOUT": "4"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active", "OPENBLAS_THREAD_TIMEOUT": "4"}),
        (
            {"GOMP_SPINCOUNT": "7", "OPENBLAS_THREAD_TIMEOUT": "9"},
            {"GOMP_SPINCOUNT": "7", "OPENBLAS_THREAD_TIMEOUT": "9"},
        ),
    ],
    ids=["nothing", "policy", "numbers"],
)
def test_waiting_threads_sleep_unless_the_environment_says_how_they_wait(own, expected):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OPENBLAS_THREAD_TIMEOUT")
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    words = [sys.executable, "-m", "longspan", "doctor", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env={**inherited, **own})
    settings = json.loads(done.stdout)["settings"]
    assert {name: settings[name] for name in names if name in settings} == expected


def test_help_is_quick_and_imports_no_framework():
    code = "import sys, longspan.cli.main as m\nm.run(m.app, ['--help'])\nprint(sorted(sys.modules), file=sys.stderr)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1  # seconds of work; 0.2 at rest
    loaded = set(done.stderr.replace("'", "").strip("[]\n").split(", "))
    assert "longspan.cli.embed" in loaded
    assert not loaded & {"torch", "jax", "tensorflow", "keras", "numpy", "tokenizers", "safetensors", "pyarrow"}
    assert "longspan embed docs/ notes.md --output index.parquet" in done.stdout


@pytest.mark.parametrize("command", [[], ["embed"], ["search"]])
def test_help_shows_examples_and_exit_codes(cli, command: list[str]):
    code, out, err = cli(*command, "--help")
    assert (code, err) == (0, "")
    assert "Examples" in out
    if command != ["search"]:
        assert "130" in out


def test_version(cli):
    assert cli("--version") == (0, f"longspan {longspan.__version__}\n", "")


def test_embed_then_search(cli, tmp_path: Path, corpus: Path, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("embed", "corpus", "-o", "out.parquet", "--model", tiny_dir)
    assert (code, err) == (0, "")
    assert out.startswith("out.parquet: 12 files, ")
    assert "files: 12 embedded, 0 unchanged, 0 dropped" in out
    assert "tokenize" in out
    assert "tokens/s" in out
    code, out, err = cli("search", "out.parquet", "open the file", "log", "--top-k", 2)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "open the file"
    assert lines[1].startswith("  1  corpus/")
    number = int(lines[1].split(":")[1].split()[0])
    best = next(line for line in lines if line.startswith("   > "))
    assert int(best.split("|")[0].strip(" >")) == number
    path = lines[1].split()[1].split(":")[0]
    assert best.split("| ")[1] in Path(path).read_text().splitlines()[number - 1]


def test_json_results(cli, tmp_path: Path, corpus: Path, tiny_dir: Path):
    (corpus / "bad.jsonl").write_text("nonsense\n")
    code, out, err = cli("embed", corpus, "-o", tmp_path / "out", "--model", tiny_dir, "--json")
    report = json.loads(out)
    assert (code, err) == (3, "")
    assert report["num_files"] == 13
    assert report["problems"] == [
        {"path": str(corpus / "bad.jsonl"), "line": 1, "reason": "no valid JSON: Expecting value (column 1)"}
    ]
    code, out, err = cli("search", tmp_path / "out", "log", "file", "-k", 3, "--json")
    assert (code, err) == (0, "")
    first, second = map(json.loads, out.splitlines())
    assert (first["query"], second["query"]) == ("log", "file")
    match = first["matches"][0]
    assert set(match) >= {
        "path",
        "line",
        "score",
        "snippet",
        "line_start",
        "line_end",
        "char_start",
        "char_end",
        "text",
    }
    assert Path(match["path"]).read_text()[match["char_start"] : match["char_end"]] == match["text"]


def test_problems_are_named_on_the_error_stream_and_in_the_exit_code(cli, tmp_path: Path, corpus: Path, tiny_dir: Path):
    (corpus / "bad.jsonl").write_text('{"text": "log"}\nnonsense\n')
    (corpus / "b.png").write_bytes(b"x")
    arguments = ["embed", corpus, "-o", tmp_path / "out.npz", "--model", tiny_dir]
    code, out, err = cli(*arguments)
    assert code == 3
    assert err == f"skipped {corpus / 'bad.jsonl'}:2: no valid JSON: Expecting value (column 1)\n"
    assert "1 left out" in out
    assert "1 files of folders ignored, no text by their names (.png 1)" in out
    assert cli(*arguments, "--quiet") == (3, "", "")
    code, out, err = cli(*arguments, "--strict")
    assert (code, out) == (1, "")
    assert err.startswith("error: With --strict everything must be readable. Received: ")


def test_documents_longer_than_the_model(cli, tmp_path: Path, tiny_dir: Path):
    texts = ["open the file", "log " * 500, "read", "file " * 700]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    arguments = ["embed", tmp_path / "a.jsonl", "--model", tiny_dir, "--json", "-o"]
    found = {how: cli(*arguments, tmp_path / f"{how}.npz", "--on-long", how) for how in ("window", "truncate", "error")}
    reports = {how: json.loads(out) for how, (_, out, _) in found.items()}
    assert [found[how][0] for how in ("window", "truncate", "error")] == [0, 0, 3]
    assert reports["window"]["num_passages"] > 8
    assert (reports["truncate"]["num_passages"], reports["error"]["num_passages"]) == (4, 2)
    assert [problem["line"] for problem in reports["error"]["problems"]] == [2, 4]
    assert reports["error"]["problems"][0]["reason"].startswith("A text must fit max_length=")
    assert json.loads(cli(*arguments, tmp_path / "default.npz")[1])["num_passages"] == reports["window"]["num_passages"]
    code, _, err = cli(*arguments, tmp_path / "truncate.npz")
    assert code == 1
    assert "on_long" in json.loads(err)["error"]["message"], "an index has one meaning"
    assert (
        "on_long must be one of window, truncate, error" in cli(*arguments, tmp_path / "x.npz", "--on-long", "cut")[2]
    )


def test_search_without_an_index(cli, corpus: Path, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(corpus)
    code, out, err = cli("search", corpus, "log", "--model", tiny_dir, "-k", 1)
    assert (code, err) == (0, "")
    assert len([line for line in out.splitlines() if line.startswith("  1  ")]) == 1


def test_queries_from_a_file_and_the_standard_input(
    cli, tmp_path: Path, corpus: Path, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    import io

    cli("embed", corpus, "-o", tmp_path / "out.npz", "--model", tiny_dir)
    (tmp_path / "queries.txt").write_text("log\n\nfile\n")
    for source in (tmp_path / "queries.txt", "-"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("log\n\nfile\n".encode("utf-16"))))
        _, out, _ = cli("search", tmp_path / "out.npz", "open", "--queries", source, "--json")
        assert [json.loads(line)["query"] for line in out.splitlines()] == ["open", "log", "file"]


def test_escapes_in_names_and_texts_reach_no_terminal(cli, tmp_path: Path, tiny_dir: Path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a\x1b[31m\nb.txt").write_bytes(b"log \x1b]0;title\x07 file")
    (folder / "c\x1b[2J.txt").write_bytes(b"\x00")
    (folder / "d\x9b.txt").write_bytes(b"open\x97file")
    output = tmp_path / "out\x1b[0m"
    code, out, err = cli("embed", folder, "-o", output, "--model", tiny_dir)
    assert code == 3
    assert "\\x1b[0m: 3 files" in out
    assert "d\\x9b.txt: not UTF-8, read as cp1252" in out
    assert "c\\x1b[2J.txt: binary file" in err
    found = cli("search", output, "log \x1b[5m", "--model", tiny_dir)
    assert "a\\x1b[31m\\nb.txt" in found[1]
    for text in (out, err, *found[1:]):
        assert not set(text) & set("\x1b\x07\x9b")


def test_an_empty_index_says_so(cli, tmp_path: Path, tiny_dir: Path):
    (tmp_path / "nothing").mkdir()
    code, out, _ = cli("embed", tmp_path / "nothing", "-o", tmp_path / "out.npz", "--model", tiny_dir)
    assert (code, out.splitlines()[0].endswith(": 0 files, 0 passages, 0 tokens")) == (0, True)
    code, out, _ = cli("search", tmp_path / "out.npz", "log", "--model", tiny_dir)
    assert (code, "nothing found: the index holds no passages" in out) == (0, True)


def test_long_lines_are_shortened_on_screen(cli, tmp_path: Path, tiny_dir: Path):
    (tmp_path / "a.txt").write_text("log " * 10_000)
    code, out, _ = cli("search", tmp_path / "a.txt", "log", "--model", tiny_dir, "-k", 1)
    assert code == 0
    assert max(map(len, out.splitlines())) < 300


@pytest.mark.parametrize(
    ("arguments", "code", "kind", "message"),
    [
        (["embed", "nowhere", "-o", "out"], 1, "InputError", "Each path must exist. Received: nowhere"),
        (["embed", ".", "-o", "out.csv"], 1, "InputError", "An output must be a .parquet file"),
        (["embed", ".", "-o", "o", "--overlap", "400"], 1, "InputError", "overlap must be at least 0 and below"),
        (["embed", ".", "-o", "o", "--others", "x"], 1, "InputError", "others must be one of refuse, keep, drop"),
        (["embed", ".", "-o", "o", "--shard", "4/3"], 1, "InputError", "A shard must be i/n with i from 1 to n"),
        (["embed", ".", "-o", "o", "--shard", "0/3"], 1, "InputError", "such as 2/3. Received: 0/3"),
        (["embed", ".", "-o", "o", "--shard", "half"], 1, "InputError", "such as 2/3. Received: half"),
        (["merge", "nowhere", "-o", "o"], 1, "IndexFileError", "An index must exist. Received: nowhere"),
        (["merge", "bad.npz", "bad.npz", "-o", "o"], 1, "InputError", "Each part must be named once. Received: bad"),
        (["merge", "bad.npz", "-o", "bad.npz"], 1, "InputError", "The output must be none of the parts"),
        (["merge", "bad.npz", "-o", "o.csv"], 1, "InputError", "An output must be a .parquet file"),
        (["merge", "bad.parquet"], 2, "UsageError", "Missing option '--output'"),
        (["embed", ".", "-o", "o", "--framework", "caffe"], 1, "InputError", "framework must be one of torch"),
        (["embed", ".", "-o", "o", "--model", "no-such"], 1, "CheckpointNotFoundError", "no-such"),
        (["embed", ".", "-o", "o", "--max-length", "x"], 2, "UsageError", "Invalid value for '--max-length'"),
        (["embed", "."], 2, "UsageError", "Missing option '--output'"),
        (["embed", "-o", "out"], 2, "UsageError", "Missing argument 'PATHS'"),
        (["search", "nowhere", "q"], 1, "IndexFileError", "An index must exist. Received: nowhere"),
        (["search", "bad.npz", "q"], 1, "IndexFileError", "An index must be a whole npz file. Received: bad.npz"),
        (["search", "bad.parquet", "q"], 1, "IndexFileError", "An index must be a whole Parquet file"),
        (["search", "."], 2, "UsageError", "at least one query, or --queries FILE, must be given"),
        (["search", ".", "--queries", "bad.bin"], 1, "InputError", "A file of queries must be text. Received: bad"),
        (["search", ".", "--queries", "gone.txt"], 1, "FileNotFoundError", "gone.txt"),
        (["search", ".", "q", "--nonsense"], 2, "UsageError", "No such option: --nonsense"),
        (["sing"], 2, "UsageError", "No such command 'sing'"),
    ],
)  # fmt: skip
def test_errors_are_one_clear_line(
    cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, kind: str, message: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.npz").write_bytes(b"PK\xff\xff")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    (tmp_path / "bad.bin").write_bytes(b"log\0")
    before = sorted(tmp_path.rglob("*"))
    actual, out, err = cli(*arguments)
    assert (actual, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
    if code == 1:
        assert err.startswith("error: ")
        assert err.count("\n") == 1
    actual, out, err = cli(*arguments, "--json")
    assert (actual, out) == (code, "")
    error = json.loads(err)["error"]
    assert error["type"] == kind
    assert message in error["message"]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_bad_query_is_refused(cli, tmp_path: Path, corpus: Path, tiny_dir: Path):
    cli("embed", corpus, "-o", tmp_path / "out.npz", "--model", tiny_dir)
    code, out, err = cli("search", tmp_path / "out.npz", " ")
    told = "error: A query must hold text. Received: ' ' (what to do: longspan doctor --error must-be-a-string)\n"
    assert (code, out, err) == (1, "", told)


def test_the_traceback_comes_with_debug_only(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object) -> None:
        raise RuntimeError("broken inside")

    monkeypatch.setattr("longspan.search.index.check_output", fail)
    code, _, err = cli("embed", ".", "-o", "out")
    assert code == 1
    assert err.startswith("error: unexpected RuntimeError: broken inside (longspan --debug ... shows where")
    with pytest.raises(RuntimeError, match="broken inside"):
        cli("--debug", "embed", ".", "-o", "out")


def test_warnings_are_one_line(cli, tmp_path: Path, corpus: Path):
    from tests.tiny_encoder import make_plain_model

    folder = make_plain_model(tmp_path / "plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.filters", [("default", None, Warning, None, 0)])
        code, _, err = cli("embed", corpus, "-o", tmp_path / "out.npz", "--model", folder)
    assert code == 0
    assert err.startswith(f"warning: {folder} is no sentence-transformers model")
    assert err.count("\n") == 1


INTERRUPTED = "error: interrupted: finished work is kept, the same command goes on\n"


class Interrupting:
    def __del__(self):
        raise KeyboardInterrupt  # nobody can catch that here


@pytest.mark.parametrize("swallow", ["finaliser", "wrapped"])
def test_an_interrupt_that_a_library_swallows_still_interrupts(swallow: str, capsys: pytest.CaptureFixture[str]):
    commands = typer.Typer()

    @commands.command()
    def work() -> None:
        if swallow == "wrapped":
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt as interrupt:
                raise RuntimeError("a call into C returned with an exception set") from interrupt
        value = Interrupting()
        del value
        time.sleep(20)
        raise AssertionError("not interrupted")

    start = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore interrupts
    try:
        assert run(commands, []) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - start < 5
    assert capsys.readouterr().err.strip() + "\n" == INTERRUPTED


def test_interruption_keeps_what_is_done(tmp_path: Path, tiny_dir: Path):
    (tmp_path / "long.txt").write_text("open the log file\n" * 400_000)
    arguments = ["embed", tmp_path / "long.txt", "-o", tmp_path / "out.npz", "--model", tiny_dir, "--batch-tokens", 512]
    process = spawn(*arguments, "--quiet", heed_interrupts=True)
    journal = tmp_path / ".out.npz.work" / "journal.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 2):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, INTERRUPTED)
    assert journal.read_bytes().count(b"\n") > 2
    assert not (tmp_path / "out.npz").exists()


def test_a_closed_pipe_ends_quietly(tmp_path: Path, corpus: Path, tiny_dir: Path, cli):
    cli("embed", corpus, "-o", tmp_path / "out.npz", "--model", tiny_dir)
    process = spawn("search", tmp_path / "out.npz", "log", "-k", 50, "--json")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), err) == (1, "")


def test_python_dash_m(tmp_path: Path):
    process = spawn("--version", cwd=tmp_path, env={**os.environ})
    out, err = process.communicate()
    assert (process.returncode, out, err) == (0, f"longspan {longspan.__version__}\n", "")
