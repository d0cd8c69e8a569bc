"""The norms that a layer of MEGA (Ma et al., 2022, https://arxiv.org/abs/2209.10655) may have, in Keras 3.

Axes: B batch, S tokens, D width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from keras import ops

from longspan.models.mega.config import MegaConfig
from longspan.nn.keras.checks import Size
from longspan.nn.keras.layers import Block, layer_norm
from longspan.ops.keras import Tensor
from longspan.ops.keras.rms_norm import rms_norm


class MegaScaleNorm(Block):
    """g · x / √(mean(x²) + ε), with one g for all features.

    Args:
        width: D.
        eps: ε.
        affine: Have g; otherwise it is 1.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    def __init__(self, width: int, *, eps: float, affine: bool, **kwargs: Any) -> None:
        super().__init__(width, **kwargs)
        self.eps, self.affine = eps, affine

    def build(self, input_shape: Any = None) -> None:
        """Make the weight."""
        if self.affine:
            self.scalar = self.add_parameter("scalar", (1,), "ones")

    def call(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return rms_norm(x, ops.cast(self.scalar, "float32") if self.affine else 1.0, self.eps)


class MegaRMSNorm(MegaScaleNorm):
    """w ⊙ x / √(mean(x²) + ε); without w if not `affine`."""

    def build(self, input_shape: Any = None) -> None:
        """Make the weight."""
        if self.affine:
            self.weight = self.add_parameter("weight", (self.width,), "ones")

    def call(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return rms_norm(x, ops.cast(self.weight, "float32") if self.affine else 1.0, self.eps)


class MegaBatchNorm(Block):
    """w ⊙ (x − mean) / √(variance + ε) + b over all tokens of a batch; of running averages when not training.

    Args:
        width: D.
        eps: ε.
        affine: Have w and b.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    momentum = 0.1  #: share of a batch in the running averages

    def __init__(self, width: int, *, eps: float, affine: bool, **kwargs: Any) -> None:
        super().__init__(width, **kwargs)
        self.eps, self.affine = eps, affine

    def build(self, input_shape: Any = None) -> None:
        """Make the weights."""
        add = partial(self.add_parameter, shape=(self.width,))
        if self.affine:
            self.weight, self.bias = add("weight", initializer="ones"), add("bias", initializer="zeros")
        self.running_mean = add("running_mean", initializer="zeros", trainable=False)
        self.running_var = add("running_var", initializer="ones", trainable=False)
        self.num_batches_tracked = self.add_parameter(
            "num_batches_tracked", (), "zeros", dtype="int64", trainable=False
        )

    def call(self, x: Tensor, *, training: bool | None = None) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        wide = ops.cast(x, "float32")
        mean, variance = (ops.cast(part, "float32") for part in (self.running_mean, self.running_var))
        if training and self.trainable:
            mean, variance = ops.moments(wide, axes=(0, 1))
            self._track(mean, variance, ops.shape(x)[0] * ops.shape(x)[1])
        normalized = (wide - mean) * ops.rsqrt(variance + self.eps)
        if self.affine:
            normalized = normalized * ops.cast(self.weight, "float32") + ops.cast(self.bias, "float32")
        return ops.cast(normalized, x.dtype)

    def _track(self, mean: Tensor, variance: Tensor, count: Size) -> None:
        """Move the running averages towards those of a batch of `count` tokens, whose variance they take unbiased."""
        count = ops.cast(count, "float32")
        unbiased = variance * (count / ops.maximum(count - 1.0, 1.0))
        for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            moved = ops.cast(running, "float32") * (1.0 - self.momentum) + ops.stop_gradient(new) * self.momentum
            running.assign(ops.cast(moved, running.dtype))
        self.num_batches_tracked.assign(self.num_batches_tracked + 1)


class MegaSequenceNorm(Block):
    """The configured normalisation. Batch normalisation runs over all tokens of the batch."""

    eps = 1e-5

    def __init__(self, config: MegaConfig, **kwargs: Any) -> None:
        super().__init__(config.hidden_size, **kwargs)
        kind, affine = config.normalization_type, config.norm_affine
        self.over_batch = kind in ("batchnorm", "syncbatchnorm")
        shared: dict[str, Any] = {"dtype": self.dtype_policy, "name": "norm"}
        if kind == "layernorm":
            self.norm: Any = layer_norm(self.eps, affine=affine, **shared)
        else:
            kinds = {"scalenorm": MegaScaleNorm, "rmsnorm": MegaRMSNorm}
            self.norm = kinds.get(kind, MegaBatchNorm)(config.hidden_size, eps=self.eps, affine=affine, **shared)

    def call(self, hidden_states: Tensor, *, training: bool | None = None) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        return self.norm(hidden_states, training=training) if self.over_batch else self.norm(hidden_states)
