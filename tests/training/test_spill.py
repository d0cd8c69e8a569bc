"""Documents and windows beyond a limit are on the disk, and train as those in memory do."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
from tests.training.conftest import SETTINGS, documents, read_csv, write_lines
from tests.training.test_classify import loop

from longspan.pipelines.long.rows import Row
from longspan.training import spill
from longspan.training.records import Record
from longspan.training.runs import finetune
from longspan.training.task import Example, Sample


@pytest.fixture
def tiny(monkeypatch):
    """MiB of 20 bytes."""
    usual = spill.Store.__init__

    def init(self, output, limit):
        usual(self, output, limit)
        self._limit = 20 * limit

    monkeypatch.setattr(spill.Store, "__init__", init)


def test_a_run_from_the_disk_equals_one_from_memory(encoder, tmp_path, tiny, monkeypatch):
    data = write_lines(tmp_path / "data.jsonl", [*documents(30, seed=1), {"text": "open"}])
    lists = []
    usual = spill.SpillingList._move
    monkeypatch.setattr(spill.SpillingList, "_move", lambda self: (lists.append(self), usual(self)))
    found = {}
    for memory in (10**6, 1):
        output = tmp_path / str(memory)
        report = finetune("classify", encoder, data, output, epochs=1, memory=memory, log_steps=1, **SETTINGS)
        assert len(lists) == (2 if memory == 1 else 0), "documents and windows"
        rows = [{**row, "tokens_per_second": ""} for row in read_csv(output / "log.csv")]
        found[memory] = (output / "model.safetensors").read_bytes(), rows, report.problems, report.documents
        assert len(rows) > 3
    assert found[1] == found[10**6]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "1000000", "data.jsonl"]
    windows = next(each for each in lists if isinstance(each[0], Sample))
    assert len(windows) > 30
    assert not windows[3].rows[0].ids.flags.owndata, "read where it lies in the file"


def test_the_file_is_where_the_output_will_be(encoder, tmp_path, tiny):
    (tmp_path / "disk").mkdir()
    store = spill.Store(tmp_path / "disk" / "not" / "yet", 1)
    windows = store.samples()
    one = loop(encoder, documents(12, seed=2))
    for sample in one._prepared.samples:
        windows.append(sample)
    assert windows.is_on_disk
    assert list((tmp_path / "disk").iterdir()) == []  # a file without a name
    assert os.fstat(windows._file.fileno()).st_dev == (tmp_path / "disk").stat().st_dev


def test_all_that_a_window_holds():
    draw = np.random.default_rng(0)
    ids, segments = draw.integers(9, size=(2, 7)).astype(np.int32)
    targets = {"labels": np.int64(3), "marks": np.float32([0.5, 1]), "none": np.zeros((0, 2), bool)}
    sample = Sample([Row(ids, segments, ids > 3), Row(ids[:3], segments[:3], None, np.array([2]))], targets, 0.25)
    found = spill.decode_sample(memoryview(spill.encode_sample(sample)))
    assert found.weight == 0.25
    assert found.length == 10
    for mine, theirs in zip(found.rows, sample.rows, strict=True):
        for part in ("ids", "segments", "is_global", "wanted"):
            np.testing.assert_array_equal(getattr(mine, part), getattr(theirs, part))
    assert found.targets.keys() == targets.keys()
    for name, value in targets.items():
        assert found.targets[name].dtype == value.dtype
        np.testing.assert_array_equal(found.targets[name], value)


@pytest.mark.parametrize(
    ("item", "target"),
    [
        ("open", None), (("a", "b"), 0.5), ({"question": "é", "context": "b"}, [(1, np.int64(2), "x")]),
        ("open", ["a", "b"]), ({"prompt": "a", "choices": ["b", "c"]}, 1),
    ],
)  # fmt: skip
def test_all_that_a_document_holds(item, target):
    example = Example(item, target, Record({"text": "open"}, "a.csv", 7))
    found = spill.decode_example(memoryview(spill.encode_example(example)))
    assert (found.item, found.target) == (item, target)
    assert (found.record.path, found.record.line) == ("a.csv", 7)


def test_a_list_that_moves_stays_a_list(tmp_path):
    words = [str(random.Random(number).random()) for number in range(50)]
    text = spill.SpillingList(tmp_path, 99, size=len, encode=str.encode, decode=lambda data: bytes(data).decode())
    for number, word in enumerate(words):
        text.append(word)
        assert len(text) == number + 1
        assert (text[-1], text[0]) == (word, words[0])
    assert text.is_on_disk
    assert list(text) == words
    assert text[3:40:7] == words[3:40:7]
    chosen = spill.Chosen(text, np.array([4, 2, 9]))
    assert (list(chosen), chosen[1:]) == ([words[4], words[2], words[9]], [words[2], words[9]])
    with pytest.raises(IndexError):
        text[50]
