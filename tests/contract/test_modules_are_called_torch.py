"""Whatever somebody puts in the place of a layer, an embedding or a norm is called, on every path made for speed.

Adapters, quantisers and observers work that way. A wrapper adds a known term to what the module gives; the numbers must
then be those of `longspan.plain()`, where modules call modules.
"""

from __future__ import annotations

import pytest
import torch
from tests.contract.models_torch import TORCH, make
from tests.tolerances import assert_close
from torch import nn

import longspan
from longspan.fast import gated_attention_tiles, token_blocks
from longspan.ops.torch import rms_norm

GENERATING = ("BertLMHeadModel", "LongT5ForConditionalGeneration", "DiffLlamaForCausalLM", "MegaForCausalLM")
NORMS = ("LongT5LayerNorm", "DiffLlamaRMSNorm", "MegaRMSNorm", "MegaScaleNorm", "LayerNorm")


class Adapter(nn.Module):
    """base(x) and a term of x; like an adapter of PEFT it may show the weight of what it wraps."""

    def __init__(self, base, *, shows_weight=False):
        super().__init__()
        self.base, self.gain = base, nn.Parameter(torch.tensor(0.5))
        if shows_weight:
            for name in ("weight", "bias", "in_features", "out_features", "eps"):
                if hasattr(base, name):
                    object.__setattr__(self, name, getattr(base, name))

    def forward(self, x):
        result = self.base(x)
        places = torch.arange(result.shape[-1])
        if isinstance(self.base, nn.Embedding):
            return result + self.gain * torch.sin(x[..., None] + places)
        return result + (self.gain * x[..., :1] * torch.cos(places)).to(result.dtype)


@pytest.fixture(autouse=True)
def _small_sizes_take_every_path(monkeypatch):
    monkeypatch.setattr(token_blocks, "BLOCK_BYTES", 1)  # 64 tokens a block
    monkeypatch.setattr(rms_norm, "_FEW_ENTRIES", 0)
    monkeypatch.setattr(gated_attention_tiles, "TILE_QUERIES", 4)
    monkeypatch.setattr(gated_attention_tiles, "_TILE_SCORES", {"cpu": 64})


def parts(model):
    """(parent, name, module) of all that somebody may replace."""
    found = []
    for parent in model.modules():
        for name, module in parent.named_children():
            if (
                name == "position_embeddings"
                and getattr(model.config, "position_embedding_type", "absolute") != "absolute"
            ):
                continue  # loaded and saved, and of no use
            is_norm = type(module).__name__ in NORMS and next(module.parameters(), None) is not None
            if isinstance(module, nn.Linear | nn.Embedding) or is_norm:
                found.append((parent, name, module))
    return found


def tensors(output):
    values = output.values() if hasattr(output, "values") else output
    flat = [inner for value in values for inner in (value if type(value) is tuple else (value,))]
    return [value for value in flat if isinstance(value, torch.Tensor) and value.is_floating_point()]


def replaced(model, module, adapter):
    """Put an adapter wherever the module is; returns what undoes it."""
    places = [(parent, name) for parent, name, other in parts(model) if other is module]
    for parent, name in places:
        setattr(parent, name, adapter)
    return lambda: [setattr(parent, name, module) for parent, name in places]


@torch.no_grad()
@pytest.mark.parametrize("name", TORCH)
def test_forward(name):
    model, inputs = make(name)
    expected = tensors(model(**inputs))
    with longspan.plain():
        for mine, theirs in zip(expected, tensors(model(**inputs)), strict=True):
            assert_close(mine, theirs)
    for place, (_, part, module) in enumerate(parts(model)):
        undo = replaced(model, module, Adapter(module, shows_weight=place % 2 == 0))
        with longspan.plain():
            changed = tensors(model(**inputs))
        what = f"{name}: {part}, module {place}"
        assert any((a - b).abs().max() > 1e-4 for a, b in zip(changed, expected, strict=True)), f"{what} has no effect"
        with longspan.prepacked_weights(model):
            for mine, theirs in zip(tensors(model(**inputs)), changed, strict=True):
                assert_close(mine, theirs, what=what)
        undo()


@pytest.mark.parametrize("name", TORCH)
def test_every_adapter_gets_a_gradient(name):
    model, inputs = make(name)
    modules = {id(module): (part, module) for _, part, module in parts(model)}
    adapters = {}
    for place, (part, module) in enumerate(modules.values()):
        adapters[f"{place} {part}"] = Adapter(module, shows_weight=place % 2 == 0)
        replaced(model, module, adapters[f"{place} {part}"])
    gradients = []
    for plain in (False, True):
        with longspan.plain() if plain else longspan.prepacked_weights(model):
            sum(tensor.square().sum() for tensor in tensors(model(**inputs))).backward()
        gradients.append({key: adapter.gain.grad for key, adapter in adapters.items()})
        for adapter in adapters.values():
            adapter.gain.grad = None
    scale = max(abs(gradient) for gradient in gradients[1].values() if gradient is not None)
    for key in adapters:
        mine, theirs = gradients[0][key], gradients[1][key]
        assert theirs is not None, f"{key} gets no gradient"
        assert theirs != 0, f"{key} gets no gradient"
        assert_close(mine / scale, theirs / scale, what=key)


@pytest.mark.parametrize("name", GENERATING)
def test_generate(name):
    model, _ = make(name)
    wanted = {"max_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True, "eos_token_id": None}
    ids = torch.randint(3, 60, (2, 9))

    def logits():
        return torch.stack(model.generate(ids, **wanted).logits)

    expected = logits()
    for place, (_, part, module) in enumerate(parts(model)):
        undo = replaced(model, module, Adapter(module, shows_weight=place % 2 == 0))
        with longspan.plain():
            changed = logits()
        assert (changed - expected).abs().max() > 1e-4, f"{part} has no effect"
        with longspan.prepacked_weights(model):
            assert_close(logits(), changed, what=part)
        undo()


@pytest.mark.parametrize("name", GENERATING)
def test_a_cached_step(name):
    model, inputs = make(name)
    ids = inputs.pop("decoder_input_ids", inputs["input_ids"])
    key = "decoder_input_ids" if name.startswith("LongT5") else "input_ids"

    @torch.no_grad()
    def step():
        first = model(**{**inputs, key: ids[:, :-1]}, use_cache=True)
        return model(**{**inputs, key: ids[:, -1:]}, past_key_values=first.past_key_values, use_cache=True).logits

    for _, part, module in parts(model):
        undo = replaced(model, module, Adapter(module))
        with longspan.plain():
            expected = step()
        assert_close(step(), expected, what=part)
        undo()
