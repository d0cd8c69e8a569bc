"""Configurations: files equal to the reference's, rules with their messages, overrides, aliases."""

from __future__ import annotations

import inspect
import json
import pickle
import re
from typing import get_args, get_origin, get_type_hints

import pytest
import transformers

from longspan import AutoConfig, BertConfig, PretrainedConfig
from longspan.errors import CheckpointError, CheckpointNotFoundError, ConfigError, LongspanError
from longspan.models import registry
from longspan.models.registry import get_config_class

SETTINGS = [
    {},
    {"num_labels": 5, "problem_type": "multi_label_classification"},
    {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}},
    {"is_decoder": True, "add_cross_attention": True, "pad_token_id": None, "tie_word_embeddings": False},
    {
        "hidden_act": "gelu_new",
        "classifier_dropout": 0.2,
        "some_unknown_key": {"kept": [1, 2]},
        "output_attentions": False,
    },
    {"pruned_heads": {1: [0, 2]}, "bos_token_id": 7, "dtype": "bfloat16", "output_hidden_states": True},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_file_equals_the_references(settings, tmp_path):
    reference = transformers.BertConfig(**settings)
    ours = BertConfig(**settings)
    expected = json.loads(reference.to_json_string())
    expected.pop("transformers_version")  # longspan does not claim a version of transformers
    written = json.loads(ours.to_json_string())
    assert written == expected
    ours.save_pretrained(tmp_path)
    assert transformers.BertConfig.from_pretrained(tmp_path).to_diff_dict() == reference.to_diff_dict()
    reference.save_pretrained(tmp_path)
    back = BertConfig.from_pretrained(tmp_path)
    assert back.transformers_version == transformers.__version__  # unknown keys are kept
    del back.transformers_version
    assert back == ours


def test_unknown_keys_survive_a_round_trip(tmp_path):
    config = BertConfig(gloss={"x": 1})
    config.save_pretrained(tmp_path)
    assert BertConfig.from_pretrained(tmp_path).gloss == {"x": 1}
    assert json.loads((tmp_path / "config.json").read_text())["gloss"] == {"x": 1}


def test_num_labels_and_the_label_maps_follow_each_other():
    config = BertConfig(num_labels=3)
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    config.num_labels = 4
    assert config.label2id["LABEL_3"] == 3
    assert BertConfig(id2label={"0": "no", "1": "yes", "2": "maybe"}).label2id == {"no": 0, "yes": 1, "maybe": 2}
    assert BertConfig(label2id={"no": 0, "yes": 1}).id2label == {0: "no", 1: "yes"}
    config.update({"id2label": {0: "x"}})
    assert (config.num_labels, config.label2id) == (1, {"x": 0})


def test_id2label_wins_over_a_number_of_labels_that_differs():
    with pytest.warns(UserWarning, match="num_labels=3 gives way to id2label, which has 1 labels"):
        config = BertConfig(num_labels=3, id2label={0: "a"})
    assert (config.num_labels, config.label2id) == (1, {"a": 0})


def test_reads_as_the_references_does(tmp_path):
    config = BertConfig(num_labels=3, _name_or_path="somewhere")
    assert config.get_text_config(decoder=True) is config
    assert "vocab_size" in config
    assert "no_such_setting" not in config
    assert "hidden_size" in list(config)
    assert (config.name_or_path, config._name_or_path, config._attn_implementation) == (
        "somewhere",
        "somewhere",
        "auto",
    )
    config._attn_implementation = "eager"
    assert config.attn_implementation == "eager"
    assert (config._commit_hash, config.sub_configs) == (None, {})
    config._note_of_a_tool = object()
    config.save_pretrained(tmp_path)
    assert BertConfig.from_pretrained(tmp_path, trust_remote_code=False, use_auth_token=None) == config
    with pytest.raises(ConfigError, match="trust_remote_code is not supported: checkpoints hold no code"):
        BertConfig.from_pretrained(tmp_path, trust_remote_code=True)


def test_aliases_and_dtype_spellings():
    class Aliased(BertConfig):
        attribute_map = {"n_layers": "num_hidden_layers"}  # noqa: RUF012

    config = Aliased(n_layers=2)
    assert (config.num_hidden_layers, config.n_layers) == (2, 2)
    config.n_layers = 5
    assert config.num_hidden_layers == 5
    assert "n_layers" not in config.to_dict()
    for spelling in ("float16", "torch.float16"):
        assert BertConfig(torch_dtype=spelling).dtype == "float16"
    torch = pytest.importorskip("torch")
    assert BertConfig(dtype=torch.float16).torch_dtype == "float16"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_attention_heads": 7}, "num_attention_heads must divide hidden_size. Received: hidden_size=768, num_att"),
        ({"hidden_size": "768"}, "hidden_size must be int. Received: hidden_size='768'"),
        ({"vocab_size": 0}, "vocab_size must be positive. Received: vocab_size=0"),
        ({"use_cache": 1}, "use_cache must be bool. Received: use_cache=1"),
        ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob must lie in \[0, 1\). Received: hidden_dropout_prob=1.0"),
        ({"problem_type": "ranking"}, "problem_type must be one of regression, .*Received: problem_type='ranking'"),
        ({"position_embedding_type": "rope"}, "position_embedding_type must be one of absolute, .*Received"),
        ({"add_cross_attention": True}, "add_cross_attention needs is_decoder=True. Received: add_cross"),
        ({"num_labels": 0}, "num_labels must be a positive integer. Received: num_labels=0"),
        ({"pruned_heads": [1]}, r"pruned_heads must map layers to lists of heads. Received: pruned_heads=\[1\]"),
        ({"pruned_heads": {"a": 1}}, "pruned_heads must map layers to lists of heads"),
        ({"label2id": [1]}, r"label2id must map labels to ids. Received: label2id=\[1\]"),
        ({"label2id": {"a": []}}, "label2id must map labels to ids"),
        ({"id2label": {"0": ["a"]}}, "id2label must map ids to labels"),
        ({"id2label": {"a": "b"}}, "id2label must have integer keys. Received"),
        ({"id2label": ["a"]}, "id2label must be a dict. Received"),
        ({"chunk_size_feed_forward": -1}, r"chunk_size_feed_forward must be 0 \(no chunks\) or positive. Received"),
        ({"classifier_dropout": "a"}, "classifier_dropout must be float or None. Received: classifier_dropout='a'"),
    ],
)
def test_a_broken_rule_names_itself_and_the_value(settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        BertConfig(**settings)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, LongspanError)


