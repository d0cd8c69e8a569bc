"""The order in which samples are read: steps of like size in tokens, forward passes of like lengths within them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from longspan.pipelines.run.batching import plan_batches

Indices = npt.NDArray[np.int64]
#: Samples of so many steps are sorted by length together, so that rows of a pass have like lengths.
_GROUPED_STEPS = 16


@dataclass(frozen=True)
class Step:
    """Samples of one step of the optimizer.

    Attributes:
        passes: Indices of the samples of each forward pass.
    """

    passes: list[Indices]

    def share(self, rank: int, count: int) -> Iterator[tuple[Indices, bool]]:
        """The passes of one of `count` processes, as many for each, and whether they count.

        Where passes run short the last is read again without weight, so that all processes meet in the same calls.
        """
        rounds = -(-len(self.passes) // count)
        for place in range(rank, rounds * count, count):
            yield self.passes[min(place, len(self.passes) - 1)], place < len(self.passes)


def plan_epoch(
    lengths: Sequence[int], widths: Sequence[int], *, epoch: int, seed: int, batch_tokens: int, micro_tokens: int
) -> list[Step]:
    """The steps of an epoch; the same arguments always give the same.

    Args:
        lengths: Tokens of each sample.
        widths: Tokens that a pass holds for each of its samples if this one is the longest, padding included.
        epoch: Number of the epoch.
        seed: Of the order.
        batch_tokens: Tokens of a step; a longer sample is a step of its own.
        micro_tokens: Most positions of a forward pass.
    """
    draw = np.random.default_rng([seed, epoch])
    sizes = np.asarray(lengths, np.int64)
    steps: list[Indices] = []
    for group in _cut(draw.permutation(len(sizes)), sizes, _GROUPED_STEPS * batch_tokens):
        steps += _cut(group[np.argsort(-sizes[group], kind="stable")], sizes, batch_tokens)
    planned = []
    for index in draw.permutation(len(steps)):
        step = steps[index]
        passes = plan_batches([widths[sample] for sample in step], micro_tokens)
        planned.append(Step([step[one.indices] for one in passes]))
    return planned


def _cut(order: Indices, sizes: Indices, budget: int) -> list[Indices]:
    """`order` in pieces of at most `budget` tokens, each of one sample or more."""
    pieces, begin, total = [], 0, 0
    for place, sample in enumerate(order):
        if total + sizes[sample] > budget and place > begin:
            pieces.append(order[begin:place])
            begin, total = place, 0
        total += int(sizes[sample])
    if begin < len(order):
        pieces.append(order[begin:])
    return pieces


def rate_factor(step: Any, num_steps: int, warmup: float, *, least: Callable[[Any, Any], Any] = min) -> Any:
    """What the highest learning rate is multiplied with: a linear rise, then a linear fall to 0 after the last step.

    Args:
        step: Steps that are done; an array of a framework, too.
        num_steps: Steps of the run.
        warmup: Part of the steps in which the rate rises.
        least: The lesser of two numbers, in that framework.
    """
    rising = int(num_steps * warmup)
    return least((step + 1) / (rising + 1), (num_steps - step) / max(1, num_steps - rising))
