"""RoBERTa and XLM-R in PyTorch against the reference: outputs, losses, gradients, files."""

from __future__ import annotations

import pytest
import torch
import transformers
from tests.parity.torch_parity import compare_gradients, compare_outputs, randomise
from tests.tolerances import assert_close

import longspan
from longspan.errors import ConfigError, InputError

SETTINGS = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
    "type_vocab_size": 2,
    "num_labels": 3,
}
CLASSES = ("Model", *(f"For{task}" for task in ("MaskedLM", "CausalLM", "SequenceClassification")))
CLASSES += tuple(f"For{task}" for task in ("TokenClassification", "QuestionAnswering", "MultipleChoice"))


def make_pair(suffix, folder, *, family="Roberta", **changes):
    """Our model and the reference's, read from the file that ours saved."""
    config = getattr(longspan, f"{family}Config")(**SETTINGS | {"is_decoder": suffix == "ForCausalLM"} | changes)
    config.num_labels = 2 if suffix == "ForQuestionAnswering" else 3
    ours = randomise(getattr(longspan, f"{family}{suffix}")(config))
    ours.save_pretrained(folder)
    reference = getattr(transformers, f"{family}{suffix}").from_pretrained(folder, attn_implementation="eager")
    return ours, reference


def inputs_of(suffix):
    """Ids padded at the right, with labels at every token."""
    ids = torch.randint(3, 60, (3, 12))
    ids[1, 8:] = ids[2, 3:] = 1
    inputs = {"input_ids": ids, "attention_mask": (ids != 1).long(), "token_type_ids": torch.randint(0, 2, (3, 12))}
    if suffix == "ForMultipleChoice":
        inputs = {name: torch.stack((value, value.roll(1, 0)), dim=1) for name, value in inputs.items()}
    labels = {
        "ForMaskedLM": ids,
        "ForCausalLM": ids,
        "ForTokenClassification": ids % 3,
        "ForSequenceClassification": torch.tensor([0, 2, 1]),
        "ForMultipleChoice": torch.tensor([0, 1, 1]),
    }
    if suffix == "ForQuestionAnswering":
        return inputs | {"start_positions": torch.tensor([1, 2, 3]), "end_positions": torch.tensor([3, 20, 9])}
    return inputs | ({"labels": labels[suffix]} if suffix in labels else {})


@pytest.mark.parametrize("family", ["Roberta", "XLMRoberta"])
@pytest.mark.parametrize("suffix", CLASSES)
def test_outputs_losses_and_gradients_equal_the_reference(suffix, family, tmp_path):
    ours, reference = make_pair(suffix, tmp_path, family=family)
    inputs = inputs_of(suffix)
    keep = None if suffix in ("ForMultipleChoice",) else inputs["attention_mask"].bool()
    flags = {"output_hidden_states": True, "output_attentions": True}
    actual, expected = ours(**inputs, **flags), reference(**inputs, **flags)
    compare_outputs(actual, expected, keep=keep)
    loss = ours(**inputs)[0]  # packed, where no label reads padding
    target = expected[0]
    if suffix == "Model":
        loss, target = ((state * keep[..., None]).square().sum() for state in (loss, target))
    loss.backward()
    target.backward()
    compare_gradients(ours, reference)


@torch.no_grad()
def test_positions_of_embeddings_and_given_ones(tmp_path):
    ours, reference = make_pair("Model", tmp_path)
    embeds = torch.randn(2, 7, 24)
    for inputs in ({"inputs_embeds": embeds}, {"inputs_embeds": embeds, "position_ids": torch.arange(7)[None] + 4}):
        assert_close(ours(**inputs).last_hidden_state, reference(**inputs).last_hidden_state)


@torch.no_grad()
def test_cached_steps_equal_the_full_pass(tmp_path):
    ours, reference = make_pair("ForCausalLM", tmp_path)
    ids = torch.randint(3, 60, (2, 9))
    first = ours(ids[:, :6])
    second = ours(ids[:, 6:], past_key_values=first.past_key_values)
    assert_close(torch.cat((first.logits, second.logits), dim=1), reference(ids).logits)


