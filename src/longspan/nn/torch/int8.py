"""Linear layers in 8 bits on a CPU: weights are kept so, inputs are rounded as they come.

Weights have a scale for each output, inputs a scale and an offset for each token, so that a token's result does not
depend on its neighbours. Weights have 129 levels: CPUs without VNNI add products of bytes in pairs in 16 bits, which
255 · 127 · 2 overflows and 255 · 64 · 2 does not. So the sums are exact on every CPU, and the same. Inputs, among which
there are few great values, need the levels more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from longspan.errors import InputError

#: greatest values of an input and of a weight
_INPUT_MAX, _WEIGHT_MAX = 255, 64
#: half of the levels of an input
_HALF_RANGE = 128
#: fewest inputs and outputs of a layer that is worth it
_MIN_WIDTH = 32
#: numbers of rows are multiples of it: oneDNN keeps memory for each number that it is called with
_ROW_GRAIN = 64
_SMALLEST = 1e-12


class _Rounded(NamedTuple):
    """Rows in 8 bits: x ≈ step · levels + least.

    Attributes:
        levels: (M', in), where M' ≥ M is a multiple of `_ROW_GRAIN`.
        step: (M, 1).
        least: (M, 1).
    """

    levels: Tensor
    step: Tensor
    least: Tensor


class Int8Linear(nn.Module):
    """x Wᵀ + b, (..., in) -> (..., out) in float32, without gradients.

    Args:
        layer: The layer to replace.
    """

    weight_sums: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight = layer.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp_min_(_SMALLEST) / _WEIGHT_MAX
        levels = (weight / scale[:, None]).round_().to(torch.int8)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_buffer("weight", torch.ops.onednn.qlinear_prepack(levels, None))
        self.register_buffer("weight_scale", scale)
        self.register_buffer("zero_point", torch.zeros(len(scale), dtype=torch.int32))
        # what the least value of a token adds to each output, (out,)
        self.register_buffer("weight_sums", levels.sum(dim=1, dtype=torch.int32) * scale)
        self.register_buffer("bias", torch.zeros_like(scale) if layer.bias is None else layer.bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self._multiply(_rounded(x), x)

    @staticmethod
    def apply_together(layers: Sequence[Int8Linear], x: Tensor) -> list[Tensor]:
        """[layer(x) for each layer], whose input is rounded once."""
        rounded = _rounded(x)
        return [layer._multiply(rounded, x) for layer in layers]

    def _multiply(self, rounded: _Rounded, x: Tensor) -> Tensor:
        levels, step, least = rounded
        products = torch.ops.onednn.qlinear_pointwise(
            levels, 1.0, 0, self.weight, self.weight_scale, self.zero_point, None, 1.0, 0, torch.float32, "none", [], ""
        )[: len(step)]
        torch.addcmul(self.bias, products, step, out=products).addcmul_(least, self.weight_sums)
        return products.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Its sizes."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def _rounded(x: Tensor) -> _Rounded:
    rows = x.reshape(-1, x.shape[-1])
    least = rows.amin(dim=1, keepdim=True)
    step = (rows.amax(dim=1, keepdim=True) - least).clamp_min_(_SMALLEST).div_(_INPUT_MAX)
    # PyTorch brings floats to int8 with the processor's vectors, and to uint8 one by one: down by 128, whose bit is
    # turned over afterwards
    shifted = (rows - least).mul_(step.reciprocal()).sub_(_HALF_RANGE).round_()
    levels = rows.new_zeros((-(-len(rows) // _ROW_GRAIN) * _ROW_GRAIN, rows.shape[1]), dtype=torch.int8)
    levels[: len(rows)] = shifted
    return _Rounded(levels.view(torch.uint8).bitwise_xor_(_HALF_RANGE), step, least)


def linears_to_replace(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Owner, name there and layer of every plain linear layer of a model that is worth it.

    Raises:
        InputError: the model is not on a CPU.
    """
    place = next(model.parameters()).device
    if place.type != "cpu":
        raise InputError(f"int8 is for models on the CPU. Received: one on {place}")
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and min(module.in_features, module.out_features) >= _MIN_WIDTH:
            parent, _, name = path.rpartition(".")
            yield model.get_submodule(parent), name, module


def replace_linears(model: nn.Module, make: Callable[[nn.Linear], nn.Module], lack: str) -> None:
    """Put another layer in the place of every linear layer of a model that is worth it.

    Args:
        model: The model; it is changed.
        make: Makes a layer from a linear one; it is tried on one row.
        lack: What is said where the layer does not run.

    Raises:
        InputError: this PyTorch, or the CPU, has no kernel for it, or the model is elsewhere.
    """
    for parent, name, module in linears_to_replace(model):
        try:
            layer = make(module)
            layer(torch.zeros(1, module.in_features))
        except (AttributeError, NotImplementedError, RuntimeError) as error:
            raise InputError(
                f"{lack}. Received: PyTorch {torch.__version__} on a CPU with "
                f"{torch.backends.cpu.get_cpu_capability()}, which has none ({str(error)[:100]})"
            ) from error
        setattr(parent, name, layer)


def quantize_linears(model: nn.Module) -> None:
    """Put an `Int8Linear` in the place of every linear layer that is worth it; raises as `replace_linears`."""
    replace_linears(model, Int8Linear, "int8 needs oneDNN's linear layer in 8 bits")
