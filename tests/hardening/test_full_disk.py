"""A disk that fills up while something is saved: an error that says so, old files stay, no new one is left."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.pipelines.task_models import make_task_model
from tests.tiny_encoder import make_sentence_model

import longspan
from longspan.checkpoints.convert import convert
from longspan.to_long import lengthen_checkpoint

#: Most bytes of a file: that of the settings fits, weights and vocabulary do not.
SIZE = 1500


@pytest.fixture(scope="module")
def saves(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> dict[str, Callable[[Path], Any]]:
    """What saves something into a folder."""
    root = tmp_path_factory.mktemp("sources")
    source = make_task_model(root / "model", "feature-extraction", "wordpiece", minilm_dir)
    encoder = longspan.SentenceEncoder(make_sentence_model(root / "encoder"))
    return {
        "model": longspan.BertModel.from_pretrained(source).save_pretrained,
        "tokenizer": longspan.AutoTokenizer.from_pretrained(source).save_pretrained,
        "encoder": encoder.save_pretrained,
        "convert": lambda folder: convert(root / "encoder", folder, overwrite=True),
        "lengthen": lambda folder: lengthen_checkpoint(root / "encoder", folder, max_length=256, attention_window=16),
    }


@contextmanager
def full_disk() -> Iterator[None]:
    """Let a file of more than some bytes be an error, of the kind of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["model", "tokenizer", "encoder", "convert", "lengthen"])
def test_what_was_there_stays_and_nothing_is_left(saves: Any, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "saved"
    with full_disk(), pytest.raises(OSError, match="File too large"):
        saves[name](folder)
    assert list(tmp_path.iterdir()) == [], "a folder that was not there"
    saves[name](folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert before
    with full_disk(), pytest.raises(OSError, match="File too large"):
        saves[name](folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
