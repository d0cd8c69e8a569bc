"""What scripts for the reference's TensorFlow models do with a model: options in a dict, heads, SavedModels."""

from __future__ import annotations

import numpy as np
import pytest
from tests.keras.setting import import_keras, inputs_of, make
from tests.tolerances import assert_close

import longspan
from longspan.errors import InputError

keras = import_keras()
NAMES = ["TFBertForMaskedLM", "TFBertForQuestionAnswering", "TFLongformerForMaskedLM", "TFMegaForMaskedLM"]
NAMES += ["TFDiffLlamaForCausalLM", "TFLongT5ForConditionalGeneration", "TFBertForMultipleChoice"]


def small(name, **settings):
    return make(name, num_hidden_layers=1, **settings)


def test_options_may_stand_among_the_inputs():
    model, inputs = small("TFBertForTokenClassification"), inputs_of("TFBertForTokenClassification")
    expected = model(inputs, output_attentions=True, return_dict=False)
    for got in (
        model({**inputs, "output_attentions": True, "return_dict": False}),
        model(
            (
                inputs["input_ids"],
                inputs["attention_mask"],
                inputs["token_type_ids"],
                None,
                None,
                None,
                True,
                False,
                False,
                inputs["labels"],
            )
        ),
    ):
        assert len(got) == len(expected) == 3
        assert_close(got[1], expected[1])
    with pytest.raises(InputError, match="each input must come once. .*again: output_attentions"):
        model({**inputs, "output_attentions": True}, output_attentions=True)


@pytest.mark.parametrize("name", NAMES)
def test_signatures_and_heads(name):
    import tensorflow as tf

    model = small(name)
    assert model.build_in_name_scope() is None
    batch = model.dummy_inputs
    assert list(batch) == list(model.input_signature)
    assert all(spec.is_compatible_with(batch[key]) for key, spec in model.input_signature.items())
    assert all(spec.dtype == tf.int32 for spec in model.input_signature.values())
    output = model(batch)
    assert model.serving_output(output) is output
    head, embeddings, bias = model.get_lm_head(), model.get_output_embeddings(), model.get_bias()
    if not name.endswith(("LM", "Generation")):
        assert (head, embeddings, bias) == (None, None, None)
        return
    weights = embeddings.embeddings if embeddings is model.get_input_embeddings() else embeddings.kernel
    assert model.config.vocab_size in weights.shape
    before = np.asarray(output.logits)
    weights.assign(2 * np.asarray(weights))
    assert np.abs(np.asarray(model(batch).logits) - before).max() > 1e-3, "these weights do not score"
    for value in (bias or {}).values():
        before = np.asarray(model(batch).logits)
        value.assign(value + 1.0)
        assert_close(np.asarray(model(batch).logits), before + 1.0)


def test_one_sample_weight_serves_both_labels():
    inputs = inputs_of("TFBertForQuestionAnswering")
    labels = {"start_positions": np.array([3, 0, 7, 8]), "end_positions": np.array([5, 2, 9, 18])}  # all count
    inputs = {name: value for name, value in inputs.items() if name not in labels}
    model = small("TFBertForQuestionAnswering")
    model.compile("sgd", run_eagerly=True)
    losses = {}
    for row in range(4):
        weights = np.eye(4, dtype=np.float32)[row]
        losses[row] = model.evaluate(inputs, labels, batch_size=4, sample_weight=weights, verbose=0)
        alone = [{key: value[row : row + 1] for key, value in part.items()} for part in (inputs, labels)]
        assert losses[row] == pytest.approx(float(model(**alone[0], **alone[1]).loss[0]) / 4, rel=1e-4)
    assert len(set(losses.values())) == 4
    with pytest.raises(InputError, match="takes one sample_weight for all labels"):
        model.evaluate(inputs, labels, sample_weight={name: np.ones(4) for name in labels}, verbose=0)


def test_one_list_of_metrics_serves_both_labels_and_is_saved(tmp_path):
    inputs = inputs_of("TFBertForQuestionAnswering")
    names = ("start_positions", "end_positions")
    labels = {name: inputs.pop(name) for name in names}
    model = small("TFBertForQuestionAnswering")
    model.compile("sgd", metrics=[keras.metrics.SparseCategoricalAccuracy()], run_eagerly=True)
    found = model.evaluate(inputs, labels, batch_size=4, verbose=0, return_dict=True)
    output = model(inputs)
    for name, scores in zip(names, (output.start_logits, output.end_logits), strict=True):
        right = np.mean(np.argmax(np.asarray(scores), axis=-1) == labels[name])
        assert found[f"{name}_sparse_categorical_accuracy"] == pytest.approx(right)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.evaluate(inputs, labels, batch_size=4, verbose=0, return_dict=True) == pytest.approx(found, rel=1e-4)


def test_facts_that_scripts_ask_for():
    model = small("TFBertForMaskedLM")
    assert (type(model).can_generate(), model.generation_config, model.framework) == (False, None, "tf")
    assert longspan.TFBertLMHeadModel.can_generate()
    assert model.name_or_path == model.config.name_or_path
    assert type(model)._from_config(model.config).config is model.config
    with pytest.raises(InputError, match="has no such keywords. Received: nonsense"):
        model.save_pretrained("never", nonsense=1)
    with pytest.raises(InputError, match="checkpoints hold no code"):
        model.register_for_auto_class("TFAutoModel")


def test_a_saved_model_beside_the_checkpoint(tmp_path):
    import tensorflow as tf

    model = small("TFBertForSequenceClassification")
    model.save_pretrained(tmp_path, True, 3)
    inputs = {key: tf.constant(value, tf.int32) for key, value in inputs_of("TFBertForSequenceClassification").items()}
    del inputs["labels"]
    loaded = tf.saved_model.load(tmp_path / "saved_model" / "3")  # held while it serves
    served = loaded.serve(inputs)["logits"]
    again = longspan.TFBertForSequenceClassification.from_pretrained(tmp_path)
    assert_close(np.asarray(served), np.asarray(again(inputs).logits))


class Rows:
    """Stands for a `datasets.Dataset`, which has the two methods that are called."""

    def __init__(self, columns):
        self.columns, self.column_names = columns, list(columns)

    def remove_columns(self, names):
        return Rows({key: value for key, value in self.columns.items() if key not in names})

    def to_tf_dataset(self, *, collate_fn, **given):
        count = len(next(iter(self.columns.values())))
        rows = [{key: value[row] for key, value in self.columns.items()} for row in range(count)]
        return collate_fn(rows), given


def test_prepare_tf_dataset_chooses_columns_and_pads():
    model = small("TFBertForSequenceClassification")
    rows = Rows({"input_ids": [[1, 2], [3, 4]], "attention_mask": [[1, 1]] * 2, "label": [0, 1], "text": ["a", "b"]})
    batch, given = model.prepare_tf_dataset(rows, batch_size=2, shuffle=False)
    assert {key: value.shape for key, value in batch.items()} == {
        "input_ids": (2, 2), "attention_mask": (2, 2), "labels": (2,),
    }  # fmt: skip
    assert (given["columns"], given["label_cols"]) == (["input_ids", "attention_mask"], ["labels"])
    assert (given["batch_size"], given["shuffle"], given["drop_remainder"]) == (2, False, False)
