"""Products of NumPy's arrays between the steps of a framework; no framework is imported."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

#: rows up to which NumPy's own loops are as fast as BLAS, whatever they are multiplied by: reading that takes the time
_FEW_ROWS = 4
#: multiplications up to which they take less than what BLAS costs the framework afterwards
_FEW_MULTIPLICATIONS = 2**25


def product(x: Floats, rows: Floats) -> Floats:
    """Compute x rowsᵀ, (M, K) and (N, K) -> (M, N); small ones by NumPy's own loops, on one core.

    After a product by OpenBLAS each of its threads spins for about 0.1 s, and what PyTorch computes meanwhile on the
    same cores takes several times as long: the query that follows a search, the batch that follows a projection.
    """
    if len(x) <= _FEW_ROWS or len(x) * rows.size <= _FEW_MULTIPLICATIONS:
        result: Floats = np.einsum("mk,nk->mn", x, rows)
        return result
    return x @ rows.T
