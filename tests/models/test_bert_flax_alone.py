"""Flax BERT in processes of its own: without the other frameworks, on eight devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ALONE = """
import sys, warnings
warnings.simplefilter("error")

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "tensorflow", "keras", "tf_keras", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
directory = sys.argv[1]

import jax
import jax.numpy as jnp
import numpy as np
import longspan
from longspan.nn.flax.losses import cross_entropy

ids = np.arange(8).reshape(2, 4)
model = longspan.FlaxAutoModelForTokenClassification.from_pretrained(directory, num_labels=3)
states = longspan.FlaxBertModel.from_pretrained(directory, add_pooling_layer=False)(ids).last_hidden_state
loss = lambda params: cross_entropy(model(ids, params=params).logits, ids % 3)
gradients = jax.jit(jax.grad(loss))(model.params)
model.save_pretrained(directory + "/again")
again = longspan.FlaxBertForTokenClassification.from_pretrained(directory + "/again")
jax.tree_util.tree_map(np.testing.assert_array_equal, again.params, model.params)
assert not {"torch", "tensorflow", "keras", "transformers"} & set(sys.modules)
np.save(directory + "/states.npy", np.asarray(states))
"""


def run(*command: str) -> str:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, *command], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_works_without_the_other_frameworks(tmp_path):
    import numpy as np
    import torch

    import longspan

    config = longspan.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = longspan.BertModel(config).eval()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")  # read without PyTorch
    config.save_pretrained(tmp_path)
    run("-c", ALONE, str(tmp_path))
    with torch.no_grad():
        expected = model(torch.arange(8).view(2, 4)).last_hidden_state.numpy()
    assert np.abs(np.load(tmp_path / "states.npy") - expected).max() < 1e-5


@pytest.mark.wide  # four devices serve every family in test_flax_transformations
def test_eight_devices():
    assert run(str(Path(__file__).with_name("flax_devices.py"))).strip() == "equal"
