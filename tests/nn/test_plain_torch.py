"""What `is_plain` clears, and what tools do to a module that it must see."""

from __future__ import annotations

import pytest
import torch
from tests.contract.models_torch import TORCH, make
from tests.tolerances import assert_close
from torch import nn
from torch.overrides import TorchFunctionMode

import longspan
from longspan.fast import matmul
from longspan.nn.torch.apply import project
from longspan.nn.torch.plain import is_plain


class Subclass(nn.Linear):
    """A user's own."""


class Quantised(torch.Tensor):
    """A tensor of another class, as quantisers and sharding put in the place of weights."""


class Everything(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def replace_weight(layer):
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Quantised))


def halve(layer):
    layer.register_parameter("bias", nn.Parameter(torch.zeros(32, device="meta")))


CHANGES = {
    "weight norm": lambda layer: nn.utils.parametrizations.weight_norm(layer),
    "a hook": lambda layer: layer.register_forward_hook(lambda *_: None),
    "a forward of its own": lambda layer: setattr(layer, "forward", layer.forward),
    "compiled": lambda layer: layer.compile(backend="eager"),
    "a weight of another class": replace_weight,
    "two devices": halve,
    "another class": lambda layer: setattr(layer, "__class__", Subclass),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_plain(change):
    layer = nn.Linear(32, 32)
    outer = nn.ModuleList([layer])
    assert is_plain(outer)
    CHANGES[change](layer)
    assert not is_plain(outer)
    assert is_plain(outer, deep=False)


def test_modes_and_patched_classes(monkeypatch):
    layer = nn.Linear(32, 32)
    with Everything():
        assert not is_plain(layer)
    with torch.device("cpu"):  # is a mode too, of no interest
        assert is_plain(layer)
    assert not is_plain(layer, kinds=(nn.Embedding,))
    assert not is_plain(nn.Sequential(layer))  # may hold anything
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: x)
    assert not is_plain(layer)


@torch.no_grad()
def test_plain_switches_the_kernels_off(monkeypatch):
    calls, layer, x = [], nn.Linear(64, 64), torch.randn(64, 64)
    original = matmul.linear
    monkeypatch.setitem(
        longspan.ops.fast_paths._found, "matmul.linear", lambda *args: calls.append(1) or original(*args)
    )
    expected = project(layer, x)
    assert len(calls) == 1
    with longspan.plain():
        assert_close(project(layer, x), expected)
        with longspan.plain():
            pass
        project(layer, x)
    assert len(calls) == 1
    project(layer, x)
    assert len(calls) == 2


@pytest.mark.parametrize("name", TORCH)
def test_models_consist_of_stock_layers(name):
    """Tools look for the classes themselves, as dynamic quantisation does."""
    model, _ = make(name)
    for path, module in model.named_modules():
        for kind in (nn.Linear, nn.Embedding, nn.LayerNorm):
            assert not isinstance(module, kind) or type(module) is kind, path
    assert is_plain(model)


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_dynamic_quantisation_finds_every_layer():
    model, inputs = make("LongT5ForConditionalGeneration")
    number = sum(isinstance(module, nn.Linear) for module in model.modules())
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    found = [m for m in quantised.modules() if isinstance(m, torch.ao.nn.quantized.dynamic.Linear)]
    assert len(found) == number == 19
    expected = model(**inputs).logits
    difference = (quantised(**inputs).logits - expected).abs().max() / expected.abs().max()
    assert 0 < difference < 0.2
    assert quantised.generate(inputs["input_ids"], max_new_tokens=3).shape == (2, 4)
