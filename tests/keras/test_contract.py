"""Arguments of the Keras classes, their order and defaults (SPEC §4, and the reference's where SPEC is silent)."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
from tests.keras.setting import CLASSES

import longspan

NINE = [
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "position_ids",
    "head_mask",
    "inputs_embeds",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
]
CACHE = ["encoder_hidden_states", "encoder_attention_mask", "past_key_values", "use_cache"]
#: what comes between the nine common arguments and `training`
LABELS = {
    "TFBertModel": [],
    "TFBertForPreTraining": ["labels", "next_sentence_label"],
    "TFBertLMHeadModel": ["labels"],
    "TFBertForMaskedLM": ["labels"],
    "TFBertForNextSentencePrediction": ["next_sentence_label"],
    "TFBertForSequenceClassification": ["labels"],
    "TFBertForMultipleChoice": ["labels"],
    "TFBertForTokenClassification": ["labels"],
    "TFBertForQuestionAnswering": ["start_positions", "end_positions"],
}
OUTPUTS = {
    "TFBertForTokenClassification": ["loss", "logits", "hidden_states", "attentions"],
    "TFBertForQuestionAnswering": ["loss", "start_logits", "end_logits", "hidden_states", "attentions"],
}


@pytest.mark.parametrize("name", CLASSES)
def test_call_takes_the_documented_arguments_in_order(name):
    decoder = CACHE if name in ("TFBertModel", "TFBertLMHeadModel") else []
    expected = [*NINE[:6], *decoder, *NINE[6:], *LABELS[name], "training"]
    parameters = inspect.signature(getattr(longspan, name).call).parameters
    by_place = {key: item for key, item in parameters.items() if item.kind is item.POSITIONAL_OR_KEYWORD}
    assert list(by_place) == ["self", *expected]
    for key in expected:
        assert by_place[key].default is (False if key == "training" else None), key


@pytest.mark.parametrize("name", CLASSES)
def test_the_constructor_takes_a_configuration_inputs_and_keywords(name):
    parameters = inspect.signature(getattr(longspan, name).__init__).parameters
    own = ["add_pooling_layer"] if name == "TFBertModel" else []
    assert list(parameters) == ["self", "config", *own, "inputs", "kwargs"]


@pytest.mark.parametrize("name", CLASSES)
def test_classes_are_keras_models(keras, name):
    cls = getattr(longspan, name)
    assert issubclass(cls, keras.Model)
    assert issubclass(cls, longspan.TFPreTrainedModel)
    assert keras.saving.get_registered_name(cls) == f"longspan>{name}"


def test_outputs_have_the_documented_fields_in_order():
    import dataclasses

    from longspan.nn.keras import outputs

    for name, fields in OUTPUTS.items():
        short = "TFTokenClassifierOutput" if "Token" in name else "TFQuestionAnsweringModelOutput"
        assert [field.name for field in dataclasses.fields(getattr(outputs, short))] == fields


def modules():
    found = (item.name for item in pkgutil.walk_packages(longspan.__path__, "longspan."))
    return [name for name in found if "keras" in name]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_docstring_examples_give_what_they_show(eagerly):
    attempted = 0
    for name in modules():
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        results = doctest.testmod(importlib.import_module(name), optionflags=flags)
        assert results.failed == 0, name
        attempted += results.attempted
    assert attempted >= 3 * len(CLASSES)


@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`:UserWarning")
def test_the_examples_of_the_guide_run(eagerly):
    guide = Path(__file__).parents[2] / "docs" / "keras.md"
    blocks = re.findall(r"```python\n(.*?)```", guide.read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    namespace = {}
    for block in blocks:
        exec(compile(block, str(guide), "exec"), namespace)
    assert namespace["model"].history.history["loss"][0] < 1.2
    assert 2 <= namespace["ids"].shape[1] <= 9  # the start token and up to 8
