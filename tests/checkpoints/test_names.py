"""Which stored key feeds which parameter, and what is left over."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.checkpoints.names import ParameterNames, Tied, match_keys

BERT = ParameterNames(
    base_prefix="bert",
    tied=(
        Tied("cls.predictions.decoder.weight", "bert.embeddings.weight", switch="tie_word_embeddings"),
        Tied("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
    legacy=((r"\.gamma$", ".weight"), (r"\.beta$", ".bias")),
    ignorable=(r"\.position_ids$",),
    heads=("bert.pooler", "bert.layer.*.crossattention", "cls.predictions", "cls.seq_relationship"),
)
T5 = ParameterNames(
    tied=(
        Tied("encoder.embed_tokens.weight", "shared.weight"),
        Tied("decoder.embed_tokens.weight", "shared.weight"),
        Tied("lm_head.weight", "shared.weight", switch="tie_word_embeddings"),
    ),
    heads=("lm_head",),
    optional=("decoder",),
)
TIED = SimpleNamespace(tie_word_embeddings=True)
UNTIED = SimpleNamespace(tie_word_embeddings=False)

BARE = ["embeddings.weight", "layer.0.norm.weight", "layer.0.norm.bias", "pooler.weight"]
BASE = [f"bert.{key}" for key in BARE]
MLM_HEAD = [f"cls.predictions.{key}" for key in ("bias", "dense.weight", "decoder.weight", "decoder.bias")]


def clean(match):
    """No defects."""
    return not match.missing and not match.unexpected


def test_equal_keys_feed_each_other():
    match = match_keys(BASE, BASE, BERT)
    assert match.sources == dict(zip(BASE, BASE, strict=True))
    assert clean(match)
    assert not match.initialised


def test_headless_checkpoint_into_model_with_head():
    match = match_keys([*BASE, "classifier.weight", "classifier.bias"], BARE, BERT)
    assert match.sources == dict(zip(BASE, BARE, strict=True))
    assert match.initialised == ("classifier.weight", "classifier.bias")
    assert clean(match)


def test_checkpoint_with_head_into_bare_model():
    match = match_keys(BARE, [*BASE, "cls.predictions.bias", "cls.seq_relationship.weight"], BERT)
    assert match.sources == dict(zip(BARE, BASE, strict=True))
    assert match.other_heads == ("cls.predictions.bias", "cls.seq_relationship.weight")
    assert clean(match)


def test_head_of_another_task_stays_in_the_file_and_ours_starts_afresh():
    wanted = [key for key in BASE if "pooler" not in key] + ["qa_outputs.weight"]
    match = match_keys(wanted, [*BASE, "classifier.weight"], BERT)
    assert match.initialised == ("qa_outputs.weight",)
    assert match.other_heads == ("bert.pooler.weight", "classifier.weight")
    assert clean(match)


def test_pooler_absent_from_the_file_starts_afresh():
    match = match_keys(BASE, [key for key in BASE if "pooler" not in key], BERT)
    assert match.initialised == ("bert.pooler.weight",)
    assert clean(match)


def test_module_path_with_star_is_one_unit_per_layer():
    wanted = [*BASE, "bert.layer.0.crossattention.q.weight", "bert.layer.1.crossattention.q.weight"]
    match = match_keys(wanted, [*BASE, "bert.layer.1.crossattention.q.weight"], BERT)
    assert match.initialised == ("bert.layer.0.crossattention.q.weight",)
    assert match.sources["bert.layer.1.crossattention.q.weight"] == "bert.layer.1.crossattention.q.weight"


def test_half_a_head_is_missing():
    match = match_keys([*BASE, "classifier.weight", "classifier.bias"], [*BASE, "classifier.weight"], BERT)
    assert match.missing == ("classifier.bias",)
    assert not match.initialised


def test_surplus_in_a_head_that_both_have_is_unexpected():
    match = match_keys([*BASE, "classifier.weight"], [*BASE, "classifier.weight", "classifier.bias"], BERT)
    assert match.unexpected == ("classifier.bias",)


def test_one_part_of_cls_without_the_other():
    match = match_keys([*BASE, "cls.seq_relationship.weight"], [*BASE, *MLM_HEAD], BERT)
    assert match.initialised == ("cls.seq_relationship.weight",)
    assert match.other_heads == tuple(MLM_HEAD)
    assert clean(match)


def test_layer_missing_from_the_base():
    match = match_keys([*BASE, "bert.layer.1.norm.weight"], BASE, BERT)
    assert match.missing == ("bert.layer.1.norm.weight",)


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_layer_that_the_model_lacks_is_unexpected(prefix):
    stored = [prefix + key for key in [*BARE, "layer.1.norm.weight"]]
    match = match_keys([*BASE, "classifier.weight"], stored, BERT)
    assert match.unexpected == (prefix + "layer.1.norm.weight",)
    assert match.initialised == ("classifier.weight",)


def test_older_names():
    stored = [key.replace("norm.weight", "norm.gamma").replace("norm.bias", "norm.beta") for key in BARE]
    match = match_keys(BASE, stored, BERT)
    assert match.sources["bert.layer.0.norm.weight"] == "layer.0.norm.gamma"
    assert match.sources["bert.layer.0.norm.bias"] == "layer.0.norm.beta"
    assert clean(match)


@pytest.mark.parametrize("stored", [["bert.layer.0.norm.gamma", *BASE], [*BASE, "bert.layer.0.norm.gamma"]])
def test_present_name_wins_over_older_name_whatever_the_order(stored):
    match = match_keys(BASE, stored, BERT)
    assert match.sources["bert.layer.0.norm.weight"] == "bert.layer.0.norm.weight"
    assert match.shadowed == {"bert.layer.0.norm.gamma": "bert.layer.0.norm.weight"}
    assert clean(match)


def test_key_with_the_prefix_wins_over_the_key_without():
    match = match_keys(BASE, ["embeddings.weight", *BASE], BERT)
    assert match.sources["bert.embeddings.weight"] == "bert.embeddings.weight"
    assert match.shadowed == {"embeddings.weight": "bert.embeddings.weight"}


def test_buffers_hold_no_parameter():
    match = match_keys(BASE, [*BASE, "bert.embeddings.position_ids"], BERT)
    assert match.ignorable == ("bert.embeddings.position_ids",)
    assert clean(match)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefix_of_a_training_wrapper_is_dropped(wrapper):
    match = match_keys(BASE, [wrapper + key for key in BASE], BERT)
    assert match.sources == {key: wrapper + key for key in BASE}


def test_prefix_on_some_keys_only_is_no_wrapper():
    match = match_keys(BASE, [*BASE[1:], "module.bert.embeddings.weight"], BERT)
    assert match.missing == ("bert.embeddings.weight",)


def test_other_prefix_of_the_family():
    names = ParameterNames(base_prefix="transformer", base_aliases=("model",))
    match = match_keys(
        ["transformer.norm.weight", "qa_outputs.weight"],
        ["model.norm.weight", "model.layers.0.weight", "lm_head.weight"],
        names,
    )
    assert match.sources == {"transformer.norm.weight": "model.norm.weight"}
    assert match.unexpected == ("model.layers.0.weight",)
    assert match.other_heads == ("lm_head.weight",)


def test_tied_key_absent_from_the_file_is_not_missing():
    stored = [*BASE, "cls.predictions.bias", "cls.predictions.dense.weight"]
    match = match_keys([*BASE, *MLM_HEAD], stored, BERT, TIED)
    assert match.tied == {
        "cls.predictions.decoder.weight": "bert.embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }
    assert "cls.predictions.decoder.weight" not in match.sources
    assert clean(match)


def test_switch_off_makes_the_target_a_parameter_of_its_own():
    stored = [*BASE, "cls.predictions.bias", "cls.predictions.dense.weight"]
    assert match_keys([*BASE, *MLM_HEAD], stored, BERT, UNTIED).missing == ("cls.predictions.decoder.weight",)
    match = match_keys([*BASE, *MLM_HEAD], [*stored, "cls.predictions.decoder.weight"], BERT, UNTIED)
    assert match.sources["cls.predictions.decoder.weight"] == "cls.predictions.decoder.weight"
    assert clean(match)


def test_no_config_switches_ties_off():
    assert match_keys([*BASE, *MLM_HEAD], [*BASE, MLM_HEAD[0]], BERT).missing == (
        "cls.predictions.dense.weight",
        "cls.predictions.decoder.weight",
    )


def test_both_tied_keys_stored_is_a_repeat_for_the_caller_to_compare():
    match = match_keys([*BASE, *MLM_HEAD], [*BASE, *MLM_HEAD], BERT, TIED)
    assert match.repeated == {
        "cls.predictions.decoder.weight": "bert.embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }
    assert "cls.predictions.decoder.weight" not in match.sources
    assert clean(match)


def test_repeat_is_found_although_the_bare_model_has_no_such_key():
    match = match_keys(BARE, [*BASE, *MLM_HEAD], BERT, TIED)
    assert match.repeated == {"cls.predictions.decoder.weight": "bert.embeddings.weight"}
    assert clean(match)


def test_target_alone_feeds_the_owner():
    stored = [key for key in BASE if "embeddings" not in key] + ["cls.predictions.decoder.weight"]
    match = match_keys(BARE, stored, BERT, TIED)
    assert match.sources["embeddings.weight"] == "cls.predictions.decoder.weight"
    assert clean(match)


def test_new_head_with_tied_keys():
    match = match_keys([*BASE, *MLM_HEAD], BASE, BERT, TIED)
    assert match.initialised == ("cls.predictions.bias", "cls.predictions.dense.weight")
    assert match.tied["cls.predictions.decoder.bias"] == "cls.predictions.bias"
    assert clean(match)


T5_MODEL = ["shared.weight", "encoder.embed_tokens.weight", "encoder.block.0.wi.weight"]
T5_FULL = [*T5_MODEL, "decoder.embed_tokens.weight", "decoder.block.0.wi.weight", "lm_head.weight"]
BLOCKS = ["encoder.block.0.wi.weight", "decoder.block.0.wi.weight"]


@pytest.mark.parametrize(
    "stored", ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"]
)
def test_any_one_of_a_tied_group_feeds_all(stored):
    match = match_keys(T5_FULL, [stored, *BLOCKS], T5, TIED)
    assert match.sources["shared.weight"] == stored
    assert set(match.tied.values()) == {"shared.weight"}
    assert len(match.tied) == 3
    assert clean(match)


def test_untied_head_keeps_its_own_values():
    match = match_keys(T5_FULL, ["shared.weight", "lm_head.weight", *BLOCKS], T5, UNTIED)
    assert match.sources["lm_head.weight"] == "lm_head.weight"
    assert clean(match)


def test_encoder_leaves_the_decoder_in_the_file():
    match = match_keys(T5_MODEL, ["shared.weight", "lm_head.weight", *BLOCKS], T5, UNTIED)
    assert match.other_heads == ("lm_head.weight", "decoder.block.0.wi.weight")
    assert clean(match)


def test_optional_part_is_never_started_afresh():
    match = match_keys(T5_FULL, ["shared.weight", "encoder.block.0.wi.weight"], T5, TIED)
    assert match.missing == ("decoder.block.0.wi.weight",)
    assert not match.initialised


def test_chain_and_circle_of_ties():
    chain = ParameterNames(tied=(Tied("c", "b"), Tied("b", "a")))
    assert match_keys(["a", "b", "c"], ["c"], chain).sources == {"a": "c"}
    circle = ParameterNames(tied=(Tied("a", "b"), Tied("b", "a")))
    assert clean(match_keys(["a", "b"], ["a"], circle))


_HEADS = ["classifier.weight", "classifier.bias", "cls.seq_relationship.weight"]
_ODD = ["bert.layer.0.norm.gamma", "bert.embeddings.position_ids", "bert.layer.3.norm.weight", "module.x"]
_KEYS = st.lists(st.sampled_from([*BARE, *BASE, *MLM_HEAD, *_HEADS, *_ODD]), unique=True)


@given(wanted=_KEYS, stored=_KEYS, config=st.sampled_from([TIED, UNTIED, None]))
def test_every_key_is_accounted_for_exactly_once(wanted, stored, config):
    wanted = [key for key in wanted if f"bert.{key}" not in wanted or key.startswith("bert.")]
    match = match_keys(wanted, stored, BERT, config)
    assert sorted([*match.sources, *match.tied, *match.missing, *match.initialised]) == sorted(wanted)
    left = [*match.unexpected, *match.other_heads, *match.ignorable, *match.shadowed, *match.repeated]
    assert sorted([*match.sources.values(), *left]) == sorted(stored)
