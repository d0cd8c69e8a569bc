r"""Single-head attention of MEGA: softmax, Laplace or squared-ReLU weights and a relative bias.

Axes: R rows (batch × chunks), T queries, S keys, Z width of queries and keys, V width of values, P positions.

    weights = f(q kᵀ / τ + b),  output = weights v            (Ma et al., arXiv 2209.10655, eq. 16)

with τ = √Z for the softmax, and for the element-wise f the number of keys that the query sees. A key that a query may
not see has the weight 0; a query that sees no key gives 0.

The rotary bias b_ij = ⟨R_i α, R_j β⟩ is itself a product of queries and keys, so that [q/τ, R_i α] and [k, R_j β] give
the biased scores without a T×S bias.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from longspan.errors import InputError
from longspan.ops.dispatch import Dispatcher
from longspan.ops.torch.gated_attention_tiles import (
    TILE_QUERIES,
    Settings,
    attention_weights,
    tile_scores,
    tiled_attention,
    toeplitz_matrix,
)
from longspan.ops.torch.matmul import batched_matmul

ATTENTION_ACTIVATIONS = ("softmax", "laplace", "relu2")


class RotaryBias(NamedTuple):
    """b_ij = ⟨query_i, key_j⟩: two learned vectors, turned by the angles of each position.

    Attributes:
        query: R_i α, (P, Z).
        key: R_j β, (P, Z).
    """

    query: Tensor
    key: Tensor


class ToeplitzBias(NamedTuple):
    """b_ij = weight[centre + j − i].

    Attributes:
        weight: One number per distance, (2P − 1,).
        centre: Index of distance 0.
    """

    weight: Tensor
    centre: int


def rotary_table(length: int, width: int, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles i · 10000^(−2m/width) of position i and pair m.

    Args:
        length: Number of positions P.
        width: Width Z of the rotated vectors, even.
        device: Where the table lives.

    Returns:
        Cosines and sines, each (P, Z/2), float32.
    """
    half = width // 2
    frequency = torch.exp(torch.arange(half, device=device, dtype=torch.float32) * (-math.log(10000.0) / half))
    angle = torch.arange(length, device=device, dtype=torch.float32).unsqueeze(1) * frequency
    return torch.cos(angle), torch.sin(angle)


