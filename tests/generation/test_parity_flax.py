"""`generate` of Flax models: equal to PyTorch's token for token, pure, few programs, sampling, errors."""

from __future__ import annotations

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tests.generation.conftest import TRAINED, counting_prompts
from tests.grid import grid
from tests.parity.torch_parity import randomise

import longspan
from longspan.errors import ConfigError, InputError
from longspan.generation.array_rules import Text, apply_rules
from longspan.generation.config import GenerationConfig
from longspan.generation.flax_loop import ARRAYS
from longspan.generation.rules import Rules
from longspan.generation.torch_processors import sampling_processors

VOCABULARY = 41
LONGT5 = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 20,
    "num_heads": 2,
    "num_layers": 1,
    "num_decoder_layers": 2,
    "local_radius": 3,
    "global_block_size": 4,
    "encoder_attention_type": "transient-global",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
    "eos_token_id": [1, 7, 11],
}
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 40,
    "is_decoder": True,
    "eos_token_id": [1, 7, 11],
}
#: name -> settings; together every rule that is not about sampling
SETTINGS = {
    "greedy": {"max_new_tokens": 12},
    "repetition": {
        "max_length": 17,
        "min_new_tokens": 4,
        "forced_eos_token_id": 7,
        "suppress_tokens": [9, 3],
        "repetition_penalty": 1.6,
        "no_repeat_ngram_size": 2,
    },
    "words": {
        "max_new_tokens": 10,
        "encoder_repetition_penalty": 0.6,
        "encoder_no_repeat_ngram_size": 2,
        "bad_words_ids": [[5], [7, 8]],
        "sequence_bias": [[[4], 1.5], [[6, 2], -3.0]],
        "begin_suppress_tokens": [12, 30],
        "exponential_decay_length_penalty": [2, 1.3],
        "remove_invalid_values": True,
        "renormalize_logits": True,
    },
    "beams": {"max_new_tokens": 9, "num_beams": 3, "num_return_sequences": 2, "min_new_tokens": 3},
    "early": {"max_new_tokens": 14, "num_beams": 4, "early_stopping": True, "length_penalty": 2.0},
    "never": {"max_new_tokens": 9, "num_beams": 2, "early_stopping": "never", "repetition_penalty": 1.4},
}
CASES = [("longt5", name) for name in SETTINGS] + [("bert", name) for name in ("greedy", "words", "beams")]


def make_pair(kind, directory):
    """(Flax model, PyTorch model) on equal random weights."""
    torch.manual_seed(3)
    if kind == "longt5":
        expected = longspan.LongT5ForConditionalGeneration(longspan.LongT5Config(**LONGT5))
        ours = longspan.FlaxLongT5ForConditionalGeneration
    else:
        expected, ours = longspan.BertLMHeadModel(longspan.BertConfig(**BERT)), longspan.FlaxBertForCausalLM
    randomise(expected).eval().save_pretrained(directory)
    return ours.from_pretrained(directory), expected


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return {kind: make_pair(kind, tmp_path_factory.mktemp(kind)) for kind in ("longt5", "bert")}


@pytest.fixture(scope="module")
def longt5(pairs):
    """The Flax model with an encoder; tests do not change it."""
    return pairs["longt5"][0]


def prompts(length=11, rows=3):
    """Ids, and a mask with padding at either side."""
    rng = np.random.default_rng(0)
    mask = np.ones((rows, length), np.int64)
    mask[1, :4] = 0
    mask[2, 7:] = 0
    return rng.integers(12, VOCABULARY, (rows, length)), mask


#: others of these tests compare what BERT writes one token at a time; of the search, which Flax and Keras share,
#: tests/generation/test_parity_keras.py has these endings
FURTHER = [("bert", "greedy"), ("longt5", "early"), ("longt5", "never")]


@pytest.mark.parametrize(("kind", "name"), grid(CASES, wide=FURTHER))
def test_tokens_equal_pytorch(pairs, kind, name):
    ours, theirs = pairs[kind]
    ids, mask = prompts()
    output = ours.generate(ids, attention_mask=mask, **SETTINGS[name])
    expected = theirs.generate(
        torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask),
        return_dict_in_generate=True,
        output_scores=True,
        **SETTINGS[name],
    )
    np.testing.assert_array_equal(output.sequences, expected.sequences)
    if "num_beams" in SETTINGS[name]:
        np.testing.assert_allclose(output.scores, expected.sequences_scores, rtol=1e-5, atol=1e-5)
    else:
        assert "scores" not in output


