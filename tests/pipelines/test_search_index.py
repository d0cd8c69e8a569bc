from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.tiny_encoder import make_sentence_model

from longspan import SentenceEncoder
from longspan.cli.main import app
from longspan.cli.running import run
from longspan.embeddings.embed_files import EmbedOptions, embed_files
from longspan.embeddings.search_index import load_encoder_of, search_index
from longspan.errors import CheckpointNotFoundError, InputError
from longspan.search.index import open_index
from longspan.search.passages import IndexFileError, PassageStore


@pytest.fixture
def index(tmp_path: Path, corpus: Path, tiny: SentenceEncoder) -> PassageStore:
    (corpus / "page.html").write_text("<p>open</p>\n\n<p>write the\nlog</p>")
    (corpus / "records.jsonl").write_text('{"text": "python\\ndata model"}\n')
    embed_files([corpus], tmp_path / "out.npz", encoder=tiny)
    return open_index(tmp_path / "out.npz")


def test_hits_are_ranked_by_cosine_and_stand_where_they_say(index: PassageStore, tiny: SentenceEncoder):
    queries = ["open the log file", "data model"]
    for query, matches in zip(queries, search_index(index, queries, encoder=tiny, top_k=6), strict=True):
        assert len(matches) == 6
        scores = [match.hit.score for match in matches]
        assert scores == sorted(scores, reverse=True)
        for match in matches:
            hit = match.hit
            expected = tiny.encode(query) @ tiny.encode(hit.text)
            assert abs(hit.score - expected) < 1e-5
            if hit.file.path.endswith(".txt"):
                text = Path(hit.file.path).read_text()
                assert text[hit.char_start : hit.char_end] == hit.text
                assert match.has_line_numbers
                assert match.lines[match.best] in text.split("\n")[match.line - 1]


def test_the_marked_line_is_the_nearest_one(index: PassageStore, tiny: SentenceEncoder):
    query = "search window"
    for match in search_index(index, [query], encoder=tiny, top_k=10)[0]:
        scores = [
            float(tiny.encode(query) @ tiny.encode(line.strip())) if line.strip() else -np.inf for line in match.lines
        ]
        assert scores[match.best] == pytest.approx(max(scores), abs=1e-5)


def test_lines_of_texts_that_are_not_the_file_itself(index: PassageStore, tiny: SentenceEncoder):
    matches = {Path(m.hit.file.path).name: m for m in search_index(index, ["x"], encoder=tiny, top_k=1000)[0]}
    page, record = matches["page.html"], matches["records.jsonl"]
    assert page.lines == ("open", "write the log")
    assert (page.hit.line_start, page.hit.line_end, page.has_line_numbers, page.line) == (1, 4, False, 1)
    assert record.lines == ("python", "data model")
    assert (record.line, record.has_line_numbers) == (1, False)


