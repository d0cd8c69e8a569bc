"""Scores and weights of MEGA's attention, all at once or tile by tile.

Axes: R rows (batch × chunks), T queries, S keys, Z width of queries and keys, V width of values.

The tiled form computes a few hundred queries at a time and keeps no weights for the backward pass, which computes them
again: memory linear in T and S, and on a CPU a tile that stays in cache. On the way back, for G the gradient of the
output and W the dropped weights,

    dV += Wᵀ G,   dW = G Vᵀ,   dQ = dS K,   dK += dSᵀ Q,   dS = dW through dropout and activation
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from longspan.ops.torch.matmul import matmul

#: most queries of a tile
TILE_QUERIES = 256
#: fewest queries of a tile, however many keys there are
_MIN_TILE_QUERIES = 64
#: about how many scores a tile holds
_TILE_SCORES = {"cpu": 2**20}
_TILE_SCORES_ELSEWHERE = 2**26


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


def tile_scores(device: torch.device) -> int:
    """About how many scores a tile should hold."""
    return _TILE_SCORES.get(device.type, _TILE_SCORES_ELSEWHERE)


def attention_weights(scores: Tensor, mask: Tensor | None, settings: Settings, *, first: int = 0) -> Tensor:
    """Activation of the scores; 0 where a key may not be seen.

    Args:
        scores: (..., T, S).
        mask: (..., ≥ S), True = a key that may be seen.
        settings: See `Settings`.
        first: Index of the first of these queries.

    Returns:
        (..., T, S).
    """
    visible = _visible(scores, mask, settings, first)
    if settings.activation == "softmax":
        return _masked_softmax(scores, visible, some_rows_empty=mask is not None)
    weights = _laplace(scores) if settings.activation == "laplace" else F.relu(scores).square()
    return weights if visible is None else weights.masked_fill(~visible, 0.0)


def _visible(scores: Tensor, mask: Tensor | None, settings: Settings, first: int) -> Tensor | None:
    """Which scores count, broadcastable to (..., T, S); None for all."""
    queries, keys = scores.shape[-2:]
    visible = None if mask is None else mask[..., None, :keys]
    if not settings.causal or settings.offset + first + 1 >= keys:
        return visible
    row, column = (torch.arange(size, device=scores.device) for size in (queries, keys))
    reached = column <= row.unsqueeze(1) + (settings.offset + first)
    return reached if visible is None else visible & reached


def _masked_softmax(scores: Tensor, visible: Tensor | None, *, some_rows_empty: bool) -> Tensor:
    if visible is None:
        return torch.softmax(scores, dim=-1)
    weights = torch.softmax(scores.masked_fill(~visible, torch.finfo(scores.dtype).min), dim=-1)
    return weights.masked_fill(~visible.any(dim=-1, keepdim=True), 0.0) if some_rows_empty else weights


def _laplace(scores: Tensor) -> Tensor:
    """½ (1 + erf((x − √½) √(2π))), in float32 at least: near x = 0 the sum cancels to a hundredth."""
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return (0.5 + 0.5 * torch.erf((wide - math.sqrt(0.5)) * math.sqrt(2.0 * math.pi))).to(scores.dtype)


def toeplitz_matrix(table: Tensor, start: int, shape: tuple[int, ...]) -> Tensor:
    """The matrix table[start + j − i] of a shape (T, S)."""
    rows, columns = shape
    if torch.compiler.is_compiling():  # `unfold` would fix the length of a traced graph
        row, column = (torch.arange(size, device=table.device) for size in (rows, columns))
        return table[start + column - row.unsqueeze(1)]
    return table[start - rows + 1 : start + columns].unfold(0, columns, 1).flip(0)


class _Tile(NamedTuple):
    number: int
    row: int
    queries: slice
    keys: slice


def _tiles(query: Tensor, key: Tensor, settings: Settings) -> Iterator[_Tile]:
    (num_rows, num_queries, _), num_keys = query.shape, key.shape[1]
    queries = min(max(tile_scores(query.device) // num_keys, _MIN_TILE_QUERIES), TILE_QUERIES)
    firsts = range(0, num_queries, queries)
    for row in range(num_rows):
        for index, first in enumerate(firsts):
            last = min(first + queries, num_queries)
            seen = settings.offset + last if settings.causal else num_keys
            yield _Tile(row * len(firsts) + index, row, slice(first, last), slice(0, seen))


def _dropout_factor(weights: Tensor, settings: Settings, tile: _Tile) -> Tensor | None:
    """0 or 1/(1 − p) for each weight of a tile, the same whenever it is asked for."""
    if settings.dropout == 0.0:
        return None
    generator = torch.Generator(weights.device).manual_seed(settings.seed + tile.number)
    keep = 1.0 - settings.dropout
    return torch.empty_like(weights).bernoulli_(keep, generator=generator).div_(keep)


def tiled_attention(
    query: Tensor, key: Tensor, value: Tensor, table: Tensor | None, mask: Tensor | None, settings: Settings
) -> Tensor:
    """Attention in tiles; see the module's docstring.

    Args:
        query: Queries divided by τ, (R, T, Z).
        key: (R, S, Z).
        value: (R, S, V).
        table: Toeplitz bias, one number per distance, or None.
        mask: (R, S), True = a key that may be seen.
        settings: See `Settings`.

    Returns:
        (R, T, V).
    """
    output: Tensor = _TiledAttention.apply(query, key, value, table, mask, settings)
    return output


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        query: Tensor, key: Tensor, value: Tensor, table: Tensor | None, mask: Tensor | None, settings: Settings
    ) -> Tensor:
        output = value.new_empty(*query.shape[:2], value.shape[2])
        for tile in _tiles(query, key, settings):
            _, weights = _scores_and_weights(tile, query, key, table, mask, settings)
            factor = _dropout_factor(weights, settings, tile)
            weights = weights if factor is None else weights.mul_(factor)
            output[tile.row, tile.queries] = matmul(weights, value[tile.row, tile.keys])
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:5])
        ctx.settings = inputs[5]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, table, mask = ctx.saved_tensors
        settings: Settings = ctx.settings
        d_query = torch.empty_like(query)
        # transposed, (R, Z, S) and (R, V, S): so every product below reads its first factor by rows
        d_key, d_value = (torch.zeros_like(tensor.transpose(1, 2)) for tensor in (key, value))
        d_table = None if table is None else torch.zeros_like(table)
        for tile in _tiles(query, key, settings):
            row, queries, keys = tile.row, tile.queries, tile.keys
            scores, weights = _scores_and_weights(tile, query, key, table, mask, settings)
            d_output = gradient[row, queries]
            d_weights = matmul(d_output, value[row, keys].t())
            factor = _dropout_factor(weights, settings, tile)
            dropped = weights if factor is None else weights * factor
            d_value[row, :, keys] += matmul(d_output.t().contiguous(), dropped)
            d_weights = d_weights if factor is None else d_weights.mul_(factor)
            d_scores = _activation_backward(d_weights, weights, scores, settings)
            d_query[row, queries] = matmul(d_scores, key[row, keys])
            d_key[row, :, keys] += matmul(query[row, queries].t().contiguous(), d_scores)
            if d_table is not None:
                _add_diagonals(d_table, d_scores, settings.centre - settings.offset - queries.start)
        return d_query, d_key.transpose(1, 2), d_value.transpose(1, 2), d_table, None, None


def _scores_and_weights(
    tile: _Tile, query: Tensor, key: Tensor, table: Tensor | None, mask: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Scores and weights of a tile, both (queries, keys)."""
    first = tile.queries.start
    scores = matmul(query[tile.row, tile.queries], key[tile.row, tile.keys].t())
    if table is not None:
        scores += toeplitz_matrix(table, settings.centre - settings.offset - first, scores.shape)
    row_mask = None if mask is None else mask[tile.row]
    return scores, attention_weights(scores, row_mask, settings, first=first)


def _activation_backward(d_weights: Tensor, weights: Tensor, scores: Tensor, settings: Settings) -> Tensor:
    """Gradient of the scores; weights of 0 say which keys a query may not see."""
    if settings.activation == "softmax":
        return torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
    if settings.activation == "relu2":
        return d_weights.mul_(2.0).mul_(weights.sqrt())
    # the density of the Gaussian: √2 exp(−2π (x − √½)²)
    density = scores.sub(math.sqrt(0.5)).square_().mul_(-2.0 * math.pi).exp_().mul_(math.sqrt(2.0))
    return d_weights.mul_(density).masked_fill_(weights == 0.0, 0.0)


def _add_diagonals(d_table: Tensor, d_scores: Tensor, start: int) -> None:
    """Add the sum of each diagonal of a (T, S) matrix to its entry of the table; see `toeplitz_matrix`."""
    rows, columns = d_scores.shape
    # row u of the flipped matrix belongs at offset u: a line that is one longer than the result skews it
    skewed = F.pad(d_scores.flip(0), (0, rows)).flatten()[: rows * (rows + columns - 1)]
    d_table[start - rows + 1 : start + columns] += skewed.view(rows, rows + columns - 1).sum(dim=0)
