"""Sliding-window attention as a loop over chunks of queries: matmul, softmax, matmul on a few kept buffers.

No weights outlive their chunk: the backward pass computes them again, so that both passes need memory for one chunk
besides tensors of the size of the inputs. On a CPU the scores of a chunk stay in the cache, which makes this the
fastest of the implementations there. Axes as in `sliding_window`; a chunk has R queries and sees C = G + span keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from longspan.ops import patterns
from longspan.ops.torch.sliding_window_blocked import bias_tile

if TYPE_CHECKING:
    from longspan.ops.torch.sliding_window import ExtraKeys

#: additive mask: finite, so that a query without keys gives no NaN, and so low that exp() of it is 0 beside any score
MASKED, MASKED_FLOAT16 = -1e30, -3e4
#: scores that a chunk may hold, over all heads; 4 MiB of float32 stay in the cache of a core
CHUNK_SCORES = 1 << 20
MIN_ROWS, MAX_ROWS = 16, 128


def chunked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    left: int,
    right: int,
    scale: float,
    mask: Tensor | None,
    bias: Tensor | None,
    extra: ExtraKeys | None,
    dropout: float,
) -> Tensor:
    """Output (B, H, S, E); see `sliding_window_attention`."""
    dtype = query.dtype
    if dtype == torch.float16 and query.device.type == "cpu":  # no fast float16 products; and no overflow
        query, key, value = query.float(), key.float(), value.float()
        if extra is not None:
            extra = extra._replace(key=extra.key.float(), value=extra.value.float())
    seed = int(torch.randint(2**62, ())) if dropout > 0.0 else 0
    length, num_extra = query.shape[2], 0 if extra is None else extra.key.shape[2]
    rows = _chunk_rows(query.shape[1], num_extra + left + right)
    plan = _Plan(left=left, right=right, scale=scale, rows=min(rows, max(length, 1)), dropout=dropout, seed=seed)
    extra_key, extra_value, extra_mask, extra_bias, position = extra or (None,) * 5
    tensors = (query, key, value, bias, extra_key, extra_value, extra_bias, mask, extra_mask, position)
    output: Tensor = _Chunked.apply(*tensors, plan)
    return output.to(dtype)


@dataclass(frozen=True)
class _Plan:
    """The settings of one call."""

    left: int
    right: int
    scale: float
    rows: int
    dropout: float
    seed: int


def _chunk_rows(heads: int, keys: int) -> int:
    rows = MAX_ROWS
    while rows > MIN_ROWS and heads * rows * (keys + rows) > CHUNK_SCORES:
        rows //= 2
    return rows


@dataclass
class _Chunk:
    """One chunk of queries of one sequence, and the weights of what it sees."""

    batch: int
    rows: slice  # of the queries
    span: slice  # of the keys in the window
    tile: slice  # of the columns of a whole span
    query: Tensor  # (H, R, D)
    keys: Tensor  # (H, C, D), the extra keys first
    values: Tensor  # (H, C, E)
    weights: Tensor  # (H, R, C), before dropout


class _Walk:
    """Walks over the chunks of a call, reusing the buffers; a chunk is valid until the next one."""

    def __init__(self, inputs: Sequence[Any], plan: _Plan) -> None:
        query, key, value, bias, extra_key, extra_value, extra_bias, mask, extra_mask, position = inputs
        self.query, self.key, self.value, self.plan = query, key, value, plan
        self.extra_key, self.extra_value, self.extra_bias = extra_key, extra_value, extra_bias
        self.position, self.bias = position, bias
        self.num_extra = 0 if extra_key is None else extra_key.shape[2]
        self.tile = _band_tile(query, bias, plan)
        self.mask_bias = None if mask is None else _additive(mask, query.dtype)
        self.extra_mask_bias = None if extra_mask is None else _additive(extra_mask, query.dtype)
        self.alive = _queries_with_keys(mask, extra_mask, self.num_extra, plan)
        heads, columns = query.shape[1], self.num_extra + self.tile.shape[-1]
        self._keys = query.new_empty(heads, columns, query.shape[-1])
        self._values = query.new_empty(heads, columns, value.shape[-1])
        self._scores = query.new_empty(heads * plan.rows * columns)
        self._weights = query.new_empty(heads * plan.rows * columns)
        self._dropout = query.new_empty(heads * plan.rows * columns if plan.dropout > 0.0 else 0)
        self._generator = torch.Generator(query.device).manual_seed(plan.seed) if plan.dropout > 0.0 else None

    def __iter__(self) -> Iterator[_Chunk]:
        length, rows = self.query.shape[2], self.plan.rows
        for batch in range(self.query.shape[0]):
            if self.extra_key is not None and self.extra_value is not None:
                self._keys[:, : self.num_extra] = self.extra_key[batch]
                self._values[:, : self.num_extra] = self.extra_value[batch]
            for start in range(0, length, rows):
                yield self._chunk(batch, start, min(start + rows, length))

    def _chunk(self, batch: int, start: int, stop: int) -> _Chunk:
        plan, extra = self.plan, self.num_extra
        span = slice(max(start - plan.left, 0), min(stop + plan.right, self.query.shape[2]))
        first = span.start - (start - plan.left)
        tile = slice(first, first + span.stop - span.start)
        columns = extra + span.stop - span.start
        self._keys[:, extra:columns] = self.key[batch, :, span]
        self._values[:, extra:columns] = self.value[batch, :, span]
        keys, values = self._keys[:, :columns], self._values[:, :columns]
        query = self.query[batch, :, start:stop]
        scores = self.view(self._scores, stop - start, columns)
        self._write_bias(scores, batch, slice(start, stop), span, tile)
        scores.baddbmm_(query, keys.transpose(1, 2), alpha=plan.scale)
        weights = self.view(self._weights, stop - start, columns)
        torch.softmax(scores, dim=-1, out=weights)
        return _Chunk(batch, slice(start, stop), span, tile, query, keys, values, weights)

    def view(self, buffer: Tensor, rows: int, columns: int) -> Tensor:
        """The beginning of a buffer as (H, rows, columns)."""
        heads = self.query.shape[1]
        return buffer[: heads * rows * columns].view(heads, rows, columns)

    def _write_bias(self, scores: Tensor, batch: int, rows: slice, span: slice, tile: slice) -> None:
        """Fill the scores with everything that does not depend on the queries."""
        extra_scores, window_scores = scores[..., : self.num_extra], scores[..., self.num_extra :]
        band = self.tile[:, : rows.stop - rows.start, tile]
        if self.mask_bias is None:
            window_scores.copy_(band)
        else:
            torch.add(band.expand_as(window_scores), self.mask_bias[batch, span], out=window_scores)
        if self.num_extra == 0:
            return
        if self.extra_bias is None or self.position is None:
            extra_scores.zero_()
        else:
            start = self.num_extra - 1 - self.position[batch, rows].clamp(min=0)
            extra_scores.copy_(self.extra_bias.unfold(-1, self.num_extra, 1)[:, start])
        if self.extra_mask_bias is not None:
            extra_scores.add_(self.extra_mask_bias[batch])

    def dropout_factor(self, chunk: _Chunk) -> Tensor | None:
        """0 for a dropped weight and 1 / (1 - p) for a kept one; call it once per chunk, in order."""
        if self._generator is None:
            return None
        keep = 1.0 - self.plan.dropout
        factor = self.view(self._dropout, *chunk.weights.shape[1:])
        return factor.bernoulli_(keep, generator=self._generator).div_(keep)

    def zero_rows_without_keys(self, states: Tensor, chunk: _Chunk) -> Tensor:
        """Zero the queries of `states` (H, R, E) that see no key, in place."""
        if self.alive is not None:
            states.mul_(self.alive[chunk.batch, chunk.rows].to(states.dtype)[:, None])
        return states


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, plan = inputs
        ctx.save_for_backward(*tensors)
        ctx.plan = plan
        query, value = tensors[0], tensors[2]
        batch, heads, length, _ = query.shape
        output = query.new_empty(batch, length, heads, value.shape[-1])
        with torch.autocast(query.device.type, enabled=False):
            walk = _Walk(tuple(tensors), plan)
            for chunk in walk:
                factor = walk.dropout_factor(chunk)
                weights = chunk.weights if factor is None else chunk.weights.mul_(factor)
                result = walk.zero_rows_without_keys(torch.bmm(weights, chunk.values), chunk)
                output[chunk.batch, chunk.rows] = result.transpose(0, 1)
        return output.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grad_output.device.type, enabled=False):
            walk = _Walk(ctx.saved_tensors, ctx.plan)
            grads = _Gradients(walk)
            for chunk in walk:
                _backward_chunk(walk, grads, chunk, grad_output)
            return (*grads.results(), None, None, None, None)


def _backward_chunk(walk: _Walk, grads: _Gradients, chunk: _Chunk, grad_output: Tensor) -> None:
    scale = walk.plan.scale
    grad = walk.zero_rows_without_keys(grad_output[chunk.batch, :, chunk.rows].clone(), chunk)  # (H, R, E)
    grad_weights = torch.bmm(grad, chunk.values.transpose(1, 2))  # (H, R, C)
    factor = walk.dropout_factor(chunk)
    if factor is None:
        grads.add_to_values(chunk, torch.bmm(chunk.weights.transpose(1, 2), grad))
    else:
        grad_weights.mul_(factor)
        grads.add_to_values(chunk, torch.bmm(factor.mul_(chunk.weights).transpose(1, 2), grad))
    grad_scores = torch._softmax_backward_data(grad_weights, chunk.weights, -1, chunk.weights.dtype)
    grads.add_to_biases(chunk, grad_scores)
    grads.add_to_keys(chunk, torch.bmm(grad_scores.transpose(1, 2), chunk.query).mul_(scale))
    grads.query[chunk.batch, chunk.rows] = torch.bmm(grad_scores, chunk.keys).mul_(scale).transpose(0, 1)


class _Gradients:
    """Sums of the gradients over the chunks; float32 where many chunks add to one place."""

    def __init__(self, walk: _Walk) -> None:
        self.walk = walk
        query, value = walk.query, walk.value
        batch, heads, length, head_dim = query.shape
        wide = torch.promote_types(query.dtype, torch.float32)
        self.query = query.new_empty(batch, length, heads, head_dim)
        self.key = query.new_zeros(batch, length, heads, head_dim, dtype=wide)
        self.value = query.new_zeros(batch, length, heads, value.shape[-1], dtype=wide)
        self.extra_key = query.new_zeros(batch, heads, walk.num_extra, head_dim, dtype=wide)
        self.extra_value = query.new_zeros(batch, heads, walk.num_extra, value.shape[-1], dtype=wide)
        self.tile = walk.tile.new_zeros(walk.tile.shape, dtype=wide) if walk.bias is not None else None
        self.extra_bias = None if walk.extra_bias is None else torch.zeros_like(walk.extra_bias, dtype=wide)

    def add_to_values(self, chunk: _Chunk, grad: Tensor) -> None:
        self.extra_value[chunk.batch] += grad[:, : self.walk.num_extra]
        self.value[chunk.batch, chunk.span] += grad[:, self.walk.num_extra :].transpose(0, 1)

    def add_to_keys(self, chunk: _Chunk, grad: Tensor) -> None:
        self.extra_key[chunk.batch] += grad[:, : self.walk.num_extra]
        self.key[chunk.batch, chunk.span] += grad[:, self.walk.num_extra :].transpose(0, 1)

    def add_to_biases(self, chunk: _Chunk, grad_scores: Tensor) -> None:
        extra = self.walk.num_extra
        if self.tile is not None:
            self.tile[:, : grad_scores.shape[1], chunk.tile] += grad_scores[..., extra:]
        if self.extra_bias is None or self.walk.position is None:
            return
        # queries at the same place on the axis of the extra keys share a row of biases: sum them first
        place = self.walk.position[chunk.batch, chunk.rows].clamp(min=0)
        places, row = torch.unique(place, return_inverse=True)
        by_place = self.extra_bias.new_zeros(grad_scores.shape[0], len(places), extra)
        by_place.index_add_(1, row, grad_scores[..., :extra].to(by_place.dtype))
        for index, start in enumerate((extra - 1 - places).tolist()):
            self.extra_bias[:, start : start + extra] += by_place[:, index]

    def results(self) -> tuple[Tensor | None, ...]:
        """Of query, key, value, bias, extra_key, extra_value, extra_bias."""
        walk, dtype = self.walk, self.query.dtype
        bias = extra_bias = None
        if self.tile is not None and walk.bias is not None:
            bias = _diagonal_sums(self.tile, walk.plan).to(walk.bias.dtype)
        if self.extra_bias is not None and walk.extra_bias is not None:
            extra_bias = self.extra_bias.to(walk.extra_bias.dtype)
        states = (self.query.transpose(1, 2), self.key.transpose(1, 2).to(dtype), self.value.transpose(1, 2).to(dtype))
        extras: tuple[Tensor | None, ...] = (None, None)
        if walk.extra_key is not None:
            extras = (self.extra_key.to(dtype), self.extra_value.to(dtype))
        return (*states, bias, *extras, extra_bias)


def _band_tile(query: Tensor, bias: Tensor | None, plan: _Plan) -> Tensor:
    """What is added to the scores of any chunk: the bias inside the band, `MASKED` outside; (1 or H, R, span)."""
    band = torch.from_numpy(patterns.band(plan.rows, plan.left, plan.right)).to(query.device)
    if bias is None:
        return _additive(band, query.dtype).unsqueeze(0)
    return bias_tile(bias.to(query.dtype), plan.rows).masked_fill(~band, _masked(query.dtype))


def _diagonal_sums(tile: Tensor, plan: _Plan) -> Tensor:
    """The gradient of a bias by relative position from that of its tile: (H, R, span) -> (H, left + right + 1)."""
    heads, rows, span = tile.shape
    diagonal = tile.as_strided((heads, rows, plan.left + plan.right + 1), (rows * span, span + 1, 1))
    return diagonal.sum(dim=1)


def _masked(dtype: torch.dtype) -> float:
    return MASKED_FLOAT16 if dtype == torch.float16 else MASKED


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a boolean mask is True, the additive mask elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, _masked(dtype))


def _queries_with_keys(mask: Tensor | None, extra_mask: Tensor | None, num_extra: int, plan: _Plan) -> Tensor | None:
    """Which queries see a key at all, (B, S); None if all do."""
    if mask is None or (num_extra > 0 and extra_mask is None):
        return None
    length = mask.shape[1]
    before = torch.nn.functional.pad(mask.long().cumsum(dim=1), (1, 0))  # (B, S + 1): keys before a position
    position = torch.arange(length, device=mask.device)
    first, behind = (position - plan.left).clamp(min=0), (position + plan.right + 1).clamp(max=length)
    alive = before[:, behind] > before[:, first]
    return alive if num_extra == 0 else alive | extra_mask.any(dim=1, keepdim=True)  # type: ignore[union-attr]
