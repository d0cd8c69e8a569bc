"""What runs the batches of a pipeline: one small class a framework, behind one protocol."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from longspan.checkpoints.hub import Source
from longspan.errors import InputError, missing_framework

#: framework -> module here that holds its `EncoderBackend`
_MODULES = {name: f"longspan.pipelines.backends.{name}" for name in ("torch", "flax", "keras")}
_DTYPES = ("float32", "bfloat16", "float16")


class Encoder(Protocol):
    """An encoder model on a device.

    Attributes:
        fixed_shapes: Whether every new shape costs a compilation, so that batches should come in few shapes.
    """

    fixed_shapes: ClassVar[bool]

    @property
    def max_positions(self) -> int | None:
        """Most tokens the model reads at once, special tokens included; None if it has no limit."""
        ...

    @property
    def hidden_size(self) -> int:
        """Length H of a token's state."""
        ...

    @property
    def batch_tokens(self) -> int:
        """Positions of a batch that suit the device."""
        ...

    def encode_batch(
        self,
        input_ids: npt.NDArray[np.int64],
        attention_mask: npt.NDArray[np.bool_],
        weights: npt.NDArray[np.float32],
        max_mask: npt.NDArray[np.bool_] | None,
    ) -> npt.NDArray[np.float32]:
        """Pooled states of a batch.

        Args:
            input_ids: (B, S) token ids, padded on the right.
            attention_mask: (B, S), True at real tokens; rows without any fill a batch up.
            weights: (B, M, S) weight of each token for each vector that is wanted.
            max_mask: (B, S), True at the tokens whose greatest value is wanted as one more vector; None for none.

        Returns:
            (B, M (+ 1), H) float32: the weighted sums, and the maximum last.
        """
        ...


def longest_input(config: Any) -> int | None:
    """Most tokens that a model reads at once, special tokens included; None if it has no limit."""
    if config.model_type == "longformer":  # its position table begins with rows that no token has
        return int(config.max_length)
    limit: int | None = getattr(config, "max_position_embeddings", None)
    return limit


def load_encoder(
    framework: str,
    source: Source,
    *,
    device: str | None = None,
    dtype: str | None = None,
    attn_implementation: str | None = None,
    max_length: int | None = None,
) -> Encoder:
    """Load the model of a pipeline.

    Args:
        framework: `"torch"`, `"flax"` or `"keras"`.
        source: Where the model is.
        device: Device in the framework's words; None chooses.
        dtype: `"float32"` (the default), `"bfloat16"` or `"float16"`.
        attn_implementation: Implementation of attention; None chooses.
        max_length: Longest input wanted; a backend that can lengthen a model does so.

    Raises:
        InputError: there is no such framework, device or dtype.
        MissingFrameworkError: the framework is not installed.
    """
    if framework not in _MODULES:
        raise InputError(f"framework must be one of {', '.join(_MODULES)}. Received: framework={framework!r}")
    if dtype is not None and dtype not in _DTYPES:
        raise InputError(f"dtype must be one of {', '.join(_DTYPES)}. Received: dtype={dtype!r}")
    try:
        module = importlib.import_module(_MODULES[framework])
    except ModuleNotFoundError as error:
        translated = missing_framework(f"framework={framework!r}", error)
        if translated is None:
            raise
        raise translated from None
    encoder: Encoder = module.EncoderBackend(
        source, device=device, dtype=dtype, attn_implementation=attn_implementation, max_length=max_length
    )
    return encoder
