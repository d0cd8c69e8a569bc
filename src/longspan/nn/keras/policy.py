"""Dtype policies of half precision that compute in float32 on a CPU without half-precision products."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import keras
import numpy as np
from keras import ops

from longspan.nn.keras.outputs import TFModelOutput
from longspan.nn.keras.runtime import runs_on_cpu
from longspan.ops.fast_paths import widens
from longspan.ops.keras import Tensor


class WidenedPolicy(keras.DTypePolicy):
    """A policy by its name, `"mixed_bfloat16"`; whether it computes in float32 instead is asked at each call.

    Variables keep their dtype, as do files: a graph or a model made here computes as its policy says elsewhere.
    """

    @property
    def compute_dtype(self) -> str:
        """float32 on a CPU without products in the dtype that was asked for; else that one."""
        return "float32" if widens(self._compute_dtype) and runs_on_cpu() else self._compute_dtype

    def __eq__(self, other: object) -> bool:
        return isinstance(other, keras.DTypePolicy) and other.name == self.name

    __hash__ = None  # type: ignore[assignment]  # as of the class above


def widened(policy: Any) -> Any:
    """The policy of a model's layers; what has no half precision, or is quantised or a map, stays as it is."""
    if type(policy) is keras.DTypePolicy and asked_dtype(policy) in ("bfloat16", "float16"):
        return WidenedPolicy(policy.name)
    return policy


def asked_dtype(policy: Any) -> str:
    """The compute dtype that a policy's name asks for."""
    return str(policy._compute_dtype if isinstance(policy, WidenedPolicy) else policy.compute_dtype)


def narrow(output: TFModelOutput, policy: Any, kept: Collection[str]) -> TFModelOutput:
    """An output in the dtype that was asked for but for the fields that are kept, without new infinities."""
    dtype = asked_dtype(policy)
    if dtype == policy.compute_dtype:
        return output

    def cast(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or not keras.backend.is_float_dtype(keras.backend.standardize_dtype(tensor.dtype)):
            return tensor
        limit = float(np.finfo(dtype).max) if dtype == "float16" else None
        return ops.cast(tensor if limit is None else ops.clip(tensor, -limit, limit), dtype)

    fields = {name: value if name in kept else keras.tree.map_structure(cast, value) for name, value in output.items()}
    return type(output)(**fields)
