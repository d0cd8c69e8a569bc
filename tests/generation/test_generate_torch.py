"""What `generate` of the PyTorch models does beside what the reference does."""

from __future__ import annotations

import asyncio
import copy
import threading
import warnings

import pytest
import torch
from tests.generation.conftest import prompts
from tests.tolerances import assert_close

import longspan
from longspan import (
    AsyncTextIteratorStreamer,
    GenerationConfig,
    LogitsProcessor,
    StoppingCriteria,
    TextIteratorStreamer,
)
from longspan.errors import ConfigError, InputError


@pytest.fixture
def fresh(tiny):
    """A copy that a test may change."""
    return copy.deepcopy(tiny)


class Letters:
    """A tokenizer whose ids are letters."""

    def decode(self, ids, **_):
        return "".join(chr(97 + int(i) % 26) for i in ids)


class TestMega:
    @pytest.mark.parametrize(
        "settings", [{}, {"chunk_size": 3}, {"use_chunking": False}, {"normalization_type": "scalenorm"}]
    )
    def test_equals_step_by_step_full_forward(self, mega, settings):
        model = mega(**settings)
        ids = torch.randint(3, 61, (3, 7), generator=torch.Generator().manual_seed(1))
        rows = model.generate(ids, max_new_tokens=17, eos_token_id=60)
        expected = ids
        for _ in range(rows.shape[1] - 7):
            logits = model(expected, use_cache=False).logits[:, -1]
            expected = torch.cat((expected, logits.argmax(dim=-1, keepdim=True)), dim=1)
        for mine, theirs in zip(rows.tolist(), expected.tolist(), strict=True):
            stop = mine.index(60, 7) + 1 if 60 in mine[7:] else len(mine)
            assert mine[:stop] == theirs[:stop]
        assert len({tuple(row) for row in rows[:, 7:].tolist()}) == 3

    @pytest.mark.parametrize("chunking", [True, False])
    @pytest.mark.parametrize("num_beams", [1, 3])
    def test_unequal_prompts_as_if_alone(self, mega, chunking, num_beams):
        model = mega(use_chunking=chunking)
        ids, mask = prompts(6, 9, left=True, vocabulary=61)
        settings = {"max_new_tokens": 12, "num_beams": num_beams}
        together = model.generate(ids, attention_mask=mask, return_dict_in_generate=True, **settings).sequences
        for row, keep, real in zip(together.tolist(), mask.bool(), ids, strict=True):
            alone = model.generate(real[keep][None], **settings)[0].tolist()
            start = 9 - int(keep.sum())
            assert row[start : start + len(alone)] == alone
            assert set(row[start + len(alone) :]) <= {0}

    def test_state_does_not_grow(self, mega):
        model = mega(eos_token_id=None)
        sizes = []
        for count in (10, 60):
            output = model.generate(torch.tensor([[5, 6]]), max_new_tokens=count, return_dict_in_generate=True)
            sizes.append(sum(tensor.numel() for layer in output.past_key_values for tensor in layer[2:]))
            assert output.past_key_values[0][0].shape[1] <= 5
        assert sizes[0] == sizes[1]

    def test_limits_of_a_simple_bias(self, mega):
        settings = {"relative_positional_bias": "simple", "max_positions": 12, "eos_token_id": None}
        model = mega(use_chunking=False, chunk_size=-1, **settings)
        with pytest.warns(UserWarning, match="has 12 positions: after a prompt of 4 tokens it can generate 8"):
            assert model.generate(torch.tensor([[5, 6, 7, 8]]), max_new_tokens=20).shape == (1, 12)
        assert mega().max_positions() is None

    def test_refusals(self, mega):
        model = mega()
        with pytest.raises(InputError, match="MEGA keeps a cache of its own. Received: cache_implementation='static'"):
            model.generate(torch.tensor([[5]]), cache_implementation="static")


