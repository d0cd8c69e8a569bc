"""Keras' own methods on MEGA: forms of data, saving, export, precision, XLA, and the arguments of a call."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from tests.keras.setting import assert_made_again, assert_saved_serves, config_for, inputs_of, make
from tests.tolerances import assert_close

import longspan

FIRST, FLAGS = ["input_ids", "attention_mask"], ["output_attentions", "output_hidden_states", "return_dict"]
ROW, STATES = [*FIRST, "token_type_ids", "inputs_embeds"], ["encoder_hidden_states", "encoder_attention_mask"]
ARGUMENTS = {
    "TFMegaModel": [*ROW, *STATES, "past_key_values", *FLAGS],
    "TFMegaForCausalLM": [*ROW, *STATES, "labels", "past_key_values", *FLAGS],
    "TFMegaForMaskedLM": [*ROW, *STATES, "labels", *FLAGS],
    "TFMegaForSequenceClassification": [*ROW, "labels", *FLAGS],
    "TFMegaForMultipleChoice": ["input_ids", "token_type_ids", "attention_mask", "labels", "inputs_embeds", *FLAGS],
    "TFMegaForTokenClassification": [*ROW, "labels", *FLAGS],
    "TFMegaForQuestionAnswering": [*ROW, "start_positions", "end_positions", *FLAGS],
}
READER, TAGGER = "TFMegaForQuestionAnswering", "TFMegaForTokenClassification"


def split(name):
    """Inputs and labels of a class."""
    inputs = inputs_of(name)
    columns = ("input_ids", "token_type_ids", "attention_mask")
    return {key: inputs[key] for key in columns}, {key: value for key, value in inputs.items() if key not in columns}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_are_pytorchs_and_the_configuration_makes_the_model_again(keras, name):
    parameters = list(inspect.signature(getattr(longspan, name).call).parameters)
    assert parameters == ["self", *ARGUMENTS[name], "training"]
    model = make(name, num_hidden_layers=1, dtype="mixed_bfloat16")
    assert_made_again(keras, model)
    auto = getattr(longspan, name.replace("Mega", "AutoModel").replace("ModelModel", "Model"))
    assert type(auto.from_config(model.config)) is type(model)


def test_fit_trains_alike_in_a_call_in_one_graph_and_under_xla(keras):
    import tensorflow as tf

    inputs, labels = split(TAGGER)
    data = tf.data.Dataset.from_tensor_slices((inputs, labels["labels"])).batch(2)
    expected = None
    for options in ({"run_eagerly": True}, {}, {"jit_compile": True}):
        keras.utils.set_random_seed(0)
        settings = {"num_hidden_layers": 1, "normalization_type": "batchnorm", "norm_affine": False}
        model = longspan.TFMegaForTokenClassification(config_for(TAGGER, **settings))
        model.compile(keras.optimizers.SGD(0.05), **options)
        losses = model.fit(data, epochs=2, shuffle=False, verbose=0).history["loss"]
        losses.append(model.evaluate(data, verbose=0))
        assert losses[1] < losses[0]
        expected = losses if expected is None else expected
        assert_close(losses, expected, what=str(options))
        assert int(model.mega.layers_[0].mega_layer.norm.norm.num_batches_tracked) == 4


def test_keras_files_and_saved_models_serve_every_length(keras, tmp_path):
    model = make(READER, num_hidden_layers=1)
    inputs = {key: value.astype("int32") for key, value in split(READER)[0].items()}
    assert_saved_serves(keras, model, inputs, lengths=(19, 5), field="start_logits", folder=tmp_path)


def test_the_model_is_a_layer_of_a_functional_model_and_predicts_any_length(keras):
    symbols = {key: keras.Input((None,), dtype="int32", name=key) for key in ("input_ids", "attention_mask")}
    base = make("TFMegaModel", num_hidden_layers=1)
    model = keras.Model(symbols, base(symbols).last_hidden_state)
    for length in (19, 3):
        inputs = {key: value[:2, :length] for key, value in split(READER)[0].items() if key in symbols}
        mine, expected = (np.asarray(states) for states in (model(inputs), base(inputs).last_hidden_state))
        real = inputs["attention_mask"] == 1
        assert_close(mine[real], expected[real])


def test_dropout_acts_in_training_only(keras):
    for settings in ({"attention_probs_dropout_prob": 0.5}, {"dropout_prob": 0.5, "use_feature_dropout": True}):
        model, (inputs, _) = make(TAGGER, num_hidden_layers=1, **settings), split(TAGGER)
        still = [np.asarray(model(inputs).logits) for _ in range(2)]
        np.testing.assert_array_equal(*still)
        moving = [np.asarray(model(inputs, training=True).logits) for _ in range(2)]
        assert np.abs(moving[0] - moving[1]).max() > 0.01