@pytest.fixture(scope="module")
def counting():
    """Family -> (Flax model, PyTorch model), with weights that learned to count on."""
    pairs = {}
    for family, name in (("diffllama", "DiffLlamaForCausalLM"), ("mega", "MegaForCausalLM")):
        theirs = getattr(longspan, name).from_pretrained(TRAINED / family).float().eval()
        pairs[family] = getattr(longspan, f"Flax{name}").from_pretrained(TRAINED / family), theirs
    return pairs


@pytest.mark.parametrize("name", grid(("greedy", "repetition", "beams"), wide=("repetition",)))
@pytest.mark.parametrize("family", ["diffllama", "mega"])
def test_trained_models_write_what_pytorchs_write(counting, family, name):
    """After rows that count, two of them padded on the left, and after random ids."""
    ours, theirs = counting[family]
    for ids, mask in (counting_prompts(3, left=True), [torch.from_numpy(array) for array in prompts(8)]):
        expected = theirs.generate(ids, attention_mask=mask, **SETTINGS[name])
        written = np.asarray(ours.generate(ids.numpy(), attention_mask=mask.numpy(), **SETTINGS[name]).sequences)
        np.testing.assert_array_equal(written, expected)
        if name == "greedy" and (ids[0].diff() == 1).all():  # it says what was learned
            np.testing.assert_array_equal(written[:, 8], ids[:, -1] + 1)


