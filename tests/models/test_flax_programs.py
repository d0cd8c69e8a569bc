"""Flax models as programs of their own: optimised, exported at any length; faults and labels at padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import export
from tests.grid import grid
from tests.jaxprs import largest_array
from tests.tolerances import assert_close, assert_gradients_close, gradient_error

import longspan
from longspan import shapes
from longspan.nn.flax.layers import tokenwise
from longspan.nn.flax.losses import cross_entropy

BERT = longspan.BertConfig(
    vocab_size=40, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=10,
    max_position_embeddings=32,
)  # fmt: skip
LONGFORMER = longspan.LongformerConfig(
    vocab_size=40, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=10,
    max_position_embeddings=32, attention_window=4, num_global_slots=20,
)  # fmt: skip
LONGT5 = longspan.LongT5Config(
    vocab_size=40, d_model=12, d_kv=4, d_ff=10, num_heads=2, num_layers=1, local_radius=2, global_block_size=4,
    encoder_attention_type="transient-global",
)  # fmt: skip
DIFFLLAMA = longspan.DiffLlamaConfig(
    vocab_size=40, hidden_size=12, intermediate_size=10, num_attention_heads=4, num_key_value_heads=2, head_dim=4,
    num_hidden_layers=1,
)  # fmt: skip
MEGA = longspan.MegaConfig(
    vocab_size=40, hidden_size=12, num_hidden_layers=1, intermediate_size=14, ema_projection_size=3,
    shared_representation_size=8, nffn_hidden_size=10,
)  # fmt: skip
CHUNKED = longspan.MegaConfig(**{**MEGA.to_dict(), "use_chunking": True, "chunk_size": 64})


def batch(length, rows=3):
    ids = np.random.default_rng(length).integers(1, 40, (rows, length)).astype(np.int32)
    mask = np.ones((rows, length), np.int32)
    mask[0, 4:] = mask[1, :2] = 0
    return ids, mask


#: what users get, and tests/conftest.py turns off
OPTIMISED = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_use_fusion_emitters": True,
}
#: class -> settings
SMALL = {
    "FlaxBertForQuestionAnswering": BERT,
    "FlaxLongformerForQuestionAnswering": LONGFORMER,
    "FlaxLongT5ForConditionalGeneration": LONGT5,
    "FlaxDiffLlamaForCausalLM": DIFFLLAMA,
    "FlaxMegaForTokenClassification": CHUNKED,
}


OPTIMISED_CASES = [
    ("FlaxLongT5ForConditionalGeneration", "blocked"),
    ("FlaxDiffLlamaForCausalLM", "chunked"),
    ("FlaxBertForQuestionAnswering", "eager"),
    ("FlaxMegaForTokenClassification", "tiled"),
]


# loops over blocks are what XLA optimises most
@pytest.mark.parametrize(("name", "implementation"), grid(OPTIMISED_CASES, wide=OPTIMISED_CASES[2:]))
def test_optimised_programs_compute_the_same(name, implementation):
    small = SMALL[name]
    model = getattr(longspan, name)(type(small)(**{**small.to_dict(), "attn_implementation": implementation}))
    ids, mask = batch(13)
    targets = {"decoder_input_ids": ids[:, :3]} if small is LONGT5 else {}

    def loss(params):
        output = model(ids, mask, params=params, return_dict=False, **targets)[0]
        return jnp.square(output).sum(), output

    program = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(model.params)
    (_, output), gradients = program.compile()(model.params)
    (_, expected), wanted = program.compile(compiler_options=OPTIMISED)(model.params)
    assert_close(output, expected)
    if small is DIFFLLAMA:  # the gradients of λ are small sums over all tokens, whose terms cancel
        named = [dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (gradients, wanted)]
        assert_gradients_close(*({str(path): leaf for path, leaf in leaves.items()} for leaves in named))
        return
    for mine, theirs in zip(*map(jax.tree_util.tree_leaves, (gradients, wanted)), strict=True):
        assert gradient_error(mine, theirs) < 1e-5


@pytest.mark.parametrize("name", SMALL)
def test_an_export_serves_every_length(name):
    model = getattr(longspan, name)(SMALL[name])

    def run(params, ids, mask):
        targets = {"decoder_input_ids": ids[:, :3]} if "LongT5" in name else {}
        return model(ids, mask, params=params, return_dict=False, **targets)[0]

    shapes = jax.tree_util.tree_map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), model.params)
    ids = jax.ShapeDtypeStruct(export.symbolic_shape("rows, tokens", constraints=["tokens >= 4"]), jnp.int32)
    exported = export.export(jax.jit(run))(shapes, ids, ids)
    for length, rows in ((9, 3), (17, 2)):
        inputs = batch(length, rows)
        inputs[0][:, 3] = 2  # Longformer's separator: the question before it attends globally
        assert_close(exported.call(model.params, *inputs), run(model.params, *inputs))


@pytest.mark.parametrize(
    ("name", "config"),
    [("FlaxDiffLlamaForCausalLM", DIFFLLAMA), ("FlaxMegaForMaskedLM", MEGA), ("FlaxMegaForMaskedLM", CHUNKED)],
    ids=["diffllama", "mega", "mega-chunks"],
)
def test_no_array_of_tokens_by_tokens_in_either_pass(name, config):
    length = 2048
    model = getattr(longspan, name)(config, _do_init=False)

    def loss(params, ids, mask):
        return jnp.square(model(ids, mask, params=params).logits).sum()

    ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
    assert largest_array(jax.grad(loss), model.params_shape_tree, ids, ids) <= 4 * 128 * length < length * length


READERS = ("FlaxBertForTokenClassification", "FlaxBertForMaskedLM", "FlaxBertModel")


@pytest.mark.parametrize("name", grid(READERS, wide=("FlaxBertForMaskedLM",)))
def test_what_a_loss_may_read_at_padding_is_computed(name):
    config = longspan.BertConfig(**{**BERT.to_dict(), "attn_implementation": "auto"})
    model = getattr(longspan, name)(config)
    ids, mask = batch(30, rows=6)
    mask[2:, 3:] = 0
    labels = ids % 2

    def loss(params):
        output = model(ids, mask, params=params)
        return cross_entropy(output[0], labels)

    value, gradients = jax.value_and_grad(loss)(model.params)
    outside = cross_entropy(model(ids, mask)[0], labels)
    config.attn_implementation = "eager"
    expected, expected_gradients = jax.value_and_grad(loss)(model.params)
    assert_close(value, expected)
    for mine, theirs in zip(*map(jax.tree_util.tree_leaves, (gradients, expected_gradients)), strict=True):
        assert_close(mine, theirs)
    if name != "FlaxBertModel":  # scores of tokens; the states of the backbone are packed outside of gradients
        assert_close(outside, expected)
        config.attn_implementation, model.padding_states = "auto", False
        assert abs(float(cross_entropy(model(ids, mask)[0], labels)) - float(expected)) > 1e-4


def test_the_pooler_reads_a_first_token_that_is_padding():
    model = longspan.FlaxBertModel(BERT)
    ids, mask = batch(30, rows=6)
    mask[2:, 3:] = 0
    mask[3, 0] = 0
    packed = model(ids, mask).pooler_output
    model.config.attn_implementation = "eager"
    try:
        assert_close(packed, model(ids, mask).pooler_output)
    finally:
        model.config.attn_implementation = "auto"


def test_faults_at_masked_states_reach_no_token():
    ids, mask = batch(9)
    states = np.random.default_rng(0).normal(size=(3, 9, 12)).astype("f")
    broken = np.where(mask[..., None] == 1, states, np.nan)
    config = longspan.BertConfig(**{**BERT.to_dict(), "is_decoder": True, "add_cross_attention": True})
    decoder = longspan.FlaxBertModel(config)
    first, second = (
        decoder(ids, encoder_hidden_states=x, encoder_attention_mask=mask).last_hidden_state for x in (broken, states)
    )
    assert_close(first, second)
    longt5 = longspan.FlaxLongT5ForConditionalGeneration(LONGT5)
    first, second = (longt5.decode(ids[:, :2], (x,), encoder_attention_mask=mask).logits for x in (broken, states))
    assert_close(first, second)


def test_tokens_in_blocks_give_what_all_at_once_give(monkeypatch):
    monkeypatch.setattr(shapes, "TOKEN_BLOCK_BYTES", 4 * 8 * 3)  # of three tokens of 8 features
    seen = []

    def square(states):
        seen.append(states.shape)
        return states * states

    class Squares(nn.Module):
        @nn.compact
        def __call__(self, x, deterministic=True):
            return tokenwise(square, x, owner=self, width=8, deterministic=deterministic)

    x = jax.random.normal(jax.random.key(0), (2, 5, 4))
    output, pull = jax.vjp(lambda x: Squares().apply({}, x), x)
    assert seen == [(3, 4)]
    np.testing.assert_allclose(output, x * x)
    np.testing.assert_allclose(pull(jnp.ones_like(x))[0], 2 * x)
    seen.clear()
    Squares().apply({}, x, deterministic=False)  # dropout draws for all tokens at once
    Squares().init(jax.random.key(0), x)
    Squares().apply({}, x, capture_intermediates=True, mutable=["intermediates"])
    with longspan.plain():
        Squares().apply({}, x)
    assert seen == [(2, 5, 4)] * 4


def test_a_program_of_the_definition_is_another(monkeypatch):
    """`longspan.plain` holds for models that were called before."""
    monkeypatch.setattr(shapes, "TOKEN_BLOCK_BYTES", 1024)
    settings = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    model = longspan.FlaxLongformerModel(longspan.LongformerConfig(vocab_size=50, attention_window=4, **settings))
    ids = np.arange(2, 42)[None]
    inputs = {"input_ids": ids, "global_attention_mask": (ids == 2).astype(np.int32)}
    output = model(**inputs).last_hidden_state
    with longspan.plain():
        plain = model(**inputs).last_hidden_state

    def loops(params):
        """Loops of the program: over blocks of tokens."""
        return str(jax.make_jaxpr(lambda params: model(**inputs, params=params).last_hidden_state)(params)).count(
            "scan["
        )

    usual = loops(model.params)
    with longspan.plain():
        assert loops(model.params) < usual
    assert_close(output, plain)
