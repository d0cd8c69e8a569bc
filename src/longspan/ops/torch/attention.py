"""Dense scaled dot-product attention, padded and packed.

Axes: B batch, H heads, T queries, S keys, D head size, N tokens of a packed batch.

    weights = softmax(q kᵀ · scale + bias),  output = weights v

A query that may attend to no key gives 0, in every implementation and dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from longspan.ops.torch.context import ContextShard, count_all, softmax, total
from longspan.ops.torch.dropout import dropout as drop
from longspan.ops.torch.dropout import pays_off

#: queries that the explicit half-precision path takes at a time
QUERY_CHUNK = 256


def eager_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    head_mask: Tensor | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
    shard: ContextShard | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention by its definition; also returns the weights.

    Args:
        query: (B, H, T, D).
        key: (B, H, S, D).
        value: (B, H, S, D).
        mask: True = attend; broadcastable to (B, H, T, S).
        bias: Added to the scaled scores; broadcastable to (B, H, T, S).
        head_mask: Factor of the weights of each head, after dropout; broadcastable to (B, H, T, S).
        dropout: Probability with which a weight is dropped.
        scale: Factor of the scores; default 1/√D.
        shard: The keys are those of a sequence that this process holds; queries and output are the same in all.

    Returns:
        Output (B, H, T, D) and the weights (B, H, T, S) that were multiplied with the values.
    """
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = torch.matmul(query * scale, key.transpose(-1, -2)).float()
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = softmax(scores, shard)
    if mask is not None:
        sees = mask.any(dim=-1, keepdim=True) if shard is None else count_all(mask, shard, axis=-1) > 0
        weights = weights.masked_fill(~sees, 0.0)
    weights = drop(weights.to(query.dtype), dropout)
    if head_mask is not None:
        weights = weights * head_mask
    return total(torch.matmul(weights, value), shard), weights


def sdpa_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Attention by `torch.nn.functional.scaled_dot_product_attention`.

    Args:
        query: (B, H, T, D).
        key: (B, H, S, D).
        value: (B, H, S, D).
        mask: True = attend; broadcastable to (B, H, T, S).
        causal: Query i sees keys 0…i; needs T = S and no mask.
        dropout: Probability with which a weight is dropped.
        scale: Factor of the scores; default 1/√D.

    Returns:
        (B, H, T, D).
    """
    if dropout > 0.0 and pays_off(query):  # PyTorch has no fused kernel with dropout there
        if causal:
            mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
        return eager_attention(query, key, value, mask=mask, dropout=dropout, scale=scale)[0]
    if mask is None:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=causal, scale=scale)
    # what a kernel makes of a row without keys differs by version and backend: let it see all keys, then zero it
    attends = mask.any(dim=-1, keepdim=True)
    output = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask | ~attends, dropout_p=dropout, scale=scale
    )
    return output.masked_fill(~attends, 0.0)


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    lengths: Sequence[int],
    causal: bool = False,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Attention within each sequence of a packed batch, without padding.

    Args:
        query: Tokens of all sequences one after the other, (N, H, D).
        key: (N, H, D).
        value: (N, H, D).
        lengths: Number of tokens of each sequence; the sum is N.
        causal: A token sees itself and those before it.
        dropout: Probability with which a weight is dropped.
        scale: Factor of the scores; default 1/√D.

    Returns:
        (N, H, D).
    """
    if not lengths:  # nothing but padding; a gradient of 0 still reaches all three
        return query + key + value
    outputs = []
    for sequence in zip(*(tensor.split(list(lengths)) for tensor in (query, key, value)), strict=True):
        q, k, v = (tensor.transpose(0, 1).unsqueeze(0) for tensor in sequence)  # (1, H, T, D)
        if _explicit_is_faster(q, dropout) and not causal:
            output = _chunked_attention(q, k, v, scale)
        else:
            output = sdpa_attention(q, k, v, causal=causal, dropout=dropout, scale=scale)
        outputs.append(output.squeeze(0).transpose(0, 1))
    return torch.cat(outputs) if outputs else torch.zeros_like(value)


def _explicit_is_faster(query: Tensor, dropout: float) -> bool:
    """On a CPU, half-precision matrix products are fast but the fused kernel does not use them (measured: 2.5×)."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and dropout == 0.0


def _chunked_attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """Matmul, softmax, matmul for `QUERY_CHUNK` queries at a time, so that the scores stay in cache."""
    query = query * (1.0 / math.sqrt(query.shape[-1]) if scale is None else scale)
    key = key.transpose(-1, -2)
    chunks = query.split(QUERY_CHUNK, dim=-2)
    return torch.cat([torch.matmul(torch.softmax(torch.matmul(q, key), dim=-1), value) for q in chunks], dim=-2)
