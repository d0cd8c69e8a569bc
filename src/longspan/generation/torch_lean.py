"""A step of a generation without what only other calls of a model need, in PyTorch.

For plain modules and a plain cache there may be a *token step* (`longspan.fast.token_step`) that computes the same from
the same weights; in all other cases `forward` serves.

Axes: R rows, L tokens of a row, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from longspan.nn.torch.cache import Cache
from longspan.ops.fast_paths import fast_path


class TokenOutput(NamedTuple):
    """`logits` (R, 1, V)."""

    logits: Tensor


class TokenStep(Protocol):
    """Reads one token of each row into the cache and gives the scores of the next."""

    def __call__(self, tokens: Tensor, *, past: int, position_ids: Tensor | None) -> Tensor:
        """Ids (R,) behind `past` tokens, at positions (R, 1), or at `past` if None -> logits (R, V)."""
        ...


@dataclass(frozen=True)
class StepRequest:
    """What a token step is wanted for.

    Attributes:
        cache: Holds the prompts; all rows are there.
        rows: R.
        capacity: Tokens of a row at most.
        num_tokens: Tokens that will be read at most.
        mask: Boolean, True for real tokens, (R, capacity); None if all are.
        source_mask: Mask of an encoder's input, (B, S), B dividing R; None if all are real.
    """

    cache: Cache
    rows: int
    capacity: int
    num_tokens: int
    mask: Tensor | None = None
    source_mask: Tensor | None = None


def make_token_step(model: Any, request: StepRequest) -> TokenStep | None:
    """A leaner way than `forward` to read one token of each row; None where there is none."""
    make = fast_path("token_step.make_token_step")
    return None if make is None else make(model, request)
