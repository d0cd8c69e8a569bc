"""Linear layers and norms for a few rows again and again, as when text is generated token by token; no gradients.

Such a product takes as long as reading its weights, so what counts is how they lie in memory. oneDNN reads weights
that it has laid out itself up to four times as fast as PyTorch reads them row by row. Float32 columns that lie one
behind the other in large pages are read faster still for one row, unless oneDNN has AVX-512.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from longspan.fast import large_pages
from longspan.fast.matmul import has_onednn, is_faster, linear, num_parts

#: keys up to which attention of one half-precision query is faster in float32: CPUs compile their kernels for each
#: number of keys, and widening is cheap
WIDENED_KEYS = 1024
#: bytes of float32 weights from which on their columns are laid out one behind the other, for one row
TURNED_BYTES = 2**22


def can_pack(weight: Tensor) -> bool:
    """True if oneDNN can lay out such weights: float32, or bfloat16 where the CPU computes with it."""
    if weight.device.type != "cpu" or not has_onednn():
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class FewRowsLinear:
    """[x W₁ᵀ + b₁, x W₂ᵀ + b₂, …] of linear layers that read the same x.

    Args:
        weights: W, each (N, K).
        biases: b, each (N,) or None; all of one kind.
        packed: Lay out a copy of the weights for the purpose, joined into one; needs `can_pack`. It does not follow
            later changes of the weights.
        rows: Rows of x that the layout is for.
    """

    def __init__(
        self, weights: Sequence[Tensor], biases: Sequence[Tensor | None] | None = None, *, packed: bool, rows: int
    ) -> None:
        self.weights = [weight.detach() for weight in weights]
        self.biases = [None] * len(weights) if biases is None else list(biases)
        self.packed: Tensor | None = None
        self.turned: Tensor | None = None
        self.bias: Tensor | None = None
        if packed:
            given = [bias for bias in self.biases if bias is not None]
            self.bias = torch.cat(given) if given else None
            if _reads_columns(self.weights, rows):
                self.turned = _turn(self.weights)
                return
            joined = self.weights[0] if len(weights) == 1 else torch.cat(self.weights)
            self.packed = torch.ops.mkldnn._reorder_linear_weight(joined.contiguous(), rows)

    def __call__(self, x: Tensor) -> Tensor:
        """(R, K) -> (R, ΣN)."""
        if self.packed is not None:
            result: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self.packed, self.bias, "none", [], "")
            return result
        if self.turned is not None and x.shape[0] == 1:
            return _product_with_columns(x, self.turned, self.bias)
        parts = [linear(x, weight, bias) for weight, bias in zip(self.weights, self.biases, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _reads_columns(weights: Sequence[Tensor], rows: int) -> bool:
    """True if one row of float32 is best multiplied with these weights by their columns: oneDNN has no AVX-512."""
    size = sum(weight.numel() * weight.element_size() for weight in weights)
    return rows == 1 and weights[0].dtype == torch.float32 and size >= TURNED_BYTES and not is_faster()


def _turn(weights: Sequence[Tensor]) -> Tensor:
    """[W₁, W₂, …]ᵀ, (K, ΣN), in large pages."""
    turned = large_pages.empty(weights[0].shape[1], sum(weight.shape[0] for weight in weights))
    for target, weight in zip(turned.split([weight.shape[0] for weight in weights], dim=1), weights, strict=True):
        target.copy_(weight.t())
    return turned


def _product_with_columns(x: Tensor, turned: Tensor, bias: Tensor | None) -> Tensor:
    """X Wᵀ + b as a sum over parts of K, one for each thread: PyTorch gives one row to a single thread.

    Args:
        x: (1, K).
        turned: Wᵀ, (K, N).
        bias: b, (N,), or None.

    Returns:
        (1, N).
    """
    parts = num_parts(turned.shape[0])
    sums = torch.bmm(x.view(parts, 1, -1), turned.view(parts, -1, turned.shape[1]))  # (parts, 1, N)
    result = sums[0] if parts == 1 else sums.sum(dim=0)
    return result if bias is None else result.add_(bias)


class Int8FewRowsLinear:
    """[x W₁ᵀ + b₁, x W₂ᵀ + b₂, …] of layers of which some have weights in 8 bits.

    Args:
        layers: `Int8WeightLinear` and, where one is too small to be worth it, `nn.Linear`.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = list(layers)

    def __call__(self, x: Tensor) -> Tensor:
        """(R, K) -> (R, ΣN)."""
        parts = [layer(x) for layer in self.layers]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


