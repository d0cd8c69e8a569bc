"""Linear layers in 8 bits against their definition, and sentence encoders made of them."""

import numpy as np
import pytest
import torch
from torch import nn

from longspan import SentenceEncoder
from longspan.errors import InputError
from longspan.nn.torch import int8
from longspan.nn.torch.apply import project_all
from longspan.nn.torch.int8 import Int8Linear, quantize_linears

TEXTS = [
    "How do I open a file and read its lines?",
    "Reading a file line by line",
    "Cooking rice without burning it",
    "A recipe for steamed rice",
    "Log messages are rotated every night",
    "Log rotation: keeping old logs small. " * 12,
    "x",
    "The train to the coast leaves at noon",
]


def definition(x, weight, bias):
    """float64: weights in 129 levels an output, inputs in 256 levels a row."""
    x, weight = x.double().numpy(), weight.detach().double().numpy()
    scale = np.abs(weight).max(1) / 64
    levels = np.rint(weight / scale[:, None])
    least = x.min(1, keepdims=True)
    step = (x.max(1, keepdims=True) - least) / 255
    return (least + step * np.rint((x - least) / step)) @ (levels * scale[:, None]).T + bias.detach().double().numpy()


@pytest.mark.parametrize("rows", [1, 63, 64, 200])
def test_product_equals_its_definition(rows):
    torch.manual_seed(rows)
    layer, x = nn.Linear(96, 160), torch.randn(rows, 96) * torch.rand(rows, 1) + torch.randn(rows, 1)
    quantized = Int8Linear(layer)
    with torch.no_grad():
        y = quantized(x.view(1, rows, 96))
    assert y.shape == (1, rows, 160)
    expected = definition(x, layer.weight, layer.bias)
    # a value half-way between two levels may go to either: hardly any does, and then by a step of one weight
    assert np.median(np.abs(y[0].numpy() - expected)) < 1e-5
    assert np.abs(y[0].numpy() - expected).max() < 2e-2


def test_extreme_values_do_not_overflow():
    """Products of bytes are added in pairs in 16 bits where there is no VNNI: 255 · 127 · 2 would not fit."""
    layer = nn.Linear(64, 32, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.weight[1::2] = -1.0
        x = torch.ones(3, 64)
        x[:, 0] = 0.0
        y = Int8Linear(layer)(x)
    assert torch.allclose(y, layer(x).detach(), rtol=1e-5)


def test_a_row_does_not_depend_on_the_others():
    torch.manual_seed(0)
    quantized, x = Int8Linear(nn.Linear(64, 64)), torch.randn(70, 64)
    others = torch.cat([100 * x[:1], x[1:]])
    assert torch.equal(quantized(x)[1:], quantized(others)[1:])
    assert torch.allclose(quantized(x[5:6]), quantized(x)[5:6], atol=1e-6)


def test_layers_round_their_input_together(monkeypatch):
    """Queries, keys and values: once where they are called, each for itself where somebody looks on."""
    torch.manual_seed(0)
    layers, x, rounded = [Int8Linear(nn.Linear(64, size)) for size in (64, 64, 96)], torch.randn(3, 5, 64), []
    monkeypatch.setattr(int8, "_rounded", lambda x, original=int8._rounded: rounded.append(1) or original(x))
    together = project_all(layers, x)
    assert len(rounded) == 1
    assert [result.shape for result in together] == [(3, 5, 64), (3, 5, 64), (3, 5, 96)]
    for result, layer in zip(together, layers, strict=True):
        assert torch.equal(result, layer(x))
    seen = []
    layers[1].register_forward_hook(lambda *_: seen.append(1))
    project_all(layers, x)
    assert seen == [1]
    assert len(rounded) == 1 + 3 + 3


def test_constant_rows_and_no_rows():
    quantized = Int8Linear(nn.Linear(64, 64))
    assert torch.isfinite(quantized(torch.full((2, 64), 3.0))).all()
    assert quantized(torch.empty(0, 64)).shape == (0, 64)


@pytest.fixture(scope="module")
def encoders():
    return SentenceEncoder(), SentenceEncoder(precision="int8")


def test_vectors_are_close_and_rank_alike(encoders):
    exact, rounded = (encoder.encode(TEXTS) for encoder in encoders)
    assert (exact * rounded).sum(1).min() >= 0.99
    orders = [np.argsort(-(vectors[:1] @ vectors[1:].T)[0])[:3] for vectors in (exact, rounded)]
    assert orders[0].tolist() == orders[1].tolist()
    assert encoders[1].encode(TEXTS[3]) == pytest.approx(rounded[3], abs=1e-3)


def test_identity_says_so(encoders):
    exact, rounded = (encoder.identity() for encoder in encoders)
    assert {name for name in exact if exact[name] != rounded[name]} == {"dtype"}
    assert (rounded["dtype"], encoders[1].dtype) == ("int8", "int8")


def test_what_cannot_be_served_is_refused(monkeypatch):
    with pytest.raises(InputError, match="precision and dtype must agree"):
        SentenceEncoder(precision="int8", dtype="bfloat16")
    with pytest.raises(InputError, match="needs framework='torch'"):
        SentenceEncoder(framework="flax", dtype="int8")
    with pytest.raises(InputError, match="int8 is for models on the CPU"):
        quantize_linears(nn.Linear(64, 64, device="meta"))
    monkeypatch.setattr(int8, "Int8Linear", lambda layer: torch.ops.onednn.there_is_no_such_kernel(layer))
    with pytest.raises(InputError, match="int8 needs oneDNN's linear layer in 8 bits.*PyTorch"):
        quantize_linears(nn.Sequential(nn.Linear(64, 64)))


def test_other_families_are_refused():
    with pytest.raises(InputError, match="dtype='int8' serves bert, roberta, xlm-roberta. Received: longformer"):
        SentenceEncoder(dtype="int8", max_length=1024)
