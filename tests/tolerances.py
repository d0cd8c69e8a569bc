"""The one table of tolerances, and comparisons that use it.

Errors are relative to the largest magnitude of the reference: max|a - b| <= tolerance · max(1, max|b|).
"""

from __future__ import annotations

from typing import Any

import numpy as np

TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2, "float16": 4e-3}


def as_numpy(value: Any) -> np.ndarray:
    """A float64 (or integer) array of a tensor of any framework."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float().numpy() if value.is_floating_point() else value.numpy()
    array = np.asarray(value)
    return array.astype(np.float64) if array.dtype.kind not in "iub" else array


def error(actual: Any, expected: Any) -> float:
    """Largest difference, relative to the largest magnitude of `expected` (but at least to 1)."""
    actual, expected = as_numpy(actual), as_numpy(expected)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    if actual.size == 0:
        return 0.0
    assert np.isfinite(actual).all(), "the result holds NaN or infinity"
    return float(np.abs(actual - expected).max() / max(1.0, np.abs(expected).max()))


def gradient_error(actual: Any, expected: Any) -> float:
    """Largest difference, relative to the largest magnitude of `expected`: gradients may all be small."""
    actual, expected = as_numpy(actual), as_numpy(expected)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    assert np.isfinite(actual).all(), "the gradient holds NaN or infinity"
    return float(np.abs(actual - expected).max() / max(1e-6, np.abs(expected).max()))


def assert_close(actual: Any, expected: Any, dtype: str = "float32", what: str = "") -> None:
    """Compare with the tolerance of a dtype."""
    difference = error(actual, expected)
    assert difference <= TOLERANCE[dtype], f"{what}: differs by {difference:.3g} (allowed {TOLERANCE[dtype]:.0e})"


def assert_gradients_close(actual: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-5) -> None:
    """Compare the float32 gradient of every parameter, each relative to its own size.

    A gradient is a sum of terms that may cancel, and each term is rounded: what is left carries the rounding of terms
    as large as other gradients of the model. Hence |a - b| <= tolerance · max|b| + 2 ε · (largest gradient), with
    ε = 2⁻²³, the distance from 1 to the next float32. Where max|b| is below a thousandth of the largest, it may be
    nothing but rounding (that of key biases, which shift all scores of a query alike), and 8 ε are allowed.
    """
    assert set(actual) == set(expected)
    theirs = {name: as_numpy(gradient) for name, gradient in expected.items()}
    largest = max(float(np.abs(gradient).max()) for gradient in theirs.values())
    assert largest > 0
    for name, gradient in theirs.items():
        mine = as_numpy(actual[name])
        assert np.isfinite(mine).all(), f"the gradient of {name} holds NaN or infinity"
        difference, own = float(np.abs(mine - gradient).max()), float(np.abs(gradient).max())
        roundings = 2 if own > 1e-3 * largest else 8
        allowed = tolerance * own + roundings * float(np.finfo(np.float32).eps) * largest
        assert difference <= allowed, f"gradient of {name} differs by {difference:.3g} (allowed {allowed:.3g})"
