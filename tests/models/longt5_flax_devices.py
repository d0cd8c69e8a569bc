"""Runs a Flax LongT5 under `pmap` on eight virtual CPU devices, generation too. Prints "equal" if all agree.

No other framework may be loaded.
"""

import os
import sys

os.environ["XLA_FLAGS"] = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import warnings

warnings.simplefilter("error")

import jax
import jax.numpy as jnp
import numpy as np

import longspan
from longspan.nn.flax.losses import cross_entropy

config = longspan.LongT5Config(
    vocab_size=40, d_model=16, d_kv=4, d_ff=20, num_heads=4, num_layers=1, local_radius=3, global_block_size=4,
    encoder_attention_type="transient-global", decoder_start_token_id=0,
)  # fmt: skip
model = longspan.FlaxLongT5ForConditionalGeneration(config, _do_init=False)
rng = np.random.default_rng(0)
params = jax.tree_util.tree_map(
    lambda leaf: jnp.asarray(rng.normal(scale=0.3, size=leaf.shape), jnp.float32), model.params_shape_tree
)
ids, labels = rng.integers(2, 40, (16, 13)).astype(np.int32), rng.integers(2, 40, (16, 5)).astype(np.int32)
mask = np.ones((16, 13), np.int32)
mask[3, 5:] = mask[9, :6] = 0


def loss(params, ids, mask, labels):
    targets = model.prepare_decoder_input_ids_from_labels(labels)
    return cross_entropy(model(ids, mask, targets, params=params).logits, labels)


def same(first, second, tolerance=1e-5):
    largest = max(float(np.abs(np.asarray(leaf)).max()) for leaf in jax.tree_util.tree_leaves(first))
    for one, other in zip(jax.tree_util.tree_leaves(first), jax.tree_util.tree_leaves(second), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=tolerance * largest, rtol=0)


assert len(jax.devices()) == 8
whole = jax.jit(jax.value_and_grad(loss))(params, ids, mask, labels)
each = jax.pmap(jax.value_and_grad(loss), in_axes=(None, 0, 0, 0))
parts = each(params, ids.reshape(8, 2, 13), mask.reshape(8, 2, 13), labels.reshape(8, 2, 5))
same(jax.tree_util.tree_map(lambda leaf: leaf.mean(axis=0), parts), whole)

settings = {"num_beams": 2, "max_new_tokens": 5, "min_new_tokens": 5}
expected = model.generate(ids, attention_mask=mask, params=params, **settings).sequences
parts = jax.pmap(
    lambda params, ids, mask: model.generate(ids, attention_mask=mask, params=params, **settings).sequences,
    in_axes=(None, 0, 0),
)(params, ids.reshape(8, 2, 13), mask.reshape(8, 2, 13))
np.testing.assert_array_equal(parts.reshape(16, -1), expected)

assert not {"torch", "tensorflow", "keras", "transformers"} & set(sys.modules)
print("equal")
