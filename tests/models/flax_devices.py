"""Runs a Flax BERT on eight virtual CPU devices: pmap, sharded jit, shard_map. Prints "equal" if all agree."""

import os

os.environ["XLA_FLAGS"] = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import warnings

warnings.simplefilter("error")

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import longspan
from longspan.nn.flax.losses import cross_entropy

config = longspan.BertConfig(
    vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, num_labels=3
)
model = longspan.FlaxBertForTokenClassification(config, _do_init=False)
rng = np.random.default_rng(0)
params = jax.tree_util.tree_map(lambda leaf: rng.normal(scale=0.2, size=leaf.shape), model.params_shape_tree)
params = jax.tree_util.tree_map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
ids = rng.integers(0, 64, (16, 12)).astype(np.int32)
labels = rng.integers(0, 3, (16, 12)).astype(np.int32)
mask = np.ones((16, 12), np.int32)
mask[3, 5:] = mask[9, 1:] = 0
labels[mask == 0] = -100
# every shard has as many labels as the others, so that the mean of the shards' means is the mean of all
labels[:, 0::4] = -100


def loss(params, ids, mask, labels):
    return cross_entropy(model(ids, mask, params=params).logits, labels)


def same(first, second, tolerance=1e-5):
    largest = max(float(np.abs(np.asarray(leaf)).max()) for leaf in jax.tree_util.tree_leaves(first))
    for one, other in zip(jax.tree_util.tree_leaves(first), jax.tree_util.tree_leaves(second), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=tolerance * largest, rtol=0)


assert len(jax.devices()) == 8
whole = jax.jit(jax.value_and_grad(loss))(params, ids, mask, labels)

mesh = Mesh(np.array(jax.devices()), ("data",))
rows, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
batch = [jax.device_put(array, rows) for array in (ids, mask, labels)]
step = jax.jit(jax.value_and_grad(loss), in_shardings=(everywhere, rows, rows, rows), out_shardings=everywhere)
same(step(jax.device_put(params, everywhere), *batch), whole)

# tensor parallelism: the columns of every kernel are spread over the devices
grid = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
spread = jax.tree_util.tree_map_with_path(
    lambda path, leaf: NamedSharding(
        grid, PartitionSpec(None, "model") if path[-1].key == "kernel" and leaf.shape[1] % 4 == 0 else PartitionSpec()
    ),
    params,
)
halves = NamedSharding(grid, PartitionSpec("data"))
step = jax.jit(jax.value_and_grad(loss), in_shardings=(spread, halves, halves, halves))
same(step(jax.device_put(params, spread), *(jax.device_put(array, halves) for array in (ids, mask, labels))), whole)

outputs = jax.pmap(lambda params, ids, mask: model(ids, mask, params=params).logits, in_axes=(None, 0, 0))(
    params, ids.reshape(8, 2, 12), mask.reshape(8, 2, 12)
)
keep = mask[..., None]
same(np.asarray(outputs).reshape(16, 12, 3) * keep, np.asarray(model(ids, mask, params=params).logits) * keep)

mapped = jax.shard_map(
    lambda params, ids, mask: model(ids, mask, params=params).logits,
    mesh=mesh,
    in_specs=(PartitionSpec(), PartitionSpec("data"), PartitionSpec("data")),
    out_specs=PartitionSpec("data"),
    check_vma=False,
)
same(jax.jit(mapped)(params, ids, mask) * keep, np.asarray(model(ids, mask, params=params).logits) * keep)

# explicit axes, the default of today: a training step with kernels spread over the devices, and a plain call
explicit = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
halves = NamedSharding(explicit, PartitionSpec("data"))
spread = jax.tree_util.tree_map(lambda sharding: NamedSharding(explicit, sharding.spec), spread)
parameters, batch = jax.device_put(params, spread), [jax.device_put(array, halves) for array in (ids, mask, labels)]
same(jax.jit(jax.value_and_grad(loss))(parameters, *batch), whole)
logits = model(*batch[:2], params=parameters).logits
assert logits.sharding.spec[0] == "data"
same(logits * keep, np.asarray(model(ids, mask, params=params).logits) * keep)
print("equal")
