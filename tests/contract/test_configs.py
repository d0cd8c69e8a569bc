"""Every family's configuration: files equal to the reference's, defaults too."""

from __future__ import annotations

import inspect
import json

import pytest
import transformers
from transformers.models.deprecated.mega.configuration_mega import MegaConfig as ReferenceMegaConfig

from longspan.models.registry import FAMILIES, get_config_class

REFERENCES = {
    "bert": transformers.BertConfig,
    "longformer": transformers.LongformerConfig,
    "longt5": transformers.LongT5Config,
    "diffllama": transformers.DiffLlamaConfig,
    "mega": ReferenceMegaConfig,
    "roberta": transformers.RobertaConfig,
    "xlm-roberta": transformers.XLMRobertaConfig,
}


def test_every_family_has_a_reference():
    assert set(FAMILIES) == set(REFERENCES)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_default_file_equals_the_references(model_type, tmp_path):
    reference, ours = REFERENCES[model_type](), get_config_class(model_type)()
    expected = json.loads(reference.to_json_string())
    expected.pop("transformers_version")
    assert json.loads(ours.to_json_string()) == expected
    reference.save_pretrained(tmp_path)
    back = get_config_class(model_type).from_pretrained(tmp_path)
    del back.transformers_version
    assert back == ours
    ours.save_pretrained(tmp_path)
    assert REFERENCES[model_type].from_pretrained(tmp_path).to_diff_dict() == reference.to_diff_dict()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_defaults_equal_the_references(model_type):
    ours = get_config_class(model_type)()
    for name, parameter in inspect.signature(REFERENCES[model_type].__init__).parameters.items():
        if parameter.default is not inspect.Parameter.empty and name != "self":
            assert getattr(ours, name) == getattr(REFERENCES[model_type](), name), name
