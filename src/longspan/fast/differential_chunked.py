"""Differential attention for a few query rows at a time; the backward pass computes the maps again.

Axes: B batch, A softmax maps, K key/value heads, S queries, T keys, D head size, R query rows of a block,
M keys that the last row of a block can see.

The block of scores (B, A, R, M) stays within `BLOCK_BYTES`, small enough for the caches of a core, and is the largest
tensor of both passes. Measured on two cores at S = 2048 it runs at the speed of the matrix products alone in float32.
Each block has its own number of keys. oneDNN makes a kernel for every size of a product and keeps up to 1,024 of them,
which costs much memory and time for long inputs: the products are those of PyTorch's `bmm`.

In bfloat16 the softmax costs as much as a product. Without dropout the forward pass therefore leaves the maximum of a
row where it is, takes powers of 2, which are cheaper than those of e, and normalises last, if they stay in the range
of the numbers; the first block and the end of the pass tell. With z = s / ln 2:

    softmax(s₁) − λ · softmax(s₂) = (2^z₁ − λ · Σ 2^z₁ / Σ 2^z₂ · 2^z₂) / Σ 2^z₁

Both passes are one custom operator each, so that a traced graph holds them whole and works at any length.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longspan.fast.dropout import dropout_factors
from longspan.fast.few_rows import one_query_attention
from longspan.fast.matmul import lacks_instructions

#: size of the block of scores, and its fewest rows
BLOCK_BYTES = 8 * 2**20
MIN_ROWS = 16
#: keys from which on a block is masked: a multiple of the width of a vector
MASK_MULTIPLE = 32
#: a row whose sum of powers lies between the inverse of this number and this number needs no shift by its
#: maximum: its entries, and the ratio of two such sums, are far from the ends of the range of bfloat16
LARGEST_SUM = 1e17
LOG2_E = math.log2(math.e)


def chunked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lam: Tensor,
    position: Tensor | None,
    key_mask: Tensor | None,
    segment_ids: Tensor | None,
    seed: Tensor | None,
    scale: float,
    dropout: float,
    *,
    overwrite_query: bool = False,
) -> Tensor:
    """Differential attention in blocks of query rows; arguments as in `differential_attention`, and a seed of dropout.

    Returns:
        (B, S, A/2, 2D).
    """
    rest = (lam, position, key_mask, segment_ids, seed, scale, dropout)
    if lacks_instructions(query) and query.shape[2] > 1:
        wide = chunked_attention(query.float(), key.float(), value.float(), *rest, overwrite_query=True)
        return wide.to(query.dtype)
    if _needs_gradient(query, key, value, lam):
        output: Tensor = torch.ops.longspan.differential_attention(query, key, value, *rest)
        return output
    is_last = query.shape[2] == 1 and position is None and segment_ids is None and dropout == 0.0
    if is_last and query.device.type == "cpu":
        return one_query_attention(query, key, value, lam, key_mask=key_mask, scale=scale)
    return _forward(query, key, value, *rest, overwrite_query=overwrite_query)


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


@torch.library.custom_op("longspan::differential_attention", mutates_args=())
def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lam: torch.Tensor,
    position: torch.Tensor | None,
    key_mask: torch.Tensor | None,
    segment_ids: torch.Tensor | None,
    seed: torch.Tensor | None,
    scale: float,
    dropout: float,
) -> torch.Tensor:
    return _forward(query, key, value, lam, position, key_mask, segment_ids, seed, scale, dropout)


@_attention.register_fake
def _attention_shape(query: Tensor, *_: Any) -> Tensor:
    batch, num_maps, num_queries, head_dim = query.shape
    return query.new_empty(batch, num_queries, num_maps // 2, 2 * head_dim)


@torch.library.custom_op("longspan::differential_attention_backward", mutates_args=())
def _attention_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lam: torch.Tensor,
    position: torch.Tensor | None,
    key_mask: torch.Tensor | None,
    segment_ids: torch.Tensor | None,
    seed: torch.Tensor | None,
    scale: float,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return _backward(grad, query, key, value, lam, position, key_mask, segment_ids, seed, scale, dropout)


@_attention_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, lam: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return tuple(
        torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) for tensor in (query, key, value, lam)
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scale, ctx.dropout = inputs
    ctx.save_for_backward(*tensors)


def _autograd_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.longspan.differential_attention_backward(grad, *ctx.saved_tensors, ctx.scale, ctx.dropout)
    return (*gradients, None, None, None, None, None, None)


_attention.register_autograd(_autograd_backward, setup_context=_setup_context)


@dataclass(frozen=True)
class _Block:
    """A block of query rows and the keys that it can see.

    Attributes:
        rows: The rows.
        num_keys: M.
        bias: Added to the scores, large and negative where a row does not see a key; broadcastable to
            (B, A, R, M - bias_from). It is finite, so that a row that sees nothing gives numbers, which are replaced
            by 0, and adding it is faster than filling by a mask or cutting out a triangle.
        bias_from: Keys before this one are seen by all rows.
        empty: Rows that see no key, (B, R); None if there are none.
    """

    rows: slice
    num_keys: int
    bias: Tensor
    bias_from: int
    empty: Tensor | None

    def add_bias(self, scores: Tensor) -> None:
        """Hide the scores, (B, A, R, M), of what is not seen."""
        scores[..., self.bias_from :].add_(self.bias)


class _Memory:
    """One piece of memory for the blocks of a call: fresh memory costs as much as a pass over it.

    Args:
        like: Gives dtype and device.
        size: Entries of the largest block.
    """

    def __init__(self, like: Tensor, size: int) -> None:
        self.flat = like.new_empty(size)

    def shaped(self, *shape: int) -> Tensor:
        """A tensor of this shape; valid until the next call."""
        strides = [math.prod(shape[axis:]) for axis in range(1, len(shape) + 1)]
        return self.flat.as_strided(shape, strides)  # one call instead of two: blocks make many small ones


class _Part(NamedTuple):
    """The first keys of every head, or their values, in one piece.

    Attributes:
        states: (B·K, M, D or 2D); as they should be after `load`, until another part is loaded.
        source: Where they come from; None if they are there already.
    """

    states: Tensor
    source: Tensor | None

    def load(self) -> Tensor:
        """Bring the states into their place."""
        return self.states if self.source is None else self.states.copy_(self.source)


class _Prefix:
    """Gives the first keys of every head, or their values, in one piece.

    The half-precision product of a CPU copies what is not in one piece, into fresh memory at each call. Here one
    memory serves all blocks.

    Args:
        states: (B, K, T, D), or (B, K, T, 2, D) for two heads side by side.
    """

    def __init__(self, states: Tensor) -> None:
        self.copies = states.element_size() == 2 and states.device.type == "cpu"
        self.states = states.contiguous().flatten(3).flatten(0, 1)  # copies of its parts are faster for one piece
        self.memory: _Memory | None = None

    def part(self, number: int) -> _Part:
        """The first so many."""
        heads, num_keys, width = self.states.shape
        if number == num_keys:
            return _Part(self.states, None)
        source = self.states[:, :number]
        if not self.copies or heads == 1:
            return _Part(source, None)
        self.memory = self.memory or _Memory(self.states, self.states.numel())
        return _Part(self.memory.shaped(heads, number, width), source)

    def first(self, number: int) -> Tensor:
        """(B·K, M, D or 2D); valid until the next call."""
        return self.part(number).load()


def _needed(key_mask: Tensor | None, segment_ids: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The masks, without those that hide nothing."""
    if key_mask is not None and bool(key_mask.all()):
        key_mask = None
    if segment_ids is not None and bool((segment_ids == segment_ids[:, :1]).all()):
        segment_ids = None
    return key_mask, segment_ids


