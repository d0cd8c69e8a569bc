"""Differential attention: the difference of two softmax maps, over causal, padded or packed sequences.

Axes: B batch, A softmax maps ("heads" of the configuration), K key/value heads, S queries, T keys, D head size.

Map a reads key head a // (A/K). The maps are paired half against half; pair j owns maps j and j + A/2, and a value of
2D that joins the value heads of both (Ye et al., 2024, "Differential Transformer", equation 1):

    weights_a = softmax(q_a kᵀ · scale)
    output_j  = (weights_j − λ · weights_{j + A/2}) [v_j, v_{j + A/2}]

Subtracting before the value product, rather than after, computes each score once and halves the products with the
values. A query that may attend to no key gives 0, in every implementation and dtype.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from longspan.errors import InputError
from longspan.ops.dispatch import Dispatcher
from longspan.ops.fast_paths import NOT_AVAILABLE, fast_path
from longspan.ops.torch.dropout import dropout as drop
from longspan.ops.torch.modes import has_fast_path

_CHUNKED = "differential_chunked.chunked_attention"


@dataclass(frozen=True)
class Request:
    """What is asked of the operation, as far as the choice of an implementation depends on it.

    Attributes:
        device: Type of the device.
        output_weights: The maps are returned.
        transformed: A transform of `torch.func` looks on, or `torch.jit.trace`.
    """

    device: str
    output_weights: bool
    transformed: bool

    @classmethod
    def of(cls, *tensors: Tensor, output_weights: bool) -> Request:
        """Describe a call with these tensors."""
        transformed = not torch.compiler.is_compiling() and (
            torch.jit.is_tracing()  # type: ignore[attr-defined]  # not exported by its stubs
            or any(torch._C._functorch.is_functorch_wrapped_tensor(tensor) for tensor in tensors)
        )
        return cls(tensors[0].device.type, output_weights, transformed)


def _why_not_chunked(request: Request) -> str | None:
    if request.output_weights:
        return "it never holds the attention weights that were asked for"
    if request.transformed:
        return "transforms of torch.func (vmap, grad) cannot see into its operator, nor can torch.jit.trace"
    return None if has_fast_path(_CHUNKED) else NOT_AVAILABLE


def _why_not_sdpa(request: Request) -> str | None:
    if request.output_weights:
        return "scaled_dot_product_attention does not return the attention weights that were asked for"
    return None


#: "chunked" takes a few query rows at a time; "eager" is the definition; "sdpa" calls the fused kernels of PyTorch
IMPLEMENTATIONS: Dispatcher[Request] = Dispatcher(
    "differential attention", {"chunked": _why_not_chunked, "eager": lambda _: None, "sdpa": _why_not_sdpa}
)


def choose_implementation(name: str, request: Request) -> str:
    """The implementation that serves `request`; `"auto"` takes the fused kernels on an accelerator.

    Raises:
        InputError: the name is unknown or cannot serve.
    """
    if name == "auto" and not (request.output_weights or request.transformed):
        if torch.compiler.is_exporting():  # a graph for elsewhere, where nobody knows an operator of ours
            name = "eager"
        elif request.device != "cpu":
            name = "sdpa"
    return IMPLEMENTATIONS.choose(name, request, tracing=torch.compiler.is_compiling())


@dataclass(frozen=True)
class DifferentialAttention:
    """Result of `differential_attention`.

    Attributes:
        output: (B, S, A/2, 2D).
        weights: The softmax maps before the subtraction, after dropout, (B, A, S, T); None unless asked for.
        differential_weights: weights_j − λ · weights_{j + A/2}, (B, A/2, S, T); None unless asked for.
    """

    output: Tensor
    weights: Tensor | None = None
    differential_weights: Tensor | None = None


def differential_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lam: Tensor,
    *,
    implementation: str = "auto",
    position: Tensor | None = None,
    key_mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    output_weights: bool = False,
    overwrite_query: bool = False,
) -> DifferentialAttention:
    """Causal differential attention.

    Args:
        query: (B, A, S, D).
        key: (B, K, T, D); K divides A. Never repeated in memory by `"chunked"` and `"eager"`.
        value: (B, K, T, D).
        lam: λ, a 0-d float32 tensor.
        implementation: `"auto"`, `"chunked"`, `"sdpa"` or `"eager"`.
        position: Place of each query among the keys, (S,): query i sees keys 0…position[i]. Default: the queries are
            the last S keys.
        key_mask: (B, T), True = attend; hides padding.
        segment_ids: (B, T) integers; a query sees only keys of its own segment (packed documents).
        scale: Factor of the scores; default 1/√D.
        dropout: Probability with which an entry of a map is dropped; one draw serves both halves of the value.
        output_weights: Return the maps as well; only `"eager"` holds them.
        overwrite_query: The memory of the queries may take the result: no gradient is asked for, and nobody reads them
            afterwards. `"chunked"` makes use of it.

    Returns:
        The output and, if asked for, the maps.

    Raises:
        InputError: shapes or dtypes disagree, A is odd, K does not divide A, or the implementation cannot serve.
    """
    _check(query, key, value, position, key_mask, segment_ids)
    chosen = choose_implementation(implementation, Request.of(query, key, value, lam, output_weights=output_weights))
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    if chosen == "chunked":
        arguments = (query, key, value, lam, position, key_mask, segment_ids)
        output = _chunked(*arguments, scale=scale, dropout=dropout, overwrite_query=overwrite_query)
        return DifferentialAttention(output)
    plain = position is None and key_mask is None and segment_ids is None
    if chosen == "sdpa" and plain and query.shape[2] in (1, key.shape[2]):  # no mask: the leanest kernels
        causal = query.shape[2] > 1
        return DifferentialAttention(
            sdpa_attention(query, key, value, lam, mask=None, causal=causal, scale=scale, dropout=dropout)
        )
    mask = visible_keys(query, key, position=position, key_mask=key_mask, segment_ids=segment_ids)
    if chosen == "sdpa":
        return DifferentialAttention(sdpa_attention(query, key, value, lam, mask=mask, scale=scale, dropout=dropout))
    return eager_attention(query, key, value, lam, mask=mask, scale=scale, dropout=dropout)


def _chunked(*arguments: Tensor | None, scale: float, dropout: float, overwrite_query: bool) -> Tensor:
    seed = torch.randint(2**62, ()) if dropout > 0.0 else None
    if torch.compiler.is_compiling():
        return torch.ops.longspan.differential_attention(*arguments, seed, scale, dropout)
    kernel = fast_path(_CHUNKED)
    assert kernel is not None
    return kernel(*arguments, seed, scale, dropout, overwrite_query=overwrite_query)


def visible_keys(
    query: Tensor, key: Tensor, *, position: Tensor | None, key_mask: Tensor | None, segment_ids: Tensor | None
) -> Tensor:
    """Which keys each query may see; arguments as in `differential_attention`.

    Returns:
        Boolean, (1 or B, 1, S, T).
    """
    num_queries, num_keys = query.shape[2], key.shape[2]
    keys = torch.arange(num_keys, device=key.device)
    if position is None:
        position = keys[num_keys - num_queries :]
    visible = (keys <= position[:, None])[None, None]
    if key_mask is not None:
        visible = visible & key_mask[:, None, None, :]
    if segment_ids is not None:
        visible = visible & (segment_ids[:, position][:, None, :, None] == segment_ids[:, None, None, :])
    return visible


def eager_attention(
    query: Tensor, key: Tensor, value: Tensor, lam: Tensor, *, mask: Tensor, scale: float, dropout: float = 0.0
) -> DifferentialAttention:
    """Differential attention by its definition, with all maps in memory.

    Args:
        query: (B, A, S, D).
        key: (B, K, T, D).
        value: (B, K, T, D).
        lam: λ, a 0-d float32 tensor.
        mask: True = attend, (1 or B, 1, S, T).
        scale: Factor of the scores.
        dropout: Probability with which an entry of a map is dropped.
    """
    num_kv, group = key.shape[1], query.shape[1] // key.shape[1]
    scores = torch.matmul(_by_key_head(query * scale, num_kv), key.transpose(-1, -2))
    scores = _by_map(scores, group).masked_fill(~mask, torch.finfo(scores.dtype).min)  # (B, A, S, T)
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    weights = weights.masked_fill(~mask.any(dim=-1, keepdim=True), 0.0).to(query.dtype)
    weights = drop(weights, dropout)
    first, second = weights.chunk(2, dim=1)
    difference = _difference(first, second, lam)  # (B, A/2, S, T)
    # maps j and j + A/2 each read their own value head, with the same difference
    both = _by_key_head(torch.cat((difference, difference), dim=1), num_kv)
    first, second = _by_map(torch.matmul(both, value), group).chunk(2, dim=1)  # (B, A/2, S, D)
    return DifferentialAttention(torch.cat((first, second), dim=-1).transpose(1, 2), weights, difference)


def _by_key_head(x: Tensor, num_kv: int) -> Tensor:
    """(B, A, S, ...) -> (B, K, A/K·S, ...): the rows that meet one key head, next to each other.

    A concatenation, since `torch.export` cannot prove that a view is possible at every length.
    """
    return torch.cat(x.unflatten(1, (num_kv, x.shape[1] // num_kv)).unbind(2), dim=2)


def _by_map(x: Tensor, group: int) -> Tensor:
    """(B, K, A/K·S, ...) -> (B, A, S, ...); `group` is A/K."""
    return x.unflatten(2, (group, x.shape[2] // group)).flatten(1, 2)


def sdpa_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lam: Tensor,
    *,
    mask: Tensor | None,
    causal: bool = False,
    scale: float,
    dropout: float = 0.0,
) -> Tensor:
    """Differential attention by one fused call with queries, keys and values of equal width 2D.

    The fused kernels want values as wide as the keys, so queries and keys are padded with zeros to 2D: the scores stay
    the same and both value halves share one softmax and one dropout mask.

    Args:
        query: (B, A, S, D).
        key: (B, K, T, D).
        value: (B, K, T, D).
        lam: λ, a 0-d float32 tensor.
        mask: True = attend, (1 or B, 1, S, T).
        causal: Query i sees keys 0…i; needs S = T and no mask.
        scale: Factor of the scores.
        dropout: Probability with which an entry of a map is dropped.

    Returns:
        (B, S, A/2, 2D).
    """
    num_maps, num_kv, width = query.shape[1], key.shape[1], query.shape[-1]
    if num_kv % 2:  # the halves of the maps split the middle group: every key/value head serves two groups of maps
        key, value = (tensor.repeat_interleave(2, dim=1) for tensor in (key, value))
    joined = torch.cat(value.chunk(2, dim=1), dim=-1).repeat(1, 2, 1, 1)  # (B, K, T, 2D)
    query, key = F.pad(query, (0, width)), F.pad(key, (0, width))
    if query.device.type == "cpu" or mask is not None:  # kernels that do not group heads
        key, joined = (tensor.repeat_interleave(num_maps // tensor.shape[1], dim=1) for tensor in (key, joined))
    grouped = key.shape[1] != num_maps
    attends = None
    if mask is not None:
        attends = mask.any(dim=-1, keepdim=True)
        mask = mask | ~attends
    output = F.scaled_dot_product_attention(
        query, key, joined, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=grouped
    )
    first, second = output.chunk(2, dim=1)  # (B, A/2, S, 2D)
    difference = _difference(first, second, lam)
    if attends is not None:
        difference = difference.masked_fill(~attends, 0.0)
    return difference.transpose(1, 2)


def _difference(first: Tensor, second: Tensor, lam: Tensor) -> Tensor:
    """First − λ · second with λ unrounded: half-precision operands are subtracted in float32."""
    wide = torch.promote_types(first.dtype, torch.float32)
    return (first.to(wide) - lam * second.to(wide)).to(first.dtype)


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position: Tensor | None,
    key_mask: Tensor | None,
    segment_ids: Tensor | None,
) -> None:
    batch, num_maps, num_queries, head_dim = query.shape
    num_kv, num_keys = key.shape[1:3]
    if num_maps % 2 or num_maps % num_kv:
        raise InputError(
            "differential attention needs an even number of maps that the key/value heads divide. "
            f"Received: {num_maps} maps, {num_kv} key/value heads"
        )
    if key.shape != value.shape or key.shape[0] != batch or key.shape[3] != head_dim:
        raise InputError(
            "query (B, A, S, D), key (B, K, T, D) and value (B, K, T, D) must agree in B, K, T and D. "
            f"Received: {tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}"
        )
    if not query.dtype == key.dtype == value.dtype:
        raise InputError(
            f"query, key and value must have one dtype. Received: {query.dtype}, {key.dtype}, {value.dtype}"
        )
    if position is not None and tuple(position.shape) != (num_queries,):
        raise InputError(f"position must have the shape (S,) = ({num_queries},). Received: {tuple(position.shape)}")
    for name, tensor in (("key_mask", key_mask), ("segment_ids", segment_ids)):
        if tensor is not None and tuple(tensor.shape) != (batch, num_keys):
            raise InputError(
                f"{name} must have the shape (B, T) = ({batch}, {num_keys}). Received: {tuple(tensor.shape)}"
            )
