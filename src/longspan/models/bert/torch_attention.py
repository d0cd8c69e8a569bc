"""How one call of a PyTorch BERT attends: which implementation runs, with which masks.

Axes: B batch, S queries, T keys, A heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longspan.models.bert.config import BertConfig
from longspan.nn.torch.cache import Cache
from longspan.nn.torch.checks import values_visible
from longspan.nn.torch.masks import causal_mask, extend_mask, key_mask
from longspan.nn.torch.packing import Packing, has_padding
from longspan.ops.dispatch import Dispatcher
from longspan.shapes import check_shape


@dataclass(frozen=True)
class AttentionRequest:
    """What one call asks of BERT's attention.

    Attributes:
        needs_weights: Attention weights are returned.
        relative_positions: The scores depend on query and key through their distance.
        row_mask: The mask is one row per sequence, (B, S), or there is none.
        padded: The mask holds a False; None if that cannot be known.
        incremental: A cache or encoder states take part.
        padding_states: States at padding are needed too.
        asked: The implementation was asked for by name.
    """

    needs_weights: bool
    relative_positions: bool
    row_mask: bool
    padded: bool | None
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
    if request.padded is None:
        return "packing reads the mask, which is slow on an accelerator and impossible while a graph is traced"
    return "nothing is padded" if not (request.padded or request.asked) else None


def _sdpa_why_not(request: AttentionRequest) -> str | None:
    if request.needs_weights:
        return "attention weights are returned by 'eager' only"
    if request.relative_positions:
        return "relative position scores are computed by 'eager' only"
    return None


ATTENTION: Dispatcher[AttentionRequest] = Dispatcher(
    "BERT attention", {"packed": _packed_why_not, "sdpa": _sdpa_why_not, "eager": lambda request: None}
)


@dataclass(frozen=True)
class AttentionPlan:
    """How all layers of one call attend.

    Attributes:
        implementation: Name of the implementation.
        mask: True = attend, broadcastable to (B, A, S, T), or None for all.
        encoder_mask: The same for cross-attention.
        causal: A token sees itself and those before it; the mask holds that too unless it is None.
        packing: Where the real tokens are, if the batch is packed.
        positions: Positions of the queries among the keys, (S,).
        needs_weights: Attention weights are returned.
    """

    implementation: str
    mask: Tensor | None
    encoder_mask: Tensor | None
    causal: bool
    packing: Packing | None
    positions: Tensor
    needs_weights: bool


def make_plan(
    config: BertConfig,
    *,
    batch: int,
    cache_position: Tensor,
    attention_mask: Tensor | None,
    encoder_hidden_states: Tensor | None,
    encoder_attention_mask: Tensor | None,
    cache: Cache | None,
    needs_weights: bool,
    padding_states: bool,
) -> AttentionPlan:
    """Choose the implementation of one call and build the masks that all layers share.

    Args:
        config: Settings of the model.
        batch: B.
        cache_position: Positions of the queries in the sequence, (S,).
        attention_mask: (B, T) or (B, S, T), nonzero = attend; None for all.
        encoder_hidden_states: States that cross-attention reads, (B, S_enc, H).
        encoder_attention_mask: Their padding mask, (B, S_enc).
        cache: Keys and values of earlier tokens.
        needs_weights: Attention weights are returned.
        padding_states: States at padding are needed too.

    Raises:
        InputError: a mask has the wrong shape, or the implementation that was asked for cannot serve.
    """
    num_new = cache_position.shape[0]
    capacity = None if cache is None else cache.get_max_cache_shape()
    num_keys = capacity or (num_new if cache is None else num_new + int(cache.get_seq_length()))
    padded = _is_padded(attention_mask, config.attn_implementation)
    request = AttentionRequest(
        needs_weights=needs_weights,
        relative_positions=config.position_embedding_type != "absolute",
        row_mask=attention_mask is None or attention_mask.dim() == 2,
        padded=padded,
        incremental=cache is not None or encoder_hidden_states is not None,
        padding_states=padding_states,
        asked=config.attn_implementation != "auto",
    )
    implementation = ATTENTION.choose(config.attn_implementation, request, tracing=torch.compiler.is_compiling())
    packing = None
    if implementation == "packed":
        packing = _make_packing(attention_mask, shape=(batch, num_new), device=cache_position.device)
    mask = None
    if attention_mask is not None and packing is None:
        described = num_keys if capacity is None else attention_mask.shape[-1]
        mask = key_mask(attention_mask, batch=batch, num_keys=described)
        mask = extend_mask(mask, num_keys) if padded is not False else None
    kernel_is_causal = mask is None and cache is None and implementation in ("sdpa", "packed")
    if config.is_decoder and not kernel_is_causal:
        causal = causal_mask(cache_position, num_keys)
        mask = causal if mask is None else mask & causal
    return AttentionPlan(
        implementation=implementation,
        mask=mask,
        encoder_mask=_encoder_mask(encoder_hidden_states, encoder_attention_mask),
        causal=config.is_decoder,
        packing=packing,
        positions=cache_position,
        needs_weights=needs_weights,
    )


def _is_padded(attention_mask: Tensor | None, wanted: str) -> bool | None:
    """True or False where the mask may be read: on a CPU, or where packing was asked for by name; else None."""
    if attention_mask is None:
        return False
    readable = values_visible(attention_mask) or (wanted == "packed" and not torch.compiler.is_compiling())
    return has_padding(attention_mask != 0) if readable else None


def _make_packing(attention_mask: Tensor | None, *, shape: tuple[int, int], device: torch.device) -> Packing:
    check_shape(attention_mask, shape, name="attention_mask", axes="(batch, tokens)")
    mask = torch.ones(shape, dtype=torch.bool, device=device) if attention_mask is None else attention_mask != 0
    return Packing.from_mask(mask)


def _encoder_mask(encoder_hidden_states: Tensor | None, encoder_attention_mask: Tensor | None) -> Tensor | None:
    if encoder_hidden_states is None or encoder_attention_mask is None:
        return None
    batch, num_keys, _ = encoder_hidden_states.shape
    return key_mask(encoder_attention_mask, batch=batch, num_keys=num_keys, name="encoder_attention_mask")
