"""Chunked MEGA layers in Keras read long inputs span by span; nothing must show where spans meet."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from tests.keras.setting import config_for, make
from tests.tolerances import assert_close, assert_gradients_close

import longspan
from longspan import shapes

CHUNK, WIDEST = 7, 2 * 36 + 50 + 12
DECODER = {"is_decoder": True, "bidirectional": False}
MODES = {"encoder": {}, "decoder": DECODER, "seq2seq": {**DECODER, "add_cross_attention": True}}


@pytest.fixture(autouse=True)
def spans(monkeypatch):
    """Spans of at most 28 tokens in blocks of 7; what layers took so, as a graph is traced or a call runs."""
    from longspan.models.mega import keras_layers

    seen, original = [], keras_layers.MegaBlock._in_spans
    monkeypatch.setattr(shapes, "TOKEN_BLOCK_BYTES", 4 * WIDEST * 4 * CHUNK)
    monkeypatch.setattr(keras_layers, "_LONGER_IN_GRAPHS", 1)
    monkeypatch.setattr(keras_layers, "BLOCK_SIZE", CHUNK)
    monkeypatch.setattr(keras_layers.MegaBlock, "_in_spans", lambda *args: seen.append(args[3]) or original(*args))
    return seen


def inputs_of(mode, length, rows=2):
    import tensorflow as tf

    rng = np.random.default_rng(length)
    inputs = {"input_ids": tf.constant(rng.integers(2, 97, (rows, length)), tf.int32)}
    if "add_cross_attention" in mode:
        inputs["encoder_hidden_states"] = tf.constant(rng.normal(size=(rows, 5, 36)), tf.float32)
    return inputs


def gradients_of(model, inputs):
    """States, and by weight the gradients of their weighted sum."""
    import tensorflow as tf

    with tf.GradientTape() as tape:
        states = model(**inputs).last_hidden_state
        places = tf.range(tf.size(states), dtype="int32") % 11
        loss = tf.reduce_sum(states * tf.cast(tf.reshape(places - 5, tf.shape(states)), states.dtype))
    weights = {weight.path: weight.value for weight in model.trainable_variables if "pooler" not in weight.path}
    return states, {path: tf.convert_to_tensor(each) for path, each in tape.gradient(loss, weights).items()}


@pytest.mark.parametrize(
    ("kind", "mode"), [*(("call", mode) for mode in MODES), ("any length", "encoder"), ("xla", "decoder")]
)
def test_values_and_gradients_are_those_of_the_whole(spans, kind, mode):
    """In a call, in one graph of all lengths, and in programs of one length each."""
    import tensorflow as tf

    mode = MODES[mode]
    base = make("TFMegaModel", **({"num_hidden_layers": 1} | mode))
    program = functools.partial(gradients_of, base)
    if kind == "any length":
        spec = {name: tf.TensorSpec((None, None, *x.shape[2:]), x.dtype) for name, x in inputs_of(mode, 3).items()}
        program = tf.function(program, input_signature=[spec], autograph=False)
        program.get_concrete_function()
        assert len(spans) == 1, "a graph of any length holds both ways"
    elif kind == "xla":
        program = tf.function(program, jit_compile=True, autograph=False)
    lengths = ((42, 14), (33, 14), (14, None))  # whole spans, the last one short, one span
    for length, span in lengths[1:2] if kind == "xla" else lengths:
        inputs = inputs_of(mode, length)
        states, gradients = program(inputs)
        if kind != "any length":
            assert spans == ([] if span is None else [span])
            spans.clear()
        with longspan.plain():
            expected, wanted = gradients_of(base, inputs)
        assert_close(states, expected)
        assert_gradients_close(gradients, wanted)


def test_padding_is_as_in_the_whole(spans):
    """A row that begins later has chunks of its own: a call sees it, and a graph chooses when it runs."""
    import tensorflow as tf

    model = make("TFMegaModel", num_hidden_layers=1)
    ids, (right, left) = inputs_of({}, 40)["input_ids"], np.ones((2, 2, 40), np.int32)
    right[1, 33:] = right[0, 17] = 0
    left[1, :3] = left[0, 30:] = 0
    graph = tf.function(lambda ids, mask: model(ids, mask).last_hidden_state, autograph=False)
    graph.get_concrete_function(ids, tf.constant(right))
    assert spans
    for mask, goes in ((right, True), (left, False)):
        spans.clear()
        with longspan.plain():
            whole = np.asarray(model(ids, mask).last_hidden_state)
        assert not spans, "the definition goes in spans"
        for states in (model(ids, mask).last_hidden_state, graph(ids, tf.constant(mask))):
            assert_close(np.asarray(states)[mask == 1], whole[mask == 1])
        assert goes or not spans


def test_training_and_weights_take_the_whole(spans):
    model, ids = make("TFMegaModel", num_hidden_layers=1), inputs_of({}, 40)["input_ids"]
    model(ids, training=True)
    assert model(ids, output_attentions=True).attentions[0].shape == (2, 6, CHUNK, CHUNK)
    assert not spans
    truncated = longspan.TFMegaModel(config_for("TFMegaModel", num_hidden_layers=1, truncation=3))
    truncated(ids)
    assert not spans
