"""One step on a mesh of four devices, by Flax and by Keras on JAX, in a process of their own: they are PyTorch's.

Usage: `framework_worker.py FOLDER`, with `runs.json` and the weights of each task's step.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))


def main(folder: str) -> None:
    """Compare; prints a word for each."""
    import jax
    from tests.training import frameworks

    runs, numbers = json.loads(Path(folder, "runs.json").read_text())

    def make(framework: str, task: str, **further):
        source, data, settings = runs[task]
        one = frameworks.make(framework, task, source, data, devices=4, **settings, **further)
        return one, (numbers[task][0], dict(np.load(Path(folder, f"{task}.npz"))), numbers[task][1])

    one, expected = make("flax", "classify")
    batch, _ = one.batch(one.epoch(0)[0].passes[0])
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves((batch, one.params))} == {4}
    assert batch["weights"].addressable_shards[0].data.shape[0] == len(batch["weights"]) // 4
    frameworks.assert_same_step(frameworks.step_of_flax(one), expected)
    print("mesh")
    other, expected = make("keras", "classify", gradient_checkpointing=True)
    assert other.task.backend.fixed_shapes
    assert {len(each.value.sharding.device_set) for each in other._variables()} == {4}
    frameworks.assert_recomputed_dropout_is_the_same()
    frameworks.assert_same_step(frameworks.step_of_keras(other), expected)
    print("keras")
    other, expected = make("keras", "embed")
    assert other.task.model.config.model_type == "longformer"
    frameworks.assert_same_step(frameworks.step_of_keras(other), expected)
    print("embed")


if __name__ == "__main__":
    main(*sys.argv[1:])
