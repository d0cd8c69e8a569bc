"""Chunked MEGA layers in Flax read long inputs span by span; nothing must show where spans meet."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tests.tolerances import assert_close, assert_gradients_close

import longspan
from longspan import shapes
from longspan.models.mega import flax_layers
from longspan.models.mega.flax_layers import FlaxMegaBlock

CHUNK, WIDEST = 5, 2 * 12 + 20 + 8
TINY = {
    "vocab_size": 59, "hidden_size": 12, "num_hidden_layers": 1, "intermediate_size": 20, "ema_projection_size": 3,
    "shared_representation_size": 8, "nffn_hidden_size": 14, "use_chunking": True, "chunk_size": CHUNK,
}  # fmt: skip
DECODER = {"is_decoder": True, "bidirectional": False}
SEQ2SEQ = {**DECODER, "add_cross_attention": True}


@pytest.fixture(autouse=True)
def spans(monkeypatch):
    """Spans of at most 20 tokens in blocks of 5; the tokens of each span of the layers that went so."""
    seen = []
    original = FlaxMegaBlock._in_spans
    monkeypatch.setattr(shapes, "TOKEN_BLOCK_BYTES", 4 * WIDEST * 20)
    monkeypatch.setattr(flax_layers, "BLOCK_SIZE", CHUNK)
    monkeypatch.setattr(FlaxMegaBlock, "_in_spans", lambda *args: seen.append(args[-1]) or original(*args))
    return seen


def make(mode, **extra):
    """A model whose weights are random and asymmetric, norms and biases included."""
    model = longspan.FlaxMegaModel(longspan.MegaConfig(**{**TINY, **mode, **extra}), add_pooling_layer=False)
    rng = np.random.default_rng(0)
    model.params = jax.tree_util.tree_map(
        lambda leaf: leaf + jnp.asarray(rng.normal(scale=0.3, size=leaf.shape), jnp.float32), model.params
    )
    return model


def named(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def inputs_of(mode, length, rows=2):
    rng = np.random.default_rng(length)
    inputs = {"input_ids": jnp.asarray(rng.integers(2, 59, (rows, length)), jnp.int32)}
    if "add_cross_attention" in mode:
        inputs["encoder_hidden_states"] = jnp.asarray(rng.normal(size=(rows, 7, 12)), jnp.float32)
    return inputs


@pytest.mark.parametrize(
    ("mode", "options"),
    [({}, {}), (SEQ2SEQ, {}), ({}, {"normalization_type": "layernorm", "normalize_before_mega": False})],
    ids=["encoder", "seq2seq", "norm behind"],
)
def test_values_and_gradients_are_those_of_the_whole(spans, mode, options):
    model = make(mode, **options)
    weights = jnp.asarray(np.random.default_rng(5).normal(size=(2, 58, 12)), jnp.float32)

    def loss(params, inputs):
        states = model(**inputs, params=params).last_hidden_state
        return (states * weights[:, : states.shape[1]]).sum(), states

    # whole spans of which the last is short, one token more than whole ones, a single span
    lengths = ((58, [10]), (41, [10]), (10, []))
    for length, expected in lengths[1:2] if options else lengths:
        inputs = inputs_of(mode, length)
        both = []
        for plain in (False, True):
            if plain:
                with longspan.plain():
                    both.append(jax.jit(jax.value_and_grad(loss, has_aux=True))(model.params, inputs))
            else:
                both.append(jax.jit(jax.value_and_grad(loss, has_aux=True))(model.params, inputs))
                assert spans == expected, length
                spans.clear()
        assert not spans, "the definition goes in spans"
        (mine, gradients), (theirs, wanted) = ((each[0][1], each[1]) for each in both)
        assert_close(mine, theirs)
        assert_gradients_close(named(gradients), named(wanted))


@pytest.mark.parametrize("mode", [{}, DECODER], ids=["encoder", "decoder"])
def test_padding_is_as_in_the_whole(spans, mode):
    model = make(mode)
    ids = np.random.default_rng(1).integers(2, 59, (2, 58)).astype(np.int32)
    right, left = np.ones((2, 2, 58), np.int32)
    right[1, 33:] = right[0, 17] = 0
    left[1, :3] = left[0, 50:] = 0
    for mask, goes in ((right, True), (left, False)):
        output = model(ids, mask, output_hidden_states=True)
        assert bool(spans) == goes, "a row that begins later has chunks of its own"
        spans.clear()
        with longspan.plain():
            whole = model(ids, mask, output_hidden_states=True)
        for mine, theirs in zip(output.hidden_states, whole.hidden_states, strict=True):
            assert_close(mine[mask != 0], theirs[mask != 0])
    within = jax.jit(lambda mask: model(ids, mask).last_hidden_state)(right)
    assert not spans, "a program that is given a mask does not know where rows begin"
    assert_close(within[right != 0], model(ids, right).last_hidden_state[right != 0])


def test_transformations_see_the_same(spans):
    model = make({})
    inputs = inputs_of({}, 44, rows=3)
    expected = model(**inputs).last_hidden_state
    rows = jax.jit(jax.vmap(lambda ids: model(ids[None]).last_hidden_state[0]))(inputs["input_ids"])
    assert_close(rows, expected)
    spans.clear()
    model.enable_gradient_checkpointing()
    recomputed = jax.jit(jax.grad(lambda params: jnp.square(model(**inputs, params=params)[0]).sum()))(model.params)
    assert spans
    model.disable_gradient_checkpointing()
    usual = jax.jit(jax.grad(lambda params: jnp.square(model(**inputs, params=params)[0]).sum()))(model.params)
    assert_gradients_close(named(recomputed), named(usual))


def test_whoever_looks_at_the_parts_sees_whole_calls(spans):
    model, seen = make(DECODER), []
    inputs = inputs_of(DECODER, 58)

    def look(call, arguments, options, context):
        if context.module.name == "mega_layer" and context.method_name == "__call__":
            seen.append(arguments[0].shape)
        return call(*arguments, **options)

    with nn.intercept_methods(look):
        model(**inputs)
    assert not spans
    assert seen
    assert all(shape[0] == 2 and shape[1] >= 58 for shape in seen)
    model(**inputs, output_attentions=True)
    cache = model.init_cache(2, 64)
    model(**inputs, past_key_values=cache)
    model(**inputs, train=True, dropout_rng=jax.random.key(0))
    assert not spans
