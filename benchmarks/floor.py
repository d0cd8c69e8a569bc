"""The time that the products of a case must take on this machine: every shape at the rate of its own fastest kernel.

A shape is (products, rows, inner, columns): so many products of (rows, inner) by (inner, columns) at once; `READ`
stands for weights that one row after the other meets, which cost the time to read them.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from typing import Any

Shape = tuple[int, int, int, int]
Kernels = dict[str, Callable[[], Any]]

#: the product whose rate stands for those of a case that does not say its shapes
LARGE: Shape = (1, 4096, 768, 3072)
#: "operations" of this shape are bytes of weights that are read
READ: Shape = (0, 0, 0, 0)
#: bytes of the memory that is read to find its bandwidth: more than any cache holds
_READ_BYTES = 1 << 29
#: runs of each kernel before those that count (oneDNN makes its kernel in the first, and lays out in the second), and
#: readings that count
_WARM, _TIMED = 2, 5
#: seconds that a reading takes at least: a small product is repeated
_READING_SECONDS = 2e-3
#: seconds after which NumPy's threads (OpenBLAS) have gone to sleep: they spin after a product, each on a core
#: that PyTorch's threads then wait for
_SPIN_SECONDS = 0.2


class Operations(dict[Shape, float]):
    """Floating-point operations by the shape of the product that they belong to."""

    def __add__(self, other: Operations) -> Operations:
        return Operations({shape: self.get(shape, 0.0) + other.get(shape, 0.0) for shape in {**self, **other}})

    def __rmul__(self, times: float) -> Operations:
        return Operations({shape: times * operations for shape, operations in self.items()})


def linear(rows: int, inner: int, columns: int) -> Operations:
    """A linear layer on (rows, inner)."""
    return Operations({(1, rows, inner, columns): 2.0 * rows * inner * columns})


def attention(heads: int, queries: int, keys: int, size: int, *, pairs: float) -> Operations:
    """Scores and values of `pairs` pairs of query and key a head, computed for so many queries and keys at once."""
    operations = 2.0 * heads * pairs * size
    return Operations({(heads, queries, size, keys): operations}) + Operations(
        {(heads, queries, keys, size): operations}
    )


def timed(run: Callable[[], Any], repeats: int = 1) -> float:
    """Seconds of one run, of so many in a row."""
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def alone(name: str, run: Callable[[], Any], readings: int) -> float:
    """Seconds of one run of a kernel that has the machine to itself: the least of so many readings."""
    for _ in range(_WARM):
        once = timed(run)
    repeats = max(1, round(_READING_SECONDS / once))
    seconds = min(timed(run, repeats) for _ in range(readings))
    if name == "numpy":
        time.sleep(_SPIN_SECONDS)
    return seconds


def product_kernels(x: Any, weight: Any) -> Kernels:
    """All ways that PyTorch and NumPy have to multiply (M, K) by a weight (N, K)."""
    import torch
    from torch.nn import functional as F

    onednn = torch.ops.mkldnn
    kernels = {"linear": lambda: F.linear(x, weight)}
    if x.dtype == torch.float32:
        left, right = x.numpy(), weight.numpy()
        kernels["numpy"] = lambda: left @ right.T
    else:
        kernels["float32, converted"] = lambda: F.linear(x.float(), weight.float()).to(x.dtype)
    is_supported = {
        torch.float32: lambda: True,
        torch.bfloat16: onednn._is_mkldnn_bf16_supported,
        torch.float16: onednn._is_mkldnn_fp16_supported,
    }
    if torch.backends.mkldnn.is_available() and is_supported[x.dtype]():
        packed = onednn._reorder_linear_weight(weight, x.shape[0])
        kernels["oneDNN"] = lambda: onednn._linear_pointwise(x, weight, None, "none", [], "")
        kernels["oneDNN, packed"] = lambda: onednn._linear_pointwise(x, packed, None, "none", [], "")
    return kernels


def batched_kernels(x: Any, y: Any) -> Kernels:
    """All ways that PyTorch and NumPy have to multiply (P, M, K) by (P, N, K)."""
    import torch

    turned = y.transpose(1, 2)
    laid_out = turned.contiguous()
    kernels: Kernels = {"bmm": lambda: torch.bmm(x, turned), "bmm, laid out": lambda: torch.bmm(x, laid_out)}
    if x.dtype == torch.float32:
        left, right = x.numpy(), laid_out.numpy()
        kernels["numpy"] = lambda: left @ right
    else:
        kernels["float32, converted"] = lambda: torch.bmm(x.float(), turned.float()).to(x.dtype)
    return kernels


def reading_kernels(dtype: str) -> Kernels:
    """Ways to read memory once."""
    import torch

    kind = getattr(torch, dtype)
    matrix = torch.ones(_READ_BYTES // kind.itemsize // 4096, 4096, dtype=kind)
    vector = torch.ones(4096, dtype=kind)
    words = matrix.view(torch.int32)
    return {"product": lambda: matrix @ vector, "sum": lambda: words.sum(dtype=torch.int32)}


@functools.cache
def fastest_kernel(shape: Shape, dtype: str) -> tuple[str, Callable[[], Any]]:
    """The fastest way to products of a shape on this machine: its name, and one run."""
    import torch

    if shape == READ:
        kernels = reading_kernels(dtype)
    else:
        products, rows, inner, columns = shape
        kind = getattr(torch, dtype)
        x, y = torch.randn(products, rows, inner, dtype=kind), torch.randn(products, columns, inner, dtype=kind)
        kernels = product_kernels(x[0], y[0]) if products == 1 else batched_kernels(x, y)
    with torch.no_grad():
        seconds = {name: alone(name, run, _TIMED) for name, run in kernels.items()}
    best = min(kernels, key=seconds.__getitem__)
    return best, kernels[best]


def rate(shape: Shape, dtype: str, rounds: int) -> float:
    """Operations (for `READ`: bytes) per second of the fastest kernel of a shape."""
    import torch

    name, run = fastest_kernel(shape, dtype)
    products, rows, inner, columns = shape
    operations = _READ_BYTES if shape == READ else 2.0 * products * rows * inner * columns
    with torch.no_grad():
        return operations / alone(name, run, rounds)


def matmul_rate(dtype: str, rounds: int = 7) -> float:
    """Floating-point operations per second of a large matrix product by the fastest kernel."""
    return rate(LARGE, dtype, rounds)


def floor_seconds(operations: float | Operations, dtype: str, rounds: int = 3) -> float:
    """Seconds that the operations must take; a number of unknown shapes goes at the rate of a large product."""
    by_shape = operations if isinstance(operations, Operations) else Operations({LARGE: operations})
    return sum(amount / rate(shape, dtype, rounds) for shape, amount in by_shape.items())


def kernels_used(operations: float | Operations, dtype: str) -> str:
    """Names of the fastest kernels of the shapes."""
    shapes: Iterable[Shape] = operations if isinstance(operations, Operations) else (LARGE,)
    return ", ".join(sorted({fastest_kernel(shape, dtype)[0] for shape in shapes}))
