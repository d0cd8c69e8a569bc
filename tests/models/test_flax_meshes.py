"""Every Flax class on a mesh of explicit axes, today's default: kernels spread over devices, rows over others.

With explicit axes a step that says not where its result lies is an error of tracing, so that tracing shows it; numbers
are compared on eight devices by the files `*_flax_devices.py`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
from tests.contract.test_modules_are_called_flax import DECODERS, FAMILIES, WIDE, WRITERS
from tests.grid import grid

import longspan

MESH = AbstractMesh((2, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
NAMES = [name for name in longspan.__all__ if name.startswith(tuple(FAMILIES)) and not name.endswith("PreTrainedModel")]
SETTINGS = {
    **{name: {"is_decoder": True} for name in DECODERS},
    "FlaxMegaForCausalLM": {"is_decoder": True, "bidirectional": False},
}


def struct(shape, dtype, *axes):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(MESH, PartitionSpec(*axes)))


def spread(params):
    """Shapes of parameters whose kernels have their columns on two devices."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    axes = [(None, "model") if path[-1].key == "kernel" and leaf.shape[1] % 2 == 0 else () for path, leaf in leaves]
    return tree.unflatten([struct(leaf.shape, leaf.dtype, *at) for (_, leaf), at in zip(leaves, axes, strict=True)])


def build(name):
    config, common = next(family for prefix, family in FAMILIES.items() if name.startswith(prefix))
    model = getattr(longspan, name)(config(**{**common, **SETTINGS.get(name, {})}), _do_init=False)
    return model, spread(model.params_shape_tree)


def inputs_of(name):
    shape = (4, 2, 9) if "Choice" in name else (4, 9)
    ids = struct(shape, jnp.int32, "data")
    inputs = {"input_ids": ids, "attention_mask": ids}
    if "Longformer" in name:
        inputs["global_attention_mask"] = ids
    if "LongT5" in name and "Encoder" not in name:
        inputs["decoder_input_ids"] = struct((4, 5), jnp.int32, "data")
    return inputs


LANGUAGE_MODELS = [name for name in NAMES if name.endswith(("ForMaskedLM", "Generation", "ForCausalLM"))]
WRITING = [
    (name, beams) for name in (*(name for name, _ in WRITERS.values()), "FlaxRobertaForCausalLM") for beams in (2, 1)
]


@pytest.mark.parametrize("name", grid(NAMES, wide=WIDE))
def test_every_class(name):
    model, params = build(name)
    output = jax.eval_shape(
        lambda params, inputs: model(**inputs, params=params, return_dict=False)[0], params, inputs_of(name)
    )
    assert output.sharding.spec[0] == "data"


@pytest.mark.parametrize("name", grid(LANGUAGE_MODELS, wide=[name for name in LANGUAGE_MODELS if "Roberta" in name]))
def test_gradients_lie_where_their_parameters_do(name):
    model, params = build(name)

    def loss(params, inputs):
        return jnp.square(model(**inputs, params=params, return_dict=False)[0]).mean()

    gradients = jax.tree_util.tree_leaves(jax.eval_shape(jax.grad(loss), params, inputs_of(name)))
    given = jax.tree_util.tree_leaves(params)
    assert [leaf.shape for leaf in gradients] == [leaf.shape for leaf in given]
    kernels = [pair for pair in zip(gradients, given, strict=True) if "model" in pair[1].sharding.spec]
    assert len(kernels) >= 5
    assert all(mine.sharding.spec == theirs.sharding.spec for mine, theirs in kernels)


# the search for one row is the same whatever the family
@pytest.mark.parametrize(("name", "beams"), grid(WRITING, wide=[case for case in WRITING[2:] if case[1] == 1]))
def test_generate(name, beams):
    model, params = build(name)
    inputs = {key: value for key, value in inputs_of(name).items() if "decoder" not in key}

    def write(params, inputs):
        return model.generate(**inputs, params=params, num_beams=beams, max_new_tokens=3, eos_token_id=None).sequences

    sequences = jax.eval_shape(write, params, inputs)
    assert sequences.shape == (4, 4 if "LongT5" in name else 12)
