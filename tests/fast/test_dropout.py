"""Dropout from the lanes of wide random numbers: its share, its mean, its gradient, and where it serves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import longspan
from longspan.fast.dropout import dropout_factors
from longspan.nn.torch.dropout import Dropout
from longspan.ops.torch.attention import packed_attention, sdpa_attention
from longspan.ops.torch.dropout import dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("probability", [0.1, 0.25, 0.5, 0.9])
def test_share_and_mean(probability, dtype):
    shape = (1001, 1003)  # not a multiple of the numbers that one draw serves
    factors = dropout_factors(torch.empty(shape, dtype=dtype), probability, torch.Generator().manual_seed(1))
    values = factors.unique()
    assert len(values) == 2
    assert values[0] == 0
    torch.testing.assert_close(values[1], torch.tensor(1 / (1 - probability), dtype=dtype), rtol=2e-4, atol=0)
    error = (probability * (1 - probability) / factors.numel()) ** 0.5
    assert abs((factors == 0).double().mean() - probability) < 4 * error
    # neighbours, which may come from one draw, and rows are independent
    dropped = (factors == 0).double()
    for one, other in ((dropped[:, :-1], dropped[:, 1:]), (dropped[:-1], dropped[1:])):
        assert abs((one * other).mean() - probability**2) < 5 * error


@pytest.mark.parametrize(("probability", "expected"), [(1e-7, 1.0), (1 - 1e-7, None)])
def test_ends_of_the_range_keep_the_mean(probability, expected):
    factors = dropout_factors(torch.empty(2**20), probability, torch.Generator().manual_seed(1))
    if expected is None:
        assert set(factors.unique().tolist()) <= {0.0, 2.0**16}
    else:
        assert (factors == expected).all()


def test_equal_states_draw_equal_factors():
    draws = [dropout_factors(torch.empty(5, 7), 0.5, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_gradient_is_that_of_the_draw():
    x = torch.randn(200, 200, requires_grad=True)
    output = dropout(x, 0.3)
    (grad,) = torch.autograd.grad(output.sum(), x)
    torch.testing.assert_close(output, x * grad)
    assert 0.27 < (grad == 0).float().mean() < 0.33


def test_where_it_serves():
    module = Dropout(0.5)
    assert isinstance(module, nn.Dropout)
    x = torch.ones(200, 200)
    for computes in (module, lambda y: dropout(y, 0.5)):
        torch.manual_seed(1)
        drawn = computes(x)
        torch.manual_seed(1)
        with longspan.plain():
            usual = computes(x)
        torch.manual_seed(1)
        assert torch.equal(usual, nn.functional.dropout(x, 0.5))
        assert not torch.equal(drawn, usual)
    module.eval()
    assert module(x) is x
    assert dropout(x, 1.0).count_nonzero() == 0


@pytest.mark.parametrize("causal", [False, True])
def test_attention_keeps_its_mean(causal):
    """Over many draws the attention with dropout is that without; a query that sees no key stays at 0."""
    query, key, value = (torch.randn(1, 2, 96, 96) for _ in range(3))
    mask = torch.ones(1, 1, 96, 96, dtype=torch.bool)
    mask[..., 3, :] = False
    options = {"causal": True} if causal else {"mask": mask}
    expected = sdpa_attention(query, key, value, **options)
    outputs = torch.stack([sdpa_attention(query, key, value, dropout=0.2, **options) for _ in range(200)])
    assert outputs.std(dim=0).max() > 0.05
    spread = outputs.std(dim=0) / 200**0.5
    assert ((outputs.mean(dim=0) - expected).abs() < 6 * spread + 1e-5).all()
    if not causal:
        assert outputs[:, :, :, 3].count_nonzero() == 0
        states = tuple(tensor[0].transpose(0, 1) for tensor in (query, key, value))
        packed = [packed_attention(*states, lengths=[96], dropout=0.2).mean(dim=0) for _ in range(200)]
        plain = packed_attention(*states, lengths=[96]).mean(dim=0)
        torch.testing.assert_close(torch.stack(packed).mean(dim=0), plain, rtol=0, atol=0.02)
