"""Shards of a job, and joining them: the same rows as one run alone."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny_encoder import make_sentence_model

from longspan import SentenceEncoder
from longspan.cli.main import app
from longspan.cli.running import run
from longspan.documents.file_shards import FileShard
from longspan.documents.walk import SourceFile
from longspan.embeddings.embed_files import EmbedOptions, EmbedReport, embed_files
from longspan.errors import InputError
from longspan.search.index import open_index
from longspan.search.merge import merge_indexes
from longspan.search.passages import IndexFileError

OUTPUTS = ["out.parquet", "out.npz", "out"]


def embed(encoder: SentenceEncoder, paths: Path, output: Path, shard: str | None = None, **options: Any) -> EmbedReport:
    part = None if shard is None else FileShard.parse(shard)
    return embed_files([paths], output, encoder=encoder, options=EmbedOptions(batch_tokens=256, shard=part, **options))


@pytest.fixture
def shards(tmp_path: Path, corpus: Path, tiny: SentenceEncoder) -> list[Path]:
    """Three shards in three formats; one file holds many documents, one cannot be read."""
    records = [json.dumps({"text": f"log number {number}"}) for number in range(30)]
    (corpus / "records.jsonl").write_text("\n".join([*records, "no json"]))
    (corpus / "a" / "broken.txt").write_bytes(b"\0\1\2")
    paths = [tmp_path / f"part-{number}" / name for number, name in enumerate(OUTPUTS, start=1)]
    for number, path in enumerate(paths, start=1):
        path.parent.mkdir()
        embed(tiny, corpus, path, f"{number}/3")
    return paths


@pytest.mark.parametrize("sizes", [[], [0], [0] * 9, [5] * 12, [1, 0, 90, 4, 0, 7, 7]])
@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_shards_one_after_another_are_the_files(sizes: list[int], count: int):
    files = [SourceFile(Path(f"{number}"), f"{number}", "text", size) for number, size in enumerate(sizes)]
    shares = [FileShard(number + 1, count).take(files) for number in range(count)]
    assert [file for share in shares for file in share] == files


def test_shards_have_nearly_equal_bytes():
    draw = random.Random(3)
    files = [SourceFile(Path(f"{n}"), f"{n}", "text", draw.randrange(1000)) for n in range(500)]
    sizes = [sum(file.size for file in FileShard(number, 7).take(files)) for number in range(1, 8)]
    assert max(sizes) - min(sizes) < 2 * 1000


@pytest.mark.parametrize("name", OUTPUTS)
def test_merged_shards_are_the_index_of_one_run(
    tmp_path: Path, corpus: Path, tiny: SentenceEncoder, shards: list[Path], name: str, monkeypatch: pytest.MonkeyPatch
):
    assert all(open_index(path).info.num_passages for path in shards)
    embed(tiny, corpus, tmp_path / "single.npz")
    monkeypatch.setattr("longspan.search.merge._BLOCK_ROWS", 7)  # files go on over blocks
    info = merge_indexes([shards[1], shards[2], shards[0]], tmp_path / name)
    single, merged = open_index(tmp_path / "single.npz"), open_index(tmp_path / name)
    assert merged.info == info == single.info
    one, other = (store.rows(0, info.num_passages) for store in (single, merged))
    assert one.text == other.text
    for column, values in one.integers().items():
        assert np.array_equal(values, other.integers()[column]), column
    np.testing.assert_allclose(other.embedding, one.embedding, rtol=0, atol=1e-6)
    again = embed(tiny, corpus, tmp_path / name)
    assert (again.num_new_files, again.num_reused_files) == (1, 13)  # the broken file is tried again
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"corpus", "single.npz", name, "part-1", "part-2", "part-3"}


def test_more_shards_than_files(tmp_path: Path, corpus: Path, tiny: SentenceEncoder):
    paths = [tmp_path / f"{number}.npz" for number in range(1, 6)]
    for number, path in enumerate(paths, start=1):
        embed(tiny, corpus / "a" / "10.txt", path, f"{number}/5")
    assert sorted(len(open_index(path).info.files) for path in paths) == [0, 0, 0, 0, 1]
    assert len(merge_indexes(paths, tmp_path / "out.npz").files) == 1


def test_a_shard_takes_its_files_again_when_others_changed(
    tmp_path: Path, corpus: Path, tiny: SentenceEncoder, shards: list[Path]
):
    with pytest.raises(IndexFileError, match="shard was '2/3', is now '1/3'"):
        embed(tiny, corpus, shards[1], "1/3")
    (corpus / "a" / "02.txt").write_text("log file " * 4000)  # files after it move to other shards
    first = embed(tiny, corpus, shards[0], "1/3")
    assert (first.num_new_files, first.num_dropped_files) != (0, 0)
    with pytest.raises(IndexFileError, match="Shards must have found the same files.*run each again"):
        merge_indexes(shards, tmp_path / "out.npz")
    for number, path in enumerate(shards, start=1):
        embed(tiny, corpus, path, f"{number}/3")
    assert len(merge_indexes(shards, tmp_path / "out.npz").files) == 14


def test_an_interrupted_shard_goes_on_as_itself_only(
    tmp_path: Path, corpus: Path, tiny: SentenceEncoder, monkeypatch: pytest.MonkeyPatch
):
    encode_pieces, calls = SentenceEncoder.encode_pieces, iter([True])

    def crash_later(*args: Any, **kwargs: Any) -> Any:
        if next(calls, False):
            return encode_pieces(*args, **kwargs)
        raise KeyboardInterrupt

    def embed_finely(shard: str) -> EmbedReport:
        options = EmbedOptions(batch_tokens=48, shard=FileShard.parse(shard))
        return embed_files([corpus], tmp_path / "out.npz", encoder=tiny, options=options)

    with monkeypatch.context() as patch:
        patch.setattr(SentenceEncoder, "encode_pieces", crash_later)
        with pytest.raises(KeyboardInterrupt):
            embed_finely("1/2")
    with pytest.raises(IndexFileError, match="The interrupted run that writes .* shard was '1/2', is now '2/2'"):
        embed_finely("2/2")
    report = embed_finely("1/2")
    assert 0 < report.num_new_tokens < report.num_tokens


def test_what_does_not_belong_together_is_refused(
    tmp_path: Path, corpus: Path, tiny: SentenceEncoder, shards: list[Path]
):
    other = SentenceEncoder(make_sentence_model(tmp_path / "other-model", seed=5))
    embed(other, corpus, tmp_path / "other.npz", "3/3")
    embed(tiny, corpus, tmp_path / "whole.npz")
    embed(tiny, corpus, tmp_path / "fourth.npz", "4/4")
    embed(tiny, corpus / "b", tmp_path / "b.npz")
    output = tmp_path / "out.npz"
    for parts, message in [
        ([*shards[:2], tmp_path / "other.npz"], "same settings. Received: .*weights is '.*' and '.*'"),
        (shards[:2], r"All shards must be given.*\(1/3\).*\(2/3\), without 3/3"),
        ([*shards, tmp_path / "fourth.npz"], r"Shards must be those of one job, each once.*\(4/4\)"),
        ([*shards, tmp_path / "whole.npz"], "Shards must be merged with shards only. Received: .*whole.npz"),
        ([tmp_path / "whole.npz", tmp_path / "b.npz"], r"must come from one part. Received: .*\.txt, in .*whole"),
        ([shards[0], shards[1], tmp_path / "part-1" / ".." / "part-2" / OUTPUTS[1]], "Each part must be named once"),
        ([], "At least one index must be given"),
    ]:
        with pytest.raises(InputError, match=message):
            merge_indexes(parts, output)
        assert not output.exists()


def test_indexes_of_different_files_come_in_the_order_given(
    tmp_path: Path, corpus: Path, tiny: SentenceEncoder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(corpus)
    embed(tiny, Path("b"), tmp_path / "b.npz")
    monkeypatch.chdir(corpus / "a")
    embed(tiny, Path(), tmp_path / "a.npz")
    merged = merge_indexes([tmp_path / "b.npz", tmp_path / "a.npz"], tmp_path / "out.npz")
    paths = [str(corpus / "b" / f"{n:02}.txt") for n in range(0, 12, 3)]
    paths += [str(corpus / "a" / f"{n:02}.txt") for n in range(12) if n % 3]
    assert [record.path for record in merged.files] == paths


def test_rows_that_the_metadata_does_not_name_are_refused(tmp_path: Path, corpus: Path, tiny: SentenceEncoder):
    import pyarrow.parquet as pq

    embed(tiny, corpus, tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    pq.write_table(table.slice(3), tmp_path / "out.parquet")
    with pytest.raises(
        IndexFileError, match=r"must hold the \d+ passages of the files that it names. Received: .*rows"
    ):
        merge_indexes([tmp_path / "out.parquet"], tmp_path / "merged.npz")


def test_the_command_line(tmp_path: Path, tiny_dir: Path, corpus: Path, capsys: pytest.CaptureFixture[str]):
    parts = [str(tmp_path / f"{number}.npz") for number in (1, 2)]
    for number, part in enumerate(parts, start=1):
        assert (
            run(app, ["embed", str(corpus), "-o", part, "--model", str(tiny_dir), "-q", "--shard", f"{number}/2"]) == 0
        )
    output = str(tmp_path / "out.npz")
    info = replace(
        open_index(parts[0]).info, files=[*open_index(parts[0]).info.files, *open_index(parts[1]).info.files]
    )
    assert run(app, ["merge", *parts, "--output", output]) == 0
    assert f"out.npz: 12 files, {info.num_passages} passages" in capsys.readouterr().out
    assert run(app, ["merge", *parts, "--output", output, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["output"], shown["num_parts"], shown["num_files"]) == (output, 2, 12)
    assert shown["num_passages"] == info.num_passages