class TestCaches:
    @pytest.mark.parametrize("family", ["diffllama", "bert", "longt5-local"])
    @pytest.mark.parametrize("num_beams", [1, 3])
    def test_kinds_of_caches_agree(self, pairs, family, num_beams):
        model = pairs[family][0]
        ids, mask = prompts(3, left=True)
        settings = {"attention_mask": mask, "num_beams": num_beams, "max_new_tokens": 14}
        grown = model.generate(ids, **settings)
        assert torch.equal(model.generate(ids, cache_implementation="static", **settings), grown)
        assert torch.equal(model.generate(ids, use_cache=False, **settings), grown)

    def test_going_on_from_a_cache(self, tiny):
        ids = torch.randint(3, 97, (2, 6))
        first = tiny.generate(ids, max_new_tokens=5, eos_token_id=None, return_dict_in_generate=True)
        mask = torch.ones_like(first.sequences)  # the padding id may have been generated
        whole = tiny.generate(first.sequences, attention_mask=mask, max_new_tokens=6)
        cache = first.past_key_values
        held = cache.get_seq_length()
        assert held == 10  # the last token was not read
        settings = {"attention_mask": mask, "past_key_values": cache, "max_new_tokens": 6}
        assert torch.equal(tiny.generate(first.sequences, **settings), whole)
        with pytest.raises(InputError, match=r"at least one more. Received: 6 tokens with a cache of"):
            tiny.generate(ids, past_key_values=cache)
        with pytest.raises(InputError, match="with past_key_values, padding must stand at the left"):
            tiny.generate([[5, 6, 0]], attention_mask=[[1, 1, 0]], past_key_values=cache)

    def test_the_source_is_kept_once(self, pairs):
        model = pairs["longt5-local"][0]
        output = model.generate(
            torch.randint(3, 97, (2, 9)), num_beams=4, max_new_tokens=5, return_dict_in_generate=True
        )
        cache = output.past_key_values
        assert cache.cross_attention_cache[0][0].shape[0] == 2
        assert cache.self_attention_cache[0][0].shape[0] == 8

    def test_growing_past_the_first_buffers(self, tiny):
        tiny.config.max_position_embeddings = 1024
        rows = tiny.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=300, eos_token_id=None)
        logits = tiny(rows[:, :-1]).logits.argmax(dim=-1)
        assert torch.equal(logits[:, 2:], rows[:, 3:])


class TestSampling:
    @pytest.mark.parametrize("settings", [{"top_k": 0}, {"top_k": 6, "temperature": 0.8}, {"top_p": 0.7, "top_k": 0}])
    def test_frequencies_follow_the_processed_probabilities(self, tiny, settings):
        """A chi-square test of 20,000 draws at the 0.1 % level."""
        scipy = pytest.importorskip("scipy.stats")
        draws = 20_000
        output = tiny.generate(
            torch.tensor([[5, 6, 7]]),
            do_sample=True,
            num_return_sequences=draws,
            max_new_tokens=1,
            seed=11,
            output_scores=True,
            return_dict_in_generate=True,
            **settings,
        )
        expected = output.scores[0][0].softmax(dim=-1) * draws
        counts = output.sequences[:, 3].bincount(minlength=97).float()
        assert counts[expected == 0].sum() == 0
        common = expected >= 5
        statistic = float(((counts - expected)[common] ** 2 / expected[common]).sum())
        rest = float(expected[~common].sum())
        if rest > 5:
            statistic += (float(counts[~common].sum()) - rest) ** 2 / rest
        assert statistic < scipy.chi2.ppf(0.999, int(common.sum()))
        assert int(common.sum()) > 3

    @pytest.mark.parametrize("num_beams", [1, 3])
    def test_a_seed_repeats_exactly(self, pairs, num_beams):
        for model, _ in pairs.values():
            ids, _ = prompts(2, left=False)
            settings = {"do_sample": True, "num_beams": num_beams, "max_new_tokens": 12, "attention_mask": ids != 0}
            state = torch.get_rng_state()
            first, second, other = (model.generate(ids, seed=seed, **settings) for seed in (4, 4, 5))
            assert torch.equal(first, second)
            assert not torch.equal(first, other)
            assert torch.equal(torch.get_rng_state(), state)  # PyTorch's own numbers are left alone

    def test_a_stored_least_length_gives_way_with_a_warning(self, pairs):
        """As in the reference: what a file asks for does not forbid shorter texts."""
        rows = []
        for model in pairs["longt5-local"]:
            model = copy.deepcopy(model)
            model.generation_config.min_length = 50
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                rows.append(model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=8))
            assert any("min_length" in str(warning.message) for warning in caught)
        assert torch.equal(*rows)
        assert rows[0].shape == (1, 9)
        model = copy.deepcopy(pairs["longt5-local"][0])
        with pytest.raises(InputError, match="least length must not exceed the greatest. Received: min_length=50"):
            model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=8, min_length=50)

    def test_settings_are_checked_once(self, tiny, monkeypatch):
        tiny.generate([[5, 6]], max_new_tokens=2)
        checks = []
        original = GenerationConfig.validate
        monkeypatch.setattr(GenerationConfig, "validate", lambda self: checks.append(True) or original(self))
        tiny.generate([[5, 6]], max_new_tokens=2)
        assert len(checks) == 1

    def test_a_start_token_for_each_row(self, pairs):
        ids, mask = prompts(3, left=False)
        starts = [4, 9, 17]
        for settings in ({}, {"num_beams": 2}):
            batch = {"attention_mask": mask, "max_new_tokens": 6, "decoder_start_token_id": starts, **settings}
            rows, expected = (model.generate(ids, **batch) for model in pairs["longt5-local"])
            assert rows[:, 0].tolist() == starts
            assert torch.equal(rows, expected)
        with pytest.raises(InputError, match="one for each of the 3 rows. Received: 2 ids"):
            pairs["longt5-local"][0].generate(ids, decoder_start_token_id=[4, 9])

    def test_settings_without_effect_are_said(self, tiny):
        with pytest.warns(UserWarning, match="temperature have no effect without do_sample=True"):
            tiny.generate(torch.tensor([[5]]), temperature=0.5)


