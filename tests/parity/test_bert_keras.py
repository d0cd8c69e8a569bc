"""Every Keras BERT class against the PyTorch class on the same safetensors: outputs, losses, gradients, files."""

from __future__ import annotations

import filecmp

import numpy as np
import pytest
import torch
from tests.grid import grid
from tests.keras.setting import CLASSES, LENGTH, ROWS, attention_mask, config_for, import_keras, inputs_of
from tests.parity.keras_parity import at_real_positions, compare_gradients, compare_outputs
from tests.parity.torch_parity import randomise
from tests.tolerances import assert_close

import longspan
from longspan.errors import InputError
from longspan.ops.dispatch import recording

DTYPES = ("float32", "bfloat16", "float16", "mixed_bfloat16", "mixed_float16")
DECODER = {"is_decoder": True, "add_cross_attention": True}


@pytest.fixture(scope="module", autouse=True)
def _keras():
    import_keras()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A function that gives (Keras model, PyTorch model, directory) of a class on equal weights, made once each."""
    made = {}

    def make(name, **settings):
        key = (name, *sorted(settings.items()))
        if key not in made:
            torch_name = name.removeprefix("TF")
            torch_model = randomise(getattr(longspan, torch_name)(config_for(name, **settings)))
            directory = tmp_path_factory.mktemp(name)
            torch_model.save_pretrained(directory)
            made[key] = (getattr(longspan, name).from_pretrained(directory), torch_model, directory)
        return made[key]

    return make


def torch_inputs(name, inputs):
    renamed = dict(inputs)
    if name == "TFBertForNextSentencePrediction" and "next_sentence_label" in renamed:
        renamed["labels"] = renamed.pop("next_sentence_label")
    return {key: torch.tensor(value) if isinstance(value, np.ndarray) else value for key, value in renamed.items()}


def scalar(output, keep, ops):
    """The model's own loss; for the backbone, a function of all real states and pooled states."""
    if "loss" in output:
        return ops.sum(output["loss"])
    weight = np.linspace(-1, 1, 36, dtype=np.float32)
    weight = torch.from_numpy(weight) if ops is torch else weight
    states = ops.sum(ops.square(output["last_hidden_state"] * keep[..., None]) * weight)
    return states + ops.sum(ops.square(output["pooler_output"]) * weight)


CASES = [(name, implementation) for name in CLASSES for implementation in ("eager", "packed")]
#: heads that are a dense layer of one row's or token's state, behind what is packed
DENSE_HEADS = [
    f"TFBertFor{task}" for task in ("NextSentencePrediction", "SequenceClassification", "TokenClassification")
]


@pytest.mark.parametrize(("name", "implementation"), grid(CASES, wide=[(name, "packed") for name in DENSE_HEADS]))
def test_outputs_losses_and_gradients_equal_pytorch(pair, name, implementation):
    import tensorflow as tf
    from keras import ops

    ours, expected_model, _ = pair(name)
    ours.config.attn_implementation = implementation
    inputs = inputs_of(name) | {"output_hidden_states": True, "output_attentions": implementation == "eager"}
    inputs["head_mask"] = np.array([[1, 0, 1], [1, 1, 0]], np.float32)
    if implementation == "packed" and name in ("TFBertForQuestionAnswering", "TFBertLMHeadModel"):
        with pytest.raises(InputError, match="'packed' cannot serve this call of BERT attention: "):
            ours(**inputs)
        return
    with tf.GradientTape() as tape, recording() as ran:
        output = ours(**inputs)
        loss = scalar(output, attention_mask().astype(np.float32), ops)
    assert ran == [implementation]
    expected_model.zero_grad()
    expected_model.config.attn_implementation = "eager"
    expected = expected_model(**torch_inputs(name, inputs))
    compare_outputs(output, expected, keep=attention_mask())
    scalar(expected, torch.from_numpy(attention_mask()), torch).backward()
    compare_gradients(tape.gradient(loss, ours.trainable_weights), ours, expected_model)


@pytest.mark.parametrize("name", CLASSES)
def test_files_are_equal_to_the_byte_and_load_in_pytorch(pair, name, tmp_path):
    ours, expected_model, directory = pair(name)
    ours.save_pretrained(tmp_path)
    for file in ("model.safetensors", "config.json"):
        assert filecmp.cmp(directory / file, tmp_path / file, shallow=False), file
    loaded = type(expected_model).from_pretrained(tmp_path)
    for key, value in expected_model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_a_graph_an_xla_program_and_a_call_give_the_same(pair):
    import tensorflow as tf

    ours, expected_model, _ = pair("TFBertForTokenClassification")
    ours.config.attn_implementation = "auto"
    inputs = {key: value for key, value in inputs_of("TFBertForTokenClassification").items() if key != "labels"}
    expected = expected_model(**torch_inputs("", inputs)).logits

    def run(ids, segments, mask):
        return ours(ids, token_type_ids=segments, attention_mask=mask)

    unknown = [tf.TensorSpec([None, None], tf.int64)] * 3
    for options in ({}, {"input_signature": unknown}, {"jit_compile": True}):
        output = tf.function(run, **options)(*inputs.values())
        assert type(output).__name__ == "TFTokenClassifierOutput"
        logits = at_real_positions("logits", output.logits, attention_mask())
        assert_close(logits, at_real_positions("logits", expected, attention_mask()), what=str(options))