def _blocks(
    query: Tensor, key: Tensor, position: Tensor | None, key_mask: Tensor | None, segment_ids: Tensor | None
) -> Iterator[_Block]:
    """Split the queries into blocks; arguments as of `chunked_attention`, the masks as `_needed` gives them."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    keys = torch.arange(num_keys, device=key.device)
    places = range(num_keys - num_queries, num_keys) if position is None else position.tolist()
    position = keys[num_keys - num_queries :] if position is None else position
    size = _block_rows(query, num_keys)
    offsets: Sequence[int] = []
    bias = query.new_empty(0, 0)
    for start in range(0, num_queries, size):
        rows = slice(start, min(start + size, num_queries))
        lowest, highest = _ends(places[rows])
        seen = min(highest + 1, num_keys)
        if key_mask is None and segment_ids is None:
            first = min(lowest + 1, seen) // MASK_MULTIPLE * MASK_MULTIPLE
            previous, offsets = offsets, _moved(places[rows], -first)
            if offsets != previous or bias.shape[1] != seen - first:  # most blocks look alike
                bias = _bias(keys[first:seen] > position[rows, None], query.dtype)
            yield _Block(rows, seen, bias, first, None)
            continue
        hidden = (keys[:seen] > position[rows, None])[None]
        if key_mask is not None:
            hidden = hidden | ~key_mask[:, None, :seen]
        if segment_ids is not None:
            hidden = hidden | (segment_ids[:, position[rows], None] != segment_ids[:, None, :seen])
        yield _Block(rows, seen, _bias(hidden[:, None], query.dtype), 0, hidden.all(dim=-1))


def _ends(places: Sequence[int]) -> tuple[int, int]:
    """The smallest and the largest; at once for a range."""
    return (places[0], places[-1]) if isinstance(places, range) else (min(places), max(places))


def _moved(places: Sequence[int], step: int) -> Sequence[int]:
    """All places plus a number."""
    if isinstance(places, range):
        return range(places.start + step, places.stop + step)
    return [place + step for place in places]


def _block_rows(query: Tensor, num_keys: int) -> int:
    """R: rows whose scores fill `BLOCK_BYTES`."""
    batch, num_maps, num_queries = query.shape[:3]
    row_bytes = batch * num_maps * num_keys * query.element_size()
    return min(max(BLOCK_BYTES // max(row_bytes, 1), MIN_ROWS), max(num_queries, 1))


def _block_memory(query: Tensor, num_keys: int, width: int) -> _Memory:
    """Memory for so many entries of each row of each map of any block."""
    return _Memory(query, query.shape[0] * query.shape[1] * _block_rows(query, num_keys) * width)


def _bias(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    # half of the smallest number: adding a score to it does not overflow
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, torch.finfo(dtype).min / 2)


def _scaled_rows(query: Tensor, num_kv: int, num_keys: int, scale: float) -> list[Tensor]:
    """(B, A, S, D) -> the scaled rows of each block by key head, (B·K, A/K·R, D)."""
    batch, num_maps, num_queries, head_dim = query.shape
    size = _block_rows(query, num_keys)
    whole = num_queries // size * size
    blocks: list[Tensor] = []
    for part, rows in ((query[:, :, :whole], size), (query[:, :, whole:], num_queries - whole)):
        if part.shape[2]:
            by_block = part.unflatten(2, (-1, rows)).permute(2, 0, 1, 3, 4)  # (blocks, B, A, R, D)
            scaled = torch.mul(by_block, scale, out=query.new_empty(by_block.shape))
            blocks += scaled.view(-1, batch * num_kv, num_maps // num_kv * rows, head_dim).unbind()
    return blocks


def _scores(rows: Tensor, keys: Tensor, block: _Block, num_maps: int, memory: _Memory) -> Tensor:
    """The scores of a block, (B, A, R, M), as if all keys were seen.

    Args:
        rows: The block's scaled queries by key head, (B·K, A/K·R, D).
        keys: Those that the block can see, (B·K, M, D).
        block: The block.
        num_maps: A.
        memory: Where to write them.
    """
    out = memory.shaped(rows.shape[0], rows.shape[1], block.num_keys)
    scores = torch.bmm(rows, keys.transpose(1, 2), out=out)
    return scores.view(-1, num_maps, block.rows.stop - block.rows.start, block.num_keys)


def _softmax_maps(rows: Tensor, keys: Tensor, block: _Block, num_maps: int, memory: _Memory) -> Tensor:
    """The maps of a block, (B, A, R, M); arguments as of `_scores`."""
    scores = _scores(rows, keys, block, num_maps, memory)
    block.add_bias(scores)
    return torch.softmax(scores, dim=-1, out=scores)


def _dropout_factors(maps: Tensor, dropout: float, generator: torch.Generator | None) -> Tensor | None:
    """What each entry of the maps is multiplied with: 0, or 1/(1 − dropout)."""
    if generator is None:
        return None
    return dropout_factors(torch.empty(maps.shape, dtype=maps.dtype, device=maps.device), dropout, generator)


def _generator(seed: Tensor | None, device: torch.device) -> torch.Generator | None:
    return None if seed is None else torch.Generator(device).manual_seed(int(seed))


def _subtract(halves: Sequence[Tensor], lam: float) -> None:
    """Overwrite the first half of the maps with weights_j − λ · weights_{j + A/2}, (B, A/2, R, M)."""
    first, second = halves
    # `sub_` would round λ to the dtype of the maps; `addcmul_` computes in float32
    first.addcmul_(second, first.new_ones(()), value=-lam)


def _doubled(maps: Tensor) -> Tensor:
    """Overwrite the second half of the maps with the first: each difference meets two value heads."""
    first, second = maps.chunk(2, dim=1)
    second.copy_(first)
    return maps


def _joined(value: Tensor) -> Tensor:
    """The two value heads of each pair side by side, a view: (B, K, T, D) -> (B, K/2, T, 2, D)."""
    return value.unflatten(1, (2, -1)).permute(0, 2, 3, 1, 4)


class _Step(NamedTuple):
    """What the forward pass needs for one block; several are views of one memory.

    With an even number of key heads their halves are a batch, (2B, K/2, T, D), and the value heads of a pair lie side
    by side: N = 2B·K/2 products of scores, then B·K/2 with values of the width E = 2D. With an odd number, where the
    maps of one key head may belong to both halves, N = B·K products are followed by as many of the width E = D.

    Attributes:
        block: The block.
        rows: Its scaled queries by key head, (N, A/K·R, D).
        keys: Those that it can see.
        columns: The same keys, (N, D, M).
        scores: Where its scores come, by key head, (N, A/K·R, M).
        hidden: The scores that a bias is added to, (2, B, A/2, R, M - bias_from).
        powers: What becomes of the scores, (2, B, A/2, R, M).
        halves: Of the powers, (B, A/2, R, M) each.
        left: What meets the values, by (pair of) key heads, (…, A/K·R, M).
        sums: Where the sums of the rows come, (2, B, A/2, R, 1).
        parts: Of the sums, (B, A/2, R, 1) each.
        values: Of the keys.
        product: Where the differences come, met with values, (…, A/K·R, E).
        by_row: The same, (B, R, A/2, 2D or (2, D)).
        divisor: The sums of the first half, (B, R, A/2, 1).
        target: The block's part of the output, like `by_row`.
    """

    block: _Block
    rows: Tensor
    keys: _Part
    columns: Tensor
    scores: Tensor
    hidden: Tensor
    powers: Tensor
    halves: Sequence[Tensor]
    left: Tensor
    sums: Tensor
    parts: Sequence[Tensor]
    values: _Part
    product: Tensor
    by_row: Tensor
    divisor: Tensor
    target: Tensor


def _steps(
    query: Tensor, key: Tensor, value: Tensor, output: Tensor, sums: Tensor, blocks: Iterable[_Block], scale: float
) -> Iterator[_Step]:
    """What the forward pass needs for each block.

    Args:
        query: (B, A, S, D).
        key: (B, K, T, D).
        value: (B, K, T, D).
        output: (B, S, A/2, 2D).
        sums: Where the sums of all rows come, (S · 2B · A/2,).
        blocks: The blocks.
        scale: Factor of the scores.
    """
    batch, _, half, head_dim = *output.shape[:3], query.shape[3]
    num_keys, paired = key.shape[2], key.shape[1] % 2 == 0
    if paired:
        query, key, value = _halves_first(query), _halves_first(key), _joined(value)
    keys, values = _Prefix(key), _Prefix(value)
    memory, product_memory = (_block_memory(query, num_keys, width) for width in (num_keys, head_dim))
    size = _block_rows(query, num_keys)
    all_rows = _scaled_rows(query, key.shape[1], num_keys, scale)
    all_sums, targets = sums.split(size * 2 * batch * half), output.split(size, dim=1)
    # without queries there is one empty part
    for block, rows, flat_sums, target in zip(blocks, all_rows, all_sums, targets, strict=False):
        num_rows, seen = target.shape[1], block.num_keys
        seen_keys, seen_values = keys.part(seen), values.part(seen)
        scores = memory.shaped(rows.shape[0], rows.shape[1], seen)
        block_sums = flat_sums.view(2, batch, half, num_rows, 1)
        product = product_memory.shaped(seen_values.states.shape[0], rows.shape[1], seen_values.states.shape[2])
        if paired:
            powers, left = scores.view(2, batch, half, num_rows, seen), scores[: product.shape[0]]
            by_row = product.view(batch, half, num_rows, 2 * head_dim).transpose(1, 2)
        else:
            powers, left = scores.view(batch, 2, half, num_rows, seen).transpose(0, 1), scores
            by_row = product.view(batch, 2, half, num_rows, head_dim).permute(0, 3, 2, 1, 4)
            target = target.unflatten(3, (2, head_dim))
        yield _Step(
            block=block,
            rows=rows,
            keys=seen_keys,
            columns=seen_keys.states.transpose(1, 2),
            scores=scores,
            hidden=powers[..., block.bias_from :],
            powers=powers,
            halves=powers.unbind(),
            left=left,
            sums=block_sums,
            parts=block_sums.unbind(),
            values=seen_values,
            product=product,
            by_row=by_row,
            divisor=block_sums[0].transpose(1, 2),
            target=target,
        )


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lam: Tensor,
    position: Tensor | None,
    key_mask: Tensor | None,
    segment_ids: Tensor | None,
    seed: Tensor | None,
    scale: float,
    dropout: float,
    *,
    overwrite_query: bool = False,
) -> Tensor:
    arguments = (query, key, value, float(lam), position, *_needed(key_mask, segment_ids), seed, scale, dropout)
    output = _pass(*arguments, shifts=False) if query.dtype == torch.bfloat16 and seed is None else None
    if output is None:
        output = _pass(*arguments, shifts=True, overwrite_query=overwrite_query)
    assert output is not None, "a shift gives all"
    return output


def _pass(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lam: float,
    position: Tensor | None,
    key_mask: Tensor | None,
    segment_ids: Tensor | None,
    seed: Tensor | None,
    scale: float,
    dropout: float,
    *,
    shifts: bool,
    overwrite_query: bool = False,
) -> Tensor | None:
    """The forward pass with a softmax (`shifts`), or with powers that are normalised last; None if a row needs a shift.

    A large product leaves neither Python's code nor PyTorch's in the caches of a core: a small call after it takes
    several times as long as it does in a loop of its own. All views are therefore made before the first product.
    """
    generator = _generator(seed, query.device)
    if key.shape[1] % 2 and not shifts:
        key, value = (states.repeat_interleave(2, dim=1) for states in (key, value))
    batch, num_maps, num_queries, head_dim = query.shape
    shape, by_row = (batch, num_queries, num_maps // 2, 2 * head_dim), query.transpose(1, 2)
    # a copy of the queries, scaled, is what all blocks read
    output = by_row.view(shape) if overwrite_query and by_row.is_contiguous() else query.new_empty(shape)
    all_sums = query.new_empty(num_queries * batch * num_maps)
    blocks = _blocks(query, key, position, key_mask, segment_ids)
    steps: Iterable[_Step] = _steps(query, key, value, output, all_sums, blocks, scale if shifts else scale * LOG2_E)
    if position is None and key_mask is None and segment_ids is None:
        steps = list(steps)  # else each block has a bias of its own, too large to hold for all
    for step in steps:
        step.keys.load()
        torch.bmm(step.rows, step.columns, out=step.scores)
        step.hidden.add_(step.block.bias)
        if shifts:
            _subtract_softmax(step, lam, dropout, generator)
        elif not _subtract_powers(step, lam):
            return None  # the next rows would hardly do better
        step.values.load()
        torch.bmm(step.left, step.values.states, out=step.product)
        if shifts:
            step.target.copy_(step.by_row)
        else:
            torch.div(step.by_row, step.divisor, out=step.target)
        if step.block.empty is not None:
            step.target.flatten(3).masked_fill_(step.block.empty[..., None, None], 0.0)
    return output if shifts or _in_range(all_sums) else None


def _subtract_softmax(step: _Step, lam: float, dropout: float, generator: torch.Generator | None) -> None:
    """Overwrite the first half of the scores with the difference of the two softmax maps."""
    torch.softmax(step.scores, dim=-1, out=step.scores)
    maps = step.powers.transpose(0, 1)  # (B, 2, A/2, R, M), as the backward pass draws dropout
    factors = _dropout_factors(maps, dropout, generator)
    if factors is not None:
        maps.mul_(factors)
    _subtract(step.halves, lam)
    if step.left is step.scores:  # each difference meets two value heads
        step.halves[1].copy_(step.halves[0])


def _subtract_powers(step: _Step, lam: float) -> bool:
    """The same with powers, to be divided by the sum of the first half; False if the first rows need a shift."""
    step.scores.exp2_()
    torch.sum(step.powers, dim=-1, keepdim=True, out=step.sums)  # added up in float32, then rounded
    if step.block.empty is not None:
        step.sums.masked_fill_(step.block.empty[:, None, :, None], 1.0)
    if step.block.rows.start == 0 and not _in_range(step.sums):
        return False
    (first, second), (own, other) = step.halves, step.parts
    first.addcmul_(second, own / other, value=-lam)
    return True


def _halves_first(states: Tensor) -> Tensor:
    """The two halves of the heads as a batch, (B, H, S, D) -> (2B, H/2, S, D)."""
    return states.unflatten(1, (2, -1)).transpose(0, 1).flatten(0, 1)


def _in_range(sums: Tensor) -> bool:
    """True if all sums of powers are far from the ends of the range of bfloat16."""
    if not sums.numel():
        return True
    smallest, largest = (float(end) for end in sums.aminmax())
    return 1.0 / LARGEST_SUM <= smallest <= largest <= LARGEST_SUM  # False for what is not a number


def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lam: Tensor,
    position: Tensor | None,
    key_mask: Tensor | None,
    segment_ids: Tensor | None,
    seed: Tensor | None,
    scale: float,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, num_maps, _, head_dim = query.shape
    num_kv, num_keys = key.shape[1:3]
    factor, generator = float(lam), _generator(seed, query.device)
    keys, values = _Prefix(key), _Prefix(value)
    memory = _block_memory(query, num_keys, num_keys)
    grad_query = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    grad_key, grad_value = (  # (B·K, T, D)
        torch.zeros(batch * num_kv, num_keys, head_dim, dtype=torch.float32, device=key.device) for _ in range(2)
    )
    grad_lam = torch.zeros((), dtype=torch.float32, device=lam.device)
    scaled = _scaled_rows(query, num_kv, num_keys, scale)
    blocks = _blocks(query, key, position, *_needed(key_mask, segment_ids))
    for rows, block in zip(scaled, blocks, strict=True):
        seen = block.num_keys
        seen_keys, seen_values = keys.first(seen), values.first(seen)
        maps = _softmax_maps(rows, seen_keys, block, num_maps, memory)
        factors = _dropout_factors(maps, dropout, generator)
        dropped = maps if factors is None else maps * factors
        grad_rows = _grad_rows(grad, num_kv, block)
        # by the maps: both value halves reach the same difference
        grad_maps = torch.bmm(grad_rows, seen_values.transpose(1, 2)).view(maps.shape)
        grad_first, grad_second = grad_maps.chunk(2, dim=1)
        grad_first.add_(grad_second)
        grad_lam -= (grad_first * dropped[:, num_maps // 2 :]).sum(dtype=torch.float32)
        torch.mul(grad_first, -factor, out=grad_second)
        if factors is not None:
            grad_maps.mul_(factors)
        grad_scores = torch._softmax_backward_data(grad_maps, maps, -1, maps.dtype).view(batch * num_kv, -1, seen)
        _subtract(dropped.chunk(2, dim=1), factor)
        difference = _doubled(dropped).view(batch * num_kv, -1, seen)
        grad_value[:, :seen] += torch.bmm(difference.transpose(1, 2), grad_rows)
        grad_key[:, :seen] += torch.bmm(grad_scores.transpose(1, 2), rows)
        grad_block = torch.bmm(grad_scores, seen_keys).mul_(scale)
        grad_query[:, :, block.rows] = grad_block.view(batch, num_maps, -1, head_dim)
    grad_key, grad_value = (grad.to(key.dtype).view(key.shape) for grad in (grad_key, grad_value))
    return grad_query, grad_key, grad_value, grad_lam.to(lam.dtype)


def _grad_rows(grad: Tensor, num_kv: int, block: _Block) -> Tensor:
    """The gradient of a block's output by value head, (B·K, A/K·R, D); 0 where a row sees nothing."""
    rows = grad[:, block.rows]  # (B, R, A/2, 2D)
    if block.empty is not None:
        rows = rows.masked_fill(block.empty[..., None, None], 0.0)
    head_dim = rows.shape[-1] // 2
    halves = rows.unflatten(-1, (2, head_dim)).permute(0, 3, 2, 1, 4)  # (B, 2, A/2, R, D)
    return halves.reshape(rows.shape[0] * num_kv, -1, head_dim)
