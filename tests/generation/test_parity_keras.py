"""`generate` of Keras models: equal to PyTorch's token for token, few programs, sampling, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.generation.conftest import TRAINED, counting_prompts
from tests.grid import grid
from tests.keras.setting import import_keras
from tests.parity.torch_parity import randomise

import longspan
from longspan.errors import ConfigError, InputError
from longspan.generation.array_rules import Text, apply_rules
from longspan.generation.config import GenerationConfig
from longspan.generation.keras_loop import ARRAYS
from longspan.generation.rules import Rules
from longspan.generation.torch_processors import sampling_processors

keras = import_keras()
FAMILIES = {
    "longt5-tglobal": "LongT5ForConditionalGeneration",
    "bert": "BertLMHeadModel",
    "diffllama": "DiffLlamaForCausalLM",
}
#: name -> settings; together every rule that is not about sampling. Those of one number of rows share programs
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
        "bad_words_ids": [[5], [17, 18]],
        "sequence_bias": [[[14], 1.5], [[16, 12], -3.0]],
        "begin_suppress_tokens": [12, 30],
        "exponential_decay_length_penalty": [2, 1.3],
        "remove_invalid_values": True,
        "renormalize_logits": True,
    },
    "beams": {"max_new_tokens": 9, "num_beams": 3, "num_return_sequences": 2, "min_new_tokens": 3},
    "early": {"max_new_tokens": 14, "num_beams": 3, "early_stopping": True, "length_penalty": 2.0},
    "never": {"max_new_tokens": 9, "num_beams": 3, "early_stopping": "never", "repetition_penalty": 1.4},
}


@pytest.fixture(scope="module")
def counting():
    """Family -> (Keras model, PyTorch model), with weights that learned to count on."""
    pairs = {}
    for family, name in FAMILIES.items():
        theirs = getattr(longspan, name).from_pretrained(TRAINED / family).float().eval()
        ours = getattr(longspan, f"TF{name}").from_pretrained(TRAINED / family, dtype="float32")
        pairs[family] = ours, theirs
    return pairs


@pytest.fixture(scope="module")
def longt5(counting):
    """The Keras model with an encoder; tests do not change it."""
    return counting["longt5-tglobal"][0]


def prompts(family):
    """Rows that count, some of them padded."""
    return counting_prompts(3, left="longt5" not in family)


CASES = [(family, name) for family in FAMILIES for name in SETTINGS]
#: rules see scores and ids alone, so that those of one family show all of them
FURTHER = [(family, name) for family, name in CASES if family != "longt5-tglobal" and name not in ("greedy", "beams")]


@pytest.mark.parametrize(("family", "name"), grid(CASES, wide=FURTHER))
def test_tokens_equal_pytorch(counting, family, name):
    ours, theirs = counting[family]
    ids, mask = prompts(family)
    output = ours.generate(ids.numpy(), attention_mask=mask.numpy(), return_dict_in_generate=True, **SETTINGS[name])
    expected = theirs.generate(
        ids, attention_mask=mask, return_dict_in_generate=True, output_scores=True, **SETTINGS[name]
    )
    np.testing.assert_array_equal(output.sequences, expected.sequences)
    if "num_beams" in SETTINGS[name]:
        np.testing.assert_allclose(output.sequences_scores, expected.sequences_scores, rtol=1e-5, atol=1e-5)
    else:
        assert "sequences_scores" not in output


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_end_early_are_filled(counting, family, num_beams):
    """With end tokens that rows reach at different lengths."""
    ours, theirs = counting[family]
    ids, mask = prompts(family)
    settings = {"attention_mask": mask, "max_new_tokens": 12, "num_beams": num_beams}
    start = 1 if family != "bert" else ids.shape[1]
    free = theirs.generate(ids, **settings, eos_token_id=96)[:, start:]
    settings |= {"eos_token_id": [int(free[0, 3]), int(free[1, 6]), int(free[2, 1])], "pad_token_id": 0}
    expected = theirs.generate(ids, **settings)
    lengths = (expected[:, start:] != 0).sum(dim=1)
    assert len(set(lengths.tolist())) > 1
    settings["attention_mask"] = mask.numpy()
    np.testing.assert_array_equal(ours.generate(ids.numpy(), **settings), expected)


def test_one_program_serves_all_lengths_of_a_bucket(counting):
    ours, theirs = counting["bert"]
    for length, new in ((5, 4), (8, 7), (6, 3)):
        ids = prompts("bert")[0][:, -length:] + 3
        expected = theirs.generate(ids, max_new_tokens=new)
        np.testing.assert_array_equal(ours.generate(ids.numpy(), max_new_tokens=new), expected)
    programs = ours._programs()
    assert programs._step.experimental_get_tracing_count() <= 2  # with beams too
    assert all(program.experimental_get_tracing_count() == 1 for program in programs._begin.values())


def test_weights_that_change_are_read_again(longt5):
    ids, mask = (part.numpy() for part in prompts("longt5"))
    before = np.asarray(longt5.generate(ids, attention_mask=mask, max_new_tokens=6))
    weight = longt5.decoder.final_layer_norm.weight
    old = np.asarray(weight).copy()
    weight.assign(-old)
    after = np.asarray(longt5.generate(ids, attention_mask=mask, max_new_tokens=6))
    weight.assign(old)
    assert before.shape != after.shape or (before != after).any()
    np.testing.assert_array_equal(longt5.generate(ids, attention_mask=mask, max_new_tokens=6), before)


def test_a_decoder_may_begin_with_more_than_the_start_token(counting):
    ours, theirs = counting["longt5-tglobal"]
    ids, mask = prompts("longt5")
    begin = np.array([[5, 6]] * 3)
    settings = {"max_new_tokens": 5, "num_beams": 3}
    output = ours.generate(ids.numpy(), attention_mask=mask.numpy(), decoder_input_ids=begin, **settings)
    expected = theirs.generate(ids, attention_mask=mask, decoder_input_ids=torch.from_numpy(begin), **settings)
    np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize("name", ["BertLMHeadModel", "RobertaForCausalLM"])
def test_positions_and_the_states_of_an_encoder(tmp_path, name):
    config = {"vocab_size": 41, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    config |= {"intermediate_size": 20, "max_position_embeddings": 40, "is_decoder": True, "eos_token_id": [1, 7]}
    has_source = name == "BertLMHeadModel"
    torch.manual_seed(4)
    kind = getattr(longspan, "BertConfig" if has_source else "RobertaConfig")
    theirs = randomise(getattr(longspan, name)(kind(**config, add_cross_attention=has_source))).eval()
    theirs.save_pretrained(tmp_path)
    ours = getattr(longspan, f"TF{name}").from_pretrained(tmp_path)
    ids, mask = counting_prompts(3, left=True)
    ids = ids % 38 + 3
    source = {}
    if has_source:
        states = np.random.default_rng(5).normal(size=(3, 7, 16)).astype(np.float32)
        source = {
            "encoder_hidden_states": states,
            "encoder_attention_mask": np.array([[1] * 7, [1] * 3 + [0] * 4] * 2)[:3],
        }
    settings = {"num_beams": 2, "max_new_tokens": 6, "repetition_penalty": 1.7}
    output = ours.generate(ids.numpy(), attention_mask=mask.numpy(), **source, **settings)
    tensors = {key: torch.from_numpy(array) for key, array in source.items()}
    expected = theirs.generate(ids, attention_mask=mask, **tensors, **settings)
    np.testing.assert_array_equal(output, expected)
    if has_source:
        with pytest.raises(
            InputError, match="generates from encoder_hidden_states. Received: add_cross_attention=True"
        ):
            ours.generate(ids.numpy())
        with pytest.raises(InputError, match="the prompt must be shorter than the model's 40 positions"):
            ours.generate(np.full((1, 40), 9), **{key: value[:1] for key, value in source.items()})


def test_a_model_that_reads_both_ways_writes_nothing():
    with pytest.warns(UserWarning, match="attends in both directions"):
        model = longspan.TFBertLMHeadModel(
            longspan.BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
        )
    with pytest.raises(InputError, match="generating needs a decoder: config.is_decoder=True"):
        model.generate(np.array([[5, 6]]))


class TestSampling:
    def test_repeats_with_its_seed(self, longt5):
        ids, mask = (part.numpy() for part in prompts("longt5"))
        settings = {"attention_mask": mask, "do_sample": True, "max_new_tokens": 8, "temperature": 5.0}
        one = np.asarray(longt5.generate(ids, seed=1, **settings))
        np.testing.assert_array_equal(longt5.generate(ids, seed=1, **settings), one)
        other = np.asarray(longt5.generate(ids, seed=2, **settings))
        assert other.shape != one.shape or bool((other != one).any())

    def test_beam_sampling_and_several_rows(self, longt5):
        ids, _ = prompts("longt5")
        output = longt5.generate(
            ids.numpy(), do_sample=True, num_beams=3, max_new_tokens=5, return_dict_in_generate=True
        )
        assert np.isfinite(output.sequences_scores).all()
        assert longt5.generate(ids.numpy(), do_sample=True, num_return_sequences=3, max_new_tokens=5).shape[0] == 9

    def test_draws_follow_the_distribution(self):
        scores = np.log(np.array([[0.5, 0.25, 0.2, 0.05, 0.0]], np.float32) + 1e-30)
        drawn = ARRAYS.draw(np.random.default_rng(0), 0, np.repeat(scores, 4000, axis=0))
        counts = np.bincount(drawn, minlength=5) / 4000
        # five standard deviations
        assert (np.abs(counts - np.exp(scores[0])) <= 5 * np.sqrt(np.exp(scores[0]) / 4000) + 1e-9).all()

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
        scores = np.random.default_rng(0).normal(size=(5, 41)).astype(np.float32) * 2
        expected = torch.from_numpy(scores)
        for rule in sampling_processors(Rules.from_config(config)):
            expected = rule(None, expected)
        text = Text(np.zeros((5, 4), np.int32), 0, 1, 1, 0, 9, None, None)
        ours = apply_rules(ARRAYS, Rules.from_config(config), text, scores)
        assert ours.dtype == np.float32
        assert np.isinf(ours).any()
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


class TestSettings:
    def test_saved_and_loaded_with_the_model(self, counting, tmp_path):
        model = longspan.TFLongT5ForConditionalGeneration.from_pretrained(TRAINED / "longt5-tglobal")
        assert model.can_generate()
        model.generation_config = GenerationConfig(num_beams=3, max_new_tokens=4, decoder_start_token_id=0)
        model.save_pretrained(tmp_path)
        again = longspan.TFLongT5ForConditionalGeneration.from_pretrained(tmp_path)
        assert again.generation_config == model.generation_config
        theirs = longspan.LongT5ForConditionalGeneration.from_pretrained(tmp_path)
        assert theirs.generation_config == model.generation_config

    @pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
    @pytest.mark.parametrize("family", ["longt5-tglobal", "bert"])
    def test_kept_in_a_keras_file(self, counting, family, tmp_path):
        ours, theirs = counting[family]
        model = type(ours).from_config(ours.config)
        model.set_weights([np.asarray(weight) for weight in ours.weights])
        assert "generation_config" not in model.get_config()  # it follows the model's configuration
        model.generation_config = GenerationConfig.from_model_config(model.config)
        model.generation_config.update(max_new_tokens=5, suppress_tokens=[8, 15, 19, 25, 36])
        model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
        assert again.generation_config == model.generation_config
        ids, mask = prompts(family)
        expected = theirs.generate(ids, attention_mask=mask, generation_config=model.generation_config)
        assert (expected != theirs.generate(ids, attention_mask=mask, max_new_tokens=5)).any()
        np.testing.assert_array_equal(again.generate(ids.numpy(), attention_mask=mask.numpy()), expected)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (
                {"input_ids": np.zeros((2, 0), int)},
                InputError,
                r"input_ids must have the shape \(batch, tokens\), with",
            ),
            ({"input_ids": np.full((1, 2), 99)}, InputError, r"input_ids must lie in \[0, vocab_size=97\)"),
            ({"input_ids": np.ones((1, 2))}, InputError, "input_ids must be integers. Received: float64"),
            ({"attention_mask": np.zeros((3, 8))}, InputError, r"each prompt must have a token .* rows \[0, 1, 2\]"),
            ({"attention_mask": np.ones((3, 4))}, InputError, r"attention_mask must have the shape .*\(3, 8\)"),
            ({"max_time": 3.0}, InputError, "max_time needs to look at every step, which Keras models"),
            ({"stop_strings": "."}, InputError, "stop_strings needs to look at every step"),
            (
                {"use_cache": False},
                InputError,
                "Keras models generate with a cache of a fixed size; .* use_cache=False",
            ),
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
            longt5.generate(**{"input_ids": prompts("longt5")[0].numpy(), **arguments})
