"""What Keras offers any model, on one class of each family: datasets, half precision, XLA, adapters, ONNX."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from tests.grid import grid
from tests.keras.setting import LONGT5, ROWS, SETTINGS, inputs_of, make, randomise
from tests.tolerances import assert_close

import longspan
from longspan.errors import InputError, MissingFrameworkError
from longspan.ops import fast_paths

NAMES = (
    "TFBertForTokenClassification",
    "TFLongformerForTokenClassification",
    LONGT5,
    "TFDiffLlamaForTokenClassification",
    "TFMegaForTokenClassification",
)


# of BERT, tests/keras/test_training.py trains under XLA and in half precision
@pytest.mark.parametrize("name", grid(NAMES, wide=(NAMES[0], NAMES[3])))
def test_adapters_learn_under_xla_in_half_precision_from_datasets(keras, name):
    import tensorflow as tf

    inputs = inputs_of(name)
    labels = inputs.pop("labels")

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            rows = slice(2 * index, 2 * index + 2)
            return {key: value[rows] for key, value in inputs.items()}, labels[rows]

    model = make(name, num_hidden_layers=1, dtype="mixed_bfloat16")
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Dense)]
    for layer in layers:
        layer.enable_lora(2)
    kernels = [np.array(layer._kernel) for layer in layers]
    model.compile(keras.optimizers.SGD(0.02), jit_compile=True)
    losses = model.fit(Batches(), epochs=3, shuffle=False, verbose=0).history["loss"]
    assert losses[2] < losses[1] < losses[0]
    for layer, kernel in zip(layers, kernels, strict=True):
        np.testing.assert_array_equal(layer._kernel, kernel)
        assert keras.backend.standardize_dtype(layer.lora_kernel_b.dtype) == "float32"
    assert any(np.abs(np.asarray(layer.lora_kernel_b)).max() > 0 for layer in layers)

    model.compile(run_eagerly=True)
    rows = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(2)
    assert model.evaluate(rows, verbose=0) == pytest.approx(model.evaluate(Batches(), verbose=0), abs=1e-6)
    assert model.evaluate(rows, verbose=0) < losses[0]
    scores = np.asarray(model.predict(Batches(), verbose=0).logits)
    assert scores.shape[0] == ROWS
    again = np.asarray(model.predict(rows, verbose=0).logits)
    np.testing.assert_array_equal(scores, again)


@pytest.mark.parametrize(("name", "policy"), [*((name, "bfloat16") for name in NAMES), (LONGT5, "float16")])
def test_a_cpu_without_half_precision_products_computes_in_float32(keras, monkeypatch, name, policy):
    """Weights and outputs keep the dtype that was asked for, and come closer to float32."""
    monkeypatch.setattr(fast_paths, "lacks_products", lambda dtype: True)
    exact = make(name, num_hidden_layers=1)
    model = make(name, num_hidden_layers=1, dtype=policy)
    for weight, stored in zip(exact.weights, model.weights, strict=True):
        weight.assign(keras.ops.cast(stored, weight.dtype))
    inputs = {**inputs_of(name), "output_hidden_states": True}
    wide = model(inputs)
    with longspan.plain():
        narrow = model(inputs)
    expected = exact(inputs)
    dtypes = [[keras.backend.standardize_dtype(leaf.dtype) for leaf in keras.tree.flatten(o)] for o in (wide, narrow)]
    assert dtypes[0] == dtypes[1]
    assert policy in dtypes[0]
    assert model.compute_dtype == policy
    layers = [layer for layer in model._flatten_layers() if not isinstance(layer, keras.Model)]
    assert {layer.compute_dtype for layer in layers} == {"float32"}
    first, second = (np.abs(np.asarray(o.logits, "f") - np.asarray(expected.logits)).max() for o in (wide, narrow))
    assert first < second
    assert first < 0.005 * np.abs(np.asarray(expected.logits)).max()


@pytest.mark.filterwarnings("ignore")  # the exporter warns
@pytest.mark.parametrize("name", ["Bert", "Roberta"])
def test_onnx_serves_every_length(keras, name, tmp_path):
    import onnxruntime

    settings = {key: value for key, value in SETTINGS.items() if key != "num_hidden_layers"}
    config = getattr(longspan, f"{name}Config")(**settings, num_hidden_layers=1)
    model = randomise(getattr(longspan, f"TF{name}ForTokenClassification")(config))
    model.export(tmp_path / "model.onnx", format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    inputs = {key: inputs_of(NAMES[0])[key].astype("int32") for key in model.get_input_signature()}
    for length in (19, 5, 12):
        part = {key: value[:3, :length] for key, value in inputs.items()}
        [logits] = session.run(None, part)
        real = part["attention_mask"] == 1
        assert_close(logits[real], np.asarray(model(part).logits)[real])


def test_onnx_errors(keras, tmp_path, monkeypatch):
    model = make("TFDiffLlamaForTokenClassification", num_hidden_layers=1)
    with pytest.raises(InputError, match="ONNX on TensorFlow is for BERT and RoBERTa: .* the PyTorch class"):
        model.export(tmp_path / "model.onnx", format="onnx")
    monkeypatch.setitem(sys.modules, "tf2onnx.handler", None)
    with pytest.raises(MissingFrameworkError, match="needs tf2onnx, which is not installed: pip install tf2onnx"):
        make(NAMES[0], num_hidden_layers=1).export(tmp_path / "model.onnx", format="onnx")
    assert not (tmp_path / "model.onnx").exists()
