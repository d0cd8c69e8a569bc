"""What tests of operations share: the two ways in which a CPU takes products of half precision."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def native_half(monkeypatch):
    """Products of half precision are taken as such, as on a CPU with instructions for them."""
    monkeypatch.setattr("longspan.fast.matmul.widened_dtypes", tuple)


@pytest.fixture(params=["native", "widened"])
def half_products(request, monkeypatch):
    """Products of half precision as such, and in float32, whatever this CPU would choose."""
    dtypes = (torch.bfloat16, torch.float16) if request.param == "widened" else ()
    monkeypatch.setattr("longspan.fast.matmul.widened_dtypes", lambda: dtypes)
