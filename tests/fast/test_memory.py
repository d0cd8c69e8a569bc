"""Tensors of a forward pass without gradients: no more of them than the formulas need are alive at a time."""

from __future__ import annotations

import pytest
import torch
from benchmarks.memory import tensor_memory

import longspan
from longspan.fast import differential_chunked

LENGTH = 4096
SIZES = {"vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
T5 = {"vocab_size": 50, "d_model": 64, "d_kv": 16, "num_heads": 4, "d_ff": 64, "num_layers": 3, "local_radius": 15}
#: name -> a model, and how many tensors (B, S, H) may be alive: input, queries, keys and values of a layer, whose
#: contexts take the place of the queries, and what comes before or in chunks
MODELS = {
    "longformer": (lambda: longspan.LongformerModel(longspan.LongformerConfig(
        **SIZES, attention_window=32, max_position_embeddings=LENGTH + 2)), 6.3),
    "longt5-local": (lambda: longspan.LongT5EncoderModel(longspan.LongT5Config(**T5)), 6.5),
    "longt5-global": (lambda: longspan.LongT5EncoderModel(longspan.LongT5Config(
        **T5, encoder_attention_type="transient-global")), 7.2),
    "diffllama": (lambda: longspan.DiffLlamaModel(longspan.DiffLlamaConfig(
        **SIZES, num_key_value_heads=4, max_position_embeddings=LENGTH)), 14.5),
}  # fmt: skip
PROJECTIONS = {"longformer": "query", "longt5-local": "q", "longt5-global": "q", "diffllama": "q_proj"}


@pytest.mark.parametrize("name", MODELS)
def test_few_states_are_alive_at_a_time(name, monkeypatch):
    monkeypatch.setattr(differential_chunked, "BLOCK_BYTES", 1 << 19)
    build, most = MODELS[name]
    model, ids = build().eval(), torch.randint(3, 50, (1, LENGTH))
    state = LENGTH * SIZES["hidden_size"] * 4

    @torch.no_grad()
    def run():
        model(input_ids=ids)

    run()
    assert tensor_memory(run) / state < most


@pytest.mark.parametrize("name", MODELS)
def test_who_looks_at_the_queries_finds_them(name):
    model, ids = MODELS[name][0]().eval(), torch.randint(3, 50, (1, 96))
    with torch.no_grad():
        expected = model(input_ids=ids).last_hidden_state
        seen = []
        for path, module in model.named_modules():
            if path.endswith(f".{PROJECTIONS[name]}"):
                module.register_forward_hook(lambda module, args, output: seen.append((module, args[0], output)))
        found = model(input_ids=ids).last_hidden_state
        assert len(seen) == 3
        for module, states, output in seen:
            torch.testing.assert_close(output, torch.nn.functional.linear(states, module.weight, module.bias))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
