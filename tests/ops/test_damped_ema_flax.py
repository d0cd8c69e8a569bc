"""The damped average of MEGA in JAX against its definition in float64 NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.jaxprs import largest_array
from tests.ops.test_damped_ema import D, N, case, random_mask
from tests.oracle import damped_ema as oracle
from tests.oracle.derivatives import directional_derivative
from tests.tolerances import assert_close

from longspan.errors import InputError
from longspan.ops.flax import damped_ema as module
from longspan.ops.flax.damped_ema import (
    backward_state_before,
    damped_ema,
    damped_ema_of_part,
    ema_blocks,
    ema_coefficients,
)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_SIZE", 5)


def coefficients(arrays):
    alpha, delta, beta, eta = (jnp.asarray(array, jnp.float32) for array in arrays)
    return ema_coefficients(
        damping_factor=alpha[..., None], decay_factor=delta[..., None], expansion=beta[..., None], projection=eta
    )


def averaged(x, forward, backward=None, **options):
    options = {name: jnp.asarray(value) if isinstance(value, np.ndarray) else value for name, value in options.items()}
    fixed = {"truncation": options.pop("truncation", None)}
    backward = None if backward is None else coefficients(backward)
    run = jax.jit(lambda x, options: damped_ema(x, coefficients(forward), backward, **options, **fixed))
    return run(jnp.asarray(x, jnp.float32), options)


@pytest.mark.parametrize(("length", "masked"), [(1, False), (4, True), (5, False), (11, True), (23, False)])
def test_both_directions_and_the_state(length, masked):
    x, forward, backward = case(length)
    mask = random_mask(length) if masked else None
    start = np.random.default_rng(3).normal(size=(2, D, N)).astype("f")
    expected, expected_state = oracle.damped_ema(x, *forward, mask=mask, state=start)
    outputs, state = averaged(x, forward, mask=mask, state=start)
    assert_close(outputs, expected)
    assert_close(state, expected_state)
    expected = oracle.bidirectional_damped_ema(x, forward, backward, mask=mask)
    assert_close(averaged(x, forward, backward, mask=mask)[0], expected)


@pytest.mark.parametrize(("length", "truncation"), [(3, 7), (13, 4), (12, 12)])
def test_a_truncated_average_sees_its_last_inputs_only(length, truncation):
    x, forward, backward = case(length)
    mask = random_mask(length)
    expected = oracle.bidirectional_damped_ema(x, forward, backward, mask=mask, truncation=truncation)
    assert_close(averaged(x, forward, backward, mask=mask, truncation=truncation)[0], expected)


@pytest.mark.parametrize("truncation", [None, 4])
def test_a_sequence_may_be_read_part_by_part(truncation):
    x, forward, _ = case(19)
    outputs, state = [], None
    for start, stop in ((0, 7), (7, 8), (8, 9), (9, 19)):
        options = {} if state is None else {"state": np.asarray(state)}
        output, state = averaged(x[:, start:stop], forward, truncation=truncation, **options)
        outputs.append(output)
    assert_close(jnp.concatenate(outputs, axis=1), averaged(x, forward, truncation=truncation)[0])


@pytest.mark.parametrize("both", [True, False], ids=["both", "forward"])
def test_parts_of_whole_blocks_hand_states_in_each_direction(both):
    x, forward, backward = case(35)
    mask, behind, state = random_mask(35), jnp.zeros((2, D, N)), jnp.zeros((2, D, N))
    expected, expected_state = oracle.damped_ema(x, *forward, mask=mask)
    if both:
        expected = oracle.bidirectional_damped_ema(x, forward, backward, mask=mask)
    blocks = ema_blocks(coefficients(forward), coefficients(backward) if both else None)
    parts = [slice(0, 10), slice(10, 25), slice(25, 30), slice(30, 35)]
    inputs = [{"inputs": jnp.asarray(x[:, part], jnp.float32), "mask": jnp.asarray(mask[:, part])} for part in parts]
    arriving = [None if not both else behind]
    for part in reversed(inputs[1:]):
        arriving.append(backward_state_before(**part, blocks=blocks, backward_state=arriving[-1]) if both else None)
    outputs = []
    for part, backward_state in zip(inputs, reversed(arriving), strict=True):
        output, state = damped_ema_of_part(**part, blocks=blocks, state=state, backward_state=backward_state)
        outputs.append(output)
    assert_close(jnp.concatenate(outputs, axis=1), expected)
    assert_close(state, expected_state)


def test_gradients_are_those_of_the_definition():
    x, forward, _ = case(13)
    rng = np.random.default_rng(5)
    cotangent = rng.normal(size=x.shape)

    def product(x, *forward):
        return (damped_ema(x, coefficients(forward))[0] * cotangent).sum()

    arrays = (x, *forward)
    gradients = jax.jit(jax.grad(product, argnums=range(5)))(*(jnp.asarray(array, jnp.float32) for array in arrays))
    for index, gradient in enumerate(gradients):
        direction = rng.normal(size=arrays[index].shape)

        expected = directional_derivative(
            lambda *moved: oracle.damped_ema(*moved)[0], arrays, index, direction, cotangent
        )
        assert abs(float((gradient * direction).sum()) - expected) <= 1e-4 * max(1.0, abs(expected)), index


def test_memory_is_linear_in_the_length():
    _, forward, _ = case(1)

    def loss(x):
        return jnp.square(damped_ema(x, coefficients(forward))[0]).sum()

    sizes = [largest_array(jax.grad(loss), jax.ShapeDtypeStruct((1, 5 * n, D), jnp.float32)) for n in (100, 200)]
    assert sizes[1] <= 2 * sizes[0]
    assert sizes[1] < 1000 * 1000


def test_a_state_of_another_shape_is_refused():
    x, forward, _ = case(4)
    with pytest.raises(InputError, match=r"an EMA state must have the shape .* = \(2, 3, 4\). Received: \(2, 3, 5\)"):
        averaged(x, forward, state=np.zeros((2, 3, 5), "f"))
