"""Attention of MEGA tile by tile, in the place of `longspan.ops.torch.gated_attention.weighted_sum`.

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

from longspan.fast.dropout import dropout_factors
from longspan.fast.matmul import lacks_instructions, matmul
from longspan.ops.torch.gated_attention import Settings, attention_weights, toeplitz_matrix

#: most queries of a tile
TILE_QUERIES = 512
#: fewest queries of a tile, however many keys there are
_MIN_TILE_QUERIES = 128
#: about how many scores a tile holds
_TILE_SCORES = {"cpu": 2**20}
_TILE_SCORES_ELSEWHERE = 2**26


def pays_off(query: Tensor, key: Tensor) -> bool:
    """True if the scores of queries (R, T, Z) and keys (R, S, Z) are more than a tile holds."""
    queries, scores = query.shape[1], query.shape[0] * query.shape[1] * key.shape[1]
    return queries > TILE_QUERIES and scores > tile_scores(query.device)


def tile_scores(device: torch.device) -> int:
    """About how many scores a tile should hold."""
    return _TILE_SCORES.get(device.type, _TILE_SCORES_ELSEWHERE)


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
    return dropout_factors(torch.empty_like(weights), settings.dropout, generator)


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
    dtype = query.dtype
    if lacks_instructions(query):
        query, key, value = query.float(), key.float(), value.float()
        table = None if table is None else table.float()
    output: Tensor = _TiledAttention.apply(query, key, value, table, mask, settings)
    return output.to(dtype)


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        query: Tensor, key: Tensor, value: Tensor, table: Tensor | None, mask: Tensor | None, settings: Settings
    ) -> Tensor:
        output = value.new_empty(*query.shape[:2], value.shape[2])
        room = None  # of the scores of one tile after the other: fresh memory costs more than the softmax
        for tile in _tiles(query, key, settings):
            if room is None:
                room = query.new_empty((tile.queries.stop - tile.queries.start) * key.shape[1])
            weights = _weights_in(room, tile, query, key, table, mask, settings)
            factor = _dropout_factor(weights, settings, tile)
            weights = weights if factor is None else weights.mul_(factor)
            target, own = output[tile.row, tile.queries], value[tile.row, tile.keys]
            if table is not None and _turns(settings):
                target.copy_(matmul(weights, own).flip(0))
            else:
                matmul(weights, own, out=target)
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


def _turns(settings: Settings) -> bool:
    """True if the queries of a tile stand in reverse: then the rows of a Toeplitz bias are a view of its table."""
    return not settings.causal


def _weights_in(
    room: Tensor,
    tile: _Tile,
    query: Tensor,
    key: Tensor,
    table: Tensor | None,
    mask: Tensor | None,
    settings: Settings,
) -> Tensor:
    """Weights of a tile, (queries, keys), in the memory of `room`; without a gradient."""
    own, keys = query[tile.row, tile.queries], key[tile.row, tile.keys]
    scores = room[: own.shape[0] * keys.shape[0]].view(own.shape[0], keys.shape[0])
    start = settings.centre - settings.offset - tile.queries.start
    if table is None:
        scores = matmul(own, keys.t(), out=scores)
    elif _turns(settings):
        bias = table[start - len(own) + 1 : start + len(keys)].unfold(0, len(keys), 1)
        scores = matmul(own.flip(0), keys.t(), out=scores.copy_(bias), adds=True)
    else:
        scores = matmul(own, keys.t(), out=scores).add_(toeplitz_matrix(table, start, scores.shape))
    row_mask = None if mask is None else mask[tile.row]
    return attention_weights(scores, row_mask, settings, first=tile.queries.start, overwrite=True)


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
