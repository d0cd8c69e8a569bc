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
from longspan.ops.fast_paths import NOT_AVAILABLE, fast_path
from longspan.ops.torch.dropout import dropout as drop
from longspan.ops.torch.modes import is_traced

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


class Settings(NamedTuple):
    """What attention needs besides tensors.

    Attributes:
        activation: `"softmax"`, `"laplace"` or `"relu2"`.
        causal: A query sees its own and earlier positions only.
        offset: Position of the first query, where keys have the positions 0 … S − 1.
        centre: Index of distance 0 in the table of a Toeplitz bias.
        dropout: Probability with which a weight is dropped.
        seed: Of the dropout of the first tile.
    """

    activation: str
    causal: bool
    offset: int
    centre: int
    dropout: float
    seed: int


def attention_weights(
    scores: Tensor, mask: Tensor | None, settings: Settings, *, first: int = 0, overwrite: bool = False
) -> Tensor:
    """Activation of the scores; 0 where a key may not be seen.

    Args:
        scores: (..., T, S).
        mask: (..., ≥ S), True = a key that may be seen.
        settings: See `Settings`.
        first: Index of the first of these queries.
        overwrite: The weights take the place of the scores in memory; needs that no gradient is asked for.

    Returns:
        (..., T, S).
    """
    visible = _visible(scores, mask, settings, first)
    if settings.activation == "softmax":
        return _masked_softmax(scores, visible, some_rows_empty=mask is not None, overwrite=overwrite)
    if settings.activation == "laplace":
        weights = _laplace(scores, overwrite=overwrite)
    else:
        weights = scores.relu_().square_() if overwrite else F.relu(scores).square()
    if visible is None:
        return weights
    return weights.masked_fill_(~visible, 0.0) if overwrite else weights.masked_fill(~visible, 0.0)


def _visible(scores: Tensor, mask: Tensor | None, settings: Settings, first: int) -> Tensor | None:
    """Which scores count, broadcastable to (..., T, S); None for all."""
    queries, keys = scores.shape[-2:]
    visible = None if mask is None else mask[..., None, :keys]
    if not settings.causal or settings.offset + first + 1 >= keys:
        return visible
    row, column = (torch.arange(size, device=scores.device) for size in (queries, keys))
    reached = column <= row.unsqueeze(1) + (settings.offset + first)
    return reached if visible is None else visible & reached


def _masked_softmax(
    scores: Tensor, visible: Tensor | None, *, some_rows_empty: bool, overwrite: bool = False
) -> Tensor:
    if overwrite and scores.device.type == "cpu":  # whose kernel reads each row before it writes it
        if visible is not None:
            scores.masked_fill_(~visible, torch.finfo(scores.dtype).min)
        torch.softmax(scores, dim=-1, out=scores)
        seen = None if visible is None or not some_rows_empty else visible.any(dim=-1, keepdim=True)
        return scores if seen is None else scores.masked_fill_(~seen, 0.0)
    if visible is None:
        return torch.softmax(scores, dim=-1)
    weights = torch.softmax(scores.masked_fill(~visible, torch.finfo(scores.dtype).min), dim=-1)
    return weights.masked_fill(~visible.any(dim=-1, keepdim=True), 0.0) if some_rows_empty else weights


def _laplace(scores: Tensor, *, overwrite: bool = False) -> Tensor:
    """½ (1 + erf((x − √½) √(2π))), in float32 at least: near x = 0 the sum cancels to a hundredth."""
    if overwrite and scores.dtype in (torch.float32, torch.float64):
        scores.sub_(math.sqrt(0.5)).mul_(math.sqrt(2.0 * math.pi)).erf_()
        return scores.mul_(0.5).add_(0.5)
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return (0.5 + 0.5 * torch.erf((wide - math.sqrt(0.5)) * math.sqrt(2.0 * math.pi))).to(scores.dtype)


def toeplitz_matrix(table: Tensor, start: int, shape: tuple[int, ...]) -> Tensor:
    """The matrix table[start + j − i] of a shape (T, S)."""
    rows, columns = shape
    if torch.compiler.is_compiling():  # `unfold` would fix the length of a traced graph
        row, column = (torch.arange(size, device=table.device) for size in (rows, columns))
        return table[start + column - row.unsqueeze(1)]
    return table[start - rows + 1 : start + columns].unfold(0, columns, 1).flip(0)


#: rows from which on a rotary bias is added to the scores: it is small against them, and costs less than wider keys
_MANY_ROWS = 4


_TILED = "gated_attention_tiles.tiled_attention"


class _Request(NamedTuple):
    return_weights: bool
    tracing: bool


def _tiled_why_not(request: _Request) -> str | None:
    if request.return_weights:
        return "it keeps no attention weights"
    if request.tracing:
        return "a traced graph cannot hold its loop over tiles"
    return None if fast_path(_TILED) is not None else NOT_AVAILABLE


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
    chunks: int | None = None,
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
        return_weights: Return the weights, before dropout; gradients reach what is returned.
        chunks: Rows that each sequence was cut into; it shapes the weights that are returned.

    Returns:
        Output (R, T, V), and the weights (R, T, S), with `chunks` (R / chunks, chunks, T, S), or None. Under autocast
        in its dtype, else in that of the query.

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
            if chosen == "tiled" and not causal and offset == 0 and not torch.is_grad_enabled():
                table, centre = _distances(by_query, by_key), shape[0] - 1
            elif chosen == "tiled" or torch.compiler.is_compiling() or query.shape[0] < _MANY_ROWS:
                query, key = _append(query, by_query), _append(key, by_key)
            else:
                matrix = by_query @ by_key.t()
        seed = int(torch.randint(2**62, ())) if chosen == "tiled" and dropout > 0.0 else 0
        settings = Settings(activation, causal, offset, centre, dropout, seed)
        if chosen == "tiled":
            tiled = fast_path(_TILED)
            assert tiled is not None
            return tiled(query, key, value, table, mask, settings).to(dtype), None
        if table is not None:
            matrix = toeplitz_matrix(table, centre - offset, shape)
        key = key.transpose(1, 2)
        scores = torch.bmm(query, key) if matrix is None else torch.baddbmm(matrix, query, key)
        weights = attention_weights(scores, mask, settings)
        returned = None
        if return_weights:
            returned = (weights if chunks is None else weights.unflatten(0, (-1, chunks))).to(dtype)
            weights = (returned if chunks is None else returned.flatten(0, 1)).to(working)
        product = (None if is_traced(weights) else fast_path("matmul.batched_matmul")) or torch.bmm
        output = product(drop(weights, dropout), value)
        return output.to(dtype), returned


def _choose(implementation: str, query: Tensor, key: Tensor, return_weights: bool) -> str:
    tracing = is_traced(query)
    if implementation == "auto" and not tracing and not return_weights:
        pays_off = fast_path("gated_attention_tiles.pays_off")
        implementation = "tiled" if pays_off is not None and pays_off(query, key) else "eager"
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


def _distances(by_query: Tensor, by_key: Tensor) -> Tensor:
    """⟨R_i α, R_j β⟩ by distance j − i alone, of which it is a function: (T, Z) and (S, Z) -> (T + S − 1,)."""
    behind, ahead = by_query[1:] @ by_key[0], by_key @ by_query[0]
    return torch.cat([behind.flip(0), ahead])


def _append(tensor: Tensor, rows: Tensor) -> Tensor:
    """(R, T, Z) and (T, Z) -> (R, T, 2Z)."""
    return torch.cat([tensor, rows.to(tensor.dtype).expand(tensor.shape[0], -1, -1)], dim=-1)
