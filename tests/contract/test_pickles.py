"""Every PyTorch and Flax class survives pickling; Keras classes have `.keras` files (`tests/keras/test_saving.py`)."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from tests.contract.test_docstrings import model_classes

import longspan

TINY = {
    "Bert": longspan.BertConfig(
        vocab_size=30, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=14
    ),
    "Longformer": longspan.LongformerConfig(
        vocab_size=30,
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=14,
        attention_window=4,
        max_position_embeddings=40,
    ),
    "Roberta": longspan.RobertaConfig(
        vocab_size=30,
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=14,
        max_position_embeddings=40,
    ),
    "XLMRoberta": longspan.XLMRobertaConfig(
        vocab_size=30,
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=14,
        max_position_embeddings=40,
    ),
    "LongT5": longspan.LongT5Config(vocab_size=30, d_model=12, d_kv=6, d_ff=14, num_layers=1, num_heads=2),
    "DiffLlama": longspan.DiffLlamaConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=14,
    ),
    "Mega": longspan.MegaConfig(
        vocab_size=30,
        hidden_size=12,
        num_hidden_layers=1,
        intermediate_size=14,
        shared_representation_size=8,
        nffn_hidden_size=14,
    ),
}
#: classes that need `is_decoder`
DECODERS = {
    "BertLMHeadModel", "FlaxBertForCausalLM", "FlaxMegaForCausalLM", "FlaxRobertaForCausalLM",
    "FlaxXLMRobertaForCausalLM", "MegaForCausalLM", "RobertaForCausalLM", "XLMRobertaForCausalLM",
}  # fmt: skip
CLASSES = {
    name: cls
    for name, cls in model_classes().items()
    if "PreTrainedModel" not in name and not cls.__module__.split(".")[-1].startswith("keras")
}


def parameters(model):
    if hasattr(model, "state_dict"):
        return {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    import jax

    return {jax.tree_util.keystr(path): value for path, value in jax.tree_util.tree_leaves_with_path(model.params)}


@pytest.mark.parametrize("name", CLASSES)
def test_pickled_models_come_back_whole(name):
    family = next(family for family in TINY if name.removeprefix("Flax").startswith(family))
    config = type(TINY[family])(**TINY[family].to_dict())
    if name in DECODERS:
        config.is_decoder, config.bidirectional = True, False
    model = CLASSES[name](config)
    back = pickle.loads(pickle.dumps(model))
    assert type(back) is CLASSES[name]
    assert back.config.to_dict() == model.config.to_dict()
    expected, actual = parameters(model), parameters(back)
    assert list(actual) == list(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(actual[key], value)
