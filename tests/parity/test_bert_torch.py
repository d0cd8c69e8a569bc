"""Every PyTorch BERT class against the reference on the same weights: outputs, losses, gradients, files."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
import transformers
from tests.parity.torch_parity import compare_gradients, compare_outputs, randomise
from tests.tolerances import assert_close

import longspan
from longspan.errors import InputError
from longspan.ops.dispatch import recording

SETTINGS = {
    "vocab_size": 97,
    "hidden_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 50,
    "max_position_embeddings": 29,
    "type_vocab_size": 3,
    "num_labels": 5,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
CLASSES = (
    "BertModel",
    "BertForPreTraining",
    "BertLMHeadModel",
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForMultipleChoice",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
)
#: rows of 19 tokens: full, right-padded, with holes behind the first token and in the middle
ROWS, LENGTH = 4, 19


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A function that gives (our model, reference model) of a class on equal weights, made once each."""
    made = {}

    def make(name, **settings):
        key = (name, *sorted(settings.items()))
        if key not in made:
            if name == "BertForQuestionAnswering":
                settings["num_labels"] = 2  # the reference makes a head of num_labels and unpacks two
            config = transformers.BertConfig(**{**SETTINGS, **settings}, attn_implementation="eager")
            reference = randomise(getattr(transformers, name)(config))
            directory = tmp_path_factory.mktemp(name)
            reference.save_pretrained(directory)
            made[key] = (getattr(longspan, name).from_pretrained(directory), reference)
        return made[key]

    return make


def attention_mask():
    mask = torch.ones(ROWS, LENGTH, dtype=torch.long)
    mask[1, 11:] = 0
    mask[2, 1:7] = 0  # pooled heads read the first token, so that one is real
    mask[3, 4:6] = 0
    return mask


def next_token_labels(ids, mask):
    """Labels of the real tokens that a real token precedes: what is predicted at padding is unspecified."""
    after_real = torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], dim=1)
    return ids.masked_fill(mask * after_real == 0, -100)


def inputs_of(name):
    """Inputs and labels of a class; labels at padding are ignored."""
    torch.manual_seed(1)
    shape = (2, 2, LENGTH) if name == "BertForMultipleChoice" else (ROWS, LENGTH)
    inputs = {
        "input_ids": torch.randint(0, 97, shape),
        "token_type_ids": torch.randint(0, 3, shape),
        "attention_mask": attention_mask().view(shape),
    }
    per_token = torch.randint(0, 5, shape).masked_fill(inputs["attention_mask"] == 0, -100)
    if name in ("BertForMaskedLM", "BertLMHeadModel", "BertForPreTraining", "BertForTokenClassification"):
        inputs["labels"] = per_token
    if name == "BertLMHeadModel":
        inputs["labels"] = next_token_labels(inputs["input_ids"], inputs["attention_mask"])
    if name == "BertForPreTraining":
        inputs["next_sentence_label"] = torch.tensor([0, 1, 1, 0])
    if name == "BertForNextSentencePrediction":
        inputs["labels"] = torch.tensor([0, 1, 1, 0])
    if name == "BertForSequenceClassification":
        inputs["labels"] = torch.tensor([4, 0, 2, 2])
    if name == "BertForMultipleChoice":
        inputs["labels"] = torch.tensor([1, 0])
    if name == "BertForQuestionAnswering":
        inputs["start_positions"] = torch.tensor([3, 0, 99, 8])  # 99 lies outside and does not count
        inputs["end_positions"] = torch.tensor([5, 2, 99, 18])
    return inputs


@pytest.mark.filterwarnings("ignore:BertLMHeadModel attends in both directions")
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "packed"])
@pytest.mark.parametrize("name", CLASSES)
def test_outputs_losses_and_gradients_equal_the_reference(pair, name, implementation):
    ours, reference = pair(name)
    ours.config.attn_implementation = implementation
    ours.zero_grad()
    reference.zero_grad()
    inputs = inputs_of(name)
    inputs["head_mask"] = torch.tensor([[1, 0, 1], [1, 1, 1], [0, 1, 1]]).float()
    inputs |= {"output_hidden_states": True, "output_attentions": implementation == "eager"}
    if (name, implementation) == ("BertForQuestionAnswering", "packed"):
        with pytest.raises(
            InputError, match="cannot serve this call of BERT attention: the states at padding are needed"
        ):
            ours(**inputs)
        del inputs["start_positions"], inputs["end_positions"]
    with recording() as ran:
        output = ours(**inputs)
    assert ran == [implementation]
    expected = reference(**inputs)
    keep = attention_mask().bool()
    compare_outputs(output, expected, keep=keep)
    for result in (output, expected):
        _loss(result, keep).backward()
    compare_gradients(ours, reference)