@pytest.mark.parametrize(("kind", "num_beams"), [("longt5", 1), ("longt5", 3), ("bert", 1)])
def test_rows_that_end_early_are_filled(pairs, kind, num_beams):
    """With end tokens that rows reach at different lengths."""
    ours, theirs = pairs[kind]
    ids, mask = prompts()
    settings = {"num_beams": num_beams, "max_new_tokens": 12, "repetition_penalty": 1.8}  # rows differ
    start = 1 if kind == "longt5" else ids.shape[1]
    inputs = {"inputs": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    free = theirs.generate(**inputs, **settings)[:, start:]
    ends = [int(free[0, 3]), int(free[1, 6])]
    settings |= {"eos_token_id": ends, "pad_token_id": 0}
    sequences = np.asarray(ours.generate(ids, attention_mask=mask, **settings).sequences)
    expected = theirs.generate(**inputs, **settings)
    np.testing.assert_array_equal(sequences, expected)
    lengths = (~np.isin(sequences[:, start:], ends)).cumprod(axis=1).sum(axis=1) + 1
    assert len(set(lengths.tolist())) > 1
    assert not sequences[lengths.argmin(), start + lengths.min() :].any()


def test_a_decoder_may_begin_with_more_than_the_start_token(pairs):
    ours, theirs = pairs["longt5"]
    ids, mask = prompts()
    for begin, num_beams in ((np.array([[0, 5, 6]] * 3), 3), (np.array([[5, 6]] * 3), 1)):
        settings = {"max_new_tokens": 5, "num_beams": num_beams}
        output = ours.generate(ids, attention_mask=mask, decoder_input_ids=begin, **settings)
        expected = theirs.generate(
            torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            decoder_input_ids=torch.from_numpy(begin),
            **settings,
        )
        np.testing.assert_array_equal(output.sequences, expected)


@pytest.mark.parametrize("num_beams", grid((1, 3), wide=(1,)))
def test_a_decoder_reads_the_states_of_an_encoder(tmp_path, num_beams):
    torch.manual_seed(4)
    theirs = longspan.BertLMHeadModel(longspan.BertConfig(**BERT, add_cross_attention=True))
    randomise(theirs).eval().save_pretrained(tmp_path)
    ours = longspan.FlaxBertForCausalLM.from_pretrained(tmp_path)
    ids, mask = prompts(5)
    states = np.random.default_rng(5).normal(size=(3, 7, 16)).astype(np.float32)
    source = {
        "encoder_hidden_states": states,
        "encoder_attention_mask": np.array([[1] * 7, [1] * 3 + [0] * 4, [1] * 7]),
    }
    settings = {"num_beams": num_beams, "max_new_tokens": 6, "repetition_penalty": 1.7}
    output = np.asarray(ours.generate(ids, attention_mask=mask, **source, **settings).sequences)
    tensors = {name: torch.from_numpy(array) for name, array in ({"attention_mask": mask} | source).items()}
    np.testing.assert_array_equal(output, theirs.generate(torch.from_numpy(ids), **tensors, **settings))
    other = ours.generate(
        ids, attention_mask=mask, **{**source, "encoder_hidden_states": -states}, **settings
    ).sequences
    assert output.shape != other.shape or bool((output != other).any())
    for arguments, message in (
        ({}, "generates from encoder_hidden_states. Received: add_cross_attention=True, encoder_hidden_states=None"),
        ({"encoder_hidden_states": states[:2]}, r"encoder_hidden_states must have .*\(3, 7, 16\)"),
        ({**source, "encoder_attention_mask": mask[:, :3]}, r"encoder_attention_mask must have .*\(3, 7\)"),
    ):
        with pytest.raises(InputError, match=message):
            ours.generate(ids, **arguments)


def test_padding_is_told_by_its_id(longt5):
    ids, mask = prompts()
    ids = np.where(mask == 0, 0, ids)
    one = longt5.generate(ids, attention_mask=mask, max_new_tokens=6).sequences
    np.testing.assert_array_equal(longt5.generate(ids, max_new_tokens=6).sequences, one)


def test_one_program_serves_all_lengths_of_a_bucket(pairs):
    ours, _ = pairs["bert"]
    program = ours._generation_program
    before = program._cache_size()
    for length, new in ((5, 4), (9, 7), (14, 3)):
        ids, mask = prompts(14)
        assert ours.generate(ids[:, :length], attention_mask=mask[:, :length], max_new_tokens=new).sequences.shape[
            1
        ] <= (length + new)
    assert program._cache_size() <= before + 1


def test_generating_inside_of_jit_is_pure(longt5):
    ids, mask = prompts()
    expected = np.asarray(longt5.generate(ids, attention_mask=mask, max_new_tokens=6, min_new_tokens=6).sequences)

    @jax.jit
    def generate(params, ids, mask):
        return longt5.generate(ids, attention_mask=mask, params=params, max_new_tokens=6, min_new_tokens=6).sequences

    np.testing.assert_array_equal(generate(longt5.params, ids, mask), expected)
    # other parameters give other tokens: they are no constants of the program
    other = jax.tree_util.tree_map(lambda leaf: -leaf, longt5.params)
    assert (np.asarray(generate(other, ids, mask)) != expected).any()


class TestSampling:
    def test_repeats_with_its_key(self, longt5):
        ids, mask = prompts()
        settings = {"attention_mask": mask, "do_sample": True, "max_new_tokens": 8, "num_return_sequences": 2}
        one = longt5.generate(ids, prng_key=jax.random.PRNGKey(1), **settings).sequences
        assert one.shape[0] == 6
        np.testing.assert_array_equal(longt5.generate(ids, prng_key=jax.random.PRNGKey(1), **settings).sequences, one)
        other = longt5.generate(ids, prng_key=jax.random.PRNGKey(2), **settings).sequences
        assert other.shape != one.shape or bool((other != one).any())

    def test_beam_sampling(self, longt5):
        ids, _ = prompts()
        output = longt5.generate(ids, do_sample=True, num_beams=3, max_new_tokens=5)
        assert output.sequences.shape[0] == 3
        assert jnp.isfinite(output.scores).all()

    def test_draws_follow_the_distribution(self, longt5):
        """First tokens of many rows against the probabilities."""
        ids = prompts()[0][:1]
        logits = longt5.decode(np.zeros((1, 1), int), longt5.encode(ids)).logits[0, -1]
        probabilities = np.asarray(jax.nn.softmax(logits))
        rows = longt5.generate(
            np.repeat(ids, 64, axis=0), do_sample=True, top_k=0, max_new_tokens=1, num_return_sequences=40
        ).sequences
        counts = np.bincount(np.asarray(rows)[:, 1], minlength=VOCABULARY) / rows.shape[0]
        # five standard deviations
        assert (np.abs(counts - probabilities) <= 5 * np.sqrt(probabilities / rows.shape[0]) + 1e-3).all()

    @pytest.mark.parametrize(
        "settings",
        [
            {"temperature": 0.6, "top_k": 7},
            {"top_k": 0, "top_p": 0.7},
            {"top_k": 0, "min_p": 0.2},
            {"top_k": 0, "typical_p": 0.6},
            {"top_k": 0, "epsilon_cutoff": 0.02},
            {"top_k": 0, "eta_cutoff": 0.05},
            {"top_k": 9, "top_p": 0.8, "num_beams": 2},
        ],
    )
    def test_rules_equal_pytorch(self, settings):
        config = GenerationConfig(do_sample=True, eos_token_id=1, **settings)
        scores = np.random.default_rng(0).normal(size=(5, VOCABULARY)).astype(np.float32) * 2
        expected = torch.from_numpy(scores)
        for rule in sampling_processors(Rules.from_config(config)):
            expected = rule(None, expected)
        zero = jnp.int32(0)
        text = Text(jnp.zeros((5, 4), jnp.int32), zero, zero + 1, zero + 1, zero, zero + 9, None, None)
        ours = apply_rules(ARRAYS, Rules.from_config(config), text, jnp.asarray(scores))
        assert np.isinf(np.asarray(ours)).any()
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


class TestSettings:
    def test_saved_and_loaded_with_the_model(self, pairs, tmp_path):
        model = pickle.loads(pickle.dumps(pairs["longt5"][0]))
        assert type(model).can_generate()
        model.generation_config = GenerationConfig(num_beams=2, max_new_tokens=4, decoder_start_token_id=0)
        model.save_pretrained(tmp_path)
        again = longspan.FlaxLongT5ForConditionalGeneration.from_pretrained(tmp_path)
        assert again.generation_config == model.generation_config
        assert again.generate(prompts()[0]).scores.shape == (3,)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (
                {"input_ids": np.zeros((2, 0), int)},
                InputError,
                r"input_ids must have the shape \(batch, tokens\), with",
            ),
            ({"input_ids": np.full((1, 2), 99)}, InputError, r"input_ids must lie in \[0, vocab_size=41\)"),
            ({"attention_mask": np.zeros((3, 11))}, InputError, r"each prompt must have a token .* rows \[0, 1, 2\]"),
            ({"attention_mask": np.ones((3, 4))}, InputError, r"attention_mask must have the shape .*\(3, 11\)"),
            ({"max_time": 3.0}, InputError, "max_time needs to look at every step"),
            ({"stop_strings": "."}, InputError, "stop_strings needs to look at every step"),
            ({"encoder_hidden_states": 1}, InputError, "Received as well: encoder_hidden_states"),
            ({"use_cache": False}, InputError, "with a cache of a fixed size; .* Received: use_cache=False"),
            ({"generation_config": GenerationConfig(use_cache=False)}, InputError, "Received: use_cache=False"),
            ({"output_scores": True}, InputError, "output_scores needs to look at every step"),
            ({"position_ids": 3}, InputError, "Received as well: position_ids"),
            ({"min_new_tokens": 9, "max_new_tokens": 3}, InputError, "least length must not exceed the greatest"),
            ({"max_length": 1}, InputError, "max_length counts the prompt and must exceed it"),
            (
                {"decoder_input_ids": np.zeros((2, 1), int)},
                InputError,
                r"decoder_input_ids must have the shape .*\(3,\)",
            ),
            ({"num_beams": 0}, ConfigError, "num_beams must be positive"),
        ],
    )
    def test_errors(self, longt5, arguments, error, message):
        with pytest.raises(error, match=message):
            longt5.generate(**{"input_ids": prompts()[0], **arguments})

    def test_errors_of_a_model_with_positions(self, pairs):
        ours, _ = pairs["bert"]
        with pytest.raises(InputError, match="the prompt must be shorter than the model's 40 positions"):
            ours.generate(np.full((1, 40), 20))
        with pytest.warns(UserWarning, match="the model has 40 positions"):
            assert ours.generate(np.full((1, 37), 20), max_new_tokens=9).sequences.shape[1] <= 40

    def test_what_cannot_generate(self, pairs):
        with pytest.warns(UserWarning, match="attends in both directions"):
            model = longspan.FlaxBertForCausalLM(longspan.BertConfig(**{**BERT, "is_decoder": False}))
        with pytest.raises(InputError, match="generate needs a decoder: config.is_decoder=True"):
            model.generate(np.full((1, 3), 20))
        assert not longspan.FlaxBertModel.can_generate()
        assert longspan.FlaxBertModel(model.config, _do_init=False).generation_config is None
        with pytest.raises(InputError, match="generation_config must be a GenerationConfig. Received: dict"):
            pairs["bert"][0].generation_config = {"num_beams": 2}

    def test_sampling_settings_without_sampling_warn(self, longt5):
        with pytest.warns(UserWarning, match="top_p have no effect without do_sample=True"):
            longt5.generate(prompts()[0], top_p=0.5, max_new_tokens=1)
