"""Root-mean-square normalisation against its definition in float64."""

from __future__ import annotations

import pytest
import torch
from tests.tolerances import assert_close

from longspan.fast import rms_norm as fast
from longspan.ops.torch import rms_norm as ops
from longspan.ops.torch.rms_norm import rms_norm

EPS = 1e-3


@pytest.fixture
def many_entries(monkeypatch):
    """Short inputs take the path for many entries, in blocks of three rows and a shorter last one."""
    monkeypatch.setattr(fast, "BLOCK_ENTRIES", 3 * 16)
    monkeypatch.setattr(ops, "_FEW_ENTRIES", 0)


def case(dtype):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 4, 16, generator=generator), torch.randn(16, generator=generator)
    x, weight = x.to(dtype), weight.to(dtype)
    wide = x.double()
    return x, weight, wide / (wide.square().mean(dim=-1, keepdim=True) + EPS).sqrt() * weight.double()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.usefixtures("many_entries")
def test_equals_the_definition(dtype):
    x, weight, expected = case(dtype)
    kept = x.clone()
    normed = rms_norm(x, weight, EPS)
    assert normed.dtype == dtype
    name = "float32" if dtype == torch.float64 else str(dtype).removeprefix("torch.")
    assert_close(normed, expected.numpy(), name)
    assert torch.equal(x, kept)


@torch.no_grad()
@pytest.mark.parametrize("entries", [0, ops._FEW_ENTRIES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_number_as_weight(dtype, entries, monkeypatch):
    monkeypatch.setattr(ops, "_FEW_ENTRIES", entries)
    x, _, _ = case(dtype)
    expected = rms_norm(x, torch.full((16,), 0.25, dtype=dtype), EPS)
    assert_close(rms_norm(x, 0.25, EPS), expected, str(dtype).removeprefix("torch."))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.usefixtures("many_entries")
def test_can_be_mapped():
    x, weight, expected = case(torch.float32)
    assert_close(torch.func.vmap(lambda row: rms_norm(row, weight, EPS))(x), expected.numpy())


@torch.no_grad()
@pytest.mark.usefixtures("many_entries")
def test_computes_where_its_input_is():
    x, weight, expected = case(torch.float32)
    with torch.device("meta"):
        normed = rms_norm(x, weight, EPS)
    assert_close(normed, expected.numpy())


def test_gradients_equal_the_definition():
    x, weight, _ = case(torch.float32)
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    rms_norm(*leaves, EPS).sin().sum().backward()
    (exact[0] / (exact[0].square().mean(dim=-1, keepdim=True) + EPS).sqrt() * exact[1]).sin().sum().backward()
    for leaf, other in zip(leaves, exact, strict=True):
        torch.testing.assert_close(leaf.grad, other.grad.float(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("width", "most"), [(40, 1e-6), (128, 1e-3), (1024, 4e-4)])  # 40: as a whole, no parts
def test_the_root_of_half_precision_is_nearly_exact(width, most):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, width, generator=generator).to(torch.bfloat16)
    exact = x.double().square().mean(dim=-1).sqrt()
    error = fast._norms(x) / width**0.5 / exact - 1
    assert error.square().mean().sqrt() < most
    assert error.abs().max() < 4 * most
    assert error.mean().abs() < 5e-5  # no bias
