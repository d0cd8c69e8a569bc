"""orbax and optax: parameters, running statistics and the state of an optimiser come back as they were saved."""

from __future__ import annotations

import jax
import numpy as np
import optax
import orbax.checkpoint as orbax
import pytest
from tests.models.test_flax_transformations import CASES, make

pytestmark = [pytest.mark.ecosystem, pytest.mark.filterwarnings("ignore")]  # orbax speaks of sharding and of threads


@pytest.mark.parametrize("family", CASES)
def test_a_run_goes_on_from_what_orbax_saved(family, tmp_path):
    model, optimizer = make(family), optax.adam(0.1)
    params = model.init_weights(jax.random.PRNGKey(0))
    gradients = jax.tree_util.tree_map(lambda leaf: leaf + 0.1, params)
    updates, state = optimizer.update(gradients, optimizer.init(params), params)
    run = {"params": optax.apply_updates(params, updates), "state": state, "batch_stats": model.batch_stats}
    with orbax.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", run)
    again = make(family)
    shapes = again.params_shape_tree
    empty = {"params": shapes, "state": jax.eval_shape(optimizer.init, shapes), "batch_stats": again.batch_stats}
    with orbax.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(tmp_path / "run", jax.tree_util.tree_map(orbax.utils.to_shape_dtype_struct, empty))
    assert jax.tree_util.tree_structure(found) == jax.tree_util.tree_structure(run)
    for got, expected in zip(*map(jax.tree_util.tree_leaves, (found, run)), strict=True):
        np.testing.assert_array_equal(got, expected)
