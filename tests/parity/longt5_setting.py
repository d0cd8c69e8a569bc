"""Tiny LongT5s and inputs for the tests of the Flax and the Keras classes."""

from __future__ import annotations

import numpy as np
import torch

SETTINGS = {
    "vocab_size": 61,
    "d_model": 24,
    "d_kv": 5,
    "d_ff": 30,
    "num_heads": 4,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "local_radius": 4,
    "global_block_size": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "dropout_rate": 0.0,
}
#: both kinds of attention, of feed-forward layers, and of output projections
KINDS = {
    "local": {"encoder_attention_type": "local", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "transient-global": {"encoder_attention_type": "transient-global", "feed_forward_proj": "relu"},
}
CLASSES = ["LongT5EncoderModel", "LongT5Model", "LongT5ForConditionalGeneration"]
TARGETS = 6


def inputs_of(name, length, side):
    """Three rows: a full one, one padded on a side, and one that is padding but for two tokens."""
    rng = np.random.default_rng(length)
    mask = np.ones((3, length), np.int64)
    for row, real in ((1, -(-2 * length // 3)), (2, min(2, length))):
        mask[row] = np.arange(length) < real if side == "right" else np.arange(length) >= length - real
    inputs = {"input_ids": rng.integers(2, 61, (3, length)), "attention_mask": mask}
    if name != "LongT5EncoderModel":
        inputs["decoder_input_ids"] = rng.integers(0, 61, (3, TARGETS))
        inputs["decoder_attention_mask"] = np.array([[1] * 6, [1] * 4 + [0] * 2, [1, 0, 1, 1, 0, 1]])
    return inputs


def tensors(arrays):
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
