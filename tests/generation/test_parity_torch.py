"""Token for token what the reference's `generate` gives, on equal weights."""

from __future__ import annotations

import logging

import pytest
import torch
from tests.generation.conftest import FAMILIES, counting_prompts, make_pair, prompts
from tests.tolerances import assert_close

SETTINGS = {
    "nothing said": {},
    "greedy": {"max_new_tokens": 25},
    "greedy without a cache": {"max_new_tokens": 12, "use_cache": False},
    "sampling": {"do_sample": True, "max_new_tokens": 20},
    "sampled rows": {"do_sample": True, "max_new_tokens": 9, "top_p": 0.8, "num_return_sequences": 3},
    "beams": {"num_beams": 4, "max_new_tokens": 20},
    "short beams": {"num_beams": 4, "max_new_tokens": 20, "early_stopping": True, "length_penalty": -1.0},
    "long beams": {"num_beams": 3, "max_new_tokens": 20, "early_stopping": "never", "length_penalty": 1.7},
    "beam rows": {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 12, "early_stopping": True},
    "beam sampling": {"num_beams": 3, "do_sample": True, "max_new_tokens": 15, "top_k": 10, "temperature": 1.4},
}  # fmt: skip
PROCESSORS = {
    "repetition": {"repetition_penalty": 1.4},
    "source": {"encoder_repetition_penalty": 1.5, "encoder_no_repeat_ngram_size": 2},
    "n-grams": {"no_repeat_ngram_size": 2},
    "unigrams": {"no_repeat_ngram_size": 1, "max_new_tokens": 9},
    "bad words": {"bad_words_ids": [[42, 33], *([token] for token in range(50, 90))]},
    "biases": {"sequence_bias": [[[9], 3.0], [[11, 12], 8.0], [[7], -4.0]]},
    "least length": {"min_length": 14},
    "least new": {"min_new_tokens": 12},
    "forced ends": {"forced_eos_token_id": [2, 3], "max_length": 18},
    "forced begin": {"forced_bos_token_id": 17, "begin_suppress_tokens": [30, 31]},
    "decay": {"exponential_decay_length_penalty": [4, 1.5]},
    "suppressed": {"suppress_tokens": [9, 10, 86], "begin_suppress_tokens": [20, 21], "renormalize_logits": True},
    "valid values": {"remove_invalid_values": True, "bad_words_ids": [[3]]},
    "typical": {"do_sample": True, "typical_p": 0.7},
    "cut off": {"do_sample": True, "epsilon_cutoff": 0.01, "top_k": 0},
    "cut off by entropy": {"do_sample": True, "eta_cutoff": 0.02, "top_k": 0},
    "relative probability": {"do_sample": True, "min_p": 0.2, "top_k": 0},
    "several ends": {"eos_token_id": [2, 9, 58, 86]},
    "beams with rules": {"num_beams": 3, "no_repeat_ngram_size": 2, "min_new_tokens": 5, "bad_words_ids": [[58]]},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet():
    """The reference logs advice about settings."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def both(pair, ids, **settings):
    """Ids of ours and of the reference, after equal seeds."""
    results = []
    for model in pair:
        torch.manual_seed(3)
        results.append(model.generate(ids, **settings))
    return results


def assert_equal_rows(ours, reference, *, start, ends):
    """Equal ids. Behind the end, beam search of the reference fills with the end token where padding is 0."""
    assert ours.shape == reference.shape
    for mine, theirs in zip(ours.tolist(), reference.tolist(), strict=True):
        stop = next((i + 1 for i in range(start, len(mine)) if mine[i] in ends), len(mine))
        assert mine[:stop] == theirs[:stop]
        assert set(mine[stop:]) <= {0}
        assert set(theirs[stop:]) <= {0, *ends}


@pytest.mark.parametrize("what", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_strategies_with_unequal_prompts(pairs, family, what):
    left = "longt5" not in family
    ids, mask = prompts(5, left=left)
    ours, reference = both(pairs[family], ids, attention_mask=mask, **SETTINGS[what])
    assert_equal_rows(ours, reference, start=ids.shape[1] if left else 1, ends=[2])
    assert len({tuple(row) for row in ours.tolist()}) > 2  # the rows are not all alike


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_batch_sizes(pairs, family, batch):
    left = "longt5" not in family
    ids, mask = prompts(batch, 17, left=left)
    for settings in ({"max_new_tokens": 20}, {"num_beams": 2, "max_new_tokens": 10}):
        ours, reference = both(pairs[family], ids, attention_mask=mask, **settings)
        assert_equal_rows(ours, reference, start=17 if left else 1, ends=[2])


@pytest.mark.parametrize("what", PROCESSORS)
@pytest.mark.parametrize("family", ["diffllama", "longt5-local"])
def test_processors(pairs, family, what):
    left = "longt5" not in family
    ids, _ = prompts(1, 11, left=left)
    ids = ids.repeat(3, 1)
    ids[1:, :4] = torch.tensor([[50, 60, 50, 60], [9, 86, 58, 9]])
    settings = {"max_new_tokens": 22, **PROCESSORS[what]}
    if "max_length" in settings:
        del settings["max_new_tokens"]
    ours, reference = both(pairs[family], ids, **settings)
    start = ids.shape[1] if left else 1
    assert_equal_rows(
        ours, reference, start=start, ends=[2, 3] if what == "forced ends" else settings.get("eos_token_id", [2])
    )


@pytest.mark.parametrize("what", [what for what in PROCESSORS if what not in ("source", "decay")])
def test_processors_matter(pairs, what):
    """The settings above change what is generated, so that equality says something."""
    base = {name: True for name in ("do_sample",) if name in PROCESSORS[what]}
    base |= {"num_beams": 3} if "num_beams" in PROCESSORS[what] else {}
    changes = []
    for family, length in (("diffllama", 11), ("longt5-local", 11)):
        ids, _ = prompts(1, length, left=True)
        ids = ids.repeat(6, 1)
        ids[:, 0] = torch.arange(10, 16)
        rows = []
        for settings in (base, PROCESSORS[what]):
            torch.manual_seed(3)
            rows.append(pairs[family][0].generate(ids, **{"max_new_tokens": 22, **settings}).tolist())
        changes.append(rows[0] != rows[1])
    assert any(changes) or what == "valid values"


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("family", ["bert", "longt5-tglobal"])
def test_all_outputs(tmp_path, family, num_beams):
    left = "longt5" not in family
    ids, mask = prompts(3, left=left)
    wanted = {f"output_{name}": True for name in ("scores", "logits", "attentions", "hidden_states")}
    wanted |= {"return_dict_in_generate": True, "num_beams": num_beams, "max_new_tokens": 6}
    pair = make_pair(tmp_path, family, attn_implementation="eager")
    mine, theirs = both(pair, ids, attention_mask=mask, no_repeat_ngram_size=2, **wanted)
    assert type(mine).__name__ == type(theirs).__name__
    assert set(mine.keys()) == set(theirs.keys())
    # the encoder's are compared in tests/parity; the end of `sequences` is filled in another way
    for name in set(theirs.keys()) - {"past_key_values", "sequences", "encoder_hidden_states", "encoder_attentions"}:
        compare(name, mine[name], theirs[name], mask)


def compare(name, mine, theirs, mask):
    """Compare nested tuples of tensors, at real positions."""
    if isinstance(theirs, tuple):
        assert len(mine) == len(theirs), name
        for one, other in zip(mine, theirs, strict=True):
            compare(name, one, other, mask)
        return
    if name in ("attentions", "hidden_states") and theirs.shape[1 if name == "hidden_states" else 2] == mask.shape[1]:
        keep = mask.bool().repeat_interleave(theirs.shape[0] // mask.shape[0], dim=0)
        keep = keep[:, :, None] if name == "hidden_states" else keep[:, None, :, None]
        mine, theirs = mine * keep, theirs.masked_fill(~keep, 0)
    mine, theirs = (torch.nan_to_num(t.float(), neginf=-1e9) for t in (mine, theirs))
    assert_close(mine, theirs, "float32", name)


def test_cross_attention_decoder(tmp_path):
    """A BERT decoder that reads an encoder's states, with beams."""
    ours, reference = make_pair(tmp_path, "bert", add_cross_attention=True)
    ids, _ = prompts(2, left=True)
    states, mask = torch.randn(2, 7, 32), torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    for settings in ({}, {"num_beams": 3}):
        batch = {"encoder_hidden_states": states, "encoder_attention_mask": mask, "max_new_tokens": 12, **settings}
        ids = torch.where(ids == 0, 5, ids)
        mine = ours.generate(ids, **batch)
        theirs = reference.generate(ids, use_cache=False, **batch)  # its cache mixes up the two attentions
        assert_equal_rows(mine, theirs, start=9, ends=[2])


@pytest.mark.parametrize("family", ["diffllama", "bert"])
def test_embeddings_instead_of_ids(pairs, family):
    ids, mask = prompts(3, left=True)
    for settings in ({}, {"num_beams": 2}, {"use_cache": False}):
        rows = []
        for model in pairs[family]:
            embeds = model.get_input_embeddings()(ids)
            if settings.get("use_cache") is False and model is pairs[family][1]:
                embeds_settings = {"max_new_tokens": 8}  # the reference cannot do this without a cache
            else:
                embeds_settings = {"max_new_tokens": 8, **settings}
            rows.append(model.generate(inputs_embeds=embeds, attention_mask=mask, **embeds_settings))
        assert_equal_rows(*rows, start=0, ends=[2])
        assert rows[0].shape[1] <= 8


def test_a_decoder_with_something_to_begin_with(pairs):
    ids, mask = prompts(3, left=False)
    begin = torch.tensor([[40, 41], [50, 51], [60, 61]])
    for settings in ({"max_new_tokens": 7}, {"max_new_tokens": 7, "num_beams": 2}):
        ours, reference = both(pairs["longt5-local"], ids, attention_mask=mask, decoder_input_ids=begin, **settings)
        assert ours[:, :3].tolist() == [[0, *row] for row in begin.tolist()]
        assert_equal_rows(ours, reference, start=3, ends=[2])


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("family", ["diffllama", "longt5-local"])
def test_transition_scores(pairs, family, num_beams, normalize):
    ids, mask = prompts(3, left="longt5" not in family)
    wanted = {"return_dict_in_generate": True, "output_scores": True, "num_beams": num_beams, "max_new_tokens": 9}
    wanted |= {"num_return_sequences": num_beams, "pad_token_id": 2}  # the same filling behind the end
    mine, theirs = both(pairs[family], ids, attention_mask=mask, **wanted)
    scores = []
    for model, output in zip(pairs[family], (mine, theirs), strict=True):
        arguments = (output.sequences, output.scores, output.get("beam_indices"), normalize)
        scores.append(model.compute_transition_scores(*arguments))
    assert_close(scores[0], scores[1], "float32", "transition scores")
    if num_beams > 1 and not normalize:
        length = (mine.beam_indices >= 0).sum(dim=1)
        assert_close(scores[0].sum(dim=1) / length, mine.sequences_scores, "float32", "scores of the rows")


TRAINED = {
    "greedy": {"max_new_tokens": 16},
    "beams": {"num_beams": 4, "num_return_sequences": 2, "max_new_tokens": 16},
    "beam sampling": {"num_beams": 3, "do_sample": True, "temperature": 1.5, "max_new_tokens": 16},
    "sampling": {"do_sample": True, "max_new_tokens": 16, "repetition_penalty": 1.2},
}


@pytest.mark.parametrize("what", TRAINED)
@pytest.mark.parametrize("family", FAMILIES)
def test_trained_models(trained, family, what):
    """Models that learned something: peaked scores, rows that end by themselves."""
    has_source = "longt5" in family
    for batch in (1, 8):
        ids, mask = counting_prompts(batch, left=not has_source)
        ours, reference = both(trained[family], ids, attention_mask=mask, **TRAINED[what])
        assert_equal_rows(ours, reference, start=1 if has_source else ids.shape[1], ends=[2])
    if what == "greedy":
        new = ours[:, 1 if has_source else ids.shape[1] :]
        assert (new == 2).any(dim=1).float().mean() > 0.7  # most rows end
        last = ids.gather(1, mask.long().cumsum(dim=1).argmax(dim=1, keepdim=True))
        counted = new[:, :1] == (ids[:, :1] if has_source else last) + 1
        assert counted.float().mean() > 0.7  # and say what was learned
