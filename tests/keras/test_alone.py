"""The Keras half alone: nothing of PyTorch, JAX or the older Keras is imported; a missing TensorFlow is named."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
from tests.keras.setting import inputs_of, make
from tests.tolerances import assert_close

WORKER = Path(__file__).with_name("alone_worker.py")
SOURCE = Path(__file__).parents[2] / "src" / "longspan"


def run(directory, *blocked):
    command = [sys.executable, WORKER, directory, *blocked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


def test_it_loads_runs_trains_and_saves_without_the_other_frameworks(tmp_path):
    model = make("TFBertForTokenClassification", num_hidden_layers=1)
    model.save_pretrained(tmp_path)
    np.savez(tmp_path / "inputs.npz", **inputs_of("TFBertForTokenClassification"))
    assert run(tmp_path, "torch", "jax", "jaxlib", "flax", "tf_keras", "transformers") == "[]"
    assert_close(np.load(tmp_path / "alone.npy"), model(inputs_of("TFBertForTokenClassification")).logits)
    assert (tmp_path / "alone" / "model.safetensors").exists()


def test_a_missing_tensorflow_gives_one_line_that_names_the_extra(tmp_path):
    message = "TFBertForTokenClassification needs TensorFlow, which is not installed: pip install 'longspan[keras]'"
    assert run(tmp_path, "tensorflow") == message


def test_the_older_keras_is_nowhere():
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        assert "TF_USE_LEGACY_KERAS" not in text, path
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.partition(".")[0] == "tf_keras" for name in names), path
