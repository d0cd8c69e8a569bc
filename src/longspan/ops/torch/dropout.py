"""Dropout (Srivastava et al., 2014, https://jmlr.org/papers/v15/srivastava14a.html)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from longspan.ops.fast_paths import fast_path
from longspan.ops.torch.modes import is_traced

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
    kernel = fast_path("dropout.dropout") if probability < 1.0 and pays_off(x) else None
    dropped: Tensor = F.dropout(x, p=probability) if kernel is None else kernel(x, probability)
    return dropped


def pays_off(x: Tensor) -> bool:
    """True if PyTorch's own dropout of a tensor is slow: on a CPU, where it draws one number after the other."""
    return x.device.type == "cpu" and x.numel() > _FEW_ENTRIES and x.is_floating_point() and not is_traced(x)
