"""Every Flax Longformer class against the PyTorch class on the same checkpoint directory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tests.grid import grid
from tests.parity.flax_parity import compare_gradients, compare_outputs
from tests.parity.torch_parity import randomise
from tests.tolerances import as_numpy, assert_close

import longspan
from longspan.nn.flax.buckets import bucket

SETTINGS = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 28,
    "attention_window": [4, 8],
    "max_position_embeddings": 100,
    "type_vocab_size": 2,
    "num_labels": 5,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
NAMES = [
    f"Longformer{name}"
    for name in (
        "Model",
        "ForMaskedLM",
        "ForSequenceClassification",
        "ForMultipleChoice",
        "ForTokenClassification",
        "ForQuestionAnswering",
    )
]
ROWS = 4


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """A function that gives (Flax model, PyTorch model) of a class with equal weights, made once each."""
    made, root = {}, tmp_path_factory.mktemp("longformer")

    def make(name, **settings):
        key = (name, *sorted(settings.items()))
        if key not in made:
            labels = {"num_labels": 2} if "Answering" in name else {}
            config = longspan.LongformerConfig(**{**SETTINGS, **labels, **settings})
            expected = randomise(getattr(longspan, name)(config)).eval()
            expected.save_pretrained(root / str(len(made)))
            made[key] = (getattr(longspan, f"Flax{name}").from_pretrained(root / str(len(made))), expected)
        return made[key]

    return make


def batch(name, length, kind="some"):
    """Rows that are full, padded on the right, padded on the left, and empty; global tokens as `kind` says."""
    rng = np.random.default_rng(length)
    ids = rng.integers(3, 61, (ROWS, length))
    mask = np.ones((ROWS, length), np.int64)
    mask[1, length * 2 // 3 :] = 0
    mask[2, : length // 3] = 0
    mask[3] = 0
    ids = np.where(mask == 1, ids, 1)
    is_global = {
        "none": np.zeros(mask.shape, bool),
        "all": np.ones(mask.shape, bool),
        "some": rng.random(mask.shape) < 0.3,
        "padding": (rng.random(mask.shape) < 0.2) | (mask == 0),
    }[kind]
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "global_attention_mask": is_global.astype(np.int64),
        "token_type_ids": rng.integers(0, 2, mask.shape),
    }
    if "Choice" in name:
        inputs = {key: value.reshape(2, 2, length) for key, value in inputs.items()}
    return inputs, mask


def run_both(models, inputs, **flags):
    ours, theirs = models
    expected = theirs(**{name: torch.from_numpy(np.asarray(value)) for name, value in inputs.items()}, **flags)
    return ours(**inputs, **flags), expected


ALL = {"output_attentions": True, "output_hidden_states": True}


#: every kind of global tokens, below and above the window, with weights and without; then the same with the other
BACKBONE = [
    ("none", 37, {}),
    ("all", 37, {}),
    ("some", 3, ALL),
    ("padding", 37, ALL),
    ("some", 3, {}),
    ("none", 37, ALL),
]


@pytest.mark.parametrize(("kind", "length", "flags"), grid(BACKBONE, wide=BACKBONE[4:]))
def test_outputs_of_the_backbone(pair, kind, length, flags):
    inputs, mask = batch("", length, kind)
    with torch.no_grad():
        ours, expected = run_both(pair("LongformerModel"), inputs, **flags)
    # padding also has the weights of what padding sees, which both leave unspecified: rows of queries are compared
    skip = ("loss", "attentions", "global_attentions", "pooler_output")
    compare_outputs(ours, expected, keep=mask, skip=skip)
    assert_close(ours.pooler_output[:2], expected.pooler_output[:2])
    if flags:
        for name in ("attentions", "global_attentions"):
            assert (name in ours) == (name in expected)
            for mine, theirs in zip(ours.get(name, ()), expected.get(name, ()), strict=True):
                assert_close(mine[:3] * 1.0, theirs[:3], what=name)


#: one layer takes half the time to compile; `test_outputs_of_the_backbone` has two
ONE_LAYER = {"num_hidden_layers": 1, "attention_window": 4}


@pytest.mark.parametrize(("name", "length"), [*((name, 21) for name in NAMES), ("LongformerModel", 3)])
def test_outputs_and_gradients_of_every_class(pair, name, length):
    inputs, mask = batch(name, length)
    ours, theirs = pair(name, **ONE_LAYER)
    theirs.zero_grad()
    _, expected = run_both((lambda **_: None, theirs), inputs)
    fields = {key: value for key, value in expected.items() if value.dim() > 0}
    rng = np.random.default_rng(0)
    weights = {key: rng.normal(size=tuple(value.shape)).astype("f") for key, value in fields.items()}
    for key, value in weights.items():  # what is unspecified counts nothing
        is_of_tokens = "Choice" not in name and value.shape[:2] == mask.shape
        value *= mask.reshape(*mask.shape, *[1] * (value.ndim - 2)) if is_of_tokens else 1.0
        if not is_of_tokens and "Choice" not in name:
            value[2:] = 0.0  # heads that read a first token which is padding
        if "Choice" in name:
            value[1] = 0.0
        weights[key] = value
    sum((value * torch.from_numpy(weights[key])).sum() for key, value in fields.items()).backward()

    def loss(params):
        output = ours(**inputs, params=params)
        return sum((output[key] * weights[key]).sum() for key in weights), output

    gradients, output = jax.jit(jax.grad(loss, has_aux=True))(ours.params)
    plain = [ours(**inputs)] if name in ("LongformerModel", "LongformerForMaskedLM") else []
    for found in (output, *plain):
        for key, value in fields.items():
            keep = weights[key] != 0
            assert_close(np.asarray(found[key]) * keep, value.detach().numpy() * keep, what=key)
    compare_gradients(gradients, theirs)


@pytest.mark.parametrize("name", ["LongformerForSequenceClassification", "LongformerForQuestionAnswering"])
def test_which_tokens_are_global_by_default(pair, name):
    inputs, mask = batch(name, 21)
    del inputs["global_attention_mask"], inputs["token_type_ids"]
    inputs["input_ids"][0, 5] = inputs["input_ids"][1, 3] = inputs["input_ids"][2, 12] = 2
    inputs = {key: value[:2] for key, value in inputs.items()}
    with torch.no_grad():
        ours, expected = run_both(pair(name, **ONE_LAYER), inputs)
    compare_outputs(ours, expected, keep=mask[:2] if "Answering" in name else None)


def test_the_choice_is_global_by_default_and_what_is_not_found_is_told(pair):
    inputs, _ = batch("Choice", 21)
    ids = inputs["input_ids"][:1]
    ids[..., 4] = ids[..., 5] = 2
    models = pair("LongformerForMultipleChoice", **ONE_LAYER)
    with torch.no_grad():
        ours, expected = run_both(models, {"input_ids": ids})
    compare_outputs(ours, expected)
    with pytest.warns(UserWarning, match="the model cannot find a choice: no separator in 2 of 2 rows"):
        models[0](np.where(ids == 2, 7, ids))
    with pytest.warns(UserWarning, match="a question: no separator and no token of segment 1 in 1 of 1 rows"):
        pair("LongformerForQuestionAnswering")[0](np.array([[0, 7, 8]]))


def test_marks_embeddings_positions_and_heads(pair):
    inputs, mask = batch("", 13)
    models = pair("LongformerModel")
    rng = np.random.default_rng(0)
    marked = inputs["attention_mask"] + (inputs["global_attention_mask"] & inputs["attention_mask"])
    cases = [
        {"input_ids": inputs["input_ids"], "attention_mask": marked},
        {"inputs_embeds": rng.normal(size=(ROWS, 13, 24)).astype("f"), "attention_mask": mask},
        {"input_ids": inputs["input_ids"], "position_ids": rng.integers(0, 100, (ROWS, 13)), "attention_mask": marked},
        {**inputs, "head_mask": np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 1.0]], "f")},
    ]
    for case in cases:
        with torch.no_grad():
            ours, expected = run_both(models, case)
        keep = mask[..., None]
        assert_close(ours.last_hidden_state * keep, as_numpy(expected.last_hidden_state) * keep)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_without_nan(pair, dtype):
    inputs, mask = batch("", 21, "padding")
    reference, theirs = pair("LongformerModel")
    model = longspan.FlaxLongformerModel(reference.config, dtype=dtype)
    output = model(**inputs, params=model.to_bf16(reference.params) if dtype == "bfloat16" else reference.params)
    assert jnp.isfinite(output.last_hidden_state).all()
    assert jnp.isfinite(output.pooler_output).all()
    with torch.no_grad():
        expected = theirs(**{key: torch.from_numpy(value) for key, value in inputs.items()}).last_hidden_state
    keep = mask[..., None]
    assert_close(output.last_hidden_state.astype(jnp.float32) * keep, as_numpy(expected) * keep, "bfloat16")


def test_one_program_serves_a_bucket_of_lengths_and_numbers_of_global_tokens(pair):
    model, _ = pair("LongformerForTokenClassification", **ONE_LAYER)
    model._compiled.clear_cache()
    for length in range(9, bucket(9) + 1, 11):
        for number in (3, 4):
            ids = np.full((1, length), 7)
            is_global = np.arange(length)[None] < number
            assert model(ids, global_attention_mask=is_global).logits.shape == (1, length, 5)
    assert model._compiled._cache_size() == 1


def test_jit_and_vmap_have_the_slots_of_the_configuration(pair):
    model, _ = pair("LongformerModel", num_global_slots=3, **ONE_LAYER)
    inputs, mask = batch("", 21, "none")
    inputs["global_attention_mask"][:, [4, 9, 13]] = 1
    inputs = {name: value[:2] for name, value in inputs.items()}
    expected = model(**inputs).last_hidden_state

    def run(inputs):
        return model(**inputs).last_hidden_state

    keep = mask[:2, :, None]
    assert_close(jax.jit(run)(inputs) * keep, expected * keep)
    one_by_one = jax.vmap(lambda row: run(jax.tree_util.tree_map(lambda leaf: leaf[None], row))[0])(inputs)
    assert_close(one_by_one * keep, expected * keep)
    inputs["global_attention_mask"][0, 6] = 1  # one more than there is room for
    output = np.asarray(jax.jit(run)(inputs))
    assert np.isnan(output[0]).all()
    assert_close(output[1] * keep[1], expected[1] * keep[1])
    room = jax.jit(lambda inputs: model(**inputs, num_global_slots=4).last_hidden_state)
    assert_close(room(inputs) * keep, model(**inputs).last_hidden_state * keep)


# the backward pass holds what the forward pass does
@pytest.mark.parametrize("direction", grid(("forward", "backward"), wide=("forward",)))
def test_memory_is_linear_from_4096_to_32768_tokens(direction):
    """XLA's own count of the program's temporary memory, and no array of tokens × tokens in it; nothing runs."""
    config = longspan.LongformerConfig(
        **{**SETTINGS, "num_hidden_layers": 1, "attention_window": 64, "max_position_embeddings": 33000}
    )
    model = longspan.FlaxLongformerModel(config)

    def total(params, ids, is_global):
        return model(ids, global_attention_mask=is_global, params=params).last_hidden_state.sum()

    def memory(length):
        tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
        program = jax.jit(total if direction == "forward" else jax.grad(total)).lower(model.params, tokens, tokens)
        assert f"{length}x{length}" not in program.as_text()
        return program.compile().memory_analysis().temp_size_in_bytes

    short, long = memory(4096), memory(32768)
    assert short > 4096 * 24 * 4  # what is counted includes a tensor of states
    assert long <= 9 * short


def test_recomputed_activations_and_dropout(pair):
    model, _ = pair("LongformerForMaskedLM", **ONE_LAYER)
    inputs, mask = batch("", 21)

    def loss(params):
        return (model(**inputs, params=params).logits[:2] * mask[:2, :, None]).sum()

    plain = jax.grad(loss)(model.params)
    model.enable_gradient_checkpointing()
    try:
        again = jax.grad(loss)(model.params)
    finally:
        model.disable_gradient_checkpointing()
    for mine, theirs in zip(*map(jax.tree_util.tree_leaves, (again, plain)), strict=True):
        assert_close(mine, theirs)
    dropping = longspan.FlaxLongformerModel(
        longspan.LongformerConfig(**{**SETTINGS, **ONE_LAYER, "attention_probs_dropout_prob": 0.5})
    )
    first, same, other = (
        dropping(**inputs, train=True, dropout_rng=jax.random.key(seed)).last_hidden_state for seed in (0, 0, 1)
    )
    assert (first == same).all()
    assert (first != other).any()
    with pytest.raises(longspan.errors.InputError, match="needs a random key"):
        dropping(**inputs, train=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of input_ids and inputs_embeds"),
        ({"input_ids": np.array([7, 8])}, r"input_ids must have the shape \(batch, tokens\)"),
        ({"inputs_embeds": np.ones((1, 2, 3), "f")}, r"inputs_embeds must have the shape \(batch, tokens, hidden_size"),
        ({"input_ids": np.array([[70]])}, r"input_ids must lie in \[0, vocab_size=61\)"),
        ({"input_ids": np.full((1, 99), 7)}, "not be longer than max_position_embeddings - pad_token_id - 1=98"),
        (
            {"input_ids": np.array([[7, 8]]), "global_attention_mask": np.ones((1, 3))},
            "global_attention_mask must have the shape",
        ),
    ],
)
def test_errors(pair, arguments, message):
    with pytest.raises(longspan.errors.InputError, match=message):
        pair("LongformerModel")[0](**arguments)


def test_auto_classes_and_saving(pair, tmp_path):
    model, expected = pair("LongformerForMaskedLM", **ONE_LAYER)
    model.save_pretrained(tmp_path)
    again = longspan.FlaxAutoModelForMaskedLM.from_pretrained(tmp_path)
    assert type(again) is longspan.FlaxLongformerForMaskedLM
    back = longspan.LongformerForMaskedLM.from_pretrained(tmp_path).state_dict()
    for name, tensor in expected.state_dict().items():
        assert (back[name] == tensor).all(), name
