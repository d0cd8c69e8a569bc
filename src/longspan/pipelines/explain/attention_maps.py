"""Attention maps of every family in one form, as sparse as the architecture: who looks at whom. PyTorch.

A map is a list of pieces. A piece holds, for Q of the tokens of a row, K keys each, so that a window of W tokens takes
S · W numbers and not S². Where a family has summaries of blocks, the last columns are those.

Axes: A heads, S tokens of a row, Q queries, K keys of a query, W window, G global tokens or summaries, C chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NOTES = {
    "longformer": "Window attention, and where tokens are global, attention from and to all tokens.",
    "diffllama": "Each map is the difference A1 − λ·A2 of a pair of maps: orange adds, blue takes away.",
    "mega": "MEGA's gated attention, which has one head. The moving average before it has no map.",
    "longt5": "The encoder's attention. A summary's share is divided among the tokens that it stands for; as the place "
    "that a token looks at, it is the first of them.",
}


@dataclass(frozen=True, eq=False)
class Piece:
    """Attention of some tokens.

    Attributes:
        queries: (Q,) the tokens.
        weights: (A, Q, K) how strongly they look at their keys; A1 − λ·A2 may be negative.
        keys: (Q, K) which tokens these are, -1 for none; None if K = S and all tokens are keys, in their order.
        blocks: (S,) summary that each token belongs to, for the last columns of `weights`; None without summaries.
    """

    queries: Tensor
    weights: Tensor
    keys: Tensor | None = None
    blocks: Tensor | None = None

    @property
    def num_summaries(self) -> int:
        """Columns that are summaries."""
        return 0 if self.blocks is None else int(self.blocks.max()) + 1

    def add_to(self, total: Tensor) -> None:
        """Add what tokens receive from the queries to `total`, (A, S)."""
        num_tokens = self.weights.shape[-1] - self.num_summaries
        weights = self.weights[..., :num_tokens]
        if self.keys is None:
            total += weights.sum(dim=1)
        else:
            keys = self.keys[:, :num_tokens]
            total.index_add_(1, keys.clamp(min=0).flatten(), (weights * (keys >= 0)).flatten(1))
        if self.blocks is not None:
            shares = self.weights[..., num_tokens:].sum(dim=1) / self.blocks.bincount()
            total += shares[:, self.blocks]

    def of_query(self, query: int) -> Piece:
        """The piece with that token only, or with none."""
        chosen = self.queries == query
        return Piece(
            self.queries[chosen],
            self.weights[:, chosen],
            None if self.keys is None else self.keys[chosen],
            self.blocks,
        )

    def strongest(self, begin: int, end: int, count: int) -> tuple[Tensor, Tensor]:
        """The `count` tokens of [begin, end) that each query looks at most, and weights (0: none), (A, Q, count)."""
        keys = torch.arange(self.weights.shape[-1]).expand(self.weights.shape[1:]) if self.keys is None else self.keys
        weights = self.weights * ((keys >= begin) & (keys < end))
        best = weights.abs().topk(min(count, weights.shape[-1]), dim=-1).indices
        found = torch.gather(keys.expand_as(weights), -1, best), torch.gather(weights, -1, best)
        missing = count - best.shape[-1]
        return torch.nn.functional.pad(found[0], (0, missing)), torch.nn.functional.pad(found[1], (0, missing))


def received(pieces: list[Piece], length: int) -> Tensor:
    """(A, S) mean attention that each of `length` tokens receives from all."""
    total = torch.zeros(pieces[0].weights.shape[0], length)
    for piece in pieces:
        piece.add_to(total)
    return total / length


def sent(pieces: list[Piece], query: int, length: int) -> Tensor:
    """(A, S) attention of one token to each of `length` tokens."""
    total = torch.zeros(pieces[0].weights.shape[0], length)
    for piece in pieces:
        piece.of_query(query).add_to(total)
    return total


def strongest(pieces: list[Piece], length: int, begin: int, end: int, count: int) -> tuple[Tensor, Tensor]:
    """(A, S, count) tokens of [begin, end) that each of `length` tokens looks at most, and weights."""
    shape = (pieces[0].weights.shape[0], length, count)
    keys, weights = torch.zeros(shape, dtype=torch.long), torch.zeros(shape)
    for piece in pieces:
        keys[:, piece.queries], weights[:, piece.queries] = piece.strongest(begin, end, count)
    return keys, weights


def layer_maps(output: Any, length: int, is_global: Tensor | None, config: Any) -> list[list[Piece]]:
    """The map of each layer of the first row.

    Args:
        output: What the model returned with its attention weights.
        length: S.
        is_global: (1, S) Longformer's global tokens, 1 for global.
        config: Settings of the model.

    Returns:
        A list of pieces for each layer; empty if the model returned no attention.
    """
    names = ("differential_attentions", "encoder_attentions", "attentions")
    layers = next((output[name] for name in names if output.get(name) is not None), ())
    weights = [layer.detach()[0].float().cpu() for layer in layers]
    if config.model_type == "longformer":
        every_global = output.get("global_attentions")
        globals_ = (
            [None] * len(weights) if every_global is None else [g.detach()[0].float().cpu() for g in every_global]
        )
        return [_banded(*pair, length, is_global) for pair in zip(weights, globals_, strict=True)]
    if config.model_type == "longt5" and weights and weights[0].dim() == 4:
        return [[_blocked(layer, length, config.global_block_size)] for layer in weights]
    if config.model_type == "mega":
        return [[_chunked(layer, length)] for layer in weights]
    return [[Piece(torch.arange(length), layer[:, :length, :length])] for layer in weights]


def _banded(weights: Tensor, of_globals: Tensor | None, length: int, is_global: Tensor | None) -> list[Piece]:
    """Longformer's: weights (A, S, G + W + 1) of the windows, (A, S, G) of the global tokens."""
    places = torch.empty(0, dtype=torch.long)
    if of_globals is not None and is_global is not None:
        places = is_global[0].cpu().nonzero()[:, 0]
    num_global = 0 if of_globals is None else of_globals.shape[-1]
    radius = (weights.shape[-1] - num_global) // 2
    band = torch.arange(length)[:, None] + torch.arange(-radius, radius + 1)
    keys = torch.cat([places.expand(length, -1), band.masked_fill((band < 0) | (band >= length), -1)], dim=1)
    others = torch.ones(length, dtype=torch.bool).index_fill(0, places, False).nonzero()[:, 0]
    pieces = [Piece(others, weights[:, others], keys[others])]
    if of_globals is not None and len(places):
        pieces.append(Piece(places, of_globals[:, :length, : len(places)].transpose(1, 2)))
    return pieces


