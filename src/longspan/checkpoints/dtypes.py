"""Element types of stored tensors: one name for each, whatever the format calls it.

NumPy has no bfloat16 or float8. Their bits travel in unsigned integers of the same width (the carrier), so that files
can be read, transposed and written without any extra package; `ml_dtypes` is needed only to do arithmetic on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from longspan.errors import CheckpointError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class DType:
    """One element type.

    Attributes:
        name: Name in the NumPy style, `"float32"`, `"bfloat16"`.
        code: Code in safetensors headers, `"F32"`.
        carrier: NumPy type that holds the bits: the type itself, or an unsigned integer of the same width.
    """

    name: str
    code: str
    carrier: np.dtype[Any]

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return int(self.carrier.itemsize)

    @property
    def is_native(self) -> bool:
        """True if NumPy itself has the type."""
        return self.carrier.name == self.name


def _dtype(name: str, code: str, carrier: str | None = None) -> DType:
    return DType(name, code, np.dtype(carrier or name).newbyteorder("="))


_ALL = (
    _dtype("float64", "F64"),
    _dtype("float32", "F32"),
    _dtype("float16", "F16"),
    _dtype("bfloat16", "BF16", "uint16"),
    _dtype("float8_e4m3fn", "F8_E4M3", "uint8"),
    _dtype("float8_e5m2", "F8_E5M2", "uint8"),
    _dtype("float8_e8m0fnu", "F8_E8M0", "uint8"),
    _dtype("int64", "I64"),
    _dtype("int32", "I32"),
    _dtype("int16", "I16"),
    _dtype("int8", "I8"),
    _dtype("uint64", "U64"),
    _dtype("uint32", "U32"),
    _dtype("uint16", "U16"),
    _dtype("uint8", "U8"),
    _dtype("bool", "BOOL"),
    _dtype("complex64", "C64"),
)
BY_NAME = {dtype.name: dtype for dtype in _ALL}
BY_CODE = {dtype.code: dtype for dtype in _ALL}


def dtype_of(name: str) -> DType:
    """Look up an element type by name.

    Raises:
        CheckpointError: if checkpoints cannot hold the type.
    """
    if not isinstance(name, str) or name not in BY_NAME:
        raise CheckpointError(
            f"Tensors in checkpoints must have one of the types {', '.join(BY_NAME)}. Received: {str(name)[:100]}"
        )
    return BY_NAME[name]


def to_numpy(raw: Array, dtype: DType) -> Array:
    """View raw bits as the type itself.

    Args:
        raw: Array of the carrier type.
        dtype: The element type.

    Returns:
        A view with the real type (from `ml_dtypes` where NumPy has none).

    Raises:
        CheckpointError: if the type needs `ml_dtypes` and it is not installed.
    """
    if dtype.is_native:
        return raw
    try:
        import ml_dtypes
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"NumPy arrays of {dtype.name} need the package ml_dtypes (pip install ml_dtypes); "
            "read_raw() gives the bits without it."
        ) from error
    return raw.view(getattr(ml_dtypes, dtype.name))


def to_raw(array: Array) -> tuple[Array, DType]:
    """View an array as raw bits in little-endian C order.

    Args:
        array: NumPy array of any supported type, `ml_dtypes` included.

    Returns:
        The array in its carrier type (a view where possible) and the element type.
    """
    dtype = dtype_of(array.dtype.name)
    native = np.ascontiguousarray(array).reshape(array.shape)
    if not native.dtype.isnative:
        native = native.astype(native.dtype.newbyteorder("="))
    return native.view(dtype.carrier), dtype
