"""Products, norms and attention of few rows against their definitions in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.oracle import differential as oracle
from tests.tolerances import assert_close

from longspan.fast import few_rows, large_pages, matmul
from longspan.fast.few_rows import (
    WIDENED_KEYS,
    FewRowsLinear,
    FewRowsNorm,
    can_pack,
    one_query_attention,
    one_query_scores,
    one_query_values,
)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_joined_layers(packed, biased, rows):
    weights = [random(7, 33, seed=1), random(520, 33, seed=2), random(16, 33, seed=3)]
    biases = [random(w.shape[0], seed=4) for w in weights] if biased else None
    x = random(rows, 33, seed=5)
    layers = FewRowsLinear(weights, biases, packed=packed, rows=rows)
    assert (layers.packed is not None) == packed
    expected = x.double() @ torch.cat(weights).double().t()
    if biases is not None:
        expected = expected + torch.cat(biases).double()
    assert_close(layers(x), expected.float(), "float32", "product")


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("biased", [True, False])
def test_one_row_of_large_weights(biased, threads, monkeypatch):
    monkeypatch.setattr(few_rows, "is_faster", lambda: False)  # as without AVX-512
    weights = [random(1000, 1020, seed=1), random(60, 1020, seed=2)]
    biases = [random(w.shape[0], seed=4) for w in weights] if biased else None
    x = random(1, 1020, seed=5)
    layers = FewRowsLinear(weights, biases, packed=True, rows=1)
    assert layers.turned is not None
    assert layers.turned.data_ptr() % 64 == 0
    expected = x.double() @ torch.cat(weights).double().t()
    if biases is not None:
        expected = expected + torch.cat(biases).double()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)  # parts of 1020, 510 and 340 inputs
    try:
        result = layers(x)
    finally:
        torch.set_num_threads(before)
    assert result.shape == (1, 1060)
    assert_close(result, expected.float(), "float32", "product")


def test_one_row_is_multiplied_by_onednn_where_it_has_wide_vectors(monkeypatch):
    monkeypatch.setattr(few_rows, "is_faster", lambda: True)
    layers = FewRowsLinear([random(1000, 1100, seed=1)], packed=True, rows=1)
    assert layers.turned is None
    assert layers.packed is not None


def test_large_pages_are_memory_as_any_other():
    values = random(1024, 1000)
    large = large_pages.empty(1024, 1000)
    large.copy_(values)
    assert large.is_contiguous()
    assert torch.equal(large, values)
    assert large_pages.empty(3, 5).shape == (3, 5)


def test_what_can_be_packed():
    assert can_pack(random(4, 4))
    assert not can_pack(random(4, 4).double())
    assert not can_pack(random(4, 4).half())
    assert not can_pack(random(4, 4).to("meta"))
    assert can_pack(random(4, 4).bfloat16()) == torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.mark.parametrize("eps", [1e-6, 0.3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_norm(dtype, eps):
    x, weight = random(3, 5, 40).to(getattr(torch, dtype)), random(40, seed=1).to(getattr(torch, dtype))
    x[0, 0] = 0
    wide = x.double()
    expected = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps) * weight.double()
    result = FewRowsNorm(weight, eps)(x)
    assert result.dtype == x.dtype
    assert_close(result.float(), expected.float(), dtype, "norm")


@pytest.mark.parametrize("num_keys", [5, WIDENED_KEYS + 3])
@pytest.mark.parametrize("num_queries", [1, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_and_values(dtype, num_queries, num_keys):
    kind = getattr(torch, dtype)
    query, key = random(6, num_queries, 8).to(kind), random(6, num_keys, 8, seed=1).to(kind)
    scores = one_query_scores(query, key)
    assert scores.dtype == torch.float32
    assert_close(scores, (query.double() @ key.double().transpose(1, 2)).float(), dtype, "scores")
    weights = random(6, num_queries, num_keys, seed=2).softmax(dim=-1)
    context = one_query_values(weights, key)
    assert context.dtype == kind
    assert_close(context.float(), (weights.double() @ key.double()).float(), dtype, "context")


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("num_maps", "num_kv"), [(4, 4), (8, 2), (6, 3), (4, 1)])
@pytest.mark.parametrize("num_keys", [1, 7])
def test_differential_attention_of_one_query(num_maps, num_kv, num_keys, masked):
    """The last row sees no key where there is a mask."""
    query, key = random(3, num_maps, 1, 6), random(3, num_kv, num_keys, 6, seed=1)
    value = random(3, num_kv, num_keys, 6, seed=2)
    mask = None
    if masked:
        mask = torch.rand(3, num_keys, generator=torch.Generator().manual_seed(3)) > 0.4
        mask[0], mask[2] = True, False
    visible = oracle.visible_keys(
        np.array([num_keys - 1]), num_keys, None if mask is None else mask.numpy(), None, batch=3
    )
    arrays = (tensor.double().numpy() for tensor in (query, key, value))
    expected, _, _ = oracle.differential_attention(*arrays, 0.37, visible, scale=0.4)
    result = one_query_attention(query, key, value, torch.tensor(0.37), key_mask=mask, scale=0.4)
    assert_close(result, expected, "float32", "output")


@pytest.mark.parametrize("tracks", [True, False])
def test_few_rows_of_a_large_weight(tracks, monkeypatch):
    """oneDNN serves them where no gradient is wanted."""
    monkeypatch.setattr(matmul, "is_faster", matmul.has_onednn)
    calls = []
    monkeypatch.setattr(matmul, "_onednn", lambda *args, original=matmul._onednn: calls.append(1) or original(*args))
    x, weight = random(2, 512), random(520, 512, seed=1).requires_grad_(tracks)
    assert_close(matmul.linear(x, weight), (x.double() @ weight.detach().double().t()).float(), "float32", "product")
    assert len(calls) == (0 if tracks else 1)


@pytest.mark.parametrize("biased", [True, False])
def test_threads_share_a_row(biased, monkeypatch):
    """Without AVX-512; where a gradient is wanted, PyTorch's layer serves."""
    monkeypatch.setattr(matmul, "is_faster", lambda: False)
    calls = []
    monkeypatch.setattr(matmul, "_one_row", lambda *args, original=matmul._one_row: calls.append(1) or original(*args))
    x, weight = random(1, 1, 520), random(522, 520, seed=1)
    bias = random(522, seed=2) if biased else None
    expected = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        result = matmul.linear(x, weight, bias)
        tracked = matmul.linear(x, weight.clone().requires_grad_(), bias)
    finally:
        torch.set_num_threads(before)
    assert len(calls) == 1
    assert_close(result, expected.float(), "float32", "product")
    assert_close(tracked, expected.float(), "float32", "product")