def _blocked(weights: Tensor, length: int, block_size: int) -> Piece:
    """LongT5's encoder: weights (N, A, R + 1, 3 (R + 1) + G) of each block of R + 1 tokens."""
    num_blocks, _, rows, columns = weights.shape
    flat = weights.transpose(0, 1).flatten(1, 2)[:, :length]
    first = (torch.arange(num_blocks) - 1).repeat_interleave(rows)[:length, None] * rows
    keys = first + torch.arange(3 * rows)
    keys = keys.masked_fill((keys < 0) | (keys >= length), -1)
    num_summaries = columns - 3 * rows
    if not num_summaries:
        return Piece(torch.arange(length), flat, keys)
    blocks = (torch.arange(length) // block_size).clamp(max=num_summaries - 1)
    firsts = (torch.arange(num_summaries) * block_size).expand(length, -1)
    return Piece(torch.arange(length), flat, torch.cat([keys, firsts], dim=1), blocks)


def _chunked(weights: Tensor, length: int) -> Piece:
    """MEGA's: weights (chunks, C, C), the last chunk padded, or (1, S, S)."""
    size = weights.shape[-1]
    places = torch.arange(len(weights) * size).view(len(weights), 1, size).expand_as(weights).flatten(0, 1)[:length]
    return Piece(
        torch.arange(length),
        weights.flatten(0, 1)[None, :length],
        places.masked_fill(places >= length, -1),
    )
