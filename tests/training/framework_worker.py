"""One step on a mesh of four devices, by Flax and by Keras on JAX, in a process of their own: they are PyTorch's.

Usage: `framework_worker.py FOLDER LOSS LARGEST_GRADIENT`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))


def main(folder: str, loss: str, largest: str) -> None:
    """Compare; prints a word for each."""
    import jax
    from tests.training import frameworks

    model, data = Path(folder, "model"), json.loads(Path(folder, "data.json").read_text())
    expected = float(loss), dict(np.load(Path(folder, "expected.npz"))), float(largest)
    one = frameworks.make("flax", "classify", model, data, devices=4, **frameworks.TWO_WINDOWS)
    batch, _ = one.batch(one.epoch(0)[0].passes[0])
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves((batch, one.params))} == {4}
    assert batch["weights"].addressable_shards[0].data.shape[0] == len(batch["weights"]) // 4
    frameworks.assert_same_step(frameworks.step_of_flax(one), expected)
    print("mesh")
    further = {"devices": 4, "gradient_checkpointing": True}
    other = frameworks.make("keras", "classify", model, data, **further, **frameworks.TWO_WINDOWS)
    assert other.task.backend.fixed_shapes
    assert {len(each.value.sharding.device_set) for each in other._variables()} == {4}
    frameworks.assert_recomputed_dropout_is_the_same()
    frameworks.assert_same_step(frameworks.step_of_keras(other), expected)
    print("keras")


if __name__ == "__main__":
    main(*sys.argv[1:])
