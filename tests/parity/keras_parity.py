"""Comparing Keras models with the PyTorch classes, whose equality with the reference other tests show."""

from __future__ import annotations

import numpy as np
from tests.tolerances import TOLERANCE, as_numpy, assert_close, assert_gradients_close

from longspan.checkpoints.keras import leaves


def at_real_positions(name, value, keep):
    """Zero what lies at padding: the token axis is 1 for states and logits, 2 for attention weights."""
    value = as_numpy(value)
    if keep is None:
        return value
    if "attentions" in name:
        return value * keep[:, None, :, None]
    if value.ndim >= 2 and value.shape[:2] == keep.shape:
        return value * keep.reshape(*keep.shape, *([1] * (value.ndim - 2)))
    return value


def compare_outputs(ours, expected, *, keep=None, dtype="float32"):
    """Compare every field of the expected output; `keep` (B, S) marks the real positions; losses are means."""
    assert set(ours.keys()) == set(expected.keys())
    for name in expected.keys() - {"past_key_values"}:
        if name == "loss":
            assert tuple(ours.loss.shape) == (1,)
            assert_close(as_numpy(ours.loss).mean(), as_numpy(expected["loss"]).mean(), dtype, "loss")
            continue
        several = isinstance(expected[name], tuple)
        pairs = zip(ours[name], expected[name], strict=True) if several else [(ours[name], expected[name])]
        for index, (mine, theirs) in enumerate(pairs):
            mine, theirs = (at_real_positions(name, value, keep) for value in (mine, theirs))
            assert_close(mine, theirs, dtype, f"{name}[{index}]")


def compare_gradients(gradients, model, torch_model, tolerance=TOLERANCE["float32"]):
    """Compare the gradient of every weight with PyTorch's; see `assert_gradients_close`.

    Args:
        gradients: Gradient of each of `model.trainable_weights`, or None.
        model: The Keras model.
        torch_model: The PyTorch model after `backward`.
        tolerance: Largest relative difference.
    """
    by_weight = {id(weight): gradient for weight, gradient in zip(model.trainable_weights, gradients, strict=True)}
    actual = {}
    for key, leaf in leaves(model).items():
        gradient = by_weight.get(id(leaf.variable))  # none of running averages
        if gradient is not None:
            dense = np.asarray(_dense(gradient), np.float64)
            actual[key] = dense.T if leaf.transposed else dense
    expected = {name: p.grad for name, p in torch_model.named_parameters() if p.grad is not None}
    assert_gradients_close(actual, expected, tolerance)


def _dense(gradient):
    import tensorflow as tf

    return tf.convert_to_tensor(gradient)