def test_auto_packs_a_padded_batch_and_nothing_else(pair):
    ours, _, _ = pair("TFBertModel")
    ours.config.attn_implementation = "auto"
    inputs = inputs_of("TFBertModel")
    calls = {
        "packed": inputs,
        "eager": inputs | {"attention_mask": np.ones((ROWS, LENGTH), int)},
        "eager ": inputs | {"output_attentions": True},
        "eager  ": inputs | {"attention_mask": np.ones((ROWS, LENGTH, LENGTH), int)},
    }
    for expected, arguments in calls.items():
        with recording() as ran:
            ours(**arguments)
        assert ran == [expected.strip()]


def test_embeddings_positions_and_masks_per_query_equal_pytorch(pair):
    ours, expected_model, _ = pair("TFBertModel")
    generator = np.random.default_rng(3)
    inputs = {
        "inputs_embeds": generator.standard_normal((ROWS, LENGTH, 36)).astype(np.float32),
        "position_ids": generator.integers(0, 29, (ROWS, LENGTH)),
        "attention_mask": np.tril(np.ones((ROWS, LENGTH, LENGTH), int)),
    }
    compare_outputs(ours(**inputs), expected_model(**torch_inputs("", inputs)))
    inputs["attention_mask"] = attention_mask()
    with recording() as ran:
        output = ours(**inputs)
    assert ran == ["packed"]
    compare_outputs(output, expected_model(**torch_inputs("", inputs)), keep=attention_mask())


@pytest.mark.parametrize("positions", ["relative_key", "relative_key_query"])
def test_relative_positions_equal_pytorch(pair, positions):
    ours, expected_model, _ = pair("TFBertModel", position_embedding_type=positions)
    inputs = inputs_of("TFBertModel")
    compare_outputs(ours(**inputs), expected_model(**torch_inputs("", inputs)), keep=attention_mask())


def test_an_untied_decoder_equals_pytorch(pair, tmp_path):
    ours, expected_model, directory = pair("TFBertForMaskedLM", tie_word_embeddings=False)
    inputs = inputs_of("TFBertForMaskedLM")
    compare_outputs(ours(**inputs), expected_model(**torch_inputs("", inputs)), keep=attention_mask())
    ours.save_pretrained(tmp_path)
    assert filecmp.cmp(directory / "model.safetensors", tmp_path / "model.safetensors", shallow=False)


def test_cross_attention_and_cached_steps_equal_pytorch_and_the_whole(pair):
    ours, expected_model, _ = pair("TFBertLMHeadModel", **DECODER)
    generator = np.random.default_rng(5)
    states = {
        "encoder_hidden_states": generator.standard_normal((2, 7, 36)).astype(np.float32),
        "encoder_attention_mask": np.array([[1, 1, 1, 1, 0, 0, 0], [1] * 7]),
    }
    ids = generator.integers(0, 97, (2, 11))
    flags = {"output_attentions": True, "output_hidden_states": True}
    whole = ours(ids, **states, **flags)
    expected = expected_model(**torch_inputs("", {"input_ids": ids, **states, **flags}))
    compare_outputs(whole, expected)
    past, logits = None, []
    for begin, end in ((0, 5), (5, 6), (6, 11)):
        step = ours(ids[:, begin:end], past_key_values=past, **states)
        past = step.past_key_values
        logits.append(np.asarray(step.logits))
    assert_close(np.concatenate(logits, axis=1), whole.logits)
    for mine, theirs in zip(past, expected.past_key_values, strict=True):
        for key, value in zip(mine, theirs, strict=True):
            assert_close(key, value)


@pytest.mark.parametrize("dtype", grid(DTYPES, wide=("float16", "mixed_bfloat16")))
@pytest.mark.parametrize("implementation", ["eager", "packed"])
def test_a_fully_masked_row_gives_zero_weights_and_no_nan(pair, dtype, implementation):
    _, _, directory = pair("TFBertModel")
    model = longspan.TFBertModel.from_pretrained(directory, dtype=dtype, attn_implementation=implementation)
    mask = attention_mask()
    mask[1] = 0
    output = model(inputs_of("TFBertModel")["input_ids"], mask, output_attentions=implementation == "eager")
    assert np.isfinite(np.asarray(output.last_hidden_state, np.float32)).all()
    for weights in output.attentions or ():
        assert np.abs(np.asarray(weights, np.float32)[1]).max() == 0
        assert np.abs(np.asarray(weights, np.float32)[0].sum(-1) - 1).max() < 2e-2  # rounding of 19 bfloat16 numbers
