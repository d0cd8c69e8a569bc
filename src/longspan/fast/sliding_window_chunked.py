"""Sliding-window attention as a loop over chunks of queries: matmul, softmax, matmul on a few kept buffers.

No weights outlive their chunk: the backward pass computes them again, so that both passes need memory for one chunk
besides tensors of the size of the inputs. On a CPU the scores of a chunk stay in the cache, which makes this the
fastest of the implementations there. Axes as in `sliding_window`; a chunk holds R queries of N sequences, each of which
sees C = G + span keys, the extra keys first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from longspan.fast.dropout import dropout_factors
from longspan.fast.matmul import lacks_instructions
from longspan.ops import patterns
from longspan.ops.torch.sliding_window_blocked import bias_tile

if TYPE_CHECKING:
    from longspan.ops.torch.sliding_window import ExtraKeys

#: additive mask: finite, so that a query without keys gives no NaN, and so low that exp() of it is 0 beside any score
MASKED, MASKED_FLOAT16 = -1e30, -3e4
#: scores that a chunk may hold; 4 MiB of float32 stay in the cache of a core
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
    overwrite_query: bool = False,
) -> Tensor:
    """Output (B, H, S, E); see `sliding_window_attention`."""
    dtype = query.dtype
    # no overflow in float16; and half-precision products without instructions for them are several times as slow
    if lacks_instructions(query) or (dtype == torch.float16 and query.device.type == "cpu"):
        query, key, value = query.float(), key.float(), value.float()
        overwrite_query = True  # a copy of ours
        if extra is not None:
            extra = extra._replace(key=extra.key.float(), value=extra.value.float())
    batch, heads, length, _ = query.shape
    extra_key, extra_value, extra_mask, extra_bias, position = extra or (None,) * 5
    num_extra = 0 if extra_key is None else extra_key.shape[2]
    rows = _chunk_rows(heads, length, left + right + num_extra)
    scores = heads * rows * (num_extra + min(rows + left + right, length))
    plan = _Plan(
        left=left,
        right=right,
        scale=scale,
        rows=rows,
        # positions differ from sequence to sequence, so that their biases cannot be written together
        items=1 if extra_bias is not None else max(min(batch, CHUNK_SCORES // max(scores, 1)), 1),
        dropout=dropout,
        seed=int(torch.randint(2**62, ())) if dropout > 0.0 else 0,
    )
    tensors = (query, key, value, bias, extra_key, extra_value, extra_bias, mask, extra_mask, position)
    if overwrite_query and value.shape == query.shape and not torch.is_grad_enabled():
        return _attend(tensors, plan, query).to(dtype)
    output: Tensor = _Chunked.apply(*tensors, plan)
    return output.to(dtype)


@dataclass(frozen=True)
class _Plan:
    """The settings of one call; `items` sequences are taken together."""

    left: int
    right: int
    scale: float
    rows: int
    items: int
    dropout: float
    seed: int


def _chunk_rows(heads: int, length: int, keys: int) -> int:
    rows = max(min(MAX_ROWS, length), 1)
    while rows > MIN_ROWS and heads * rows * (keys + rows) > CHUNK_SCORES:
        rows //= 2
    return rows


@dataclass
class _Chunk:
    """One chunk of queries and the weights of what they see."""

    items: slice  # of the batch
    rows: slice  # of the queries
    span: slice  # of the keys in the window
    tile: slice  # of the columns of a whole span
    query: Tensor  # (NH, R, D)
    keys: Tensor  # (NH, C, D)
    values: Tensor  # (NH, C, E)
    weights: Tensor  # (NH, R, C), before dropout


class _Walk:
    """Walks over the chunks of a call, reusing the buffers; a chunk is valid until the next one."""

    def __init__(self, inputs: Sequence[Any], plan: _Plan) -> None:
        query, key, value, bias, extra_key, extra_value, extra_bias, mask, extra_mask, position = inputs
        self.query, self.key, self.value, self.bias, self.plan = query, key, value, bias, plan
        self.extra_key, self.extra_value, self.extra_bias = extra_key, extra_value, extra_bias
        self.num_extra = 0 if extra_key is None else extra_key.shape[2]
        self.has_bias = bias is not None or extra_bias is not None
        self.places = None if extra_bias is None else position.clamp(min=0).tolist()
        self.tile = _band_tile(query, bias, plan)
        self.mask_bias = None if mask is None else _additive(mask, query.dtype)
        self.hidden_before = [] if mask is None else _running(~mask).tolist()
        hides_extra = extra_mask is not None and not bool(extra_mask.all())
        self.extra_mask_bias = _additive(extra_mask, query.dtype) if hides_extra else None
        self.alive = _queries_with_keys(mask, extra_mask, self.num_extra, plan)
        items, heads, columns = plan.items, query.shape[1], self.num_extra + self.tile.shape[-1]
        self._keys = query.new_empty(items, heads, columns, query.shape[-1])
        self._values = query.new_empty(items, heads, columns, value.shape[-1])
        num_scores = items * heads * plan.rows * columns
        self._scores = query.new_empty(num_scores)
        self._dropout = query.new_empty(num_scores if plan.dropout > 0.0 else 0)
        self._generator = torch.Generator(query.device).manual_seed(plan.seed) if plan.dropout > 0.0 else None

    def __iter__(self) -> Iterator[_Chunk]:
        batch, _, length, _ = self.query.shape
        for first in range(0, batch, self.plan.items):
            items = slice(first, min(first + self.plan.items, batch))
            if self.extra_key is not None:
                self._keys[: items.stop - first, :, : self.num_extra] = self.extra_key[items]
                self._values[: items.stop - first, :, : self.num_extra] = self.extra_value[items]
            for start in range(0, length, self.plan.rows):
                yield self._chunk(items, slice(start, min(start + self.plan.rows, length)))

    def _chunk(self, items: slice, rows: slice) -> _Chunk:
        plan, extra = self.plan, self.num_extra
        span = slice(max(rows.start - plan.left, 0), min(rows.stop + plan.right, self.query.shape[2]))
        first = span.start - (rows.start - plan.left)
        tile = slice(first, first + span.stop - span.start)
        number, columns = items.stop - items.start, extra + span.stop - span.start
        keys, values = self.key[items, :, span], self.value[items, :, span]
        if extra or number > 1 or keys.dtype != torch.float32:  # else products read them where they are
            self._keys[:number, :, extra:columns], self._values[:number, :, extra:columns] = keys, values
            keys, values = self._keys[:number, :, :columns], self._values[:number, :, :columns]
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)
        query = self.query[items, :, rows].flatten(0, 1)
        shape = (number, self.query.shape[1], rows.stop - rows.start, columns)
        scores = view(self._scores, shape)
        if self.has_bias:  # half precision is then rounded once, with the bias
            self._write_biases(scores, items, rows, tile)
        flat = scores.flatten(0, 1)
        flat.baddbmm_(query, keys.transpose(1, 2), beta=1 if self.has_bias else 0, alpha=plan.scale)
        self._hide(scores, items, span, tile)
        torch.softmax(flat, dim=-1, out=flat)
        return _Chunk(items, rows, span, tile, query, keys, values, flat)

    def _write_biases(self, scores: Tensor, items: slice, rows: slice, tile: slice) -> None:
        """Fill the scores (N, H, R, C) with the biases, and with what hides keys outside the band."""
        extra_scores, window_scores = scores[..., : self.num_extra], scores[..., self.num_extra :]
        window_scores.copy_(self.tile[:, : scores.shape[2], tile])
        if self.extra_bias is None:
            extra_scores.zero_()
            return
        for some, biases in self.extra_bias_runs(items, rows, self.extra_bias):
            extra_scores[:, :, some] = biases[None, :, None]

    def _hide(self, scores: Tensor, items: slice, span: slice, tile: slice) -> None:
        """Hide keys by adding to their scores (N, H, R, C), only where that is needed: each pass over them counts.

        The columns in the middle of a span are in the band of all rows.
        """
        plan, num_rows = self.plan, scores.shape[2]
        if self.extra_mask_bias is not None:
            scores[..., : self.num_extra].add_(self.extra_mask_bias[items, None, None])
        scores = scores[..., self.num_extra :]
        if not self.has_bias:
            band = self.tile[:, :num_rows, tile]
            last, first = max(num_rows - 1 - tile.start, 0), max(plan.left + plan.right + 1 - tile.start, 0)
            for edge in (slice(0, last), slice(first, None)) if last < first else (slice(None),):
                scores[..., edge].add_(band[..., edge])
        if any(before[span.stop] > before[span.start] for before in self.hidden_before[items]):
            assert self.mask_bias is not None
            scores.add_(self.mask_bias[items, None, None, span])

    def extra_bias_runs(self, items: slice, rows: slice, table: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Runs of queries of a chunk at one place on the axis of the extra keys, and its part (H, G) of a table."""
        assert self.places is not None
        start = 0
        for place, run in groupby(self.places[items.start][rows]):
            stop = start + len(list(run))
            first = self.num_extra - 1 - place
            yield slice(start, stop), table[:, first : first + self.num_extra]
            start = stop

    def dropout_factor(self, chunk: _Chunk) -> Tensor | None:
        """0 for a dropped weight and 1 / (1 - p) for a kept one; call it once per chunk, in order."""
        if self._generator is None:
            return None
        return dropout_factors(view(self._dropout, chunk.weights.shape), self.plan.dropout, self._generator)

    def zero_rows_without_keys(self, states: Tensor, chunk: _Chunk) -> Tensor:
        """Zero the queries of `states` (N, H, R, E) that see no key, in place."""
        if self.alive is not None:
            states.mul_(self.alive[chunk.items, None, chunk.rows, None].to(states.dtype))
        return states


