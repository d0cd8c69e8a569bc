"""Keras' own methods on LongT5: forms of data, saving, export, XLA, symbolic inputs, and the arguments of a call."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from tests.keras.setting import LONGT5, assert_made_again, assert_saved_serves, attention_mask, inputs_of, make
from tests.tolerances import assert_close

import longspan
from longspan.errors import InputError


def arguments(name):
    return [key for key in inspect.signature(getattr(longspan, name).call).parameters if key != "self"]


def test_arguments_and_configuration(keras):
    for name in ("LongT5EncoderModel", "LongT5Model", "LongT5ForConditionalGeneration"):
        theirs = [key for key in inspect.signature(getattr(longspan, name).forward).parameters if key != "self"]
        assert arguments(f"TF{name}") == [key for key in theirs if key != "cache_position"] + ["training"]
    model = make(LONGT5, num_hidden_layers=1, dtype="mixed_bfloat16")
    assert_made_again(keras, model)


def test_labels_of_both_kinds_and_xla_train_alike(keras):
    inputs = inputs_of(LONGT5)
    labels = inputs.pop("labels")
    forms = {
        "arrays": (inputs, labels, {"run_eagerly": True}),
        "labels inside": (inputs | {"labels": labels}, None, {"run_eagerly": True}),
        "XLA": (inputs, labels, {"jit_compile": True}),
    }
    expected = None
    for form, (x, y, options) in forms.items():
        model = make(LONGT5, num_hidden_layers=1)
        model.compile(keras.optimizers.SGD(0.05), **options)
        losses = model.fit(x, y, epochs=2, shuffle=False, batch_size=2, verbose=0).history["loss"]
        expected = losses if expected is None else expected
        assert losses[1] < losses[0]
        assert_close(losses, expected, what=form)


def test_keras_files_and_saved_models_serve_every_length(keras, tmp_path):
    model = make(LONGT5, num_hidden_layers=1)
    columns = ("input_ids", "attention_mask", "decoder_input_ids")
    inputs = {key: inputs_of(LONGT5)[key].astype("int32") for key in columns}
    # 3 tokens have no summary
    assert_saved_serves(keras, model, inputs, lengths=(19, 3), field="logits", folder=tmp_path)


def test_the_encoder_is_a_layer_of_a_functional_model(keras):
    symbols = {key: keras.Input((None,), dtype="int32", name=key) for key in ("input_ids", "attention_mask")}
    whole = make(LONGT5, num_hidden_layers=1)
    base = longspan.TFLongT5EncoderModel(whole.config)
    model = keras.Model(symbols, base(symbols).last_hidden_state)
    inputs = {key: inputs_of(LONGT5)[key] for key in symbols}
    mine, expected = (np.asarray(states) for states in (model(inputs), base(inputs).last_hidden_state))
    assert_close(mine[attention_mask() == 1], expected[attention_mask() == 1])


@pytest.mark.parametrize("tied", [True, False])
def test_a_larger_vocabulary_keeps_old_scores_and_writes(keras, tied, tmp_path):
    model = make(LONGT5, tie_word_embeddings=tied, num_hidden_layers=1)
    inputs = inputs_of(LONGT5)
    before = np.asarray(model(inputs).logits)
    model.resize_token_embeddings(101)
    assert_close(np.asarray(model(inputs).logits)[..., :97], before)
    model.save_pretrained(tmp_path)
    again = longspan.TFAutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again(inputs).logits, model(inputs).logits)


def test_dropout_acts_in_training_only(keras):
    model = make(LONGT5, dropout_rate=0.5, num_hidden_layers=1)
    inputs = inputs_of(LONGT5)
    still = [np.asarray(model(inputs).logits) for _ in range(2)]
    np.testing.assert_array_equal(*still)
    moving = [np.asarray(model(inputs, training=True).logits) for _ in range(2)]
    assert np.abs(moving[0] - moving[1]).max() > 0.1


def test_labels_alone_need_the_targets_ids(keras):
    inputs = inputs_of(LONGT5)
    labels = inputs.pop("labels")
    del inputs["decoder_input_ids"]
    model = make(LONGT5, num_hidden_layers=1)
    model.compile("sgd", run_eagerly=True)
    with pytest.raises(InputError, match=r"decoder_inputs_embeds must be given \(or labels"):
        model.fit(inputs, labels, verbose=0)