class TestPrompts:
    def test_padding_at_the_right_is_moved(self, tiny, pairs):
        for model in (tiny, pairs["bert"][0]):
            left, mask = prompts(4, left=True)
            right = torch.zeros_like(left)
            for row, (ids, keep) in enumerate(zip(left, mask.bool(), strict=True)):
                right[row, : keep.sum()] = ids[keep]
            expected = model.generate(left, attention_mask=mask)
            assert torch.equal(model.generate(right, attention_mask=right != 0), expected)
            assert torch.equal(model.generate(right), expected)  # the padding id tells
            embeds = model.get_input_embeddings()(right)
            assert torch.equal(model.generate(inputs_embeds=embeds, attention_mask=right != 0), expected[:, 9:])

    def test_lists_of_different_lengths(self, tiny, pairs):
        rows = [[5, 6, 7, 8], [9], [10, 11]]
        for model, start in ((tiny, 4), (pairs["longt5-local"][0], 1)):
            together = model.generate(rows, max_new_tokens=9)
            for row, ids in zip(together.tolist(), rows, strict=True):
                alone = model.generate([ids], max_new_tokens=9)[0].tolist()
                new = alone[len(ids) if start == 4 else 1 :]
                assert row[start : start + len(new)] == new

    def test_arrays_and_a_start_from_nothing(self, tiny):
        ids = torch.tensor([[5, 6]])
        assert torch.equal(tiny.generate(ids.numpy()), tiny.generate(input_ids=ids))
        assert torch.equal(tiny.generate(), tiny.generate([[1]]))

    def test_encoder_outputs(self, pairs):
        model = pairs["longt5-tglobal"][0]
        ids, mask = prompts(3, left=False)
        encoded = model.get_encoder()(ids, attention_mask=mask)
        expected = model.generate(ids, attention_mask=mask)
        assert torch.equal(model.generate(encoder_outputs=encoded, attention_mask=mask), expected)
        embeds = model.get_input_embeddings()(ids)
        assert torch.equal(model.generate(inputs_embeds=embeds, attention_mask=mask), expected)

    def test_long_source(self, pairs):
        """16k tokens; the source is read once and its attention is local."""
        model = pairs["longt5-local"][0]
        ids = torch.randint(3, 97, (1, 16_384))
        assert model.generate(ids, max_new_tokens=3).shape[1] <= 4


