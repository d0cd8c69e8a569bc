"""Memory in large pages, for weights that are read again and again: each small page costs a look-up of its address."""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

#: bytes of a large page
_PAGE = 2**21


def empty(*shape: int) -> Tensor:
    """A float32 tensor on the CPU with arbitrary values, in large pages where the system gives them and it has one."""
    size = 4 * math.prod(shape)
    if size < _PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=torch.float32)
    memory = mmap.mmap(-1, size + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    data = torch.frombuffer(memory, dtype=torch.uint8)  # keeps the memory
    start = -data.data_ptr() % _PAGE
    return data[start : start + size].view(torch.float32).view(shape)
