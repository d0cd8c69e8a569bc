"""Rotary frequencies against the formulas of the papers; the turning itself against complex multiplication."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from longspan.errors import ConfigError
from longspan.ops.rotary_tables import KINDS, normalise, rotary_table
from longspan.ops.torch.rotary import apply_rotary, rotary_cos_sin, select_frequencies

HEAD_DIM, THETA, LIMIT = 16, 10000.0, 64
PAIRS = np.arange(HEAD_DIM // 2)
PLAIN = THETA ** (-2 * PAIRS / HEAD_DIM)
SCALINGS = {
    "default": {},
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0},
    "longrope": {"short_factor": [1.0 + p / 9 for p in PAIRS], "long_factor": [2.0 + p for p in PAIRS], "factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
}


def table(kind, *, limit=LIMIT, original=None, **changes):
    scaling = normalise({"rope_type": kind, **SCALINGS[kind], **changes}, head_dim=HEAD_DIM)
    return rotary_table(
        scaling,
        head_dim=HEAD_DIM,
        theta=THETA,
        max_position_embeddings=limit,
        original_max_position_embeddings=original,
    )


def frequencies_at(facts, length):
    long = facts.long_frequencies
    return select_frequencies(
        facts,
        torch.arange(length)[None],
        frequencies=torch.tensor(facts.frequencies),
        long_frequencies=None if long is None else torch.tensor(long),
    ).numpy()


class TestFrequencies:
    def test_default(self):
        np.testing.assert_allclose(table("default").frequencies, PLAIN, rtol=1e-6)
        none = rotary_table(None, head_dim=HEAD_DIM, theta=THETA, max_position_embeddings=LIMIT)
        np.testing.assert_array_equal(none.frequencies, table("default").frequencies)

    def test_every_table_is_float32(self):
        for kind in KINDS:
            assert table(kind).frequencies.dtype == np.float32

    def test_linear_interpolates_positions(self):
        np.testing.assert_allclose(table("linear").frequencies, PLAIN / 3, rtol=1e-6)

    @pytest.mark.parametrize("length", [1, LIMIT, LIMIT + 1, 4 * LIMIT])
    def test_dynamic_stretches_the_base_with_the_input(self, length):
        growth = 2.0 * max(length, LIMIT) / LIMIT - 1.0
        theta = THETA * growth ** (HEAD_DIM / (HEAD_DIM - 2))
        np.testing.assert_allclose(
            frequencies_at(table("dynamic"), length), theta ** (-2 * PAIRS / HEAD_DIM), rtol=1e-5
        )

    def test_dynamic_has_no_memory_of_longer_inputs(self):
        facts = table("dynamic")
        before = frequencies_at(facts, LIMIT + 5)
        frequencies_at(facts, 10 * LIMIT)
        np.testing.assert_array_equal(frequencies_at(facts, LIMIT + 5), before)

    @pytest.mark.parametrize(
        ("changes", "fast", "slow", "original", "truncate"),
        [
            ({}, 32, 1, LIMIT, True),
            ({"beta_fast": 8.0, "beta_slow": 2.0}, 8, 2, LIMIT, True),
            ({"original_max_position_embeddings": 4096}, 32, 1, 4096, True),
            ({"original_max_position_embeddings": 4096, "truncate": False}, 32, 1, 4096, False),
        ],
    )
    def test_yarn_blends_by_the_number_of_turns(self, changes, fast, slow, original, truncate):
        def pair_with(turns):
            return HEAD_DIM * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(THETA))

        low, high = pair_with(fast), pair_with(slow)
        if truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, HEAD_DIM - 1)
        interpolated = np.clip((PAIRS - low) / (high - low), 0, 1)
        expected = interpolated * PLAIN / 4 + (1 - interpolated) * PLAIN
        np.testing.assert_allclose(table("yarn", **changes).frequencies, expected, rtol=1e-5)

    def test_yarn_attention_factor(self):
        assert table("yarn").attention_factor == pytest.approx(0.1 * math.log(4) + 1)
        assert table("yarn", factor=1.0).attention_factor == 1.0
        assert table("yarn", attention_factor=1.7).attention_factor == 1.7
        both = table("yarn", mscale=0.7, mscale_all_dim=1.3)
        assert both.attention_factor == pytest.approx((0.07 * math.log(4) + 1) / (0.13 * math.log(4) + 1))
        assert table("yarn", mscale=0.7).attention_factor == pytest.approx(0.1 * math.log(4) + 1)

    def test_yarn_survives_a_ramp_without_width(self):
        assert np.isfinite(table("yarn", beta_fast=2.0, beta_slow=2.0, limit=12, truncate=False).frequencies).all()

    @pytest.mark.parametrize(("length", "which"), [(LIMIT, "short_factor"), (LIMIT + 1, "long_factor")])
    def test_longrope_switches_its_list_behind_the_limit(self, length, which):
        expected = PLAIN / np.array(SCALINGS["longrope"][which])
        np.testing.assert_allclose(frequencies_at(table("longrope"), length), expected, rtol=1e-6)

    def test_longrope_attention_factor(self):
        assert table("longrope").attention_factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(LIMIT)))
        assert table("longrope", factor=1.0).attention_factor == 1.0
        assert table("longrope", attention_factor=1.3).attention_factor == 1.3

    def test_longrope_with_the_original_length_beside_the_scaling(self):
        facts = table("longrope", limit=256, original=32)
        assert facts.limit == 32
        assert facts.attention_factor == pytest.approx(math.sqrt(1 + math.log(8) / math.log(32)))

    def test_llama3_blends_by_wavelength(self):
        expected = []
        for frequency in PLAIN:
            turns = 512 * frequency / (2 * math.pi)
            if turns < 1:
                expected.append(frequency / 8)
            elif turns > 4:
                expected.append(frequency)
            else:
                smooth = (turns - 1) / (4 - 1)
                expected.append((1 - smooth) * frequency / 8 + smooth * frequency)
        assert 0 < sum(np.array(expected) == PLAIN) < len(PLAIN)
        np.testing.assert_allclose(table("llama3").frequencies, expected, rtol=1e-5)


class TestSpelling:
    def test_older_key(self):
        assert normalise({"type": "linear", "factor": 2}, head_dim=8) == {
            "type": "linear",
            "rope_type": "linear",
            "factor": 2,
        }

    def test_the_documents_name_of_llama3(self):
        scaling = {"rope_type": "diffllama3", **SCALINGS["llama3"]}
        assert normalise(scaling, head_dim=HEAD_DIM)["rope_type"] == "llama3"
        assert scaling["rope_type"] == "diffllama3", "the caller's dict stays as it was"

    def test_keys_of_another_kind_are_a_warning_and_have_no_effect(self):
        with pytest.warns(UserWarning, match="'linear' takes factor; these have no effect: beta_fast, facto"):
            got = table("linear", facto=3.0, beta_fast="fast")
        np.testing.assert_array_equal(got.frequencies, table("linear").frequencies)
        with pytest.warns(UserWarning, match="'default' takes no other key; these have no effect: factor"):
            normalise({"rope_type": "default", "factor": 2.0}, head_dim=8)

    def test_none(self):
        assert normalise(None, head_dim=8) is None

    def test_an_optional_key_may_be_none(self):
        np.testing.assert_array_equal(table("yarn", attention_factor=None).frequencies, table("yarn").frequencies)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ([], "rope_scaling must be a dict. Received: rope_scaling=\\[\\]"),
        (
            {"factor": 2.0},
            "must name one rope_type .or type. of default, linear, dynamic, yarn, longrope, llama3, diffl",
        ),
        ({"rope_type": "ntk"}, "must name one rope_type .*Received: rope_scaling={'rope_type': 'ntk'}"),
        ({"rope_type": "linear", "type": "dynamic", "factor": 2.0}, "must name one rope_type"),
        ({"rope_type": "linear"}, "of rope_type 'linear' needs factor. Received: missing=\\['factor'\\]"),
        (
            {"rope_type": "dynamic", "factor": 0.5},
            "rope_scaling\\['factor'\\] must be a number of at least 1. Received: fac",
        ),
        ({"rope_type": "linear", "factor": True}, "rope_scaling\\['factor'\\] must be a number of at least 1"),
        ({"rope_type": "linear", "factor": None}, "rope_scaling\\['factor'\\] must be a number of at least 1"),
        (
            {"rope_type": "yarn", "factor": 2.0, "attention_factor": -1.0},
            "\\['attention_factor'\\] must be a positive num",
        ),
        (
            {"rope_type": "yarn", "factor": 2.0, "truncate": 1},
            "\\['truncate'\\] must be True or False. Received: truncate=1",
        ),
        (
            {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8.5},
            "\\['original_max_position_embeddings'\\] must be a positive integer",
        ),
        (
            {"rope_type": "yarn", "factor": 2.0, "beta_fast": 1.0, "beta_slow": 3.0},
            "\\['beta_fast'\\] must not be below beta_slow. Received: beta_fast=1.0, beta_slow=3.0",
        ),
        (
            {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 4, "long_factor": [1.0] * 8},
            "\\['short_factor'\\] must be a list of 8 numbers, one for each pair of a head. Received: short_fac",
        ),
        (
            {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 8, "long_factor": 3.0},
            "\\['long_factor'\\] must be a list of 8 numbers",
        ),
        (
            {"rope_type": "llama3", **SCALINGS["llama3"], "low_freq_factor": 4.0},
            "\\['low_freq_factor'\\] must be below high_freq_factor. Received: low_freq_factor=4.0, high_f",
        ),
    ],
)
def test_wrong_settings(scaling, message):
    with pytest.raises(ConfigError, match=message):
        normalise(scaling, head_dim=HEAD_DIM)


def test_dynamic_needs_more_than_one_pair():
    with pytest.raises(ConfigError, match="rope_type 'dynamic' needs heads larger than 2. Received: head_dim=2"):
        normalise({"rope_type": "dynamic", "factor": 2.0}, head_dim=2)


def test_longrope_needs_a_factor_from_somewhere():
    with pytest.raises(ConfigError, match="needs factor, attention_factor, or original_max_position_embeddings"):
        table("longrope", factor=None)


class TestTurning:
    def test_pairs_turn_by_position_times_frequency(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(2, 5, 3, HEAD_DIM))
        position_ids = np.array([[0, 1, 2, 3, 4], [7, 3, 100, 0, 1]])
        cos, sin = rotary_cos_sin(torch.tensor(PLAIN).float(), torch.tensor(position_ids), attention_factor=1.5)
        turned = apply_rotary(torch.tensor(x).float(), cos, sin)
        half = HEAD_DIM // 2
        plane = (x[..., :half] + 1j * x[..., half:]) * 1.5 * np.exp(1j * position_ids[..., None, None] * PLAIN)
        np.testing.assert_allclose(turned, np.concatenate([plane.real, plane.imag], axis=-1), atol=1e-5)

    def test_scores_depend_on_distances_alone(self):
        query, key = torch.randn(2, 1, 1, 1, HEAD_DIM)
        frequencies = torch.tensor(PLAIN).float()

        def score(i, j):
            turned = [
                apply_rotary(x, *rotary_cos_sin(frequencies, torch.tensor([[place]])))
                for x, place in ((query, i), (key, j))
            ]
            return float((turned[0] * turned[1]).sum())

        assert score(9, 4) == pytest.approx(score(25, 20), abs=1e-5)
        assert score(9, 4) != pytest.approx(score(4, 9), abs=1e-3)

    def test_angles_are_float32_whatever_the_dtype(self):
        position_ids = torch.tensor([[4001]])
        cos, _ = rotary_cos_sin(torch.tensor(PLAIN).float(), position_ids, dtype=torch.bfloat16)
        assert cos.dtype == torch.bfloat16
        np.testing.assert_allclose(cos[0, 0, 0, : HEAD_DIM // 2].float(), np.cos(4001 * PLAIN), atol=1e-2)

    def test_autocast_does_not_round_the_angles(self):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cos, _ = rotary_cos_sin(torch.tensor(PLAIN).float(), torch.tensor([[4001]]))
        np.testing.assert_allclose(cos[0, 0, 0, : HEAD_DIM // 2], np.cos(4001 * PLAIN), atol=1e-3)
