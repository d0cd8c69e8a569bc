"""Tensors and files that the checkpoint tests share."""

import json

import numpy as np
import pytest


@pytest.fixture
def tensors():
    """Tensors of several types and ranks, with one scalar and one without values."""
    rng = np.random.default_rng(7)
    return {
        "encoder.layer.0.weight": rng.normal(size=(5, 3)).astype(np.float32),
        "encoder.layer.0.bias": rng.normal(size=5).astype(np.float64),
        "half": rng.normal(size=(2, 3, 4)).astype(np.float16),
        "scalar": np.array(rng.normal(), np.float32),
        "empty": np.empty((0, 4), np.float32),
        "ids": rng.integers(-9, 9, size=(3, 2)),
        "mask": rng.random(7) > 0.5,
        "größe": rng.integers(0, 255, size=4).astype(np.uint8),
    }


def same(first, second):
    """Equal type, shape and bits."""
    first, second = np.asarray(first), np.asarray(second)
    return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()


def safetensors_bytes(header, data=b""):
    """A safetensors file from a header (a dictionary, or raw bytes) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data
