"""The numeric matrix in Flax and in Keras: no NaN, rows that do not depend on each other, equal bits.

Each shape is compiled, so there is one layer and one length above window, chunk and block; rows are padded in every
way. `LONGSPAN_HARDENING=long` takes two layers, more lengths, every implementation and dtype, and LongT5's local
attention alone.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.hardening.conftest import IS_LONG, each
from tests.hardening.numeric_matrix import FAMILIES, ids_of, masks
from tests.keras.setting import import_keras, randomise
from tests.tolerances import assert_close

import longspan

keras = import_keras()
import tensorflow as tf

LENGTHS = (1, 7, 17, 33, 65) if IS_LONG else (17,)
DTYPES = ("float32", "bfloat16", "float16")
FLAX = ("bert", "longformer", "longt5-tglobal", "diffllama", *(["longt5-local"] if IS_LONG else []))
CASES = [(name, kind) for name in FLAX for kind in (FAMILIES[name][3] if IS_LONG else ("auto",))]


def marked(case, dtype):
    """A case, marked as wide where float16 says more: the tests of parity run the families in float32 as it is."""
    is_wide = case[0] != "bert" and dtype != "float16" and not IS_LONG
    return pytest.param(*case, dtype, marks=pytest.mark.wide if is_wide else ())


#: of the halves, float16 has the narrower range, so that bfloat16 is for one family in the short form
WITH_DTYPES = [
    marked(case, dtype) for case in CASES for dtype in DTYPES if IS_LONG or dtype != "bfloat16" or case[0] == "bert"
]
KERAS = ("bert", "longformer")


def batch(length):
    """Ids (B, S) and masks of every kind, as NumPy arrays."""
    mask = masks(length)
    return ids_of(mask).numpy().astype(np.int32), mask.numpy().astype(np.int32)


def make_flax(family, implementation="auto", dtype="float32"):
    """A model with random parameters, norms and biases included, stored and computed in a dtype."""
    name, config, settings, _ = FAMILIES[family]
    if not IS_LONG:
        settings = {**settings, "num_layers" if "longt5" in family else "num_hidden_layers": 1}
    config = getattr(longspan, config)(**settings, attn_implementation=implementation)
    model = getattr(longspan, f"Flax{name}")(config, _do_init=False, dtype=jnp.dtype(dtype))
    rng, scale = np.random.default_rng(0), 0.1 if "longt5" in family else 0.25
    params = jax.tree_util.tree_map(
        lambda leaf: jnp.asarray(rng.normal(scale=scale, size=leaf.shape), dtype), model.params_shape_tree
    )
    return model, params


def make_keras(family, dtype="float32"):
    """The same in Keras."""
    name, config, settings, _ = FAMILIES[family]
    model = getattr(longspan, f"TF{name}")(getattr(longspan, config)(**settings), dtype=dtype)
    ids, mask = batch(3)
    model({"input_ids": ids, "attention_mask": mask})  # builds
    return randomise(model, scale=0.25)


def assert_rows_stand_alone(family, run, length):
    """What a row gives in a batch, it gives without its padding too."""
    ids, mask = batch(length)
    together = np.asarray(run(ids, mask))
    for row, keep in enumerate(mask.astype(bool)[:6]):
        places = keep.nonzero()[0]
        start = 0 if row == 4 or "longformer" in family or family == "bert" else int(places[0])
        part = slice(start, int(places[-1]) + 1)
        alone = np.asarray(run(ids[row : row + 1, part], mask[row : row + 1, part]))[0]
        assert_close(together[row, keep], alone[keep[part]], what=f"row {row} of {length} tokens")


@pytest.mark.parametrize(("family", "implementation", "dtype"), WITH_DTYPES)
def test_flax_no_nan_and_equal_bits(figures, family, implementation, dtype):
    model, params = make_flax(family, implementation, dtype)

    def loss(params, ids, mask):
        states = model(ids, mask, params=params).last_hidden_state
        return (jnp.square(states.astype(jnp.float32)) * mask[..., None]).sum(), states

    of_traced = jax.jit(jax.grad(loss, has_aux=True))
    for length in each(figures, LENGTHS):
        ids, mask = batch(length)
        program = functools.partial(of_traced, mask=mask)
        if implementation == "packed":  # by a mask whose values are known, not by one that is traced
            program = jax.jit(jax.grad(functools.partial(loss, mask=mask), has_aux=True))
        gradients, states = program(params, ids)
        assert str(states.dtype) == dtype
        assert np.isfinite(np.asarray(states, np.float32)[mask.astype(bool)]).all(), f"{length} tokens"
        for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
            assert jnp.isfinite(gradient).all(), f"{path}, {length} tokens"
        again = program(params, ids)
        jax.tree_util.tree_map(np.testing.assert_array_equal, again, (gradients, states))


@pytest.mark.parametrize(("family", "implementation"), CASES)
def test_flax_a_row_alone_is_what_it_is_in_a_batch(figures, family, implementation):
    model, params = make_flax(family, implementation)
    for length in each(figures, LENGTHS):
        assert_rows_stand_alone(family, lambda ids, mask: model(ids, mask, params=params).last_hidden_state, length)


@pytest.mark.parametrize(("family", "dtype"), [marked([name], dtype) for name in KERAS for dtype in DTYPES])
def test_keras_no_nan_and_equal_bits(figures, family, dtype):
    model = make_keras(family, dtype)
    for length in each(figures, LENGTHS):
        ids, mask = batch(length)
        inputs = {"input_ids": ids, "attention_mask": mask}
        with tf.GradientTape() as tape:
            states = model(inputs).last_hidden_state
            loss = tf.reduce_sum(tf.square(tf.cast(states, "float32")) * mask[..., None].astype("f"))
        assert keras.backend.standardize_dtype(states.dtype) == dtype
        assert np.isfinite(np.asarray(tf.cast(states, "float32"))[mask.astype(bool)]).all(), f"{length} tokens"
        for gradient, weight in zip(tape.gradient(loss, model.trainable_weights), model.trainable_weights, strict=True):
            if gradient is not None:
                values = tf.cast(tf.convert_to_tensor(gradient), "float32")
                assert bool(tf.reduce_all(tf.math.is_finite(values))), f"{weight.path}, {length} tokens"
        assert bool(tf.reduce_all(tf.equal(states, model(inputs).last_hidden_state)))


@pytest.mark.parametrize("family", KERAS)
def test_keras_a_row_alone_is_what_it_is_in_a_batch(figures, family):
    model = make_keras(family)
    for length in each(figures, LENGTHS):
        assert_rows_stand_alone(
            family, lambda ids, mask: model({"input_ids": ids, "attention_mask": mask}).last_hidden_state, length
        )