def view(buffer: Tensor, shape: Sequence[int]) -> Tensor:
    """The beginning of a flat buffer in a shape."""
    return buffer[: torch.Size(shape).numel()].view(*shape)


def _attend(tensors: Sequence[Any], plan: _Plan, output: Tensor) -> Tensor:
    """Write the result to `output`, (B, H, S, E); that may be the queries, of which a chunk reads its own alone."""
    with torch.autocast(output.device.type, enabled=False):
        walk = _Walk(tensors, plan)
        for chunk in walk:
            factor = walk.dropout_factor(chunk)
            weights = chunk.weights if factor is None else chunk.weights.mul_(factor)
            result = torch.bmm(weights, chunk.values).unflatten(0, (-1, output.shape[1]))
            output[chunk.items, :, chunk.rows] = walk.zero_rows_without_keys(result, chunk)
    return output


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, plan = inputs
        ctx.save_for_backward(*tensors)
        ctx.plan = plan
        query, value = tensors[0], tensors[2]
        batch, heads, length, _ = query.shape
        return _attend(tensors, plan, query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2))

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
    heads, scale = walk.query.shape[1], walk.plan.scale
    grad = walk.zero_rows_without_keys(grad_output[chunk.items, :, chunk.rows].clone(), chunk).flatten(0, 1)
    grad_weights = torch.bmm(grad, chunk.values.transpose(1, 2))  # (NH, R, C)
    factor = walk.dropout_factor(chunk)
    if factor is None:
        grads.add(grads.value, grads.extra_value, chunk, torch.bmm(chunk.weights.transpose(1, 2), grad))
    else:
        grad_weights.mul_(factor)
        grads.add(grads.value, grads.extra_value, chunk, torch.bmm(factor.mul_(chunk.weights).transpose(1, 2), grad))
    grad_scores = torch._softmax_backward_data(grad_weights, chunk.weights, -1, chunk.weights.dtype)
    grads.add_to_biases(chunk, grad_scores.unflatten(0, (-1, heads)))
    grads.add(grads.key, grads.extra_key, chunk, torch.bmm(grad_scores.transpose(1, 2), chunk.query).mul_(scale))
    grad_query = torch.bmm(grad_scores, chunk.keys).mul_(scale).unflatten(0, (-1, heads))
    grads.query[chunk.items, chunk.rows] = grad_query.transpose(1, 2)


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

    def add(self, window: Tensor, extra: Tensor, chunk: _Chunk, grad: Tensor) -> None:
        """Add the gradient (NH, C, D) of the keys or values that a chunk sees."""
        grad = grad.unflatten(0, (-1, self.walk.query.shape[1]))
        extra[chunk.items] += grad[:, :, : self.walk.num_extra]
        window[chunk.items, chunk.span] += grad[:, :, self.walk.num_extra :].transpose(1, 2)

    def add_to_biases(self, chunk: _Chunk, grad_scores: Tensor) -> None:
        """Add the gradient (N, H, R, C) of the scores to that of the biases."""
        extra = self.walk.num_extra
        if self.tile is not None:
            self.tile[:, : grad_scores.shape[2], chunk.tile] += grad_scores[..., extra:].sum(dim=0)
        if self.extra_bias is not None:
            for some, part in self.walk.extra_bias_runs(chunk.items, chunk.rows, self.extra_bias):
                part += grad_scores[0, :, some, :extra].sum(dim=1)

    def results(self) -> tuple[Tensor | None, ...]:
        """Of query, key, value, bias, extra_key, extra_value, extra_bias."""
        walk, dtype = self.walk, self.query.dtype
        bias = extra_bias = None
        if self.tile is not None:
            bias = _diagonal_sums(self.tile, walk.plan).to(walk.bias.dtype)
        if self.extra_bias is not None:
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
    before = _running(mask)
    position = torch.arange(length, device=mask.device)
    first, behind = (position - plan.left).clamp(min=0), (position + plan.right + 1).clamp(max=length)
    alive = before[:, behind] > before[:, first]
    alive = alive if extra_mask is None else alive | extra_mask.any(dim=1, keepdim=True)
    return None if bool(alive.all()) else alive


def _running(mask: Tensor) -> Tensor:
    """How many positions before each one are True, (B, S) -> (B, S + 1)."""
    return torch.nn.functional.pad(mask.long().cumsum(dim=1), (1, 0))
