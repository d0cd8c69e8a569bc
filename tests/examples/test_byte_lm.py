"""The byte-level example: its baseline against the definition, and a run of a few steps."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter

import numpy as np
import pytest

from examples import byte_lm


def probability(text: bytes, history: bytes, byte: int) -> float:
    """Interpolated Witten-Bell, as the formula reads."""
    lower = probability(text, history[1:], byte) if history else 1 / 256
    order = len(history) + 1
    grams = Counter(text[i : i + order] for i in range(len(text) - order + 1))
    followers = [count for gram, count in grams.items() if gram[:-1] == history]
    if not followers:
        return lower
    return (grams[history + bytes([byte])] + len(followers) * lower) / (sum(followers) + len(followers))


def test_the_baseline_is_the_formula():
    text, other = b"abracadabra, abracadabra!", b"cadabra zebra"
    model = byte_lm.NGramModel(np.frombuffer(text, np.uint8))
    bits = [-math.log2(probability(text, other[i - 4 : i], other[i])) for i in range(4, len(other))]
    assert model.bits_per_byte(np.frombuffer(other, np.uint8)) == pytest.approx(sum(bits) / len(bits))


def test_probabilities_sum_to_one():
    text = b"abracadabra, abracadabra!"
    for history in (b"abra", b"cada", b"zzzz", b"zabr"):
        assert sum(probability(text, history, byte) for byte in range(256)) == pytest.approx(1)


@pytest.mark.parametrize("family", ["mega", "diffllama"])
def test_a_few_steps_learn(family, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(byte_lm, "EVALUATED", 4)
    output = tmp_path / "results.json"
    other = {"mega": "diffllama", "diffllama": "mega"}[family]
    output.write_text(json.dumps({"train_bytes": 50000, "steps": 12, other: "of other settings"}))
    words = ["byte_lm", "--families", family, "--steps", "12", "--batch", "4", "--length", "64", "--bytes", "50000"]
    monkeypatch.setattr(sys, "argv", [*words, "--output", str(output)])
    byte_lm.main()
    results = json.loads(output.read_text())
    assert results["train_bytes"] == 50000
    assert other not in results
    assert results[family]["bits_per_byte"] < 6  # 8 before training
    assert 1_200_000 < results[family]["parameters"] < 1_400_000
    assert len(results[family]["samples"]) == byte_lm.SAMPLES
    assert all(sample["prompt"].startswith("def ") for sample in results[family]["samples"])
    assert all(sample["written"] for sample in results[family]["samples"])
    assert "5-grams" in capsys.readouterr().out
    settings = {name: value for name, value in results.items() if name != family}
    assert byte_lm.earlier_results(output, settings) == {family: results[family]}
    assert byte_lm.earlier_results(output, {**settings, "steps": 13}) == {}
