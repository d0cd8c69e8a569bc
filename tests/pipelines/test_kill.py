"""`kill -9` at random moments of `longspan embed`: the next run goes on, with the result of an undisturbed one."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.hardening.conftest import IS_LONG
from tests.tiny_encoder import WORDS

from longspan.search.index import open_index

WORKER = [sys.executable, "-m", "tests.pipelines.embed_worker"]


@pytest.fixture(scope="module")
def big_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of very different sizes, one of them far larger than a shard, and records."""
    folder = tmp_path_factory.mktemp("kill") / "corpus"
    folder.mkdir()
    draw = random.Random(3)
    for number, size in enumerate([5, 2400, 0, 300, 60, 500, 20, 800]):
        words = draw.choices([*WORDS, "\n"], k=size)
        (folder / f"{number}.txt").write_text(" ".join(words))
    lines = [f'{{"text": "{" ".join(draw.choices(WORDS, k=draw.randint(1, 90)))}"}}' for _ in range(60)]
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def assert_equal_indexes(actual: Path, expected: Path) -> None:
    if actual.is_file():
        assert actual.read_bytes() == expected.read_bytes()
        return
    left, right = open_index(actual), open_index(expected)
    assert left.info == right.info
    left_rows, right_rows = (store.rows(0, left.info.num_passages) for store in (left, right))
    assert left_rows.text == right_rows.text
    assert np.array_equal(left_rows.embedding, right_rows.embedding)
    for name, column in left_rows.integers().items():
        assert np.array_equal(column, right_rows.integers()[name])


#: case -> the output, kills in the short form and in the long one, what is done with long documents
CASES = {
    "parquet": ("out.parquet", 4, 10, "window"),
    "npz": ("out.npz", 3, 8, "window"),
    "folder": ("out", 4, 8, "window"),
    "without long documents": ("out.parquet", 2, 4, "error"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, big_corpus: Path, tiny_dir: Path) -> Path:
    """A folder for each case with what its runs wrote; one process imports what all need."""
    root, work = tmp_path_factory.mktemp("runs"), []
    for case, (name, few, many, on_long) in CASES.items():
        (root / case).mkdir()
        line = [many if IS_LONG else few, root / case, name, "embed", big_corpus, "--model", tiny_dir]
        work.append([str(part) for part in [*line, "--batch-tokens", 64, "--quiet", "--on-long", on_long]])
    done = subprocess.run([*WORKER, json.dumps(work)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stderr)  # of whichever case fails
    return root


@pytest.mark.parametrize("case", CASES)
def test_killed_runs_resume_to_the_same_result(runs: Path, case: str):
    folder, (name, *_, on_long) = runs / case, CASES[case]
    assert not (folder / "failed").exists(), (folder / "failed").read_text()
    finished = [each for each in folder.iterdir() if each.name != "undisturbed"]
    assert folder / "killed" in finished
    for each in finished:
        assert_equal_indexes(each / name, folder / "undisturbed" / name)
        assert [path.name for path in each.iterdir()] == [name]
    rows = {Path(one.path).name: one.rows for one in open_index(folder / "undisturbed" / name).info.files}
    assert min(rows["0.txt"], rows["records.jsonl"]) > 0
    assert (rows["1.txt"] > 0) == (on_long == "window")
