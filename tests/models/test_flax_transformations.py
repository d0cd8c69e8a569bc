"""Flax models as modules of NNX, on meshes of several devices, with recomputed activations and in half precision.

Of each test, `make test` runs the families whose modules differ most; the others go through the same bridge, mesh or
cast.

`vmap` of every family is in tests/parity/test_longformer_flax.py, test_diffllama_flax.py, test_mega_flax.py and in
test_bert_flax.py and test_longt5_flax.py here; `pmap` and `shard_map` in flax_devices.py and longt5_flax_devices.py.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tests.grid import grid
from tests.jaxprs import product_dtypes
from tests.models.test_flax_programs import BERT, CHUNKED, DIFFLLAMA, LONGFORMER, LONGT5, MEGA
from tests.tolerances import assert_close, assert_gradients_close

import longspan
from longspan.ops import fast_paths

BATCH_NORM = longspan.MegaConfig(
    **{
        **CHUNKED.to_dict(), "normalization_type": "batchnorm", "dropout_prob": 0.0, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "nffn_activation_dropout_prob": 0.0,
    }
)  # fmt: skip
CASES = {
    "bert": ("FlaxBertForTokenClassification", BERT),
    "longformer": ("FlaxLongformerForTokenClassification", LONGFORMER),
    "longt5": ("FlaxLongT5ForConditionalGeneration", LONGT5),
    "diffllama": ("FlaxDiffLlamaForCausalLM", DIFFLLAMA),
    "mega": ("FlaxMegaForMaskedLM", MEGA),
    "mega-batchnorm": ("FlaxMegaForTokenClassification", BATCH_NORM),
}
IDS = np.random.default_rng(0).integers(3, 40, (2, 9)).astype(np.int32)


def named(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def inputs_of(family):
    """Arguments of a module."""
    if family == "longt5":
        return {"input_ids": IDS, "decoder_input_ids": IDS[:, :4]}
    if family == "longformer":
        return {"input_ids": IDS, "global_attention_mask": np.isin(IDS, IDS[0, 0]).astype(np.int32)}
    return {"input_ids": IDS}


def make(family, **arguments):
    name, config = CASES[family]
    return getattr(longspan, name)(config, _do_init=False, **arguments)


def gradients_of(family, params, **arguments):
    """The sum of squares of the scores, the gradient of every parameter, and the moved statistics."""
    model, inputs = make(family, **arguments), inputs_of(family)
    trains = bool(model.batch_stats)

    def loss(params):
        output = model(**inputs, params=params, **({"train": True} if trains else {}))
        output, moved = output if trains else (output, {})
        assert output.logits.dtype == arguments.get("dtype", jnp.float32)
        return jnp.square(output.logits.astype(jnp.float32)).sum(), moved

    (value, moved), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return value, named(gradients), named(moved)


@pytest.fixture(scope="module")
def plain():
    """Family -> (parameters, and the value, gradients and moved statistics of its Flax model), made once each."""

    @functools.cache
    def compute(family):
        rng = np.random.default_rng(1)
        params = jax.tree_util.tree_map(
            lambda leaf: jnp.asarray(rng.normal(scale=0.3, size=leaf.shape), jnp.float32),
            make(family).params_shape_tree,
        )
        return params, gradients_of(family, params)

    return compute


# docs/linen_and_nnx.md, which a test runs, trains a Longformer
@pytest.mark.parametrize("family", grid(CASES, wide=("bert", "longformer", "diffllama", "mega")))
def test_as_a_module_of_nnx(plain, family):
    model, inputs = make(family), inputs_of(family)
    params, (expected, wanted, moved) = plain(family)
    module = nnx.eval_shape(lambda: nnx.bridge.ToNNX(model.module, rngs=nnx.Rngs(0)).lazy_init(**inputs))
    assert jax.tree_util.tree_map(jnp.shape, nnx.to_pure_dict(nnx.state(module, nnx.Param))) == (
        jax.tree_util.tree_map(jnp.shape, params)
    )
    module.to_nnx__rngs = nnx.Rngs(0)
    nnx.update(module, params)
    nnx.update(module, model.batch_stats)
    arguments = {"deterministic": False, "mutable": ["batch_stats"]} if model.batch_stats else {}

    @nnx.jit
    @nnx.value_and_grad
    def step(module):
        return jnp.square(module(**inputs, **arguments).logits).sum()

    value, gradients = step(module)
    assert_close(value / expected, 1.0)
    assert_gradients_close(named(nnx.to_pure_dict(gradients)), wanted)
    assert bool(moved) == (family == "mega-batchnorm")
    for path, leaf in named(nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))).items():
        assert_close(leaf, moved[path], what=path)


@pytest.mark.parametrize("family", grid(("diffllama", "mega", "mega-batchnorm"), wide=("mega",)))
def test_recomputed_activations_change_nothing(plain, family):
    """The other families' own tests show it of them."""
    params, (expected, wanted, moved) = plain(family)
    value, gradients, again = gradients_of(family, params, gradient_checkpointing=True)
    assert_close(value / expected, 1.0)
    assert_gradients_close(gradients, wanted)
    for path, leaf in moved.items():
        assert_close(again[path], leaf, what=path)


