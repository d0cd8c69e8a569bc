"""Every Flax DiffLlama class against the PyTorch class on the same file: outputs, losses, gradients, caches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tests.parity.flax_parity import compare_gradients, compare_outputs
from tests.parity.torch_parity import randomise
from tests.tolerances import assert_close

import longspan
from longspan.errors import InputError
from longspan.nn.flax.losses import (
    causal_lm_loss,
    cross_entropy,
    question_answering_loss,
    sequence_classification_loss,
)
from longspan.ops.flax import differential

SETTINGS = {
    "vocab_size": 61,
    "hidden_size": 20,
    "intermediate_size": 26,
    "num_hidden_layers": 1,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "num_labels": 5,
}
CLASSES = (
    "DiffLlamaModel",
    "DiffLlamaForCausalLM",
    "DiffLlamaForSequenceClassification",
    "DiffLlamaForQuestionAnswering",
    "DiffLlamaForTokenClassification",
)
LENGTH = 19
FLAGS = {"output_attentions": True, "output_hidden_states": True, "output_differential_attentions": True}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Blocks of eight queries, so that short inputs take several."""
    monkeypatch.setattr(differential, "BLOCK_ROWS", 8)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A function that gives (Flax model, PyTorch model) of a class on equal weights, made once each."""
    made = {}

    def make(name, **settings):
        settings = {"num_hidden_layers": 2, **settings} if name == "DiffLlamaModel" else settings
        key = (name, repr(settings))
        if key not in made:
            expected = randomise(getattr(longspan, name)(longspan.DiffLlamaConfig(**{**SETTINGS, **settings})))
            directory = tmp_path_factory.mktemp(name)
            expected.save_pretrained(directory)
            made[key] = (getattr(longspan, f"Flax{name}").from_pretrained(directory), expected)
        made[key][1].zero_grad()
        return made[key]

    return make


def inputs_of(name):
    """Rows without padding, padded on the right, with a hole, padded on the left, and nothing but padding; labels."""
    rng = np.random.default_rng(1)
    ids = rng.integers(1, 61, (5, LENGTH))
    ids[1, 11:] = ids[2, 4:6] = ids[3, :7] = ids[4] = 0
    mask = (ids != 0).astype(np.int64)
    after_real = np.concatenate([np.zeros_like(mask[:, :1]), mask[:, :-1]], axis=1)
    labels = {
        "DiffLlamaForCausalLM": {"labels": np.where(mask * after_real == 0, -100, ids)},
        "DiffLlamaForSequenceClassification": {"labels": np.array([4, 0, 2, 2, 1])},
        "DiffLlamaForTokenClassification": {
            "labels": np.where(mask == 0, -100, rng.integers(0, 5, mask.shape)),
        },
        # 99 lies outside and does not count
        "DiffLlamaForQuestionAnswering": {
            "start_positions": np.array([3, 0, 99]),
            "end_positions": np.array([5, 2, 18]),
        },
    }.get(name, {})
    if name == "DiffLlamaForQuestionAnswering":  # its loss scores every position: none that is unspecified
        ids, mask = ids[:3], mask[:3]
    return {"input_ids": ids, "attention_mask": mask}, labels


def tensors(arrays):
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def loss_of(name, config, output, labels, keep):
    """The loss of a Flax output, as the PyTorch class computes it; of the backbone, a function of all real states."""
    if name == "DiffLlamaModel":
        return jnp.square(output.last_hidden_state * keep[..., None] * jnp.linspace(-1, 1, 20)).sum()
    if name == "DiffLlamaForCausalLM":
        return causal_lm_loss(output.logits, labels["labels"])
    if name == "DiffLlamaForSequenceClassification":
        return sequence_classification_loss(config, output.logits, labels["labels"])
    if name == "DiffLlamaForQuestionAnswering":
        return question_answering_loss(output.start_logits, output.end_logits, *labels.values())
    return cross_entropy(output.logits, labels["labels"])


@pytest.mark.parametrize("name", ["DiffLlamaModel", "DiffLlamaForQuestionAnswering"])
def test_outputs_states_and_maps(pair, name):
    """Of two classes; of all, what the program of the gradients gives is compared below."""
    ours, theirs = pair(name)
    inputs, _ = inputs_of(name)
    with torch.no_grad():
        expected = theirs(**tensors(inputs), **FLAGS)
    keep = inputs["attention_mask"]
    compare_outputs(ours(**inputs, **FLAGS), expected, keep=keep)
    # padded to a bucket, by the blocked implementation
    first = next(iter(expected.values()))
    plain = ours(**inputs)[0]
    assert plain.shape == first.shape
    compare_outputs({"first": plain}, {"first": first}, keep=keep)


@pytest.mark.parametrize("name", CLASSES)
def test_outputs_losses_and_gradients(pair, name):
    ours, theirs = pair(name)
    inputs, labels = inputs_of(name)
    if name == "DiffLlamaForSequenceClassification":  # of a row of padding, no token is the last
        inputs, labels = ({key: value[:4] for key, value in arrays.items()} for arrays in (inputs, labels))
    keep = inputs["attention_mask"]

    def loss_and_output(params):
        found = ours(**inputs, params=params)
        return loss_of(name, ours.config, found, labels, keep), found[0]

    (value, found), gradients = jax.jit(jax.value_and_grad(loss_and_output, has_aux=True))(ours.params)
    output = theirs(**tensors(inputs), **tensors(labels))
    first = output.last_hidden_state if name == "DiffLlamaModel" else output[1]  # behind the loss
    is_of_rows = name == "DiffLlamaForSequenceClassification"
    compare_outputs({"first": found}, {"first": first}, keep=None if is_of_rows else keep)
    if name == "DiffLlamaModel":
        scale = torch.from_numpy(keep)[..., None] * torch.linspace(-1, 1, 20)
        expected = (output.last_hidden_state * scale).square().sum()
    else:
        expected = output.loss
    expected.backward()
    assert_close(value, expected)
    compare_gradients(gradients, theirs, raw=ours.raw_parameters)


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 12},
        {"attention_bias": True, "tie_word_embeddings": True, "num_key_value_heads": 2, "hidden_act": "gelu"},
    ],
    ids=["dynamic", "biases"],
)
def test_settings(pair, settings):
    ours, theirs = pair("DiffLlamaForCausalLM", **settings)
    inputs, labels = inputs_of("DiffLlamaForCausalLM")
    with torch.no_grad():
        expected = theirs(**tensors(inputs), **tensors(labels))
    output = ours(**inputs)
    compare_outputs(output, {"logits": expected.logits}, keep=inputs["attention_mask"])
    assert_close(causal_lm_loss(output.logits, labels["labels"]), expected.loss)


def test_documents_packed_in_one_row_see_only_themselves(pair):
    ours, theirs = pair("DiffLlamaModel")
    ids = inputs_of("DiffLlamaModel")[0]["input_ids"][:1]
    positions = np.concatenate([np.arange(5), np.arange(11), np.arange(3)])[None]
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids), position_ids=torch.from_numpy(positions), use_cache=False)
    assert_close(ours(ids, position_ids=positions).last_hidden_state, expected.last_hidden_state)
    alone = ours(ids[:, 5:16]).last_hidden_state
    assert_close(ours(ids, position_ids=positions).last_hidden_state[:, 5:16], alone)


def test_embeddings_may_be_given(pair):
    ours, theirs = pair("DiffLlamaModel")
    inputs, _ = inputs_of("DiffLlamaModel")
    states = theirs.embed_tokens(torch.from_numpy(inputs["input_ids"])).detach().numpy()
    expected = ours(**inputs).last_hidden_state
    mask = inputs["attention_mask"]
    broken = np.where(mask[..., None] == 1, states, np.nan)  # a fault at padding reaches no token
    output = ours(inputs_embeds=broken, attention_mask=mask)
    compare_outputs(output, {"last_hidden_state": expected}, keep=mask)


def test_tokens_one_by_one_give_what_all_at_once_give(pair):
    ours, _ = pair("DiffLlamaForCausalLM")
    inputs, _ = inputs_of("DiffLlamaForCausalLM")
    ids, mask = inputs["input_ids"][[0, 3]], inputs["attention_mask"][[0, 3]]
    expected = ours(ids, mask).logits
    cache, parts = ours.init_cache(2, LENGTH + 4), []
    for start, stop in ((0, 9), (9, 10), (10, LENGTH)):
        output = ours(ids[:, start:stop], mask[:, :stop], past_key_values=cache)
        cache, parts = output.past_key_values, [*parts, output.logits]
    compare_outputs({"logits": jnp.concatenate(parts, axis=1)}, {"logits": expected}, keep=mask)


def test_half_precision_and_recomputed_activations(pair, tmp_path):
    ours, theirs = pair("DiffLlamaForTokenClassification")
    inputs, labels = inputs_of("DiffLlamaForTokenClassification")
    theirs.save_pretrained(tmp_path)
    half = longspan.FlaxDiffLlamaForTokenClassification.from_pretrained(
        tmp_path, dtype=jnp.bfloat16, gradient_checkpointing=True
    )
    output = half(**inputs)
    assert output.logits.dtype == jnp.bfloat16
    keep = inputs["attention_mask"]
    wide = ours(**inputs).logits
    difference = np.abs(np.asarray(output.logits.astype("f") - wide)) * keep[..., None]
    assert difference.max() <= 0.1 * np.abs(np.asarray(wide)).max()  # two layers of roundings of 2⁻⁹
    assert np.isfinite(np.asarray(output.logits.astype("f"))).all()

    def loss(params, model):
        logits = model(**inputs, params=params, train=True, dropout_rng=jax.random.key(0)).logits
        return cross_entropy(logits, labels["labels"])

    gradients = jax.jit(jax.grad(loss), static_argnums=1)(half.params, half)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree_util.tree_leaves(gradients))


def test_few_programs_serve_many_lengths_and_vmap_goes_through(pair):
    ours, _ = pair("DiffLlamaForSequenceClassification")
    ids = np.random.default_rng(0).integers(1, 61, (2, 60))
    before = ours._compiled._cache_size()
    outputs = [ours(ids[:, :length]).logits for length in (41, 50, 60)]
    assert ours._compiled._cache_size() == before + 1
    assert_close(outputs[0], jax.jit(lambda ids: ours(ids).logits)(ids[:, :41]))
    scaled = jax.tree_util.tree_map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), ours.params)
    both = jax.vmap(lambda params: ours(ids[:, :41], params=params).logits)(scaled)
    assert_close(both[0], outputs[0])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "exactly one of input_ids and inputs_embeds must be given. Received: neither"),
        ({"input_ids": [1, 2]}, r"input_ids must have the shape \(batch, tokens\). Received: \(2,\)"),
        ({"input_ids": [[99]]}, r"input_ids must lie in \[0, vocab_size=61\). Received: 99"),
        ({"input_ids": [[1]], "attention_mask": [[1, 1]]}, r"attention_mask must have the shape \(batch, tokens\)"),
        ({"input_ids": [[1]], "position_ids": [[1, 1]]}, r"position_ids must have the shape \(batch, tokens\), or"),
        ({"inputs_embeds": np.ones((1, 2, 3), "f")}, r"inputs_embeds must have the shape .* = \(1, 2, 20\)"),
        ({"input_ids": [[1]], "train": True}, "needs a random key: dropout_rng"),
        ({"input_ids": [[1]], "past_key_values": [1]}, "past_key_values must be the dict of init_cache"),
    ],
)
def test_errors(pair, inputs, message):
    with pytest.raises(InputError, match=message):
        pair("DiffLlamaForTokenClassification")[0](**inputs)


def test_files_go_both_ways_and_auto_classes_find_them(pair, tmp_path):
    _, theirs = pair("DiffLlamaForSequenceClassification")
    theirs.save_pretrained(tmp_path / "torch")
    ours = longspan.FlaxAutoModelForSequenceClassification.from_pretrained(tmp_path / "torch")
    assert type(ours) is longspan.FlaxDiffLlamaForSequenceClassification
    ours.save_pretrained(tmp_path / "flax")
    back = longspan.DiffLlamaForSequenceClassification.from_pretrained(tmp_path / "flax")
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
