"""Pure functions on tensors of Keras' active backend, written with `keras.ops`."""

from __future__ import annotations

from typing import Any, TypeAlias

#: a tensor of the active backend (TensorFlow, JAX or PyTorch), or a symbolic `KerasTensor`
Tensor: TypeAlias = Any
