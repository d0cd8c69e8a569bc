"""BERT in PyTorch: bad input, compilers, training."""

from __future__ import annotations

import copy
import logging
import math

import pytest
import torch
from tests.parity.torch_parity import randomise
from tests.tolerances import assert_close

import longspan
from longspan import BertConfig, BertModel
from longspan.errors import InputError
from longspan.ops import dispatch
from longspan.ops.dispatch import recording

SETTINGS = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 30,
    "max_position_embeddings": 20,
}
IDS = torch.arange(12).view(2, 6)


def make(name="BertModel", **settings):
    return randomise(getattr(longspan, name)(BertConfig(**{**SETTINGS, **settings})))


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "exactly one of input_ids and inputs_embeds must be given. Received: neither"),
            ({"input_ids": IDS, "inputs_embeds": torch.ones(2, 6, 24)}, "exactly one of .*Received: both"),
            ({"input_ids": IDS[0]}, r"input_ids must have the shape \(batch, tokens\). Received: \(6,\)"),
            ({"inputs_embeds": torch.ones(6, 24)}, r"inputs_embeds must have the shape \(batch, tokens, width\). Rec"),
            ({"input_ids": IDS + 55}, r"input_ids must lie in \[0, vocab_size=61\). Received: 61 at position \(1, 0\)"),
            ({"input_ids": -IDS}, r"input_ids must lie in \[0, vocab_size=61\). Received: -1 at position \(0, 1\)"),
            (
                {"input_ids": torch.zeros(1, 21).long()},
                "must not be longer than max_position_embeddings=20 tokens. Rece",
            ),
            ({"input_ids": IDS, "token_type_ids": IDS}, r"token_type_ids must lie in \[0, type_vocab_size=2\)"),
            ({"input_ids": IDS, "token_type_ids": IDS[:, :3]}, r"token_type_ids must have the shape .*\(2, 6\). Rece"),
            (
                {"input_ids": IDS, "position_ids": IDS * 2},
                r"position_ids must lie in \[0, max_position_embeddings=20\)",
            ),
            (
                {"input_ids": IDS, "attention_mask": torch.ones(2, 5)},
                r"attention_mask must have the shape.*\(2, 6\).*\(2, 5\)",
            ),
            ({"input_ids": IDS, "head_mask": torch.ones(3)}, r"head_mask must have the shape \(heads,\) = \(4,\) or"),
            (
                {"input_ids": IDS, "encoder_hidden_states": torch.ones(2, 3, 24)},
                "encoder_hidden_states needs a decoder with",
            ),
        ],
    )
    def test_messages(self, arguments, message):
        with pytest.raises(InputError, match=message):
            make()(**arguments)

    def test_the_message_on_length_says_what_to_do(self):
        with pytest.raises(InputError, match=r"21 tokens. Truncate it .*max_length=20.*windows.*more positions"):
            make()(torch.zeros(1, 21, dtype=torch.long))

    def test_a_padded_batch_with_a_wrong_mask(self):
        mask = torch.ones(2, 5)
        mask[0, 3:] = 0
        with pytest.raises(InputError, match="attention_mask must have the shape"):
            make()(IDS, attention_mask=mask)

    @pytest.mark.parametrize(
        ("settings", "extra", "message"),
        [
            (
                {"attn_implementation": "packed"},
                {"output_attentions": True},
                "'packed' cannot serve.*returned by 'eager'",
            ),
            (
                {"attn_implementation": "packed", "position_embedding_type": "relative_key"},
                {},
                "'packed' cannot.*relative",
            ),
            (
                {"attn_implementation": "packed", "is_decoder": True},
                {"use_cache": True},
                "'packed' cannot.*without a cache",
            ),
            (
                {"attn_implementation": "packed"},
                {"attention_mask": torch.ones(2, 6, 6)},
                r"'packed' cannot.*\(batch, tok",
            ),
        ],
    )
    def test_an_implementation_that_cannot_serve_says_why(self, settings, extra, message):
        with pytest.raises(InputError, match=message):
            make(**settings)(IDS, **extra)

    @pytest.mark.parametrize(
        ("settings", "extra", "reason"),
        [
            ({}, {"output_attentions": True}, "attention weights are returned by 'eager' only"),
            ({"position_embedding_type": "relative_key"}, {}, "relative position scores are computed by 'eager' only"),
        ],
    )
    def test_sdpa_that_cannot_serve_leaves_the_call_to_eager_with_a_warning(
        self, caplog, monkeypatch, settings, extra, reason
    ):
        monkeypatch.setattr(dispatch, "_announced", set())
        model = make(attn_implementation="sdpa", **settings)
        with recording() as ran, caplog.at_level(logging.WARNING, logger="longspan"):
            output = model(IDS, **extra)
        assert ran == ["eager"]
        [record] = caplog.records
        assert record.message.endswith(f"{reason}; 'eager' serves it")
        model.set_attn_implementation("eager")
        expected = model(IDS, **extra)
        assert output.keys() == expected.keys()
        assert torch.equal(output.last_hidden_state, expected.last_hidden_state)

    @pytest.mark.parametrize(
        ("name", "labels", "message"),
        [
            (
                "BertForSequenceClassification",
                torch.tensor([0, 2]),
                r"labels must lie in \[0, 2\) or be -100 .*Received: 2",
            ),
            ("BertForTokenClassification", IDS, r"labels must lie in \[0, 2\).*Received: 2 at position \(0, 2\)"),
            ("BertForTokenClassification", IDS[:, :4], r"labels must have the shape .* = \(2, 6\). Received: \(2, 4\)"),
            ("BertForMaskedLM", IDS - 2, r"labels must lie in \[0, 61\) or be -100 \(ignored\). Received: -2"),
            ("BertForNextSentencePrediction", torch.tensor([0, 3]), r"labels must lie in \[0, 2\)"),
        ],
    )
    def test_labels_out_of_range(self, name, labels, message):
        with pytest.raises(InputError, match=message):
            make(name)(IDS, labels=labels)

    def test_multi_label_targets_of_the_wrong_shape(self):
        model = make("BertForSequenceClassification", problem_type="multi_label_classification")
        with pytest.raises(InputError, match=r"labels must have the shape \(batch, num_labels\) = \(2, 2\)"):
            model(IDS, labels=torch.ones(2, 3))

    def test_choices_need_their_axis(self):
        with pytest.raises(
            InputError, match=r"must all have the shape \(batch, choices, ...\). Received: \[\(2, 6\)\]"
        ):
            make("BertForMultipleChoice")(IDS)

    def test_steps_beyond_the_positions(self):
        model = make("BertLMHeadModel", is_decoder=True)
        cache = model(torch.zeros(1, 19, dtype=torch.long)).past_key_values
        with pytest.raises(InputError, match="must not be longer than max_position_embeddings=20.*Received: 21 tokens"):
            model(torch.zeros(1, 2, dtype=torch.long), past_key_values=cache)

    def test_role_warnings(self):
        with pytest.warns(
            UserWarning, match="BertLMHeadModel attends in both directions unless config.is_decoder=True"
        ):
            make("BertLMHeadModel")
        with pytest.warns(UserWarning, match="BertForMaskedLM should see both directions"):
            make("BertForMaskedLM", is_decoder=True)


