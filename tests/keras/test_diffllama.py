"""Keras' own methods on DiffLlamas: forms of data, saving, export, precision, XLA, and the arguments of a call."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from tests.keras.setting import DIFFLLAMAS, assert_made_again, assert_saved_serves, attention_mask, inputs_of, make
from tests.tolerances import assert_close

import longspan
from longspan.ops.dispatch import recording

WRITER, CLASSIFIER, READER = DIFFLLAMAS[1:4]
FIRST = ["input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds"]
FLAGS, LAST = ["output_attentions", "output_hidden_states"], ["return_dict", "training"]
LABELLED = [*FIRST, "labels", "use_cache", *FLAGS]
ARGUMENTS = {
    "TFDiffLlamaModel": [*FIRST, "use_cache", *FLAGS, "cache_position"],
    "TFDiffLlamaForCausalLM": [*LABELLED, "cache_position", "logits_to_keep"],
    "TFDiffLlamaForSequenceClassification": LABELLED,
    "TFDiffLlamaForQuestionAnswering": [*FIRST, "start_positions", "end_positions", *FLAGS],
    "TFDiffLlamaForTokenClassification": LABELLED,
}


def split(name):
    """Inputs and labels of a class."""
    inputs = inputs_of(name)
    columns = ("input_ids", "attention_mask")
    return {key: inputs[key] for key in columns}, {key: value for key, value in inputs.items() if key not in columns}


@pytest.mark.parametrize("name", DIFFLLAMAS)
def test_arguments_configuration_and_weights(keras, name):
    parameters = list(inspect.signature(getattr(longspan, name).call).parameters)
    assert parameters == ["self", *ARGUMENTS[name], *LAST, "output_differential_attentions"]
    theirs = list(inspect.signature(getattr(longspan, name.removeprefix("TF")).forward).parameters)
    by_place = theirs[: theirs.index("output_differential_attentions")]
    assert by_place == parameters[: len(by_place)]
    model = make(name, num_hidden_layers=1, dtype="mixed_bfloat16")
    assert_made_again(keras, model)
    auto = getattr(longspan, name.replace("DiffLlama", "AutoModel").replace("ModelModel", "Model"))
    assert type(auto.from_config(model.config)) is type(model)


def test_every_form_of_data_trains_alike(keras):
    import tensorflow as tf

    inputs, labels = split(READER)
    forms = {
        "arrays": (inputs, labels),
        "tf.data": (tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(2), None),
        "tf.data, labels inside": (tf.data.Dataset.from_tensor_slices(inputs | labels).batch(2), None),
    }
    expected = None
    for form, (x, y) in forms.items():
        model = make(READER, num_hidden_layers=1)
        model.compile(keras.optimizers.SGD(0.02), run_eagerly=form != "tf.data")
        size = {"batch_size": 2} if y is not None else {}
        losses = model.fit(x, y, epochs=2, shuffle=False, verbose=0, **size).history["loss"]
        losses.append(model.evaluate(x, y, verbose=0, **size))
        expected = losses if expected is None else expected
        assert losses[2] < losses[1] < losses[0]
        assert_close(losses, expected, what=form)
        if form == "tf.data":
            assert_close(model.predict(x, verbose=0).start_logits, model(inputs).start_logits)


def test_keras_files_and_saved_models_serve_every_length(keras, tmp_path):
    model = make(READER, num_hidden_layers=1)
    inputs = {key: value.astype("int32") for key, value in split(READER)[0].items()}
    assert_saved_serves(keras, model, inputs, lengths=(19, 7), field="start_logits", folder=tmp_path)


@pytest.mark.parametrize("policy", ["mixed_float16", "bfloat16"])
def test_half_precision_trains(keras, policy):
    inputs, labels = split(WRITER)
    model = make(WRITER, dtype=policy, num_hidden_layers=1)
    exact = make(WRITER, num_hidden_layers=1)(inputs, **labels)
    assert abs(float(model(inputs, **labels).loss[0]) - float(exact.loss[0])) < 0.1
    model.compile(keras.optimizers.SGD(0.02), run_eagerly=True)
    losses = model.fit(inputs, labels["labels"], epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_xla_trains_to_the_same_weights(keras, monkeypatch):
    from longspan.ops.keras import differential

    monkeypatch.setattr(differential, "BLOCK_ROWS", 8)
    inputs, labels = split(CLASSIFIER)
    trained = []
    for options in ({"run_eagerly": True}, {"jit_compile": True}):
        model = make(CLASSIFIER, num_hidden_layers=1)
        model.compile(keras.optimizers.SGD(0.1), **options)
        model.fit(inputs, labels["labels"], verbose=0)
        trained.append(model)
    for mine, theirs in zip(trained[1].weights, trained[0].weights, strict=True):
        assert_close(mine, theirs)


def test_dropout_acts_in_training_only_and_no_cache_is_kept_there(keras):
    model = make(WRITER, attention_dropout=0.5, num_hidden_layers=1)
    inputs, labels = split(WRITER)
    with recording() as ran:
        still = [model(inputs) for _ in range(2)]
    assert ran == ["chunked"] * 2
    np.testing.assert_array_equal(still[0].logits, still[1].logits)
    moving = [model(inputs, training=True) for _ in range(2)]
    assert np.abs(np.asarray(moving[0].logits) - np.asarray(moving[1].logits)).max() > 0.1
    kept = (still[0], moving[0], model(inputs, **labels))
    assert [output.past_key_values is None for output in kept] == [False, True, True]


def test_the_model_is_a_layer_of_a_functional_model(keras):
    symbols = {key: keras.Input((None,), dtype="int32", name=key) for key in ("input_ids", "attention_mask")}
    base = make("TFDiffLlamaModel", num_hidden_layers=1, use_cache=False)
    model = keras.Model(symbols, base(symbols).last_hidden_state)
    inputs = split("TFDiffLlamaModel")[0]
    mine, expected = (np.asarray(states) for states in (model(inputs), base(inputs).last_hidden_state))
    assert_close(mine[attention_mask() == 1], expected[attention_mask() == 1])


def test_a_larger_vocabulary_keeps_old_scores(keras, tmp_path):
    for tied in (True, False):
        model = make(WRITER, tie_word_embeddings=tied, num_hidden_layers=1)
        ids = inputs_of("")["input_ids"]
        before = np.asarray(model(ids).logits)
        model.resize_token_embeddings(101)
        np.testing.assert_allclose(np.asarray(model(ids).logits)[..., :97], before, atol=1e-6)
        model.save_pretrained(tmp_path / str(tied))
        again = longspan.TFAutoModelForCausalLM.from_pretrained(tmp_path / str(tied))
        np.testing.assert_array_equal(again(ids).logits, model(ids).logits)
        back = longspan.DiffLlamaForCausalLM.from_pretrained(tmp_path / str(tied))
        assert back.load_report.missing == ()
