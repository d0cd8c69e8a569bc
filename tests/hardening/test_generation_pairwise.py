"""Settings of generation two by two, against the reference on small trained models: token for token.

`LONGSPAN_HARDENING=long` takes 200 cases rather than 40, of which half are wide.
"""

from __future__ import annotations

import itertools
import logging
import random
import warnings

import pytest
import torch
from tests.generation.conftest import FAMILIES, counting_prompts, load_trained
from tests.hardening.conftest import IS_LONG

import longspan
from longspan.errors import ConfigError

NUM_CASES = 200 if IS_LONG else 40
#: each setting with values that matter to models that count on for four ids and end
VALUES = {
    "do_sample": [True],
    "num_beams": [2, 4],
    "max_new_tokens": [1, 3, 11],
    "min_new_tokens": [7],
    "min_length": [13],
    "repetition_penalty": [0.7, 1.8],
    "no_repeat_ngram_size": [1, 2],
    "bad_words_ids": [[[20]], [[21, 22], [30], [2]]],
    "sequence_bias": [[[[25], -9.0], [[12, 13], 4.0]]],
    "forced_eos_token_id": [2, [3, 2]],
    "forced_bos_token_id": [40],
    "suppress_tokens": [[15, 16, 17]],
    "begin_suppress_tokens": [list(range(10, 30))],
    "exponential_decay_length_penalty": [[2, 1.4]],
    "remove_invalid_values": [True],
    "renormalize_logits": [True],
    "temperature": [0.5, 2.0],
    "top_k": [0, 3],
    "top_p": [0.8],
    "min_p": [0.1],
    "typical_p": [0.7],
    "epsilon_cutoff": [0.01],
    "eta_cutoff": [0.01],
    "length_penalty": [-1.0, 2.0],
    "early_stopping": [True, "never"],
    "num_return_sequences": [2],
    "eos_token_id": [[2, 24, 33]],
    "use_cache": [False],
}  # fmt: skip
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def cases():
    """(family, settings), with every pair of settings that fit together as likely as any other."""
    generator = random.Random(0)
    pairs = list(itertools.combinations(VALUES, 2))
    generator.shuffle(pairs)
    for number, names in enumerate(pairs[:NUM_CASES]):
        settings = {"max_new_tokens": 9, **{name: generator.choice(VALUES[name]) for name in names}}
        if any(name in SAMPLING for name in names):
            settings["do_sample"] = True
        if {"length_penalty", "early_stopping", "num_return_sequences"} & set(names):
            settings.setdefault("num_beams", 3)
        if {"min_length", "min_new_tokens"} & set(names):
            settings["max_new_tokens"] = 14  # an argument that cannot be met is an error, unlike in the reference
        yield list(FAMILIES)[number % len(FAMILIES)], settings


@pytest.fixture(scope="module")
def models():
    """Family -> (our model, the reference's)."""
    logging.disable(logging.WARNING)
    yield {family: load_trained(family) for family in FAMILIES}
    logging.disable(logging.NOTSET)


def until_end(row, start, ends):
    """A row without what fills it behind the first end token."""
    stop = next((place for place in range(start, len(row)) if row[place] in ends), len(row))
    return row[: stop + 1]


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        pytest.param(*case, marks=() if IS_LONG or number < NUM_CASES // 2 else pytest.mark.wide)
        for number, case in enumerate(cases())
    ],
)
def test_token_for_token(models, figures, family, settings):
    figures["cases"] = figures.get("cases", 0) + 1
    has_source = "longt5" in family
    ids, mask = counting_prompts(5, left=not has_source)
    rows = []
    for model in models[family]:
        torch.manual_seed(11)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows.append(model.generate(ids, attention_mask=mask, **settings).tolist())
    ends = settings.get("eos_token_id", [2])
    start = 1 if has_source else ids.shape[1]
    mine, theirs = ([until_end(row, start, ends) for row in part] for part in rows)
    assert mine == theirs
    figures["held"] = figures.get("held", 0) + 1


def test_settings_that_do_not_fit_together_are_refused():
    for settings in ({"num_return_sequences": 2}, {"num_beams": 2, "num_return_sequences": 3}, {"top_p": 1.5}):
        with pytest.raises(ConfigError, match="num_return_sequences|top_p"):
            longspan.GenerationConfig(**settings)
