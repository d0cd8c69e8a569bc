"""The reference counts labels at padding: losses and gradients are equal when every token has one."""

from __future__ import annotations

import pytest
import torch
from tests.contract.test_golden_torch import tiny_model
from tests.contract.test_signatures_torch import TORCH, reference_class
from tests.parity.torch_parity import compare_gradients, randomise
from tests.tolerances import assert_close
from transformers.models.deprecated.mega.configuration_mega import MegaConfig

from longspan.errors import InputError
from longspan.ops.dispatch import recording

IDS = torch.tensor([[4, 9, 13, 7, 22, 5, 8, 6], [11, 3, 14, 9, 21, 10, 5, 12], [6, 15, 23, 4, 18, 7, 9, 20]])
REAL = (8, 5, 2)
#: causal classes whose queries at left padding see no key: no value to compare with, see docs/differences.md
NO_KEY = {"BertLMHeadModel", "LongT5ForConditionalGeneration", "MegaForCausalLM", "RobertaForCausalLM"}
NO_KEY |= {"XLMRobertaForCausalLM"}
CLASSES = [name for name in TORCH if "For" in name or name == "BertLMHeadModel"]
CASES = [(name, side) for name in CLASSES for side in ("right", "left") if side == "right" or name not in NO_KEY]


def mask_of(side):
    places = torch.arange(8).expand(3, 8)
    real = torch.tensor(REAL)[:, None]
    return (places < real if side == "right" else places >= 8 - real).long()


def inputs_of(name, side):
    """Inputs with labels everywhere."""
    inputs = {"input_ids": IDS, "attention_mask": mask_of(side)}
    if name.startswith("Longformer"):
        inputs["global_attention_mask"] = (torch.arange(8).expand(3, 8) == 6).long()
    task = name.partition("For")[2]
    if task == "MultipleChoice":
        inputs = {key: value[:, None].repeat(1, 2, 1) for key, value in inputs.items()}
        inputs["input_ids"] = torch.stack((IDS, IDS.flip(1)), dim=1)
        return inputs | {"labels": torch.tensor([0, 1, 0])}
    if task == "QuestionAnswering":
        return inputs | {"start_positions": torch.tensor([1, 2, 3]), "end_positions": torch.tensor([3, 5, 7])}
    if task == "ConditionalGeneration":
        return inputs | {"labels": IDS, "decoder_attention_mask": mask_of(side)}
    if task in ("SequenceClassification", "NextSentencePrediction"):
        return inputs | {"labels": torch.tensor([0, 1, 1])}
    if task == "PreTraining":
        inputs["next_sentence_label"] = torch.tensor([0, 1, 1])
    return inputs | {"labels": IDS % 2 if task == "TokenClassification" else IDS}


def make_pair(name):
    ours = randomise(tiny_model(name))
    if ours.config.pad_token_id is None:
        ours.config.pad_token_id = 0
    settings = ours.config.to_dict()
    for key in ("dtype", "attn_implementation", "model_type", "num_global_slots"):
        settings.pop(key, None)
    reference = reference_class(name)
    config_class = MegaConfig if name.startswith("Mega") else reference.config_class
    config = config_class(**settings | {"decoder_start_token_id": 0})
    reference = reference(config).eval()
    reference.load_state_dict(ours.state_dict(), strict=False)
    return ours, reference


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "side"), CASES)
def test_losses_and_gradients_equal_the_reference(name, side):
    ours, reference = make_pair(name)
    inputs = inputs_of(name, side)
    actual, expected = ours(**inputs).loss, reference(**inputs).loss
    assert_close(actual, expected)
    actual.backward()
    expected.backward()
    compare_gradients(ours, reference)


@pytest.mark.parametrize("implementation", ["auto", "packed"])
def test_batches_stay_packed_while_no_label_reads_padding(implementation):
    model = randomise(tiny_model("BertForMaskedLM"))
    model.config.attn_implementation = implementation
    labels = IDS.masked_fill(mask_of("right") == 0, -100)
    with recording() as ran:
        model(IDS, attention_mask=mask_of("right"), labels=labels)
    assert ran == ["packed"]
    if implementation == "packed":
        with pytest.raises(InputError, match="'packed'.*the states at padding are needed"):
            model(IDS, attention_mask=mask_of("right"), labels=IDS)


def test_batches_without_a_real_token():
    model = randomise(tiny_model("BertForTokenClassification"))
    with torch.no_grad():
        assert model(IDS, attention_mask=torch.zeros_like(IDS)).logits.isfinite().all()


def test_causal_losses_take_the_keywords_of_the_reference():
    ours, reference = make_pair("BertLMHeadModel")
    labels = IDS.masked_fill(mask_of("right") == 0, -100)
    inputs = {"input_ids": IDS, "attention_mask": mask_of("right"), "labels": labels}
    for keywords in (
        {"num_items_in_batch": 31},
        {"num_items_in_batch": torch.tensor(7)},
        {"shift_labels": IDS.flip(1)},
    ):
        assert_close(ours(**inputs, **keywords).loss, reference(**inputs, **keywords).loss)
    with pytest.raises(TypeError, match="unexpected keyword argument 'mask'"):
        ours(IDS, mask=IDS)
