"""A step of a generation without what only other calls of a model need, in PyTorch.

Calling the modules of a model for one token costs more than the work: hooks, checks, masks, outputs. A model may offer
a *token step* that computes the same from the same weights, for plain modules and a plain cache; in all other cases its
`forward` serves.

Axes: R rows, L tokens of a row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module

from longspan.nn.torch.cache import Cache
from longspan.ops.torch.few_rows import can_pack
from longspan.ops.torch.prepacked import MOST_BYTES

#: new tokens from which on laying out the weights repays; one row of float32 gains less
_WORTH_PACKING, _WORTH_PACKING_ONE_ROW = 16, 64
#: bytes of weights below which one row of float32 gains as much
_FEW_BYTES = 2**26


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

    def packs(self, weights: Iterable[Tensor]) -> bool:
        """True if laying out these weights anew is possible and repays."""
        weights = list(weights)
        size = sum(weight.numel() * weight.element_size() for weight in weights)
        gains_less = self.rows == 1 and weights[0].dtype == torch.float32 and size > _FEW_BYTES
        least = _WORTH_PACKING_ONE_ROW if gains_less else _WORTH_PACKING
        return self.num_tokens >= least and size <= MOST_BYTES and can_pack(weights[0])


def is_plain(modules: Iterable[nn.Module], kinds: Iterable[type[nn.Module]]) -> bool:
    """True if calling these modules does what their classes say, in one dtype.

    Args:
        modules: All modules that a token meets.
        kinds: The only classes that they may have.

    Returns:
        False if a module is of another class or was wrapped, compiled or given a hook, if autocasting is on, or if the
        weights are not all float32 or all bfloat16.
    """
    modules, allowed = list(modules), set(kinds)
    if _module._has_any_global_hook() or any(type(m) not in allowed or _is_changed(m) for m in modules):
        return False
    parameters = [p for module in modules for p in module.parameters(recurse=False)]
    kind, device = parameters[0].dtype, parameters[0].device
    if kind not in (torch.float32, torch.bfloat16) or torch.is_autocast_enabled(device.type):
        return False
    return all(type(p) is nn.Parameter and p.dtype == kind and p.device == device for p in parameters)


def _is_changed(module: nn.Module) -> bool:
    hooks: tuple[Any, ...] = (module._forward_hooks, module._forward_pre_hooks)
    return any(hooks) or "forward" in module.__dict__ or module._compiled_call_impl is not None
