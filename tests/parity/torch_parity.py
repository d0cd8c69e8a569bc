"""Building pairs of models — the reference's and ours — on the same random weights, and comparing them."""

from __future__ import annotations

import torch
from tests.tolerances import TOLERANCE, assert_close, assert_gradients_close


def randomise(model, *, scale=0.2, seed=0):
    """Random asymmetric values for every parameter, norms and biases included, so that swapped tensors cannot pass."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * scale
            is_norm_weight = parameter.dim() == 1 and "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(1 + noise if is_norm_weight else noise)
    return model.eval()


def compare_outputs(ours, reference, *, keep=None, dtype="float32"):
    """Compare every field of the reference's output; `keep` (B, S) marks the real positions.

    Fields with a token axis are compared at real positions only.
    """
    assert set(reference.keys()) - {"past_key_values"} == set(ours.keys()) - {"past_key_values"}
    for name, expected in reference.items():
        if name == "past_key_values":
            continue
        pairs = zip(ours[name], expected, strict=True) if isinstance(expected, tuple) else [(ours[name], expected)]
        for index, (mine, theirs) in enumerate(pairs):
            assert_close(*at_real_positions(name, mine, theirs, keep), dtype, f"{name}[{index}]")


def at_real_positions(name, mine, theirs, keep):
    """Zero what lies at padding: the token axis is 1 for states and logits, 2 for attention weights."""
    if keep is None or mine.dim() == 0:
        return mine, theirs
    if "attentions" in name:
        mask = keep[:, None, :, None]
    elif mine.dim() >= 2 and tuple(mine.shape[:2]) == tuple(keep.shape):
        mask = keep.reshape(*keep.shape, *([1] * (mine.dim() - 2)))
    else:
        return mine, theirs
    return mine.where(mask, torch.zeros_like(mine)), theirs.where(mask, torch.zeros_like(theirs))


def compare_gradients(ours, reference, tolerance=TOLERANCE["float32"]):
    """Compare the gradient of every parameter; see `assert_gradients_close`."""
    actual, expected = (
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None} for model in (ours, reference)
    )
    assert_gradients_close(actual, expected, tolerance)
