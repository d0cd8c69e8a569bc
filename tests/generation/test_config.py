"""`GenerationConfig`: names and defaults of the reference, files, rules."""

from __future__ import annotations

import copy
import json
import re

import pytest
import transformers

from longspan import BertConfig, GenerationConfig, LongT5Config
from longspan.errors import CheckpointNotFoundError, ConfigError


def test_names_and_defaults_are_the_references():
    reference = transformers.GenerationConfig().to_dict()
    for name, value in GenerationConfig().to_dict().items():
        assert name in vars(transformers.GenerationConfig()), name
        assert reference.get(name) == value, name


def test_every_setting_of_the_reference_is_known():
    for name, value in vars(transformers.GenerationConfig()).items():
        assert GenerationConfig(**{name: value}) == GenerationConfig()


def test_files_go_both_ways(tmp_path):
    mine = GenerationConfig(max_new_tokens=5, num_beams=2, sequence_bias={(3, 4): 2.0}, eos_token_id=[1, 2])
    mine.save_pretrained(tmp_path / "mine")
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path / "mine")
    assert (theirs.max_new_tokens, theirs.num_beams, theirs.eos_token_id) == (5, 2, [1, 2])
    assert GenerationConfig.from_pretrained(tmp_path / "mine").to_diff_dict() == mine.to_diff_dict()
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = GenerationConfig.from_pretrained(tmp_path / "theirs", num_beams=4)
    assert loaded.to_diff_dict() == {**mine.to_diff_dict(), "num_beams": 4}
    assert json.loads(mine.to_json_string())["sequence_bias"] == [[[3, 4], 2.0]]
    with pytest.raises(CheckpointNotFoundError, match="has no file 'generation_config.json'"):
        GenerationConfig.from_pretrained(tmp_path)


def test_settings_of_older_model_configurations():
    config = LongT5Config(num_beams=4, length_penalty=2.0, decoder_start_token_id=0)
    found = GenerationConfig.from_model_config(config)
    assert found.to_diff_dict() == {
        "num_beams": 4, "length_penalty": 2.0, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="num_beam_groups is not supported"):
        GenerationConfig.from_model_config(BertConfig(num_beam_groups=2))


def test_chosen_settings_win_over_those_of_a_model():
    model = GenerationConfig(num_beams=4, temperature=0.3, do_sample=True)
    combined = GenerationConfig(num_beams=1, top_k=5).over(model)
    assert combined.to_diff_dict() == {"top_k": 5, "temperature": 0.3, "do_sample": True}
    assert combined.was_given("num_beams")
    assert model.num_beams == 4
    assert copy.deepcopy(combined) == combined


def test_settings_that_change_no_token_are_taken_at_any_value():
    settings = {"disable_compile": True, "prefill_chunk_size": 64, "low_memory": True, "num_assistant_tokens": 5}
    assert GenerationConfig(**settings) == GenerationConfig()
    assert all(map(GenerationConfig.is_setting, settings))  # `generate` takes them too


