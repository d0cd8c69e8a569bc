"""Tiny Longformers and inputs for the tests of the Keras classes."""

from __future__ import annotations

import numpy as np
from tests.keras import setting

SETTINGS = {**setting.SETTINGS, "max_position_embeddings": 90, "attention_window": [4, 8]}
CLASSES = (
    "TFLongformerModel",
    "TFLongformerForMaskedLM",
    "TFLongformerForSequenceClassification",
    "TFLongformerForMultipleChoice",
    "TFLongformerForTokenClassification",
    "TFLongformerForQuestionAnswering",
)
ROWS, LENGTH = 4, 27  # above the windows, odd, no multiple of any


def config_for(**settings):
    from longspan import LongformerConfig

    return LongformerConfig(**{**SETTINGS, **settings})


def attention_mask(length=LENGTH):
    """All real; right padding; left padding behind the first token (heads read it); holes."""
    mask = np.ones((ROWS, length), np.int64)
    mask[1, -(length // 3) or length :] = 0
    mask[2, 1:7] = 0
    mask[3, 14:17] = 0
    return mask


def inputs_of(name, *, length=LENGTH, labelled=True):
    """Inputs and labels of a class, with three separators in a row; labels at padding are ignored."""
    generator = np.random.default_rng(length)
    mask = attention_mask(length)
    ids = np.where(mask == 1, generator.integers(3, 97, mask.shape), 1)
    for place in (length // 4, length // 4 + 1, length - 1):
        ids[:, place] = 2
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": generator.integers(0, 3, mask.shape)}
    if name == "TFLongformerForMultipleChoice":
        inputs = {key: value.reshape(2, 2, length) for key, value in inputs.items()}
    per_token = np.where(mask == 1, generator.integers(0, 5, mask.shape), -100)
    labels = {
        "TFLongformerForMaskedLM": {"labels": per_token},
        "TFLongformerForTokenClassification": {"labels": per_token},
        "TFLongformerForSequenceClassification": {"labels": np.array([4, 0, 2, 2])},
        "TFLongformerForMultipleChoice": {"labels": np.array([1, 0])},
        "TFLongformerForQuestionAnswering": {
            "start_positions": np.array([3, 0, 99, 8]) % (length + 5),
            "end_positions": np.array([5, 2, 99, 18]) % (length + 5),
        },
    }
    return inputs | (labels.get(name, {}) if labelled else {})


def global_mask(mask, kind):
    """Which tokens are global: none, the first, all, or differing numbers in the rows, some of them at padding."""
    chosen = np.zeros_like(mask)
    if kind == "one":
        chosen[:, 0] = 1
    elif kind == "all":
        chosen[:] = 1
    elif kind == "mixed":
        chosen[0, [0, 5, 9]] = 1
        chosen[2, 2:12] = 1  # from inside the padding to behind it
        chosen[3, 20] = 3
    return chosen
