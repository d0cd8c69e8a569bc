"""DiffLlama in PyTorch: what the reference gets wrong, caches, causality, bad input, compilers, training."""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.parity.torch_parity import randomise
from tests.tolerances import assert_close, gradient_error

import longspan
from longspan import (
    DiffLlamaConfig,
    DiffLlamaForCausalLM,
    DiffLlamaForSequenceClassification,
    DiffLlamaModel,
    DynamicCache,
    StaticCache,
)
from longspan.errors import ConfigError, InputError
from longspan.fast import token_blocks
from longspan.ops.dispatch import recording

TINY = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 30,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 32,
}
IMPLEMENTATIONS = ("eager", "sdpa", "chunked")
IDS = torch.arange(1, 13).view(2, 6)


def make(cls=DiffLlamaModel, **changes):
    return randomise(cls(DiffLlamaConfig(**{**TINY, **changes})))


class TestConfig:
    def test_the_21_settings_and_their_defaults(self):
        expected = {
            "vocab_size": 32000,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "hidden_act": "silu",
            "max_position_embeddings": 2048,
            "initializer_range": 0.02,
            "rms_norm_eps": 1e-5,
            "use_cache": True,
            "pad_token_id": None,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "tie_word_embeddings": False,
            "rope_theta": 10000.0,
            "rope_scaling": None,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "lambda_std_dev": 0.1,
            "head_dim": 64,
        }
        config = DiffLlamaConfig()
        assert {name: getattr(config, name) for name in expected} == expected

    def test_a_model_gives_its_config_back(self):
        config = DiffLlamaConfig(**TINY)
        assert DiffLlamaModel(config).config is config

    def test_json_round_trip_keeps_every_key(self, tmp_path):
        scaling = {"rope_type": "yarn", "factor": 2.0, "beta_fast": 16.0, "truncate": False}
        config = DiffLlamaConfig(**TINY, rope_scaling=scaling, classifier_dropout=0.3)
        config.save_pretrained(tmp_path)
        again = DiffLlamaConfig.from_pretrained(tmp_path)
        assert again.rope_scaling == scaling
        assert again.classifier_dropout == 0.3
        again.name_or_path = config.name_or_path
        assert again == config

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"num_attention_heads": 5},
                "num_attention_heads must be even: maps are subtracted in pairs. Received: num_a",
            ),
            (
                {"num_key_value_heads": 4},
                "num_key_value_heads must divide num_attention_heads. Received: num_key_value_he",
            ),
            ({"num_key_value_heads": 0}, "num_key_value_heads must divide num_attention_heads"),
            (
                {"hidden_size": 25},
                "num_attention_heads must divide hidden_size unless head_dim is given. Received: hidden",
            ),
            ({"head_dim": 3}, "head_dim must be positive and even: rotary embeddings turn pairs. Received: head_dim=3"),
            ({"head_dim": -2}, "head_dim must be positive and even"),
            ({"attention_dropout": 1.0}, r"attention_dropout must lie in \[0, 1\)"),
            ({"rope_theta": 0.0}, "rope_theta must be positive"),
            ({"rope_scaling": {"rope_type": "linear", "factors": 2}}, "needs factor. Received: missing"),
            (
                {"rope_scaling": {"rope_type": "longrope", "factor": 2, "short_factor": [1], "long_factor": [1]}},
                "'short_factor'. must be a list of 2 numbers",
            ),
        ],
    )
    def test_broken_rules(self, changes, message):
        with pytest.raises(ConfigError, match=message):
            DiffLlamaConfig(**{**TINY, **changes})

    def test_a_head_size_of_its_own_need_not_divide(self):
        assert make(hidden_size=25, head_dim=8)(IDS).last_hidden_state.shape == (2, 6, 25)

    @pytest.mark.parametrize("kind", ["dynamic", "longrope"])
    def test_a_documented_key_without_effect_is_announced_once(self, kind, caplog):
        longspan.models.diffllama.config._warn_of_key_without_effect.cache_clear()
        lists = {"short_factor": [1.0, 1.0], "long_factor": [1.0, 1.0]} if kind == "longrope" else {}
        scaling = {"rope_type": kind, "factor": 2.0, "original_max_position_embeddings": 4, **lists}
        with caplog.at_level(logging.WARNING, logger="longspan"):
            configs = [DiffLlamaConfig(**TINY, rope_scaling=scaling) for _ in range(2)]
        assert len(caplog.records) == 1
        assert "['original_max_position_embeddings'] has no effect" in caplog.records[0].getMessage()
        assert configs[0].rope_scaling["original_max_position_embeddings"] == 4