class TestStopping:
    def test_stop_strings(self, tiny):
        free = tiny.generate([[5, 6, 7]], max_new_tokens=40, eos_token_id=None)[0].tolist()
        text = Letters().decode(free)
        stop = text[11:14]
        first = text.index(stop, 1) + 3
        rows = tiny.generate([[5, 6, 7]], max_new_tokens=40, eos_token_id=None, stop_strings=stop, tokenizer=Letters())
        assert rows[0].tolist() == free[:first]
        with pytest.raises(InputError, match="stop_strings needs tokenizer=. Received: stop_strings='x'"):
            tiny.generate([[5]], stop_strings="x")
        with pytest.raises(InputError, match="stop_strings must be texts that are not empty"):
            tiny.generate([[5]], stop_strings=[""], tokenizer=Letters())

    @pytest.mark.parametrize("num_beams", [1, 2])
    def test_own_criteria(self, tiny, num_beams):
        class AtSeven(StoppingCriteria):
            def __call__(self, input_ids, scores, **kwargs):
                assert scores is None or len(scores) == input_ids.shape[1] - 3
                return torch.full((input_ids.shape[0],), input_ids.shape[1] >= 7)

        rows = tiny.generate([[5, 6, 7]], stopping_criteria=[AtSeven()], eos_token_id=None, num_beams=num_beams)
        assert rows.shape == (1, 7)

    def test_time(self, tiny):
        rows = tiny.generate([[5, 6, 7]], max_new_tokens=100, max_time=1e-9, eos_token_id=None)
        assert rows.shape == (1, 4)

    def test_own_processors_and_allowed_ids(self, tiny):
        class Only(LogitsProcessor):
            def __call__(self, input_ids, scores):
                return torch.full_like(scores, -1.0).index_fill(1, torch.tensor([input_ids.shape[1]]), 1.0)

        rows = tiny.generate([[5, 6, 7]], max_new_tokens=4, logits_processor=[Only()])
        assert rows.tolist() == [[5, 6, 7, 3, 4, 5, 6]]
        seen = []

        def allowed(number, ids):
            seen.append(number)
            return [20 + number]

        rows = tiny.generate(
            [[5], [6]], max_new_tokens=2, prefix_allowed_tokens_fn=allowed, num_beams=2, eos_token_id=None
        )
        assert rows.tolist() == [[5, 20, 20], [6, 21, 21]]
        assert set(seen) == {0, 1}
        with pytest.raises(InputError, match="must allow at least one id. Received: none for prompt 0 after"):
            tiny.generate([[5]], prefix_allowed_tokens_fn=lambda number, ids: [])

    def test_an_own_processor_takes_the_place_of_ours(self, tiny):
        mine = longspan.MinLengthLogitsProcessor(10, [2])
        plain = tiny.generate([[5]], min_length=10, max_new_tokens=15)
        assert torch.equal(tiny.generate([[5]], min_length=3, logits_processor=[mine], max_new_tokens=15), plain)


class TestStreams:
    def test_text_arrives_while_it_grows(self, tiny):
        streamer = TextIteratorStreamer(Letters(), skip_prompt=True, timeout=20)
        settings = {"streamer": streamer, "max_new_tokens": 30, "eos_token_id": None}
        thread = threading.Thread(target=tiny.generate, args=([[5, 6]],), kwargs=settings)
        thread.start()
        text = "".join(streamer)
        thread.join()
        expected = tiny.generate([[5, 6]], max_new_tokens=30, eos_token_id=None)[0, 2:]
        assert text == Letters().decode(expected)

    def test_text_arrives_in_an_event_loop(self, tiny):
        async def main():
            streamer = AsyncTextIteratorStreamer(Letters(), skip_prompt=True, timeout=20)
            settings = {"streamer": streamer, "max_new_tokens": 30, "eos_token_id": None}
            thread = threading.Thread(target=tiny.generate, args=([[5, 6]],), kwargs=settings)
            thread.start()
            text = "".join([part async for part in streamer])
            thread.join()
            return text

        expected = tiny.generate([[5, 6]], max_new_tokens=30, eos_token_id=None)[0, 2:]
        assert asyncio.run(main()) == Letters().decode(expected)

    def test_waiting_in_an_event_loop_ends(self):
        async def main():
            async for _ in AsyncTextIteratorStreamer(Letters(), timeout=0.01):
                pass

        with pytest.raises(TimeoutError):
            asyncio.run(main())
        with pytest.raises(InputError, match="inside of a coroutine. Received: no running event loop"):
            AsyncTextIteratorStreamer(Letters())

    def test_an_interruption_leaves_the_model_usable(self, tiny):
        class Impatient(longspan.BaseStreamer):
            count, ended = 0, False

            def put(self, value):
                self.count += 1
                if self.count == 5:
                    raise KeyboardInterrupt

            def end(self):
                self.ended = True

        before = tiny.generate([[5, 6]], max_new_tokens=12)
        tiny.train()
        frozen = tiny.model.layers[0].eval()
        streamer = Impatient()
        with pytest.raises(KeyboardInterrupt):
            tiny.generate([[5, 6]], max_new_tokens=12, streamer=streamer)
        assert streamer.ended
        assert tiny.training
        assert not frozen.training
        assert tiny.model.layers[1].training
        tiny.eval()
        assert torch.equal(tiny.generate([[5, 6]], max_new_tokens=12), before)

    def test_rows_and_beams_are_refused(self, tiny):
        streamer = longspan.TextStreamer(Letters())
        with pytest.raises(InputError, match="a streamer cannot be used with beams. Received: num_beams=2"):
            tiny.generate([[5]], streamer=streamer, num_beams=2)
        with pytest.raises(InputError, match="a text streamer takes one row. Received: 2 rows"):
            tiny.generate([[5], [6]], streamer=streamer)

    def test_words_are_whole_and_long_lines_stay_cheap(self, capsys):
        class Characters:
            longest = 0

            def decode(self, ids):
                self.longest = max(self.longest, len(ids))
                return "".join(map(chr, ids))

        text = "the quick brown fox " * 60 + "ends\nhere 你好 now"
        tokenizer, parts = Characters(), []
        streamer = longspan.TextStreamer(tokenizer)
        streamer.on_finalized_text = lambda part, stream_end=False: parts.append(part)
        for character in text:
            streamer.put(torch.tensor([ord(character)]))
        streamer.end()
        assert "".join(parts) == text
        assert tokenizer.longest <= 300
        assert parts[:2] == ["the ", "quick "]


