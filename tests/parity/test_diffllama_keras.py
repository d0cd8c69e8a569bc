"""Every Keras DiffLlama class against the PyTorch class on the same file: outputs, losses, gradients, caches."""

from __future__ import annotations

import filecmp

import numpy as np
import pytest
import torch
from tests.grid import grid
from tests.keras.graphs import largest_tensor
from tests.keras.setting import import_keras
from tests.parity.keras_parity import compare_gradients, compare_outputs
from tests.parity.test_diffllama_flax import CLASSES, FLAGS, LENGTH, SETTINGS, inputs_of, tensors
from tests.parity.torch_parity import randomise
from tests.tolerances import assert_close

import longspan
from longspan.errors import InputError

keras = import_keras()


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Blocks of eight queries, so that short inputs take several."""
    from longspan.ops.keras import differential

    monkeypatch.setattr(differential, "BLOCK_ROWS", 8)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A function that gives (Keras model, PyTorch model, directory) of a class on equal weights, made once each."""
    made = {}

    def make(name, **settings):
        settings = {"num_hidden_layers": 2, **settings} if name == "DiffLlamaModel" else settings
        key = (name, repr(settings))
        if key not in made:
            config = longspan.DiffLlamaConfig(**{**SETTINGS, "hidden_dropout": 0.0, **settings})
            expected = randomise(getattr(longspan, name)(config))
            directory = tmp_path_factory.mktemp(name)
            expected.save_pretrained(directory)
            made[key] = (getattr(longspan, f"TF{name}").from_pretrained(directory), expected, directory)
        made[key][1].zero_grad()
        return made[key]

    return make


def compare(pair, name, flags, **settings):
    """Outputs, loss and the gradient of every parameter."""
    import tensorflow as tf

    ours, theirs, _ = pair(name, **settings)
    inputs, labels = inputs_of(name)
    if name == "DiffLlamaForSequenceClassification":  # of a row of padding, no token is the last
        inputs, labels = ({key: value[:4] for key, value in arrays.items()} for arrays in (inputs, labels))
    cache = {} if name == "DiffLlamaForQuestionAnswering" else {"use_cache": False}
    keep = inputs["attention_mask"]
    with tf.GradientTape() as tape:
        output = ours(**inputs, **labels, **flags, **cache)
        scale = keep[..., None] * np.linspace(-1, 1, 20, dtype="f")
        loss = tf.reduce_sum(tf.square(output[0] * scale)) if name == "DiffLlamaModel" else tf.reduce_sum(output.loss)
    expected = theirs(**tensors(inputs), **tensors(labels), **flags, **cache)
    assert type(output).__name__ == f"TF{type(expected).__name__}"
    compare_outputs(output, expected, keep=None if name == "DiffLlamaForSequenceClassification" else keep)
    their_loss = (expected[0] * torch.from_numpy(scale)).square().sum() if name == "DiffLlamaModel" else expected.loss
    their_loss.backward()
    compare_gradients(tape.gradient(loss, ours.trainable_weights), ours, theirs)


@pytest.mark.parametrize("name", CLASSES)
def test_outputs_losses_and_gradients_equal_pytorch(pair, name):
    compare(pair, name, {})


@pytest.mark.parametrize("name", ["DiffLlamaModel", "DiffLlamaForQuestionAnswering"])
def test_states_and_maps_equal_pytorch(pair, name):
    compare(pair, name, FLAGS if name == "DiffLlamaModel" else {**FLAGS, "output_hidden_states": False})


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 12},
        {"attention_bias": True, "tie_word_embeddings": True, "num_key_value_heads": 2, "hidden_act": "gelu"},
    ],
    ids=["dynamic", "biases"],
)
def test_settings(pair, settings):
    compare(pair, "DiffLlamaForCausalLM", {}, **settings)


def test_documents_packed_in_one_row_and_positions(pair):
    ours, theirs, _ = pair("DiffLlamaModel")
    ids = inputs_of("DiffLlamaModel")[0]["input_ids"][:1]
    positions = np.concatenate([np.arange(5), np.arange(11), np.arange(3)])[None]
    expected = theirs(torch.from_numpy(ids), position_ids=torch.from_numpy(positions), use_cache=False)
    packed = ours(ids, position_ids=positions).last_hidden_state
    assert_close(packed, expected.last_hidden_state)
    assert_close(packed[:, 5:16], ours(ids[:, 5:16]).last_hidden_state)


