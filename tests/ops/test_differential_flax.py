"""Differential attention in JAX against its definition in float64 NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from tests.jaxprs import largest_array
from tests.ops.test_differential import KINDS, Case
from tests.tolerances import TOLERANCE, assert_close, gradient_error

from longspan.errors import InputError
from longspan.ops.dispatch import recording
from longspan.ops.flax import differential
from longspan.ops.flax.differential import differential_attention


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Blocks of three queries, and two parts, so that short inputs take several."""
    monkeypatch.setattr(differential, "BLOCK_ROWS", 3)
    monkeypatch.setattr(differential, "_PARTS", {6: 4, 2: 2})


def arrays_of(case, dtype=jnp.float32):
    """Query, key, value and λ in the layout of JAX, tokens before heads."""
    arrays = (jnp.asarray(array.swapaxes(1, 2), dtype) for array in (case.query, case.key, case.value))
    return (*arrays, jnp.float32(case.lam))


def options_of(case):
    given = {"key_mask": case.key_mask, "segment_ids": case.segment_ids}
    options = {name: None if array is None else jnp.asarray(array) for name, array in given.items()}
    return {**options, "position": jnp.asarray(case.position) if case.given else None, "scale": case.scale}


def value_and_gradients(case, arrays, **options):
    """The output, and the gradients of its product with `case.grad` in the layout of the definition."""

    def product(*arrays):
        output = differential_attention(*arrays, **options_of(case), **options).output
        return (output * jnp.asarray(case.grad, output.dtype)).sum().astype(jnp.float32), output

    (_, output), gradients = jax.jit(jax.value_and_grad(product, argnums=(0, 1, 2, 3), has_aux=True))(*arrays)
    return output, [g.swapaxes(1, 2) if g.ndim else g for g in gradients]


@pytest.mark.parametrize(
    ("implementation", "kind"), [*(("chunked", kind) for kind in KINDS), ("eager", "padded"), ("eager", "packed")]
)
def test_output_and_gradients_equal_the_definition(implementation, kind):
    case = Case(kind)
    output, gradients = value_and_gradients(case, arrays_of(case), implementation=implementation)
    assert_close(output, case.expected()[0])
    for name, mine, theirs in zip(("query", "key", "value", "λ"), gradients, case.expected_gradients(), strict=True):
        assert gradient_error(mine, theirs) <= TOLERANCE["float32"], name


@pytest.mark.parametrize(("num_maps", "num_kv"), [(4, 4), (2, 1), (12, 3)])
def test_any_number_of_key_value_heads(num_maps, num_kv):
    case = Case("padded", num_maps=num_maps, num_kv=num_kv)
    output, gradients = value_and_gradients(case, arrays_of(case))
    assert_close(output, case.expected()[0])
    for mine, theirs in zip(gradients, case.expected_gradients(), strict=True):
        assert gradient_error(mine, theirs) <= TOLERANCE["float32"]


@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 9), (5, 5), (13, 14)])
def test_lengths(num_queries, num_keys):
    case = Case("causal", num_queries=num_queries, num_keys=num_keys)
    run = jax.jit(lambda *arrays: differential_attention(*arrays, **options_of(case)).output)
    assert_close(run(*arrays_of(case)), case.expected()[0])


def test_maps_are_those_before_the_subtraction():
    case = Case("padded")
    run = lambda *arrays: differential_attention(*arrays, output_weights=True, **options_of(case))  # noqa: E731
    shows = jax.jit(lambda *arrays: (run(*arrays).weights, run(*arrays).differential_weights))
    weights, differences = shows(*arrays_of(case))
    _, maps, difference = case.expected()
    assert_close(weights, maps)
    assert_close(differences, difference)


def test_auto_runs_the_blocked_implementation_unless_maps_are_asked_for():
    query, key, value, lam = (array[:1, :2] if array.ndim else array for array in arrays_of(Case("causal")))
    with recording() as ran:
        differential_attention(query, key, value, lam, output_weights=True)
        differential_attention(query, key, value, lam)
    assert ran == ["eager", "chunked"]


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", "dead"), ("float16", "padded")])
def test_half_precision(kind, dtype):
    case = Case(kind)
    output, gradients = value_and_gradients(case, arrays_of(case, dtype))
    assert output.dtype == dtype
    assert_close(output.astype("f"), case.expected()[0], dtype)
    for mine, theirs in zip(gradients, case.expected_gradients(), strict=True):
        # a gradient passes twice as many rounded products as the output
        assert gradient_error(mine.astype("f"), theirs) <= 2 * TOLERANCE[dtype]