class TestAttentions:
    def test_auto_returns_maps_when_they_are_asked_for(self, tmp_path):
        make().save_pretrained(tmp_path)
        model = DiffLlamaModel.from_pretrained(tmp_path)
        with recording() as ran:
            assert model(IDS).attentions is None
            maps = model(IDS, output_attentions=True).attentions
        assert ran == ["chunked"] * 2 + ["eager"] * 2
        assert [tuple(layer.shape) for layer in maps] == [(2, 6, 6, 6)] * 2
        assert_close(maps[0].sum(dim=-1), torch.ones(2, 6, 6))

    def test_differential_attentions_are_the_first_half_minus_lambda_times_the_second(self):
        model = make()
        output = model(IDS, output_attentions=True, output_differential_attentions=True)
        for index, (maps, difference) in enumerate(zip(output.attentions, output.differential_attentions, strict=True)):
            lam = model.layers[index].self_attn.lambda_full()
            assert difference.shape == (2, 3, 6, 6)
            assert_close(difference, maps[:, :3] - lam * maps[:, 3:])
        alone = model(IDS, output_differential_attentions=True)
        assert alone.attentions is None
        assert torch.equal(alone.differential_attentions[0], output.differential_attentions[0])

    @pytest.mark.parametrize(
        "name", ["ForCausalLM", "ForSequenceClassification", "ForQuestionAnswering", "ForTokenClassification"]
    )
    def test_every_class_hands_them_on(self, name):
        model = make(getattr(longspan, f"DiffLlama{name}"), pad_token_id=0)
        output = model(IDS, output_differential_attentions=True, output_hidden_states=True, output_attentions=True)
        assert len(output.differential_attentions) == len(output.attentions) == 2
        assert len(output.hidden_states) == 3
        assert output.to_tuple()[-1] is output.differential_attentions

    def test_lambda_follows_the_paper(self):
        attention = make().layers[1].self_attn
        q1, k1, q2, k2 = (getattr(attention, f"lambda_{name}").detach().double() for name in ("q1", "k1", "q2", "k2"))
        expected = math.exp(q1 @ k1) - math.exp(q2 @ k2) + 0.8 - 0.6 * math.exp(-0.3 * 1)
        assert attention.lambda_full().item() == pytest.approx(expected, abs=1e-6)

    def test_lambda_stays_float32_in_half_precision(self):
        model = make().to(torch.bfloat16)
        attention = model.layers[0].self_attn
        assert attention.lambda_full().dtype == torch.float32
        rounded = [getattr(attention, f"lambda_{name}").detach().double() for name in ("q1", "k1", "q2", "k2")]
        expected = math.exp(rounded[0] @ rounded[1]) - math.exp(rounded[2] @ rounded[3]) + 0.2
        assert attention.lambda_full().item() == pytest.approx(expected, abs=1e-6)

    def test_chunked_without_maps_raises_and_sdpa_leaves_them_to_eager(self):
        with pytest.raises(InputError, match="'chunked' cannot serve .*weights that were asked for"):
            make(attn_implementation="chunked")(IDS, output_attentions=True)
        models = (make(attn_implementation=name) for name in ("sdpa", "eager"))
        found, expected = (model(IDS, output_attentions=True).attentions for model in models)
        for mine, theirs in zip(found, expected, strict=True):
            assert torch.equal(mine, theirs)

    def test_transforms_of_torch_func_need_the_definition(self):
        model = make(attn_implementation="chunked")
        with pytest.raises(
            InputError, match="'chunked' cannot serve .*torch.func .vmap, grad. cannot see into its oper"
        ):
            torch.vmap(lambda ids: model(ids[None]).last_hidden_state)(IDS)

    def test_an_unknown_implementation(self):
        with pytest.raises(InputError, match="must be one of auto, chunked, eager, sdpa for .*Received: 'flash'"):
            make(attn_implementation="flash")


