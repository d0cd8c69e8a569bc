"""Few programs, whatever the lengths, and the same numbers as without padding."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from tests.keras import buckets_worker
from tests.keras.alone import LEAN
from tests.keras.setting import import_keras

keras = import_keras()


@pytest.mark.parametrize(
    "names",
    [
        ("BertForTokenClassification", "LongformerForMaskedLM"),
        pytest.param(
            (
                "BertForSequenceClassification",
                "DiffLlamaForCausalLM",
                "MegaForTokenClassification",
                "LongT5ForConditionalGeneration",
            ),
            marks=pytest.mark.wide,
        ),
    ],
)
def test_few_programs_of_jax_serve_all_lengths_and_numbers_stay(names):
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, LEAN, buckets_worker.__file__, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, found in json.loads(done.stdout).items():
        # of 64 and 128 tokens; LongT5's targets are half as long as its sources, which go by the same two buckets
        assert 1 <= found["predict_step"] <= 2, name
        assert found["train_step"] == (2 if name in buckets_worker.TRAINED else 0), name
        assert max(found["output"], found["called"], found["loss"]) < 1e-5, (name, found)


def test_few_graphs_of_tensorflow_serve_all_lengths():
    found = buckets_worker.check("BertForTokenClassification")
    assert 1 <= found["predict_step"] <= 3
    assert 1 <= found["train_step"] <= 3


def test_what_stays_as_it_is():
    import longspan

    model = longspan.TFBertForQuestionAnswering(longspan.BertConfig(**buckets_worker.ENCODER))
    ids = np.ones((2, 10), np.int64)
    padded, lengths = model._in_bucket({"input_ids": ids, "attention_mask": None}, training=False)
    assert {name: array.shape for name, array in padded.items()} == {"input_ids": (2, 64), "attention_mask": (2, 64)}
    assert lengths.tokens == 10
    assert not padded["attention_mask"][:, 10:].any()
    assert model._in_bucket({"input_ids": np.ones((2, 70))}, training=False)[0]["input_ids"].shape == (2, 100)  # all
    assert model._in_bucket({"input_ids": ids, "position_ids": ids}, training=False) is None
    assert not model._loss_allows(None)
    model.length_buckets = False
    assert model._in_bucket({"input_ids": ids}, training=False) is None
