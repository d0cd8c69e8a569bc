"""Keras Longformers against the reference's own TensorFlow classes, and their `tf_model.h5`."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from tests.keras.setting import import_keras
from tests.parity.keras_parity import compare_outputs
from tests.parity.longformer_keras_setting import LENGTH, attention_mask, config_for, global_mask, inputs_of
from tests.parity.test_bert_keras_reference import WORKER, expected_outputs
from tests.parity.torch_parity import randomise

import longspan

NAMES = ("TFLongformerModel", "TFLongformerForMaskedLM", "TFLongformerForSequenceClassification")


def reference_inputs(name):
    """Inputs with a global token in each row: without any, the reference returns weights of nothing."""
    chosen = {} if "Classification" in name else {"global_attention_mask": global_mask(attention_mask(), "one")}
    return inputs_of(name) | chosen


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Directory with a folder for each class: weights, the reference's outputs, its h5 file."""
    import_keras()
    root = tmp_path_factory.mktemp("reference")
    for name in NAMES:
        model = randomise(getattr(longspan, name[2:])(config_for(num_hidden_layers=1, attention_window=8)))
        model.save_pretrained(root / name)
        np.savez(root / name / "inputs.npz", **reference_inputs(name))
    done = subprocess.run([sys.executable, WORKER, root], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_losses_equal_the_reference_from_safetensors_and_h5(reference, name):
    expected = expected_outputs(reference / name)
    padded = expected["global_attentions"]
    expected["global_attentions"] = tuple(weights[:, :, :LENGTH] for weights in padded)
    inputs = reference_inputs(name) | {"output_attentions": True, "output_hidden_states": True}
    for directory in (reference / name, reference / name / "h5"):
        model, report = getattr(longspan, name).from_pretrained(directory, output_loading_info=True)
        assert not (report.missing + report.initialised + report.unexpected + report.mismatched)
        output = model(**inputs)
        compare_outputs(output, expected, keep=attention_mask())
    loaded = getattr(longspan, name[2:]).from_pretrained(reference / name / "h5")  # and in PyTorch
    given = {key: torch.tensor(value) if isinstance(value, np.ndarray) else value for key, value in inputs.items()}
    compare_outputs(output, loaded(**given), keep=attention_mask())
