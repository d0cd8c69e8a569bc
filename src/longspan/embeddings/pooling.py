"""From the states of a text's tokens to one vector.

All modes but `max` are weighted sums over tokens, `pooled = W · states` with W known before the model runs, so a
framework needs one batched matrix product whatever the mode.

Axes: B texts, S tokens with padding, M weighted modes, H hidden size, D embedding size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longspan.products import product

Floats = npt.NDArray[np.float32]

MAX = "max"
LAYER_NORM_EPSILON = 1e-5
#: Modes in the order in which sentence-transformers concatenates them.
POOLING_MODES = ("cls", MAX, "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def pooled_tokens(lengths: npt.NDArray[np.int64], size: int, skipped: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which tokens are pooled.

    Args:
        lengths: (B,) real tokens of each text, padded on the right; 0 in rows that fill a batch up.
        size: S.
        skipped: (B,) leading tokens that are not pooled (those of a prompt); the last real token is pooled always.

    Returns:
        (B, S), True at pooled tokens.
    """
    positions = np.arange(size)
    starts = np.minimum(skipped, lengths - 1)
    mask: npt.NDArray[np.bool_] = (positions >= starts[:, None]) & (positions < lengths[:, None])
    return mask


def pooling_weights(modes: Sequence[str], mask: npt.NDArray[np.bool_]) -> Floats:
    """Weight of every token for every mode but `max`.

    Of the tokens t = 1 ... S of a text, n are pooled, from a to z. `cls` is 1 at t = a, `lasttoken` 1 at t = z; at
    pooled tokens `mean` is 1 / n, `mean_sqrt_len_tokens` 1 / sqrt(n), and `weightedmean` t / sum of the pooled t.

    Args:
        modes: Names of `POOLING_MODES`.
        mask: (B, S), True at the tokens that are pooled, one stretch a row.

    Returns:
        (B, M, S) weights, modes in the given order without `max`; 0 in rows without any token.
    """
    counts = np.maximum(mask.sum(axis=1, keepdims=True), 1)
    weighted = mask * np.arange(1, mask.shape[1] + 1)
    ranks = np.cumsum(mask, axis=1)
    tables = {
        "cls": mask & (ranks == 1),
        "lasttoken": mask & (ranks == counts),
        "mean": mask / counts,
        "mean_sqrt_len_tokens": mask / np.sqrt(counts),
        "weightedmean": weighted / np.maximum(weighted.sum(axis=1, keepdims=True), 1),
    }
    chosen = [tables[mode] for mode in modes if mode != MAX]
    empty = np.zeros((len(mask), 0, mask.shape[1]), np.float32)
    return np.stack(chosen, axis=1).astype(np.float32) if chosen else empty


def mode_places(modes: Sequence[str]) -> list[int]:
    """Where the vector of each mode is among pooled ones, of which `max` comes last."""
    weighted = [mode for mode in modes if mode != MAX]
    return [len(weighted) if mode == MAX else weighted.index(mode) for mode in modes]


def order_modes(modes: Sequence[str], pooled: Floats) -> Floats:
    """Concatenate pooled vectors (B, M (+ 1), H), `max` last, in the order of `modes`: (B, len(modes) · H)."""
    return pooled[:, np.array(mode_places(modes))].reshape(len(pooled), -1)


@dataclass(frozen=True)
class Dense:
    """A projection of pooled vectors: `activation(x Wᵀ + b)`.

    Attributes:
        weight: (out, in).
        bias: (out,), or None.
        activation: Name in `ACTIVATIONS`.
    """

    weight: Floats
    bias: Floats | None
    activation: str

    def __call__(self, vectors: Floats) -> Floats:
        """(N, in) -> (N, out)."""
        projected = product(vectors, self.weight)
        return ACTIVATIONS[self.activation](projected if self.bias is None else projected + self.bias)


@dataclass(frozen=True)
class LayerNorm:
    """Layer normalisation of pooled vectors.

    Attributes:
        weight: (D,).
        bias: (D,).
    """

    weight: Floats
    bias: Floats

    def __call__(self, vectors: Floats) -> Floats:
        """(N, D) -> (N, D)."""
        centered = vectors - vectors.mean(axis=1, keepdims=True)
        variance = np.mean(np.square(centered), axis=1, keepdims=True)
        normed: Floats = centered / np.sqrt(variance + np.float32(LAYER_NORM_EPSILON)) * self.weight + self.bias
        return normed


def normalize(vectors: Floats) -> Floats:
    """Vectors (N, D) scaled to length 1; shorter than 1e-12 they are divided by 1e-12, so zero stays zero."""
    norms = np.sqrt(np.square(vectors).sum(axis=1, keepdims=True))
    unit: Floats = vectors / np.maximum(norms, np.float32(1e-12))
    return unit


def _sigmoid(x: Floats) -> Floats:
    result: Floats = np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * x))
    return result


def _gelu(x: Floats) -> Floats:
    erf = np.array([math.erf(value) for value in (x.ravel() / math.sqrt(2)).tolist()], np.float32).reshape(x.shape)
    result: Floats = np.float32(0.5) * x * (1 + erf)
    return result


#: Last part of the name of an activation class -> function on arrays.
ACTIVATIONS: dict[str, Callable[[Floats], Floats]] = {
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, np.float32(0)),
    "Sigmoid": _sigmoid,
    "SiLU": lambda x: x * _sigmoid(x),
    "GELU": _gelu,
}
