"""Weights that oneDNN has laid out beforehand for its products on a CPU.

A product of many rows brings its weights into the order in which the processor reads them, again at each call. For
weights that stay as they are a copy in that order saves the time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

#: rows of a product that the order is for; those of fewer rows are served as well
_ROWS = 512


class _Prepacked(NamedTuple):
    weight: Tensor
    version: int
    address: int
    packed: Tensor


_kept: dict[int, _Prepacked] = {}


def prepack(weights: Iterable[Tensor]) -> list[Tensor]:
    """Keep a copy of each weight, (N, K), in oneDNN's order, until `release`.

    Returns:
        The weights that had none yet.
    """
    added = []
    for weight in weights:
        if prepacked(weight) is None:  # two layers may share it
            packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS)
            _kept[id(weight)] = _Prepacked(weight, weight._version, weight.data_ptr(), packed)
            added.append(weight)
    return added


def release(weights: Iterable[Tensor]) -> None:
    """Forget the copies of these weights."""
    for weight in weights:
        _kept.pop(id(weight), None)


def prepacked(weight: Tensor) -> Tensor | None:
    """The copy of this weight; None if there is none, or if the weight has changed since."""
    kept = _kept.get(id(weight)) if _kept else None
    if kept is None or kept.weight is not weight:
        return None
    is_same = weight._version == kept.version and weight.data_ptr() == kept.address
    return kept.packed if is_same else None
