"""Running a chunked layer of MEGA over one part of a long sequence at a time, instead of calling `MegaBlock`.

In chunks, only the damped average reaches beyond a part, and it does so through its state. Parts that fit into a CPU's
cache make the time of inference proportional to the length, and keep what a layer needs besides its input small.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from longspan.models.mega.torch_layers import EmaFlow, MegaBlock, MegaLayerExtras, MegaPlan
from longspan.nn.torch.plain import is_plain
from longspan.ops.torch.damped_ema import backward_state_before

#: about how many tokens of a batch are read at a time
SPAN_TOKENS = 4096


def run_layer_in_spans(
    layer: MegaBlock, hidden_states: Tensor, plan: MegaPlan, *, overwrite: bool
) -> tuple[Tensor, MegaLayerExtras] | None:
    """What `layer(hidden_states, plan=plan)` gives, or None where it should be called.

    Args:
        layer: The layer.
        hidden_states: (B, S, D).
        plan: What all layers share.
        overwrite: The result may take the place of the states.
    """
    span = span_length(layer, hidden_states, plan)
    if span is None or not is_plain(layer):
        return None
    hidden_states = hidden_states if overwrite else hidden_states.clone()
    return hidden_states, run_in_spans(layer, hidden_states, plan, span)


def span_length(layer: MegaBlock, hidden_states: Tensor, plan: MegaPlan) -> int | None:
    """Tokens that `layer` should read at a time, or None to read all of them at once."""
    batch, length, _ = hidden_states.shape
    whole_only = (
        plan.chunk_size is None
        or plan.starts is not None
        or plan.needs_weights
        or layer.training
        or layer.mega_layer.ema_gate.truncation is not None
        or torch.is_grad_enabled()
    )
    if whole_only or plan.chunk_size is None:
        return None
    span = max(SPAN_TOKENS // (batch * plan.chunk_size), 1) * plan.chunk_size
    return span if length > span else None


def run_in_spans(layer: MegaBlock, hidden_states: Tensor, plan: MegaPlan, span: int) -> MegaLayerExtras:
    """Compute `layer(hidden_states, plan=plan)` in spans, in place.

    Args:
        layer: The layer, in evaluation mode.
        hidden_states: (B, S, D); overwritten with the result.
        plan: What all layers share.
        span: Tokens of a span, a multiple of the chunk size.

    Returns:
        What the layer returns besides its states.
    """
    gate = layer.mega_layer.ema_gate
    blocks = gate.blocks()
    starts = range(0, hidden_states.shape[1], span)
    parts = [slice(start, start + span) for start in starts]
    plans = [_part_of(plan, part) for part in parts]
    behind: list[Tensor | None] = [None] * len(parts)
    if gate.bidirectional:
        for index in range(len(parts) - 1, 0, -1):
            x = layer.mega_layer.normalize_inputs(hidden_states[:, parts[index]])
            behind[index - 1] = backward_state_before(x, blocks, mask=plans[index].mask, backward_state=behind[index])
    state, cache = None, None
    for part, part_plan, backward_state in zip(parts, plans, behind, strict=True):
        flow = EmaFlow(blocks, state, backward_state)
        hidden_states[:, part], (_, _, cache) = layer(hidden_states[:, part], plan=part_plan, flow=flow)
        state = cache.ema_state
    return MegaLayerExtras(cache=cache if plan.use_cache else None)


def _part_of(plan: MegaPlan, part: slice) -> MegaPlan:
    """The plan of a part: its mask, its place, and a cache that hands the state on."""
    mask = None if plan.mask is None else plan.mask[:, part]
    return dataclasses.replace(plan, mask=mask, offset=plan.offset + part.start, use_cache=True)
