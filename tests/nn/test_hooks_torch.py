"""Who looks into a feed-forward block sees all tokens at once, on the path without gradients as well."""

from __future__ import annotations

import pytest
import torch
from tests.tolerances import assert_close
from torch import nn

import longspan
from longspan.nn.torch.hooks import is_watched
from longspan.ops.torch import token_blocks

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
def test_a_hook_sees_all_tokens(make, monkeypatch):
    torch.manual_seed(0)
    model, name = make()
    monkeypatch.setattr(token_blocks, "BLOCK_BYTES", 1)  # 64 tokens a block
    ids, calls, seen = torch.randint(1, 50, (2, 96)), [], []
    module = model.eval().get_submodule(name)
    original = type(module).forward

    def count(self, *args, **kwargs):
        calls.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(module), "forward", count)
    expected = model(ids).last_hidden_state
    assert sum(call is module for call in calls) == 3, "the path in blocks is not taken"
    handle = module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].shape, output.shape)))
    assert_close(model(ids).last_hidden_state, expected)
    handle.remove()
    assert [shape[:2] for shape in seen[0]] == [(2, 96), (2, 96)]
    assert len(seen) == 1


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


@pytest.mark.parametrize(
    "register",
    [
        lambda inner: inner.register_forward_hook(print),
        lambda inner: inner.register_forward_pre_hook(print),
        lambda inner: inner.register_full_backward_hook(print),
        lambda inner: inner.register_full_backward_pre_hook(print),
        lambda _: nn.modules.module.register_module_forward_hook(print),
    ],
)
def test_any_hook_inside_counts(register):
    outer = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    assert not is_watched(outer)
    handle = register(outer[0][0])
    assert is_watched(outer)
    handle.remove()
    assert not is_watched(outer)