class TestPadding:
    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
    def test_no_padding_gives_nan_and_none_is_seen(self, implementation, dtype, side):
        model = make(attn_implementation=implementation).to(dtype)
        ids = torch.randint(1, 61, (4, 9))
        mask = torch.ones_like(ids)
        for row, real in enumerate((9, 4, 1, 0)):
            mask[row, slice(0, 9 - real) if side == "left" else slice(real, None)] = 0
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        with torch.no_grad():
            states = model(ids, mask, position_ids=positions).last_hidden_state
            assert states.isfinite().all()
            for row, real in enumerate((9, 4, 1)):
                keep = mask[row].bool()
                alone = model(ids[row, keep][None]).last_hidden_state
                name = str(dtype).removeprefix("torch.")
                assert_close(states[row, keep], alone[0], name, f"row of {real}")

    def test_masks_of_any_dtype(self):
        model = make()
        mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
        expected = model(IDS, mask).last_hidden_state
        for dtype in (torch.bool, torch.int32, torch.float32):
            assert torch.equal(model(IDS, mask.to(dtype)).last_hidden_state, expected)

    def test_a_mask_that_hides_nothing_changes_nothing(self):
        model = make()
        assert torch.equal(model(IDS, torch.ones_like(IDS)).last_hidden_state, model(IDS).last_hidden_state)


