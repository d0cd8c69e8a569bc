"""Runs Flax models on four virtual CPU devices, with automatic and with explicit axes; names what agrees.

    python flax_mesh_devices.py FAMILY ...

Rows of the batch are divided, and on meshes of two axes columns of the kernels. Loss and gradient of every parameter,
what a step of optax makes of them, a plain call, running statistics and `generate` must equal those of one device.
"""

import os
import sys

os.environ["XLA_FLAGS"] = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"

import warnings

warnings.simplefilter("error")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import longspan
from longspan.nn.flax.losses import causal_lm_loss, cross_entropy
from longspan.ops.flax import differential

differential.BLOCK_ROWS = 4  # short inputs take several
SETTINGS = {"vocab_size": 40, "num_hidden_layers": 1}
MEGA = {
    **SETTINGS, "hidden_size": 16, "intermediate_size": 20, "ema_projection_size": 3, "shared_representation_size": 8,
    "nffn_hidden_size": 12, "use_chunking": True, "chunk_size": 4, "eos_token_id": None, "dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "nffn_activation_dropout_prob": 0.0,
}  # fmt: skip
#: family -> (class, settings)
CASES = {
    "bert": (
        longspan.FlaxBertForTokenClassification,
        longspan.BertConfig(**SETTINGS, hidden_size=16, num_attention_heads=4, intermediate_size=20, num_labels=40),
    ),
    "longformer": (
        longspan.FlaxLongformerForTokenClassification,
        longspan.LongformerConfig(
            **SETTINGS, hidden_size=16, num_attention_heads=4, intermediate_size=20, max_position_embeddings=32,
            attention_window=4, num_labels=40, num_global_slots=4,
        ),
    ),
    "longt5": (
        longspan.FlaxLongT5ForConditionalGeneration,
        longspan.LongT5Config(
            vocab_size=40, d_model=16, d_kv=4, d_ff=20, num_heads=4, num_layers=1, local_radius=3, global_block_size=4,
            encoder_attention_type="transient-global", decoder_start_token_id=0, eos_token_id=None,
        ),
    ),
    "diffllama": (
        longspan.FlaxDiffLlamaForCausalLM,
        longspan.DiffLlamaConfig(
            **SETTINGS, hidden_size=16, intermediate_size=20, num_attention_heads=8, num_key_value_heads=4, head_dim=4,
            eos_token_id=None,
        ),
    ),
    "mega": (longspan.FlaxMegaForCausalLM, longspan.MegaConfig(**MEGA, is_decoder=True, bidirectional=False)),
    "mega-batchnorm": (
        longspan.FlaxMegaForTokenClassification,
        longspan.MegaConfig(**MEGA, normalization_type="batchnorm", num_labels=40),
    ),
}  # fmt: skip
RATE = 1e-3
WRITING = {"num_beams": 2, "max_new_tokens": 5, "min_new_tokens": 5, "pad_token_id": 0}

rng = np.random.default_rng(0)
ids = rng.integers(3, 40, (4, 11)).astype(np.int32)
ids[:, 3] = 2  # Longformer's separator
mask = np.ones((4, 11), np.int32)
mask[1, 5:] = mask[2, :3] = 0


def same(first, second, tolerance=1e-5):
    """In NumPy: JAX would compile an operation for each shape and sharding."""
    leaves = jax.tree_util.tree_leaves(first)
    largest = max(float(np.abs(np.asarray(leaf)).max()) for leaf in leaves)
    for one, other in zip(leaves, jax.tree_util.tree_leaves(second), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=tolerance * largest, rtol=0)


#: as in training: gradients of a bounded norm, Adam's moments, decay
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(RATE))


