"""Every Flax MEGA class and setting against the PyTorch class on the same file: outputs, losses, gradients, caches."""

from __future__ import annotations

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors import safe_open
from tests.grid import grid
from tests.parity.flax_parity import compare_gradients
from tests.parity.mega_setting import CHUNKS, CLASSES, DECODER, LENGTH, SETTINGS, VARIANTS, compare, inputs_of, tensors
from tests.parity.torch_parity import randomise
from tests.tolerances import assert_close

import longspan
from longspan.errors import ConfigError, InputError
from longspan.models.mega import flax_layers
from longspan.nn.flax.losses import (
    causal_lm_loss,
    cross_entropy,
    question_answering_loss,
    sequence_classification_loss,
)
from longspan.ops.flax import gated_attention


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Blocks of eight queries, so that short inputs take several."""
    monkeypatch.setattr(gated_attention, "BLOCK_ROWS", 8)
    monkeypatch.setattr(flax_layers, "_WINDOW_ROWS", 4)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A function that gives (Flax model, PyTorch model) of a class on equal weights, made once each."""
    made = {}

    def make(name, **settings):
        key = (name, repr(settings))
        if key not in made:
            config = longspan.MegaConfig(**{**SETTINGS, **settings}, attn_implementation="eager")
            expected = randomise(getattr(longspan, name)(config))
            directory = tmp_path_factory.mktemp(name)
            expected.save_pretrained(directory)
            made[key] = (getattr(longspan, f"Flax{name}").from_pretrained(directory), expected)
        made[key][1].zero_grad()
        return made[key]

    return make


def loss_of(name, config, output, labels, keep):
    """The loss of a Flax output, as the PyTorch class computes it; of the backbone, a function of all real states."""
    if name == "MegaModel":
        states = jnp.square(output.last_hidden_state * keep[..., None] * jnp.linspace(-1, 1, 12)).sum()
        return states + (output.pooler_output[:3] * jnp.linspace(-1, 1, 12)).sum()
    if name == "MegaForCausalLM":
        return causal_lm_loss(output.logits, labels["labels"])
    if name == "MegaForSequenceClassification":
        return sequence_classification_loss(config, output.logits, labels["labels"])
    if name == "MegaForQuestionAnswering":
        return question_answering_loss(output.start_logits, output.end_logits, *labels.values())
    return cross_entropy(output.logits, labels["labels"])


def expected_loss(name, output, keep):
    if name != "MegaModel":
        return output.loss
    scale = torch.linspace(-1, 1, 12)
    states = (output.last_hidden_state * torch.from_numpy(keep)[..., None] * scale).square().sum()
    return states + (output.pooler_output[:3] * scale).sum()


@pytest.mark.parametrize("name", CLASSES)
def test_outputs_losses_and_gradients(pair, name):
    ours, theirs = pair(name, **CLASSES[name])
    inputs, labels = inputs_of(name)
    if name in ("MegaForSequenceClassification", "MegaForQuestionAnswering"):  # rows whose tokens all count
        inputs, labels = ({key: value[:3] for key, value in arrays.items()} for arrays in (inputs, labels))
    keep = inputs["attention_mask"].reshape(-1, LENGTH)
    flags = {"output_attentions": True, "output_hidden_states": True}
    output = theirs(**tensors(inputs), **tensors(labels), **flags)
    plain = {field: value for field, value in output.items() if field not in ("attentions", "hidden_states")}
    if name in ("MegaModel", "MegaForMaskedLM"):  # with chunks and without
        compare(ours(**inputs, **flags), output, keep)
        compare(ours(**inputs), plain, keep)  # padded to a bucket, by blocks

    def loss_and_output(params):
        found = ours(**inputs, params=params)
        return loss_of(name, ours.config, found, labels, keep), found

    (value, found), gradients = jax.jit(jax.value_and_grad(loss_and_output, has_aux=True))(ours.params)
    compare(found, plain, keep)
    expected = expected_loss(name, output, keep)
    expected.backward()
    assert_close(value, expected)
    if name == "MegaForMultipleChoice":  # one bias for all choices changes no softmax: what both have is rounding
        ours_of_bias, theirs_of_bias = gradients["classifier"]["bias"], theirs.classifier.bias.grad
        assert max(float(abs(ours_of_bias[0])), float(abs(theirs_of_bias[0]))) <= 1e-6
        gradients["classifier"]["bias"] = ours_of_bias * 0.0
        theirs_of_bias.zero_()
    compare_gradients(gradients, theirs, raw=ours.raw_parameters)