class TestCompilers:
    @pytest.mark.parametrize("implementation", ["auto", "eager", "sdpa"])
    def test_compile_gives_one_graph_for_any_mask(self, implementation):
        model = make(attn_implementation=implementation)
        graphs = []

        def backend(graph, _inputs):
            graphs.append(graph)
            return graph.forward

        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
        for length, padding in ((6, 0), (6, 3), (9, 4), (13, 1)):
            ids = torch.randint(0, 61, (2, length))
            mask = torch.ones(2, length, dtype=torch.long)
            mask[1, length - padding :] = 0
            expected = model(ids, attention_mask=mask)
            output = compiled(ids, attention_mask=mask)
            keep = mask[..., None]
            assert_close(output.last_hidden_state * keep, expected.last_hidden_state * keep)
            assert_close(output.pooler_output, expected.pooler_output)
        assert len(graphs) == 1

    def test_export_with_dynamic_batch_and_length(self):
        model = make()
        batch, length = torch.export.Dim("batch", max=64), torch.export.Dim("length", min=2, max=20)
        shape = {0: batch, 1: length}
        inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
        program = torch.export.export(model, (), inputs, dynamic_shapes=dict.fromkeys(inputs, shape), strict=False)
        ids = torch.randint(0, 61, (3, 17))
        mask = torch.ones_like(ids)
        mask[0, 5:] = 0
        output = program.module()(input_ids=ids, attention_mask=mask).last_hidden_state
        assert_close(output * mask[..., None], model(ids, attention_mask=mask).last_hidden_state * mask[..., None])

    def test_vmap_and_functional_gradients(self):
        model = make(attn_implementation="eager")
        parameters = dict(model.named_parameters())

        def loss(values, ids, mask):
            output = torch.func.functional_call(model, values, (ids[None],), {"attention_mask": mask[None]})
            return output.last_hidden_state.square().sum()

        mask = torch.ones(2, 6)
        per_example = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, IDS, mask)
        model(IDS, attention_mask=mask).last_hidden_state.square().sum().backward()
        for name, gradient in per_example.items():
            if not name.startswith("pooler"):
                assert_close(gradient.sum(dim=0), parameters[name].grad, what=name)


