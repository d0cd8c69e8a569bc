"""What runs the batches of a pipeline: one small class a framework, behind one protocol."""

from __future__ import annotations

import importlib
from typing import Protocol

import numpy as np
import numpy.typing as npt

from longspan.checkpoints.hub import Source
from longspan.errors import InputError, missing_framework

#: framework -> module here that holds its `EncoderBackend`
_MODULES = {"torch": "longspan.pipelines.backends.torch"}


class Encoder(Protocol):
    """An encoder model on a device."""

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
            attention_mask: (B, S), True at real tokens.
            weights: (B, M, S) weight of each token for each vector that is wanted.
            max_mask: (B, S), True at the tokens whose greatest value is wanted as one more vector; None for none.

        Returns:
            (B, M (+ 1), H) float32: the weighted sums, and the maximum last.
        """
        ...


def load_encoder(
    framework: str, source: Source, *, device: str | None, dtype: str | None, attn_implementation: str | None
) -> Encoder:
    """Load the model of a pipeline.

    Args:
        framework: `"torch"`.
        source: Where the model is.
        device: Device in the framework's words; None chooses.
        dtype: Type of the weights, `"float32"` if None.
        attn_implementation: Implementation of attention; None chooses.

    Raises:
        InputError: there is no such framework.
        MissingFrameworkError: it is not installed.
    """
    if framework not in _MODULES:
        raise InputError(f"framework must be one of {', '.join(_MODULES)}. Received: framework={framework!r}")
    try:
        module = importlib.import_module(_MODULES[framework])
    except ModuleNotFoundError as error:
        translated = missing_framework(f"framework={framework!r}", error)
        if translated is None:
            raise
        raise translated from None
    encoder: Encoder = module.EncoderBackend(
        source, device=device, dtype=dtype, attn_implementation=attn_implementation
    )
    return encoder