def test_loading_errors(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="has no file 'config.json'"):
        BertConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not valid JSON"):
        BertConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="must hold a JSON object. Received: list"):
        AutoConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ConfigError, match="model_type must be one of bert.*Received: model_type='gpt2'"):
        AutoConfig.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="BertConfig reads configurations of model_type 'bert'. Received.*'gpt2'"):
        BertConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="Received: model_type=None"):
        AutoConfig.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="model_type must be one of .*Received: model_type='gpt2'"):
        AutoConfig.for_model("gpt2")
    with pytest.raises(TypeError, match=r"use AutoConfig.from_pretrained or AutoConfig.for_model"):
        AutoConfig()


def test_overrides(tmp_path):
    BertConfig(hidden_size=48, num_attention_heads=4).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path, num_labels=3, num_hidden_layers=2, attn_implementation="eager")
    assert (config.num_labels, config.num_hidden_layers, config.attn_implementation) == (3, 2, "eager")
    assert config.hidden_size == 48
    config, unused = AutoConfig.from_pretrained(tmp_path, no_such_key=1, return_unused_kwargs=True)
    assert unused == {"no_such_key": 1}
    with pytest.raises(ConfigError, match="BertConfig has no such setting to override. Received: no_such_key=1"):
        AutoConfig.from_pretrained(tmp_path, no_such_key=1)
    with pytest.raises(ConfigError, match="num_attention_heads must divide hidden_size"):
        AutoConfig.from_pretrained(tmp_path, num_attention_heads=5)


def test_defaults_are_not_shared_and_configs_copy():
    first, second = BertConfig(), BertConfig()
    first.pruned_heads[0] = [1]
    assert second.pruned_heads == {}
    assert pickle.loads(pickle.dumps(first)) == first
    assert first != second
    assert "hidden_size" in inspect.signature(BertConfig).parameters
    assert isinstance(first, PretrainedConfig)
    assert "BertConfig {" in repr(first)
    with pytest.raises(AttributeError, match="BertConfig has no setting 'nothing'"):
        _ = first.nothing


def test_attn_implementation_is_of_the_session_not_of_the_file(tmp_path):
    BertConfig(attn_implementation="eager").save_pretrained(tmp_path)
    assert "attn" not in (tmp_path / "config.json").read_text().replace("attention", "")
    assert BertConfig.from_pretrained(tmp_path).attn_implementation == "auto"


FAMILIES = [get_config_class(name) for name in registry.FAMILIES]
NUMBERS = [
    (family, name)
    for family in FAMILIES
    for name, kind in get_type_hints(family).items()
    if name in family._defaults and get_origin(kind) is not dict and {int, float} & {kind, *get_args(kind)}
]


@pytest.mark.parametrize(("family", "name"), NUMBERS, ids=lambda item: getattr(item, "__name__", item))
def test_every_number_has_a_range(family, name):
    """What a file may state: no NaN, nothing infinite, no size that no machine holds."""
    for value in (float("nan"), float("inf"), -float("inf"), 1e308, 10**31, 10**400, -(10**31)):
        with pytest.raises(ConfigError, match=f"{name} must"):
            family(**{name: value})


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_rules_that_came_with_the_ranges(family):
    vocab_size = family().vocab_size
    with pytest.raises(ConfigError, match=f"must lie in the vocabulary. Received: pad_token_id={vocab_size}"):
        family(pad_token_id=vocab_size)
    with pytest.raises(ConfigError, match="num_labels must be at most 1000000. Received: num_labels=1000000000"):
        family(num_labels=10**9)
    with pytest.raises(ConfigError, match="eos_token_id must be an id, or -1 for none. Received: eos_token_id=.3, -2."):
        family(eos_token_id=[3, -2])


@pytest.mark.parametrize("content", ['{"layer_norm_eps": -1}', '{"hidden_size": NaN}', '{"pruned_heads": {"a": [1]}}'])
def test_an_error_in_a_file_names_the_file(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(content)
    for load in (BertConfig.from_pretrained, BertConfig.from_json_file):
        with pytest.raises((ConfigError, CheckpointError), match=re.escape(str(path))):
            load(path)
