"""The norms that a layer of MEGA (Ma et al., 2022, https://arxiv.org/abs/2209.10655) may have, in Flax.

Axes: B batch, S tokens, D width.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.nn.initializers import ones, zeros

from longspan.models.mega.config import MegaConfig
from longspan.nn.flax.layers import Dtype, LayerNorm, Part
from longspan.nn.flax.parameters import parameter, statistic
from longspan.ops.flax.rms_norm import rms_norm


class FlaxMegaScaleNorm(nn.Module):
    """g · x / √(mean(x²) + ε), with one g for all features.

    Attributes:
        eps: ε.
        affine: Have g; otherwise it is 1.
    """

    eps: float
    affine: bool
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., D) -> (..., D)."""
        scalar = parameter(self, "scalar", ones, (1,), jnp.float32).astype(jnp.float32) if self.affine else 1.0
        return rms_norm(x, scalar, self.eps)


class FlaxMegaRMSNorm(nn.Module):
    """w ⊙ x / √(mean(x²) + ε).

    Attributes:
        eps: ε.
        affine: Have w; otherwise it is 1.
    """

    eps: float
    affine: bool
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., D) -> (..., D)."""
        shape = (x.shape[-1],)
        weight = parameter(self, "weight", ones, shape, jnp.float32).astype(jnp.float32) if self.affine else 1.0
        return rms_norm(x, weight, self.eps)


class FlaxMegaPlainLayerNorm(nn.Module):
    """(x - mean) / √(variance + ε), without scale and bias.

    Attributes:
        eps: ε.
    """

    eps: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., D) -> (..., D)."""
        wide = x.astype(jnp.float32)
        return rms_norm(wide - wide.mean(axis=-1, keepdims=True), 1.0, self.eps).astype(self.dtype)


class FlaxMegaBatchNorm(nn.Module):
    """w ⊙ (x − mean) / √(variance + ε) + b over all tokens of a batch; of running averages when not training.

    The averages are the collection `batch_stats`, under the names that PyTorch's files have. Unlike those of
    `linen.BatchNorm` they take the unbiased variance, as PyTorch's.

    Attributes:
        eps: ε.
        affine: Have w and b.
        momentum: Share of a batch in the running averages.
    """

    eps: float
    affine: bool
    momentum: float = 0.1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, deterministic: bool) -> Array:
        """(B, S, D) -> (B, S, D)."""
        shape, wide = (x.shape[-1],), x.astype(jnp.float32)
        running_mean = statistic(self, "running_mean", zeros, shape, jnp.float32)
        running_var = statistic(self, "running_var", ones, shape, jnp.float32)
        batches = statistic(self, "num_batches_tracked", zeros, (), jnp.int32)
        mean, variance = running_mean.value, running_var.value
        if not deterministic:
            mean, variance = wide.mean(axis=(0, 1)), wide.var(axis=(0, 1))
            if self.is_mutable_collection("batch_stats"):
                count = x.shape[0] * x.shape[1]
                unbiased = variance * (count / jnp.maximum(count - 1, 1))
                for running, new in ((running_mean, mean), (running_var, unbiased)):
                    moved = running.value * (1.0 - self.momentum) + new * self.momentum
                    running.value = lax.stop_gradient(moved)
                batches.value = batches.value + 1
        normalized = (wide - mean) * lax.rsqrt(variance + self.eps)
        if self.affine:
            weight, bias = (
                parameter(self, name, init, shape, jnp.float32).astype(jnp.float32)
                for name, init in (("weight", ones), ("bias", zeros))
            )
            normalized = normalized * weight + bias
        return normalized.astype(self.dtype)


class FlaxMegaSequenceNorm(Part):
    """The configured normalisation. Batch normalisation runs over all tokens of the batch."""

    config: MegaConfig

    def setup(self) -> None:
        """Make the parts."""
        kind, affine, eps = self.config.normalization_type, self.config.norm_affine, 1e-5
        if kind == "scalenorm":
            self.norm: Any = FlaxMegaScaleNorm(eps, affine, dtype=self.dtype)
        elif kind == "rmsnorm":
            self.norm = FlaxMegaRMSNorm(eps, affine, dtype=self.dtype)
        elif self._reads_batch:
            self.norm = FlaxMegaBatchNorm(eps, affine, dtype=self.dtype)
        elif affine:
            self.norm = LayerNorm(eps, dtype=self.dtype)
        else:
            self.norm = FlaxMegaPlainLayerNorm(eps, dtype=self.dtype)

    def __call__(self, hidden_states: Array, *, deterministic: bool) -> Array:
        """(B, S, D) -> (B, S, D)."""
        return self.norm(hidden_states, **({"deterministic": deterministic} if self._reads_batch else {}))

    @property
    def _reads_batch(self) -> bool:
        return self.config.normalization_type in ("batchnorm", "syncbatchnorm")
