"""A small encoder, and documents whose label is a word that stands all over them."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest
from tests.tiny_encoder import WORDS, make_plain_model

MARKS = {"broken": "error", "fine": "python"}
SETTINGS = {"batch_tokens": 600, "learning_rate": 0.003, "device": "cpu"}


def documents(count: int, *, seed: int, longest: int = 150) -> list[dict[str, str]]:
    """Documents of one to three windows of the model, labels by turns."""
    draw = random.Random(seed)
    plain = [word for word in WORDS if word not in MARKS.values()]
    found = []
    for index in range(count):
        label = sorted(MARKS)[index % 2]
        words = draw.choices(plain, k=draw.randint(8, longest))
        for place in range(0, len(words), 6):
            words[place] = MARKS[label]
        found.append({"text": " ".join(words), "label": label})
    return found


def write_lines(path: Path, records: list) -> Path:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a csv file."""
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> Path:
    """A BERT of two layers without a head, of 64 positions, with dropout."""
    return make_plain_model(tmp_path_factory.mktemp("training") / "encoder")
