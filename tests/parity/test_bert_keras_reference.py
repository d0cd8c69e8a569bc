"""Every Keras BERT class against the reference's own TensorFlow class, and its `tf_model.h5`."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.grid import grid
from tests.keras.setting import CLASSES, attention_mask, import_keras, inputs_of, make
from tests.parity.keras_parity import compare_outputs

import longspan

WORKER = Path(__file__).with_name("keras_reference.py")


def reference_inputs(name):
    inputs = inputs_of(name)
    if name == "TFBertForQuestionAnswering":  # the reference's loss of a position outside is NaN
        inputs["start_positions"], inputs["end_positions"] = np.array([3, 0, 7, 8]), np.array([5, 2, 9, 18])
    return inputs


#: heads of the reference that are a dense layer behind the backbone
DENSE_HEADS = [f"TFBertFor{task}" for task in ("NextSentencePrediction", "MultipleChoice", "TokenClassification")]


@pytest.fixture(scope="module")
def reference_of(tmp_path_factory):
    """A function that gives a directory with a folder for each class, see `run_reference`."""
    return functools.cache(lambda names: run_reference(tmp_path_factory.mktemp("reference"), names))


@pytest.fixture
def reference(reference_of, name):
    is_dense = name in DENSE_HEADS
    return reference_of(tuple(each for each in CLASSES if (each in DENSE_HEADS) == is_dense))


def run_reference(root, names):
    """Write a folder for each class: weights, the reference's outputs, its h5 file."""
    import_keras()
    for name in names:
        labels = {"num_labels": 2} if name == "TFBertForQuestionAnswering" else {}
        make(name, **labels).save_pretrained(root / name)
        np.savez(root / name / "inputs.npz", **reference_inputs(name))
    done = subprocess.run([sys.executable, WORKER, root], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return root


def expected_outputs(folder):
    """Outputs of the reference by field: an array, or a tuple of arrays."""
    fields = {}
    stored = np.load(folder / "outputs.npz")
    for key in stored.files:
        name, _, index = key.partition(".")
        fields.setdefault(name, {})[int(index)] = stored[key]
    several = ("hidden_states", "attentions", "global_attentions")
    return {
        name: tuple(parts[index] for index in sorted(parts)) if name in several else parts[0]
        for name, parts in fields.items()
    }


@pytest.mark.parametrize("name", grid(CLASSES, wide=DENSE_HEADS))
def test_outputs_and_losses_equal_the_reference_from_safetensors_and_h5(reference, name):
    expected = expected_outputs(reference / name)
    assert "loss" in expected or name == "TFBertModel"
    for directory in (reference / name, reference / name / "h5"):
        model, report = getattr(longspan, name).from_pretrained(directory, output_loading_info=True)
        assert not (report.missing + report.initialised + report.unexpected + report.mismatched)
        output = model(**reference_inputs(name), output_attentions=True, output_hidden_states=True)
        compare_outputs(output, expected, keep=attention_mask())