def test_embeddings_may_be_given(pair):
    ours, theirs, _ = pair("DiffLlamaModel")
    inputs, _ = inputs_of("DiffLlamaModel")
    states = theirs.embed_tokens(torch.from_numpy(inputs["input_ids"])).detach().numpy()
    mask = inputs["attention_mask"]
    broken = np.where(mask[..., None] == 1, states, np.nan)  # a fault at padding reaches no token
    output = ours(inputs_embeds=broken, attention_mask=mask, use_cache=False)
    compare_outputs(output, ours(**inputs, use_cache=False), keep=mask)


@pytest.mark.parametrize("how", ["growing", "fixed", "compiled"])
def test_tokens_one_by_one_give_what_all_at_once_give(pair, how):
    import tensorflow as tf

    ours, theirs, _ = pair("DiffLlamaForCausalLM")
    inputs, _ = inputs_of("DiffLlamaForCausalLM")
    ids, mask = inputs["input_ids"][[0, 3]], inputs["attention_mask"][[0, 3]]
    expected = theirs(torch.from_numpy(ids), torch.from_numpy(mask), use_cache=False)
    cache, parts = None if how == "growing" else ours.init_cache(2, LENGTH + 4), []
    step = tf.function(ours, autograph=False, jit_compile=True) if how == "compiled" else ours
    whole = np.pad(mask, ((0, 0), (0, 4)))
    for start, stop in ((0, 9), (9, 10), (10, 11), (11, LENGTH)):
        arguments = {"attention_mask": mask[:, :stop] if how == "growing" else whole}
        if how != "growing":
            arguments["cache_position"] = tf.range(start, stop)
        output = step(tf.constant(ids[:, start:stop]), past_key_values=cache, use_cache=True, **arguments)
        cache, parts = output.past_key_values, [*parts, output.logits]
    compare_outputs({"logits": np.concatenate(parts, axis=1)}, {"logits": expected.logits}, keep=mask)
    last = ours(ids, mask, logits_to_keep=1).logits
    assert_close(last, expected.logits[:, -1:])
    assert_close(ours(ids, mask, logits_to_keep=np.array([18, 3])).logits[0], expected.logits[0, [18, 3]])


POLICIES = ("bfloat16", "mixed_float16", "float16", "mixed_bfloat16")


@pytest.mark.parametrize("policy", grid(POLICIES, wide=POLICIES[2:]))
def test_half_precision_gives_no_nan_and_dead_rows_stay_finite(pair, policy):
    import tensorflow as tf

    ours, _, directory = pair("DiffLlamaForTokenClassification")
    half = longspan.TFDiffLlamaForTokenClassification.from_pretrained(directory, dtype=policy)
    inputs, labels = inputs_of("DiffLlamaForTokenClassification")
    with tf.GradientTape() as tape:
        output = half(**inputs, **labels)
        loss = tf.reduce_sum(output.loss)
    wide, keep = np.asarray(ours(**inputs).logits), inputs["attention_mask"]
    logits = np.asarray(output.logits, "f")
    assert np.isfinite(logits).all()
    assert np.abs((logits - wide) * keep[..., None]).max() <= 0.1 * np.abs(wide).max()  # roundings of 2⁻⁹
    for gradient in tape.gradient(loss, half.trainable_weights):
        assert np.isfinite(np.asarray(tf.convert_to_tensor(gradient), "f")).all()


def test_a_graph_and_an_xla_program_give_the_same(pair):
    import tensorflow as tf

    ours, theirs, _ = pair("DiffLlamaForSequenceClassification")
    inputs, _ = inputs_of("DiffLlamaForSequenceClassification")
    inputs = {name: array[:4] for name, array in inputs.items()}
    expected = theirs(**tensors(inputs)).logits
    unknown = [tf.TensorSpec([None, None], tf.int64)] * 2
    for options in ({"input_signature": unknown}, {"jit_compile": True}):
        run = tf.function(lambda ids, mask: ours(ids, attention_mask=mask), autograph=False, **options)
        assert_close(run(*inputs.values()).logits, expected, what=str(options))


