"""The input forms of SPEC §4.1, and the messages for inputs that break a rule."""

from __future__ import annotations

import numpy as np
import pytest
from tests.keras.setting import CLASSES, LENGTH, ROWS, inputs_of, make
from tests.tolerances import assert_close

import longspan
from longspan.errors import InputError
from longspan.nn.keras.inputs import input_names


@pytest.fixture(scope="module")
def model(keras):
    return make("TFBertForTokenClassification")


def main_field(output):
    return next(iter(output.values()))


@pytest.mark.parametrize("name", CLASSES)
def test_keywords_lists_tuples_dicts_and_places_give_the_same(name):
    model = make(name)
    inputs = {key: inputs_of(name)[key] for key in ("input_ids", "attention_mask", "token_type_ids")}
    expected = main_field(model(**inputs))
    tensors = list(inputs.values())
    for given in (tensors, tuple(tensors), inputs, longspan.BatchEncoding(inputs)):
        np.testing.assert_array_equal(main_field(model(given)), expected)
    np.testing.assert_array_equal(main_field(model(*tensors)), expected)
    np.testing.assert_array_equal(main_field(model(tensors[0])), main_field(model(input_ids=tensors[0])))
    np.testing.assert_array_equal(
        main_field(model([tensors[0], None, tensors[2]])),
        main_field(model(input_ids=tensors[0], token_type_ids=tensors[2])),
    )
    np.testing.assert_array_equal(main_field(model(inputs, training=False)), expected)


