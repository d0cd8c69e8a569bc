"""Dropout (Srivastava et al., 2014, https://jmlr.org/papers/v15/srivastava14a.html)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from longspan.ops.fast_paths import fast_path
from longspan.ops.torch.modes import is_traced

_DROPOUT = "dropout.dropout"
#: entries up to which PyTorch's own serves
_FEW_ENTRIES = 2**14


def dropout(x: Tensor, probability: float, *, training: bool = True) -> Tensor:
    """Zero each entry with a probability, and divide the others by that of being kept.

    Args:
        x: Tensor of any shape.
        probability: In [0, 1].
        training: False returns `x`.

    Returns:
        A tensor like `x`.
    """
    if not training or probability == 0.0:
        return x
    if kernel_serves(x) and probability < 1.0:
        kernel = fast_path(_DROPOUT)
        if kernel is not None:
            dropped: Tensor = kernel(x, probability)
            return dropped
    return F.dropout(x, p=probability)


def kernel_serves(x: Tensor) -> bool:
    """True if the kernel for CPUs serves a tensor, where it is not switched off."""
    if x.device.type != "cpu" or x.numel() <= _FEW_ENTRIES or not x.is_floating_point() or is_traced(x):
        return False
    return fast_path(_DROPOUT) is not None
