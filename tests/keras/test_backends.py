"""The same classes on Keras' JAX and PyTorch backends: outputs and a training step equal TensorFlow's."""

from __future__ import annotations

import filecmp
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.keras.setting import LONGT5, attention_mask, inputs_of, make
from tests.tolerances import assert_close

WORKER = Path(__file__).with_name("backend_worker.py")
NAMES = (
    "TFBertForPreTraining",
    "TFBertForTokenClassification",
    "TFBertForQuestionAnswering",
    "TFBertLMHeadModel",
    "TFLongformerForTokenClassification",
    LONGT5,
    "TFDiffLlamaForTokenClassification",
    "TFMegaForTokenClassification",
)


def run(backend, directory):
    environment = {**os.environ, "KERAS_BACKEND": backend}
    command = [sys.executable, WORKER, directory]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(directory / f"{backend}.npz"))


@pytest.fixture(scope="module")
def directory(keras, tmp_path_factory):
    root = tmp_path_factory.mktemp("backends")
    for name in NAMES:
        folder = root / "checkpoints" / name
        make(name, num_hidden_layers=1).save_pretrained(folder)
        np.savez(folder / "inputs.npz", **inputs_of(name))
    return root


@pytest.fixture(scope="module")
def tensorflow_results(directory):
    return run("tensorflow", directory)


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_forward_and_a_training_step_equal_tensorflow(backend, directory, tensorflow_results):
    results = run(backend, directory)
    assert results.keys() == tensorflow_results.keys()
    keep = attention_mask()
    for name, expected in tensorflow_results.items():
        mine = results[name]
        if mine.shape[:2] == keep.shape:
            mine, expected = (value * keep.reshape(*keep.shape, *[1] * (value.ndim - 2)) for value in (mine, expected))
        elif "attentions" in name and mine.shape[2] == keep.shape[1]:  # MEGA's are those of chunks
            mine, expected = (value * keep[:, None, :, None] for value in (mine, expected))
        assert_close(mine, expected, what=name)
    for name in (name for name in NAMES if "Token" in name):
        files = (directory / folder / name / "model.safetensors" for folder in (backend, "tensorflow"))
        assert filecmp.cmp(*files, shallow=False), name