def left_padded():
    ids = torch.randint(1, 61, (3, 12), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[1, :4], mask[2, :7] = 0, 0
    return ids, mask


def right_padded():
    """Prompts padded on the right, continued behind the padding: what is hidden stays hidden."""
    ids, mask = torch.randint(1, 61, (3, 12), generator=torch.Generator().manual_seed(6)), torch.ones(3, 12).long()
    mask[1, 3:5], mask[2, 2:5] = 0, 0
    return ids, mask


class TestCaches:
    @pytest.mark.parametrize("padding", [left_padded, right_padded, None])
    @pytest.mark.parametrize("kind", ["dynamic", "legacy", "static"])
    @pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
    def test_cached_steps_equal_the_full_pass(self, implementation, kind, padding):
        model = make(DiffLlamaForCausalLM, attn_implementation=implementation)
        ids, mask = padding() if padding else (left_padded()[0], None)
        positions = None if mask is None else (mask.cumsum(dim=1) - 1).clamp(min=0)
        with torch.no_grad():
            full = model(ids, mask, positions, use_cache=False).logits
            cache = {"dynamic": None, "legacy": (), "static": StaticCache(model.config, 3, 16)}[kind]
            logits = []
            for start, stop in ((0, 5), (5, 6), (6, 9), (9, 10), (10, 12)):
                output = model(
                    ids[:, start:stop],
                    None if mask is None else mask[:, :stop],
                    None if positions is None else positions[:, start:stop],
                    past_key_values=cache,
                    use_cache=True,
                    cache_position=torch.arange(start, stop) if kind == "static" and start else None,
                )
                cache = output.past_key_values
                logits.append(output.logits)
        assert isinstance(cache, {"dynamic": DynamicCache, "legacy": tuple, "static": StaticCache}[kind])
        keep = 1 if mask is None else mask[..., None]
        assert_close(torch.cat(logits, dim=1) * keep, full * keep)

    def test_the_format_that_comes_is_the_format_that_goes(self):
        model = make()
        first = model(IDS).past_key_values
        assert isinstance(first, DynamicCache)
        legacy = model(IDS, past_key_values=first.to_legacy_cache()).past_key_values
        assert isinstance(legacy, tuple)
        assert [len(layer) for layer in legacy] == [2, 2]
        assert legacy[0][0].shape == (2, 3, 12, 4)
        again = model(IDS, past_key_values=first).past_key_values
        assert again is first
        assert torch.equal(again[1][1], legacy[1][1])

    def test_use_cache(self):
        model = make()
        assert model(IDS, use_cache=False).past_key_values is None
        assert make(use_cache=False)(IDS).past_key_values is None
        assert make(use_cache=False)(IDS, use_cache=True).past_key_values is not None

    def test_explicit_positions_in_a_growing_cache(self):
        model = make()
        first = model(IDS[:, :4]).past_key_values.to_legacy_cache()
        given = model(IDS[:, 4:], past_key_values=first, cache_position=torch.tensor([4, 5]))
        assert_close(given.last_hidden_state, model(IDS).last_hidden_state[:, 4:])

    def test_beams_follow_the_reordered_cache(self):
        model = make()
        cache = model(IDS).past_key_values
        cache.reorder_cache(torch.tensor([1, 0]))
        step = model(torch.tensor([[7], [9]]), past_key_values=cache).last_hidden_state
        full = model(torch.cat((IDS[[1, 0]], torch.tensor([[7], [9]])), dim=1)).last_hidden_state
        assert_close(step[:, 0], full[:, -1])

    def test_keys_of_a_compiled_static_step(self):
        model = make(DiffLlamaForCausalLM)
        cache = StaticCache(model.config, 2, 16, "cpu", torch.float32)
        graphs = []

        def backend(graph, _inputs):
            graphs.append(graph)
            return graph.forward

        torch._dynamo.reset()
        step = torch.compile(model, fullgraph=True, backend=backend)
        with torch.no_grad():
            full = model(IDS, use_cache=False).logits
            for place in range(6):
                output = step(IDS[:, place : place + 1], past_key_values=cache, cache_position=torch.tensor([place]))
                assert_close(output.logits[:, 0], full[:, place])
        assert len(graphs) == 1
        torch._dynamo.reset()


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_later_token_changes_no_earlier_output(data):
    num_kv = data.draw(st.integers(1, 3))
    kind = data.draw(st.sampled_from(["default", "linear", "yarn"]))
    model = make(
        DiffLlamaForCausalLM,
        num_key_value_heads=num_kv,
        num_attention_heads=num_kv * data.draw(st.sampled_from([2, 4])),
        head_dim=data.draw(st.sampled_from([2, 6])),
        attention_bias=data.draw(st.booleans()),
        num_hidden_layers=data.draw(st.integers(1, 3)),
        rope_scaling={"rope_type": kind, **({} if kind == "default" else {"factor": 2.0})},
        attn_implementation=data.draw(st.sampled_from(IMPLEMENTATIONS)),
    )
    length = data.draw(st.integers(2, 14))
    place = data.draw(st.integers(1, length - 1))
    ids = torch.randint(1, 60, (2, length))
    mask = torch.ones_like(ids)
    mask[1, : data.draw(st.integers(0, length - 1))] = 0
    changed = ids.clone()
    changed[:, place] += 1
    with torch.no_grad():
        before, after = (model(tokens, mask).logits for tokens in (ids, changed))
    assert torch.equal(before[:, :place], after[:, :place])
    assert not torch.equal(before[0, place:], after[0, place:])


class TestLastToken:
    STATES = (2, 6)

    def score_at(self, model, ids, places):
        states = model.model(ids).last_hidden_state
        return model.score(states[torch.arange(len(ids)), torch.tensor(places)])

    def test_the_rightmost_token_that_is_not_padding(self):
        model = make(DiffLlamaForSequenceClassification, pad_token_id=0)
        ids = torch.tensor([[5, 6, 7, 0, 0], [0, 0, 5, 6, 7], [5, 0, 6, 0, 0], [0, 0, 0, 0, 0]])
        assert_close(model(ids).logits, self.score_at(model, ids, [2, 4, 2, 0]))

    def test_without_a_padding_id_the_last_token_of_every_row(self):
        model = make(DiffLlamaForSequenceClassification)
        assert_close(model(IDS).logits, self.score_at(model, IDS, [5, 5]))

    def test_with_embedded_inputs_the_last_token_of_every_row(self):
        model = make(DiffLlamaForSequenceClassification, pad_token_id=0)
        ids = torch.tensor([[5, 6, 0], [5, 6, 7]])
        embedded = model.model.embed_tokens(ids)
        assert_close(model(inputs_embeds=embedded).logits, self.score_at(model, ids, [2, 2]))


def legacy(shape, *, layers=2, tensors=2):
    return tuple(tuple(torch.ones(shape) for _ in range(tensors)) for _ in range(layers))


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "exactly one of input_ids and inputs_embeds must be given. Received: neither"),
            ({"input_ids": IDS, "inputs_embeds": torch.ones(2, 6, 24)}, "exactly one of .*Received: both"),
            ({"input_ids": IDS + 55}, r"input_ids must lie in \[0, vocab_size=61\)"),
            (
                {"input_ids": IDS, "attention_mask": torch.ones(2, 5)},
                r"attention_mask must have .*\(batch, tokens in the cache \+ new tokens\) = \(2, 6\). Received: \(2, 5",
            ),
            ({"input_ids": IDS, "attention_mask": torch.ones(2, 1, 6, 6)}, r"attention_mask must .*\(2, 1, 6, 6\)"),
            ({"input_ids": IDS, "position_ids": IDS[:, :5]}, r"position_ids must .*\(2, 6\), or \(1, tok"),
            ({"input_ids": IDS, "cache_position": torch.arange(5)}, r"cache_position must .*\(tokens,\) = \(6,\)"),
            ({"input_ids": IDS, "past_key_values": legacy((2, 3, 4, 4), layers=1)}, "of the 2 layers. Received: 1"),
            ({"input_ids": IDS, "past_key_values": legacy((2, 3, 4, 4), tensors=3)}, "hold .key, value.. Received: 3"),
            ({"input_ids": IDS, "past_key_values": legacy((3, 3, 4, 4))}, "agree with the cache in batch, heads"),
            ({"input_ids": IDS, "past_key_values": legacy((2, 3, 4, 6))}, "agree with the cache in batch, heads"),
        ],
    )  # fmt: skip
    def test_messages(self, arguments, message):
        with pytest.raises(InputError, match=message):
            make()(**arguments)

    def test_a_mask_without_the_cached_tokens(self):
        model = make()
        cache = model(IDS).past_key_values
        with pytest.raises(InputError, match=r"tokens in the cache \+ new tokens\) = \(2, 7\). Received: \(2, 1\)"):
            model(IDS[:, :1], torch.ones(2, 1), past_key_values=cache)

    def test_static_caches_that_do_not_fit(self):
        model = make()
        cache = model(IDS[:, :4], past_key_values=StaticCache(model.config, 2, 4)).past_key_values
        with pytest.raises(InputError, match="cache_position must stay below max_cache_len=4"):
            model(IDS[:, :1], past_key_values=cache)
        with pytest.raises(InputError, match="max_cache_len=4 cannot take more rows or tokens"):
            model(IDS, past_key_values=StaticCache(model.config, 2, 4))
        with pytest.raises(InputError, match="each of the 2 layers. Received: 3"):
            model(IDS, past_key_values=StaticCache(DiffLlamaConfig(**{**TINY, "num_hidden_layers": 3}), 2, 8))
        with pytest.raises(InputError, match="attention_mask must have the shape .*up to 8.* Received: .2, 9."):
            model(IDS, torch.ones(2, 9), past_key_values=StaticCache(model.config, 2, 8))

    def test_logits_to_keep(self):
        model = make(DiffLlamaForCausalLM)
        with pytest.raises(
            InputError, match="logits_to_keep must be an int or a 1-D tensor of indices. Received: 2 axes"
        ):
            model(IDS, logits_to_keep=torch.ones(1, 1).long())
        with pytest.raises(InputError, match="logits_to_keep must be 0 .all. or positive. Received: -1"):
            model(IDS, logits_to_keep=-1)
        with pytest.raises(InputError, match="labels must have the shape"):
            model(IDS, labels=IDS, logits_to_keep=2)

    def test_labels_out_of_range(self):
        with pytest.raises(InputError, match=r"labels must lie in \[0, 61\) or be -100 .ignored.. Received: 61"):
            make(DiffLlamaForCausalLM)(IDS, labels=torch.full((2, 6), 61))


