"""Who looks into a feed-forward block sees all tokens at once, on the path without gradients as well."""

from __future__ import annotations

import pytest
import torch
from tests.tolerances import assert_close
from torch import nn

import longspan
from longspan.fast import token_blocks
from longspan.nn.torch.plain import is_plain

WIDTHS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 50}


def longformer():
    config = longspan.LongformerConfig(**WIDTHS, num_attention_heads=2, attention_window=[8])
    return longspan.LongformerModel(config), "encoder.layer.0.intermediate.dense"


def longt5():
    config = longspan.LongT5Config(
        vocab_size=50, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, local_radius=8, feed_forward_proj="relu"
    )
    return longspan.LongT5EncoderModel(config), "encoder.block.0.layer.1.DenseReluDense.wi"


def diffllama(name):
    config = longspan.DiffLlamaConfig(**WIDTHS, num_attention_heads=2, use_cache=False)
    return longspan.DiffLlamaModel(config), f"layers.0.{name}"


@pytest.fixture
def blocks(monkeypatch):
    """The numbers of tokens of the blocks that the feed-forward layers are given."""
    sizes = []

    def watch(original):
        return lambda function, x, *others: original(
            lambda block: sizes.append(len(block)) or function(block), x, *others
        )

    for name in ("_map", "_add"):
        monkeypatch.setattr(token_blocks, name, watch(getattr(token_blocks, name)))
    return sizes


@pytest.mark.parametrize(
    "make",
    [
        longformer,
        longt5,
        lambda: diffllama("mlp"),
        lambda: diffllama("mlp.up_proj"),
        lambda: diffllama("post_attention_layernorm"),
        lambda: diffllama("self_attn.o_proj"),
    ],
    ids=["longformer", "longt5", "diffllama mlp", "diffllama up", "diffllama norm", "diffllama out"],
)
@torch.no_grad()
def test_a_hook_sees_all_tokens(make, blocks, monkeypatch):
    torch.manual_seed(0)
    model, name = make()
    monkeypatch.setattr(token_blocks, "BLOCK_BYTES", 1)  # 64 tokens a block
    ids, seen = torch.randint(1, 50, (2, 96)), []
    module = model.eval().get_submodule(name)
    expected = model(ids).last_hidden_state
    assert set(blocks) == {64}
    handle = module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].shape, output.shape)))
    assert_close(model(ids).last_hidden_state, expected)
    handle.remove()
    assert [shape[:2] for shape in seen[0]] == [(2, 96), (2, 96)]
    assert len(seen) == 1


@torch.no_grad()
def test_what_a_hook_of_the_norm_saw_stays_as_it_was(monkeypatch):
    model, name = diffllama("post_attention_layernorm")
    monkeypatch.setattr(token_blocks, "BLOCK_BYTES", 1)
    seen = []
    model.get_submodule(name).register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    model(torch.randint(1, 50, (2, 96)))
    before, after = seen
    assert torch.equal(after, before)


@torch.no_grad()
def test_a_forward_that_somebody_set_is_called():
    """accelerate brings weights along that way."""
    model, _ = diffllama("mlp")
    ids, layer = torch.randint(1, 50, (1, 40)), model.eval().layers[0].mlp.gate_proj
    expected = model(ids).last_hidden_state
    weight, original = layer.weight.data, layer.forward
    layer.weight.data = torch.full_like(weight, torch.nan)

    def forward(states):
        layer.weight.data = weight
        return original(states)

    layer.forward = forward
    assert_close(model(ids).last_hidden_state, expected)


@torch.no_grad()
def test_a_block_put_in_its_place_gets_all_axes(monkeypatch):
    model, _ = diffllama("mlp")
    monkeypatch.setattr(token_blocks, "BLOCK_BYTES", 1)
    seen = []

    class Other(nn.Module):
        def forward(self, hidden_states):
            seen.append(hidden_states.shape)
            return hidden_states

    model.layers[0].mlp = Other()
    model(torch.randint(1, 50, (2, 96)))
    assert seen == [(2, 96, 32)]


class ForwardSet:
    """Sets a `forward` on a module itself until it is removed."""

    def __init__(self, module):
        self.module = module
        module.forward = module.forward

    def remove(self):
        del self.module.forward


@pytest.mark.parametrize(
    "register",
    [
        lambda inner: inner.register_forward_hook(print),
        lambda inner: inner.register_forward_pre_hook(print),
        lambda inner: inner.register_full_backward_hook(print),
        lambda inner: inner.register_full_backward_pre_hook(print),
        lambda _: nn.modules.module.register_module_forward_hook(print),
        ForwardSet,
    ],
)
def test_any_hook_inside_counts(register):
    outer = nn.ModuleList([nn.ModuleList([nn.Linear(2, 2)])])
    assert is_plain(outer)
    handle = register(outer[0][0])
    assert not is_plain(outer)
    handle.remove()
    assert is_plain(outer)
