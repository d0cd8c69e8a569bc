"""Definition of banded attention with extra keys, in float64 NumPy, with its gradients.

Axes: B batch, H heads, S tokens, D head size, G extra keys.

    score[i, j] = scale · qᵢ·kⱼ + bias[j - i + left]              for i - left ≤ j ≤ i + right and mask[j]
    score[i, g] = scale · qᵢ·k'_g + extra_bias[g - position[i] + G - 1]                   for extra_mask[g]

One softmax runs over both kinds of keys; a query without any key gives 0.
"""

import numpy as np


class SlidingWindow:
    """Forward pass on construction; `backward` gives the gradients of a weighted sum of the output."""

    def __init__(
        self,
        query,
        key,
        value,
        *,
        left,
        right,
        scale,
        mask=None,
        bias=None,
        extra_key=None,
        extra_value=None,
        extra_mask=None,
        extra_bias=None,
        extra_position=None,
    ):
        query, key, value = (np.asarray(x, dtype=np.float64) for x in (query, key, value))
        batch, heads, length, head_dim = query.shape
        if extra_key is None:
            extra_key = np.zeros((batch, heads, 0, head_dim))
            extra_value = np.zeros((batch, heads, 0, value.shape[-1]))
        num_extra = extra_key.shape[2]
        offset = np.arange(length)[None, :] - np.arange(length)[:, None] + left  # (S, S), index of the bias
        inside = (offset >= 0) & (offset <= left + right)
        self.offset, self.width = np.clip(offset, 0, left + right), left + right + 1
        allowed = np.broadcast_to(inside, (batch, 1, length, length))
        if mask is not None:
            allowed = allowed & np.asarray(mask, dtype=bool)[:, None, None, :]
        extra_allowed = np.ones((batch, 1, length, num_extra), dtype=bool)
        if extra_mask is not None:
            extra_allowed &= np.asarray(extra_mask, dtype=bool)[:, None, None, :]

        self.query, self.value, self.scale, self.inside = query, value, scale, inside
        self.keys = np.concatenate([extra_key, key], axis=2)  # (B, H, G + S, D)
        self.values = np.concatenate([extra_value, value], axis=2)
        scores = scale * np.einsum("bhid,bhjd->bhij", query, self.keys)
        if bias is not None:
            scores[..., num_extra:] += np.asarray(bias, dtype=np.float64)[None, :, self.offset]
        self.num_extra, self.extra_index = num_extra, None
        if extra_bias is not None:
            position = np.maximum(np.asarray(extra_position), 0)
            self.extra_index = np.arange(num_extra) - position[..., None] + num_extra - 1  # (B, S, G)
            table = np.asarray(extra_bias, dtype=np.float64)  # (H, 2G - 1)
            scores[..., :num_extra] += table[:, self.extra_index].transpose(1, 0, 2, 3)

        allowed = np.concatenate([extra_allowed, allowed], axis=-1)
        scores = np.where(allowed, scores, -np.inf)
        peak = scores.max(axis=-1, keepdims=True, initial=-np.inf)
        weights = np.exp(scores - np.where(np.isfinite(peak), peak, 0.0))
        total = weights.sum(-1, keepdims=True)
        self.weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
        self.output = np.einsum("bhij,bhjd->bhid", self.weights, self.values)

    def window_weights(self, left, right):
        """Weights by relative position, (B, H, S, left + right + 1); 0 outside the sequence."""
        batch, heads, length, _ = self.weights.shape
        result = np.zeros((batch, heads, length, left + right + 1))
        for i in range(length):
            for j in range(max(0, i - left), min(length, i + right + 1)):
                result[:, :, i, j - i + left] = self.weights[:, :, i, self.num_extra + j]
        return result

    def backward(self, grad):
        """Gradients of sum(output · grad) by every input, as a dict of arrays."""
        grad = np.asarray(grad, dtype=np.float64)
        extra = self.num_extra
        weights_grad = np.einsum("bhid,bhjd->bhij", grad, self.values)
        scores_grad = self.weights * (weights_grad - (self.weights * weights_grad).sum(-1, keepdims=True))
        keys_grad = self.scale * np.einsum("bhij,bhid->bhjd", scores_grad, self.query)
        values_grad = np.einsum("bhij,bhid->bhjd", self.weights, grad)
        bias_grad = np.zeros((self.query.shape[1], self.width))
        in_band = scores_grad[..., extra:].sum(0) * self.inside
        for head in range(bias_grad.shape[0]):
            np.add.at(bias_grad[head], self.offset, in_band[head])
        result = {
            "query": self.scale * np.einsum("bhij,bhjd->bhid", scores_grad, self.keys),
            "key": keys_grad[:, :, extra:],
            "value": values_grad[:, :, extra:],
            "extra_key": keys_grad[:, :, :extra],
            "extra_value": values_grad[:, :, :extra],
            "bias": bias_grad,
        }
        if self.extra_index is not None:
            extra_bias_grad = np.zeros((self.query.shape[1], 2 * extra - 1))
            for row in range(grad.shape[0]):
                for head in range(grad.shape[1]):
                    np.add.at(extra_bias_grad[head], self.extra_index[row], scores_grad[row, head, :, :extra])
            result["extra_bias"] = extra_bias_grad
        return result