class TestPrecision:
    def test_frequencies_survive_a_change_of_dtype(self):
        model = make(rope_scaling={"rope_type": "linear", "factor": 3.0})
        before = model.rotary_emb.inv_freq.clone()
        for change in (model.half, model.bfloat16, model.double):
            change()
            assert model.rotary_emb.inv_freq.dtype == torch.float32
            assert torch.equal(model.rotary_emb.inv_freq, before)

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    @pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
    def test_half_precision_stays_close(self, implementation, dtype):
        model = make(attn_implementation=implementation)
        ids = torch.randint(1, 61, (2, 30))
        with torch.no_grad():
            expected = model(ids).last_hidden_state
            output = model.to(getattr(torch, dtype))(ids).last_hidden_state
        # two layers of roundings: twice the tolerance of one
        difference = (output.float() - expected).abs().max() / expected.abs().max()
        assert difference < {"bfloat16": 4e-2, "float16": 8e-3}[dtype]

    def test_autocast(self):
        model = make()
        expected = model(IDS).last_hidden_state
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(IDS, use_cache=False).last_hidden_state
        assert ((output - expected).abs().max() / expected.abs().max()) < 4e-2

    def test_blocks_of_the_feed_forward_change_nothing(self, monkeypatch):
        model = make()
        ids = torch.randint(1, 61, (2, 100))
        with torch.no_grad():
            whole = model(ids).last_hidden_state
            monkeypatch.setattr(token_blocks, "BLOCK_BYTES", 1)
            assert_close(model(ids).last_hidden_state, whole)
        assert_close(model(ids).last_hidden_state, whole)

    @pytest.mark.parametrize("activation", ["silu", "linear"])
    def test_hooks_see_unchanged_projections(self, activation):
        """The path without gradients reuses memory, but never that of a module's output."""
        model, seen = make(hidden_act=activation), []
        projections = (model.layers[0].mlp.gate_proj, model.layers[0].mlp.up_proj)
        hooks = [module.register_forward_hook(lambda *args: seen.append(args[2])) for module in projections]
        with torch.no_grad():
            model(IDS)
        inside = [tensor.clone() for tensor in seen]
        seen.clear()
        model(IDS)
        for hook in hooks:
            hook.remove()
        for first, second in zip(inside, seen, strict=True):
            assert_close(first, second)


