"""What processes that share one sequence say to each other: context parallelism for PyTorch.

Process r of n holds the tokens r·S … (r + 1)·S − 1 of each row. Operations on tokens need nothing of the others; what
looks further asks a `ContextShard`: for the tokens next to its own, for sums, or for what stands before them.

Every exchange is differentiable, as a function of what all processes hold: the gradient of the sum of the processes'
losses reaches the inputs and the parameters of each of them, and those of a parameter add up to that of one process.
Results that all processes hold alike come back as such a sum through `ContextShard.alike`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from longspan.errors import InputError
from longspan.ops.torch.modes import is_traced


class ContextShard:
    """The share of a sequence that one process of a group holds.

    Args:
        group: The processes, in the order of their tokens.

    Attributes:
        rank: Number of this process in the group.
        size: Number of processes.
    """

    def __init__(self, group: Any) -> None:
        self.group = group
        self.rank: int = dist.get_rank(group)
        self.size: int = dist.get_world_size(group)

    def __deepcopy__(self, memo: dict[int, Any]) -> ContextShard:
        return self

    def check_call(
        self, shape: tuple[int, int], device: torch.device, *, needs_weights: bool, reach: int = 0, unit: int = 1
    ) -> None:
        """Refuse, in every process alike, a call that cannot be shared.

        Args:
            shape: Of this share, (B, S).
            device: Where its tokens are.
            needs_weights: Attention weights are to be returned.
            reach: Tokens that a share must have at least, for its neighbours.
            unit: Tokens of a chunk, which lies in one process.

        Raises:
            InputError: shares differ in shape or do not fit, weights are asked for, or a graph is traced.
        """
        if needs_weights:
            raise InputError("a model that shares a sequence returns no attention weights. Received: output_attentions")
        sizes = torch.tensor(shape, device=device)
        if is_traced(sizes):
            raise InputError("a model that shares a sequence cannot be traced. Received: a traced call")
        shapes = self.of_all(sizes).tolist()
        if any(shape != shapes[0] for shape in shapes):
            raise InputError(
                f"all processes must hold equal shares of a sequence, (batch, tokens). Received: {shapes}; pad the "
                "sequence to a multiple of their number"
            )
        length = shape[1]
        if length < max(reach, 1):
            raise InputError(
                f"the share of a process must have at least the {reach} tokens that its neighbours see. Received: "
                f"{length} tokens in each of {self.size} processes"
            )
        if length % unit:
            raise InputError(
                f"the share of a process must be a multiple of a chunk of {unit} tokens. Received: {length} tokens"
            )

    def start(self, length: int) -> int:
        """Place of the first token of this share in the sequence, by the length of a share."""
        return self.rank * length

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over the processes, the same in all of them."""
        summed: Tensor = _Total.apply(tensor, self.group)
        return summed

    def highest(self, tensor: Tensor) -> Tensor:
        """Largest value over the processes, as a constant."""
        tensor = tensor.detach().clone()
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.group)
        return tensor

    def before(self, tensor: Tensor) -> Tensor:
        """Sum over the earlier processes, as a constant."""
        return self.of_all(tensor.detach())[: self.rank].sum(dim=0)

    def of_all(self, tensor: Tensor) -> Tensor:
        """What each process holds, (n, ...)."""
        gathered: Tensor = _Gather.apply(tensor, self.group)
        return gathered

    def whole(self, tensor: Tensor) -> Tensor:
        """The whole sequence (B, n·S, ...) of shares (B, S, ...)."""
        return self.of_all(tensor).transpose(0, 1).flatten(1, 2)

    def neighbours(self, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Hand `first` to the process before and `last` to the one behind; returns what comes from them, 0 at the ends.

        Args:
            first: What the process before needs of this one.
            last: What the process behind needs of this one.

        Returns:
            The `last` of the process before, and the `first` of the process behind.
        """
        received: tuple[Tensor, Tensor] = _Exchange.apply(first, last, self)
        return received

    def alike(self, loss: Tensor) -> Tensor:
        """A loss that every process has computed from the same scores, for each to pass on its part of the gradient."""
        return self.sum_of(loss / self.size)

    def sum_of(self, loss: Tensor) -> Tensor:
        """The sum of the processes' parts of a loss, where each passes the gradient on to its own part."""
        summed: Tensor = _SumOfLosses.apply(loss, self.group)
        return summed


class ReadsContext:
    """Base of modules that look beyond single tokens.

    Attributes:
        context_shard: The share of a sequence that this process holds; None for all of it.
    """

    context_shard: ContextShard | None = None


def running_count(mask: Tensor, shard: ContextShard | None) -> Tensor:
    """How many of the tokens so far, the present one included, are marked in a boolean mask (B, S)."""
    count = mask.cumsum(dim=1)
    return count if shard is None else count + shard.before(count[:, -1:])


def count_all(mask: Tensor, shard: ContextShard | None, *, axis: int = 1) -> Tensor:
    """How many tokens of each row are marked in a boolean mask (B, S), (B, 1); `axis` is that of the tokens."""
    count = mask.sum(dim=axis, keepdim=True)
    return count if shard is None else shard.total(count)


def token_places(length: int, device: torch.device, shard: ContextShard | None) -> Tensor:
    """Places of the tokens of a share in the sequence, (S,)."""
    start = 0 if shard is None else shard.start(length)
    return torch.arange(start, start + length, device=device)


def first_state(hidden_states: Tensor, shard: ContextShard | None) -> Tensor:
    """State of the first token of the sequence, (B, H), from states (B, S, H)."""
    first = hidden_states[:, 0]
    if shard is None:
        return first
    others = torch.full((), shard.rank > 0, device=first.device)
    return shard.total(first.masked_fill(others, 0.0))


def softmax(scores: Tensor, shard: ContextShard | None) -> Tensor:
    """Softmax over the last axis, whose keys are shared among the processes."""
    if shard is None:
        return torch.softmax(scores, dim=-1)
    weights = torch.exp(scores - shard.highest(scores.amax(dim=-1, keepdim=True)))
    return weights / shard.total(weights.sum(dim=-1, keepdim=True))


def total(tensor: Tensor, shard: ContextShard | None) -> Tensor:
    """Sum over the processes, if there are several."""
    return tensor if shard is None else shard.total(tensor)


def alike(loss: Tensor, shard: ContextShard | None) -> Tensor:
    """`ContextShard.alike`, if there are several processes."""
    return loss if shard is None else shard.alike(loss)


@contextmanager
def alike_randomness(shard: ContextShard | None, device: torch.device) -> Iterator[None]:
    """Draw the same random numbers in all processes, for what all compute alike; one draw of each goes on behind."""
    if shard is None:
        yield
        return
    seed = int(shard.of_all(torch.randint(2**62, (1,)).to(device))[0])
    devices = {} if device.type == "cpu" else {"devices": [device], "device_type": device.type}
    with torch.random.fork_rng(**{"devices": [], **devices}):
        torch.manual_seed(seed)
        yield


def with_neighbours(states: Tensor, left: int, right: int, shard: ContextShard) -> Tensor:
    """Tokens (..., S, D) with the `left` before them and the `right` behind them: (..., left + S + right, D).

    What lies outside the sequence is 0.
    """
    length = states.shape[-2]
    before, behind = shard.neighbours(states[..., :right, :], states[..., length - left :, :])
    return torch.cat((before, states, behind), dim=-2)


def mask_with_neighbours(mask: Tensor | None, like: Tensor, left: int, right: int, shard: ContextShard) -> Tensor:
    """A mask (B, S) with that of the tokens around it, False outside the sequence; None stands for all of `like`."""
    batch, length = like.shape[0], like.shape[-2]
    present = torch.ones(batch, length, dtype=torch.uint8, device=like.device) if mask is None else mask.byte()
    return with_neighbours(present.unsqueeze(-1), left, right, shard).squeeze(-1) != 0


def _sum_in_place(tensor: Tensor, group: Any) -> Tensor:
    """Sum over a group, in float32 at least where the numbers are floats."""
    dtype = tensor.dtype
    wide = torch.promote_types(dtype, torch.float32) if tensor.is_floating_point() else dtype
    summed = tensor.to(wide, copy=True, memory_format=torch.contiguous_format)
    dist.all_reduce(summed, group=group)
    return summed.to(dtype)


class _Total(torch.autograd.Function):
    """The sum over a group. Each process reads it, so that its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _sum_in_place(tensor, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Total.apply(gradient, ctx.group), None


class _SumOfLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, group: Any) -> Tensor:
        return _sum_in_place(loss, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Gather(torch.autograd.Function):
    """What all processes hold. The gradient of a share is the sum of what they want of it."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        ctx.group = group
        gathered = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(group.size())]
        dist.all_gather(gathered, tensor.contiguous(), group=group)
        return torch.stack(gathered)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        parts = [part.contiguous() for part in gradient]  # not reduce-scatter, which gloo lacks for some versions
        for rank, part in enumerate(parts):
            dist.reduce(part, dist.get_global_rank(ctx.group, rank), group=ctx.group)
        return parts[dist.get_rank(ctx.group)], None


class _Exchange(torch.autograd.Function):
    """What neighbours hand to each other. Gradients go the same ways back, so that it is its own transpose."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, last: Tensor, shard: ContextShard) -> tuple[Tensor, Tensor]:
        ctx.shard = shard
        before = torch.zeros_like(last, memory_format=torch.contiguous_format)
        behind = torch.zeros_like(first, memory_format=torch.contiguous_format)
        transfers = []
        for peer, given, received in ((shard.rank - 1, first, before), (shard.rank + 1, last, behind)):
            if 0 <= peer < shard.size:
                place = dist.get_global_rank(shard.group, peer)
                if given.numel() > 0:
                    transfers.append(dist.P2POp(dist.isend, given.contiguous(), place, shard.group))
                if received.numel() > 0:
                    transfers.append(dist.P2POp(dist.irecv, received, place, shard.group))
        for request in dist.batch_isend_irecv(transfers) if transfers else ():
            request.wait()
        return before, behind

    @staticmethod
    def backward(ctx: Any, before: Tensor, behind: Tensor) -> tuple[Tensor, Tensor, None]:
        first, last = _Exchange.apply(before, behind, ctx.shard)
        return first, last, None