@pytest.mark.parametrize("name", ["out.parquet", "out.npz", "out"])
def test_no_query_normalises_what_was_stored_at_length_one(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    """The model leaves lengths as they are; an index without the mark, as others write it, is ranked alike."""
    encoder = SentenceEncoder(make_sentence_model(tmp_path / "model", normalize=False))
    queries = ["open the log file", "data model"]
    found = {}
    for folder, normalize in [("raw", False), ("unit", True)]:
        (tmp_path / folder).mkdir()
        options = EmbedOptions() if normalize else EmbedOptions(normalize=False)
        embed_files([corpus], tmp_path / folder / name, encoder=encoder, options=options)
        store = open_index(tmp_path / folder / name)
        assert store.info.settings["normalized"] is normalize
        norms = np.linalg.norm(np.concatenate([block for _, block in store.embedding_blocks()]), axis=1)
        assert np.allclose(norms, 1.0, rtol=0, atol=1e-6) == normalize
        if not normalize:
            del store.info.settings["normalized"]
        with monkeypatch.context() as patch:
            if normalize:
                patch.setattr("longspan.search.candidates.row_norms", None)  # no norm of a stored vector is taken
            found[folder] = search_index(store, queries, encoder=encoder, top_k=8)
    for raw, unit in zip(found["raw"], found["unit"], strict=True):
        assert [match.hit.row for match in raw] == [match.hit.row for match in unit]
        assert [match.hit.score for match in raw] == pytest.approx([match.hit.score for match in unit], abs=1e-6)


#: what a query may not import: other frameworks and formats, the readers of documents, the writers of text in files
NOT_FOR_A_QUERY = {
    "jax", "keras", "tensorflow", "transformers", "pandas", "pyarrow", "pypdf", "h5py", "huggingface_hub",
    "torch._dynamo", "torch._inductor", "sympy", "longspan.documents.readers", "longspan.embeddings.embed_files",
    "longspan.pipelines.base", "longspan.to_long", "longspan.models.longformer.lengthen",
}  # fmt: skip


def test_a_query_imports_what_it_needs(tmp_path: Path, corpus: Path, tiny_dir: Path):
    embed_files([corpus], tmp_path / "out.npz", encoder=SentenceEncoder(tiny_dir))
    code = "import sys; from longspan.cli.main import app; app(sys.argv[1:], standalone_mode=False)"
    shown = f"{code}; print(*sys.modules, sep='\\n', file=sys.stderr)"
    command = [sys.executable, "-c", shown, "search", str(tmp_path / "out.npz"), "log"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = set(done.stderr.split("\n"))
    assert "longspan.search.npz" in imported
    assert "log" in done.stdout
    assert not imported & NOT_FOR_A_QUERY


def test_no_queries_no_answers(index: PassageStore, tiny: SentenceEncoder):
    assert search_index(index, [], encoder=tiny) == []


@pytest.mark.parametrize("query", ["", "  \n"])
def test_empty_queries_are_refused(index: PassageStore, tiny: SentenceEncoder, query: str):
    with pytest.raises(InputError, match="A query must hold text. Received: "):
        search_index(index, ["log", query], encoder=tiny)


def test_another_model_is_refused(tmp_path: Path, index: PassageStore):
    other = SentenceEncoder(make_sentence_model(tmp_path / "other", seed=3))
    with pytest.raises(IndexFileError, match="must be encoded by the model of the index, .*. Received: .*other, whose"):
        search_index(index, ["log"], encoder=other)


def test_the_index_finds_its_model(index: PassageStore, tiny: SentenceEncoder, tiny_dir: Path, tmp_path: Path):
    assert load_encoder_of(index.info).fingerprint == tiny.fingerprint
    assert load_encoder_of(index.info, str(tiny_dir), device="cpu").fingerprint == tiny.fingerprint
    index.info.settings["model"] = str(tmp_path / "moved")
    with pytest.raises(CheckpointNotFoundError, match="The index names this model; --model says where it is now"):
        load_encoder_of(index.info)
    with pytest.raises(CheckpointNotFoundError, match="elsewhere"):
        load_encoder_of(index.info, str(tmp_path / "elsewhere"))


def test_words_parts_and_paths(tmp_path: Path, corpus: Path, tiny: SentenceEncoder, capsys: pytest.CaptureFixture):
    (corpus / "errors.md").write_text("When E1234 appears\nrestart\n")
    output = tmp_path / "out.parquet"
    embed_files([corpus], output, encoder=tiny, options=EmbedOptions())
    command = ["search", str(output), "E1234", "-k", "3", "--hybrid", "--ann", "hnsw"]
    assert run(app, command) == 0
    shown = capsys.readouterr()
    assert "words 1" in shown.out
    assert [line.split(": building ")[1] for line in shown.err.splitlines()] == [
        ".out.parquet.hnsw",
        ".out.parquet.words",
    ]
    assert run(app, [*command, "--path", "*.md", "--json"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    [best] = [match for match in json.loads(shown.out)["matches"] if "E1234" in match["text"]]
    assert best["ranks"]["words"] == 1
    assert all(match["path"].endswith(".md") for match in json.loads(shown.out)["matches"])
    found = search_index(open_index(output), ["E1234"], encoder=tiny, top_k=3, hybrid=True, ann="hnsw", paths=["*.md"])
    assert found[0][0].hit.score == pytest.approx(json.loads(shown.out)["matches"][0]["score"], abs=1e-5)
    assert run(app, [*command, "--path", "nothing"]) == 1
    assert "must match a file of the index" in capsys.readouterr().err
    # a later run takes nothing of this for documents
    report = embed_files([tmp_path], tmp_path / "second.npz", encoder=tiny)
    assert not [record.path for record in open_index(report.output).info.files if ".out.parquet" in record.path]