# a decoder in chunks, and each of its other settings, has a test of its own
@pytest.mark.parametrize("variant", grid(VARIANTS, wide=("decoder-laplace",)))
def test_settings(pair, variant):
    settings = VARIANTS[variant]
    name = "MegaForCausalLM" if settings.get("is_decoder") else "MegaForMaskedLM"
    ours, theirs = pair(name, **settings)
    inputs, labels = inputs_of(name, settings=settings)
    output = theirs(**tensors(inputs), **tensors(labels), output_hidden_states=True)

    def loss_and_output(params):
        found = ours(**inputs, params=params, output_hidden_states=True)
        return loss_of(name, ours.config, found, labels, None), found

    (value, found), gradients = jax.jit(jax.value_and_grad(loss_and_output, has_aux=True))(ours.params)
    compare(found, output, inputs["attention_mask"])
    output.loss.backward()
    assert_close(value, output.loss)
    compare_gradients(gradients, theirs, raw=ours.raw_parameters)


@pytest.mark.parametrize(
    "settings",
    [
        {**DECODER, **CHUNKS, "attention_activation": "laplace"},
        {**DECODER, "truncation": 4},
        {**DECODER, "add_cross_attention": True},
    ],
    ids=["chunks", "truncated", "cross"],
)
def test_tokens_one_by_one_give_what_all_at_once_give(pair, settings):
    ours, _ = pair("MegaForCausalLM", **settings)
    inputs, _ = inputs_of("MegaForCausalLM", settings=settings)
    inputs = {name: array[[0, 3]] for name, array in inputs.items()}
    ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
    expected = ours(ids, mask, **inputs).logits
    cache, parts = ours.init_cache(2, LENGTH + 4), []
    for start, stop in ((0, 9), (9, 10), (10, LENGTH)):
        output = ours(ids[:, start:stop], mask[:, :stop], past_key_values=cache, **inputs)
        cache, parts = output.past_key_values, [*parts, output.logits]
    joined = np.asarray(jnp.concatenate(parts, axis=1))
    assert_close(joined * mask[..., None], np.asarray(expected) * mask[..., None])


# trained models write in chunks in tests/generation/test_parity_flax.py
@pytest.mark.parametrize("settings", grid(({}, CHUNKS), wide=(CHUNKS,)), ids=["whole", "chunks"])
def test_generated_tokens_equal_pytorchs(pair, settings):
    ours, theirs = pair("MegaForCausalLM", **DECODER, **settings)
    ids, mask = (array[[0, 1, 3]] for array in inputs_of("MegaForCausalLM")[0].values())
    for options in ({"max_new_tokens": 9}, {"max_new_tokens": 5, "num_beams": 3}):
        output = ours.generate(ids, attention_mask=mask, eos_token_id=None, pad_token_id=1, **options).sequences
        expected = theirs.generate(
            torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), eos_token_id=None, pad_token_id=1, **options
        )
        start = ids.shape[1]
        np.testing.assert_array_equal(np.asarray(output)[:, start:], expected[:, start:])


