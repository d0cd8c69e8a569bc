"""Flax LongT5 against the PyTorch classes and the reference's Flax classes on the same file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tests.grid import grid
from tests.parity.flax_parity import compare_gradients, compare_outputs
from tests.parity.longt5_setting import KINDS, SETTINGS, inputs_of, tensors
from tests.parity.torch_parity import randomise
from tests.tolerances import assert_close

import longspan
from longspan.nn.flax.losses import cross_entropy
from longspan.ops.dispatch import recording

FLAGS = {"output_attentions": True, "output_hidden_states": True}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A function that gives (Flax model, PyTorch model, directory) of a class on equal weights, made once each."""
    made = {}
    root = tmp_path_factory.mktemp("checkpoints")

    def make(name, kind):
        if (name, kind) not in made:
            torch.manual_seed(1)
            expected = randomise(getattr(longspan, name)(longspan.LongT5Config(**SETTINGS, **KINDS[kind]))).eval()
            directory = root / kind / f"Flax{name}"
            expected.save_pretrained(directory)
            made[name, kind] = (getattr(longspan, f"Flax{name}").from_pretrained(directory), expected, directory)
        return made[name, kind]

    return make


def compare(ours, expected, inputs):
    """Compare all fields at real positions. Blocked attentions (B, N, A, R + 1, ...) are compared where both rows are
    real."""
    source, target = inputs["attention_mask"], inputs.get("decoder_attention_mask")
    fields = {name: value for name, value in expected.items() if name not in ("loss", "past_key_values")}
    assert fields.keys() == {name for name in ours if name != "past_key_values"}
    for name, value in fields.items():
        is_encoder = name.startswith("encoder") or target is None
        keep = source if is_encoder else target
        if is_encoder and "attentions" in name:
            keep = np.pad(keep, ((0, 0), (0, -keep.shape[1] % 5))).reshape(3, -1, 1, 5, 1)
            for mine, theirs in zip(ours[name], value, strict=True):
                assert_close(np.asarray(mine) * keep, theirs.detach().numpy() * keep, what=name)
        else:
            compare_outputs({name: ours[name]}, {name: value}, keep=keep)


#: below and above the window and the blocks of both kinds; odd; each padded on either side; then at the window's size
CASES = [
    ("LongT5EncoderModel", "local", 3, "left"),
    ("LongT5ForConditionalGeneration", "local", 23, "left"),
    ("LongT5Model", "transient-global", 2, "right"),
    ("LongT5ForConditionalGeneration", "transient-global", 23, "right"),
    ("LongT5Model", "local", 5, "right"),
    ("LongT5EncoderModel", "transient-global", 5, "left"),
    ("LongT5EncoderModel", "transient-global", 23, "left"),
]


@pytest.mark.parametrize(("name", "kind", "length", "side"), grid(CASES, wide=CASES[4:]))
def test_outputs_states_and_attentions(pair, name, kind, length, side):
    ours, theirs, _ = pair(name, kind)
    inputs = inputs_of(name, length, side)
    output = ours(**inputs, **FLAGS)
    with torch.no_grad():
        expected = theirs(**tensors(inputs), **FLAGS)
    compare(output, expected, inputs)


@pytest.mark.parametrize(
    ("kind", "implementation"), [("local", "chunked"), ("transient-global", "chunked"), ("transient-global", "blocked")]
)
def test_losses_and_gradients(pair, kind, implementation):
    ours, theirs, _ = pair("LongT5ForConditionalGeneration", kind)
    inputs = inputs_of("LongT5ForConditionalGeneration", 23, "left")
    labels = inputs.pop("decoder_input_ids")
    labels = np.where(inputs.pop("decoder_attention_mask") == 0, -100, labels)
    ours.config.attn_implementation = implementation

    def loss(params):
        targets = ours.prepare_decoder_input_ids_from_labels(labels)
        return cross_entropy(ours(**inputs, decoder_input_ids=targets, params=params).logits, labels)

    with recording() as ran:
        value, gradients = jax.jit(jax.value_and_grad(loss))(ours.params)
    assert set(ran) == {implementation}
    ours.config.attn_implementation = "auto"
    theirs.zero_grad()
    expected = theirs(**tensors(inputs), labels=torch.from_numpy(labels)).loss
    expected.backward()
    assert_close(value, expected, what="loss")
    compare_gradients(gradients, theirs)


def test_no_mask_and_buckets_change_nothing(pair):
    ours, theirs, _ = pair("LongT5ForConditionalGeneration", "transient-global")
    inputs = inputs_of("LongT5ForConditionalGeneration", 23, "left")
    ids = {name: inputs[name] for name in ("input_ids", "decoder_input_ids")}
    with torch.no_grad():
        expected = theirs(**tensors(ids), output_hidden_states=True)
    eager = ours(**ids, output_hidden_states=True)
    traced = jax.jit(lambda ids: ours(**ids, output_hidden_states=True))(ids)
    for output in (eager, traced):
        assert "past_key_values" not in output
        compare_outputs(output, expected)


@pytest.mark.parametrize(("kind", "dtype"), [("transient-global", "bfloat16"), ("local", "float16")])
def test_half_precision_has_no_nan_from_any_mask(pair, kind, dtype):
    _, theirs, directory = pair("LongT5Model", kind)
    model = longspan.FlaxLongT5Model.from_pretrained(directory, dtype=dtype)
    inputs = inputs_of("LongT5Model", 23, "right")
    with torch.no_grad():
        expected = theirs(**tensors(inputs)).last_hidden_state.numpy()[0]
    inputs["attention_mask"][2] = 0  # a row of padding alone
    states = model(**inputs).last_hidden_state
    assert str(states.dtype) == dtype
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree_util.tree_leaves(model.params))
    assert jnp.isfinite(states).all()
    difference = np.abs(np.asarray(states[0], np.float32) - expected).max()
    # five layers of roundings: errors grow beyond one rounding of the table
    assert difference / np.abs(expected).max() < {"bfloat16": 1e-1, "float16": 1e-2}[dtype]