def same_step(first, second):
    """Loss, gradients and moments are equal, and so are parameters.

    Adam divides a gradient by its size: of one that is all rounding nothing but the sign is left, and that of rounding.
    """
    (outcome, moments, params), (expected, wanted, right) = first, second
    same(outcome, expected)
    same(moments, wanted)
    gradients = [np.asarray(leaf) for leaf in jax.tree_util.tree_leaves(expected[1])]
    noise = 1e-5 * max(float(np.abs(leaf).max()) for leaf in gradients)
    counted = 0
    for mine, theirs, gradient in zip(*map(jax.tree_util.tree_leaves, (params, right)), gradients, strict=True):
        is_clear = np.abs(gradient) > noise
        np.testing.assert_allclose(np.asarray(mine)[is_clear], np.asarray(theirs)[is_clear], atol=1e-5, rtol=0)
        np.testing.assert_allclose(np.asarray(mine), np.asarray(theirs), atol=2 * RATE, rtol=0)
        counted += int(is_clear.sum())
    assert counted > sum(int((leaf != 0).sum()) for leaf in gradients) / 2


def compare(name):
    model_class, config = CASES[name]
    model = model_class(config, _do_init=False)
    params = jax.tree_util.tree_map(
        lambda leaf: jnp.asarray(rng.normal(scale=0.3, size=leaf.shape), jnp.float32), model.params_shape_tree
    )
    targets = ids[:, :5] if name == "longt5" else ids

    def logits(params, ids, mask):
        extra = (targets,) if name == "longt5" else ()
        arguments = {"num_global_slots": 4} if name == "longformer" else {}
        return model(ids, mask, *extra, params=params, **arguments).logits

    def loss(params, ids, mask):
        if name == "mega-batchnorm":
            output, moved = model(ids, mask, params=params, train=True)
            return cross_entropy(output.logits, jnp.where(mask == 0, -100, ids)), moved
        if name == "longt5":
            return cross_entropy(logits(params, ids, mask), targets), {}
        rule = cross_entropy if name in ("bert", "longformer") else causal_lm_loss
        return rule(logits(params, ids, mask), jnp.where(mask == 0, -100, ids)), {}

    def write(params, ids, mask):
        return model.generate(ids, attention_mask=mask, params=params, **WRITING).sequences

    def step(params, moments, ids, mask):
        outcome = jax.value_and_grad(loss, has_aux=True)(params, ids, mask)
        updates, moments = OPTIMIZER.update(outcome[1], moments, params)
        return outcome, moments, optax.apply_updates(params, updates)

    moments = OPTIMIZER.init(params)
    whole = jax.jit(step)(params, moments, ids, mask)
    line = jax.make_mesh((4,), ("data",))
    rows, everywhere = (NamedSharding(line, PartitionSpec(*axes)) for axes in (("data",), ()))
    copies = jax.device_put((params, moments), everywhere)
    same_step(jax.jit(step)(*copies, *(jax.device_put(array, rows) for array in (ids, mask))), whole)
    plain = logits(params, ids, mask)
    keep = np.ones((4, 5, 1)) if name == "longt5" else mask[..., None]
    written = write(params, ids, mask) if hasattr(model, "generate") else None
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2)
        rows = NamedSharding(mesh, PartitionSpec("data"))
        columns, everywhere = NamedSharding(mesh, PartitionSpec(None, "model")), NamedSharding(mesh, PartitionSpec())
        leaves, tree = jax.tree_util.tree_flatten_with_path(params)
        divided = [path[-1].key == "kernel" and leaf.shape[1] % 2 == 0 for path, leaf in leaves]
        assert sum(divided) >= 4
        spread = tree.unflatten([columns if columned else everywhere for columned in divided])
        parameters, batch = jax.device_put(params, spread), [jax.device_put(array, rows) for array in (ids, mask)]
        same_step(jax.jit(step)(parameters, OPTIMIZER.init(parameters), *batch), whole)
        called = logits(parameters, *batch)
        assert len(called.sharding.device_set) == 4
        same(called * keep, plain * keep)
        if written is not None:
            np.testing.assert_array_equal(jax.jit(write)(parameters, *batch), written)
        if name == "longt5" and kind == AxisType.Explicit:
            np.testing.assert_array_equal(write(parameters, *batch), written)


assert len(jax.devices()) == 4
for name in sys.argv[1:]:
    compare(name)
    print(name)