def _loss(output, keep):
    """The model's own loss; for the backbone, a function of all real states and pooled states."""
    if "loss" in output:
        return output.loss
    if "start_logits" in output:
        return ((output.start_logits * output.end_logits) * keep).square().sum()
    weight = torch.linspace(-1, 1, output.last_hidden_state.shape[-1])
    return (output.last_hidden_state * keep[..., None] * weight).square().sum() + (output.pooler_output * weight).sum()


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "packed"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_and_dead_rows(pair, implementation, side):
    ours, reference = pair("BertModel")
    ours.config.attn_implementation = implementation
    mask = torch.ones(ROWS, LENGTH, dtype=torch.long)
    for row, real in enumerate((19, 1, 8, 0)):  # the last row is padding only
        dead = slice(0, LENGTH - real) if side == "left" else slice(real, None)
        mask[row, dead] = 0
    ids = torch.randint(0, 97, (ROWS, LENGTH))
    with torch.no_grad():
        output = ours(ids, attention_mask=mask)
        expected = reference(ids, attention_mask=mask)
    assert torch.isfinite(output.last_hidden_state).all()
    keep = mask[..., None].bool()
    assert_close(output.last_hidden_state * keep, expected.last_hidden_state * keep)


def test_auto_packs_padded_batches_and_only_those(pair):
    ours, _ = pair("BertModel")
    ours.config.attn_implementation = "auto"
    ids, mask = torch.randint(0, 97, (ROWS, LENGTH)), attention_mask()
    cases = [
        ({"attention_mask": mask}, "packed"),
        ({"attention_mask": torch.ones_like(mask)}, "sdpa"),
        ({}, "sdpa"),
        ({"attention_mask": mask, "output_attentions": True}, "eager"),
    ]
    results = []
    for extra, wanted in cases:
        with recording() as ran, torch.no_grad():
            results.append(ours(ids, **extra).last_hidden_state)
        assert ran == [wanted]
    assert_close(results[1], results[2])
    keep = mask[..., None]
    assert_close(results[0] * keep, results[3] * keep)


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
def test_relative_positions(pair, kind):
    ours, reference = pair("BertForTokenClassification", position_embedding_type=kind)
    inputs = inputs_of("BertForTokenClassification") | {"output_attentions": True, "output_hidden_states": True}
    ours.zero_grad()
    reference.zero_grad()
    with recording() as ran:
        output = ours(**inputs)
    assert ran == ["eager"]
    expected = reference(**inputs)
    compare_outputs(output, expected, keep=attention_mask().bool())
    output.loss.backward()
    expected.loss.backward()
    compare_gradients(ours, reference)


def test_embedded_inputs_positions_and_chunks(pair):
    ours, reference = pair("BertModel", chunk_size_feed_forward=19)
    ours.config.attn_implementation = "auto"
    inputs = {
        "inputs_embeds": torch.randn(ROWS, LENGTH, 36),
        "position_ids": torch.randint(0, 29, (ROWS, LENGTH)),
        "attention_mask": attention_mask(),
    }
    compare_outputs(ours(**inputs), reference(**inputs), keep=attention_mask().bool())


def test_a_mask_for_every_query(pair):
    ours, reference = pair("BertModel")
    ours.config.attn_implementation = "auto"
    ids, mask = torch.randint(0, 97, (2, 9)), torch.rand(2, 9, 9) > 0.4
    mask |= torch.eye(9, dtype=torch.bool)
    compare_outputs(ours(ids, attention_mask=mask), reference(ids, attention_mask=mask.long()))


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification", None])
def test_losses_by_problem_type(pair, problem):
    num_labels = 1 if problem == "regression" else 5
    ours, reference = pair("BertForSequenceClassification", num_labels=num_labels)
    ours.config.problem_type = reference.config.problem_type = problem
    labels = {
        "regression": torch.randn(ROWS),
        "multi_label_classification": torch.randint(0, 2, (ROWS, 5)).float(),
        None: torch.randint(0, 5, (ROWS,)),
    }[problem]
    ids = torch.randint(0, 97, (ROWS, LENGTH))
    compare_outputs(ours(ids, labels=labels), reference(ids, labels=labels))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
