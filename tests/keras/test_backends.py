"""The same classes on Keras' JAX and PyTorch backends: outputs and a training step equal TensorFlow's."""

from __future__ import annotations

import filecmp
import os
import subprocess
import sys

import numpy as np
import pytest
from tests.keras import backend_worker
from tests.keras.alone import LEAN
from tests.keras.setting import LONGT5, attention_mask, inputs_of, make
from tests.pipelines.task_models import make_task_model
from tests.tolerances import assert_close

NAMES = (
    "TFBertForTokenClassification",
    LONGT5,
    "TFDiffLlamaForTokenClassification",
    "TFMegaForTokenClassification",
)
#: BERT with other heads, and Longformer, whose windows are those of LongT5 and which answers questions with both
FURTHER = ("TFBertForPreTraining", "TFBertLMHeadModel", "TFLongformerForTokenClassification")


@pytest.fixture(
    scope="module", params=[NAMES, pytest.param(FURTHER, marks=pytest.mark.wide)], ids=["families", "further"]
)
def directory(request, keras, tmp_path_factory, minilm_dir):
    """Checkpoints, their inputs, and what TensorFlow makes of them."""
    root = tmp_path_factory.mktemp("backends")
    for name in request.param:
        folder = root / "checkpoints" / name
        make(name, num_hidden_layers=1).save_pretrained(folder)
        np.savez(folder / "inputs.npz", **inputs_of(name))
    make_task_model(root / "answers", "question-answering", "byte_level", minilm_dir, num_global_slots=6)
    backend_worker.main(root)
    return root


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_forward_and_a_training_step_equal_tensorflow(backend, directory):
    environment = {**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, LEAN, backend_worker.__file__, directory]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    results, tensorflow_results = (dict(np.load(directory / f"{name}.npz")) for name in (backend, "tensorflow"))
    assert results.keys() == tensorflow_results.keys()
    keep = attention_mask()
    for name, expected in tensorflow_results.items():
        mine = results[name]
        if mine.shape[:2] == keep.shape:
            mine, expected = (value * keep.reshape(*keep.shape, *[1] * (value.ndim - 2)) for value in (mine, expected))
        elif "attentions" in name and mine.shape[2] == keep.shape[1]:  # MEGA's are those of chunks
            mine, expected = (value * keep[:, None, :, None] for value in (mine, expected))
        assert_close(mine, expected, what=name)
        if name == "spans":
            assert_close(mine[0], mine[1], what=name)
    for name in (path.name for path in (directory / "checkpoints").glob("*Token*")):
        files = (directory / folder / name / "model.safetensors" for folder in (backend, "tensorflow"))
        assert filecmp.cmp(*files, shallow=False), name
    programs, of_tensorflow = (int((directory / f"{name}.txt").read_text()) for name in (backend, "tensorflow"))
    assert of_tensorflow == 1  # a graph serves all lengths, a program of JAX those that are rounded alike
    assert programs <= 8 or backend == "torch"
