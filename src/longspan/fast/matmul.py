"""Matrix products on a CPU, by the kernel that is fastest there.

PyTorch gives float32 products to the BLAS that it was built with, which does not use the wide vectors of every CPU.
oneDNN, which PyTorch holds as well, does: on a CPU with AVX-512 from another maker than the BLAS it ran the same
product much faster, with the same rounding errors. Without AVX-512 the BLAS is faster.
Where it is not there or not faster, all goes as usual. It keeps half a megabyte for every number of rows that a product
is called with, so that products are given to it in pieces of few sizes.
bfloat16 products are oneDNN's anyway; without gradients its linear layer is called by a shorter way. On a CPU without
instructions for a half-precision dtype the usual kernel takes 6 to 8 times as long as the product in float32, which
therefore serves many rows there.

Half precision is rounded once, or, where a gradient is asked for or few rows come, once for every step of the formula.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from longspan.fast.prepacked import prepacked
from longspan.nn.torch.activations import ACTIVATIONS, Activation
from longspan.ops.fast_paths import say_widened

#: fewest rows of a product for which setting up the kernel pays off
_MIN_ROWS = 32
#: fewest columns and summands, likewise
_MIN_WIDTH = 32
#: fewest multiplications of one product of a batch: the usual kernel starts all of them at once
_MIN_BATCHED = 2**21
#: rows of a piece of a product: first pieces below so many rows have a multiple of so many
_GRAINS = ((256, 32), (1024, 64), (4096, 256))
_LEAST_PIECE = 32
#: entries of a weight from which on oneDNN reads it faster for a few rows as well
_LARGE_WEIGHT = 2**18
_PLAIN_TYPES = (Tensor, torch.nn.Parameter)
#: an activation as oneDNN computes it on what it is about to write: name and kind
PostOp = tuple[str, str]
_NO_POST_OP: PostOp = ("none", "")
_POST_OPS: tuple[tuple[Activation, PostOp], ...] = (
    (ACTIVATIONS["gelu"], ("gelu", "none")),
    (ACTIVATIONS["gelu_new"], ("gelu", "tanh")),
    (ACTIVATIONS["silu"], ("swish", "")),
    (ACTIVATIONS["relu"], ("relu", "")),
)


@functools.cache
def has_onednn() -> bool:
    """True if this PyTorch holds oneDNN."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@functools.cache
def is_faster() -> bool:
    """True if oneDNN's float32 products are faster than those of the BLAS on this CPU: it has AVX-512."""
    return has_onednn() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def _count_operations(a: torch.Size, b: torch.Size, *others: Any, **more: Any) -> int:
    """Floating-point operations of A bᵀ, for `torch.utils.flop_counter`, which does not know the kernel."""
    return 2 * a.numel() * b[0]


if has_onednn():
    register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_count_operations)
    _linear_pointwise = torch.ops.mkldnn._linear_pointwise.default


@functools.cache
def _inference_dtypes() -> tuple[torch.dtype, ...]:
    """Dtypes whose linear layers oneDNN serves best if no gradient is asked for."""
    if not has_onednn():
        return ()
    half = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (torch.float32, torch.bfloat16) if half else (torch.float32,)


@functools.cache
def widened_dtypes() -> tuple[torch.dtype, ...]:
    """Half-precision dtypes that this CPU has no instructions for."""
    if not has_onednn():
        return ()
    native = {torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported()}
    native[torch.float16] = torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return tuple(dtype for dtype, is_native in native.items() if not is_native)


def lacks_instructions(states: Tensor) -> bool:
    """True if this CPU takes several times as long for products of such half-precision states as for float32 ones."""
    return not torch.compiler.is_compiling() and states.device.type == "cpu" and states.dtype in widened_dtypes()


# The checks below come before each product. After a large product they are no longer in the caches of the core, and
# each small call costs several microseconds: hence few calls, and plain loops.


def _serves(*tensors: Tensor | None, dtype: torch.dtype = torch.float32) -> bool:
    """True if oneDNN can take these operands: plain tensors in the memory of a CPU, outside of any tracing."""
    if torch.compiler.is_compiling() or not has_onednn() or torch._C._are_functorch_transforms_active():
        return False
    for tensor in tensors:
        if tensor is not None and not (tensor.dtype == dtype and tensor.is_cpu and type(tensor) in _PLAIN_TYPES):
            return False
    return not torch.is_autocast_enabled("cpu")


