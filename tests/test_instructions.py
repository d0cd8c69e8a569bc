"""The CPU instructions that the tests run with: `make test-lowered` asks for few of them."""

from __future__ import annotations

import os

import torch


def test_instructions_are_those_asked_for():
    asked = os.environ.get("ATEN_CPU_CAPABILITY")
    assert asked is None or torch.backends.cpu.get_cpu_capability() == asked.upper()
    if os.environ.get("ONEDNN_MAX_CPU_ISA") == "SSE41":  # half precision needs AVX-512 or AVX2-VNNI-2
        assert not torch.ops.mkldnn._is_mkldnn_bf16_supported()
        assert not torch.ops.mkldnn._is_mkldnn_fp16_supported()


def test_half_precision_support_is_known():
    """What the library decides by is there in this PyTorch, so that a renamed function cannot pass unseen."""
    assert isinstance(torch.ops.mkldnn._is_mkldnn_bf16_supported(), bool)
    assert isinstance(torch.ops.mkldnn._is_mkldnn_fp16_supported(), bool)
