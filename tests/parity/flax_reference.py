"""Runs the reference's own Flax classes: `flax_reference.py DIRECTORY...`.

Every folder of a directory is named like a Flax class and holds a checkpoint and `inputs.npz`. The class loads the
checkpoint, writes what it makes of the inputs to `outputs.npz`, and saves itself into `msgpack/`. If the class rounds
down, what it makes of the inputs without errors of rounding before goes to `exact.npz`. A process of its own does this,
because the test processes keep the reference from importing JAX.
"""

import os
import sys
from pathlib import Path

import numpy as np

# importing PyTorch, which reads no safetensors here, takes twice as long as all else
os.environ |= {"USE_TF": "0", "USE_TORCH": "0", "USE_FLAX": "1", "JAX_PLATFORMS": "cpu"}

import jax
import jax.numpy as jnp
import transformers

# today's JAX has renamed the bounds of `clip`, by which the reference's LongT5 calls it
_clip = jnp.clip
jnp.clip = lambda array, min=None, max=None, a_min=None, a_max=None: _clip(
    array, min if a_min is None else a_min, max if a_max is None else a_max
)


_floor = jnp.floor
floors = []


def floor_and_count(array):
    """The floor, and a note that somebody took it."""
    floors.append(array.shape)
    return _floor(array)


def exact_floor(array):
    """The floor of numbers that rounding has left a little below the whole number that they stand for."""
    return _floor(array + 1e-3)


def without_drawing(cls: type) -> type:
    """The class with NaN as its random parameters: the checkpoint has all, and drawing runs the model uncompiled."""

    def init_weights(self, rng, input_shape, params=None):
        shapes = jax.eval_shape(lambda rng: cls.init_weights(self, rng, input_shape), rng)
        return jax.tree_util.tree_map(lambda leaf: np.full(leaf.shape, np.nan, leaf.dtype), shapes)

    return type(cls.__name__, (cls,), {"init_weights": init_weights})


def outputs(model, inputs: dict) -> dict:
    """All arrays that the model returns."""
    result = jax.jit(lambda inputs: dict(model(**inputs, output_attentions=True, output_hidden_states=True)))(inputs)
    arrays = {}
    for name, value in result.items():
        parts = value if isinstance(value, tuple) else [value]
        arrays |= {f"{name}.{index}": np.asarray(part) for index, part in enumerate(parts)}
    return arrays


def run(directory: Path) -> None:
    model = without_drawing(getattr(transformers, directory.name)).from_pretrained(directory)
    model.save_pretrained(directory / "msgpack")
    inputs = dict(np.load(directory / "inputs.npz"))
    jnp.floor = floor_and_count
    np.savez(directory / "outputs.npz", **outputs(model, inputs))
    if floors:
        jnp.floor = exact_floor
        np.savez(directory / "exact.npz", **outputs(model, inputs))
    floors.clear()


if __name__ == "__main__":
    for root in sys.argv[1:]:
        for folder in sorted(Path(root).iterdir()):
            run(folder)