def test_tokenizer_output_is_an_input(minilm_dir):
    tokenizer = longspan.AutoTokenizer.from_pretrained(minilm_dir)
    model = longspan.TFBertModel.from_pretrained(minilm_dir)
    texts = ["How do I open a file?", "Rice"]
    batch = tokenizer(texts, padding=True, return_tensors="tf", return_offsets_mapping=True)
    lists = tokenizer(texts, padding=True)
    expected = model(**{key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids")})
    for given in (batch, lists):
        assert_close(model(given).last_hidden_state, expected.last_hidden_state)
    with pytest.raises(InputError, match=r"rows of input_ids must have one length: padding=True"):
        model(tokenizer(texts))


def test_flags_by_place_and_a_tuple(model):
    ids = inputs_of("")["input_ids"]
    output = model(ids, None, None, None, None, None, True, True, False)
    assert isinstance(output, tuple)
    logits, states, weights = output
    assert logits.shape == (ROWS, LENGTH, 5)
    assert (len(states), len(weights)) == (3, 2)


def test_configured_flags_hold_unless_an_argument_says_otherwise(keras):
    import tensorflow as tf

    model = make("TFBertModel", output_attentions=True, output_hidden_states=True, return_dict=False)
    ids = inputs_of("")["input_ids"]
    assert len(model(ids)) == 4
    named = model(ids, return_dict=True, output_attentions=False)
    assert list(named) == ["last_hidden_state", "pooler_output", "hidden_states"]

    @tf.function(autograph=False)
    def graph(ids):
        return model(ids, output_hidden_states=False), model(ids, return_dict=False)

    in_graph, as_asked = graph(ids)
    assert list(in_graph) == ["last_hidden_state", "pooler_output", "attentions"]
    assert isinstance(as_asked, tuple)


def test_an_output_reads_as_a_mapping_and_as_a_tuple(model):
    output = model(inputs_of("TFBertForTokenClassification"))
    assert list(output) == ["loss", "logits"]
    assert output["logits"] is output.logits is output[1]
    del output["loss"]
    assert list(output) == ["logits"]
    with pytest.raises(KeyError, match="TFTokenClassifierOutput has no field 'scores'"):
        output["scores"] = 1


IDS = np.ones((2, 5), np.int32)
BROKEN = {
    "neither": ({}, r"exactly one of input_ids and inputs_embeds must be given. Received: neither"),
    "both": (
        {"input_ids": IDS, "inputs_embeds": np.zeros((2, 5, 36), np.float32)},
        r"exactly one of input_ids and inputs_embeds must be given. Received: both",
    ),
    "rank": ({"input_ids": IDS[0]}, r"input_ids must have the shape \(batch, tokens\). Received: \(5,\)"),
    "embeds rank": (
        {"inputs_embeds": np.zeros((5, 36), np.float32)},
        r"inputs_embeds must have the shape \(batch, tokens, width\). Received: \(5, 36\)",
    ),
    "range": (
        {"input_ids": IDS * 97},
        r"input_ids must lie in \[0, vocab_size=97\). Received: 97 at position \(0, 0\)",
    ),
    "segment": (
        {"input_ids": IDS, "token_type_ids": IDS * 3},
        r"token_type_ids must lie in \[0, type_vocab_size=3\). Received: 3 at position",
    ),
    "segments": (
        {"input_ids": IDS, "token_type_ids": IDS[:, :4]},
        r"token_type_ids must have the shape \(batch, tokens\) = \(2, 5\). Received: \(2, 4\)",
    ),
    "positions": (
        {"input_ids": IDS, "position_ids": IDS * 29},
        r"position_ids must lie in \[0, max_position_embeddings=29\). Received: 29",
    ),
    "length": (
        {"input_ids": np.ones((1, 30), np.int32)},
        r"must not be longer than max_position_embeddings=29 tokens. Received: 30 tokens. Truncate it",
    ),
    "mask": (
        {"input_ids": IDS, "attention_mask": IDS[:, :4]},
        r"attention_mask must have the shape \(batch, keys\) = \(2, 5\), or .* Received: \(2, 4\)",
    ),
    "heads": (
        {"input_ids": IDS, "head_mask": np.ones((4,), np.float32)},
        r"head_mask must have the shape \(heads,\) = \(3,\) or \(layers, heads\) = \(2, 3\). Received: \(4,\)",
    ),
    "labels": (
        {"input_ids": IDS, "labels": IDS * 5},
        r"labels must lie in \[0, 5\) or be -100 \(ignored\). Received: 5 at position \(0, 0\)",
    ),
    "label shape": (
        {"input_ids": IDS, "labels": IDS[:, :4]},
        r"labels must have the shape of the scores without their last axis = \(2, 5\). Received: \(2, 4\)",
    ),
    "name": ({"input_ids": {"input_ids": IDS, "ids": IDS}}, r"inputs must be named input_ids, .* Received: 'ids'"),
    "twice": (
        {"input_ids": [IDS, IDS], "attention_mask": IDS},
        r"each input must come once. Received in the first argument and again: attention_mask",
    ),
    "many": ({"input_ids": [IDS] * 12}, r"a list of inputs holds at most input_ids, .* Received: 12 inputs"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_breaks_a_rule_is_named(model, case):
    arguments, message = BROKEN[case]
    with pytest.raises(InputError, match=message) as caught:
        model(**arguments)
    assert "Arguments received" not in str(caught.value)  # the dump that Keras appends


def test_wrong_calls_are_type_errors(model):
    with pytest.raises(TypeError, match="each input must come once. Received input_ids by place and by keyword"):
        model(IDS, input_ids=IDS)
    with pytest.raises(TypeError, match="TFBertForTokenClassification takes at most 11 inputs. Received: 12"):
        model(*[IDS] * 12)


def test_a_graph_checks_values_when_it_runs(model):
    import tensorflow as tf

    run = tf.function(
        lambda ids: model(ids).logits, input_signature=[tf.TensorSpec([None, None], tf.int32)], autograph=False
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"input_ids must lie in \[0, vocab_size=97\)"):
        run(IDS * 97)
    with pytest.raises(tf.errors.InvalidArgumentError, match="must not be longer than max_position_embeddings=29"):
        run(np.ones((1, 30), np.int32))


def test_decoders_say_what_they_need(keras):
    encoder, decoder = make("TFBertModel"), make("TFBertModel", is_decoder=True)
    past = decoder(IDS).past_key_values
    states = np.zeros((2, 4, 36), np.float32)
    with pytest.raises(InputError, match="past_key_values needs a decoder: config.is_decoder=True"):
        encoder(IDS, past_key_values=past)
    with pytest.raises(InputError, match="past_key_values must hold one tuple for each of num_hidden_layers=2 layers"):
        decoder(IDS, past_key_values=past[:1])
    with pytest.raises(InputError, match="encoder_hidden_states needs a decoder with cross-attention"):
        decoder(IDS, encoder_hidden_states=states)
    crossing = make("TFBertModel", is_decoder=True, add_cross_attention=True)
    with pytest.raises(InputError, match=r"encoder_attention_mask must have the shape \(batch, keys\) = \(2, 4\)"):
        crossing(IDS, encoder_hidden_states=states, encoder_attention_mask=IDS)


def test_choices_need_an_axis(keras):
    model = make("TFBertForMultipleChoice")
    with pytest.raises(InputError, match=r"must all have the shape \(batch, choices, ...\). Received: \[\(2, 5\)\]"):
        model(IDS)
    with pytest.raises(InputError, match="must all have the shape"):
        model(np.ones((2, 3, 5), np.int32), np.ones((2, 2, 5), np.int32))


def test_implementations_that_cannot_serve_say_why(keras):
    import tensorflow as tf

    with pytest.raises(InputError, match="attn_implementation must be one of auto, packed, eager"):
        make("TFBertModel", attn_implementation="flash")
    packed = make("TFBertModel", attn_implementation="packed")
    mask = np.ones_like(IDS)
    reasons = {
        "attention weights are returned by 'eager' only": {"attention_mask": mask, "output_attentions": True},
        "packing needs an attention_mask": {},
        "states at padding are needed": {"attention_mask": mask, "padding_states": True},
    }
    for reason, arguments in reasons.items():
        with pytest.raises(InputError, match=reason):
            packed(IDS, **arguments)
    with pytest.raises(InputError, match="this needs TensorFlow without XLA"):
        tf.function(lambda: packed(IDS, mask), jit_compile=True, autograph=False)()
    relative = make("TFBertModel", attn_implementation="packed", position_embedding_type="relative_key")
    with pytest.raises(InputError, match="relative position scores are computed by 'eager' only"):
        relative(IDS, mask)


def test_input_names_are_those_that_may_come_by_place():
    assert input_names(longspan.TFBertModel.call)[-1] == "training"
