"""Every Keras LongT5 class against the PyTorch class on the same safetensors: outputs, losses, gradients, files."""

from __future__ import annotations

import filecmp

import numpy as np
import pytest
import torch
from tests.grid import grid
from tests.keras.setting import import_keras
from tests.parity.keras_parity import compare_gradients, compare_outputs
from tests.parity.longt5_setting import CLASSES, KINDS, SETTINGS, TARGETS, inputs_of, tensors
from tests.parity.torch_parity import randomise
from tests.tolerances import as_numpy, assert_close

import longspan
from longspan.errors import ConfigError, InputError
from longspan.ops.dispatch import recording

keras = import_keras()
DTYPES = ("float32", "bfloat16", "float16", "mixed_bfloat16", "mixed_float16")
FLAGS = {"output_attentions": True, "output_hidden_states": True}
GENERATING = "LongT5ForConditionalGeneration"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A function that gives (Keras model, PyTorch model, directory) of a class on equal weights, made once each."""
    made = {}

    def make(name, kind, **settings):
        key = (name, kind, *sorted(settings.items()))
        if key not in made:
            config = longspan.LongT5Config(**{**SETTINGS, **KINDS[kind], **settings})
            # attention scores are not scaled, and large ones make all gradients rounding errors
            theirs = randomise(getattr(longspan, name)(config), scale=0.1).eval()
            directory = tmp_path_factory.mktemp(f"TF{name}")
            theirs.save_pretrained(directory)
            made[key] = (getattr(longspan, f"TF{name}").from_pretrained(directory), theirs, directory)
        return made[key]

    return make


def compare(ours, expected, inputs):
    """All fields at real positions; blocked attentions (B, N, A, R + 1, ...) where the query is real."""
    source, target = inputs["attention_mask"], inputs.get("decoder_attention_mask")
    assert set(ours.keys()) == set(expected.keys())
    for name, value in expected.items():
        if name == "past_key_values":
            continue
        is_encoder = name.startswith("encoder") or target is None
        if is_encoder and "attentions" in name:
            keep = np.pad(source, ((0, 0), (0, -source.shape[1] % 5))).reshape(3, -1, 1, 5, 1)
            for mine, theirs in zip(ours[name], value, strict=True):
                assert_close(as_numpy(mine) * keep, as_numpy(theirs) * keep, what=name)
        else:
            # the tests' rule for attentions of a decoder is the one of any attentions
            field = {name: ours[name]}, {name: value}
            compare_outputs(*field, keep=source if is_encoder else target)


#: below and above the window and the blocks of both kinds; odd; several blocks of queries; padded on either side; then
#: at the window's size and of the encoder alone
CASES = [
    ("LongT5EncoderModel", "local", 3, "left"),
    (GENERATING, "local", 23, "left"),
    ("LongT5Model", "transient-global", 2, "right"),
    (GENERATING, "transient-global", 23, "right"),
    (GENERATING, "transient-global", 130, "left"),
    ("LongT5Model", "local", 5, "right"),
    ("LongT5EncoderModel", "transient-global", 23, "left"),
]


@pytest.mark.parametrize(("name", "kind", "length", "side"), grid(CASES, wide=CASES[5:]))
def test_outputs_states_and_attentions(pair, name, kind, length, side):
    ours, theirs, _ = pair(name, kind)
    inputs = inputs_of(name, length, side)
    heads = {"head_mask": np.array([[1, 0, 1, 1], [1, 1, 0.5, 1]], np.float32)}
    if name != "LongT5EncoderModel":
        rng = np.random.default_rng(0)
        names = ("decoder_head_mask", "cross_attn_head_mask")
        heads |= {key: rng.random((3, 4)).astype(np.float32) for key in names}
    with recording() as ran, torch.no_grad():
        output = ours(inputs | heads, **FLAGS)
    assert ran == ["blocked"] * 2
    with torch.no_grad():
        compare(output, theirs(**tensors(inputs | heads), **FLAGS), inputs)
        # without weights and masks of heads other paths of both run
        compare(ours(**inputs), theirs(**tensors(inputs)), inputs)
        bare = {key: value for key, value in inputs.items() if "mask" not in key}
        everywhere = {key: np.ones_like(value) for key, value in inputs.items() if "mask" in key}
        compare(ours(**bare), theirs(**tensors(bare)), everywhere)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients(pair, kind):
    import tensorflow as tf

    ours, theirs, _ = pair(GENERATING, kind)
    inputs = inputs_of(GENERATING, 23, "left")
    labels = inputs.pop("decoder_input_ids")
    inputs["labels"] = np.where(inputs.pop("decoder_attention_mask") == 0, -100, labels)
    with tf.GradientTape() as tape:
        output = ours(inputs, training=True)
        loss = keras.ops.sum(output.loss)
    theirs.zero_grad()
    expected = theirs(**tensors(inputs), use_cache=False)
    expected.loss.backward()
    assert_close(as_numpy(output.loss)[0], as_numpy(expected.loss), what="loss")
    assert_close(output.logits, expected.logits, what="logits")
    assert "past_key_values" not in output
    compare_gradients(tape.gradient(loss, ours.trainable_weights), ours, theirs)


def test_embedded_inputs_and_outputs_of_the_encoder(pair):
    ours, theirs, _ = pair("LongT5Model", "transient-global")
    inputs = inputs_of("LongT5Model", 23, "left")
    rng = np.random.default_rng(1)
    embeds = rng.standard_normal((3, 23, 24)).astype(np.float32)
    embeds[1, 0], embeds[2, 5] = np.nan, np.inf  # at padding
    inputs = {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}
    inputs["decoder_inputs_embeds"] = rng.standard_normal((3, TARGETS, 24)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(**tensors(inputs))
    output = ours(inputs)
    assert_close(output.last_hidden_state, expected.last_hidden_state)
    encoded = {"attention_mask": inputs["attention_mask"], "decoder_inputs_embeds": inputs["decoder_inputs_embeds"]}
    for form in (output.encoder_last_hidden_state,), ours.encode(None, inputs["attention_mask"], None, embeds):
        assert_close(ours(encoder_outputs=form, **encoded).last_hidden_state, expected.last_hidden_state)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_gives_what_all_tokens_at_once_give(pair, kind):
    ours, theirs, _ = pair(GENERATING, kind)
    inputs = inputs_of(GENERATING, 23, "right")
    with torch.no_grad():
        expected = theirs(**tensors(inputs))
    target, mask = inputs.pop("decoder_input_ids"), inputs.pop("decoder_attention_mask")
    encoded = (ours.encode(**inputs).last_hidden_state,)
    cache, scores = None, []
    for first, last in ((0, 3), (3, 4), (4, TARGETS)):
        output = ours(
            encoder_outputs=encoded,
            attention_mask=inputs["attention_mask"],
            decoder_input_ids=target[:, first:last],
            decoder_attention_mask=mask[:, :last],
            past_key_values=cache,
        )
        cache = output.past_key_values
        scores.append(as_numpy(output.logits))
    assert_close(np.concatenate(scores, axis=1) * mask[..., None], as_numpy(expected.logits) * mask[..., None])
    for mine, other in zip(cache, expected.past_key_values.to_legacy_cache(), strict=True):
        for part, there in zip(mine, other, strict=True):
            keep = (mask if part.shape[2] == TARGETS else inputs["attention_mask"])[:, None, :, None]
            assert_close(as_numpy(part) * keep, as_numpy(there) * keep)
    with pytest.raises(InputError, match="four tensors for each of num_decoder_layers=3 layers. Received: \\[4, 4\\]"):
        ours(encoder_outputs=encoded, decoder_input_ids=target, past_key_values=cache[:2])


@pytest.mark.parametrize("dtype", grid(DTYPES, wide=("float16", "mixed_bfloat16")))
def test_dead_rows_and_no_nan_in_any_precision(pair, dtype):
    _, theirs, directory = pair(GENERATING, "transient-global")
    model = longspan.TFLongT5ForConditionalGeneration.from_pretrained(directory, dtype=dtype)
    inputs = inputs_of(GENERATING, 23, "right")
    inputs["attention_mask"][2] = 0
    inputs["decoder_attention_mask"][1, 0] = 0
    output = model(inputs, output_attentions=True)
    assert all(np.isfinite(as_numpy(keras.ops.cast(value, "float32"))).all() for value in _leaves(output))
    for weights in output.cross_attentions:
        assert np.abs(as_numpy(keras.ops.cast(weights, "float32"))[2]).max() == 0
    with torch.no_grad():
        expected = as_numpy(theirs(**tensors(inputs)).logits)[0]
    difference = np.abs(as_numpy(keras.ops.cast(output.logits, "float32"))[0] - expected).max()
    assert difference / np.abs(expected).max() < {"float32": 1e-5, "float16": 1e-2, "mixed_float16": 1e-2}.get(
        dtype, 0.1
    )


def _leaves(output):
    return [leaf for value in output.values() for leaf in keras.tree.flatten(value)]


def test_float16_keeps_values_beyond_its_range(pair):
    """The residual of T5 outgrows float16; it and the last product of the feed-forward layers are float32."""
    _, _, directory = pair("LongT5EncoderModel", "local")
    inputs = inputs_of("LongT5EncoderModel", 23, "right")
    outputs = []
    for dtype in ("float32", "float16"):
        model = longspan.TFLongT5EncoderModel.from_pretrained(directory, dtype=dtype)
        wo = model.encoder.block[0].layer[1].DenseReluDense.wo
        assert wo.compute_dtype == "float32"
        wo.kernel.assign(wo.kernel * 1e6)
        outputs.append(model(inputs, output_hidden_states=True))
    exact, half = outputs
    assert np.abs(exact.hidden_states[1]).max() > np.finfo(np.float16).max
    assert all(np.isfinite(np.asarray(state, np.float32)).all() for state in half.hidden_states)
    keep = inputs["attention_mask"][..., None]
    difference = np.asarray(half.last_hidden_state, np.float32) - np.asarray(exact.last_hidden_state)
    assert np.abs(difference * keep).max() < 2e-2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CLASSES)
def test_files_are_equal_to_the_byte_and_load_in_pytorch(pair, name, kind, tmp_path):
    ours, theirs, directory = pair(name, kind)
    ours.save_pretrained(tmp_path)
    for file in ("model.safetensors", "config.json"):
        assert filecmp.cmp(directory / file, tmp_path / file, shallow=False), file
    loaded = type(theirs).from_pretrained(tmp_path)
    for key, value in theirs.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_files_of_other_classes_and_auto_classes(pair):
    _, _, directory = pair(GENERATING, "transient-global")
    for name in ("TFLongT5EncoderModel", "TFLongT5Model"):
        assert getattr(longspan, name).from_pretrained(directory).load_report.missing == ()
    auto = longspan.TFAutoModelForSeq2SeqLM.from_pretrained(directory)
    assert type(auto) is longspan.TFLongT5ForConditionalGeneration
    assert type(longspan.TFAutoModel.from_pretrained(directory)) is longspan.TFLongT5Model


def test_a_graph_of_any_length_and_an_xla_program_give_the_same(pair):
    import tensorflow as tf

    ours, theirs, _ = pair(GENERATING, "transient-global", num_layers=1, num_decoder_layers=1)

    def run(ids, mask, target):
        return ours(ids, attention_mask=mask, decoder_input_ids=target, use_cache=False)

    graph = tf.function(run, autograph=False, input_signature=[tf.TensorSpec([None, None], tf.int64)] * 3)
    for length in (2, 23):  # without a summary, and with some
        inputs = inputs_of(GENERATING, length, "left")
        parts = [inputs[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")]
        del inputs["decoder_attention_mask"]
        with torch.no_grad():
            expected = theirs(**tensors(inputs)).logits
        programs = (graph, tf.function(run, autograph=False, jit_compile=True)) if length > 2 else (graph,)
        for program in programs:
            assert_close(program(*parts).logits, expected)


def test_no_tensor_of_a_traced_step_is_longer_than_the_text_in_two_axes(pair):
    """Forward and backward, as XLA sees them: every shape is known."""
    import tensorflow as tf

    # every token sees every summary: there are few, so that all else would be seen
    settings = {"num_layers": 1, "num_decoder_layers": 1, "global_block_size": 1024}
    ours, _, _ = pair(GENERATING, "transient-global", **settings)

    def largest(length):
        def step(ids, mask, labels):
            with tf.GradientTape() as tape:
                loss = ours(ids, attention_mask=mask, labels=labels, training=True).loss
            return tape.gradient(loss, ours.trainable_weights)

        specs = [tf.TensorSpec((1, size), tf.int32) for size in (length, length, 4)]
        graph = tf.function(step, autograph=False, jit_compile=True).get_concrete_function(*specs).graph
        sizes = [t.shape.num_elements() for node in graph.get_operations() for t in node.outputs]
        return max(size for size in sizes if size is not None)  # lists of axes have unknown lengths

    more_summaries = 4096 * SETTINGS["num_heads"] * (4 - 1)
    assert largest(4096) <= 4 * largest(1024) + more_summaries < 4096**2 // 8


def test_bad_inputs_are_named(pair):
    ours, _, _ = pair(GENERATING, "local")
    ids = np.full((2, 5), 7)
    for inputs, message in (
        ({"input_ids": ids}, r"exactly one of decoder_input_ids and decoder_inputs_embeds must be given \(or labels"),
        ({"input_ids": ids + 60, "labels": ids}, r"input_ids must lie in \[0, vocab_size=61\). Received: 67"),
        ({"input_ids": ids, "decoder_input_ids": -ids}, r"decoder_input_ids must lie in \[0, vocab_size=61\)"),
        ({"input_ids": ids, "labels": ids[:1]}, r"the decoder's input must have the shape \(batch,\) of the encoder"),
        ({"input_ids": ids, "attention_mask": ids[:, :3], "labels": ids}, r"attention_mask must have the shape"),
        ({"labels": ids}, "exactly one of input_ids and inputs_embeds must be given. Received: neither"),
    ):
        with pytest.raises(InputError, match=message):
            ours(**inputs)
    bare = longspan.TFLongT5ForConditionalGeneration(longspan.LongT5Config(**SETTINGS, pad_token_id=None))
    with pytest.raises(ConfigError, match="shifting labels needs pad_token_id"):
        bare.prepare_decoder_input_ids_from_labels(ids)