class TestErrors:
    @pytest.mark.parametrize(
        ("inputs", "settings", "message"),
        [
            ([[5, 6, 7]], {"max_length": 3}, r"use max_new_tokens .* Received: max_length=3, a prompt of 3"),
            ([[]], {}, "a prompt must have at least one token; .* Received: an empty prompt"),
            ([[5], []], {}, "a prompt must have at least one token"),
            ([[5.0]], {}, r"prompts must be ids of the shape \(batch, tokens\).* Received: torch.float32"),
            ([5, 6], {}, r"prompts must be ids of the shape .* Received: torch.int64 of shape \(2,\)"),
            ([[5]], {"foo": 1}, "inputs of DiffLlamaForCausalLM. Received as well: foo"),
            ([[5]], {"assistant_model": 1}, "Received as well: assistant_model"),
            ([[5]], {"input_ids": [[5]]}, "two names of one argument. Received: both"),
            ([[5]], {"min_new_tokens": 9, "max_new_tokens": 3}, "must not exceed the greatest. Received: .*=9"),
            ([[5, 6]], {"attention_mask": [[0, 0]]}, r"attention_mask keeps. Received: none in rows \[0\]"),
            ([[5, 6]], {"attention_mask": [[1]]}, "attention_mask must have the shape"),
            ([[5, 6]], {"inputs_embeds": torch.zeros(1, 3, 32)}, "their lengths must agree. Received: inputs"),
            (None, {"inputs_embeds": torch.zeros(1, 0, 32)}, r"with a token. Received: \(1, 0, 32\)"),
            (None, {"inputs_embeds": torch.zeros(1, 2, 32), "encoder_no_repeat_ngram_size": 2}, "need the ids of"),
            ([[97]], {}, "input_ids must lie in"),
            ([[5]], {"sequence_bias": [[[97], 1.0]]}, r"below the vocabulary's size, 97. Received: \[97\]"),
        ],
    )  # fmt: skip
    def test_bad_input(self, tiny, inputs, settings, message):
        with pytest.raises(InputError, match=message):
            tiny.generate(inputs, **settings)

    def test_no_start(self, fresh):
        config = GenerationConfig(max_new_tokens=3)
        fresh.generation_config = GenerationConfig()
        with pytest.raises(InputError, match="without a prompt, generation needs bos_token_id"):
            fresh.generate(generation_config=config)
        with pytest.raises(InputError, match="generation_config must be a GenerationConfig. Received: dict"):
            fresh.generation_config = {}

    def test_sources(self, pairs):
        model = pairs["longt5-local"][0]
        with pytest.raises(InputError, match="one of input_ids, inputs_embeds and encoder_outputs .* Received: 0"):
            model.generate()
        with pytest.raises(InputError, match="Received: 2 of them"):
            model.generate([[5]], inputs_embeds=torch.zeros(1, 1, 36))
        model = longspan.LongT5ForConditionalGeneration(
            longspan.LongT5Config(**{**small_longt5(), "pad_token_id": None})
        )
        with pytest.raises(InputError, match="needs decoder_start_token_id. Received: None"):
            model.generate([[5]])

    def test_positions(self, pairs):
        bert = pairs["bert"][0]
        with pytest.warns(UserWarning, match="has 64 positions: after a prompt of 60 tokens it can generate 4, not 10"):
            assert bert.generate(torch.full((1, 60), 5), max_new_tokens=10, eos_token_id=None).shape == (1, 64)
        with pytest.raises(InputError, match="shorter than the model's 64 positions.* Received: 64 tokens"):
            bert.generate(torch.full((1, 64), 5))
        config = longspan.BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=9)
        with pytest.warns(UserWarning, match="attends in both directions"):
            model = longspan.BertLMHeadModel(config)
        with pytest.raises(InputError, match="generate needs a decoder: config.is_decoder=True. Received: is_decoder="):
            model.generate([[5]])
        assert not longspan.BertModel(config).can_generate()
        assert bert.can_generate()