def _is_best(*tensors: Tensor | None) -> bool:
    """True if oneDNN can take these float32 operands and is faster than the usual kernel."""
    return _serves(*tensors) and is_faster()


def _onednn(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """A bᵀ + bias for (..., K), (N, K) and (N,)."""
    return _pointwise(a, _in_one_piece(b), bias, _NO_POST_OP)


def _pointwise(a: Tensor, b: Tensor, bias: Tensor | None, post_op: PostOp) -> Tensor:
    """activation(A bᵀ + bias), in two pieces if the number of rows is not one of few: see `_pieces`."""
    name, kind = post_op
    width = a.shape[-1]
    rows = a.numel() // width
    head, tail = _pieces(rows)
    result: Tensor
    if head == rows:
        result = _linear_pointwise(a, b, bias, name, [], kind)
        return result
    flat = a.reshape(rows, width)
    result = flat.new_empty(rows, b.shape[0])
    result[:head] = _linear_pointwise(flat[:head], b, bias, name, [], kind)
    result[-tail:] = _linear_pointwise(flat[-tail:], b, bias, name, [], kind)
    return result.view(*a.shape[:-1], b.shape[0])


def _pieces(rows: int) -> tuple[int, int]:
    """Rows of a first piece, and of one that ends with the last row and may begin before the end of the first.

    A first piece has less than 32 rows, or a multiple of 32 below 256, of 64 below 1,024, of 256 below 4,096, and of an
    eighth to a sixteenth of itself above; a second one a power of two.
    """
    if rows < _LEAST_PIECE:
        return rows, 0
    grain = next((grain for limit, grain in _GRAINS if rows < limit), 1 << (rows.bit_length() - 5))
    rest = rows % grain
    return rows - rest, max(_LEAST_PIECE, 1 << (rest - 1).bit_length())


def _in_one_piece(b: Tensor) -> Tensor:
    """The matrix in either layout: a part of a larger one would go to a kernel that is far slower."""
    return b if b.is_contiguous() or b.t().is_contiguous() else b.contiguous()


def matmul(a: Tensor, b: Tensor, *, out: Tensor | None = None, adds: bool = False) -> Tensor:
    """A b, without a gradient.

    Args:
        a: (M, K); fastest with its rows in one piece.
        b: (K, N), in either layout.
        out: Where to write the result, (M, N): fresh memory costs as much as a small product.
        adds: Add to what `out` holds.

    Returns:
        (M, N).
    """
    rows, summands = a.shape
    worth_it = rows >= _MIN_ROWS and summands >= _MIN_WIDTH and b.shape[1] >= _MIN_WIDTH
    if worth_it and _is_best(a, b):
        product = _onednn(a, b.t())
        return product if out is None else out.add_(product) if adds else out.copy_(product)
    if out is None:
        return torch.mm(a, b)
    return out.addmm_(a, b) if adds else torch.mm(a, b, out=out)


def batched_matmul(a: Tensor, b: Tensor) -> Tensor:
    """A b for every pair of a batch, with a gradient.

    Args:
        a: (R, M, K); fastest with its rows in one piece.
        b: (R, K, N), in either layout.

    Returns:
        (R, M, N).
    """
    if not _is_best(a, b):  # first: a traced graph must not depend on sizes
        return torch.bmm(a, b)
    rows, summands, columns = a.shape[1], a.shape[2], b.shape[2]
    if min(rows, summands, columns) < _MIN_WIDTH or rows * summands * columns < _MIN_BATCHED:
        return torch.bmm(a, b)
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
        result: Tensor = _BatchedMatmul.apply(a, b)
        return result
    return _batched_onednn(a, b)


def _batched_onednn(a: Tensor, b: Tensor) -> Tensor:
    output = a.new_empty(a.shape[0], a.shape[1], b.shape[2])
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


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Activation | None = None) -> Tensor:
    """activation(X Wᵀ + b), with a gradient.

    Args:
        x: (..., K).
        weight: W, (N, K).
        bias: b, (N,), or None.
        activation: Function of single numbers; None for none. GELU, silu and ReLU are computed as the product is
            written, where no gradient is asked for: half precision is then rounded once, after them.

    Returns:
        (..., N).
    """
    post_op = _post_op(activation)
    if post_op is None:  # a function that oneDNN does not know
        assert activation is not None
        return activation(linear(x, weight, bias))
    laid_out = _inference_weight(x, weight, bias)
    if laid_out is not None:  # in bfloat16 the usual way ends there too, by a longer path
        return _pointwise(x, laid_out, bias, post_op)
    widens = _is_widened(x, weight, bias)
    result = (_widened if widens else _usual)(x, weight, bias)
    result = result if activation is None else activation(result)
    return result.to(x.dtype) if widens else result


