"""The damped average of MEGA in PyTorch against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracle import damped_ema as oracle
from tests.oracle.derivatives import directional_derivative

from longspan.errors import InputError
from longspan.ops.torch.damped_ema import (
    backward_state_before,
    damped_ema,
    decay_scan,
    ema_blocks,
    truncated_damped_ema,
)
from longspan.ops.torch.ema_kernels import (
    EmaCoefficients,
    damped_ema_fft,
    damped_ema_step,
    decay_powers,
    ema_coefficients,
    ema_kernel,
)

D, N, C = 3, 4, 5


def parameters(rng: np.random.Generator, channels: int = D) -> tuple[np.ndarray, ...]:
    """(alpha_logit, delta_logit, beta, eta)."""
    return tuple(rng.normal(size=(channels, N)) for _ in range(4))


def coefficients(arrays: tuple[np.ndarray, ...], dtype: torch.dtype = torch.float64) -> EmaCoefficients:
    alpha, delta, beta, eta = (torch.tensor(array, dtype=dtype) for array in arrays)
    return ema_coefficients(
        damping_factor=alpha[..., None], decay_factor=delta[..., None], expansion=beta[..., None], projection=eta
    )


def case(length: int, seed: int = 0, batch: int = 2) -> tuple[np.ndarray, tuple, tuple]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, length, D)), parameters(rng), parameters(rng)


def random_mask(length: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random((2, length)) > 0.3


LENGTHS = [1, 4, 5, 6, 10, 23, 64]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_forward_direction_and_state(length, masked):
    x, forward, _ = case(length)
    state = np.random.default_rng(3).normal(size=(2, D, N))
    mask = random_mask(length) if masked else None
    expected, expected_state = oracle.damped_ema(x, *forward, mask=mask, state=state)
    blocks = ema_blocks(coefficients(forward), block_size=C)
    actual, actual_state = damped_ema(
        torch.tensor(x),
        blocks,
        mask=None if mask is None else torch.tensor(mask),
        state=torch.tensor(state),
        return_state=True,
    )
    np.testing.assert_allclose(actual, expected, atol=1e-12)
    np.testing.assert_allclose(actual_state, expected_state, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_both_directions_with_carried_states(length, masked):
    x, forward, backward = case(length)
    rng = np.random.default_rng(3)
    state, backward_state = rng.normal(size=(2, 2, D, N))
    mask = random_mask(length) if masked else None
    expected = oracle.bidirectional_damped_ema(
        x, forward, backward, mask=mask, state=state, backward_state=backward_state
    )
    _, before = oracle.damped_ema(
        x[:, ::-1], *backward, mask=None if mask is None else mask[:, ::-1], state=backward_state
    )
    blocks = ema_blocks(coefficients(forward), coefficients(backward), block_size=C)
    mask = None if mask is None else torch.tensor(mask)
    actual, _ = damped_ema(
        torch.tensor(x), blocks, mask=mask, state=torch.tensor(state), backward_state=torch.tensor(backward_state)
    )
    np.testing.assert_allclose(actual, expected, atol=1e-12)
    actual = backward_state_before(torch.tensor(x), blocks, mask=mask, backward_state=torch.tensor(backward_state))
    np.testing.assert_allclose(actual, before, atol=1e-12)


@given(seed=st.integers(0, 2**31), cuts=st.lists(st.integers(1, 39), max_size=4, unique=True))
@settings(max_examples=25, deadline=None)
def test_a_sequence_may_be_read_part_by_part(seed, cuts):
    x, forward, backward = case(40, seed)
    blocks = ema_blocks(coefficients(forward), coefficients(backward), block_size=C)
    parts = torch.tensor(x).tensor_split(sorted(cuts), dim=1)
    behind = [torch.zeros(2, D, N, dtype=torch.float64)]
    for part in reversed(parts[1:]):
        behind.append(backward_state_before(part, blocks, backward_state=behind[-1]))
    outputs, state = [], None
    for part in parts:
        output, state = damped_ema(part, blocks, state=state, backward_state=behind.pop(), return_state=True)
        outputs.append(output)
    expected = oracle.bidirectional_damped_ema(x, forward, backward)
    np.testing.assert_allclose(torch.cat(outputs, dim=1), expected, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("truncation", [None, 1, 3, 7, 100])
@pytest.mark.parametrize("length", [1, 7, 20])
def test_fft_form_and_truncation(length, truncation, masked):
    x, forward, backward = case(length)
    mask = random_mask(length) if masked else None
    torch_mask = None if mask is None else torch.tensor(mask)
    one_way, _ = oracle.damped_ema(x, *forward, mask=mask, truncation=truncation)
    two_way = oracle.bidirectional_damped_ema(x, forward, backward, mask=mask, truncation=truncation)
    ahead, behind = coefficients(forward), coefficients(backward)
    for second, expected in ((None, one_way), (behind, two_way)):
        actual = damped_ema_fft(torch.tensor(x), ahead, second, mask=torch_mask, truncation=truncation)
        np.testing.assert_allclose(actual, expected, atol=1e-12)
        if truncation is not None:
            actual, _ = truncated_damped_ema(torch.tensor(x), ahead, second, mask=torch_mask, truncation=truncation)
            np.testing.assert_allclose(actual, expected, atol=1e-12)


@pytest.mark.parametrize("truncation", [None, 1, 4, 9])
def test_steps_equal_the_whole_sequence(truncation):
    x, forward, _ = case(19)
    expected, _ = oracle.damped_ema(x, *forward, truncation=truncation)
    ahead, x = coefficients(forward), torch.tensor(x)
    state, outputs = None, []
    for t in range(19):
        output, state = damped_ema_step(x[:, t], ahead, state, truncation=truncation)
        outputs.append(output)
    np.testing.assert_allclose(torch.stack(outputs, dim=1), expected, atol=1e-12)


@pytest.mark.parametrize("truncation", [None, 1, 4, 30])
@pytest.mark.parametrize("prefix", [1, 5, 12])
def test_steps_continue_a_prefix(prefix, truncation):
    x, forward, _ = case(19)
    expected, _ = oracle.damped_ema(x, *forward, truncation=truncation)
    ahead, x = coefficients(forward), torch.tensor(x)
    if truncation is None:
        first, state = damped_ema(x[:, :prefix], ema_blocks(ahead, block_size=C), return_state=True)
    else:
        first, state = truncated_damped_ema(x[:, :prefix], ahead, truncation=truncation, return_state=True)
    outputs = [first]
    for t in range(prefix, 19):
        output, state = damped_ema_step(x[:, t], ahead, state, truncation=truncation)
        outputs.append(output[:, None])
    np.testing.assert_allclose(torch.cat(outputs, dim=1), expected, atol=1e-12)


@pytest.mark.parametrize("form", ["blocks", "fft", "truncated"])
def test_every_gradient(form):
    x, forward, backward = case(23)
    arguments = (x, *forward, *backward)
    cotangent = np.random.default_rng(5).normal(size=x.shape)
    truncation = 7 if form == "truncated" else None

    def definition(x, *parameters):
        return oracle.bidirectional_damped_ema(x, parameters[:4], parameters[4:], truncation=truncation)

    leaves = [torch.tensor(argument, requires_grad=True) for argument in arguments]
    ahead, behind = (
        ema_coefficients(
            damping_factor=part[0][..., None],
            decay_factor=part[1][..., None],
            expansion=part[2][..., None],
            projection=part[3],
        )
        for part in (leaves[1:5], leaves[5:])
    )
    if form == "blocks":
        output, _ = damped_ema(leaves[0], ema_blocks(ahead, behind, block_size=C))
    elif form == "fft":
        output = damped_ema_fft(leaves[0], ahead, behind)
    else:
        output, _ = truncated_damped_ema(leaves[0], ahead, behind, truncation=7)
    output.backward(torch.tensor(cotangent))
    rng = np.random.default_rng(6)
    for index, leaf in enumerate(leaves):
        direction = rng.normal(size=leaf.shape)
        expected = directional_derivative(definition, arguments, index, direction, cotangent)
        assert expected == pytest.approx(float((leaf.grad.numpy() * direction).sum()), rel=1e-6, abs=1e-8)


def test_gradients_of_states_and_second_derivatives():
    x, forward, backward = case(13)
    rng = np.random.default_rng(4)
    leaves = [torch.tensor(a, requires_grad=True) for a in (x[:1], *rng.normal(size=(2, 1, D, N)))]
    ahead, behind = coefficients(forward), coefficients(backward)

    def function(x, state, backward_state):
        blocks = ema_blocks(ahead, behind, block_size=C)
        return damped_ema(x, blocks, state=state, backward_state=backward_state, return_state=True)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(lambda x: function(x, *leaves[1:])[0].square(), leaves[:1])


def test_scan_by_hand():
    values = torch.tensor([1.0, 10.0, 100.0, 1000.0]).view(1, 1, 4, 1)
    scanned = decay_scan(values, torch.log(torch.tensor([[0.5]])))
    torch.testing.assert_close(scanned.flatten(), torch.tensor([1.0, 10.5, 105.25, 1052.625]))


def test_kernel_and_powers_by_hand():
    log_decay = torch.log(torch.tensor([[0.5, 0.25]]))
    for count in (1, 2, 5, 16):
        expected = torch.tensor([0.5, 0.25])[None, :, None] ** torch.arange(count)
        torch.testing.assert_close(decay_powers(log_decay, count), expected)
    kernel = ema_kernel(EmaCoefficients(torch.tensor([[2.0, 3.0]]), log_decay, torch.tensor([[5.0, 7.0]])), 3)
    torch.testing.assert_close(kernel, torch.tensor([[31.0, 5.0 + 5.25, 2.5 + 21.0 / 16.0]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_keep_a_float32_state(dtype):
    """q near 1 and thousands of tokens: a bfloat16 kernel is off by 10 % there."""
    rng = np.random.default_rng(0)
    arrays = (np.full((2, N), -4.0), *parameters(rng, channels=2)[1:])
    x = rng.normal(size=(1, 4096, 2)) + 1.0
    half = [torch.tensor(array).to(dtype) for array in (x, *arrays)]
    rounded = [tensor.double().numpy() for tensor in half]
    expected, expected_state = oracle.damped_ema(*rounded)
    ahead = ema_coefficients(
        damping_factor=half[1][..., None],
        decay_factor=half[2][..., None],
        expansion=half[3][..., None],
        projection=half[4],
    )
    assert ahead.log_decay.dtype == torch.float32
    actual, state = damped_ema(half[0], ema_blocks(ahead), return_state=True)
    assert actual.dtype == state.dtype == torch.float32
    # float32 over 4,096 tokens, sums of magnitude 10
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    np.testing.assert_allclose(state, expected_state, atol=1e-4)


def test_autocast_does_not_reach_inside():
    x, forward, backward = case(50)
    blocks = ema_blocks(coefficients(forward, torch.float32), coefficients(backward, torch.float32))
    x = torch.tensor(x, dtype=torch.float32)
    expected, _ = damped_ema(x, blocks)
    with torch.autocast("cpu", torch.bfloat16):
        actual, _ = damped_ema(x, blocks)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_saturated_logits_stay_finite():
    """sigmoid(40) rounds to 1, so that q = 0; sigmoid(-40) nearly to 0, so that q = 1."""
    arrays = (np.array([[40.0, -40.0]]), np.array([[40.0, -40.0]]), np.ones((1, 2)), np.ones((1, 2)))
    leaves = [torch.tensor(array, dtype=torch.float32, requires_grad=True) for array in arrays]
    ahead = ema_coefficients(
        damping_factor=leaves[0][..., None],
        decay_factor=leaves[1][..., None],
        expansion=leaves[2][..., None],
        projection=leaves[3],
    )
    x = torch.randn(1, 200, 1, generator=torch.Generator().manual_seed(0))
    output, _ = damped_ema(x, ema_blocks(ahead))
    torch.testing.assert_close(output, x * 0.5**0.5, atol=1e-6, rtol=0)
    output.sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


def test_saved_memory_is_linear_in_the_length():
    _, forward, backward = case(1)
    blocks = ema_blocks(coefficients(forward), coefficients(backward))

    def saved(length: int) -> int:
        sizes = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t)
        with hooks:
            damped_ema(torch.randn(1, length, D, dtype=torch.float64, requires_grad=True), blocks)
        return sum(sizes)

    assert saved(64 * 64) < 1.05 * 4 * saved(64 * 16)


def test_errors():
    x, forward, _ = case(6)
    x, blocks = torch.tensor(x), ema_blocks(coefficients(forward))
    state = torch.zeros(2, D, N, dtype=torch.float64)
    with pytest.raises(InputError, match=r"needs coefficients of the backward direction\. Received: none"):
        damped_ema(x, blocks, backward_state=state)
    with pytest.raises(InputError, match=r"needs coefficients of the backward direction\. Received: none"):
        backward_state_before(x, blocks)
    message = r"an EMA state must have the shape \(batch, channels, averages\) = \(2, 3, 4\)\. Received: \(2, 3, 3\)"
    with pytest.raises(InputError, match=message):
        damped_ema(x, blocks, state=state[..., :3])
    with pytest.raises(InputError, match=message):
        damped_ema_step(x[:, 0], coefficients(forward), state[..., :3])
    with pytest.raises(InputError, match=r"= \(2, 3, 9\)\. Received: \(2, 3, 4\)"):
        truncated_damped_ema(x, coefficients(forward), truncation=5, state=state)