def test_dropout_keeps_the_mean_and_gradients_follow_the_draw():
    case = Case("causal")
    arrays = arrays_of(case)

    def run(key, *arrays):
        return differential_attention(*arrays, scale=case.scale, dropout=0.3, dropout_rng=key).output

    keys = jax.random.split(jax.random.key(0), 100)
    outputs = jax.jit(jax.vmap(run, in_axes=(0, None, None, None, None)))(keys, *arrays)
    assert np.abs(np.asarray(outputs[0] - outputs[1])).max() > 0.1
    # standard error of a mean of 100 draws: √(0.3/0.7/100) = 0.066 of an entry of a map
    assert np.abs(np.asarray(outputs.mean(axis=0)) - case.expected()[0]).max() < 0.3
    # the output is linear in the values, whatever was dropped
    query, key, value, lam = arrays
    gradient = jax.jit(jax.grad(lambda value: run(keys[0], query, key, value, lam).sum()))(value)
    assert_close((gradient * value).sum(), outputs[0].sum())


def test_both_passes_hold_one_block_of_maps_at_most(monkeypatch):
    monkeypatch.setattr(differential, "BLOCK_ROWS", 16)
    length, num_maps, size = 512, 4, 4
    shapes = [(1, length, num_maps, size), (1, length, 1, size), (1, length, 1, size), ()]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    mask = jnp.ones((1, length), bool)

    def loss(*arrays):
        return jnp.square(differential_attention(*arrays, key_mask=mask).output).sum()

    block = num_maps * 16 * length
    assert largest_array(jax.grad(loss, argnums=(0, 1, 2, 3)), *arrays) <= block < length * length


def test_jit_vmap_and_an_export_of_any_length():
    case = Case("padded")
    arrays, options = arrays_of(case), options_of(case)
    stacked = [jnp.stack([array, 0.5 * array]) for array in arrays]
    run = lambda *arrays: differential_attention(*arrays, **options).output  # noqa: E731
    both = jax.jit(jax.vmap(run))(*stacked)
    assert_close(both[0], case.expected()[0])
    assert_close(both[1], run(*(0.5 * array for array in arrays)))
    tokens = export.symbolic_shape("tokens", constraints=["tokens >= 2"])[0]
    shapes = [jax.ShapeDtypeStruct((1, tokens, heads, 4), jnp.float32) for heads in (6, 3, 3)]
    free = lambda *arrays: differential_attention(*arrays, jnp.float32(0.37), scale=0.6).output  # noqa: E731
    exported = export.export(jax.jit(free))(*shapes)
    for length in (4, 11):
        case = Case("causal", num_queries=length, num_keys=length)
        given = [array[:1] for array in arrays_of(case)[:3]]
        assert_close(exported.call(*given), case.expected()[0][:1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": (2, 8, 5, 4)}, "an even number of maps that the key/value heads divide. Received: 5 maps, 3 key"),
        ({"value": (2, 10, 3, 4)}, r"must agree in B, T, K and D. Received: \(2, 8, 6, 4\), \(2, 11, 3, 4\)"),
        ({"position": (7,)}, r"position must have the shape \(S,\) = \(8,\). Received: \(7,\)"),
        ({"key_mask": (2, 8)}, r"key_mask must have the shape \(B, T\) = \(2, 11\). Received: \(2, 8\)"),
    ],
)
def test_wrong_shapes(changes, message):
    shapes = {"query": (2, 8, 6, 4), "key": (2, 11, 3, 4), "value": (2, 11, 3, 4), **changes}
    with pytest.raises(InputError, match=message):
        differential_attention(lam=jnp.float32(0.4), **{name: jnp.ones(shape) for name, shape in shapes.items()})


def test_an_implementation_without_maps_says_so():
    with pytest.raises(InputError, match="'chunked' cannot serve .*attention weights that were asked for"):
        differential_attention(*arrays_of(Case("causal")), implementation="chunked", output_weights=True)
