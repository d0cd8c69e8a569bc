"""The tree walker, strict loading, overrides, resizing and pruning."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.keras.setting import SETTINGS, attention_mask, inputs_of, make, randomise
from tests.tolerances import assert_close

import longspan
from longspan.checkpoints.keras import leaves
from longspan.errors import CheckpointError, CheckpointNotFoundError, InputError
from longspan.nn.keras.resizing import replace_layer


@pytest.fixture(scope="module")
def saved(keras, tmp_path_factory):
    """Directory with a masked language model, and the model."""
    directory = tmp_path_factory.mktemp("saved")
    model = make("TFBertForMaskedLM")
    model.save_pretrained(directory)
    return directory, model


def logits(model):
    inputs = inputs_of("TFBertForMaskedLM")
    return np.asarray(model(inputs["input_ids"], inputs["attention_mask"]).logits) * attention_mask()[..., None]


def edited(saved, tmp_path, change):
    """A copy of the checkpoint whose tensors `change` has edited."""
    directory, model = saved
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(tmp_path)
    return tmp_path


def test_loading_reports_every_key(saved):
    directory, model = saved
    again, report = longspan.TFBertForMaskedLM.from_pretrained(directory, output_loading_info=True)
    assert again.load_report is report
    assert set(report.loaded) == set(leaves(model))
    assert report.tied == {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }
    np.testing.assert_array_equal(logits(again), logits(model))


def test_a_head_comes_and_goes(saved):
    directory, model = saved
    backbone, report = longspan.TFBertModel.from_pretrained(directory, output_loading_info=True)
    assert set(report.initialised) == {"pooler.dense.weight", "pooler.dense.bias"}
    assert np.asarray(backbone.pooler.dense.kernel).std() > 0.01
    assert np.abs(np.asarray(backbone.pooler.dense.bias)).max() == 0
    classifier = longspan.TFBertForSequenceClassification.from_pretrained(
        directory, num_labels=3, problem_type="multi_label_classification", attn_implementation="eager"
    )
    assert classifier.classifier.kernel.shape == (36, 3)
    assert classifier.config.problem_type == "multi_label_classification"
    assert_close(classifier.bert(inputs_of("")["input_ids"])[0], model.bert(inputs_of("")["input_ids"])[0])


def test_a_broken_checkpoint_raises_with_every_key(saved, tmp_path):
    def change(tensors):
        del tensors["bert.encoder.layer.0.attention.self.key.weight"]
        tensors["bert.encoder.layer.0.extra"] = np.zeros(3, np.float32)
        tensors["cls.predictions.transform.dense.bias"] = np.zeros(7, np.float32)

    directory = edited(saved, tmp_path, change)
    with pytest.raises(CheckpointError) as caught:
        longspan.TFBertForMaskedLM.from_pretrained(directory)
    for part in (
        "missing from the checkpoint (1):\n    bert.encoder.layer.0.attention.self.key.weight",
        "unexpected in the checkpoint (1):\n    bert.encoder.layer.0.extra",
        "cls.predictions.transform.dense.bias: (7) in the file, (36) in the model",
    ):
        assert part in str(caught.value)
    model = longspan.TFBertForMaskedLM.from_pretrained(directory, strict=False, ignore_mismatched_sizes=True)
    fresh = np.asarray(model.bert.encoder.layer[0].attention.self.key.kernel)
    assert 0.01 < fresh.std() < 0.04  # initializer_range is 0.02
    assert np.abs(np.asarray(model.cls.predictions.transform.dense.bias)).max() == 0


def test_older_names_and_a_missing_prefix_load(saved, tmp_path):
    def change(tensors):
        for key in list(tensors):
            old = key.removeprefix("bert.").replace("LayerNorm.weight", "LayerNorm.gamma")
            tensors[old.replace("LayerNorm.bias", "LayerNorm.beta")] = tensors.pop(key)

    model = longspan.TFBertForMaskedLM.from_pretrained(edited(saved, tmp_path, change))
    np.testing.assert_array_equal(logits(model), logits(saved[1]))


def test_pytorch_bin_files_load(saved, tmp_path):
    import torch

    directory, model = saved
    tensors = {key: torch.from_numpy(value) for key, value in load_file(directory / "model.safetensors").items()}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    model.config.save_pretrained(tmp_path)
    again = longspan.TFBertForMaskedLM.from_pretrained(tmp_path, from_pt=True)
    np.testing.assert_array_equal(logits(again), logits(model))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtypes_are_stored_and_found_again(saved, tmp_path, dtype):
    directory, model = saved
    half = longspan.TFBertForMaskedLM.from_pretrained(directory, dtype=dtype)
    assert (half.variable_dtype, half.config.dtype) == (dtype, dtype)
    half.save_pretrained(tmp_path)
    assert longspan.TFBertForMaskedLM.from_pretrained(tmp_path, dtype="auto").variable_dtype == dtype
    whole = longspan.TFBertForMaskedLM.from_pretrained(tmp_path)
    assert whole.variable_dtype == "float32"
    assert_close(logits(whole), logits(model), dtype)
    mixed = longspan.TFBertForMaskedLM.from_pretrained(directory, dtype=f"mixed_{dtype}")
    assert (mixed.variable_dtype, mixed.compute_dtype) == ("float32", dtype)


def test_the_global_policy_is_the_default(keras, saved):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        assert longspan.TFBertForMaskedLM.from_pretrained(saved[0]).compute_dtype == "bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")


def test_large_models_are_saved_in_shards(saved, tmp_path):
    saved[1].save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    np.testing.assert_array_equal(logits(longspan.TFBertForMaskedLM.from_pretrained(tmp_path)), logits(saved[1]))


def test_errors_of_loading_and_saving(saved, tmp_path):
    with pytest.raises(CheckpointNotFoundError):
        longspan.TFBertModel.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(InputError, match="checkpoints are written as safetensors only"):
        saved[1].save_pretrained(tmp_path, safe_serialization=False)


def test_a_layer_without_a_leaf_rule_is_an_error(keras):
    model = make("TFBertModel")
    activation = keras.layers.PReLU()
    activation.build((None, 36))
    replace_layer(model.encoder.layer[0].intermediate, "dense", activation)
    with pytest.raises(
        CheckpointError, match=r"needs a leaf rule .* Received: PReLU at 'encoder.layer.0.intermediate.dense'"
    ):
        leaves(model)


def test_weights_out_of_reach_are_an_error(keras):
    class Hiding(keras.layers.Layer):
        def build(self, input_shape=None):
            self._secret = self.add_weight(shape=(2,), name="secret")

        def call(self, inputs):
            return inputs

    layer = Hiding()
    layer.build()
    with pytest.raises(CheckpointError, match="must lie in a public attribute of its layer to have a key. .*secret"):
        leaves(layer)


def test_adapters_must_be_merged_before_saving(keras, tmp_path):
    model = make("TFBertModel")
    model.encoder.layer[0].attention.self.query.enable_lora(2)
    with pytest.raises(CheckpointError, match="must hold its kernel as one variable. .* adapters"):
        model.save_pretrained(tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_resizing_keeps_old_scores_and_saves(saved, tmp_path, tied):
    model = make("TFBertForMaskedLM", tie_word_embeddings=tied)
    before, order = logits(model), [weight.name for weight in model.weights]
    model.compile("sgd")
    table = model.resize_token_embeddings(101, pad_to_multiple_of=4)
    assert table is model.get_input_embeddings()
    assert (table.input_dim, model.config.vocab_size, before.shape[-1]) == (104, 104, 97)
    np.testing.assert_allclose(logits(model)[..., :97], before, atol=1e-6)
    assert [weight.name for weight in model.weights] == order
    rows = np.asarray(table.embeddings)
    np.testing.assert_allclose(rows[97:], np.broadcast_to(rows[:97].mean(axis=0), (7, 36)), atol=1e-6)
    with pytest.raises(ValueError, match="compile"):
        model.fit(inputs_of("")["input_ids"], inputs_of("")["input_ids"], verbose=0)
    model.save_pretrained(tmp_path)
    np.testing.assert_array_equal(logits(longspan.TFBertForMaskedLM.from_pretrained(tmp_path)), logits(model))
    model.resize_token_embeddings(97)
    np.testing.assert_allclose(logits(model), before, atol=1e-6)
    model.resize_token_embeddings(105, mean_resizing=False)
    drawn = np.asarray(model.get_input_embeddings().embeddings)[97:]
    assert 0.01 < drawn.std() < 0.04
    with pytest.raises(InputError, match="new_num_tokens must be positive. Received: new_num_tokens=0"):
        model.resize_token_embeddings(0)
    with pytest.raises(InputError, match="pad_to_multiple_of must be positive. Received: pad_to_multiple_of=-8"):
        model.resize_token_embeddings(10, pad_to_multiple_of=-8)


def test_a_resized_or_pruned_model_saves_its_optimiser_too(keras, tmp_path):
    model = make("TFBertForMaskedLM", num_hidden_layers=1)
    model.resize_token_embeddings(100)
    model.prune_heads({0: [1]})
    model.compile("adam", run_eagerly=True)
    inputs = inputs_of("TFBertForMaskedLM")
    model.fit(inputs, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(logits(again), logits(model))
    for mine, theirs in zip(again.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))


def test_pruned_heads_give_nothing_and_stay_pruned(tmp_path):
    model = make("TFBertModel")
    inputs = inputs_of("TFBertModel")
    keep = np.array([[1, 0, 1], [0, 1, 0]], np.float32)
    expected = model(**inputs, head_mask=keep).last_hidden_state
    model.prune_heads({0: [1], 1: [0]})
    model.prune_heads({1: [2]})
    assert model.config.pruned_heads == {0: [1], 1: [0, 2]}
    assert_close(model(**inputs).last_hidden_state, expected)
    # a mask counts heads as they were, also those that are gone
    assert_close(model(**inputs, head_mask=keep).last_hidden_state, expected)
    model.save_pretrained(tmp_path)
    again = longspan.TFBertModel.from_pretrained(tmp_path)
    assert again.encoder.layer[1].attention.self.query.kernel.shape == (36, 12)
    np.testing.assert_array_equal(again(**inputs).last_hidden_state, model(**inputs).last_hidden_state)
    with pytest.raises(InputError, match=r"layers to prune must lie in \[0, 2\). Received: 2"):
        model.prune_heads({2: [0]})
    with pytest.raises(InputError, match=r"heads to prune must lie in \[0, 3\). Received: \[3\]"):
        model.prune_heads({0: [3]})
    with pytest.raises(InputError, match="at least one of 3 attention heads must remain"):
        model.prune_heads({1: [1]})


def test_auto_classes_find_the_keras_classes(saved):
    directory, model = saved
    found = longspan.TFAutoModelForMaskedLM.from_pretrained(directory)
    assert type(found) is longspan.TFBertForMaskedLM
    np.testing.assert_array_equal(logits(found), logits(model))
    tagger = longspan.TFAutoModelForTokenClassification.from_config(longspan.BertConfig(**SETTINGS))
    assert type(tagger) is longspan.TFBertForTokenClassification


def test_loading_draws_no_random_numbers(keras, saved, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        keras.initializers.RandomNormal, "__call__", lambda self, shape, dtype=None: drawn.append(shape)
    )
    longspan.TFBertForMaskedLM.from_pretrained(saved[0])
    assert drawn == []


def test_the_padding_row_starts_as_zeros(keras):
    model = longspan.TFBertModel(longspan.BertConfig(**SETTINGS, pad_token_id=3))
    table = np.asarray(model.get_input_embeddings().embeddings)
    assert np.abs(table[3]).max() == 0
    assert np.abs(table[[0, 1, 2, 4]]).min() > 0
    assert randomise(model).get_base_model() is model
