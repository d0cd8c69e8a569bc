from __future__ import annotations

import random
from pathlib import Path

import pytest
from tests.tiny_encoder import WORDS, make_sentence_model

from longspan import SentenceEncoder


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sentence_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny(tiny_dir: Path) -> SentenceEncoder:
    return SentenceEncoder(tiny_dir)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder of 12 text files of 0 to 60 lines."""
    folder = tmp_path / "corpus"
    draw = random.Random(7)
    for number in range(12):
        path = folder / ("a" if number % 3 else "b") / f"{number:02}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [" ".join(draw.choices(WORDS, k=draw.randint(0, 12))) for _ in range(5 * number)]
        path.write_text("\n".join(lines), encoding="utf-8")
    return folder