def small_longt5():
    return {"vocab_size": 9, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}


def test_outputs_say_what_scores_were(fresh):
    wanted = {"output_scores": True, "output_logits": True, "return_dict_in_generate": True}
    output = fresh.generate([[5, 6]], max_new_tokens=6, no_repeat_ngram_size=1, eos_token_id=None, **wanted)
    assert len(output.scores) == len(output.logits) == 6
    full = fresh(output.sequences[:, :-1]).logits[0, 1:]
    assert_close(torch.cat(output.logits), full, "float32", "logits")
    assert torch.isinf(output.scores[3][0, output.sequences[0, :5]]).all()
    assert output.sequences[0, 2:].tolist() == torch.cat(output.scores).argmax(dim=-1).tolist()


def test_training_mode_does_not_matter(pairs):
    for family, (model, _) in pairs.items():
        ids, mask = prompts(2, left="longt5" not in family)
        expected = model.generate(ids, attention_mask=mask)
        model.train()
        assert torch.equal(model.generate(ids, attention_mask=mask), expected)
        assert model.training
        model.eval()


def test_transition_scores_need_scores(tiny):
    with pytest.raises(InputError, match="need the scores of the steps: generate with output_scores=True .*: scores="):
        tiny.compute_transition_scores(tiny.generate([[5]]), None)


class TestGenerationConfigOfAModel:
    def test_saved_and_loaded(self, fresh, tmp_path):
        longspan.DiffLlamaForCausalLM(fresh.config).save_pretrained(tmp_path / "plain")
        plain = longspan.DiffLlamaForCausalLM.from_pretrained(tmp_path / "plain")
        assert plain.generation_config == GenerationConfig.from_model_config(fresh.config)
        fresh.generation_config = GenerationConfig(max_new_tokens=3, eos_token_id=[2, 9])
        fresh.save_pretrained(tmp_path / "own")
        loaded = longspan.DiffLlamaForCausalLM.from_pretrained(tmp_path / "own")
        assert loaded.generation_config == GenerationConfig(max_new_tokens=3, eos_token_id=[2, 9])
        assert loaded.generate([[5, 6]], eos_token_id=None).shape == (1, 5)
        assert loaded.generate([[5, 6]], GenerationConfig(eos_token_id=None, max_new_tokens=7)).shape == (1, 9)

    def test_a_setting_chosen_at_its_default_wins(self, fresh):
        fresh.generation_config = GenerationConfig(num_beams=3, max_new_tokens=4, return_dict_in_generate=True)
        output = fresh.generate([[5]], GenerationConfig(num_beams=1))
        assert type(output).__name__ == "GenerateDecoderOnlyOutput"

    def test_an_unknown_wish_of_a_file_is_said_when_generating(self, fresh, tmp_path):
        fresh.save_pretrained(tmp_path)
        (tmp_path / "generation_config.json").write_text('{"penalty_alpha": 0.6, "transformers_version": "4.57.6"}')
        loaded = longspan.DiffLlamaForCausalLM.from_pretrained(tmp_path)
        with pytest.raises(ConfigError, match="penalty_alpha is not supported by longspan"):
            loaded.generate([[5]])
        loaded.save_pretrained(tmp_path / "again")
        assert "penalty_alpha" in (tmp_path / "again" / "generation_config.json").read_text()
        loaded.generation_config = GenerationConfig()
        assert loaded.generate([[5]]).shape[0] == 1