class TestCompilers:
    @pytest.mark.parametrize("implementation", ["auto", "eager", "sdpa"])
    def test_compile_gives_one_graph_for_any_length_and_mask(self, implementation):
        model = make(attn_implementation=implementation)
        graphs = []

        def backend(graph, _inputs):
            graphs.append(graph)
            return graph.forward

        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
        for length, padding in ((7, 0), (7, 3), (9, 4), (13, 1)):
            ids = torch.randint(1, 61, (2, length))
            mask = torch.ones_like(ids)
            mask[1, :padding] = 0
            expected = model(ids, mask, use_cache=False).last_hidden_state
            output = compiled(ids, mask, use_cache=False).last_hidden_state
            assert_close(output * mask[..., None], expected * mask[..., None])
        assert len(graphs) == 1
        torch._dynamo.reset()

    @pytest.mark.parametrize("rope", ["dynamic", "longrope"])
    def test_compile_with_frequencies_that_depend_on_the_length(self, rope):
        lists = {"short_factor": [1.0, 1.3], "long_factor": [2.0, 5.0]} if rope == "longrope" else {}
        model = make(max_position_embeddings=10, rope_scaling={"rope_type": rope, "factor": 2.0, **lists})
        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
        for length in (7, 13):
            ids = torch.randint(1, 61, (2, length))
            assert_close(compiled(ids).last_hidden_state, model(ids).last_hidden_state)
        torch._dynamo.reset()

    def test_compiled_gradients(self):
        model = make(DiffLlamaForCausalLM)
        gradients = []
        for call in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
            model.zero_grad()
            call(IDS, labels=IDS, use_cache=False).loss.backward()
            gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        for name, expected in gradients[0].items():
            assert gradient_error(gradients[1][name], expected) < 1e-4, name
        torch._dynamo.reset()

    @pytest.mark.parametrize("implementation", ["auto", "eager"])
    def test_export_with_dynamic_batch_and_length(self, implementation):
        model = make(DiffLlamaForCausalLM, attn_implementation=implementation)
        batch, length = torch.export.Dim("batch", max=64), torch.export.Dim("length", min=2, max=128)
        inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
        shapes = {key: {0: batch, 1: length} for key in inputs}
        program = torch.export.export(
            model, (), {**inputs, "use_cache": False}, dynamic_shapes={**shapes, "use_cache": None}, strict=False
        )
        ids = torch.randint(1, 61, (3, 47))
        mask = torch.ones_like(ids)
        mask[0, :5] = 0
        output = program.module()(input_ids=ids, attention_mask=mask, use_cache=False).logits
        assert_close(output * mask[..., None], model(ids, mask).logits * mask[..., None])

    @pytest.mark.parametrize("implementation", ["auto", "eager"])
    def test_vmap_and_functional_gradients(self, implementation):
        model = make(attn_implementation=implementation)
        parameters = dict(model.named_parameters())

        def loss(values, ids):
            return torch.func.functional_call(model, values, (ids[None],)).last_hidden_state.square().sum()

        per_example = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, IDS)
        model(IDS).last_hidden_state.square().sum().backward()
        for name, gradient in per_example.items():
            assert gradient_error(gradient.sum(dim=0), parameters[name].grad) < 1e-4, name