@pytest.mark.parametrize(
    "settings",
    [
        {"normalization_type": "batchnorm"},
        {"normalization_type": "syncbatchnorm", "norm_affine": False, "normalize_before_mega": False, **CHUNKS},
        pytest.param({"normalization_type": "batchnorm", "normalize_before_ffn": False}, marks=pytest.mark.wide),
    ],
    ids=["before", "plain-after-chunks", "after"],
)
def test_batch_normalisation_over_steps_of_training(pair, settings, tmp_path):
    ours, theirs = pair("MegaForTokenClassification", **settings)
    inputs, labels = inputs_of("MegaForTokenClassification")
    keep = inputs["attention_mask"]
    compare(ours(**inputs), theirs(**tensors(inputs)), keep)  # of averages that no batch has moved

    @jax.jit
    def step(params, stats):
        def loss(params):
            output, moved = ours(**inputs, params=params, batch_stats=stats, train=True)
            return cross_entropy(output.logits, labels["labels"]), moved

        (value, moved), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return (
            value,
            gradients,
            jax.tree_util.tree_map(lambda leaf, slope: leaf - 0.1 * slope, params, gradients),
            moved,
        )

    theirs = copy.deepcopy(theirs).double()  # PyTorch's float32 gradients are further from these than JAX's
    optimiser, params, stats = torch.optim.SGD(theirs.parameters(), lr=0.1), ours.params, ours.batch_stats
    theirs.train()
    for number in range(3):
        optimiser.zero_grad()
        expected = theirs(**tensors(inputs), **tensors(labels)).loss
        expected.backward()
        value, gradients, params, stats = step(params, stats)
        assert_close(value, expected)
        if number == 0:  # later ones are of parameters that differ by the roundings of these
            compare_gradients(gradients, theirs, raw=ours.raw_parameters)
        optimiser.step()
    theirs.eval()
    before = ours(**inputs).logits
    ours.params, ours.batch_stats = params, stats
    output = ours(**inputs)
    compare(output, theirs(**tensors(inputs)), keep)
    assert np.abs((output.logits - before) * keep[..., None]).max() > 1e-2
    ours.save_pretrained(tmp_path)
    back = type(theirs).from_pretrained(tmp_path).state_dict()
    for key, tensor in theirs.state_dict().items():
        assert back[key].dtype == (torch.float32 if tensor.is_floating_point() else tensor.dtype)
        assert_close(back[key], tensor, what=key)
    again, params = type(ours).from_pretrained(tmp_path, dtype="bfloat16", param_dtype="bfloat16", _do_init=False)
    assert {str(leaf.dtype) for leaf in jax.tree_util.tree_leaves(params)} == {"bfloat16"}
    assert {str(leaf.dtype) for leaf in jax.tree_util.tree_leaves(again.batch_stats)} == {"float32", "int32"}
    assert bool(jnp.isfinite(again(**inputs, params=params).logits).all())


def test_a_decoder_with_batch_normalisation_writes_by_its_running_averages(pair):
    ours, theirs = pair("MegaForCausalLM", **DECODER, normalization_type="batchnorm")
    ids = inputs_of("MegaForCausalLM")[0]["input_ids"][:3]
    options = {"eos_token_id": None, "max_new_tokens": 6}
    theirs.train()(torch.from_numpy(ids))
    before = ours(ids).logits
    _, ours.batch_stats = ours(ids, train=True)
    expected = theirs.eval().generate(torch.from_numpy(ids), **options)
    np.testing.assert_array_equal(ours.generate(ids, **options).sequences, expected)
    assert np.abs(ours(ids).logits - before).max() > 1e-3


def test_running_averages_are_checked(pair):
    plain, _ = pair("MegaForMaskedLM")
    assert plain.batch_stats == {}
    with pytest.raises(InputError, match="batch_stats needs batch normalisation. Received: batch_stats with normali"):
        plain([[1]], batch_stats={"a": 1})
    ours, _ = pair("MegaForTokenClassification", normalization_type="batchnorm")
    with pytest.raises(InputError, match="must hold the model's running statistics. Differing: mega.layers.0.mega_lay"):
        ours.batch_stats = {}


def test_half_precision_and_recomputed_activations(pair, tmp_path):
    ours, theirs = pair("MegaForTokenClassification", **CHUNKS)
    inputs, labels = inputs_of("MegaForTokenClassification")
    theirs.save_pretrained(tmp_path)
    half = longspan.FlaxMegaForTokenClassification.from_pretrained(
        tmp_path, dtype=jnp.bfloat16, gradient_checkpointing=True, dropout_prob=0.1, use_feature_dropout=True
    )
    output, keep = half(**inputs).logits, inputs["attention_mask"][..., None]
    assert output.dtype == jnp.bfloat16
    wide = np.asarray(ours(**inputs).logits)
    assert (np.abs(np.asarray(output.astype("f")) - wide) * keep).max() <= 0.1 * np.abs(wide).max()

    def loss(params):
        logits = half(**inputs, params=params, train=True, dropout_rng=jax.random.key(0)).logits
        return cross_entropy(logits, labels["labels"])

    gradients = jax.jit(jax.grad(loss))(half.params)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree_util.tree_leaves(gradients))


