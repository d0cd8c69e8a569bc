"""Linear layers whose weights alone are in 8 bits, on a CPU: for decoders, which read all weights for each token.

A weight has a scale for each output and 255 levels. A few rows, as when text is generated, go to PyTorch's kernel for
such weights, with inputs in bfloat16, which it has vector code for on every CPU, and sums in float32; that of float32
inputs took five times as long as float32 weights do, this one 0.6 (measured for one row, 2048 × 4096, AVX2). Many rows,
as a prompt has, are products in float32 of the weights brought back to it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longspan.errors import InputError
from longspan.nn.torch.int8 import replace_linears

#: greatest level of a weight
_WEIGHT_MAX = 127
#: rows from which on bringing the weights back to float32 costs less than the kernel for a few
MANY_ROWS = 64
_SMALLEST = 1e-12


class Int8WeightLinear(nn.Module):
    """x Wᵀ + b, (..., in) -> (..., out) in float32, without a gradient by W.

    Args:
        layer: The layer to replace.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight = layer.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp_min_(_SMALLEST) / _WEIGHT_MAX
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_buffer("weight", (weight / scale[:, None]).round_().to(torch.int8))
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().float())
        # the kernel's own scales would be rounded to bfloat16
        self.register_buffer("ones", torch.ones(self.out_features, dtype=torch.bfloat16), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        rows = x.reshape(-1, self.in_features)
        if len(rows) >= MANY_ROWS or rows.requires_grad:
            product = F.linear(rows, self.weight.to(rows.dtype) * self.weight_scale[:, None], self.bias)
        else:
            product = torch.ops.aten._weight_int8pack_mm(rows.bfloat16(), self.weight, self.ones).float()
            product = product.mul_(self.weight_scale)
            product = product if self.bias is None else product.add_(self.bias)
        return product.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Its sizes."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def quantize_weights(model: nn.Module) -> None:
    """Put an `Int8WeightLinear` in the place of every linear layer of a model that is worth it.

    Raises:
        InputError: the model is not in float32; else as `replace_linears`.
    """

    def make(layer: nn.Linear) -> Int8WeightLinear:
        if layer.weight.dtype != torch.float32:
            raise InputError(f"int8 weights are made of float32 ones. Received: {layer.weight.dtype}")
        return Int8WeightLinear(layer)

    replace_linears(model, make, "int8 weights need PyTorch's product with them")
