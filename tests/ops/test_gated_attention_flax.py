"""The attention of MEGA in JAX against its definition in float64 NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.jaxprs import largest_array
from tests.ops.test_gated_attention import POSITIONS, Case, V, Z
from tests.oracle import gated_attention as oracle
from tests.oracle.derivatives import directional_derivative
from tests.tolerances import TOLERANCE, assert_close, gradient_error

from longspan.errors import InputError
from longspan.ops.dispatch import recording
from longspan.ops.flax import gated_attention as module
from longspan.ops.flax.gated_attention import Keys, Queries, RotaryBias, ToeplitzBias, gated_attention


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ROWS", 4)


def bias_of(kind, array):
    return ToeplitzBias(array, POSITIONS - 1) if kind == "simple" else RotaryBias(array[:1], array[1:])


def attend(case, arrays, *, mask=None, **settings):
    """Output and weights from query, key, value and bias."""
    query, key, value, bias = arrays
    positions = case.offset + jnp.arange(query.shape[1])
    mask = None if mask is None else jnp.asarray(mask)
    keys = Keys(key, value, jnp.arange(key.shape[1]), None, mask, bias_of(case.kind, bias))
    return gated_attention(Queries(query, positions, None), keys, **settings)


def arrays_of(case, dtype=jnp.float32):
    return tuple(jnp.asarray(array, dtype) for array in (case.query, case.key, case.value, case.bias))


CASES = [
    ("softmax", "rotary", True, True, 0), ("softmax", "simple", False, False, 0), ("laplace", "rotary", True, False, 0),
    ("laplace", "simple", True, True, 0), ("relu2", "rotary", False, True, 0), ("relu2", "simple", True, False, 6),
]  # fmt: skip


@pytest.mark.parametrize(("activation", "kind", "masked", "causal", "offset"), CASES)
def test_outputs_weights_and_gradients(activation, kind, masked, causal, offset):
    case = Case(kind, keys=11 + offset, offset=offset)
    mask = case.mask if masked else None
    settings = {"activation": activation, "causal": causal}
    expected, expected_weights = case.expected(case.query, case.key, case.value, case.bias, mask=mask, **settings)
    run = jax.jit(lambda arrays: attend(case, arrays, mask=mask, return_weights=True, **settings))
    output, weights = run(arrays_of(case))
    assert_close(output, expected)
    assert_close(weights, expected_weights)

    def product(arrays, implementation):
        return (attend(case, arrays, mask=mask, implementation=implementation, **settings)[0] * case.cotangent).sum()

    grad = jax.jit(jax.value_and_grad(product), static_argnums=1)
    (value, tiled), (_, eager) = (grad(arrays_of(case), name) for name in ("tiled", "eager"))
    assert abs(float(value) - (expected * case.cotangent).sum()) <= 1e-4
    for one, two in zip(tiled, eager, strict=True):
        assert gradient_error(one, two) <= TOLERANCE["float32"]
    rng, given = np.random.default_rng(4), [np.asarray(array, np.float64) for array in arrays_of(case)]
    for index, gradient in enumerate(tiled):
        direction = rng.normal(size=given[index].shape)
        exact = directional_derivative(
            lambda *moved: case.expected(*moved, mask=mask, **settings)[0], given, index, direction, case.cotangent
        )
        assert abs(float((gradient * direction).sum()) - exact) <= 1e-4 * max(1.0, abs(exact)), index


def test_a_query_sees_its_own_chunk_only():
    case = Case("rotary", queries=10, keys=10)
    query, key, value, bias = arrays_of(case)
    chunks = jnp.asarray([[0] * 5 + [1] * 5, [0] * 3 + [1] * 7, [0] * 10])
    keys = Keys(key, value, jnp.arange(10), chunks, None, bias_of("rotary", bias))
    queries = Queries(query, jnp.arange(10), chunks)
    output, _ = gated_attention(queries, keys, activation="softmax", causal=True)
    matrix = oracle.rotary_bias(case.bias[0], case.bias[1], 7, 7)
    expected, _ = oracle.gated_attention(
        case.query[1:2, 3:], case.key[1:2, 3:], case.value[1:2, 3:], matrix, activation="softmax", causal=True
    )
    assert_close(output[1:2, 3:], expected)


@pytest.mark.parametrize("activation", ["softmax", "laplace", "relu2"])
def test_half_precision(activation):
    case = Case("rotary")
    settings = {"activation": activation, "mask": case.mask}
    output, _ = attend(case, arrays_of(case, jnp.bfloat16), **settings)
    assert output.dtype == jnp.bfloat16
    assert_close(
        output.astype("f"), case.expected(case.query, case.key, case.value, case.bias, **settings)[0], "bfloat16"
    )


def test_both_passes_hold_one_block_of_scores_at_most(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ROWS", 16)
    case, length = Case("rotary"), 512
    shapes = [jax.ShapeDtypeStruct((1, length, width), jnp.float32) for width in (Z, Z, V)]

    def loss(query, key, value):
        mask = np.ones((1, length), bool)
        bias = jnp.asarray(case.bias, jnp.float32)
        output = attend(case, (query, key, value, bias), mask=mask, causal=True, activation="laplace")[0]
        return jnp.square(output).sum()

    assert largest_array(jax.grad(loss, argnums=(0, 1, 2)), *shapes) <= 16 * length < length * length


def test_dropout_keeps_the_mean():
    case = Case("simple", rows=2)
    arrays = arrays_of(case)
    keys = jax.random.split(jax.random.key(0), 200)
    run = lambda key: attend(case, arrays, activation="softmax", dropout=0.3, dropout_rng=key)[0]  # noqa: E731
    outputs = jax.jit(jax.vmap(run))(keys)
    expected = case.expected(case.query, case.key, case.value, case.bias, activation="softmax")[0]
    assert np.abs(np.asarray(outputs.mean(axis=0)) - expected).max() < 0.25
    assert np.abs(np.asarray(outputs[0] - outputs[1])).max() > 0.1


def test_choices_and_errors():
    case = Case("rotary", queries=3, keys=3)
    with recording() as ran:
        attend(case, arrays_of(case), activation="softmax")
        attend(case, arrays_of(case), activation="softmax", return_weights=True)
    assert ran == ["tiled", "eager"]
    with pytest.raises(InputError, match="'tiled' cannot serve this call of gated attention: it keeps no attention we"):
        attend(case, arrays_of(case), activation="softmax", return_weights=True, implementation="tiled")
    with pytest.raises(InputError, match="activation must be one of softmax, laplace, relu2. Received: 'elu'"):
        attend(case, arrays_of(case), activation="elu")
