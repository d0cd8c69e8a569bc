"""Weights in 8 bits while text is generated: close to float32, through the token steps, and no tool is passed over."""

from __future__ import annotations

import pytest
import torch

from longspan import DiffLlamaConfig, DiffLlamaForCausalLM
from longspan.errors import InputError
from longspan.fast.diffllama_step import DiffLlamaStep
from longspan.nn.torch.int8_weights import MANY_ROWS, Int8WeightLinear, quantize_weights
from longspan.pipelines.backends import load_writer

PROMPT = torch.tensor([[5, 9, 3, 44, 7]])


@pytest.fixture
def models():
    """A small model, and the same with weights in 8 bits."""
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        config = DiffLlamaConfig(
            vocab_size=97, hidden_size=64, intermediate_size=96, num_attention_heads=4, num_hidden_layers=2
        )
        made.append(DiffLlamaForCausalLM(config).eval())
    quantize_weights(made[1])
    return made


@pytest.mark.parametrize("rows", [1, 5, MANY_ROWS])
def test_products_are_those_of_float32_up_to_the_rounding_of_the_weights(rows):
    torch.manual_seed(rows)
    layer, x = torch.nn.Linear(48, 40), torch.randn(rows, 48)
    expected, mine = layer(x), Int8WeightLinear(layer)(x)
    assert mine.dtype == torch.float32
    assert (mine - expected).norm() / expected.norm() < 0.02  # a level is 1/127 of the greatest weight


def test_a_step_computes_what_the_model_does(models, monkeypatch):
    plain, small = models
    calls = []
    step = DiffLlamaStep.__call__
    monkeypatch.setattr(DiffLlamaStep, "__call__", lambda *a, **k: calls.append(1) or step(*a, **k))
    written = small.generate(PROMPT, max_new_tokens=6, do_sample=False)
    assert len(calls) == 5  # all tokens but the first, which the prompt gives
    with torch.no_grad():
        logits, exact = (model(written).logits for model in (small, plain))
    assert (logits - exact).norm() / exact.norm() < 0.05
    assert torch.equal(written[:, PROMPT.shape[1] :], logits[:, PROMPT.shape[1] - 1 : -1].argmax(-1))


def test_a_hook_is_called(models):
    small, seen = models[1], []
    small.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_: seen.append(1))
    small.generate(PROMPT, max_new_tokens=4, do_sample=False)
    assert len(seen) == 4


def test_weights_take_a_quarter_of_the_memory(models):
    sizes = [sum(x.numel() * x.element_size() for x in (*m.parameters(), *m.buffers())) for m in models]
    embeddings = models[0].model.embed_tokens.weight.numel() * 4
    assert sizes[1] - embeddings < 0.3 * (sizes[0] - embeddings)


def test_the_door(models, tmp_path):
    from longspan.checkpoints.hub import Source

    models[0].save_pretrained(tmp_path)
    writer = load_writer("torch", Source(tmp_path), "text-generation", dtype="int8")
    assert writer.environment["dtype"] == "int8"
    assert isinstance(writer.model.lm_head, Int8WeightLinear)
    assert writer.write([PROMPT[0].tolist()], {"max_new_tokens": 3, "do_sample": False})
    with pytest.raises(InputError, match="dtype='int8' needs framework='torch'"):
        load_writer("flax", Source(tmp_path), "text-generation", dtype="int8")
    with pytest.raises(InputError, match="needs the name of a model"):
        load_writer("torch", models[0], "text-generation", dtype="int8")
    with pytest.raises(InputError, match="made of float32 ones"):
        quantize_weights(models[0].bfloat16())