def test_no_tensor_of_a_traced_step_is_longer_than_the_text_in_two_axes(pair, monkeypatch):
    """Forward and backward, as XLA sees them: every shape is known."""
    import tensorflow as tf

    from longspan.ops.keras import differential

    monkeypatch.setattr(differential, "BLOCK_ROWS", 128)
    ours, _, _ = pair("DiffLlamaForTokenClassification")

    def step(ids, mask, labels):
        with tf.GradientTape() as tape:
            loss = ours(ids, attention_mask=mask, labels=labels, training=True).loss
        return tape.gradient(loss, ours.trainable_weights)

    length = 2048
    specs = [tf.TensorSpec((1, length), tf.int32)] * 3
    largest = largest_tensor(tf.function(step, autograph=False, jit_compile=True), *specs)
    assert 6 * 128 * 1024 <= largest <= 6 * 128 * length < length * length  # six maps of a block


@pytest.mark.parametrize("name", CLASSES)
def test_files_are_equal_to_the_byte_and_load_in_pytorch(pair, name, tmp_path):
    ours, theirs, directory = pair(name)
    ours.save_pretrained(tmp_path)
    for file in ("model.safetensors", "config.json"):
        assert filecmp.cmp(directory / file, tmp_path / file, shallow=False), file
    assert type(theirs).from_pretrained(tmp_path).load_report.missing == ()


def test_pruned_pairs_of_maps_equal_pytorchs(pair, tmp_path):
    _, theirs, directory = pair("DiffLlamaModel", num_key_value_heads=2)
    ours = longspan.TFDiffLlamaModel.from_pretrained(directory)
    theirs = type(theirs).from_pretrained(directory)
    ids = inputs_of("DiffLlamaModel")[0]["input_ids"][:1]
    for model in (ours, theirs):
        model.prune_heads({0: [1], 1: [0, 2]})
    assert_close(ours(ids).last_hidden_state, theirs(torch.from_numpy(ids)).last_hidden_state)
    theirs.save_pretrained(tmp_path)
    again = longspan.TFDiffLlamaModel.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again(ids).last_hidden_state, ours(ids).last_hidden_state)
    with pytest.raises(InputError, match=r"layers to prune must lie in \[0, 2\). Received: 2"):
        ours.prune_heads({2: [0]})


CACHE = ((np.zeros((1, 3, 4, 8), "f"),) * 2,)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "exactly one of input_ids and inputs_embeds must be given. Received: neither"),
        ({"input_ids": np.array([1, 2])}, r"input_ids must have the shape \(batch, tokens\). Received: \(2,\)"),
        ({"input_ids": np.array([[99]])}, r"input_ids must lie in \[0, vocab_size=61\). Received: 99"),
        ({"attention_mask": np.ones((1, 2))}, r"attention_mask must have the shape \(batch, tokens in the cache"),
        ({"position_ids": np.ones((1, 2))}, r"position_ids must have the shape \(batch, tokens\), or"),
        ({"past_key_values": CACHE * 2}, "past_key_values must hold one entry for each of the 1 layers. Received: 2"),
        (
            {"past_key_values": CACHE, "cache_position": np.array([4])},
            r"cache_position must go up by one, .*4\)",
        ),
        ({"logits_to_keep": -1}, "logits_to_keep must be 0 .all. or positive. Received: -1"),
        (
            {"past_key_values": CACHE, "cache_position": np.array([2]), "attention_mask": np.ones((1, 5))},
            r"\(batch, up to the tokens that fit the cache\) = \(1, 4\). Received: \(1, 5\)",
        ),
    ],
)
def test_errors(pair, inputs, message):
    inputs = {"input_ids": np.array([[1]]), **inputs} if inputs else {}
    with pytest.raises(InputError, match=message):
        pair("DiffLlamaForCausalLM")[0](**inputs)
