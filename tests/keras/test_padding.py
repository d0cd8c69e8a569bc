"""Labels at padding count as in the reference, whoever brings them; what padding holds reaches no real token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.keras.setting import CLASSES, LENGTH, ROWS, attention_mask, inputs_of, make
from tests.parity.keras_parity import compare_gradients
from tests.tolerances import assert_close

import longspan
from longspan.errors import InputError

TRAINED = [name for name in CLASSES if name != "TFBertModel"]
#: classes that train and evaluate in a graph, which takes long to trace; the others do it operation by operation
IN_GRAPHS = ("TFBertForTokenClassification", "TFBertForQuestionAnswering")


def everything_counts(name):
    """Inputs whose labels count at padding too, and whose first token is padding in one row."""
    inputs = inputs_of(name)
    inputs["attention_mask"][1, ..., 0] = 0
    generator = np.random.default_rng(5)
    if "labels" in inputs and inputs["labels"].ndim == 2:
        inputs["labels"] = generator.integers(0, 5, inputs["labels"].shape)
        inputs["labels"][0, :3] = -100
    return inputs


def split(inputs):
    columns = ("input_ids", "token_type_ids", "attention_mask")
    return {key: inputs[key] for key in columns}, {key: inputs[key] for key in inputs if key not in columns}


@pytest.mark.parametrize("name", TRAINED)
def test_losses_and_gradients_equal_pytorch(keras, name, tmp_path):
    import tensorflow as tf

    inputs, labels = split(everything_counts(name))
    model = make(name, num_hidden_layers=1)
    model.save_pretrained(tmp_path)
    expected_model = getattr(longspan, name[2:]).from_pretrained(tmp_path, attn_implementation="eager")
    renamed = {"labels" if key == "next_sentence_label" and len(labels) == 1 else key: labels[key] for key in labels}
    expected = expected_model(**{key: torch.tensor(value) for key, value in (inputs | renamed).items()})
    expected.loss.backward()
    with tf.GradientTape() as tape:
        loss = model(inputs, **labels).loss
    assert_close(loss[0], expected.loss)
    compare_gradients(tape.gradient(loss, model.trainable_weights), model, expected_model)

    # a graph; labels that come as y, in training and in evaluation
    assert_close(tf.function(lambda: model(inputs, **labels).loss, autograph=False)()[0], expected.loss)
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=name not in IN_GRAPHS)
    y = labels if len(labels) > 1 else next(iter(labels.values()))
    assert_close(model.evaluate(inputs, y, batch_size=ROWS, verbose=0), expected.loss)
    assert_close(model.fit(inputs, y, batch_size=ROWS, verbose=0).history["loss"][0], expected.loss)


def test_a_loop_of_ones_own_and_a_standard_loss_read_all_states(keras):
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    inputs, labels = split(everything_counts("TFBertForTokenClassification"))
    y = np.maximum(labels["labels"], 0)
    eager = make("TFBertForTokenClassification", attn_implementation="eager")
    model = make("TFBertForTokenClassification")
    expected = float(sparse(y, eager(inputs).logits))
    assert_close(model.compute_loss(inputs, y, model(inputs, training=True)), float(eager(inputs, labels=y).loss[0]))
    model.compile("sgd", loss=sparse, run_eagerly=True)
    assert_close(model.evaluate(inputs, y, verbose=0), expected)
    packed = model.predict(inputs, verbose=0).logits  # without labels the batch is packed
    real = attention_mask() * inputs["attention_mask"] == 1
    assert_close(packed[real], np.asarray(eager(inputs).logits)[real])


def test_labels_need_the_shape_of_the_ids(keras):
    inputs, labels = split(inputs_of("TFBertForTokenClassification"))
    model = make("TFBertForTokenClassification")
    with pytest.raises(
        InputError, match=r"labels must have the shape of the scores .* = \(4, 19\). Received: \(4, 18\)"
    ):
        model(inputs, labels=labels["labels"][:, 1:])


@pytest.mark.parametrize("implementation", ["eager", "packed"])
def test_faults_at_masked_positions_reach_no_real_token(keras, implementation):
    model = make("TFBertModel", attn_implementation=implementation)
    mask = attention_mask()
    embeds = np.random.default_rng(0).standard_normal((ROWS, LENGTH, 36)).astype(np.float32)
    broken = np.where(mask[..., None] == 1, embeds, np.nan)
    broken[3, 4] = np.inf
    output, expected = (model(inputs_embeds=x, attention_mask=mask).last_hidden_state for x in (broken, embeds))
    assert_close(np.asarray(output)[mask == 1], np.asarray(expected)[mask == 1])


def test_faults_at_masked_states_of_an_encoder_reach_no_token(keras):
    model = make("TFBertModel", is_decoder=True, add_cross_attention=True)
    mask = attention_mask()
    states = np.random.default_rng(0).standard_normal((ROWS, LENGTH, 36)).astype(np.float32)
    broken = np.where(mask[..., None] == 1, states, np.nan)
    inputs = {"input_ids": inputs_of("TFBertModel")["input_ids"], "encoder_attention_mask": mask}
    output, expected = (model(**inputs, encoder_hidden_states=x).last_hidden_state for x in (broken, states))
    assert_close(output, expected)


def test_class_and_sample_weights_multiply_the_own_loss(keras):
    inputs, labels = split(inputs_of("TFBertForSequenceClassification"))
    y = labels["labels"]
    own, standard = (make("TFBertForSequenceClassification", num_hidden_layers=1) for _ in range(2))
    own.compile(keras.optimizers.SGD(0.0))
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    standard.compile(keras.optimizers.SGD(0.0), loss=sparse, run_eagerly=True)
    for weights in ({"class_weight": {0: 3.0, 2: 0.5, 4: 2.0}}, {"sample_weight": np.array([1.0, 0.0, 2.0, 4.0])}):
        losses = [
            model.fit(inputs, y, batch_size=ROWS, shuffle=False, verbose=0, **weights).history["loss"][0]
            for model in (own, standard)
        ]
        assert_close(losses[0], losses[1])
    tokens = make("TFBertForTokenClassification", num_hidden_layers=1)
    inputs, labels = split(inputs_of("TFBertForTokenClassification"))
    tokens.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    expected = float(tokens(inputs, **labels).loss[0])
    doubled = tokens.fit(inputs, labels["labels"], batch_size=ROWS, sample_weight=np.full(ROWS, 2.0), verbose=0)
    assert_close(doubled.history["loss"][0], 2 * expected)


def test_ragged_ids_are_named(keras):
    import tensorflow as tf

    ids = tf.ragged.constant([[1, 2, 3], [4, 5]])
    model = make("TFBertForSequenceClassification")
    for call in (lambda: model(ids), lambda: model(input_ids=ids), lambda: model.predict({"input_ids": ids})):
        with pytest.raises(InputError, match=r"input_ids.to_tensor\(0\) pads them, .* Received: a RaggedTensor"):
            call()