class TestTraining:
    @pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
    def test_attention_dropout_acts_in_training_only(self, implementation):
        model = make(attn_implementation=implementation, attention_dropout=0.3)
        assert torch.equal(model(IDS).last_hidden_state, model(IDS).last_hidden_state)
        model.train()
        assert not torch.equal(model(IDS).last_hidden_state, model(IDS).last_hidden_state)

    @pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
    def test_checkpointing_gives_the_same_gradients(self, implementation):
        model = make(DiffLlamaForCausalLM, attn_implementation=implementation, attention_dropout=0.3).train()
        gradients = []
        for enabled in (False, True):
            if enabled:
                model.gradient_checkpointing_enable()
                assert model.is_gradient_checkpointing
            model.zero_grad()
            torch.manual_seed(3)
            output = model(IDS, labels=IDS)
            assert (output.past_key_values is None) == enabled
            output.loss.backward()
            gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        for name, expected in gradients[0].items():
            assert torch.equal(gradients[1][name], expected), name

    def test_an_explicit_cache_is_refused_aloud_while_checkpointing(self):
        model = make().train()
        model.gradient_checkpointing_enable()
        with pytest.warns(UserWarning, match="use_cache=True cannot be used with gradient checkpointing"):
            assert model(IDS, use_cache=True).past_key_values is None

    @pytest.mark.parametrize("name", ["ForCausalLM", "ForTokenClassification", "ForSequenceClassification"])
    def test_every_parameter_gets_a_gradient(self, name):
        model = make(getattr(longspan, f"DiffLlama{name}"))
        labels = torch.tensor([0, 1]) if name == "ForSequenceClassification" else IDS % 2
        model(IDS, labels=labels).loss.backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.abs().max() > 0, key

    def test_initialisation(self):
        model = DiffLlamaForCausalLM(DiffLlamaConfig(**{**TINY, "hidden_size": 96}, lambda_std_dev=0.5, pad_token_id=3))
        lambdas = torch.cat([p.detach() for name, p in model.named_parameters() if ".lambda_" in name])
        assert 0.35 < lambdas.std() < 0.65
        assert 0.018 < model.lm_head.weight.std() < 0.022
        assert (model.model.norm.weight == 1).all()
        assert (model.model.embed_tokens.weight[3] == 0).all()
        assert abs(model(IDS, labels=IDS).loss.item() - math.log(61)) < 0.3

    def test_a_small_model_learns_to_copy(self):
        model = DiffLlamaForCausalLM(DiffLlamaConfig(**{**TINY, "hidden_size": 48}))
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for _ in range(80):
            half = torch.randint(1, 61, (16, 6))
            ids = torch.cat((half, half), dim=1)
            labels = ids.clone()
            labels[:, :6] = -100
            loss = model(ids, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss.item() < 0.5 * math.log(60)


class TestPruning:
    def silence(self, model, layer, heads):
        """The same effect without removing anything: the output projection does not read the heads."""
        weight = model.layers[layer].self_attn.o_proj.weight
        for head in heads:
            weight.data[:, 8 * head : 8 * head + 8] = 0
        return model

    @pytest.mark.parametrize("num_kv_heads", [1, 2, 3, 6])
    def test_removing_a_head_equals_silencing_it(self, num_kv_heads):
        model = make(num_key_value_heads=num_kv_heads)
        before = model.num_parameters()
        model.prune_heads({1: [0, 2]})
        expected = self.silence(make(num_key_value_heads=num_kv_heads), 1, [0, 2])
        assert_close(model(IDS).last_hidden_state, expected(IDS).last_hidden_state)
        if num_kv_heads > 1:
            assert model.num_parameters() < before
        assert model(IDS, output_attentions=True).attentions[1].shape == (2, 2, 6, 6)

    def test_one_after_the_other_equals_both_at_once_and_survives_a_file(self, tmp_path):
        one, both = make(), make()
        one.prune_heads({0: [2]})
        one.prune_heads({0: [1], 1: [0]})
        both.prune_heads({0: [1, 2], 1: [0]})
        one.save_pretrained(tmp_path)
        loaded = DiffLlamaModel.from_pretrained(tmp_path)
        assert loaded.config.pruned_heads == {0: [1, 2], 1: [0]}
        for model in (both, loaded):
            assert_close(model(IDS).last_hidden_state, one(IDS).last_hidden_state)

    def test_errors(self):
        model = make()
        with pytest.raises(InputError, match=r"layers to prune must lie in \[0, 2\). Received: 2"):
            model.prune_heads({2: [0]})
        with pytest.raises(InputError, match=r"heads to prune must lie in \[0, 3\). Received: \[3\]"):
            model.prune_heads({0: [3]})
        with pytest.raises(InputError, match="at least one of 3 attention heads must remain"):
            model.prune_heads({0: [0, 1, 2]})


def test_tokens_can_be_added():
    model = make(DiffLlamaForCausalLM, tie_word_embeddings=True)
    model.resize_token_embeddings(70)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model(torch.tensor([[69]])).logits.shape == (1, 1, 70)


def test_return_dict_false_drops_absent_fields_in_order():
    model = make(output_hidden_states=True)
    output, plain = model(IDS, use_cache=False), model(IDS, use_cache=False, return_dict=False)
    assert isinstance(plain, tuple)
    assert len(plain) == 2
    assert torch.equal(plain[0], output.last_hidden_state)
    assert isinstance(make(return_dict=False)(IDS), tuple)


def test_question_positions_outside_the_sequence_do_not_count():
    model = make(longspan.DiffLlamaForQuestionAnswering)
    inside = model(IDS[:1], start_positions=torch.tensor([2]), end_positions=torch.tensor([3])).loss
    both = model(IDS[[0, 0]], start_positions=torch.tensor([2, 99]), end_positions=torch.tensor([3, 6])).loss
    assert_close(inside, both)
    assert model(IDS, start_positions=torch.tensor([2, 3])).loss is None


def test_the_example_of_the_page_runs():
    page = (Path(__file__).parents[2] / "docs" / "diffllama.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(compile(example, "docs/diffllama.md", "exec"), {})