@pytest.mark.parametrize("family", CASES)
def test_a_cpu_without_half_precision_products_multiplies_in_float32(monkeypatch, family):
    """Shapes and dtypes of all outputs are those of the definition; of LongT5 some are float32 in float16."""
    monkeypatch.setattr(fast_paths, "lacks_products", lambda dtype: True)
    dtype = "float16" if family == "longt5" else "bfloat16"
    model, inputs = make(family, dtype=dtype), inputs_of(family)
    params = model.to_fp16(model.init_weights(jax.random.PRNGKey(0)))

    def trace():
        run = functools.partial(model, **inputs, output_hidden_states=True)
        return jax.make_jaxpr(lambda params: run(params=params), return_shape=True)(params)

    wide, found = trace()
    with longspan.plain():
        narrow, asked = trace()
    assert product_dtypes(wide.jaxpr) == {"float32"}
    assert dtype in product_dtypes(narrow.jaxpr)
    assert found == asked


@pytest.mark.parametrize("family", ["longt5", "diffllama"])
def test_generate_multiplies_in_float32_too(monkeypatch, family):
    monkeypatch.setattr(fast_paths, "lacks_products", lambda dtype: True)
    model = make(family, dtype="bfloat16")
    params = model.to_bf16(model.init_weights(jax.random.PRNGKey(0)))

    def trace():
        write = functools.partial(model.generate, IDS, max_new_tokens=2, eos_token_id=None)
        return product_dtypes(jax.make_jaxpr(lambda params: write(params=params).sequences)(params).jaxpr)

    assert trace() == {"float32"}
    with longspan.plain():
        assert "bfloat16" in trace()


@pytest.mark.parametrize("family", grid(("bert", "diffllama", "mega", "mega-batchnorm"), wide=("bert", "mega")))
def test_half_precision_with_parameters_in_float32(plain, family):
    """Of Longformer and LongT5, the parity tests compare states in half precision."""
    params, (expected, wanted, _) = plain(family)
    value, gradients, moved = gradients_of(family, params, dtype=jnp.bfloat16)
    assert {str(leaf.dtype) for leaf in gradients.values()} == {"float32"}
    assert {str(leaf.dtype) for leaf in moved.values()} <= {"float32", "int32"}
    assert abs(float(value / expected) - 1) < 0.1
    first, second = (jnp.concatenate([leaf.ravel() for leaf in leaves.values()]) for leaves in (gradients, wanted))
    assert float(first @ second / jnp.linalg.norm(first) / jnp.linalg.norm(second)) > 0.99


@pytest.mark.parametrize(
    "families",
    [
        ("longt5",),
        pytest.param(("bert", "longformer", "diffllama"), marks=pytest.mark.wide),
        pytest.param(("mega", "mega-batchnorm"), marks=pytest.mark.wide),
    ],
)
def test_four_devices(families):
    """Of the others, tests/parallel/test_flax.py compares numbers on meshes, and flax_devices.py those of BERT."""
    script = Path(__file__).with_name("flax_mesh_devices.py")
    command = [sys.executable, str(script), *families]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.split() == list(families), done.stderr[-3000:]
