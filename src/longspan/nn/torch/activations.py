"""Activations by the names that configurations use."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from longspan.errors import ConfigError

Activation = Callable[[Tensor], Tensor]

_gelu_tanh: Activation = partial(F.gelu, approximate="tanh")


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _gelu_10(x: Tensor) -> Tensor:
    return F.gelu(x).clamp(-10.0, 10.0)


def _relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _laplace(x: Tensor) -> Tensor:
    """Gaussian CDF with mean sqrt(1/2) and standard deviation sqrt(1/(4π)) (MEGA, appendix E)."""
    return 0.5 * (1.0 + torch.erf((x - math.sqrt(0.5)) / math.sqrt(0.5 / math.pi)))


def _linear(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_10": _gelu_10,
    "gelu_accurate": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "gelu_python": F.gelu,
    "gelu_pytorch_tanh": _gelu_tanh,
    "laplace": _laplace,
    "leaky_relu": F.leaky_relu,
    "linear": _linear,
    "mish": F.mish,
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "relu2": _relu2,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}


def get_activation(activation: str | Activation) -> Activation:
    """The function of a name such as `"gelu"` (erf form) or `"gelu_new"` (tanh form); a callable is returned as it is.

    Raises:
        ConfigError: the name is unknown.
    """
    if callable(activation):
        return activation
    if activation not in ACTIVATIONS:
        raise ConfigError(f"an activation must be one of {', '.join(ACTIVATIONS)}. Received: {activation!r}")
    return ACTIVATIONS[activation]
