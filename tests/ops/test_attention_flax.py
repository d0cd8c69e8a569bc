"""Dense attention in JAX against its definition in float64 NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.oracle.dense_attention import dense_attention
from tests.oracle.derivatives import directional_derivative
from tests.tolerances import TOLERANCE, assert_close, error

from longspan.ops.flax.attention import eager_attention, sdpa_attention

BATCH, HEADS, QUERIES, KEYS, SIZE = 2, 3, 5, 7, 8
SCALE = 1 / np.sqrt(SIZE)


def arrays(seed=0):
    """Query, key and value in the definition's layout, (B, H, tokens, D)."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(BATCH, HEADS, length, SIZE)) for length in (QUERIES, KEYS, KEYS)]


def masks():
    rng = np.random.default_rng(1)
    dead = rng.random((BATCH, HEADS, QUERIES, KEYS)) > 0.4
    dead[0, 1, 2] = False
    dead[1] = False
    return {
        "none": None,
        "keys": (rng.random((BATCH, 1, 1, KEYS)) > 0.4) | (np.arange(KEYS) == 0),
        "causal": np.tril(np.ones((1, 1, QUERIES, KEYS), bool), 2),
        "heads": rng.random((1, HEADS, QUERIES, KEYS)) > 0.3,
        "dead": dead,
    }


def to_jax(array, dtype=jnp.float32):
    return jnp.asarray(array.swapaxes(1, 2), dtype)


@pytest.mark.parametrize("kind", list(masks()))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_all_forms_equal_the_definition(dtype, kind):
    mask, inputs = masks()[kind], arrays()
    given = [to_jax(array, dtype) for array in inputs]
    rounded = [np.asarray(array, np.float64).swapaxes(1, 2) for array in given]
    expected, weights = dense_attention(*rounded, mask=mask, scale=SCALE)
    one, its_weights = eager_attention(*given, mask=mask)
    other = sdpa_attention(*given, mask=None if mask is None else jnp.asarray(mask))
    query, *stored = given[0], *(array.transpose(0, 2, 3, 1) for array in given[1:])
    third, third_weights = eager_attention(query, *stored, mask=mask, layout="bhds")
    assert_close(third.swapaxes(1, 2), expected, dtype)
    assert_close(third_weights, weights, dtype)
    assert str(one.dtype) == str(other.dtype) == str(its_weights.dtype) == dtype
    assert_close(one.swapaxes(1, 2), expected, dtype)
    assert_close(other.swapaxes(1, 2), expected, dtype)
    assert_close(its_weights, weights, dtype)


def test_bias_and_head_mask():
    rng = np.random.default_rng(2)
    bias, head_mask = rng.normal(size=(BATCH, HEADS, QUERIES, KEYS)), np.array([1.0, 0.0, 0.5])
    expected, weights = dense_attention(*arrays(), bias=bias, head_mask=head_mask, mask=masks()["dead"], scale=0.3)
    output, its_weights = eager_attention(
        *map(to_jax, arrays()), bias=bias, head_mask=jnp.asarray(head_mask), mask=masks()["dead"], scale=0.3
    )
    assert_close(output.swapaxes(1, 2), expected)
    assert_close(its_weights, weights)


@pytest.mark.parametrize("form", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["none", "dead"])
def test_gradients_equal_central_differences(form, kind):
    mask, inputs, rng = masks()[kind], arrays(), np.random.default_rng(3)
    cotangent = rng.normal(size=(BATCH, HEADS, QUERIES, SIZE))

    def ours(*given):
        output = eager_attention(*given, mask=mask)[0] if form == "eager" else sdpa_attention(*given, mask=mask)
        return (output * to_jax(cotangent)).sum()

    mask = None if mask is None else jnp.asarray(mask)
    gradients = jax.jit(jax.grad(ours, argnums=(0, 1, 2)))(*map(to_jax, inputs))
    numpy_mask = masks()[kind]

    def definition(*given):
        return dense_attention(*given, mask=numpy_mask, scale=SCALE)[0]

    for index, gradient in enumerate(gradients):
        direction = rng.normal(size=inputs[index].shape)
        expected = directional_derivative(definition, inputs, index, direction, cotangent)
        actual = float((np.asarray(gradient, np.float64).swapaxes(1, 2) * direction).sum())
        assert abs(actual - expected) <= TOLERANCE["float32"] * max(1.0, abs(expected))


@pytest.mark.parametrize("form", ["eager", "sdpa"])
def test_dropout_zeroes_weights_and_scales_up_the_others(form):
    rate, size = 0.25, 64
    rng = np.random.default_rng(4)
    query, key = (jnp.asarray(rng.normal(size=(1, size, 2, size)), jnp.float32) for _ in range(2))
    value = jnp.broadcast_to(jnp.eye(size)[None, :, None], (1, size, 2, size))  # the output is then the weights

    def run(seed, rate):
        rng = jax.random.key(seed)
        if form == "eager":
            return eager_attention(query, key, value, dropout=rate, dropout_rng=rng)[0]
        return sdpa_attention(query, key, value, dropout=rate, dropout_rng=rng)

    whole, dropped, again, other = run(0, 0.0), run(0, rate), run(0, rate), run(1, rate)
    kept = dropped > 0
    assert_close(jnp.where(kept, dropped, 0), jnp.where(kept, whole / (1 - rate), 0))
    assert abs(float(kept.mean()) - (1 - rate)) < 0.02
    assert not bool((kept[:, :, 0] == kept[:, :, 1]).all())  # heads draw on their own
    assert bool((dropped == again).all())
    assert not bool((dropped == other).all())


def test_large_scores_stay_finite():
    query, key, value = (to_jax(array) for array in arrays())
    for output in (eager_attention(query * 1e4, key, value)[0], sdpa_attention(query * 1e4, key, value)):
        assert bool(jnp.isfinite(output).all())


def test_accelerators_run_the_definition(monkeypatch):
    given = [to_jax(array) for array in arrays()]
    head_by_head = sdpa_attention(*given)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert error(sdpa_attention(*given), head_by_head) <= TOLERANCE["float32"]
    assert "scan" not in str(jax.make_jaxpr(sdpa_attention)(*given))
