"""LoRA in Flax (Hu et al., 2021): pairs of narrow matrices in a tree of their own, in the places that PyTorch's have.

A model is a function of its parameters, so nothing in it changes: a step computes them from what is trained,

    W' = W + s A B      A (in, r), B (r, out), s = 2

and differentiates by A and B, and by a new head. A product with W' is that of W and the adapter, as nothing is dropped
between them. Beside the adapters' own, its memory is a matrix where W stays as it is.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from longspan.checkpoints.flax import Path, flatten, unflatten, walk
from longspan.errors import InputError
from longspan.integrations.peft import TARGET_MODULES
from longspan.training.sentences.flax import SentenceModel

#: What a step computes from, or changes: nested dicts of arrays.
Tree = Any
_ADAPTERS, _HEADS = "adapters", "heads"
_A, _B = "a", "b"
#: s: the rank times this is what PEFT calls alpha
_SCALE = 2.0


def split(model: Any, rank: int, key: Array) -> tuple[Tree, Tree]:
    """What is trained in place of all parameters, and those that stay as they are.

    Args:
        model: A model of longspan, or what is trained of a sentence encoder.
        rank: Rank r of the adapters.
        key: Random key of their first values: A as PEFT draws it, B is 0.

    Returns:
        `{"adapters": {place: {"a": A, "b": B}}, "heads": {place: parameter}}`, places being paths joined by points;
        and the parameters without new heads.

    Raises:
        InputError: the family has no entry in the table of places.
    """
    family = model.config.model_type
    if family not in TARGET_MODULES:
        raise InputError(f"With LoRA, model_type must be one of {', '.join(TARGET_MODULES)}. Received: {family}")
    flat = flatten(model.params)
    heads = {path: flat.pop(path) for path in _new_heads(model) if path in flat}
    adapters = {}
    for path, kernel in flat.items():
        if path[-1] == "kernel" and path[-2] in TARGET_MODULES[family]:
            place, (width, features) = ".".join(path[:-1]), kernel.shape
            of_place, bound = jax.random.fold_in(key, zlib.crc32(place.encode())), 1 / math.sqrt(width)
            first = jax.random.uniform(of_place, (width, rank), jnp.float32, -bound, bound)
            adapters[place] = {_A: first, _B: jnp.zeros((rank, features))}
    return {_ADAPTERS: adapters, _HEADS: {".".join(path): leaf for path, leaf in heads.items()}}, unflatten(flat)


def merge(frozen: Tree, trained: Tree) -> Tree:
    """The parameters of the model, from what `split` gives; a pure function of arrays."""
    flat = flatten(frozen)
    for place, pair in trained[_ADAPTERS].items():
        path = (*place.split("."), "kernel")
        change = jnp.matmul(pair[_A], pair[_B], precision=jax.lax.Precision.HIGHEST)
        flat[path] = flat[path] + (_SCALE * change).astype(flat[path].dtype)
    return unflatten({**flat, **{tuple(place.split(".")): leaf for place, leaf in trained[_HEADS].items()}})


def _new_heads(model: Any) -> Iterator[Path]:
    """Paths of the parts that the checkpoint lacked, whole."""
    prefix: Path = ()
    if isinstance(model, SentenceModel):
        model, prefix = model.transformer, ("transformer",)
    report = model.load_report
    drawn = [] if report is None else [*report.initialised, *(key for key, *_ in report.mismatched)]
    parts = {_part(model, key) for key in drawn}
    for key, leaf in walk(model.params, model.raw_parameters).items():
        if _part(model, key) in parts:
            yield (*prefix, *leaf.path)


def _part(model: Any, key: str) -> str:
    """The part of the model that a parameter belongs to, by the first word of its key."""
    return key.removeprefix(f"{model.base_model_prefix}.").partition(".")[0]
