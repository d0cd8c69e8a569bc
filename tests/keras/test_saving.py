"""Keras' own ways to keep a model: `.keras`, weights, SavedModel, pickle, configuration."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.keras.alone import run_alone
from tests.keras.setting import CLASSES, SETTINGS, inputs_of, make
from tests.tolerances import assert_close

import longspan
from longspan.errors import ConfigError
from longspan.nn.keras.outputs import TFBaseModelOutput, flatten_names

COLUMNS = ("input_ids", "attention_mask", "token_type_ids")


def inputs():
    return {name: inputs_of("TFBertForTokenClassification")[name] for name in COLUMNS}


def test_everything_saved_after_fit_reloads_runs_trains_and_saves_without_the_other_frameworks(keras, tmp_path):
    labels = inputs_of("TFBertForTokenClassification")["labels"]
    model = make("TFBertForTokenClassification", num_hidden_layers=1)
    # kept with the model: nothing is traced in either process
    model.compile(keras.optimizers.Adam(1e-3), weighted_metrics=["accuracy"], run_eagerly=True)
    model.fit(inputs(), labels, verbose=0)
    symbols = {name: keras.Input((None,), dtype="int32", name=name) for name in COLUMNS}
    functional = keras.Model(symbols, keras.layers.Dense(2)(model.bert(symbols).last_hidden_state[:, 0]))

    model.save(tmp_path / "whole.keras")
    model.save_weights(tmp_path / "only.weights.h5")
    model.export(tmp_path / "served")
    model.save_pretrained(tmp_path / "pretrained")
    functional.save(tmp_path / "functional.keras")
    (tmp_path / "settings.json").write_text(json.dumps({**SETTINGS, "num_hidden_layers": 1}))
    np.savez(
        tmp_path / "data.npz",
        **inputs(),
        labels=labels,
        logits=np.asarray(model(inputs()).logits),
        functional=np.asarray(functional(inputs())),
    )
    found = json.loads(run_alone(tmp_path, "torch", "jax", "jaxlib", "flax", "tf_keras", "transformers"))
    assert found["imported"] == []
    for way in ("keras", "weights", "saved model", "functional", "pretrained"):
        assert found[way] <= 1e-5, way
    loss, accuracy = model.evaluate(inputs(), labels, verbose=0)
    assert_close(found["loss"], [loss, accuracy])
    # the optimiser came along: the next step is the same
    assert_close(found["next"], model.fit(inputs(), labels, verbose=0, shuffle=False).history["loss"][0])
    written = load_file(tmp_path / "after" / "model.safetensors")
    assert_close(written["classifier.weight"].T, model.classifier.kernel)


@pytest.mark.parametrize("name", CLASSES)
def test_get_config_is_complete(keras, name):
    settings = {"classifier_dropout": 0.2, "attn_implementation": "eager", "layer_norm_eps": 1e-6}
    model = make(name, dtype="mixed_bfloat16", num_hidden_layers=1, **settings)
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(model)))
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is getattr(longspan, name)
    assert again.config == model.config
    assert again.config.attn_implementation == "eager"
    assert again.dtype_policy == model.dtype_policy
    assert [weight.path for weight in again.weights] == [weight.path for weight in model.weights]
    again.set_weights(model.get_weights())
    ids = inputs_of(name)["input_ids"]
    first, second = (next(iter(one(ids).values())) for one in (model, again))
    np.testing.assert_array_equal(np.asarray(first, np.float32), np.asarray(second, np.float32))


def test_a_model_without_pooler_stays_one(keras):
    model = longspan.TFBertModel(longspan.BertConfig(**SETTINGS), add_pooling_layer=False, name="encoder")
    again = longspan.TFBertModel.from_config(model.get_config())
    assert (again.pooler, again.name) == (None, "encoder")
    assert longspan.TFBertModel.from_config(model.config).pooler is not None


def test_pickles_and_clones(keras):
    model = make("TFBertModel", num_hidden_layers=1)
    again = pickle.loads(pickle.dumps(model))
    assert_close(again(inputs()).pooler_output, model(inputs()).pooler_output)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    assert_close(clone(inputs()).pooler_output, model(inputs()).pooler_output)


def test_a_saved_model_numbers_the_tensors_of_a_tuple(keras, tmp_path):
    import tensorflow as tf

    model = make("TFBertModel", num_hidden_layers=1, output_hidden_states=True)
    signature = [{"input_ids": keras.InputSpec(shape=(None, None), dtype="int32", name="input_ids")}]
    model.export(tmp_path / "served", input_signature=signature)
    served = tf.saved_model.load(str(tmp_path / "served"))
    ids = inputs()["input_ids"].astype("int32")
    outputs = served.serve({"input_ids": ids})
    assert set(outputs) == {"last_hidden_state", "pooler_output", "hidden_states_0", "hidden_states_1"}
    assert_close(outputs["hidden_states_0"], model(ids).hidden_states[0])
    nested = TFBaseModelOutput(last_hidden_state=1, hidden_states=((2, 3), (4,)))
    assert flatten_names(nested) == {
        "last_hidden_state": 1,
        "hidden_states_0_0": 2,
        "hidden_states_0_1": 3,
        "hidden_states_1_0": 4,
    }


def test_weights_exist_before_the_first_call_and_have_telling_paths(keras):
    model = longspan.TFBertForMaskedLM(longspan.BertConfig(**SETTINGS), name="filler")
    paths = [weight.path for weight in model.weights]
    assert model.built
    assert "bert/encoder/layer_1/attention/self/query/kernel" in paths
    assert "filler/cls/predictions/bias" in paths
    assert len(paths) == len(set(paths))
    assert "bert" in _summary(model)


def _summary(model):
    lines = []
    model.summary(print_fn=lines.append)
    return "\n".join(lines)


def test_the_constructor_takes_a_configuration(keras):
    with pytest.raises(ConfigError, match="TFBertModel needs a BertConfig. Received: dict"):
        longspan.TFBertModel({})
    with pytest.raises(TypeError, match="TFBertForMaskedLM takes a configuration. Received as well"):
        longspan.TFBertForMaskedLM(longspan.BertConfig(**SETTINGS), 1)
    with pytest.warns(UserWarning, match="TFBertLMHeadModel attends in both directions unless config.is_decoder=True"):
        longspan.TFBertLMHeadModel(longspan.BertConfig(**SETTINGS))
    with pytest.warns(UserWarning, match="TFBertForMaskedLM should see both directions"):
        longspan.TFBertForMaskedLM(longspan.BertConfig(**SETTINGS, is_decoder=True))
