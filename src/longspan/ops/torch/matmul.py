"""Matrix products on a CPU, by the kernel that is fastest there.

PyTorch gives float32 products to the BLAS that it was built with, which does not use the wide vectors of every CPU.
oneDNN, which PyTorch holds as well, does: on a CPU with AVX-512 from another maker than the BLAS it ran the same
product 2.2 times as fast, with the same rounding errors. Where it is not there or not faster, all goes as usual.
bfloat16 products are oneDNN's anyway; without gradients its linear layer is called by a shorter way.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from longspan.ops.torch.prepacked import prepacked

#: fewest rows of a product for which setting up the kernel pays off
_MIN_ROWS = 32
#: fewest columns and summands, likewise
_MIN_WIDTH = 32
#: fewest multiplications of one product of a batch: the usual kernel starts all of them at once
_MIN_BATCHED = 2**21
#: entries of a weight from which on oneDNN reads it faster for a few rows as well
_LARGE_WEIGHT = 2**18


@functools.cache
def has_onednn() -> bool:
    """True if this PyTorch holds oneDNN."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _count_operations(a: torch.Size, b: torch.Size, *others: Any, **more: Any) -> int:
    """Floating-point operations of A bᵀ, for `torch.utils.flop_counter`, which does not know the kernel."""
    return 2 * a.numel() * b[0]


if has_onednn():
    register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_count_operations)


def _serves(*tensors: Tensor | None, dtype: torch.dtype = torch.float32) -> bool:
    """True if oneDNN can take these operands: plain tensors in the memory of a CPU, outside of any tracing."""
    if torch.compiler.is_compiling() or not has_onednn() or torch.is_autocast_enabled("cpu"):
        return False
    return all(
        tensor is None
        or (
            tensor.dtype == dtype
            and tensor.device.type == "cpu"
            and type(tensor) in (Tensor, torch.nn.Parameter)
            and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        )
        for tensor in tensors
    )


def _onednn(a: Tensor, b: Tensor, bias: Tensor | None = None, *, activation: str = "none") -> Tensor:
    """activation(A bᵀ + bias) for (..., K), (N, K) and (N,)."""
    laid_out = prepacked(b)
    if laid_out is not None:
        b = laid_out
    elif not (b.is_contiguous() or b.t().is_contiguous()):
        b = b.contiguous()  # a part of a larger tensor would go to a kernel that is far slower
    result: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, activation, [], "")
    return result


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """A b, without a gradient.

    Args:
        a: (M, K); fastest with its rows in one piece.
        b: (K, N), in either layout.

    Returns:
        (M, N).
    """
    rows, summands = a.shape
    worth_it = rows >= _MIN_ROWS and summands >= _MIN_WIDTH and b.shape[1] >= _MIN_WIDTH
    return _onednn(a, b.t()) if worth_it and _serves(a, b) else torch.mm(a, b)


def batched_matmul(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    """A b for every pair of a batch, with a gradient unless `out` is given.

    Args:
        a: (R, M, K); fastest with its rows in one piece.
        b: (R, K, N), in either layout.
        out: Where to write the result, (R, M, N): fresh memory costs as much as a small product.

    Returns:
        (R, M, N).
    """
    if not _serves(a, b):  # first: a traced graph must not depend on sizes
        return torch.bmm(a, b) if out is None else torch.bmm(a, b, out=out)
    rows, summands, columns = a.shape[1], a.shape[2], b.shape[2]
    if min(rows, summands, columns) < _MIN_WIDTH or rows * summands * columns < _MIN_BATCHED:
        return torch.bmm(a, b) if out is None else torch.bmm(a, b, out=out)
    if out is None and torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
        result: Tensor = _BatchedMatmul.apply(a, b)
        return result
    return _batched_onednn(a, b, out)


def _batched_onednn(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    output = a.new_empty(a.shape[0], a.shape[1], b.shape[2]) if out is None else out
    for row, (left, right) in enumerate(zip(a, b.transpose(1, 2), strict=True)):
        output[row] = _onednn(left, right)
    return output


class _BatchedMatmul(torch.autograd.Function):
    """a b and its gradients: da = g bᵀ, db = aᵀ g."""

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return _batched_onednn(a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        needs_a, needs_b = ctx.needs_input_grad
        return (
            batched_matmul(gradient, b.transpose(1, 2)) if needs_a else None,
            batched_matmul(a.transpose(1, 2).contiguous(), gradient) if needs_b else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X Wᵀ + b, with a gradient.

    Args:
        x: (..., K).
        weight: W, (N, K).
        bias: b, (N,), or None.

    Returns:
        (..., N).
    """
    if _takes_inference(x, weight, bias):
        return _onednn(x, weight, bias)  # in bfloat16 the usual way ends there too, by a longer path
    width = x.shape[-1]
    tracks = _tracks(x, weight, bias)
    # a traced graph must not depend on sizes
    is_small = not torch.compiler.is_compiling() and x.numel() < _MIN_ROWS * width
    if is_small and (tracks or weight.numel() < _LARGE_WEIGHT):
        return F.linear(x, weight, bias)
    if width < _MIN_WIDTH or weight.shape[0] < _MIN_WIDTH or not _serves(x, weight, bias):
        return F.linear(x, weight, bias)
    if tracks:
        result: Tensor = _Linear.apply(x, weight, bias)
        return result
    return _onednn(x, weight, bias)


def linear_silu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """silu(x Wᵀ + b) with silu(z) = z · sigmoid(z), in one pass over the result where that is possible.

    Half precision is then rounded once, after silu, and not before it as well.

    Args:
        x: (..., K).
        weight: W, (N, K).
        bias: b, (N,), or None.

    Returns:
        (..., N).
    """
    if not _takes_inference(x, weight, bias):
        return F.silu(linear(x, weight, bias))
    return _onednn(x, weight, bias, activation="swish")


def _tracks(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _takes_inference(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """True if oneDNN's linear layer serves best, in float32 or bfloat16, without a gradient."""
    if torch.compiler.is_compiling() or x.dtype not in (torch.float32, torch.bfloat16) or _tracks(x, weight, bias):
        return False
    few_rows = x.numel() < _MIN_ROWS * x.shape[-1] and prepacked(weight) is None
    small = few_rows or min(weight.shape) < _MIN_WIDTH
    if small or not _serves(x, weight, bias, dtype=x.dtype):
        return False
    return x.dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _Linear(torch.autograd.Function):
    """x Wᵀ + b and its gradients: dx = g W, dW = gᵀ x, db = Σ g."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _onednn(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            linear(gradient, weight.t()) if needs_x else None,
            _outer(rows, x.reshape(-1, x.shape[-1])) if needs_weight else None,
            rows.sum(dim=0) if needs_bias else None,
        )


def _outer(g: Tensor, x: Tensor) -> Tensor:
    """gᵀ x for (M, N) and (M, K); the smaller of the two is brought into rows first."""
    if x.shape[1] <= g.shape[1]:
        return linear(x.t().contiguous(), g.t()).t()
    return linear(g.t().contiguous(), x.t())
