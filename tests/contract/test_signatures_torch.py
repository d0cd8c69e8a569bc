"""Arguments of the PyTorch classes: names and order as in the reference."""

from __future__ import annotations

import inspect

import pytest
import transformers
from tests.contract.test_docstrings import model_classes

TORCH = {
    name: cls
    for name, cls in model_classes().items()
    if cls.__module__.split(".")[-1].startswith("torch_") and "PreTrainedModel" not in name
}


#: DiffLlama's arguments as its documentation lists them; 4.57.6 takes the output flags as keywords only
_DECODER = ["input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds"]
_FLAGS = ["use_cache", "output_attentions", "output_hidden_states"]
DOCUMENTED = {
    "DiffLlamaModel": [*_DECODER, *_FLAGS, "cache_position"],
    "DiffLlamaForCausalLM": [*_DECODER, "labels", *_FLAGS, "cache_position", "logits_to_keep"],
    "DiffLlamaForSequenceClassification": [*_DECODER, "labels", *_FLAGS],
    "DiffLlamaForTokenClassification": [*_DECODER, "labels", *_FLAGS],
    "DiffLlamaForQuestionAnswering": [*_DECODER, "start_positions", "end_positions", *_FLAGS[1:]],
}


def positional(function):
    """Names of the arguments that can be given by position, without `self`."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind in kinds][1:]


def reference_class(name):
    if name.startswith("Mega"):
        from transformers.models.deprecated.mega import modeling_mega

        return getattr(modeling_mega, name)
    return getattr(transformers, name)


@pytest.mark.parametrize("name", TORCH)
def test_forward_takes_the_references_arguments_in_its_order(name):
    ours = positional(TORCH[name].forward)
    theirs = DOCUMENTED.get(name) or positional(reference_class(name).forward)
    assert ours[: len(theirs)] == theirs


@pytest.mark.parametrize("name", TORCH)
def test_the_constructor_takes_the_references_arguments(name):
    ours, theirs = positional(TORCH[name].__init__), positional(reference_class(name).__init__)
    assert ours == theirs


@pytest.mark.parametrize("name", TORCH)
def test_optional_arguments_default_to_none_as_in_the_reference(name):
    theirs = inspect.signature(reference_class(name).forward).parameters
    for argument, parameter in inspect.signature(TORCH[name].forward).parameters.items():
        if argument in theirs and argument != "self":
            assert parameter.default == theirs[argument].default, argument


def test_all_families_are_covered():
    assert {name for name in TORCH if name.startswith("Bert")} == {
        "BertModel",
        "BertForPreTraining",
        "BertLMHeadModel",
        "BertForMaskedLM",
        "BertForNextSentencePrediction",
        "BertForSequenceClassification",
        "BertForMultipleChoice",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
    }
