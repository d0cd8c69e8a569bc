"""`compile`, `fit`, `evaluate`, `predict`: every form of data, standard losses and the model's own."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from tests.keras import setting
from tests.keras.setting import CLASSES, ROWS, attention_mask, inputs_of
from tests.tolerances import assert_close

import longspan
from longspan.errors import InputError

#: one layer: tracing is what takes time here
make = partial(setting.make, num_hidden_layers=1)
TRAINED = [name for name in CLASSES if name != "TFBertModel"]
#: classes that train in a graph here; tests/keras/test_padding.py has graphs of others
IN_GRAPHS = ("TFBertForPreTraining", "TFBertLMHeadModel", "TFBertForMultipleChoice")


def split(name):
    """Inputs and labels of a class."""
    inputs = inputs_of(name)
    columns = ("input_ids", "token_type_ids", "attention_mask")
    return {key: inputs[key] for key in columns}, {key: value for key, value in inputs.items() if key not in columns}


def single(labels):
    return next(iter(labels.values())) if len(labels) == 1 else labels


@pytest.mark.parametrize("name", TRAINED)
def test_the_own_loss_trains_with_labels_as_y_or_among_the_inputs(keras, name):
    inputs, labels = split(name)
    model = make(name)
    expected = float(np.mean(model(inputs, **labels).loss))
    model.compile(keras.optimizers.SGD(0.01), run_eagerly=name not in IN_GRAPHS)
    output = model(inputs)
    forms = [labels, tuple(labels.values()), *([single(labels)] if len(labels) == 1 else [])]
    for y in forms:
        assert_close(model.compute_loss(inputs, y, output), expected)
    history = model.fit(inputs | labels, batch_size=ROWS, epochs=2, verbose=0).history["loss"]
    assert_close(history[0], expected)
    assert history[1] < history[0]


def test_a_step_of_fit_is_the_gradient_step_of_the_loss(keras):
    import tensorflow as tf

    name = "TFBertForSequenceClassification"
    inputs, labels = split(name)
    by_hand, by_fit = make(name), make(name)
    with tf.GradientTape() as tape:
        loss = by_hand(inputs, **labels).loss
    gradients = tape.gradient(loss, by_hand.trainable_weights)
    keras.optimizers.SGD(0.1).apply(gradients, by_hand.trainable_weights)
    by_fit.compile(keras.optimizers.SGD(0.1))
    by_fit.fit(inputs, single(labels), verbose=0)
    for mine, theirs in zip(by_fit.weights, by_hand.weights, strict=True):
        assert_close(mine, theirs)


def test_standard_losses_and_metrics_take_y(keras):
    sparse = keras.losses.SparseCategoricalCrossentropy
    inputs, labels = split("TFBertForTokenClassification")
    y = labels["labels"]
    model = make("TFBertForTokenClassification")
    own = float(model(inputs, labels=y).loss[0])
    predicted = np.asarray(model(inputs).logits).argmax(-1)
    accuracy = float((predicted == y)[y >= 0].mean())
    model.compile(loss=sparse(from_logits=True, ignore_class=-100), metrics=["accuracy"], weighted_metrics=["accuracy"])
    result = model.evaluate(inputs, y, verbose=0, return_dict=True)
    assert_close(result["loss"], own)
    assert_close(result["weighted_accuracy"], accuracy)
    assert result["accuracy"] < accuracy  # Keras counts ignored labels as misses unless metrics are weighted

    inputs, labels = split("TFBertForQuestionAnswering")
    labels = {key: np.minimum(value, 18) for key, value in labels.items()}
    for y, loss in (
        (tuple(labels.values()), sparse(from_logits=True)),
        (labels, {name: sparse(from_logits=True) for name in labels}),
    ):
        model = make("TFBertForQuestionAnswering")
        model.compile(loss=loss, run_eagerly=True)
        own = float(model(inputs, **labels).loss[0])
        result = model.evaluate(inputs, y, verbose=0, return_dict=True)
        assert_close(result["loss"] / 2, own)


def test_metrics_find_labels_among_the_inputs(keras):
    inputs, labels = split("TFBertForTokenClassification")
    model = make("TFBertForTokenClassification")
    model.compile(weighted_metrics=["accuracy"], run_eagerly=True)
    inside = model.evaluate(inputs | labels, verbose=0, return_dict=True)
    assert inside == model.evaluate(inputs, single(labels), verbose=0, return_dict=True)


def test_metrics_of_a_causal_model_look_at_the_next_token(keras):
    inputs, labels = split("TFBertLMHeadModel")
    model = make("TFBertLMHeadModel")
    model.compile(weighted_metrics=["accuracy"], run_eagerly=True)
    # labels that are right wherever they count
    next_token = np.asarray(model(inputs).logits).argmax(-1)[:, :-1]
    y = np.concatenate([labels["labels"][:, :1], np.where(labels["labels"][:, 1:] >= 0, next_token, -100)], axis=1)
    assert model.evaluate(inputs, y, verbose=0, return_dict=True)["accuracy"] == 1.0


def test_datasets_tokenizer_output_and_lists_train_alike(keras):
    import tensorflow as tf

    inputs, labels = split("TFBertForTokenClassification")
    y = single(labels)
    batch = longspan.BatchEncoding({**inputs, "offset_mapping": np.zeros((ROWS, 19, 2))})
    columns = [inputs["input_ids"], inputs["attention_mask"], inputs["token_type_ids"]]
    with_y = tf.data.Dataset.from_tensor_slices((inputs, y)).batch(2)
    with_labels = tf.data.Dataset.from_tensor_slices(inputs | labels).batch(2)
    forms = [(inputs, y), (batch, y), (columns, y), (tuple(columns), y), (with_y, None), (with_labels, None)]
    losses = []
    for x, target in forms:
        model = make("TFBertForTokenClassification")
        model.compile(keras.optimizers.SGD(0.1), run_eagerly=x is not with_y)
        size = {} if target is None else {"batch_size": 2, "shuffle": False}
        validation = x if target is None else (x, target)
        history = model.fit(x, target, verbose=0, validation_data=validation, **size).history
        losses.append([history["loss"], history["val_loss"]])
        assert_close(losses[-1], losses[0])
        assert_close(model.evaluate(x, target, verbose=0), history["val_loss"][0])
        predictions = model.predict(x, verbose=0)
        assert_close(predictions.logits, model(inputs).logits)
    model.train_on_batch(batch, y)
    assert_close(model.test_on_batch(batch, y), float(model(inputs, labels=y).loss[0]))
    assert_close(model.predict_on_batch(batch)["logits"], model(inputs).logits)


def test_callbacks_and_the_progress_bar_see_every_batch(keras, capsys):
    inputs, labels = split("TFBertForTokenClassification")

    class Count(keras.callbacks.Callback):
        batches, logs = 0, None

        def on_train_batch_end(self, batch, logs=None):
            Count.batches, Count.logs = Count.batches + 1, logs

    model = make("TFBertForTokenClassification")
    model.compile("adam", run_eagerly=True)
    stop = keras.callbacks.EarlyStopping("loss", patience=0, mode="max")
    model.fit(inputs, single(labels), batch_size=2, epochs=5, callbacks=[Count(), stop], verbose=1)
    assert model.history.epoch == [0, 1]
    assert (Count.batches, list(Count.logs)) == (4, ["loss"])
    assert "2/2" in capsys.readouterr().out


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_mixed_precision_trains_and_keeps_the_weights_type(keras, policy):
    inputs, labels = split("TFBertForSequenceClassification")
    model = make("TFBertForSequenceClassification", dtype=policy)
    exact = make("TFBertForSequenceClassification")(inputs, **labels)
    output = model(inputs, **labels)
    assert keras.backend.standardize_dtype(output.logits.dtype) == policy.removeprefix("mixed_")
    assert keras.backend.standardize_dtype(output.loss.dtype) == "float32"
    assert abs(float(output.loss[0]) - float(exact.loss[0])) < 0.1
    model.compile(keras.optimizers.SGD(0.02), run_eagerly=policy != "mixed_float16")
    losses = model.fit(inputs, single(labels), epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    kept = {keras.backend.standardize_dtype(weight.dtype) for weight in model.weights}
    assert kept == {"bfloat16" if policy == "bfloat16" else "float32"}


def test_labels_keep_their_precision_under_a_half_precision_policy(keras):
    model = make("TFBertForSequenceClassification", dtype="mixed_float16", num_labels=1)
    loss = model(split("TFBertForSequenceClassification")[0], labels=np.full(ROWS, 1e5, np.float32)).loss
    assert abs(float(loss[0]) / 1e10 - 1) < 1e-2


def test_xla_trains_to_the_same_weights(keras):
    inputs, labels = split("TFBertForSequenceClassification")
    trained = []
    for options in ({"run_eagerly": True}, {"jit_compile": True}):
        model = make("TFBertForSequenceClassification")
        model.compile(keras.optimizers.SGD(0.1), **options)
        model.fit(inputs, single(labels), verbose=0)
        trained.append(model)
    for mine, theirs in zip(trained[1].weights, trained[0].weights, strict=True):
        assert_close(mine, theirs)


def test_dropout_acts_in_training_only(keras):
    model = make("TFBertForTokenClassification", hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    inputs, _ = split("TFBertForTokenClassification")
    for implementation in ("eager", "packed"):
        model.config.attn_implementation = implementation
        still = [np.asarray(model(inputs).logits) for _ in range(2)]
        np.testing.assert_array_equal(*still)
        moving = [np.asarray(model(inputs, training=True).logits) for _ in range(2)]
        assert np.abs(moving[0] - moving[1]).max() > 0.1
        assert np.abs(moving[0] - still[0]).max() > 0.1


def test_frozen_layers_stay(keras):
    model = make("TFBertForSequenceClassification")
    model.bert.trainable = False
    before = [np.asarray(weight) for weight in model.bert.weights]
    head = np.array(model.classifier.kernel)
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    inputs, labels = split("TFBertForSequenceClassification")
    model.fit(inputs, single(labels), verbose=0)
    for old, weight in zip(before, model.bert.weights, strict=True):
        np.testing.assert_array_equal(old, weight)
    assert np.abs(head - np.asarray(model.classifier.kernel)).max() > 0
    assert model.num_parameters(only_trainable=True) == 36 * 5 + 5
    assert model.num_parameters() == model.count_params()


def test_the_model_is_a_layer_of_a_functional_model(keras):
    ids = keras.Input((None,), dtype="int32", name="input_ids")
    mask = keras.Input((None,), dtype="int32", name="attention_mask")
    bert = make("TFBertModel")
    for given in ({"input_ids": ids, "attention_mask": mask}, [ids, mask]):
        symbolic = bert(given)
        assert tuple(symbolic.last_hidden_state.shape) == (None, None, 36)
    pooled = bert(ids, attention_mask=mask).pooler_output
    model = keras.Model([ids, mask], keras.layers.Dense(2)(pooled))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    inputs, _ = split("TFBertModel")
    x = [inputs["input_ids"], inputs["attention_mask"]]
    losses = model.fit(x, np.array([0, 1, 1, 0]), epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert_close(model.predict(x, verbose=0), model.layers[-1](bert(*x).pooler_output))


def test_sequence_labels_of_every_kind(keras):
    inputs, _ = split("TFBertForSequenceClassification")
    logits = np.asarray(make("TFBertForSequenceClassification")(inputs).logits, np.float64)
    hot = np.random.default_rng(0).integers(0, 2, (ROWS, 5)).astype(np.float32)
    targets = np.random.default_rng(1).standard_normal((ROWS, 5)).astype(np.float32)
    entropy = -(hot * -np.logaddexp(0, -logits) + (1 - hot) * -np.logaddexp(0, logits)).mean()
    expected = {
        ("multi_label_classification", "hot"): -entropy,
        (None, "hot"): -entropy,
        ("regression", "targets"): ((logits - targets) ** 2).mean(),
    }
    values = {"hot": hot, "targets": targets}
    for (kind, labels), loss in expected.items():
        model = make("TFBertForSequenceClassification", problem_type=kind)
        assert_close(model(inputs, labels=values[labels]).loss[0], abs(loss), what=str(kind))
    with pytest.raises(InputError, match=r"labels must have the shape \(batch, num_labels\) = \(4, 5\). Received"):
        model(inputs, labels=hot[:, :4])
    scores = make("TFBertForSequenceClassification", num_labels=1)
    distance = (np.asarray(scores(inputs).logits)[:, 0] - targets[:, 0]) ** 2
    assert_close(scores(inputs, labels=targets[:, 0]).loss[0], distance.mean())


def test_a_loss_without_labels_that_count_is_zero(keras):
    inputs, _ = split("TFBertForTokenClassification")
    model = make("TFBertForTokenClassification")
    loss = model(inputs, labels=np.full(attention_mask().shape, -100)).loss
    assert float(loss[0]) == 0.0


def test_training_errors_name_what_is_missing(keras):
    inputs, labels = split("TFBertForTokenClassification")
    model = make("TFBertForTokenClassification")
    model.compile("sgd", run_eagerly=True)
    with pytest.raises(InputError, match=r"needs labels, as y or among the inputs \(labels\). Received: neither"):
        model.fit(inputs, verbose=0)
    with pytest.raises(InputError, match="sample_weight and class_weight need the labels as y. Received: labels among"):
        model.compute_loss(inputs, None, model(inputs | labels), np.ones(ROWS))
    with pytest.raises(InputError, match="the model's own loss takes one sample_weight for all labels"):
        model.compute_loss(inputs, single(labels), model(inputs), {"labels": np.ones(ROWS)})
    with pytest.raises(InputError, match="y must hold the labels labels. Received: tags"):
        model.fit(inputs, {"tags": single(labels)}, verbose=0)
    eager = make("TFBertForTokenClassification", return_dict=False)
    eager.compile("sgd", run_eagerly=True)
    with pytest.raises(InputError, match="training needs outputs by name: config.return_dict must be True"):
        eager.fit(inputs, single(labels), verbose=0)
    answers = make("TFBertForQuestionAnswering")
    answers.compile("sgd", run_eagerly=True)
    with pytest.raises(
        InputError, match="y must hold the labels start_positions, end_positions. Received: ndarray|Tensor"
    ):
        answers.fit(split("TFBertForQuestionAnswering")[0], np.zeros(ROWS, int), verbose=0)
    bare = make("TFBertModel")
    bare.compile("sgd", run_eagerly=True)
    with pytest.raises(InputError, match="TFBertModel has no loss of its own: pass one to compile|y must hold"):
        bare.fit(inputs, {"pooler_output": np.zeros((ROWS, 36))}, verbose=0)
    bare.compile("sgd", loss={"pooler_output": "mse"}, run_eagerly=True)
    assert np.isfinite(bare.fit(inputs, {"pooler_output": np.zeros((ROWS, 36))}, verbose=0).history["loss"][0])
    with pytest.raises(InputError, match="TFBertModel has no task, so y must be a dict by output name"):
        bare.fit(inputs, np.zeros((ROWS, 36)), verbose=0)
