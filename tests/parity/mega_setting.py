"""Tiny settings and inputs of MEGA, and comparisons, for the tests of the Flax and the Keras classes."""

from __future__ import annotations

import numpy as np
import torch
from tests.tolerances import assert_close

SETTINGS = {
    "vocab_size": 59,
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "intermediate_size": 20,
    "ema_projection_size": 3,
    "shared_representation_size": 8,
    "nffn_hidden_size": 14,
    "max_positions": 40,
    "type_vocab_size": 3,
    "num_labels": 5,
    "dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "nffn_activation_dropout_prob": 0.0,
}
DECODER = {"is_decoder": True, "bidirectional": False}
CHUNKS = {"use_chunking": True, "chunk_size": 6}
CLASSES = {
    "MegaModel": {**CHUNKS, "num_hidden_layers": 2},
    "MegaForCausalLM": {**DECODER, **CHUNKS},
    "MegaForMaskedLM": {},
    "MegaForSequenceClassification": {},
    "MegaForMultipleChoice": {},
    "MegaForTokenClassification": CHUNKS,
    "MegaForQuestionAnswering": {"num_labels": 2},
}
#: rows of 19 tokens: full, padded on the right, with a hole, padded on the left, and nothing but padding
ROWS, LENGTH = 5, 19
VARIANTS = {
    "laplace-chunks-simple": {
        **CHUNKS, "attention_activation": "laplace", "relative_positional_bias": "simple",
        "normalization_type": "rmsnorm", "add_token_type_embeddings": True,
    },
    "relu2-truncated": {"attention_activation": "relu2", "truncation": 4, "normalization_type": "layernorm"},
    "after-plain": {
        "normalize_before_mega": False, "normalize_before_ffn": False, "normalization_type": "layernorm",
        "norm_affine": False, "use_normalized_ffn": False, "activation": "gelu",
    },
    "decoder-laplace": {
        **DECODER, **CHUNKS, "attention_activation": "laplace", "truncation": 9, "add_lm_hidden_dense_layer": False,
    },
    "cross": {**DECODER, "add_cross_attention": True, "tie_word_embeddings": True, "norm_affine": False},
}  # fmt: skip


def inputs_of(name, *, settings=None):
    """Inputs and labels of a class; labels at padding are ignored."""
    rng = np.random.default_rng(1)
    mask = np.ones((ROWS, LENGTH), np.int64)
    mask[1, 11:] = mask[2, 7:9] = mask[3, :7] = mask[4] = 0
    ids = rng.integers(2, 59, (ROWS, LENGTH))
    per_token = np.where(mask == 0, -100, rng.integers(0, 5, mask.shape))
    inputs = {"input_ids": ids, "attention_mask": mask}
    labels = {
        "MegaModel": {},
        "MegaForSequenceClassification": {"labels": np.array([4, 0, 2, 2, 1])},
        "MegaForMultipleChoice": {"labels": np.array([0, 1])},
        "MegaForQuestionAnswering": {
            "start_positions": np.array([3, 0, 99, 8, 1]),  # 99 lies outside and does not count
            "end_positions": np.array([5, 2, 99, 18, 2]),
        },
    }.get(name, {"labels": per_token})
    if name == "MegaForMultipleChoice":
        inputs = {key: value[:4].reshape(2, 2, LENGTH) for key, value in inputs.items()}
    if (settings or {}).get("add_token_type_embeddings"):
        inputs["token_type_ids"] = rng.integers(0, 3, inputs["input_ids"].shape)
    if (settings or {}).get("add_cross_attention"):
        inputs["encoder_hidden_states"] = rng.normal(size=(ROWS, 7, 12)).astype("f")
        inputs["encoder_attention_mask"] = np.array([[1] * 7, [1] * 4 + [0] * 3, [0] * 2 + [1] * 5, [1] * 7, [0] * 7])
    return inputs, labels


def tensors(arrays):
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def real(name, value, keep):
    """Zero the rows at padding: of weights (B, chunks, C, C) and (B, S, T), and of states (B, S, ...)."""
    value = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    if name == "attentions":
        if value.shape[1] > 1:  # chunks begin at the first real token
            kept = [np.roll(row, -int(row.argmax())) for row in keep]
            kept = np.pad(np.array(kept), ((0, 0), (0, value.shape[1] * value.shape[2] - keep.shape[1])))
            return value * kept.reshape(*value.shape[:3], 1)
        return value * keep[:, None, :, None]
    return value * keep.reshape(*keep.shape, *[1] * (value.ndim - 2)) if value.shape[:2] == keep.shape else value


def compare(ours, expected, keep):
    names = [name for name in expected if name not in ("loss", "past_key_values")]
    assert set(names) == set(ours) - {"past_key_values"}
    for name in names:
        several = isinstance(expected[name], tuple)
        pairs = zip(ours[name], expected[name], strict=True) if several else [(ours[name], expected[name])]
        for index, (mine, theirs) in enumerate(pairs):
            mine, theirs = (real(name, value, keep) for value in (mine, theirs))
            if name in ("pooler_output", "logits") and mine.ndim == 2:
                rows = slice(0, 3)  # the first token of the others is padding, whose state is free
                mine, theirs = mine[rows], theirs[rows]
            assert_close(mine, theirs, what=f"{name}[{index}]")
