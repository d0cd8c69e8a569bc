"""Index files: what is written is read back, in any slice; damage is named."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from longspan.documents.document import Problem
from longspan.search.index import is_index, open_index
from longspan.search.journal import Journal, Part, Slice, Step
from longspan.search.npz import write_npz
from longspan.search.parquet import write_parquet
from longspan.search.passages import INTEGER_COLUMNS, FileRecord, IndexFileError, IndexInfo, Passages, PassageStore
from longspan.search.shards import atomic_write
from longspan.search.writer import FinalFile, IndexWriter, lock_file

DIMENSION = 6
COUNTS = [3, 0, 5000, 17]
OUTPUTS = ["out.parquet", "out.npz", "out.index"]


def make_passages(count: int, seed: int) -> Passages:
    draw = np.random.default_rng(seed)
    columns = {name: draw.integers(0, 1000, count).astype(dtype) for name, dtype in INTEGER_COLUMNS.items()}
    texts = ["", "plain", "é日\U0001f600", "line\nline\r\n"] * (count // 4 + 1)
    return Passages(
        text=texts[:count], embedding=draw.standard_normal((count, DIMENSION)).astype(np.float32), **columns
    )


def assert_same(left: Passages, right: Passages, *, embeddings: bool = True) -> None:
    assert left.text == right.text
    for name, column in left.integers().items():
        assert column.dtype == INTEGER_COLUMNS[name]
        assert np.array_equal(column, right.integers()[name])
    if embeddings:
        assert np.array_equal(left.embedding, right.embedding)


@pytest.fixture(scope="module")
def everything() -> Passages:
    return Passages.concatenate([make_passages(count, seed) for seed, count in enumerate(COUNTS)])


@pytest.fixture(scope="module")
def records() -> list[FileRecord]:
    problems = (Problem("2.txt", "no valid JSON", 7),)
    return [
        FileRecord(f"{i}.txt", f"d{i}", 10 * i, "line", 1, count, count, ("note",), problems if i == 2 else ())
        for i, count in enumerate(COUNTS)
    ]


def write(path: Path, everything: Passages, records: list[FileRecord]) -> PassageStore:
    with IndexWriter(path, settings={"model": "m", "x": 1}, dimension=DIMENSION, shard_tokens=5) as writer:
        row = 0
        for record in records:
            part = Part(record.path, 0, Slice("", 0, record.rows))
            passages = everything.slice(row, row + record.rows) if record.rows else None
            writer.append(Step((part,) if record.rows else (), (record,), None), passages)
            row += record.rows
        files = writer.files()
        writer.finish([FinalFile(record, files[record.path].slices) for record in records])
    return open_index(path)


@pytest.mark.parametrize("name", OUTPUTS)
def test_round_trip(tmp_path: Path, everything: Passages, records: list[FileRecord], name: str):
    store = write(tmp_path / name, everything, records)
    assert store.info.settings == {"model": "m", "x": 1}
    assert store.info.files == records
    assert store.info.num_passages == len(everything)
    for start, stop in [(0, 1), (0, 3), (2, 5), (4000, 4200), (4095, 4097), (0, len(everything)), (5010, 5020)]:
        assert_same(store.rows(start, stop), everything.slice(start, stop))
    chosen = [5019, 0, 4096, 4095, 3, 0]
    taken = Passages.concatenate([everything.slice(row, row + 1) for row in chosen])
    assert_same(store.take(chosen), taken, embeddings=False)
    blocks = list(store.embedding_blocks())
    assert [start for start, _ in blocks] == np.cumsum([0, *(len(b) for _, b in blocks)])[:-1].tolist()
    assert np.array_equal(np.concatenate([block for _, block in blocks]), everything.embedding)
    assert is_index(tmp_path / name)


@pytest.mark.parametrize("name", OUTPUTS[:2])
def test_same_passages_in_other_blocks_give_the_same_bytes(
    tmp_path: Path, everything: Passages, records: list[FileRecord], name: str
):
    write(tmp_path / name, everything, records)
    info = IndexInfo({"model": "m", "x": 1}, DIMENSION, str(Path.cwd()), records)

    def blocks():
        row = 0
        for record in records:
            for start in range(row, row + record.rows, 700):
                yield record, everything.slice(start, min(start + 700, row + record.rows))
            row += record.rows

    other = tmp_path / f"other-{name}"
    if name.endswith("npz"):
        write_npz(other, tmp_path / "scratch", info, blocks)
    else:
        write_parquet(other, tmp_path / "scratch", info, blocks())
    assert other.read_bytes() == (tmp_path / name).read_bytes()


def test_parquet_is_plain_for_other_tools(tmp_path: Path, everything: Passages, records: list[FileRecord]):
    import pyarrow.parquet as pq

    write(tmp_path / "out.parquet", everything, records)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["path", *INTEGER_COLUMNS, "unit", "text", "embedding"]
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float not null>[6]"
    assert table["path"].to_pylist()[:4] == ["0.txt", "0.txt", "0.txt", "2.txt"]
    assert json.loads(table.schema.metadata[b"longspan"])["index"]["dimension"] == DIMENSION


def test_npz_is_plain_for_numpy(tmp_path: Path, everything: Passages, records: list[FileRecord]):
    write(tmp_path / "out.npz", everything, records)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["embedding"], everything.embedding)
        assert arrays["paths"][arrays["file"][3]] == "2.txt"
        start, stop = arrays["text_ends"][2:4]
        assert bytes(arrays["text"][start:stop]).decode() == everything.text[2]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def _set_version(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 9}))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("out.parquet", _cut, "An index must be a whole Parquet file"),
        ("out.npz", _cut, "An index must be a whole npz file"),
        ("out.index", lambda p: _cut(p / "manifest.json"), "manifest.json of an index must be whole JSON"),
        ("out.index", lambda p: _set_version(p / "manifest.json"), "An index folder must be written by"),
        ("out.index", lambda p: (p / "manifest.json").unlink(), "An index folder must hold manifest.json.*it has none"),
        ("out.parquet", lambda p: p.unlink(), "An index must exist. Received: .*out.parquet"),
        ("out.index", lambda p: p.rename(p.with_name("other")), "An index must exist. Received: .*out.index"),
    ],
)  # fmt: skip
def test_damage(tmp_path: Path, everything: Passages, records: list[FileRecord], name: str, damage, message: str):
    write(tmp_path / name, everything, records)
    damage(tmp_path / name)
    with pytest.raises(IndexFileError, match=message):
        open_index(tmp_path / name)


def _edit(values: dict, path: str, value: object) -> dict:
    *keys, last = path.split(".")
    inner = values
    for key in keys:
        inner = inner[int(key) if key.isdigit() else key]
    inner[int(last) if last.isdigit() else last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("slices.0.0.0", "../../elsewhere", "must say where its passages are"),
        ("slices.0.0.2", 2, "must say where its passages are. Received: .*0.txt has other passages"),
        ("slices.0.0.1", -1, "must say where its passages are"),
        ("slices.0", [[1]], "must say where its passages are"),
        ("slices", None, "must say where its passages are"),
        ("index.files.0.rows", -3, "An index must say what it holds"),
        ("index.files.0.rows", "3", "An index must say what it holds"),
        ("index.files.0.problems", 3, "An index must say what it holds"),
        ("index.dimension", {}, "An index must say what it holds"),
        ("index", [], "An index must say what it holds"),
    ],
)
def test_edited_manifests(
    tmp_path: Path, everything: Passages, records: list[FileRecord], path: str, value: object, message: str
):
    write(tmp_path / "out", everything, records)
    manifest = tmp_path / "out" / "manifest.json"
    manifest.write_text(json.dumps(_edit(json.loads(manifest.read_text()), path, value)))
    with pytest.raises(IndexFileError, match=message):
        open_index(tmp_path / "out")


def test_vectors_of_npz_stay_on_disk_and_are_checked(tmp_path: Path, everything: Passages, records: list[FileRecord]):
    path = tmp_path / "out.npz"
    store = write(path, everything, records)
    (_, block) = next(store.embedding_blocks())
    assert isinstance(block.base, np.memmap) or isinstance(block, np.memmap)
    data = bytearray(path.read_bytes())
    at = data.index(everything.embedding[4000].tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(IndexFileError, match="An index must be a whole npz file. Received: .*checksum of embedding"):
        open_index(path)


def test_vectors_of_parquet_lie_in_the_file_as_a_search_reads_them(
    tmp_path: Path, everything: Passages, records: list[FileRecord]
):
    import pyarrow.parquet as pq

    write(tmp_path / "out.parquet", everything, records)
    group = pq.ParquetFile(tmp_path / "out.parquet").metadata.row_group(0)
    columns = {column.path_in_schema: column for column in map(group.column, range(group.num_columns))}
    vectors = columns.pop("embedding.list.element")
    assert vectors.compression == "UNCOMPRESSED"
    assert "PLAIN" in vectors.encodings
    assert not vectors.has_dictionary_page
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    assert everything.embedding[5].tobytes() in (tmp_path / "out.parquet").read_bytes()


def test_a_write_that_fails_leaves_nothing_but_what_was_there(tmp_path: Path):
    (tmp_path / "out").write_bytes(b"old")

    def fill() -> None:
        with atomic_write(tmp_path / "out", tmp_path / "scratch") as file:
            file.write(b"new")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fill()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_bytes() == b"old"


def test_a_lock_whose_file_was_removed_is_no_lock(tmp_path: Path):
    path = tmp_path / "work" / "lock"
    path.parent.mkdir()
    held = lock_file(path, tmp_path / "out")
    with pytest.raises(IndexFileError, match="Only one run at a time may write an index. Another one is writing .*out"):
        lock_file(path, tmp_path / "out")
    path.unlink()
    path.parent.rmdir()
    lock_file(path, tmp_path / "out").close()
    assert path.exists()
    held.close()


def test_missing_and_cut_shards(tmp_path: Path, everything: Passages, records: list[FileRecord]):
    store = write(tmp_path / "out", everything, records)
    shards = sorted((tmp_path / "out" / "shards").iterdir())
    assert [path.name for path in shards] == ["000000.safetensors", "000001.safetensors", "000002.safetensors"]
    _cut(shards[1])
    shards[2].unlink()
    for row in (100, 5019):
        with pytest.raises(IndexFileError, match="A shard of an index must be a whole safetensors file"):
            store.rows(row, row + 1)


def test_other_files_are_no_indexes(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("text")
    for name, message in [("a.parquet", "A Parquet index must be written by"), ("a.txt", "must be a .parquet file")]:
        with pytest.raises(IndexFileError, match=message):
            open_index(tmp_path / name)


def test_metadata_that_nests_too_deep(tmp_path: Path, everything: Passages, records: list[FileRecord]):
    import pyarrow as pa
    import pyarrow.parquet as pq

    deep = "[" * 100_000
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({"longspan": deep}), tmp_path / "out.parquet")
    np.savez(tmp_path / "out.npz", metadata=np.array(deep))
    write(tmp_path / "out.index", everything, records)
    (tmp_path / "out.index" / "manifest.json").write_text(deep)
    for kind in ("parquet", "npz", "index"):
        with pytest.raises(IndexFileError, match="must be .*whole.*nests too deep"):
            open_index(tmp_path / f"out.{kind}")


# The journal


def make_journal(folder: Path) -> Journal:
    journal = Journal(folder, {"settings": {}, "shard_tokens": 1, "fresh": False})
    for number in range(3):
        record = FileRecord(f"{number}.txt", "d", 1, rows=2)
        step = Step((Part(record.path, 0, Slice("", 0, 2)),), (record,), None)
        journal.append(step, make_passages(2, number))
    return journal


def reopen(folder: Path) -> Journal:
    return Journal(folder, {"settings": {"other": 1}, "shard_tokens": 9, "fresh": True})


def test_journals_are_read_back(tmp_path: Path):
    written = make_journal(tmp_path)
    read = reopen(tmp_path)
    assert read.header == {"settings": {}, "shard_tokens": 1, "fresh": False}
    assert read.steps == written.steps
    assert {path: parts.slices for path, parts in read.files().items()} == {
        f"{n}.txt": [Slice(f"{n:06}", 0, 2)] for n in range(3)
    }


@pytest.mark.parametrize("torn", [b'{"shard": "0000', b"\0\0\0\0\n", b"[1]\n"])
@pytest.mark.filterwarnings("ignore:.* is damaged at line 5")
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: bytes):
    make_journal(tmp_path)
    path = tmp_path / "journal.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert len(reopen(tmp_path).steps) == 3
    assert path.read_bytes() == whole


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("change", ["edit", "remove"])
def test_changed_lines_are_named_and_done_again(tmp_path: Path, step: int, change: str):
    make_journal(tmp_path)
    path = tmp_path / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[step] = lines[step].replace(b'"rows": 2', b'"rows": 1') if change == "edit" else b""
    path.write_bytes(b"".join(lines))
    if change == "remove" and step == 3:  # as if it had not been written yet
        assert list(reopen(tmp_path).files()) == ["0.txt", "1.txt"]
        return
    with pytest.warns(UserWarning, match=f"journal.jsonl is damaged at line {step + 1}: what follows is done again"):
        journal = reopen(tmp_path)
    assert list(journal.files()) == [f"{number}.txt" for number in range(step - 1)]
    assert len(path.read_bytes().splitlines()) == step


def test_a_damaged_shard_undoes_its_step_and_those_after_it(tmp_path: Path):
    make_journal(tmp_path)
    shard = tmp_path / "shards" / "000001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    journal = reopen(tmp_path)
    assert list(journal.files()) == ["0.txt"]
    journal.append(Step((), (FileRecord("1.txt", "d", 1),), None), None)
    assert list(reopen(tmp_path).files()) == ["0.txt", "1.txt"]


def test_a_file_begun_anew_forgets_its_old_rows(tmp_path: Path):
    journal = make_journal(tmp_path)
    journal.append(
        Step((Part("1.txt", 0, Slice("", 0, 1)),), (FileRecord("1.txt", "new", 1, rows=1),), None), make_passages(1, 9)
    )
    journal.append(Step((), (FileRecord("2.txt", "new", 0),), None), None)
    files = reopen(tmp_path).files()
    assert files["1.txt"].slices == [Slice("000003", 0, 1)]
    assert files["2.txt"].slices == []
    assert files["2.txt"].record.digest == "new"


def begin(path: Path, *, resume: bool = True) -> IndexWriter:
    return IndexWriter(path, settings={}, dimension=DIMENSION, shard_tokens=5, resume=resume)


@pytest.mark.parametrize("left", [["lock"], ["shards"], ["lock", "shards", "shards/000000.safetensors"]])
def test_what_a_run_leaves_that_had_no_journal_yet_is_in_nobodys_way(tmp_path: Path, left: list[str]):
    """Killed at its first step; with `--no-resume`, shards of an earlier run lie there."""
    for name in left:
        path = tmp_path / "out" / name
        path.parent.mkdir(exist_ok=True)
        path.mkdir() if name == "shards" else path.touch()
    with begin(tmp_path / "out") as writer:
        writer.finish([])
    assert open_index(tmp_path / "out").info.num_passages == 0
    assert list((tmp_path / "out" / "shards").iterdir()) == []
    (tmp_path / "foreign" / "shards").mkdir(parents=True)
    (tmp_path / "foreign" / "shards" / "000000.safetensors").touch()
    with pytest.raises(IndexFileError, match="which holds other files"):
        begin(tmp_path / "foreign")


@pytest.mark.parametrize("resume", [True, False])
def test_a_journal_that_cannot_be_written_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool):
    output = tmp_path / "out"
    if not resume:
        make_journal(output)

    def fail(journal: Journal) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "_begin", fail)
        with pytest.raises(OSError, match="No space left on device"), begin(output, resume=resume):
            pass
    assert output.exists() != resume  # a new folder is gone, shards of an earlier run are not
    with begin(output) as writer:
        writer.finish([])
    assert list((output / "shards").iterdir()) == []


def test_foreign_journals_are_refused(tmp_path: Path):
    (tmp_path / "journal.jsonl").write_text('{"format": "other"}\n')
    with pytest.raises(IndexFileError, match="A journal must be of format longspan-journal, version 1"):
        reopen(tmp_path)


def test_a_search_imports_no_pandas(tmp_path: Path, everything: Passages, records: list[FileRecord]):
    """It takes longer to import than the search itself."""
    write(tmp_path / "out.parquet", everything, records)
    code = (
        "import sys; from longspan.search.index import open_index; store = open_index(sys.argv[1]);"
        "list(store.embedding_blocks()), store.take([5, 0]), store.rows(0, 2);"
        "print(sorted({'pandas', 'pyarrow.compute', 'torch'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out.parquet")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == "[]"


def test_parquet_with_holes_is_refused(tmp_path: Path, everything: Passages, records: list[FileRecord]):
    import pyarrow as pa
    import pyarrow.parquet as pq

    write(tmp_path / "out.parquet", everything, records)
    table = pq.read_table(tmp_path / "out.parquet")
    place = table.column_names.index("char_start")
    holes = pa.array([None] * len(table), pa.int64())
    pq.write_table(table.set_column(place, "char_start", holes), tmp_path / "out.parquet")
    with pytest.raises(IndexFileError, match="must hold a number in each row"):
        open_index(tmp_path / "out.parquet").take([0])