class TestTraining:
    @pytest.mark.parametrize("implementation", ["eager", "sdpa", "packed"])
    def test_dropout_acts_in_training_only(self, implementation):
        model = make(attn_implementation=implementation)
        assert torch.equal(model(IDS).last_hidden_state, model(IDS).last_hidden_state)
        model.train()
        with recording() as ran:
            assert not torch.equal(model(IDS).last_hidden_state, model(IDS).last_hidden_state)
        assert ran == [implementation] * 2
        # attention dropout alone is felt as well
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        steady = model(IDS).last_hidden_state
        assert torch.equal(model(IDS).last_hidden_state, steady)
        model.encoder.layer[0].attention.self.dropout.p = 0.5
        assert not torch.equal(model(IDS).last_hidden_state, steady)

    def test_every_parameter_gets_a_gradient(self):
        for name in ("BertForPreTraining", "BertForSequenceClassification"):
            model = make(name)
            labels = {"labels": IDS, "next_sentence_label": torch.tensor([0, 1])}
            model(IDS, **(labels if name == "BertForPreTraining" else {"labels": torch.tensor([0, 1])})).loss.backward()
            for key, parameter in model.named_parameters():
                assert parameter.grad is not None, key

    def test_a_small_model_learns(self):
        torch.manual_seed(0)
        model = make("BertForSequenceClassification", hidden_dropout_prob=0.0)
        model.apply(model._init_weights)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        ids = torch.randint(1, 61, (64, 10))
        labels = (ids == 7).any(dim=1).long()
        ids[labels == 0] = ids[labels == 0].clamp(min=8)
        ids[::2, 3], labels[::2] = 7, 1
        first = None
        for _ in range(40):
            loss = model(ids, labels=labels).loss
            first = loss.item() if first is None else first
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss.item() < 0.2 * first


def test_return_dict_false_drops_absent_fields_in_order():
    model = make(output_hidden_states=True)
    output, plain = model(IDS), model(IDS, return_dict=False)
    assert isinstance(plain, tuple)
    assert len(plain) == 3
    assert torch.equal(plain[0], output.last_hidden_state)
    assert torch.equal(plain[1], output.pooler_output)
    config = copy.deepcopy(model.config)
    config.return_dict = False
    assert isinstance(BertModel(config)(IDS), tuple)


def test_an_explicit_argument_wins_over_the_configuration():
    model = make(output_attentions=True)
    assert model(IDS).attentions is not None
    assert model(IDS, output_attentions=False).attentions is None


def test_the_causal_model_starts_near_the_uniform_loss():
    model = longspan.BertLMHeadModel(BertConfig(**SETTINGS, is_decoder=True))
    assert abs(model(IDS, labels=IDS).loss.item() - math.log(61)) < 0.3


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
def test_relative_positions_with_a_cache(kind):
    model = make("BertLMHeadModel", is_decoder=True, position_embedding_type=kind)
    full = model(IDS, use_cache=False).logits
    first = model(IDS[:, :3])
    second = model(IDS[:, 3:], past_key_values=first.past_key_values)
    assert_close(torch.cat([first.logits, second.logits], dim=1), full)


def test_padding_without_a_mask_is_said_once(caplog):
    model = BertModel(
        BertConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, vocab_size=9, pad_token_id=7)
    )
    ids = torch.tensor([[5, 6, 7]])
    for _ in range(2):
        model(ids)
        model(ids, attention_mask=torch.tensor([[1, 1, 0]]))
    said = [record.getMessage() for record in caplog.records if "no attention_mask" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("input_ids begin or end with pad_token_id=7")