def greedy(model, ids, steps):
    """The likeliest tokens by the whole forward pass at each step, without padding."""
    for _ in range(steps):
        ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(dim=-1)), dim=1)
    return ids


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"use_cache": False}, {"cache_implementation": "static"}])
def test_generate_numbers_the_tokens_as_the_model_learned_them(tmp_path, settings):
    ours, reference = make_pair("ForCausalLM", tmp_path)
    ids = torch.randint(3, 60, (2, 7))
    ids[1, :3] = 1
    settings = {"max_new_tokens": 8, "eos_token_id": None, **settings}
    expected = [greedy(reference, row[row != 1][None], 8)[0, -8:] for row in ids]
    written = ours.generate(ids, attention_mask=(ids != 1).long(), **settings)
    assert torch.equal(written[:, 7:], torch.stack(expected))
    beams = ours.generate(ids, num_beams=3, **settings)
    alone = [ours.generate(row[row != 1][None], num_beams=3, **settings)[0, -8:] for row in ids]
    assert torch.equal(beams[:, 7:], torch.stack(alone))


@torch.no_grad()
def test_the_reference_generates_with_positions_from_0(tmp_path):
    """`docs/differences.md`: its forward pass numbers tokens from `pad_token_id + 1` on, its `generate` does not."""
    _, reference = make_pair("ForCausalLM", tmp_path)
    ids = torch.randint(3, 60, (2, 7))
    first = reference.generate(ids, max_new_tokens=1, output_logits=True, return_dict_in_generate=True).logits[0]
    assert_close(first, reference(ids, position_ids=torch.arange(7)[None].expand(2, -1)).logits[:, -1])
    assert float((first - reference(ids).logits[:, -1]).abs().max()) > 0.1


def test_as_many_tokens_as_positions_are_generated(tmp_path):
    ours, _ = make_pair("ForCausalLM", tmp_path)
    with pytest.warns(UserWarning, match="the model has 18 positions: after a prompt of 4 tokens it can generate 14"):
        written = ours.generate(torch.full((1, 4), 5), max_new_tokens=30, eos_token_id=None)
    assert written.shape == (1, 18)


@torch.no_grad()
def test_xlm_roberta_by_its_model_type(tmp_path):
    _, reference = make_pair("ForMaskedLM", tmp_path, family="XLMRoberta")
    ours = longspan.AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert type(ours) is longspan.XLMRobertaForMaskedLM
    assert type(ours.config) is longspan.XLMRobertaConfig
    alike = longspan.RobertaForMaskedLM.from_pretrained(tmp_path)
    assert type(alike.config) is longspan.XLMRobertaConfig
    ids = torch.randint(3, 60, (2, 9))
    assert_close(ours(ids).logits, reference(ids).logits)
    assert_close(alike(ids).logits, ours(ids).logits)


def test_a_reference_checkpoint_loads(tmp_path):
    config = transformers.RobertaConfig(**SETTINGS)
    randomise(transformers.RobertaForTokenClassification(config)).save_pretrained(tmp_path)
    ours, report = longspan.AutoModelForTokenClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report.missing
    assert not report.unexpected
    assert ours.config.pad_token_id == 1


def test_errors():
    with pytest.raises(ConfigError, match="pad_token_id must be given and lie below max_position_embeddings - 1"):
        longspan.RobertaConfig(pad_token_id=None)
    model = longspan.RobertaModel(longspan.RobertaConfig(**SETTINGS))
    with pytest.raises(InputError, match="max_position_embeddings - pad_token_id - 1=18 tokens. Received: 19 tokens"):
        model(torch.full((1, 19), 5))
    encoder = longspan.XLMRobertaForCausalLM
    with pytest.warns(UserWarning, match="XLMRobertaForCausalLM attends in both directions unless config.is_decoder"):
        model = encoder(longspan.XLMRobertaConfig(**SETTINGS))
    with pytest.raises(InputError, match="generate needs a decoder"):
        model.generate(torch.tensor([[5]]))
