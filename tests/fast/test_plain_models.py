"""The guard before the fast paths lets plain models through: how often each is taken, and what one hook takes away."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from tests.contract.models_torch import make
from torch import nn

import longspan
from longspan.fast import gated_linear
from longspan.ops import fast_paths

LINEAR, BLOCKS, STEP = "matmul.linear", "token_blocks.apply_in_token_blocks", "token_step.make_token_step"
WINDOWS, MAPS = "sliding_window_chunked.chunked_attention", "differential_chunked.chunked_attention"
GATED, SPANS = "gated_linear.linear_function", "mega_spans.run_layer_in_spans"
#: class of one layer -> calls in one forward pass; every nn.Linear is one of LINEAR or GATED but those of `GLOBAL`
CALLS = {
    "BertForMaskedLM": {LINEAR: 8, BLOCKS: 1},
    "RobertaForMaskedLM": {LINEAR: 8, BLOCKS: 1},
    "LongformerForMaskedLM": {LINEAR: 9, BLOCKS: 1, WINDOWS: 1},
    "LongT5ForConditionalGeneration": {LINEAR: 21, BLOCKS: 2, WINDOWS: 1},
    "DiffLlamaForCausalLM": {LINEAR: 5, GATED: 3, BLOCKS: 2, MAPS: 1},
    "MegaForMaskedLM": {LINEAR: 7, SPANS: 1},
    "BertLMHeadModel": {LINEAR: 8, BLOCKS: 1},
}
#: linear layers that are applied to the few global tokens, by their own formula
GLOBAL = {"LongformerForMaskedLM": 2}
WRITERS = [name for name in CALLS if name.endswith(("LMHeadModel", "ForCausalLM", "ForConditionalGeneration"))]


@pytest.fixture
def calls(monkeypatch):
    """How often each fast path was taken since the last `clear()`."""
    counts = Counter()

    def counted(name, function):
        return lambda *args, **kwargs: counts.update([name]) or function(*args, **kwargs)

    for name in (LINEAR, BLOCKS, STEP, WINDOWS, MAPS, SPANS):
        monkeypatch.setitem(fast_paths._found, name, counted(name, fast_paths._find(name)))
    monkeypatch.setattr(gated_linear, "linear_function", counted(GATED, gated_linear.linear_function))
    return counts


def linear_layers_called(model, inputs):
    """Linear layers that the definitions call."""
    called = []
    hooks = [
        module.register_forward_hook(lambda *_, path=path: called.append(path))
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    with longspan.plain():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return called


@torch.no_grad()
@pytest.mark.parametrize("name", CALLS)
def test_every_fast_path_is_taken(name, calls):
    model, inputs = make(name)
    called = linear_layers_called(model, inputs)
    assert not calls
    model(**inputs)
    assert dict(calls) == CALLS[name]
    assert len(called) == calls[LINEAR] + calls[GATED] + GLOBAL.get(name, 0)


@torch.no_grad()
@pytest.mark.parametrize("name", CALLS)
def test_a_hook_takes_away_no_more_than_it_must(name, calls):
    model, inputs = make(name)
    called = linear_layers_called(model, inputs)
    hook = model.get_submodule(called[0]).register_forward_hook(lambda *_: None)
    model(**inputs)
    hook.remove()
    assert 0 < CALLS[name][LINEAR] - calls[LINEAR] <= called.count(called[0])
    calls.clear()
    model(**inputs)
    assert dict(calls) == CALLS[name]


@torch.no_grad()
@pytest.mark.parametrize("name", WRITERS)
def test_generate_passes_through_the_model_once(name, calls):
    """The prompt; all later tokens are steps."""
    model, inputs = make(name)
    model.generate(inputs["input_ids"], max_new_tokens=5, eos_token_id=None)
    assert calls[STEP] == 1
    assert calls[LINEAR] + calls[GATED] == CALLS[name][LINEAR] + CALLS[name].get(GATED, 0)
