"""Activations by the names that configurations use."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from longspan.errors import ConfigError

Activation = Callable[[Array], Array]

_gelu: Activation = partial(jax.nn.gelu, approximate=False)
_gelu_tanh: Activation = partial(jax.nn.gelu, approximate=True)


def _quick_gelu(x: Array) -> Array:
    return x * jax.nn.sigmoid(1.702 * x)


def _gelu_10(x: Array) -> Array:
    return jnp.clip(_gelu(x), -10.0, 10.0)


def _relu2(x: Array) -> Array:
    return jnp.square(jax.nn.relu(x))


def _laplace(x: Array) -> Array:
    """Gaussian CDF with mean sqrt(1/2) and standard deviation sqrt(1/(4π)) (MEGA, appendix E)."""
    return 0.5 * (1.0 + jax.lax.erf((x - math.sqrt(0.5)) / math.sqrt(0.5 / math.pi)))


def _linear(x: Array) -> Array:
    return x


ACTIVATIONS: dict[str, Activation] = {
    "gelu": _gelu,
    "gelu_10": _gelu_10,
    "gelu_accurate": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "gelu_python": _gelu,
    "gelu_pytorch_tanh": _gelu_tanh,
    "laplace": _laplace,
    "leaky_relu": jax.nn.leaky_relu,
    "linear": _linear,
    "mish": jax.nn.mish,
    "quick_gelu": _quick_gelu,
    "relu": jax.nn.relu,
    "relu2": _relu2,
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
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
