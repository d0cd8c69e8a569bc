"""MEGA as one graph: compiled without breaks, and exported for every length."""

from __future__ import annotations

import pytest
import torch
from tests.parity.torch_parity import randomise
from tests.tolerances import assert_close

from longspan import MegaConfig, MegaForCausalLM, MegaModel
from longspan.errors import InputError

TINY = {
    "vocab_size": 59,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "intermediate_size": 20,
    "ema_projection_size": 3,
    "shared_representation_size": 8,
    "nffn_hidden_size": 14,
    "max_positions": 300,
}
DECODER = {"is_decoder": True, "bidirectional": False}
CHUNKS = {"use_chunking": True, "chunk_size": 16}
CASES = {
    "encoder": {},
    "encoder-chunks-laplace": {**CHUNKS, "attention_activation": "laplace"},
    "encoder-simple-truncated": {"relative_positional_bias": "simple", "truncation": 7},
    "decoder": {**DECODER, "attention_activation": "relu2"},
    "decoder-chunks": {**DECODER, **CHUNKS},
    "seq2seq": {**DECODER, "add_cross_attention": True, "normalization_type": "batchnorm"},
}


def inputs(settings, length):
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(2, 59, (2, length), generator=generator)
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, length // 2 :] = 0
    result = {"input_ids": ids, "attention_mask": mask}
    if settings.get("add_cross_attention"):
        result["encoder_hidden_states"] = torch.randn(2, 9, 12, generator=generator)
    return result


def make(settings):
    return randomise(MegaModel(MegaConfig(**TINY, **settings)), scale=0.3)


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_compiles_without_graph_breaks(settings):
    model = make(settings)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (70, 130):
        arguments = inputs(settings, length)
        expected = model(**arguments).last_hidden_state
        actual = compiled(**arguments).last_hidden_state
        assert_close(actual, expected)
        model.zero_grad()
        expected.square().sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        actual.square().sum().backward()
        for name, parameter in model.named_parameters():
            if name in gradients:
                torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-3)
    torch._dynamo.reset()


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_exports_for_every_length(settings):
    model = make(settings)
    batch, length = torch.export.Dim("batch", max=8), torch.export.Dim("length", min=2, max=300)
    shapes = {"input_ids": {0: batch, 1: length}, "attention_mask": {0: batch, 1: length}}
    example = inputs(settings, 50)
    if "encoder_hidden_states" in example:
        shapes["encoder_hidden_states"] = {0: batch, 1: torch.export.Dim("source", min=2, max=300)}
    program = torch.export.export(model, (), example, dynamic_shapes=shapes, strict=False)
    for other in (3, 16, 64, 200):
        arguments = inputs(settings, other)
        with torch.no_grad():
            actual, expected = program.module()(**arguments), model(**arguments)
        assert_close(actual.last_hidden_state, expected.last_hidden_state)
    if "is_decoder" in settings:
        assert actual.past_key_values is None
        with pytest.raises(InputError, match=r"an exported graph keeps no cache\. Received: use_cache=True"):
            torch.export.export(model, (), example | {"use_cache": True}, strict=False)


@torch.no_grad()
def test_a_decoding_step_compiles():
    model = randomise(MegaForCausalLM(MegaConfig(**TINY, **DECODER, **CHUNKS)), scale=0.3)
    step = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    ids = torch.randint(2, 59, (1, 22))
    full = model(ids).logits
    output = model(ids[:, :18])
    for position in range(18, 22):
        output = step(ids[:, position : position + 1], past_key_values=output.past_key_values)
        assert_close(output.logits[:, 0], full[:, position])
    torch._dynamo.reset()
