"""Flax DiffLlama on meshes of several devices, and as a module of NNX."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tests.tolerances import assert_close, assert_gradients_close

import longspan
from longspan.models.diffllama.flax_model import FlaxDiffLlamaForCausalLMModule

CONFIG = longspan.DiffLlamaConfig(
    vocab_size=40, hidden_size=12, intermediate_size=10, num_attention_heads=4, num_key_value_heads=2, head_dim=4,
    num_hidden_layers=1,
)  # fmt: skip


def test_eight_devices():
    script = Path(__file__).with_name("diffllama_flax_devices.py")
    done = subprocess.run(
        [sys.executable, str(script)], check=False, capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "equal", done.stderr[-3000:]


def test_as_a_module_of_nnx():
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 40, (2, 9)))
    module = nnx.bridge.ToNNX(FlaxDiffLlamaForCausalLMModule(CONFIG), rngs=nnx.Rngs(0)).lazy_init(ids)
    model = longspan.FlaxDiffLlamaForCausalLM(CONFIG, _do_init=False)
    params = nnx.to_pure_dict(nnx.state(module, nnx.Param))

    def of_nnx(module):
        return jnp.square(module(ids).logits).sum()

    value, gradients = nnx.value_and_grad(of_nnx)(module)
    expected, wanted = jax.value_and_grad(lambda params: jnp.square(model(ids, params=params).logits).sum())(params)
    assert_close(value / expected, 1.0)
    named = [
        {str(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (nnx.to_pure_dict(gradients), wanted)
    ]
    assert_gradients_close(*named)
