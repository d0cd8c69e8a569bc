"""PEFT: LoRA, prompt and prefix tuning of every task type train, save, merge and generate as the reference's do."""

from __future__ import annotations

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from tests.ecosystem.models import IDS, batch, make
from tests.tolerances import assert_close

import longspan
from longspan.integrations.peft import register_target_modules

pytestmark = [
    pytest.mark.ecosystem,
    pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning"),
    pytest.mark.filterwarnings("ignore:the model cannot find a question:UserWarning"),
]
TASKS = {
    "RobertaForSequenceClassification": "SEQ_CLS",
    "BertForTokenClassification": "TOKEN_CLS",
    "BertForQuestionAnswering": "QUESTION_ANS",
    "BertModel": "FEATURE_EXTRACTION",
    "BertLMHeadModel": "CAUSAL_LM",
    "LongT5ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "DiffLlamaForCausalLM": "CAUSAL_LM",
    "DiffLlamaForSequenceClassification": "SEQ_CLS",
    "LongformerForTokenClassification": "TOKEN_CLS",
}
#: of families whose reference PEFT does not serve, or not without faults
OURS_ALONE = {
    "LongformerForSequenceClassification": "SEQ_CLS",
    "LongformerForQuestionAnswering": "QUESTION_ANS",
    "MegaForSequenceClassification": "SEQ_CLS",
    "MegaForCausalLM": "CAUSAL_LM",
}
# PEFT counts the labels of the virtual tokens for causal models only, Longformer keeps no keys and values, and the
# reference's RoBERTa that is no decoder fails with those of a prefix
PREFIX = [name for name in TASKS if not name.startswith(("Longformer", "Roberta"))]
PROMPT = [name for name in TASKS if not name.endswith("TokenClassification")]


def settings(kind, task):
    register_target_modules()
    if kind == "lora":
        return LoraConfig(task_type=task, r=4, init_lora_weights=False)
    return {"prompt": PromptTuningConfig, "prefix": PrefixTuningConfig}[kind](task_type=task, num_virtual_tokens=3)


def adapted(name, kind, library=longspan):
    task = TASKS.get(name) or OURS_ALONE[name]
    model = make(name, library)
    torch.manual_seed(1)
    return get_peft_model(model, settings(kind, task))


def train(model, name):
    """Losses of three steps."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    losses = []
    for _ in range(3):
        output = model(**batch(name))
        loss = output["loss"] if "loss" in output else output[0][..., 0].mean()
        loss.backward()
        for key, parameter in model.named_parameters():
            if "_global" in key and name.endswith("TokenClassification"):
                continue  # no token is global
            if name == "LongformerForSequenceClassification" and "layer.1." in key and "_global" not in key:
                continue  # of the last layer, only the first token is read, and it is global
            assert not parameter.requires_grad or (parameter.grad is not None and parameter.grad.any()), key
        losses.append(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
    return torch.stack(losses)


def generated(model, **given):
    model.eval()
    return model.generate(input_ids=IDS, max_new_tokens=5, do_sample=False, **given)[:, -5:]


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "lora") for name in TASKS] + [(name, "prompt") for name in PROMPT] + [(name, "prefix") for name in PREFIX],
)
def test_trains_and_generates_as_the_reference(name, kind):
    ours, theirs = (adapted(name, kind, library) for library in (longspan, transformers))
    assert ours.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()
    assert_close(train(ours, name), train(theirs, name))
    if TASKS[name] in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
        mask = torch.ones_like(IDS)
        mask[0, :3] = 0
        for given in ({"attention_mask": mask}, {"attention_mask": torch.ones_like(IDS), "num_beams": 2}):
            assert torch.equal(generated(ours, **given), generated(theirs, **given)), given


@pytest.mark.parametrize("name", [*TASKS, *OURS_ALONE])
def test_saves_reloads_and_merges(name, tmp_path):
    model = adapted(name, "lora")
    train(model, name)
    model.save_pretrained(tmp_path)
    inputs = {key: value for key, value in batch(name).items() if key in ("input_ids", "attention_mask")}
    if name.startswith("LongT5"):
        inputs["decoder_input_ids"] = IDS
    expected = model.eval()(**inputs)[0]
    assert not torch.equal(expected, make(name).eval()(**inputs)[0])
    again = PeftModel.from_pretrained(make(name), tmp_path).eval()
    assert_close(again(**inputs)[0], expected)
    assert_close(again.merge_and_unload()(**inputs)[0], expected)


@pytest.mark.parametrize("name", list(OURS_ALONE))
def test_other_families_train_and_generate(name):
    train(adapted(name, "lora"), name)
    model = adapted(name, "prompt")
    train(model, name)
    if OURS_ALONE[name] == "CAUSAL_LM":
        assert generated(model, attention_mask=torch.ones_like(IDS)).shape == (2, 5)


def test_every_family_has_default_targets_in_every_method():
    register_target_modules()
    from peft import AdaLoraConfig, IA3Config, LoHaConfig

    for name in ("LongformerForTokenClassification", "LongT5ForConditionalGeneration", "DiffLlamaForCausalLM"):
        for config in (LoHaConfig(), AdaLoraConfig(total_step=10)):
            assert get_peft_model(make(name), config).get_nb_trainable_parameters()[0] > 0
    with pytest.raises(ValueError, match="target_modules"):
        get_peft_model(make("MegaForMaskedLM"), IA3Config())