def test_few_programs_serve_many_lengths_and_vmap_goes_through(pair):
    ours, _ = pair("MegaForSequenceClassification")
    ids = np.random.default_rng(0).integers(2, 59, (2, 60))
    before = ours._compiled._cache_size()
    outputs = [ours(ids[:, :length]).logits for length in (41, 50, 60)]
    assert ours._compiled._cache_size() == before + 1
    scaled = jax.tree_util.tree_map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), ours.params)
    both = jax.jit(jax.vmap(lambda params: ours(ids[:, :41], params=params).logits))(scaled)
    assert_close(both[0], outputs[0])


def test_saved_files_hold_the_placeholders_that_the_reference_asks_for(pair, tmp_path):
    ours, theirs = pair("MegaForMaskedLM")
    ours.save_pretrained(tmp_path / "flax")
    theirs.save_pretrained(tmp_path / "torch")
    files = [safe_open(tmp_path / kind / "model.safetensors", "np") for kind in ("flax", "torch")]
    assert set(files[0].keys()) == set(files[1].keys())


@pytest.mark.parametrize(
    ("settings", "inputs", "message"),
    [
        ({}, {}, "exactly one of input_ids and inputs_embeds must be given. Received: neither"),
        ({}, {"input_ids": [1, 2]}, r"input_ids must have the axes \(batch, tokens\). Received: \(2,\)"),
        ({}, {"input_ids": [[99]]}, r"input_ids must lie in \[0, vocab_size=59\). Received: 99"),
        ({}, {"input_ids": [[1]], "attention_mask": [[1, 1]]}, r"attention_mask must have the shape \(batch, tokens\)"),
        ({}, {"input_ids": [[1]], "past_key_values": {"a": 1}}, "past_key_values needs a decoder"),
        ({}, {"input_ids": [[1]], "encoder_hidden_states": np.ones((1, 1, 12))}, "a model with cross-attention"),
        ({"relative_positional_bias": "simple"}, {"input_ids": [[1] * 41]}, "reaches max_positions=40 tokens"),
        ({"dropout_prob": 0.1}, {"input_ids": [[1]], "train": True}, "needs a random key: dropout_rng"),
    ],
)
def test_errors(settings, inputs, message):
    model = longspan.FlaxMegaModel(longspan.MegaConfig(**{**SETTINGS, **settings}))
    with pytest.raises(InputError, match=message):
        model(**inputs)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("FlaxMegaForCausalLM", {}, "FlaxMegaForCausalLM needs is_decoder=True and bidirectional=False"),
        ("FlaxMegaModel", {"is_decoder": True}, "a decoder needs bidirectional=False"),
    ],
)
def test_settings_that_no_model_can_have(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        getattr(longspan, name)(longspan.MegaConfig(**{**SETTINGS, **settings}))


def test_a_masked_language_model_that_sees_one_direction_is_warned_of_where_it_is_made():
    with pytest.warns(UserWarning, match="FlaxMegaForMaskedLM should see both directions") as warned:
        longspan.FlaxMegaForMaskedLM(longspan.MegaConfig(**{**SETTINGS, **DECODER}), _do_init=False)
    assert warned[0].filename == __file__


def test_files_go_both_ways_and_auto_classes_find_them(pair, tmp_path):
    _, theirs = pair("MegaForCausalLM", **DECODER)
    theirs.save_pretrained(tmp_path / "torch")
    ours = longspan.FlaxAutoModelForCausalLM.from_pretrained(tmp_path / "torch")
    assert type(ours) is longspan.FlaxMegaForCausalLM
    ours.save_pretrained(tmp_path / "flax")
    back = longspan.MegaForCausalLM.from_pretrained(tmp_path / "flax")
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