def test_modes():
    modes = [GenerationConfig(do_sample=s, num_beams=b).mode for s in (False, True) for b in (1, 2)]
    assert modes == ["greedy_search", "beam_search", "sample", "beam_sample"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"foo": 1}, "generation has no setting 'foo'. Received: foo=1"),
        ({"streamer": 1}, "streamer is an argument of generate, not a setting of GenerationConfig"),
        ({"penalty_alpha": 0.6}, "penalty_alpha is not supported by longspan, except at None"),
        ({"num_beam_groups": 2}, "num_beam_groups is not supported by longspan, except at 1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be positive. Received: max_new_tokens=0"),
        ({"max_length": -1}, "max_length must be positive"),
        ({"num_beams": 0}, "num_beams must be positive"),
        ({"max_time": -1.0}, "max_time must be positive"),
        ({"min_length": -1}, "min_length must not be negative"),
        ({"top_k": -1}, "top_k must not be negative"),
        ({"no_repeat_ngram_size": -2}, "no_repeat_ngram_size must not be negative"),
        ({"temperature": 0.0, "do_sample": True}, "temperature must be positive; for the likeliest token each time"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\]"),
        ({"typical_p": 1.2}, r"typical_p must lie in \(0, 1\]"),
        ({"min_p": -0.1}, r"min_p must lie in \[0, 1\)"),
        ({"epsilon_cutoff": 1.0}, r"epsilon_cutoff must lie in \[0, 1\)"),
        ({"repetition_penalty": -1.0}, "repetition_penalty must be positive. Received: repetition_penalty=-1.0"),
        ({"encoder_repetition_penalty": 0.0}, "encoder_repetition_penalty must be positive"),
        ({"exponential_decay_length_penalty": [1.5, 2.0]}, r"must be \(start, factor\), a count of tokens"),
        ({"bad_words_ids": [[]]}, "bad_words_ids must be a list of lists of ids, none of them empty"),
        ({"sequence_bias": []}, "sequence_bias must be"),
        ({"suppress_tokens": [-1]}, "suppress_tokens must be a list of ids"),
        ({"eos_token_id": [2, -1]}, "eos_token_id must not be negative"),
        ({"early_stopping": "soon"}, "early_stopping must be bool or one of 'never'"),
        ({"cache_implementation": "quantized"}, "cache_implementation must be one of 'dynamic', 'static' or None"),
        ({"top_k": "5"}, "top_k must be int or None. Received: top_k='5'"),
        ({"num_return_sequences": 2}, "num_return_sequences > 1 needs do_sample=True or num_beams > 1"),
        ({"num_return_sequences": 3, "num_beams": 2}, "num_return_sequences must not exceed num_beams"),
    ],
)
def test_rules(settings, message):
    with pytest.raises(ConfigError, match=message):
        GenerationConfig(**settings)
    with pytest.raises(ConfigError, match=message):
        GenerationConfig().update(**settings)


def test_no_setting_can_be_invented_later():
    with pytest.raises(ConfigError, match="generation has no setting 'beams'"):
        GenerationConfig().beams = 3


class TestFiles:
    """Files are read leniently, arguments strictly."""

    @pytest.fixture
    def write(self, tmp_path):
        def write(**content):
            path = tmp_path / "generation_config.json"
            path.write_text(json.dumps(content))
            return path

        return write

    def test_null_stands_for_the_default_or_for_nothing(self, write):
        path = write(do_sample=None, use_cache=None, num_beams=None, forced_decoder_ids=None, top_k=None, max_length=9)
        found = GenerationConfig.from_pretrained(path)
        assert (found.do_sample, found.use_cache, found.num_beams, found.max_length) == (False, True, 1, 9)
        assert found.top_k is None
        with pytest.raises(ConfigError, match="do_sample must be bool. Received: do_sample=None"):
            GenerationConfig(do_sample=None)

    def test_keys_of_the_author_are_kept_and_logged_once(self, write, caplog):
        path = write(max_length=9, my_note={"by": "me"}, forced_decoder_ids=None)
        for _ in range(2):
            found = GenerationConfig.from_pretrained(path, num_beams=2)
        assert [record.message for record in caplog.records] == [
            f"{path} holds keys that are no settings of generation; they are kept and have no effect: my_note"
        ]
        assert json.loads(found.to_json_string()) == {"max_length": 9, "my_note": {"by": "me"}, "num_beams": 2}
        with pytest.raises(ConfigError, match="generation has no setting 'my_note'"):
            GenerationConfig(my_note=1)

    @pytest.mark.parametrize("content", [{"guidance_scale": 2.0}, {"max_length": 0}, {"temperature": "a"}])
    def test_what_cannot_be_done_names_the_file(self, write, content):
        path = write(**content)
        with pytest.raises(ConfigError, match=re.escape(f"{path}: {next(iter(content))} ")):
            GenerationConfig.from_pretrained(path)
