"""MEGA in PyTorch: what callers can do wrong, and what they are told."""

from __future__ import annotations

import pytest
import torch

from longspan import MegaConfig, MegaForCausalLM, MegaModel
from longspan.errors import ConfigError, InputError

TINY = {
    "vocab_size": 59,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "intermediate_size": 20,
    "ema_projection_size": 3,
    "shared_representation_size": 8,
    "nffn_hidden_size": 14,
    "max_positions": 24,
}
DECODER = {"is_decoder": True, "bidirectional": False}
IDS = torch.arange(12).view(2, 6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"use_chunking": True},
            "use_chunking needs a positive chunk_size. Received: use_chunking=True, chunk_size=-1",
        ),
        ({"truncation": 0}, "truncation must be None or positive. Received: truncation=0"),
        ({"shared_representation_size": 7}, "a rotary bias needs an even shared_representation_size. Received"),
        ({"relative_positional_bias": "alibi"}, "relative_positional_bias must be one of .*Received: .*'alibi'"),
        (
            {"attention_activation": "relu"},
            "attention_activation must be one of .*Received: attention_activation='relu'",
        ),
        ({"activation": "tanh"}, "activation must be one of .*Received: activation='tanh'"),
        ({"normalization_type": "groupnorm"}, "normalization_type must be one of .*Received: .*'groupnorm'"),
        ({"num_attention_heads": 2}, "num_attention_heads must be 1. Received: num_attention_heads=2"),
        ({"dropout_prob": 1.0}, r"dropout_prob must lie in \[0, 1\). Received: dropout_prob=1.0"),
        (
            {"relative_positional_bias": "simple", "use_chunking": True, "chunk_size": 25},
            "a simple bias needs 0 < chunk_size <= max_positions .*Received: chunk_size=25, max_positions=24",
        ),
    ],
)
def test_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        MegaConfig(**{**TINY, **settings})


@pytest.mark.parametrize("cls", [MegaModel, MegaForCausalLM])
def test_a_decoder_must_not_look_ahead(cls):
    with pytest.raises(ConfigError, match="bidirectional"):
        cls(MegaConfig(**TINY, is_decoder=True, bidirectional=True))


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({}, {}, "exactly one of input_ids and inputs_embeds must be given. Received: neither"),
        ({}, {"input_ids": IDS + 50}, r"input_ids must lie in \[0, vocab_size=59\). Received: 59"),
        ({}, {"input_ids": IDS[:, :0]}, "the input must have at least one token. Received: 0 tokens"),
        (
            {"add_token_type_embeddings": True},
            {"input_ids": IDS, "token_type_ids": IDS},
            r"token_type_ids must lie in \[0, type_vocab_size=2\)",
        ),
        ({}, {"input_ids": IDS, "past_key_values": ()}, r"past_key_values needs a decoder \(config.is_decoder=True\)"),
        (
            DECODER,
            {"input_ids": IDS[:, :1], "past_key_values": ((),)},
            "must have one entry per layer.*Received: 1 ent",
        ),
        (
            {**DECODER, "add_cross_attention": True},
            {"input_ids": IDS},
            "a model with cross-attention needs encoder_hidden_states. Received: None",
        ),
        (
            DECODER,
            {"input_ids": IDS, "encoder_hidden_states": torch.ones(2, 3, 12)},
            "encoder_hidden_states needs config.is_decoder=True and config.add_cross_attention=True",
        ),
        (
            {"relative_positional_bias": "simple"},
            {"input_ids": torch.ones(1, 25, dtype=torch.long)},
            "relative_positional_bias='simple' reaches max_positions=24 tokens. Received: 25 tokens. Truncate",
        ),
    ],
)
def test_inputs(settings, arguments, message):
    with pytest.raises(InputError, match=message):
        MegaModel(MegaConfig(**{**TINY, **settings}))(**arguments)


def test_a_cache_takes_one_token_at_a_time():
    model = MegaForCausalLM(MegaConfig(**{**TINY, **DECODER})).eval()
    cache = model(IDS, use_cache=True).past_key_values
    with pytest.raises(InputError, match="exactly one new token can be read at a time. Received: 2 tokens"):
        model(IDS[:, :2], past_key_values=cache)
    with pytest.raises(InputError, match="the cache of MEGA cannot be shortened. Received: max_length=3"):
        cache.crop(3)
