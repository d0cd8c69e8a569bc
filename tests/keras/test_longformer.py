"""Keras' own methods on Longformers: forms of data, saving, export, precision, XLA, and the arguments of a call."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from tests.keras.setting import (
    LONGFORMERS,
    ROWS,
    assert_made_again,
    assert_saved_serves,
    attention_mask,
    inputs_of,
    make,
)
from tests.tolerances import assert_close

import longspan
from longspan.ops.dispatch import recording

CLASSIFIER, READER = LONGFORMERS
FIRST, FLAGS = (
    ["input_ids", "attention_mask", "head_mask"],
    ["output_attentions", "output_hidden_states", "return_dict"],
)
BACKBONE = [*FIRST, "global_attention_mask", "token_type_ids", "position_ids", "inputs_embeds", *FLAGS]
OTHERS = [*FIRST, "token_type_ids", "position_ids", "global_attention_mask", "inputs_embeds", *FLAGS, "labels"]
ARGUMENTS = {
    "TFLongformerModel": BACKBONE,
    "TFLongformerForMaskedLM": [*BACKBONE, "labels"],
    "TFLongformerForQuestionAnswering": [*BACKBONE, "start_positions", "end_positions"],
    "TFLongformerForSequenceClassification": OTHERS,
    "TFLongformerForMultipleChoice": OTHERS,
    "TFLongformerForTokenClassification": OTHERS,
}


def split(name):
    """Inputs and labels of a class."""
    inputs = inputs_of(name)
    columns = ("input_ids", "token_type_ids", "attention_mask", "global_attention_mask")
    return {key: inputs[key] for key in columns}, {key: value for key, value in inputs.items() if key not in columns}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_configuration_and_weights_are_those_of_the_reference(keras, name):
    parameters = list(inspect.signature(getattr(longspan, name).call).parameters)
    assert parameters == ["self", *ARGUMENTS[name], "training"]
    model = make(name, num_hidden_layers=1, dtype="mixed_bfloat16")
    assert_made_again(keras, model)
    auto = getattr(longspan, name.replace("Longformer", "AutoModel").replace("ModelModel", "Model"))
    assert type(auto.from_config(model.config)) is type(model)


def test_every_form_of_data_trains_alike(keras):
    import tensorflow as tf

    inputs, labels = split(READER)

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            rows = slice(2 * index, 2 * index + 2)
            return tuple({key: value[rows] for key, value in part.items()} for part in (inputs, labels))

    forms = {
        "arrays": (inputs, labels),
        "tf.data": (tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(2), None),
        "tf.data, labels inside": (tf.data.Dataset.from_tensor_slices(inputs | labels).batch(2), None),
        "PyDataset": (Batches(), None),
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
            scores = model.predict(x, verbose=0).start_logits
            assert_close(scores, model(inputs).start_logits)


def test_keras_files_and_saved_models_serve_every_length(keras, tmp_path):
    model = make(READER, num_hidden_layers=1)
    columns = ("input_ids", "attention_mask", "token_type_ids")
    inputs = {key: inputs_of(READER)[key].astype("int32") for key in columns}
    inputs["input_ids"][:, 6] = 2
    assert_saved_serves(keras, model, inputs, lengths=(19, 7), field="start_logits", folder=tmp_path)
    choices = make("TFLongformerForMultipleChoice", num_hidden_layers=1).get_input_signature()
    assert choices["input_ids"].shape == (None, None, None)


@pytest.mark.parametrize("policy", ["mixed_float16", "bfloat16"])
def test_half_precision_trains(keras, policy):
    inputs, labels = split(CLASSIFIER)
    model = make(CLASSIFIER, dtype=policy, num_hidden_layers=1)
    exact = make(CLASSIFIER, num_hidden_layers=1)(inputs, **labels)
    assert abs(float(model(inputs, **labels).loss[0]) - float(exact.loss[0])) < 0.1
    model.compile(keras.optimizers.SGD(0.02), run_eagerly=True)
    losses = model.fit(inputs, labels["labels"], epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_xla_trains_to_the_same_weights(keras):
    inputs, labels = split(CLASSIFIER)
    trained = []
    for options in ({"run_eagerly": True}, {"jit_compile": True}):
        model = make(CLASSIFIER, num_hidden_layers=1)
        model.compile(keras.optimizers.SGD(0.1), **options)
        model.fit(inputs, labels["labels"], verbose=0)
        trained.append(model)
    for mine, theirs in zip(trained[1].weights, trained[0].weights, strict=True):
        assert_close(mine, theirs)


def test_every_weight_has_a_gradient_without_global_tokens_too(keras):
    """Keras warns of weights without one, which would be an error here."""
    inputs, labels = split("TFLongformerForTokenClassification")
    del inputs["global_attention_mask"]
    for mask in (inputs["attention_mask"], inputs["attention_mask"].astype(bool)):
        model = make("TFLongformerForTokenClassification", num_hidden_layers=1)
        before = [np.array(weight) for weight in model.longformer.encoder.layer[0].attention.self.key_global.weights]
        model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
        model.fit(inputs | {"attention_mask": mask}, labels["labels"], batch_size=ROWS, verbose=0)
        for old, weight in zip(
            before, model.longformer.encoder.layer[0].attention.self.key_global.weights, strict=True
        ):
            np.testing.assert_array_equal(old, weight)


def test_dropout_acts_in_training_only_and_the_core_is_named(keras):
    model = make(CLASSIFIER, attention_probs_dropout_prob=0.5, num_hidden_layers=1)
    inputs, _ = split(CLASSIFIER)
    with recording() as ran:
        still = [np.asarray(model(inputs).logits) for _ in range(2)]
    assert ran == ["chunked"] * 2
    np.testing.assert_array_equal(*still)
    with recording() as ran:
        moving = [np.asarray(model(inputs, training=True).logits) for _ in range(2)]
    assert ran == ["blocked"] * 2
    assert np.abs(moving[0] - moving[1]).max() > 0.1


def test_the_model_is_a_layer_of_a_functional_model(keras):
    symbols = {key: keras.Input((None,), dtype="int32", name=key) for key in ("input_ids", "attention_mask")}
    base = make("TFLongformerModel", num_hidden_layers=1)
    model = keras.Model(symbols, base(symbols).last_hidden_state)
    inputs = {key: inputs_of("")[key] for key in symbols}
    mine, expected = (np.asarray(states) for states in (model(inputs), base(inputs).last_hidden_state))
    assert_close(mine[attention_mask() == 1], expected[attention_mask() == 1])


def test_a_larger_vocabulary_keeps_old_scores(keras, tmp_path):
    for tied in (True, False):
        model = make("TFLongformerForMaskedLM", tie_word_embeddings=tied, num_hidden_layers=1)
        ids = inputs_of("")["input_ids"]
        before = np.asarray(model(ids).logits)
        model.resize_token_embeddings(101)
        np.testing.assert_allclose(np.asarray(model(ids).logits)[..., :97], before, atol=1e-6)
        model.save_pretrained(tmp_path / str(tied))
        again = longspan.TFAutoModelForMaskedLM.from_pretrained(tmp_path / str(tied))
        np.testing.assert_array_equal(again(ids).logits, model(ids).logits)
