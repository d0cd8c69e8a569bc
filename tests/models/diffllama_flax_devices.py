"""Runs a Flax DiffLlama on eight virtual CPU devices, with automatic and with explicit axes. Prints "equal"."""

import os

os.environ["XLA_FLAGS"] = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import warnings

warnings.simplefilter("error")

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import longspan
from longspan.nn.flax.losses import causal_lm_loss
from longspan.ops.flax import differential

differential.BLOCK_ROWS = 4  # short inputs take several
config = longspan.DiffLlamaConfig(
    vocab_size=40, hidden_size=16, intermediate_size=20, num_attention_heads=8, num_key_value_heads=4, head_dim=4,
    num_hidden_layers=1, eos_token_id=None,
)  # fmt: skip
model = longspan.FlaxDiffLlamaForCausalLM(config, _do_init=False)
rng = np.random.default_rng(0)
params = jax.tree_util.tree_map(
    lambda leaf: jnp.asarray(rng.normal(scale=0.3, size=leaf.shape), jnp.float32), model.params_shape_tree
)
ids = rng.integers(0, 40, (8, 11)).astype(np.int32)
mask = np.ones((8, 11), np.int32)
mask[3, 5:] = mask[5, :3] = 0


def loss(params, ids, mask):
    return causal_lm_loss(model(ids, mask, params=params).logits, jnp.where(mask == 0, -100, ids))


def same(first, second, tolerance=1e-5):
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree_util.tree_leaves(first))
    for one, other in zip(jax.tree_util.tree_leaves(first), jax.tree_util.tree_leaves(second), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=tolerance * largest, rtol=0)


assert len(jax.devices()) == 8
settings = {"num_beams": 2, "max_new_tokens": 5, "min_new_tokens": 5}


def write(params, ids, mask):
    return model.generate(ids, attention_mask=mask, params=params, **settings).sequences


whole = jax.jit(jax.value_and_grad(loss))(params, ids, mask)
expected = write(params, ids, mask)
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind,) * 2)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    # the columns of every kernel, and with them the heads, are spread over four devices
    columns, everywhere = NamedSharding(mesh, PartitionSpec(None, "model")), NamedSharding(mesh, PartitionSpec())
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    spread = tree.unflatten([columns if path[-1].key == "kernel" else everywhere for path, _ in leaves])
    parameters, batch = jax.device_put(params, spread), [jax.device_put(array, rows) for array in (ids, mask)]
    same(jax.jit(jax.value_and_grad(loss))(parameters, *batch), whole)
    np.testing.assert_array_equal(jax.jit(write)(parameters, *batch), expected)
    logits = model(*batch, params=parameters).logits
    assert len(logits.sharding.device_set) == 8
    same(logits * mask[..., None], model(ids, mask, params=params).logits * mask[..., None])
print("equal")
