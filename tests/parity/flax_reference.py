"""Runs the reference's own Flax classes: `flax_reference.py DIRECTORY`.

Every folder of the directory is named like a Flax class and holds a checkpoint and `inputs.npz`. The class loads the
checkpoint, writes what it makes of the inputs to `outputs.npz`, and saves itself into `msgpack/`. A process of its own
does this, because the test processes keep the reference from importing JAX.
"""

import os
import sys
from pathlib import Path

import numpy as np

os.environ |= {"USE_TF": "0", "USE_FLAX": "1", "JAX_PLATFORMS": "cpu"}

import jax
import jax.numpy as jnp
import transformers

jax.config.update("jax_disable_most_optimizations", True)  # most of the time goes into compiling

# today's JAX has renamed the bounds of `clip`, by which the reference's LongT5 calls it
_clip = jnp.clip
jnp.clip = lambda array, min=None, max=None, a_min=None, a_max=None: _clip(
    array, min if a_min is None else a_min, max if a_max is None else a_max
)


def run(directory: Path) -> None:
    model = getattr(transformers, directory.name).from_pretrained(directory)
    inputs = dict(np.load(directory / "inputs.npz"))
    outputs = jax.jit(lambda inputs: dict(model(**inputs, output_attentions=True, output_hidden_states=True)))(inputs)
    arrays = {}
    for name, value in outputs.items():
        parts = value if isinstance(value, tuple) else [value]
        arrays |= {f"{name}.{index}": np.asarray(part) for index, part in enumerate(parts)}
    np.savez(directory / "outputs.npz", **arrays)
    model.save_pretrained(directory / "msgpack")


if __name__ == "__main__":
    for folder in sorted(Path(sys.argv[1]).iterdir()):
        run(folder)
