"""DuckDB and LanceDB read the Parquet index as it is, and find what `longspan search` finds."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.tiny_encoder import WORDS, make_sentence_model

from longspan import SentenceEncoder
from longspan.embeddings.embed_files import embed_files
from longspan.search.index import open_index
from longspan.search.ranking import rank

pytestmark = pytest.mark.ecosystem


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An index of 40 files, a query's vector, and the files and scores that are best for it."""
    folder = tmp_path_factory.mktemp("databases")
    encoder = SentenceEncoder(make_sentence_model(folder / "model"))
    docs = folder / "docs"
    docs.mkdir()
    draw = np.random.default_rng(0)
    for number in range(40):
        (docs / f"{number:02}.txt").write_text(" ".join(draw.choice(WORDS, 12)))
    embed_files([docs], folder / "index.parquet", encoder=encoder)
    query = encoder.encode_query("open the log file", normalize=True)
    hits = rank(open_index(folder / "index.parquet"), query[None], 5)[0]
    return folder, query, [(hit.file.path, hit.text, hit.score) for hit in hits]


def test_duckdb(made):
    folder, query, expected = made
    sql = f"""
        SELECT path, text, list_inner_product(embedding, ?::FLOAT[]) AS score
        FROM '{folder / "index.parquet"}' WHERE line_start >= 1 ORDER BY score DESC LIMIT 5
    """
    found = duckdb.execute(sql, [query.tolist()]).fetchall()
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    assert [row[2] for row in found] == pytest.approx([row[2] for row in expected], abs=1e-6)


def test_lancedb(made):
    import lancedb  # takes long: not in every process that collects this file

    folder, query, expected = made
    table = lancedb.connect(folder / "lance").create_table("passages", pq.read_table(folder / "index.parquet"))
    found = table.search(query, vector_column_name="embedding").distance_type("cosine").limit(5).to_list()
    assert [(row["path"], row["text"]) for row in found] == [row[:2] for row in expected]
    assert [1 - row["_distance"] for row in found] == pytest.approx([row[2] for row in expected], abs=1e-5)
