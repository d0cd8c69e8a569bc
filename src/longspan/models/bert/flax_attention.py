"""How one call of a Flax BERT attends: which implementation runs, with which masks.

Axes: B batch, S queries, T keys, A heads.

What depends on the *values* of the mask is decided before tracing, by `choose_attention`; the masks themselves are
computed inside the traced function, by `make_plan`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from longspan.models.bert.config import BertConfig
from longspan.nn.flax.checks import ArrayLike, values_visible
from longspan.nn.flax.masks import causal_mask, extend_mask, key_mask, segment_mask
from longspan.nn.flax.packing import Packing, packed_size, plan_packing
from longspan.ops.dispatch import Dispatcher

#: "auto" packs if that leaves at most this part of the positions
_WORTH_PACKING = 0.85


@dataclass(frozen=True)
class AttentionRequest:
    """What one call asks of BERT's attention.

    Attributes:
        needs_weights: Attention weights are returned.
        relative_positions: The scores depend on query and key through their distance.
        row_mask: The mask is one row per sequence, (B, S), or there is none.
        mask_visible: The values of the mask can be read before the computation.
        saved: Part of the positions that packing saves.
        incremental: A cache or encoder states take part.
        padding_states: States at padding are needed too.
        asked: The implementation was asked for by name.
    """

    needs_weights: bool
    relative_positions: bool
    row_mask: bool
    mask_visible: bool
    saved: float
    incremental: bool
    padding_states: bool
    asked: bool


def _packed_why_not(request: AttentionRequest) -> str | None:
    if request.needs_weights:
        return "attention weights are returned by 'eager' only"
    if request.relative_positions:
        return "relative position scores are computed by 'eager' only"
    if request.incremental:
        return "packing works without a cache and without cross-attention"
    if request.padding_states:
        return "the states at padding are needed, as for the loss of question answering, which scores every position"
    if not request.row_mask:
        return "packing needs an attention_mask of the shape (batch, tokens)"
    if not request.mask_visible:
        return "packing reads the mask, which is slow on an accelerator and impossible while a function is traced"
    too_little = request.saved < 1.0 - _WORTH_PACKING
    return "too little is padding" if too_little and not request.asked else None


def _sdpa_why_not(request: AttentionRequest) -> str | None:
    if request.needs_weights:
        return "attention weights are returned by 'eager' only"
    if request.relative_positions:
        return "relative position scores are computed by 'eager' only"
    return None


ATTENTION: Dispatcher[AttentionRequest] = Dispatcher(
    "BERT attention", {"packed": _packed_why_not, "sdpa": _sdpa_why_not, "eager": lambda request: None}
)


def choose_attention(
    config: BertConfig,
    *,
    attention_mask: ArrayLike | None,
    shape: tuple[int, int],
    incremental: bool,
    needs_weights: bool,
    padding_states: bool,
    first_states: bool,
    tracing: bool,
) -> tuple[str, Packing | None]:
    """Choose the implementation of one call, and plan the packed rows if it is `"packed"`.

    Args:
        config: Settings of the model.
        attention_mask: (B, T) or (B, S, T), nonzero = attend; None for all.
        shape: (B, S).
        incremental: A cache or encoder states take part.
        needs_weights: Attention weights are returned.
        padding_states: States at padding are needed too.
        first_states: The state of each row's first token is needed, even if it is padding.
        tracing: The call is being traced.

    Returns:
        The name of the implementation and the packing, or None.

    Raises:
        InputError: the implementation that was asked for cannot serve.
    """
    row_mask = attention_mask is None or attention_mask.ndim == 2
    visible = attention_mask is None or values_visible(attention_mask)
    packing = None
    if row_mask and visible and not (needs_weights or incremental or padding_states):
        wanted = config.attn_implementation == "packed"
        packing = _plan(attention_mask, shape, first_states) if attention_mask is not None or wanted else None
    request = AttentionRequest(
        needs_weights=needs_weights,
        relative_positions=config.position_embedding_type != "absolute",
        row_mask=row_mask,
        mask_visible=visible,
        saved=0.0 if packing is None else 1.0 - packed_size(packing) / max(1, shape[0] * shape[1]),
        incremental=incremental,
        padding_states=padding_states,
        asked=config.attn_implementation != "auto",
    )
    implementation = ATTENTION.choose(config.attn_implementation, request, tracing=tracing)
    return implementation, packing if implementation == "packed" else None


def _plan(attention_mask: ArrayLike | None, shape: tuple[int, int], first_states: bool) -> Packing:
    mask = np.ones(shape, np.bool_) if attention_mask is None else np.asarray(attention_mask) != 0
    return plan_packing(mask, first_states=first_states)


@struct.dataclass
class AttentionPlan:
    """How all layers of one call attend.

    Attributes:
        mask: True = attend, broadcastable to (B, A, S, T), or None for all.
        encoder_mask: The same for cross-attention.
        positions: Positions of the queries among the keys, (S,).
        implementation: Name of the implementation.
        needs_weights: Attention weights are returned.
        deterministic: Nothing is dropped.
    """

    mask: Array | None
    encoder_mask: Array | None
    positions: Array
    implementation: str = struct.field(pytree_node=False)
    needs_weights: bool = struct.field(pytree_node=False)
    deterministic: bool = struct.field(pytree_node=False)


def make_plan(
    config: BertConfig,
    *,
    implementation: str,
    length: int,
    past: Any,
    capacity: int | None,
    attention_mask: Array | None,
    encoder_attention_mask: Array | None,
    packing: Packing | None,
    needs_weights: bool,
    deterministic: bool,
) -> AttentionPlan:
    """Build the masks that all layers share.

    Args:
        config: Settings of the model.
        implementation: Name of the implementation, or `"auto"`.
        length: S, or the length of a packed row.
        past: Number of tokens in the cache, 0 without one; may be traced.
        capacity: Number of tokens that fit the cache, or None without one.
        attention_mask: (B, T) or (B, S, T), nonzero = attend; None for all.
        encoder_attention_mask: Padding mask of the states that cross-attention reads, (B, S_enc).
        packing: Where the real tokens are, if the batch is packed.
        needs_weights: Attention weights are returned.
        deterministic: Nothing is dropped.
    """
    if implementation == "auto":
        relative = config.position_embedding_type != "absolute"
        implementation = "eager" if needs_weights or relative else "sdpa"
    positions = past + jnp.arange(length)
    num_keys = length if capacity is None else capacity
    mask: Array | None = None
    if packing is not None:
        mask = segment_mask(packing.segments, packing.keys)
    elif attention_mask is not None:
        mask = extend_mask(key_mask(attention_mask), num_keys)
    if config.is_decoder:
        causal = causal_mask(positions, num_keys)
        mask = causal if mask is None else mask & causal
    return AttentionPlan(
        mask=mask,
        encoder_mask=None if encoder_attention_mask is None else key_mask(encoder_attention_mask),
        positions=positions,
        implementation=implementation,
        needs_weights=needs_weights,
        deterministic=deterministic,
    )
