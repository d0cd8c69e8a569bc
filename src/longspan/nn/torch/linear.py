"""The linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from longspan.ops.torch.matmul import linear


class Linear(nn.Linear):
    """`torch.nn.Linear` with the faster of two kernels; see `longspan.ops.torch.matmul`."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return linear(input, self.weight, self.bias)
