"""Weights that are laid out beforehand: the same numbers, whatever happens to the weights meanwhile."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from tests.tolerances import assert_close
from torch import nn
from torch.nn import Linear
from torch.utils._python_dispatch import TorchDispatchMode

import longspan
from longspan.errors import InputError
from longspan.fast import few_rows, matmul, prepacked
from longspan.nn.torch.apply import project

SIZES = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2}
CONFIGS = {
    "bert": longspan.BertConfig(**SIZES, **HEADS),
    "longformer": longspan.LongformerConfig(**SIZES, **HEADS, attention_window=[8]),
    "longt5": longspan.LongT5Config(vocab_size=50, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2),
    "diffllama": longspan.DiffLlamaConfig(**SIZES, **HEADS),
    "mega": longspan.MegaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, intermediate_size=64),
}
CLASSES = {
    "bert": "BertModel",
    "longformer": "LongformerModel",
    "longt5": "LongT5EncoderModel",
    "diffllama": "DiffLlamaModel",
    "mega": "MegaModel",
}

pytestmark = pytest.mark.skipif(not matmul.has_onednn(), reason="this PyTorch has no oneDNN")


class Kernel(TorchDispatchMode):
    """Counts products with weights as they are and with weights that were laid out."""

    def __init__(self):
        super().__init__()
        self.plain = self.laid_out = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.mkldnn._linear_pointwise.default:
            self.laid_out += args[1].is_mkldnn
            self.plain += not args[1].is_mkldnn
        return func(*args, **(kwargs or {}))


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return Linear(48, 64)


def make(family):
    torch.manual_seed(0)
    return getattr(longspan, CLASSES[family])(CONFIGS[family]).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_models_give_the_same_numbers(family, dtype):
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU does not compute in bfloat16")
    model, ids = make(family).to(dtype), torch.randint(1, 50, (2, 40))
    expected = model(ids).last_hidden_state
    with longspan.prepacked_weights(model) as same, Kernel() as kernel:
        output = model(ids).last_hidden_state
    assert same is model
    assert kernel.laid_out >= 3
    assert kernel.plain == 0
    assert_close(output, expected, str(dtype).removeprefix("torch."))
    assert not prepacked._kept


@pytest.mark.parametrize("rows", [1, 5, 31, 700])
@torch.no_grad()
def test_any_number_of_rows(layer, rows):
    x = torch.randn(rows, 48)
    expected = project(layer, x)
    with longspan.prepacked_weights(layer), Kernel() as kernel:
        assert_close(project(layer, x), expected)
    assert kernel.laid_out == (2 if rows == 700 else 1)  # 512 rows, and the last 256


def double_in_place(layer):
    layer.weight.mul_(2)


def load(layer):
    layer.load_state_dict({name: 2 * tensor for name, tensor in layer.state_dict().items()})


def put_other_data(layer):
    layer.weight.data = 2 * layer.weight.data


def put_other_weight(layer):
    layer.weight = nn.Parameter(2 * layer.weight)


def convert(layer):
    layer.to(torch.float64)


@pytest.mark.parametrize("change", [double_in_place, load, put_other_data, put_other_weight, convert])
@torch.no_grad()
def test_a_change_inside_the_block_is_seen(layer, change):
    x = torch.randn(40, 48)
    with longspan.prepacked_weights(layer):
        project(layer, x)
        change(layer)
        x = x.to(layer.weight.dtype)
        assert_close(project(layer, x), nn.functional.linear(x, layer.weight, layer.bias))
    assert not prepacked._kept


def test_gradients_are_those_of_the_weights(layer):
    x = torch.randn(40, 48)
    with longspan.prepacked_weights(layer):
        project(layer, x).square().sum().backward()
    gradient = layer.weight.grad.clone()
    layer.weight.grad = None
    nn.functional.linear(x, layer.weight, layer.bias).square().sum().backward()
    torch.testing.assert_close(gradient, layer.weight.grad)


@torch.no_grad()
def test_blocks_may_be_nested_and_left_by_an_error(layer):
    x = torch.randn(64, 48)
    with longspan.prepacked_weights(layer), Kernel() as kernel:
        with pytest.raises(RuntimeError), longspan.prepacked_weights(nn.Sequential(layer)):
            raise RuntimeError
        project(layer, x)
    assert kernel.laid_out == 1
    assert not prepacked._kept


@torch.no_grad()
def test_a_model_can_be_saved_and_copied_inside(tmp_path):
    model, ids = make("bert"), torch.randint(1, 50, (1, 40))
    expected = model(ids).last_hidden_state
    with longspan.prepacked_weights(model):
        model.save_pretrained(tmp_path)
        stored = io.BytesIO()
        torch.save(model, stored)
        twin = copy.deepcopy(model)
    stored.seek(0)
    for other in (twin, longspan.BertModel.from_pretrained(tmp_path), torch.load(stored, weights_only=False)):
        assert_close(other.eval()(ids).last_hidden_state, expected)


@torch.no_grad()
def test_a_compiled_model_runs_inside():
    model, ids = make("diffllama"), torch.randint(1, 50, (1, 40))
    expected = model(ids, use_cache=False).last_hidden_state
    with longspan.prepacked_weights(model):
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert_close(compiled(ids, use_cache=False).last_hidden_state, expected)


@torch.no_grad()
def test_shared_and_computed_weights(layer):
    other, x = Linear(48, 64), torch.randn(64, 48)
    other.weight = layer.weight
    parametrized = nn.utils.parametrizations.weight_norm(Linear(48, 64))
    expected = [project(module, x) for module in (layer, other, parametrized)]
    with longspan.prepacked_weights(nn.ModuleList([layer, other, parametrized])), Kernel() as kernel:
        assert len(prepacked._kept) == 1
        for module, output in zip((layer, other, parametrized), expected, strict=True):
            assert_close(project(module, x), output)
    assert (kernel.laid_out, kernel.plain) == (2, 0)  # what computes its weight is called


def test_inference_mode(layer):
    x = torch.randn(40, 48)
    with torch.inference_mode():
        made_inside = Linear(48, 64)
        for module in (layer, made_inside):
            expected = project(module, x)
            with longspan.prepacked_weights(module):
                assert_close(project(module, x), expected)


@torch.no_grad()
def test_nothing_happens_where_it_is_of_no_use(layer, monkeypatch):
    x = torch.randn(40, 48)
    monkeypatch.setattr(few_rows, "has_onednn", lambda: False)
    with longspan.prepacked_weights(layer), Kernel() as kernel:
        project(layer, x)
        assert not prepacked._kept
    assert kernel.laid_out == 0


def test_what_is_no_model():
    with (
        pytest.raises(InputError, match=r"model must be a module of PyTorch\. Received: str"),
        longspan.prepacked_weights("bert"),
    ):
        pass