FewRows = FewRowsLinear | Int8FewRowsLinear


class FewRowsNorm:
    """w · x / √(mean(x²) + ε) as w√H · x / hypot(‖x‖, √(εH)), which is half the calls; computed in float32.

    Args:
        weight: w, (H,).
        eps: ε.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        width = weight.shape[0]
        self.weight = weight.detach().float() * math.sqrt(width)
        self.least = torch.full((), math.sqrt(eps * width), dtype=torch.float32, device=weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., H) -> (..., H) in the dtype of x."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return (x / torch.hypot(norm, self.least)).mul_(self.weight).to(x.dtype)


def one_query_scores(query: Tensor, key: Tensor) -> Tensor:
    """Q Kᵀ in float32 for a few queries and many keys.

    Args:
        query: (N, M, D).
        key: (N, T, D), fastest in one piece.

    Returns:
        (N, M, T).
    """
    if key.dtype != torch.float32 and key.shape[1] <= WIDENED_KEYS:
        query, key = query.float(), key.float()
    if query.shape[1] > 1:  # as (K Qᵀ)ᵀ the keys are read once
        return torch.bmm(key, query.transpose(1, 2)).transpose(1, 2).float()
    return torch.bmm(query, key.transpose(1, 2)).float()


def one_query_values(weights: Tensor, value: Tensor) -> Tensor:
    """W V in the dtype of V.

    Args:
        weights: (N, M, T) in float32.
        value: (N, T, D).

    Returns:
        (N, M, D).
    """
    if value.dtype != torch.float32 and value.shape[1] <= WIDENED_KEYS:
        return torch.bmm(weights, value.float()).to(value.dtype)
    return torch.bmm(weights.to(value.dtype), value)


def one_query_attention(
    query: Tensor, key: Tensor, value: Tensor, lam: Tensor, *, key_mask: Tensor | None, scale: float
) -> Tensor:
    """Differential attention of the last token, in few calls: while generating, they cost more than their work.

    Args:
        query: (B, A, 1, D).
        key: (B, K, T, D).
        value: (B, K, T, D).
        lam: λ, a 0-d float32 tensor.
        key_mask: (B, T), True = attend; None for all.
        scale: Factor of the scores.

    Returns:
        (B, 1, A/2, 2D).
    """
    batch, num_maps, _, width = query.shape
    num_kv, num_keys = key.shape[1:3]
    group = num_maps // num_kv
    kind, wide = query.dtype, torch.promote_types(query.dtype, torch.float32)
    query, key, value = query.reshape(-1, group, width), key.flatten(0, 1), value.flatten(0, 1)  # B·K first
    if num_keys <= WIDENED_KEYS:
        query, key, value = query.to(wide), key.to(wide), value.to(wide)
    scores = torch.bmm(query, key.transpose(1, 2)).view(batch, num_maps, num_keys).to(wide) * scale
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None], torch.finfo(wide).min)
    weights = scores.softmax(dim=-1)
    if key_mask is not None:
        weights = weights * key_mask.any(dim=1)[:, None, None]
    maps, shape = weights.view(batch, 2, num_maps // 2, num_keys), (batch, 2, num_maps // 2, num_keys)
    # twice, in one call: each difference meets two value heads
    both = torch.addcmul(maps[:, :1].expand(shape), lam, maps[:, 1:].expand(shape), value=-1.0)
    both = both.to(query.dtype).view(-1, group, num_keys)
    context = torch.bmm(both, value).to(kind).view(batch, 2, num_maps // 2, width)
    return context.transpose(1, 2).reshape(batch, 1, num_maps // 2, 2 * width)