def rotate(vector: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """R_i v for every position i of a table: first and second half of v are the two coordinates of the pairs.

    Args:
        vector: v, (1, Z).
        table: From `rotary_table`, each (P, Z/2).

    Returns:
        (P, Z), in float32 at least.
    """
    cos, sin = table
    first, second = vector.to(torch.promote_types(vector.dtype, cos.dtype)).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


#: rows from which on a rotary bias is added to the scores: it is small against them, and costs less than wider keys
_MANY_ROWS = 4


class _Request(NamedTuple):
    return_weights: bool
    tracing: bool


def _tiled_why_not(request: _Request) -> str | None:
    if request.return_weights:
        return "it keeps no attention weights"
    return "a traced graph cannot hold its loop over tiles" if request.tracing else None


GATED_ATTENTION: Dispatcher[_Request] = Dispatcher(
    "gated attention", {"tiled": _tiled_why_not, "eager": lambda request: None}
)


def gated_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    activation: str,
    bias: RotaryBias | ToeplitzBias,
    mask: Tensor | None = None,
    causal: bool = False,
    offset: int = 0,
    dropout: float = 0.0,
    implementation: str = "auto",
    return_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention within each row.

    Args:
        query: (R, T, Z).
        key: (R, S, Z).
        value: (R, S, V).
        activation: `"softmax"`, `"laplace"` (Gaussian CDF of mean √½ and deviation √(1/4π)) or `"relu2"`.
        bias: Relative bias; must reach from query `offset` + T − 1 to key S − 1.
        mask: (R, S), True = a key that may be seen.
        causal: Query t sees keys 0 … `offset` + t only.
        offset: Position of the first query, where keys have the positions 0 … S − 1.
        dropout: Probability with which a weight is dropped.
        implementation: `"eager"` holds all scores at once and can return the weights; `"tiled"` holds those of a
            few hundred queries, in the backward pass too; `"auto"` takes the second where it saves something.
        return_weights: Return the weights, before dropout.

    Returns:
        Output (R, T, V), and the weights (R, T, S) or None. Under autocast in its dtype, else in that of the query.

    Raises:
        InputError: the activation or implementation is unknown, or the implementation cannot serve.
    """
    if activation not in ATTENTION_ACTIVATIONS:
        known = ", ".join(ATTENTION_ACTIVATIONS)
        raise InputError(f"activation must be one of {known}. Received: {activation!r}")
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    chosen = _choose(implementation, query, key, return_weights)
    with torch.autocast(device, enabled=False):
        query = query * _inverse_scale(query, key, mask, activation, causal=causal, offset=offset)
        working = _working_dtype(dtype, device, activation)
        query, key, value = query.to(working), key.to(working), value.to(working)
        shape = query.shape[1], key.shape[1]
        table, centre, matrix = None, 0, None
        if isinstance(bias, ToeplitzBias):
            table, centre = bias.weight.to(working), bias.centre
        else:
            by_query, by_key = bias.query[offset : offset + shape[0]].to(working), bias.key[: shape[1]].to(working)
            if chosen == "tiled" or torch.compiler.is_compiling() or query.shape[0] < _MANY_ROWS:
                query, key = _append(query, by_query), _append(key, by_key)
            else:
                matrix = by_query @ by_key.t()
        seed = int(torch.randint(2**62, ())) if chosen == "tiled" and dropout > 0.0 else 0
        settings = Settings(activation, causal, offset, centre, dropout, seed)
        if chosen == "tiled":
            return tiled_attention(query, key, value, table, mask, settings).to(dtype), None
        if table is not None:
            matrix = toeplitz_matrix(table, centre - offset, shape)
        key = key.transpose(1, 2)
        scores = torch.bmm(query, key) if matrix is None else torch.baddbmm(matrix, query, key)
        weights = attention_weights(scores, mask, settings)
        output = batched_matmul(F.dropout(weights, dropout, training=dropout > 0.0), value)
        return output.to(dtype), weights.to(dtype) if return_weights else None


def _choose(implementation: str, query: Tensor, key: Tensor, return_weights: bool) -> str:
    tracing = torch.compiler.is_compiling()
    if implementation == "auto" and not tracing and not return_weights:
        queries, scores = query.shape[1], query.shape[0] * query.shape[1] * key.shape[1]
        implementation = "tiled" if queries > TILE_QUERIES and scores > tile_scores(query.device) else "eager"
    return GATED_ATTENTION.choose(implementation, _Request(return_weights, tracing), tracing=tracing)


def _working_dtype(dtype: torch.dtype, device: str, activation: str) -> torch.dtype:
    """float16 is slow on a CPU, and squares of small scores vanish in it."""
    wider = dtype == torch.float16 and (device == "cpu" or activation == "relu2")
    return torch.float32 if wider else dtype


def _inverse_scale(
    query: Tensor, key: Tensor, mask: Tensor | None, activation: str, *, causal: bool, offset: int
) -> Tensor | float:
    """1/τ, (R, T, 1) or broadcastable to it: for element-wise activations one over the number of visible keys."""
    if activation == "softmax":
        return float(query.shape[-1] ** -0.5)
    keys = key.shape[1]
    if mask is None and not causal:
        return 1.0 / keys
    if mask is None:
        seen = torch.arange(1, keys + 1, device=key.device).unsqueeze(0)
    else:
        seen = mask.cumsum(dim=-1) if causal else mask.sum(dim=-1, keepdim=True)
    if causal:
        seen = seen[:, offset : offset + query.shape[1]]
    wide = torch.promote_types(query.dtype, torch.float32)
    return seen.unsqueeze(-1).clamp(min=1).to(wide).reciprocal()


def _append(tensor: Tensor, rows: Tensor) -> Tensor:
    """(R, T, Z) and (T, Z) -> (R, T, 2Z)."""
    return torch.cat([tensor, rows.to(tensor.dtype).expand(tensor.shape[0], -1, -1)], dim=-1)
