"""Every Flax RoBERTa class against the PyTorch class on the same checkpoint directory."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from tests.parity.flax_parity import compare_gradients
from tests.parity.torch_parity import randomise
from tests.tolerances import assert_close

import longspan

SETTINGS = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 28,
    "max_position_embeddings": 30,
    "type_vocab_size": 2,
    "num_labels": 5,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
NAMES = {
    "RobertaModel": {},
    "RobertaForMaskedLM": {},
    "RobertaForCausalLM": {"is_decoder": True},
    "RobertaForSequenceClassification": {},
    "RobertaForMultipleChoice": {},
    "RobertaForTokenClassification": {},
    "RobertaForQuestionAnswering": {"num_labels": 2},
}


def pair(name, folder, config_class="RobertaConfig"):
    """The Flax model and the PyTorch model of a class, with equal weights."""
    config = getattr(longspan, config_class)(**{**SETTINGS, **NAMES[name]}, attn_implementation="eager")
    prefix = config_class.removesuffix("Config")
    expected = randomise(getattr(longspan, name.replace("Roberta", prefix))(config)).eval()
    expected.save_pretrained(folder)
    return getattr(longspan, f"Flax{name}").from_pretrained(folder), expected


def batch():
    """Ids and mask of rows that are full, padded on the right and padded on the left."""
    ids = np.random.default_rng(0).integers(3, 61, (4, 13))
    mask = np.ones_like(ids)
    mask[1, 8:] = mask[2, :4] = mask[3, :1] = 0
    return np.where(mask == 1, ids, 1), mask


@pytest.mark.parametrize("name", NAMES)
def test_xlm_r_has_the_class_and_tells_configurations_apart(name):
    ours = getattr(longspan, f"FlaxXLM{name}")
    model = ours(longspan.XLMRobertaConfig(**{**SETTINGS, **NAMES[name]}), _do_init=False)
    assert isinstance(model, getattr(longspan, f"Flax{name}"))
    with pytest.raises(longspan.errors.ConfigError, match=f"FlaxXLM{name} needs a XLMRobertaConfig. Received: Roberta"):
        ours(longspan.RobertaConfig(**SETTINGS))


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_equal_the_pytorch_class(name, tmp_path):
    ours, theirs = pair(name, tmp_path)
    ids, mask = batch()
    shape = (2, 2, 13) if "Choice" in name else ids.shape
    inputs = {"input_ids": ids.reshape(shape), "attention_mask": mask.reshape(shape)}
    expected = theirs(**{key: torch.from_numpy(value) for key, value in inputs.items()})
    fields = {key: value for key, value in expected.items() if isinstance(value, torch.Tensor)}
    rng = np.random.default_rng(1)
    weights = {key: rng.normal(size=tuple(value.shape)).astype("f") for key, value in fields.items()}
    for value in weights.values():  # states of padding are unspecified
        if value.shape[:2] == mask.shape:
            value *= mask.reshape(*mask.shape, *[1] * (value.ndim - 2))
    sum((value * torch.from_numpy(weights[key])).sum() for key, value in fields.items()).backward()

    def loss(params):
        output = ours(**inputs, params=params)
        return sum((output[key] * weights[key]).sum() for key in weights), output

    gradients, output = jax.jit(jax.grad(loss, has_aux=True))(ours.params)
    ours.config.attn_implementation = "auto"
    for result in (output, ours(**inputs)):
        for key, value in fields.items():
            keep = weights[key] != 0
            assert_close(np.asarray(result[key]) * keep, value.detach().numpy() * keep, what=key)
    compare_gradients(gradients, theirs)


def test_generation_numbers_tokens_as_the_forward_pass(tmp_path):
    ours, theirs = pair("RobertaForCausalLM", tmp_path)
    ids, mask = batch()
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "pad_token_id": 1}
    expected = theirs.generate(torch.from_numpy(ids[[0, 2]]), attention_mask=torch.from_numpy(mask[[0, 2]]), **settings)
    written = ours.generate(ids[[0, 2]], attention_mask=mask[[0, 2]], **settings).sequences
    np.testing.assert_array_equal(np.asarray(written)[:, -5:], expected.numpy()[:, -5:])
    with pytest.warns(UserWarning, match="FlaxRobertaForCausalLM attends in both directions unless"):
        longspan.FlaxRobertaForCausalLM(longspan.RobertaConfig(**SETTINGS), _do_init=False)


def test_positions_have_a_limit_that_padding_does_not_count_for(tmp_path):
    model, _ = pair("RobertaModel", tmp_path)
    ids = np.full((1, 29), 7)
    with pytest.raises(longspan.errors.InputError, match="longer than max_position_embeddings - pad_token_id - 1=28"):
        model(ids)
    ids[0, 28] = 1
    assert model(ids, attention_mask=ids != 1).last_hidden_state.shape == (1, 29, 24)


def test_auto_classes_load_both_and_saving_goes_back(tmp_path):
    for config_class in ("RobertaConfig", "XLMRobertaConfig"):
        prefix = config_class.removesuffix("Config")
        _, expected = pair("RobertaForMaskedLM", tmp_path / config_class, config_class)
        model = longspan.FlaxAutoModelForMaskedLM.from_pretrained(tmp_path / config_class)
        assert type(model) is getattr(longspan, f"Flax{prefix}ForMaskedLM")
        model.save_pretrained(tmp_path / "back")
        back = longspan.AutoModelForMaskedLM.from_pretrained(tmp_path / "back")
        assert type(back) is getattr(longspan, f"{prefix}ForMaskedLM")
        for name, tensor in expected.state_dict().items():
            assert (back.state_dict()[name] == tensor).all(), name
