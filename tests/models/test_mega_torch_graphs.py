"""MEGA as one graph: compiled without breaks, and exported for every length."""

from __future__ import annotations

import pytest
import torch
from tests.parity.torch_parity import randomise
from tests.tolerances import assert_close, gradient_error
from torch._dynamo.testing import CompileCounterWithBackend

from longspan import MegaConfig, MegaForCausalLM, MegaModel
from longspan.errors import InputError

TINY = {
    "vocab_size": 59,
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "intermediate_size": 20,
    "ema_projection_size": 3,
    "shared_representation_size": 8,
    "nffn_hidden_size": 14,
    "max_positions": 300,
}
DECODER = {"is_decoder": True, "bidirectional": False}
CHUNKS = {"use_chunking": True, "chunk_size": 16}
CASES = {
    "encoder-chunks-laplace": {**CHUNKS, "attention_activation": "laplace"},
    "encoder-simple-truncated": {"relative_positional_bias": "simple", "truncation": 7},
    "decoder-chunks": {**DECODER, **CHUNKS},
    "seq2seq": {**DECODER, "add_cross_attention": True, "attention_activation": "relu2"},
}
PARAMETERS = [
    pytest.param(
        settings, id=name, marks=pytest.mark.wide if name in ("encoder-simple-truncated", "decoder-chunks") else ()
    )
    for name, settings in CASES.items()
]


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


@pytest.mark.parametrize("settings", PARAMETERS)
def test_compiles_without_graph_breaks(settings):
    model = make(settings)
    arguments = inputs(settings, 70)
    states = [
        call(**arguments).last_hidden_state
        for call in (model, torch.compile(model, fullgraph=True, backend="aot_eager"))
    ]
    assert_close(states[1], states[0])
    gradients = []
    for output in states:
        model.zero_grad()
        output.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, expected in gradients[0].items():
        assert gradient_error(gradients[1][name], expected) < 1e-3, name  # sums over 140 tokens in another order
    torch._dynamo.reset()


@torch.no_grad()
def test_a_compiled_model_takes_other_lengths():
    model = make(CASES["encoder-chunks-laplace"])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (70, 130, 131):
        arguments = inputs({}, length)
        assert_close(compiled(**arguments).last_hidden_state, model(**arguments).last_hidden_state)
    torch._dynamo.reset()


@torch.no_grad()
def test_one_graph_serves_lengths_with_and_without_padding():
    """Lengths of as many blocks: whether they fill the last one makes no graph of their own."""
    model, counter = make(CASES["encoder-chunks-laplace"]), CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=True)
    for length in (70, 80, 96):
        ids = torch.randint(3, 50, (2, length))
        assert_close(compiled(ids).last_hidden_state, model(ids).last_hidden_state)
    assert counter.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("settings", PARAMETERS)
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
