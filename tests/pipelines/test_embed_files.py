from __future__ import annotations

import gzip
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny_encoder import make_sentence_model

from longspan import SentenceEncoder
from longspan.documents.readers import ReadOptions
from longspan.documents.walk import Filters
from longspan.embeddings.embed_files import EmbedOptions, EmbedReport, embed_files
from longspan.errors import InputError, MissingFrameworkError
from longspan.pipelines.run.progress import ProblemError
from longspan.search.index import open_index
from longspan.search.passages import IndexFileError, Passages

OUTPUTS = ["out.parquet", "out.npz", "out"]


def embed(tiny: SentenceEncoder, paths: Any, output: Path, **options: Any) -> EmbedReport:
    paths = [paths] if isinstance(paths, str | Path) else paths
    options = {"batch_tokens": 256, **options}
    return embed_files(paths, output, encoder=tiny, options=EmbedOptions(**options))


def rows(output: Path) -> dict[str, Passages]:
    """Passages of an index by file name."""
    index = open_index(output)
    found: dict[str, Passages] = {}
    start = 0
    for record in index.info.files:
        if record.rows:
            found[Path(record.path).name] = index.rows(start, start + record.rows)
        start += record.rows
    return found


@pytest.mark.parametrize("name", OUTPUTS)
def test_index_holds_every_window_with_its_place(tmp_path: Path, corpus: Path, tiny: SentenceEncoder, name: str):
    report = embed(tiny, corpus, tmp_path / name, overlap=7)
    found = rows(tmp_path / name)
    assert report.num_files == report.num_new_files == 12
    assert report.num_passages == sum(map(len, found.values()))
    assert report.num_tokens == report.num_new_tokens == sum(int(p.num_tokens.sum()) for p in found.values())
    assert set(report.seconds) == {"find", "read", "tokenize", "model", "write", "total"}
    splitter = tiny.splitter(overlap=7)
    for path in sorted(corpus.rglob("*.txt")):
        text = path.read_text()
        pieces = splitter.split([text], with_characters=True)[0]
        if not pieces:
            assert path.name not in found
            continue
        passages = found[path.name]
        assert len(passages) == len(pieces)
        assert passages.chunk.tolist() == list(range(len(pieces)))
        spans = list(zip(passages.char_start.tolist(), passages.char_end.tolist(), strict=True))
        assert passages.text == [text[start:end] for start, end in spans]
        assert passages.line_start.tolist() == [text.count("\n", 0, start) + 1 for start, _ in spans]
        assert passages.line_end.tolist() == [text.count("\n", 0, end - 1) + 1 for _, end in spans]
        np.testing.assert_allclose(passages.embedding, tiny.encode_pieces(pieces), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", OUTPUTS)
def test_only_changed_files_are_embedded_again(tmp_path: Path, corpus: Path, tiny: SentenceEncoder, name: str):
    output = tmp_path / name
    embed(tiny, corpus, output)
    before = rows(output)
    unchanged = embed(tiny, corpus, output)
    assert (unchanged.num_new_files, unchanged.num_new_tokens, unchanged.num_reused_files) == (0, 0, 12)
    (corpus / "a" / "05.txt").write_text("an entirely new text")
    (corpus / "a" / "07.txt").unlink()
    (corpus / "a" / "new.txt").write_text("one more file")
    os.utime(corpus / "a" / "08.txt", (0, 0))
    report = embed(tiny, corpus, output)
    assert (report.num_new_files, report.num_reused_files, report.num_dropped_files) == (2, 10, 1)
    after = rows(output)
    assert set(after) == set(before) - {"07.txt"} | {"new.txt"}
    assert after["05.txt"].text == ["an entirely new text"]
    assert after["new.txt"].text == ["one more file"]
    for file in set(before) - {"05.txt", "07.txt"}:
        assert after[file].text == before[file].text
        assert np.array_equal(after[file].embedding, before[file].embedding)
    fresh = tmp_path / f"fresh-{name}"
    embed(tiny, corpus, fresh)
    for file, passages in rows(fresh).items():
        np.testing.assert_allclose(after[file].embedding, passages.embedding, rtol=0, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["corpus", name, f"fresh-{name}"])


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_interrupted_update_leaves_the_old_index(
    tmp_path: Path, corpus: Path, tiny: SentenceEncoder, name: str, monkeypatch: pytest.MonkeyPatch
):
    output = tmp_path / name
    embed(tiny, corpus, output, batch_tokens=64)
    before = rows(output)
    for path in corpus.rglob("*.txt"):
        path.write_text(path.read_text() + " more text")
    calls = 0
    encode_pieces = SentenceEncoder.encode_pieces

    def crash(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return encode_pieces(*args, **kwargs)

    monkeypatch.setattr(SentenceEncoder, "encode_pieces", crash)
    with pytest.raises(KeyboardInterrupt):
        embed(tiny, corpus, output, batch_tokens=64)
    during = rows(output)
    assert set(during) == set(before)
    assert all(np.array_equal(during[file].embedding, before[file].embedding) for file in before)
    report = embed(tiny, corpus, output, batch_tokens=64)
    assert report.num_reused_files > 0
    assert report.num_new_files == 12 - report.num_reused_files
    assert all(passages.text[-1].endswith("more text") for passages in rows(output).values())


def test_a_file_changed_after_an_interruption_is_read_anew(
    tmp_path: Path, tiny: SentenceEncoder, monkeypatch: pytest.MonkeyPatch
):
    source = tmp_path / "long.txt"
    source.write_text("the log file " * 1500)
    output = tmp_path / "out.npz"
    encode_pieces = SentenceEncoder.encode_pieces
    calls = 0

    def crash(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return encode_pieces(*args, **kwargs)

    monkeypatch.setattr(SentenceEncoder, "encode_pieces", crash)
    with pytest.raises(KeyboardInterrupt):
        embed(tiny, source, output, batch_tokens=64)
    source.write_text("python data " * 1500)
    embed(tiny, source, output, batch_tokens=64)
    passages = rows(output)["long.txt"]
    assert not any("log" in text for text in passages.text)
    assert passages.chunk.tolist() == list(range(len(passages)))


def test_a_file_written_to_while_it_is_read_is_read_again_next_time(
    tmp_path: Path, tiny: SentenceEncoder, monkeypatch: pytest.MonkeyPatch
):
    source = tmp_path / "growing.txt"
    source.write_text("log file")
    encode_pieces = SentenceEncoder.encode_pieces

    def write_meanwhile(*args: Any, **kwargs: Any) -> Any:
        source.write_text("log file error")
        return encode_pieces(*args, **kwargs)

    monkeypatch.setattr(SentenceEncoder, "encode_pieces", write_meanwhile)
    embed(tiny, source, tmp_path / "out.npz")
    source.write_text("log file")
    assert embed(tiny, source, tmp_path / "out.npz").num_new_files == 1


@pytest.mark.parametrize("name", OUTPUTS)
def test_other_settings_are_refused_by_name(tmp_path: Path, corpus: Path, tiny: SentenceEncoder, name: str):
    output = tmp_path / name
    embed(tiny, corpus, output)
    with pytest.raises(IndexFileError, match=r"The index .* same settings. Received: overlap was 5, is now 3\. Use"):
        embed(tiny, corpus, output, overlap=3)
    other = SentenceEncoder(make_sentence_model(tmp_path / "other-model", seed=5))
    with pytest.raises(IndexFileError, match="model was '.*', is now '.*other-model'; weights was"):
        embed(other, corpus, output)
    assert embed(tiny, corpus, output).num_new_files == 0
    assert embed(other, corpus, output, resume=False).num_new_files == 12
    assert embed(other, corpus, output).num_new_files == 0


def test_other_settings_than_an_interrupted_run_are_refused(
    tmp_path: Path, corpus: Path, tiny: SentenceEncoder, monkeypatch: pytest.MonkeyPatch
):
    def crash(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SentenceEncoder, "encode_pieces", crash)
        with pytest.raises(KeyboardInterrupt):
            embed(tiny, corpus, tmp_path / "out.npz")
    with pytest.raises(IndexFileError, match="The interrupted run that writes .* overlap was 5, is now 3"):
        embed(tiny, corpus, tmp_path / "out.npz", overlap=3)
    assert embed(tiny, corpus, tmp_path / "out.npz", overlap=3, resume=False).num_new_files == 12


@pytest.mark.parametrize(
    ("name", "value"),
    [("longspan", "0.0.9"), ("framework", "flax"), ("versions", {"torch": "1.0"}), ("device", "cuda"),
     ("dtype", "bfloat16"), ("precision", "high"), ("implementation", "sdpa"), ("config", "0")],
)  # fmt: skip
def test_an_interrupted_run_goes_on_only_where_no_number_changes(
    tmp_path: Path, corpus: Path, tiny: SentenceEncoder, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
):
    def crash(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    output = tmp_path / "out.npz"
    with monkeypatch.context() as patch:
        patch.setattr(SentenceEncoder, "encode_pieces", crash)
        with pytest.raises(KeyboardInterrupt):
            embed(tiny, corpus, output)
    now = tiny.identity()
    assert name in now
    with monkeypatch.context() as patch:
        patch.setattr(SentenceEncoder, "identity", lambda self: {**now, name: value})
        with pytest.raises(IndexFileError, match=f"The interrupted run that writes .* {name} was .*, is now "):
            embed(tiny, corpus, output)
    assert embed(tiny, corpus, output).num_new_files == 12


@pytest.mark.parametrize("name", OUTPUTS)
def test_files_of_the_index_that_are_left_out(tmp_path: Path, corpus: Path, tiny: SentenceEncoder, name: str):
    output = tmp_path / name
    embed(tiny, corpus, output)
    message = r"leave out 8 of them, such as .*\.txt\. Keep them \(--others keep\) or drop them \(--others drop\)"
    with pytest.raises(IndexFileError, match=message):
        embed(tiny, corpus / "b", output)
    kept = embed(tiny, corpus / "b", output, others="keep")
    assert (kept.num_files, kept.num_dropped_files, kept.num_new_files) == (12, 0, 0)
    dropped = embed(tiny, corpus / "b", output, others="drop")
    assert (dropped.num_files, dropped.num_dropped_files, dropped.num_new_files) == (4, 8, 0)
    assert set(rows(output)) <= {path.name for path in (corpus / "b").iterdir()}


def test_files_are_recognised_from_another_folder(
    tmp_path: Path, corpus: Path, tiny: SentenceEncoder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    embed(tiny, "corpus", Path("out.npz"))
    monkeypatch.chdir(corpus)
    report = embed(tiny, ".", Path("../out.npz"))
    assert (report.num_new_files, report.num_reused_files) == (0, 12)
    assert open_index(tmp_path / "out.npz").info.files[0].path == "a/01.txt"


def test_what_cannot_be_read_is_reported_and_the_rest_is_embedded(
    tmp_path: Path, corpus: Path, tiny: SentenceEncoder, monkeypatch: pytest.MonkeyPatch
):
    (corpus / "binary.txt").write_bytes(bytes(range(256)) * 10)
    (corpus / "bad.pdf").write_bytes(b"%PDF-1.4 nothing more")
    (corpus / "gone.txt").symlink_to("nowhere")
    os.mkfifo(corpus / "pipe.txt")
    (corpus / "records.jsonl").write_text('{"text": "log"}\n{"text": \n{"title": "x"}\n\n{"text": "file"}\n')
    (corpus / "locked.txt").write_text("secret")
    (corpus / "latin.txt").write_bytes("caf\xe9 open".encode("latin-1"))
    (corpus / "picture.png").write_bytes(b"png")
    with gzip.open(corpus / "notes.md.gz", "wt") as file:
        file.write("read the log")
    (corpus / "cut.txt.gz").write_bytes((corpus / "notes.md.gz").read_bytes()[:20])
    real_open = os.open

    def guarded(path: Any, *args: Any, **kwargs: Any) -> Any:
        if str(path).endswith("locked.txt"):
            raise PermissionError(13, "Permission denied")
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", guarded)
    report = embed(tiny, corpus, tmp_path / "out.npz")
    problems = {(Path(p.path).name, p.line): p.reason for p in report.problems}
    assert problems.pop(("bad.pdf", None)).startswith("damaged PDF (")
    assert problems.pop(("cut.txt.gz", None)).startswith("cannot be read: ")
    assert problems == {
        ("binary.txt", None): "binary file, not text",
        ("gone.txt", None): "link to nothing",
        ("pipe.txt", None): "not a regular file",
        ("locked.txt", None): "cannot be read: Permission denied",
        ("records.jsonl", 2): "no valid JSON: Expecting value (column 9)",
        ("records.jsonl", 3): "no field 'text'; the record has 'title'",
    }
    assert str(report.problems[0]).count("/") > 1
    assert report.ignored == {".png": 1}
    assert list(report.notes.values()) == [("not UTF-8, read as cp1252",)]
    found = rows(tmp_path / "out.npz")
    assert found["latin.txt"].text == ["caf\xe9 open"]
    assert found["notes.md.gz"].text == ["read the log"]
    assert found["records.jsonl"].text == ["log", "file"]
    assert found["records.jsonl"].document.tolist() == [0, 1]
    assert found["records.jsonl"].line_start.tolist() == [1, 5]
    again = embed(tiny, corpus, tmp_path / "out.npz")
    assert sorted(map(str, again.problems)) == sorted(map(str, report.problems))
    assert again.num_new_tokens == 0


def test_strict_stops_at_the_first_problem(tmp_path: Path, corpus: Path, tiny: SentenceEncoder):
    (corpus / "records.jsonl").write_text('{"text": "log"}\nnonsense\n')
    message = re.escape(f"{corpus / 'records.jsonl'}:2: no valid JSON")
    for _ in range(2):
        with pytest.raises(ProblemError, match=f"With --strict everything must be readable. Received: {message}"):
            embed(tiny, corpus, tmp_path / "out.npz", strict=True)
    embed(tiny, corpus, tmp_path / "out.npz")
    with pytest.raises(ProblemError, match=message):
        embed(tiny, corpus, tmp_path / "out.npz", strict=True)


def test_passages_of_a_file_that_has_become_unreadable_stay(
    tmp_path: Path, corpus: Path, tiny: SentenceEncoder, monkeypatch: pytest.MonkeyPatch
):
    embed(tiny, corpus, tmp_path / "out.npz")
    before = rows(tmp_path / "out.npz")

    real_open = os.open

    def fail(path: Any, *args: Any, **kwargs: Any) -> Any:
        if str(path).endswith(".txt"):
            raise OSError(5, "Input/output error")
        return real_open(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        report = embed(tiny, corpus, tmp_path / "out.npz")
    assert len(report.problems) == 12
    assert set(rows(tmp_path / "out.npz")) == set(before)


@pytest.mark.parametrize("name", OUTPUTS)
def test_nothing_to_embed(tmp_path: Path, tiny: SentenceEncoder, name: str):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "empty.txt").write_text("")
    (tmp_path / "docs" / "blank.txt").write_text(" \n\n\t ")
    for expected, path in [(0, tmp_path / "nothing"), (2, tmp_path / "docs")]:
        path.mkdir(exist_ok=True)
        report = embed(tiny, path, tmp_path / f"{expected}-{name}")
        assert (report.num_files, report.num_passages, report.problems) == (expected, 0, [])
        assert open_index(tmp_path / f"{expected}-{name}").info.num_passages == 0


def test_ten_megabytes_in_one_line(tmp_path: Path, tiny: SentenceEncoder):
    line = "x" * 5_000_000 + " " * 4_990_000 + "open the log"
    (tmp_path / "line.txt").write_text(line)
    report = embed(tiny, tmp_path / "line.txt", tmp_path / "out.npz")
    passages = rows(tmp_path / "out.npz")["line.txt"]
    assert report.num_passages == len(passages) == 1
    assert (passages.char_start[0], passages.char_end[0]) == (0, len(line))
    assert passages.line_end[0] == 1


def test_output_inside_the_folder_is_not_read(tmp_path: Path, corpus: Path, tiny: SentenceEncoder):
    for name in ("index", "index.npz"):
        output = corpus / name
        first = embed(tiny, corpus, output)
        second = embed(tiny, corpus, output)
        assert (first.num_files, second.num_files, second.num_new_files) == (12, 12, 0)
        shutil.rmtree(output) if output.is_dir() else output.unlink()


def test_globs(tmp_path: Path, corpus: Path, tiny: SentenceEncoder):
    (corpus / "notes.weird").write_text("log")
    for filters, expected in [
        (Filters(include=("*.weird",)), {"notes.weird"}),
        (Filters(exclude=("0*", "b")), {"10.txt", "11.txt"}),
        (Filters(include=("a/1*",)), {"10.txt", "11.txt"}),
        (Filters(exclude=("a/*",), include=("*9.txt", "1*")), {"09.txt"}),
    ]:
        embed(tiny, corpus, tmp_path / "out.npz", filters=filters, resume=False)
        assert {Path(r.path).name for r in open_index(tmp_path / "out.npz").info.files} == expected


def test_text_field(tmp_path: Path, tiny: SentenceEncoder):
    (tmp_path / "r.jsonl").write_text('{"a": {"b": "log"}}\n')
    embed(tiny, tmp_path / "r.jsonl", tmp_path / "out.npz", read=ReadOptions(text_field="a.b"))
    assert rows(tmp_path / "out.npz")["r.jsonl"].text == ["log"]


def test_one_run_at_a_time(tmp_path: Path, corpus: Path, tiny: SentenceEncoder, monkeypatch: pytest.MonkeyPatch):
    encode_pieces = SentenceEncoder.encode_pieces

    def run_another(*args: Any, **kwargs: Any) -> Any:
        with pytest.raises(IndexFileError, match="Only one run at a time may write an index. Another one is writing"):
            embed(tiny, corpus, tmp_path / "out.npz")
        return encode_pieces(*args, **kwargs)

    monkeypatch.setattr(SentenceEncoder, "encode_pieces", run_another)
    assert embed(tiny, corpus, tmp_path / "out.npz").num_files == 12


@pytest.mark.parametrize(
    ("name", "prepare", "error", "message"),
    [
        ("out.csv", None, InputError, "An output must be a .parquet file, an .npz file, or a folder"),
        ("taken", lambda p: (p.mkdir(), (p / "x").touch()), IndexFileError, "must be new, empty or an index"),
        ("taken.npz", lambda p: p.mkdir(), IndexFileError, "must be a new path or an index. Received: .*, a folder"),
        ("taken", lambda p: p.touch(), IndexFileError, "must be a new path or an index. Received: .*, a file"),
        ("other.npz", lambda p: np.savez(p, x=1), IndexFileError, "must be written by `longspan embed`"),
        ("broken.npz", lambda p: p.write_bytes(b"PK"), IndexFileError, "An index must be a whole npz file"),
        ("broken.parquet", lambda p: p.write_bytes(b"PAR1"), IndexFileError, "An index must be a whole Parquet file"),
    ],
)
def test_bad_outputs(tmp_path: Path, corpus: Path, tiny: SentenceEncoder, name, prepare, error, message: str):
    if prepare is not None:
        prepare(tmp_path / name)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=message):
        embed(tiny, corpus, tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


def test_parquet_without_pyarrow(tmp_path: Path, corpus: Path, tiny: SentenceEncoder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingFrameworkError, match=r"need pyarrow.* pip install 'longspan\[documents\]'"):
        embed(tiny, corpus, tmp_path / "out.parquet")
    assert embed(tiny, corpus, tmp_path / "out.npz").num_files == 12


def test_bad_arguments(tmp_path: Path, corpus: Path, tiny: SentenceEncoder):
    with pytest.raises(InputError, match="others must be one of refuse, keep, drop. Received: others='lose'"):
        embed(tiny, corpus, tmp_path / "out.npz", others="lose")
    with pytest.raises(InputError, match="At least one file or folder must be given. Received: none"):
        embed(tiny, [], tmp_path / "out.npz")
    with pytest.raises(InputError, match="Each path must exist. Received: .*nowhere"):
        embed(tiny, tmp_path / "nowhere", tmp_path / "out.npz")
