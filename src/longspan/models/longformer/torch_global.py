"""Which tokens of one call have global attention, in PyTorch: the plan that all layers share, and the tasks' defaults.

Axes: B batch, S tokens, G slots for global tokens. The number of slots is the largest number of global tokens of a
row; rows with fewer leave slots empty. A traced graph cannot depend on the mask's values, so there it is fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from longspan.errors import InputError
from longspan.models.longformer.config import LongformerConfig
from longspan.nn.torch.checks import check_shape
from longspan.ops.torch.modes import is_traced


@dataclass(frozen=True)
class GlobalPlan:
    """Who attends how in one call.

    Attributes:
        real: Tokens that are not padding, boolean (B, S); None if all are.
        is_global: Tokens with global attention, (B, S); None if there is no slot.
        positions: Token of each slot in ascending order, 0 for an empty slot, (B, G).
        filled: Slots that hold a token, (B, G).
        needs_weights: Attention weights are returned.
        implementation: Name of the implementation of sliding-window attention.
    """

    real: Tensor | None
    is_global: Tensor | None
    positions: Tensor | None
    filled: Tensor | None
    needs_weights: bool
    implementation: str

    @property
    def local(self) -> Tensor | None:
        """Tokens that see and are seen through the window: real, without global attention, (B, S); None if all."""
        if self.is_global is None:
            return self.real
        return ~self.is_global if self.real is None else self.real & ~self.is_global


def make_plan(
    config: LongformerConfig,
    *,
    shape: tuple[int, int],
    device: torch.device,
    attention_mask: Tensor | None,
    global_attention_mask: Tensor | None,
    needs_weights: bool,
) -> GlobalPlan:
    """Merge the two masks of a call; a global token at padding is padding.

    Args:
        config: Settings of the model.
        shape: (B, S).
        device: Where the plan lives.
        attention_mask: 0 for padding, 1 for a real token, 2 for a global one, (B, S); None for no padding.
        global_attention_mask: Nonzero for global attention, (B, S).
        needs_weights: Attention weights are returned.

    Raises:
        InputError: a mask has the wrong shape.
    """
    check_shape(attention_mask, shape, name="attention_mask", axes="(batch, tokens)")
    check_shape(global_attention_mask, shape, name="global_attention_mask", axes="(batch, tokens)")
    real = None if attention_mask is None else attention_mask.to(device) != 0
    if real is not None and not is_traced(real) and bool(real.all()):
        real = None
    is_global = None if global_attention_mask is None else global_attention_mask.to(device) != 0
    if is_global is not None and real is not None:  # padding never attends
        is_global = is_global & real
    if attention_mask is not None and attention_mask.dtype != torch.bool:
        marked = attention_mask.to(device) > 1
        is_global = marked if is_global is None else is_global | marked
    if is_global is None:
        slots = 0
    elif is_traced(is_global):
        slots = config.num_global_slots
        is_global = _check_slots(is_global, slots)
    else:
        slots = _num_slots(is_global)
    if slots == 0 or is_global is None:
        return GlobalPlan(real, None, None, None, needs_weights, config.attn_implementation)
    positions, filled = _fill_slots(is_global, slots)
    return GlobalPlan(real, is_global, positions, filled, needs_weights, config.attn_implementation)


def _num_slots(is_global: Tensor) -> int:
    """Largest number of global tokens of a row."""
    return int(is_global.sum(dim=1).amax()) if is_global.numel() > 0 else 0


def _check_slots(is_global: Tensor, slots: int) -> Tensor:
    """Give back the mask, in a graph that fails when a row has more global tokens than `slots`."""
    if is_global.device.type == "cpu" and not torch.compiler.is_exporting():
        return torch.ops.longspan.check_global_slots(is_global, slots)
    # needs nothing of longspan where an exported graph is loaded, and no wait for the device
    torch._assert_async((is_global.sum(dim=1) <= slots).all(), _too_many(slots))
    return is_global


@torch.library.custom_op("longspan::check_global_slots", mutates_args=())
def _check_global_slots(is_global: Tensor, slots: int) -> Tensor:
    if _num_slots(is_global) > slots:
        raise InputError(f"{_too_many(slots)}. Received: {_num_slots(is_global)}")
    return is_global.clone()


@_check_global_slots.register_fake
def _(is_global: Tensor, slots: int) -> Tensor:
    return torch.empty_like(is_global)


def _too_many(slots: int) -> str:
    return f"a traced graph takes at most config.num_global_slots={slots} global tokens per row"


def _fill_slots(is_global: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Positions of the global tokens of each row and which slots they fill, both (B, slots)."""
    batch, length = is_global.shape
    slot = is_global.cumsum(dim=1) - 1
    slot = torch.where(is_global & (slot < slots), slot, slots)  # one slot more takes all other tokens
    token = torch.arange(length, device=is_global.device).expand(batch, length)
    positions = torch.zeros(batch, slots + 1, dtype=torch.long, device=is_global.device)
    positions = positions.scatter(1, slot, token)[:, :slots]
    filled = torch.arange(slots, device=is_global.device) < is_global.sum(dim=1, keepdim=True)
    return torch.where(filled, positions, 0), filled


def first_token(shape: tuple[int, int], device: torch.device) -> Tensor:
    """Global attention on the first token of each row, (B, S)."""
    return (torch.arange(shape[1], device=device) == 0).expand(shape)


def before_separator(
    input_ids: Tensor | None, token_type_ids: Tensor | None, *, shape: tuple[int, int], separator: int | None
) -> tuple[Tensor, Tensor]:
    """Global attention on the question: all tokens before the first separator.

    A row without a separator takes the tokens before its first one of segment 1; without that, its first token.

    Args:
        input_ids: (B, S).
        token_type_ids: (B, S).
        shape: (B, S).
        separator: Id of the separator.

    Returns:
        The mask (B, S), and the rows (B,) where neither was found.
    """
    device = next((x.device for x in (input_ids, token_type_ids) if x is not None), torch.device("cpu"))
    nothing = torch.zeros(shape, dtype=torch.bool, device=device)
    is_separator = nothing if input_ids is None or separator is None else input_ids == separator
    is_second = nothing if token_type_ids is None else token_type_ids == 1
    found = is_separator.any(dim=1, keepdim=True)
    border = torch.where(found, is_separator, is_second)
    before = border.cumsum(dim=1) == 0
    lacking = ~border.any(dim=1)
    return torch.where(lacking[:, None], first_token(shape, device), before), lacking


def after_separator(
    input_ids: Tensor | None, *, shape: tuple[int, int], separator: int | None
) -> tuple[Tensor, Tensor]:
    """Global attention on the choice: all tokens behind the first separator and the one that follows it.

    Args:
        input_ids: (B, S).
        shape: (B, S).
        separator: Id of the separator.

    Returns:
        The mask (B, S), and the rows (B,) without a separator, which take their first token.
    """
    if input_ids is None or separator is None:
        device = torch.device("cpu") if input_ids is None else input_ids.device
        return first_token(shape, device), torch.ones(shape[0], dtype=torch.bool, device=device)
    seen = (input_ids == separator).cumsum(dim=1) > 0
    behind = F.pad(seen, (2, 0), value=False)[:, : shape[1]]  # two tokens later
    lacking = ~seen.any(dim=1)
    return torch.where(lacking[:, None], first_token(shape, input_ids.device), behind), lacking