def _post_op(activation: Activation | None) -> PostOp | None:
    """The activation as oneDNN computes it; None if it does not."""
    if activation is None:
        return _NO_POST_OP
    for function, post_op in _POST_OPS:
        if function is activation:
            return post_op
    return None


def _usual(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """X Wᵀ + b, with a gradient, where neither `_inference_weight` nor `_widened` serves."""
    width = x.shape[-1]
    tracks = _tracks(x, weight, bias)
    if not torch.compiler.is_compiling() and x.numel() == width and not tracks and _splits_row(x, weight, bias):
        return _one_row(x, weight, bias)
    # a traced graph must not depend on sizes
    is_small = not torch.compiler.is_compiling() and x.numel() < _MIN_ROWS * width
    if is_small and (tracks or weight.numel() < _LARGE_WEIGHT):
        return F.linear(x, weight, bias)
    if width < _MIN_WIDTH or weight.shape[0] < _MIN_WIDTH or not _is_best(x, weight, bias):
        return F.linear(x, weight, bias)
    if tracks:
        tracked: Tensor = _Linear.apply(x, weight, bias)
        return tracked
    return _onednn(x, weight, bias)


def num_parts(size: int) -> int:
    """Into how many equal parts an axis is best split, at most one for each thread."""
    threads = torch.get_num_threads()
    return next(parts for parts in range(threads, 0, -1) if size % parts == 0)


def _splits_row(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """True if threads are to share a float32 product of one row, for which the BLAS takes one alone."""
    if weight.numel() < _LARGE_WEIGHT or x.dtype != torch.float32 or not weight.is_contiguous():
        return False
    return torch.get_num_threads() > 1 and _serves(x, weight, bias) and not is_faster()


def _one_row(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """X Wᵀ + b for (..., K) of one row, (N, K) in one piece and (N,), by parts of N."""
    parts, width = num_parts(weight.shape[0]), x.shape[-1]
    rows = weight.view(parts, -1, width).transpose(1, 2)
    result = torch.bmm(x.reshape(1, 1, width).expand(parts, 1, width), rows).view(*x.shape[:-1], -1)
    return result if bias is None else result.add_(bias)


def linear_function(
    like: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: Activation | None = None
) -> Callable[[Tensor], Tensor]:
    """activation(X Wᵀ + b) as a function of x, for many x in a row: which kernel serves is looked up once.

    Args:
        like: What each x is like: it gives their dtype and device, and they come under the same modes of PyTorch.
        weight: W, (N, K).
        bias: b, (N,), or None.
        activation: As of `linear`.

    Returns:
        A function, (..., K) -> (..., N), with a gradient.
    """
    # an x may need a gradient where the one that it is like does not
    post_op = None if torch.is_grad_enabled() else _post_op(activation)
    laid_out = None if post_op is None else _inference_weight(like, weight, bias)
    if post_op is not None and laid_out is not None:
        return lambda x: _pointwise(x, laid_out, bias, post_op)
    return lambda x: linear(x, weight, bias, activation)


def _tracks(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _inference_weight(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """The weight as oneDNN's linear layer takes it, if that serves best, without a gradient; else None."""
    if torch.compiler.is_compiling() or x.dtype not in _inference_dtypes() or _tracks(x, weight, bias):
        return None
    if min(weight.shape) < _MIN_WIDTH or not _serves(x, weight, bias, dtype=x.dtype):
        return None
    packed = prepacked(weight)
    is_slower = x.numel() < _MIN_ROWS * x.shape[-1] or (x.dtype == torch.float32 and not is_faster())
    if packed is None and is_slower:
        return None
    return _in_one_piece(weight) if packed is None else packed


def _is_widened(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """True if the product is to be taken in float32: half precision, no instructions for it, many rows, no gradient."""
    if torch.compiler.is_compiling() or x.dtype not in widened_dtypes() or torch.is_grad_enabled():
        return False
    if x.numel() < _MIN_ROWS * x.shape[-1] or not _serves(x, weight, bias, dtype=x.dtype):
        return False
    say_widened(str(x.dtype).removeprefix("torch."))
    return True


def _widened(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """X Wᵀ + b in float32."""
    return F.linear(x.float(), weight.float(), None if bias is None else bias.float())


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
