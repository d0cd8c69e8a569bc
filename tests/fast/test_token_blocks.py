"""Functions of single tokens give the same in blocks."""

import pytest
import torch

from longspan.fast import token_blocks
from longspan.fast.token_blocks import apply_in_token_blocks
from longspan.nn.torch.apply import tokenwise


@pytest.mark.parametrize("shape", [(1, 7, 4), (2, 64, 4), (3, 100, 4), (1, 1000, 4)])
def test_blocks_change_nothing(monkeypatch, shape):
    monkeypatch.setattr(token_blocks, "BLOCK_BYTES", 64 * 4 * 16)  # 64 tokens of width 16
    up, down, sizes = torch.randn(16, 4), torch.randn(5, 16), []

    def function(states):
        sizes.append(states.numel() // 4)
        return torch.relu(states @ up.T) @ down.T

    states = torch.randn(shape)
    with torch.no_grad():
        result = apply_in_token_blocks(function, states, width=16)
    tokens = shape[0] * shape[1]
    assert sizes == [64] * (tokens // 64) + ([tokens % 64] if tokens % 64 else [])
    assert torch.allclose(result, function(states), atol=1e-6)


def test_gradients_go_through_one_call():
    calls, states = [], torch.randn(1, 5000, 4, requires_grad=True)

    def function(x):
        calls.append(x.shape)
        return x * 2

    tokenwise(function, states, owner=torch.nn.Identity(), width=10**6).sum().backward()
    assert calls == [states.shape]
    assert (states.grad == 2).all()


@pytest.mark.parametrize("shape", [(1, 7, 4), (2, 64, 4), (3, 100, 4)])
def test_a_sum_in_blocks(monkeypatch, shape):
    monkeypatch.setattr(token_blocks, "BLOCK_BYTES", 64 * 4 * 16)
    states = torch.randn(shape).transpose(0, 1)
    expected = states + states.sin()
    with torch.no_grad():
        result = apply_in_token_blocks(torch.sin, states, width=16, residual=states.clone())
    assert torch.equal(result, expected)


def test_a_sum_with_gradients_leaves_the_states():
    states = torch.randn(1, 5000, 4, requires_grad=True)
    kept = states.detach().clone()
    tokenwise(torch.sin, states, owner=torch.nn.Identity(), width=10**6, residual=states).sum().backward()
    assert torch.equal(states.detach(), kept)
    torch.testing.assert_close(states.grad, 1 + kept.cos())
