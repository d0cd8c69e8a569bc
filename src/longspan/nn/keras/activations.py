"""Activations by the names that configurations use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from keras import ops

from longspan.errors import ConfigError
from longspan.ops.keras import Tensor
from longspan.ops.keras.gated_attention import laplace, relu2

Activation = Callable[[Tensor], Tensor]

_gelu_erf: Activation = partial(ops.gelu, approximate=False)
_gelu_tanh: Activation = partial(ops.gelu, approximate=True)


def _quick_gelu(x: Tensor) -> Tensor:
    return x * ops.sigmoid(1.702 * x)


def _gelu_10(x: Tensor) -> Tensor:
    return ops.clip(_gelu_erf(x), -10.0, 10.0)


def _mish(x: Tensor) -> Tensor:
    return x * ops.tanh(ops.softplus(x))


def _linear(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: dict[str, Activation] = {
    "gelu": _gelu_erf,
    "gelu_10": _gelu_10,
    "gelu_accurate": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "gelu_python": _gelu_erf,
    "gelu_pytorch_tanh": _gelu_tanh,
    "laplace": laplace,
    "leaky_relu": partial(ops.leaky_relu, negative_slope=0.01),
    "linear": _linear,
    "mish": _mish,
    "quick_gelu": _quick_gelu,
    "relu": ops.relu,
    "relu2": relu2,
    "relu6": ops.relu6,
    "sigmoid": ops.sigmoid,
    "silu": ops.silu,
    "swish": ops.silu,
    "tanh": ops.tanh,
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