def test_float16_keeps_values_beyond_its_range(pair):
    """The residual of T5 outgrows float16; it and the last product of the feed-forward layers are float32."""
    ours, _, directory = pair("LongT5EncoderModel", "local")
    params = jax.tree_util.tree_map(lambda leaf: leaf, ours.params)
    wo = params["encoder"]["block"]["0"]["layer"]["1"]["DenseReluDense"]["wo"]
    wo["kernel"] = wo["kernel"] * 1e5
    inputs = inputs_of("LongT5EncoderModel", 23, "right")
    expected = ours(**inputs, params=params, output_hidden_states=True)
    assert jnp.abs(expected.hidden_states[1]).max() > jnp.finfo(jnp.float16).max
    half = longspan.FlaxLongT5EncoderModel.from_pretrained(directory, dtype="float16")
    output = half(**inputs, params=params, output_hidden_states=True)
    assert all(jnp.isfinite(state).all() for state in output.hidden_states)
    keep = inputs["attention_mask"][..., None]
    difference = np.asarray(output.last_hidden_state, np.float32) - np.asarray(expected.last_hidden_state)
    assert np.abs(difference * keep).max() < 2e-2


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_any_framework_save_and_load_alike(pair, kind, tmp_path):
    ours, theirs, _ = pair("LongT5ForConditionalGeneration", kind)
    ours.save_pretrained(tmp_path)
    again = longspan.LongT5ForConditionalGeneration.from_pretrained(tmp_path)
    for (name, one), other in zip(theirs.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_tied_files_of_other_classes(pair):
    _, _, directory = pair("LongT5ForConditionalGeneration", "transient-global")
    for name in ("FlaxLongT5EncoderModel", "FlaxLongT5Model"):
        model = getattr(longspan, name).from_pretrained(directory)
        assert model.load_report.missing == ()
    auto = longspan.FlaxAutoModelForSeq2SeqLM.from_pretrained(directory)
    assert type(auto) is longspan.FlaxLongT5ForConditionalGeneration
    assert type(longspan.FlaxAutoModel.from_pretrained(directory)) is longspan.FlaxLongT5Model


@pytest.fixture(scope="module")
def reference(pair, tmp_path_factory):
    """Directories of both kinds with the outputs and the msgpack files of the reference's Flax class."""
    root, folders = tmp_path_factory.mktemp("reference"), {}
    for kind in KINDS:
        _, _, folders[kind] = pair("LongT5ForConditionalGeneration", kind)
        # the reference's blocks count padding at the left
        side = "right" if kind == "transient-global" else "left"
        np.savez(folders[kind] / "inputs.npz", **inputs_of("LongT5ForConditionalGeneration", 23, side))
        (root / kind).mkdir()
        (root / kind / folders[kind].name).symlink_to(folders[kind])
    environment = {key: value for key, value in os.environ.items() if not key.startswith("USE_")}
    script = str(Path(__file__).with_name("flax_reference.py"))
    command = [sys.executable, script, *(str(root / kind) for kind in KINDS)]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folders


@pytest.mark.parametrize(("kind", "file"), [("local", "outputs.npz"), ("transient-global", "exact.npz")])
def test_outputs_equal_the_references_flax_class(pair, reference, kind, file):
    """The reference's own code, with the argument of `jnp.clip` that today's JAX no longer knows put back.

    With transient-global attention its block ids are put right as well, see the test below.
    """
    ours, _, _ = pair("LongT5ForConditionalGeneration", kind)
    inputs = dict(np.load(reference[kind] / "inputs.npz"))
    expected = np.load(reference[kind] / file)
    keep = inputs["decoder_attention_mask"][..., None]
    output = ours(**inputs, output_hidden_states=True)
    assert_close(np.asarray(output.logits) * keep, expected["logits.0"] * keep)
    keep = inputs["attention_mask"][..., None]
    for number, states in enumerate(output.encoder_hidden_states):
        assert_close(np.asarray(states) * keep, expected[f"encoder_hidden_states.{number}"] * keep)


def test_the_references_flax_class_puts_tokens_into_the_block_before(reference):
    """Its block of token t is the floor of t times 1/3, added up in float32: too low for one of these 23 tokens.

    Sizes whose reciprocal is exact, like the 16 of the published checkpoints, and many others are not affected.
    """
    rounded, exact = (np.load(reference["transient-global"] / name) for name in ("outputs.npz", "exact.npz"))
    for size, misplaced in ((3, 1), (4, 0)):
        parts = jnp.ones(23) / size
        blocks = jnp.floor(1.0 + (parts.cumsum() - parts) - 1.0).astype(int)
        assert (blocks < jnp.arange(23) // size).sum() == misplaced
    difference = np.abs(rounded["encoder_last_hidden_state.0"] - exact["encoder_last_hidden_state.0"])[0]
    assert difference.max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_the_references_msgpack_gives_the_same_parameters(pair, reference, kind):
    ours, _, _ = pair("LongT5ForConditionalGeneration", kind)
    folder = reference[kind] / "msgpack"
    assert (folder / "flax_model.msgpack").is_file()
    model, params = longspan.FlaxLongT5ForConditionalGeneration.from_pretrained(folder, _do_init=False)
    assert model.load_report.missing == ()
    jax.tree_util.tree_map(np.testing.assert_array_equal, params, ours.params)
