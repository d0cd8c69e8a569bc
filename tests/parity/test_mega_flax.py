"""Every Flax MEGA class and setting against the PyTorch class on the same file: outputs, losses, gradients, caches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors import safe_open
from tests.parity.flax_parity import compare_gradients
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

SETTINGS = {
    "vocab_size": 59,
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "intermediate_size": 20,
    "ema_projection_size": 3,
    "shared_representation_size": 8,
    "nffn_hidden_size": 14,
    "max_positions": 40,
    "type_vocab_size": 3,
    "num_labels": 5,
    "dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "nffn_activation_dropout_prob": 0.0,
}
DECODER = {"is_decoder": True, "bidirectional": False}
CHUNKS = {"use_chunking": True, "chunk_size": 6}
CLASSES = {
    "MegaModel": {**CHUNKS, "num_hidden_layers": 2},
    "MegaForCausalLM": {**DECODER, **CHUNKS},
    "MegaForMaskedLM": {},
    "MegaForSequenceClassification": {},
    "MegaForMultipleChoice": {},
    "MegaForTokenClassification": CHUNKS,
    "MegaForQuestionAnswering": {"num_labels": 2},
}
#: rows of 19 tokens: full, padded on the right, with a hole, padded on the left, and nothing but padding
ROWS, LENGTH = 5, 19


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


def inputs_of(name, *, settings=None):
    """Inputs and labels of a class; labels at padding are ignored."""
    rng = np.random.default_rng(1)
    mask = np.ones((ROWS, LENGTH), np.int64)
    mask[1, 11:] = mask[2, 7:9] = mask[3, :7] = mask[4] = 0
    ids = rng.integers(2, 59, (ROWS, LENGTH))
    per_token = np.where(mask == 0, -100, rng.integers(0, 5, mask.shape))
    inputs = {"input_ids": ids, "attention_mask": mask}
    labels = {
        "MegaModel": {},
        "MegaForSequenceClassification": {"labels": np.array([4, 0, 2, 2, 1])},
        "MegaForMultipleChoice": {"labels": np.array([0, 1])},
        "MegaForQuestionAnswering": {
            "start_positions": np.array([3, 0, 99, 8, 1]),  # 99 lies outside and does not count
            "end_positions": np.array([5, 2, 99, 18, 2]),
        },
    }.get(name, {"labels": per_token})
    if name == "MegaForMultipleChoice":
        inputs = {key: value[:4].reshape(2, 2, LENGTH) for key, value in inputs.items()}
    if (settings or {}).get("add_token_type_embeddings"):
        inputs["token_type_ids"] = rng.integers(0, 3, inputs["input_ids"].shape)
    if (settings or {}).get("add_cross_attention"):
        inputs["encoder_hidden_states"] = rng.normal(size=(ROWS, 7, 12)).astype("f")
        inputs["encoder_attention_mask"] = np.array([[1] * 7, [1] * 4 + [0] * 3, [0] * 2 + [1] * 5, [1] * 7, [0] * 7])
    return inputs, labels


def tensors(arrays):
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def real(name, value, keep):
    """Zero the rows at padding: of weights (B, chunks, C, C) and (B, S, T), and of states (B, S, ...)."""
    value = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    if name == "attentions":
        if value.shape[1] > 1:  # chunks begin at the first real token
            kept = [np.roll(row, -int(row.argmax())) for row in keep]
            kept = np.pad(np.array(kept), ((0, 0), (0, value.shape[1] * value.shape[2] - keep.shape[1])))
            return value * kept.reshape(*value.shape[:3], 1)
        return value * keep[:, None, :, None]
    return value * keep.reshape(*keep.shape, *[1] * (value.ndim - 2)) if value.shape[:2] == keep.shape else value


def compare(ours, expected, keep):
    names = [name for name in expected if name not in ("loss", "past_key_values")]
    assert set(names) == set(ours) - {"past_key_values"}
    for name in names:
        several = isinstance(expected[name], tuple)
        pairs = zip(ours[name], expected[name], strict=True) if several else [(ours[name], expected[name])]
        for index, (mine, theirs) in enumerate(pairs):
            mine, theirs = (real(name, value, keep) for value in (mine, theirs))
            if name in ("pooler_output", "logits") and mine.ndim == 2:
                rows = slice(0, 3)  # the first token of the others is padding, whose state is free
                mine, theirs = mine[rows], theirs[rows]
            assert_close(mine, theirs, what=f"{name}[{index}]")


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
    if name in ("MegaModel", "MegaForMaskedLM"):  # with chunks and without
        compare(ours(**inputs, **flags), output, keep)
    plain = {field: value for field, value in output.items() if field not in ("attentions", "hidden_states")}
    compare(ours(**inputs), plain, keep)  # padded to a bucket, by blocks

    @jax.jit
    @jax.value_and_grad
    def value_and_grad(params):
        return loss_of(name, ours.config, ours(**inputs, params=params), labels, keep)

    value, gradients = value_and_grad(ours.params)
    expected = expected_loss(name, output, keep)
    expected.backward()
    assert_close(value, expected)
    if name == "MegaForMultipleChoice":  # one bias for all choices changes no softmax: what both have is rounding
        ours_of_bias, theirs_of_bias = gradients["classifier"]["bias"], theirs.classifier.bias.grad
        assert max(float(abs(ours_of_bias[0])), float(abs(theirs_of_bias[0]))) <= 1e-6
        gradients["classifier"]["bias"] = ours_of_bias * 0.0
        theirs_of_bias.zero_()
    compare_gradients(gradients, theirs, raw=ours.raw_parameters)


VARIANTS = {
    "laplace-chunks-simple": {
        **CHUNKS, "attention_activation": "laplace", "relative_positional_bias": "simple",
        "normalization_type": "rmsnorm", "add_token_type_embeddings": True,
    },
    "relu2-truncated": {"attention_activation": "relu2", "truncation": 4, "normalization_type": "layernorm"},
    "after-plain": {
        "normalize_before_mega": False, "normalize_before_ffn": False, "normalization_type": "layernorm",
        "norm_affine": False, "use_normalized_ffn": False, "activation": "gelu",
    },
    "decoder-laplace": {
        **DECODER, **CHUNKS, "attention_activation": "laplace", "truncation": 9, "add_lm_hidden_dense_layer": False,
    },
    "cross": {**DECODER, "add_cross_attention": True, "tie_word_embeddings": True, "norm_affine": False},
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_settings(pair, variant):
    settings = VARIANTS[variant]
    name = "MegaForCausalLM" if settings.get("is_decoder") else "MegaForMaskedLM"
    ours, theirs = pair(name, **settings)
    inputs, labels = inputs_of(name, settings=settings)
    output = theirs(**tensors(inputs), **tensors(labels), output_hidden_states=True)
    compare(ours(**inputs, output_hidden_states=True), output, inputs["attention_mask"])

    def loss(params):
        return loss_of(name, ours.config, ours(**inputs, params=params), labels, None)

    value, gradients = jax.jit(jax.value_and_grad(loss))(ours.params)
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


@pytest.mark.parametrize("settings", [{}, CHUNKS], ids=["whole", "chunks"])
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
        ("FlaxMegaModel", {"normalization_type": "batchnorm"}, "MEGA in Flax has no batch normalisation"),
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
