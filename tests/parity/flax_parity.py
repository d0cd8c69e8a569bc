"""Comparing Flax models with the PyTorch classes, whose equality with the reference other tests show."""

from __future__ import annotations

import numpy as np
from tests.tolerances import TOLERANCE, as_numpy, assert_close, assert_gradients_close

from longspan.checkpoints.flax import tensors_to_save


def at_real_positions(name, value, keep):
    """Zero what lies at padding: the token axis is 1 for states and logits, 2 for attention weights."""
    value = as_numpy(value)
    if keep is None:
        return value
    if "attentions" in name:
        return value * keep[:, None, :, None]
    if value.shape[:2] == keep.shape:
        return value * keep.reshape(*keep.shape, *([1] * (value.ndim - 2)))
    return value


def compare_outputs(ours, expected, *, keep=None, dtype="float32", skip=("loss", "past_key_values")):
    """Compare every field of the expected output; `keep` (B, S) marks the real positions.

    Args:
        ours: Output of a Flax model.
        expected: Field to array or tuple of arrays.
        keep: Mask of the real positions.
        dtype: Row of the table of tolerances.
        skip: Fields that Flax classes do not have.
    """
    names = set(expected.keys()) - set(skip)
    assert names == set(ours.keys()) - set(skip)
    for name in names:
        several = isinstance(expected[name], tuple)
        pairs = zip(ours[name], expected[name], strict=True) if several else [(ours[name], expected[name])]
        for index, (mine, theirs) in enumerate(pairs):
            mine, theirs = (at_real_positions(name, value, keep) for value in (mine, theirs))
            assert_close(mine, theirs, dtype, f"{name}[{index}]")


def compare_gradients(gradients, torch_model, tolerance=TOLERANCE["float32"], raw=()):
    """Compare the gradient of every parameter with PyTorch's; see `assert_gradients_close`.

    Args:
        gradients: Tree of a Flax model's gradients.
        torch_model: Model with gradients.
        tolerance: As in `assert_gradients_close`.
        raw: `raw_parameters` of the Flax class.
    """
    actual = {key: tensor.read() for key, tensor in tensors_to_save(gradients, raw).items()}
    expected = {
        name: as_numpy(parameter.grad) if parameter.grad is not None else np.zeros(tuple(parameter.shape))
        for name, parameter in torch_model.named_parameters()
    }
    assert_gradients_close(actual, expected, tolerance)