class TestDecoder:
    """Causal attention, cross-attention and caches."""

    SETTINGS: ClassVar = {"is_decoder": True, "add_cross_attention": True}

    def inputs(self):
        torch.manual_seed(2)
        mask = torch.ones(3, 11, dtype=torch.long)
        mask[1, :4] = 0  # prompts of unequal length are padded on the left
        encoder_mask = torch.ones(3, 7, dtype=torch.long)
        encoder_mask[2, 5:] = 0
        ids = torch.randint(0, 97, (3, 11))
        return ids, mask, {"encoder_hidden_states": torch.randn(3, 7, 36), "encoder_attention_mask": encoder_mask}

    def test_outputs_and_gradients(self, pair, implementation):
        ours, reference = pair("BertLMHeadModel", **self.SETTINGS)
        ours.config.attn_implementation = implementation
        ours.zero_grad()
        reference.zero_grad()
        ids, mask, encoder = self.inputs()
        inputs = {"labels": next_token_labels(ids, mask), "output_hidden_states": True, **encoder}
        inputs["output_attentions"] = implementation == "eager"
        output = ours(ids, attention_mask=mask, **inputs)
        expected = reference(ids, attention_mask=mask, **inputs)
        compare_outputs(output, expected, keep=mask.bool())
        output.loss.backward()
        expected.loss.backward()
        compare_gradients(ours, reference)

    @pytest.mark.parametrize("kind", ["dynamic", "legacy", "static"])
    def test_cached_steps_equal_the_full_pass(self, pair, implementation, kind):
        ours, reference = pair("BertLMHeadModel", **self.SETTINGS)
        ours.config.attn_implementation = implementation
        ids, mask, encoder = self.inputs()
        with torch.no_grad():
            full = reference(ids, attention_mask=mask, **encoder, use_cache=False).logits
            logits, cache = [], self._empty_cache(kind, ours.config)
            for start, stop in ((0, 6), (6, 8), (8, 9), (9, 10), (10, 11)):
                output = ours(
                    ids[:, start:stop], mask[:, :stop], past_key_values=cache, use_cache=True, **encoder,
                    position_ids=torch.arange(start, stop)[None],
                )  # fmt: skip
                cache = output.past_key_values
                if kind == "legacy":
                    cache = cache if isinstance(cache, tuple) else cache.to_legacy_cache()
                    assert len(cache[0]) == 4
                logits.append(output.logits)
        keep = mask[..., None]
        assert_close(torch.cat(logits, dim=1) * keep, full * keep)

    @staticmethod
    def _empty_cache(kind, config):
        if kind != "static":
            return None
        return longspan.EncoderDecoderCache(longspan.StaticCache(config, max_cache_len=16), longspan.DynamicCache())

    def test_without_cross_attention(self, pair, implementation):
        ours, reference = pair("BertLMHeadModel", is_decoder=True)
        ours.config.attn_implementation = implementation
        ids = torch.randint(0, 97, (2, 9))
        with torch.no_grad():
            expected = reference(ids, use_cache=False).logits
            first = ours(ids[:, :5])
            second = ours(ids[:, 5:], past_key_values=first.past_key_values)
            kept = ours(ids, logits_to_keep=2, use_cache=False).logits
        assert isinstance(first.past_key_values, longspan.DynamicCache)
        assert_close(torch.cat([first.logits, second.logits], dim=1), expected)
        assert_close(kept, expected[:, -2:])


def test_packed_decoder_is_causal(pair):
    ours, reference = pair("BertLMHeadModel", is_decoder=True)
    ours.config.attn_implementation = "packed"
    ids, mask = torch.randint(0, 97, (ROWS, LENGTH)), attention_mask()
    with recording() as ran, torch.no_grad():
        output = ours(ids, attention_mask=mask, use_cache=False).logits
        expected = reference(ids, attention_mask=mask, use_cache=False).logits
    assert ran == ["packed"]
    assert_close(output * mask[..., None], expected * mask[..., None])


@pytest.mark.filterwarnings("ignore:BertLMHeadModel attends in both directions")
@pytest.mark.parametrize("name", CLASSES)
def test_saved_files_load_in_the_reference_byte_for_byte(pair, name, tmp_path):
    ours, reference = pair(name)
    ours.save_pretrained(tmp_path / "ours")
    back, info = getattr(transformers, name).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert info["missing_keys"] == []
    assert info["unexpected_keys"] == []
    state, expected = back.state_dict(), reference.state_dict()
    assert state.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(state[key], tensor), key
    assert back.config.num_labels == reference.config.num_labels
    again = getattr(longspan, name).from_pretrained(tmp_path / "ours")
    for key, tensor in ours.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "packed"])
def test_half_precision_has_no_nan_and_stays_close(pair, dtype, implementation):
    ours, reference = pair("BertModel")
    half = longspan.BertModel(ours.config).eval()
    half.load_state_dict(ours.state_dict())
    half.to(getattr(torch, dtype))
    half.config.attn_implementation = implementation
    mask = attention_mask()
    mask[0] = 0  # a fully masked row
    ids = torch.randint(0, 97, (ROWS, LENGTH))
    with torch.no_grad():
        output = half(ids, attention_mask=mask).last_hidden_state
        expected = reference(ids, attention_mask=mask).last_hidden_state
    assert output.dtype == getattr(torch, dtype)
    assert torch.isfinite(output).all()
    keep = mask[..., None]
    # three layers of roundings: errors grow beyond one rounding of the table
    difference = ((output.float() - expected) * keep).abs().max() / expected.abs().max()
    assert difference < {"bfloat16": 6e-2, "float16": 8e-3}[dtype]
