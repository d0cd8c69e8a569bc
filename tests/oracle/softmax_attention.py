"""Softmax attention by its definition, in float64.

    context = softmax(q kᵀ/√D + bias, over keys that the mask allows) · head_mask · v

A query that may attend to no key gets 0. Axes: B batch, A heads, T queries, S keys, D head size.
"""

from __future__ import annotations

import numpy as np


def softmax_attention(query, key, value, *, mask=None, bias=None, head_mask=1.0, upstream=None):
    """Context (B, A, T, D), weights (B, A, T, S), and the gradients of sum(context · upstream) by q, k and v."""
    query, key, value = (np.asarray(array, np.float64) for array in (query, key, value))
    scores = np.einsum("bhtd,bhsd->bhts", query, key) / np.sqrt(query.shape[-1])
    scores = scores if bias is None else scores + bias
    allowed = np.broadcast_to(True if mask is None else mask, scores.shape)
    exponentials = np.where(allowed, np.exp(scores - scores.max(axis=-1, keepdims=True)), 0.0)
    total = exponentials.sum(axis=-1, keepdims=True)
    softmax = np.divide(exponentials, total, out=np.zeros_like(exponentials), where=total > 0)
    weights = softmax * head_mask
    context = np.einsum("bhts,bhsd->bhtd", weights, value)
    if upstream is None:
        return context, weights, None
    d_weights = np.einsum("bhtd,bhsd->bhts", upstream, value) * head_mask
    d_scores = softmax * (d_weights - (softmax * d_weights).sum(axis=-1, keepdims=True)) / np.sqrt(query.shape[-1])
    gradients = (
        np.einsum("bhts,bhsd->bhtd", d_scores, key),
        np.einsum("bhts,bhtd->bhsd", d_scores, query),
        np.einsum("bhts,bhtd->bhsd", weights, upstream),
    )
    return context, weights, gradients
