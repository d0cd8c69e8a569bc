"""Small models of every family, and batches whose rows are padded in every way."""

from __future__ import annotations

import torch
from tests.parity.torch_parity import randomise

import longspan

SIZES = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
LONGT5 = {
    "vocab_size": 61,
    "d_model": 24,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 2,
    "local_radius": 3,
    "global_block_size": 4,
    "decoder_start_token_id": 0,
}
MEGA = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "shared_representation_size": 8,
    "ema_projection_size": 3,
    "nffn_hidden_size": 32,
}
CHUNKS = {"use_chunking": True, "chunk_size": 8}
DECODER = {"is_decoder": True, "bidirectional": False}
#: name -> (class, config, settings, implementations)
FAMILIES = {
    "bert": ("BertModel", "BertConfig", SIZES, ("auto", "packed", "sdpa", "eager")),
    "longformer": (
        "LongformerModel",
        "LongformerConfig",
        {**SIZES, "attention_window": 8, "max_position_embeddings": 90},
        ("chunked", "blocked"),
    ),
    "longt5-local": ("LongT5EncoderModel", "LongT5Config", LONGT5, ("chunked", "blocked")),
    "longt5-tglobal": (
        "LongT5EncoderModel",
        "LongT5Config",
        {**LONGT5, "encoder_attention_type": "transient-global"},
        ("chunked", "blocked"),
    ),
    "diffllama": ("DiffLlamaModel", "DiffLlamaConfig", {**SIZES, "pad_token_id": 0}, ("chunked", "eager", "sdpa")),
    "mega": ("MegaModel", "MegaConfig", MEGA, ("eager", "tiled")),
    "mega-laplace": ("MegaModel", "MegaConfig", {**MEGA, **CHUNKS, "attention_activation": "laplace"}, ("tiled",)),
    "mega-chunks": ("MegaModel", "MegaConfig", {**MEGA, **CHUNKS}, ("eager", "tiled")),
    "mega-decoder": ("MegaModel", "MegaConfig", {**MEGA, **CHUNKS, **DECODER}, ("eager", "tiled")),
}  # fmt: skip
#: below, at and above windows of 4 and 8, chunks of 8 and blocks of 32
LENGTHS = (1, 2, 7, 9, 17, 33)
ALL_LENGTHS = (*range(1, 36), 47, 48, 49, 63, 64, 65)


def make_model(family, implementation):
    """A model with random weights."""
    name, config, settings, _ = FAMILIES[family]
    model = getattr(longspan, name)(getattr(longspan, config)(**settings, attn_implementation=implementation))
    return randomise(model, scale=0.1 if "longt5" in family else 0.25)


def masks(length):
    """Rows without padding; padded at the right, the left, at both ends; with holes; of one token; of none."""
    mask = torch.ones(7, length, dtype=torch.long)
    mask[1, length - length // 3 :] = 0
    mask[2, : length // 3 + (length > 1)] = 0
    mask[3, : length // 4], mask[3, length - length // 4 :] = 0, 0
    mask[4, 1 : length - 1 : 3] = 0
    mask[5] = 0
    mask[5, length // 2] = 1
    mask[6] = 0
    return mask


def ids_of(mask):
    """Random ids, padding included: what stands there must not matter."""
    return torch.randint(3, 61, mask.shape, generator=torch.Generator().manual_seed(mask.shape[1]))
