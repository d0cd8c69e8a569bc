"""The token steps of BERT, RoBERTa, DiffLlama, LongT5 and MEGA give what `forward` gives, or step aside."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from tests.generation.conftest import FAMILIES as PAIRED
from tests.generation.conftest import MEGA, prompts
from tests.parity.torch_parity import randomise
from tests.tolerances import assert_close

import longspan
from longspan.fast import few_rows, token_step
from longspan.fast.bert_step import BertStep
from longspan.fast.diffllama_step import DiffLlamaStep
from longspan.fast.longt5_step import LongT5Step
from longspan.fast.mega_step import MegaStep

FAMILIES = {
    **PAIRED,
    "roberta": ("RobertaForCausalLM", transformers.RobertaConfig, {**PAIRED["bert"][2], "type_vocab_size": 1}),
    "xlm-roberta": ("XLMRobertaForCausalLM", transformers.XLMRobertaConfig, {**PAIRED["bert"][2], "pad_token_id": 2}),
    "mega": ("MegaForCausalLM", transformers.MegaConfig, MEGA),
}
LEAN = {
    "bert": BertStep,
    "diffllama": DiffLlamaStep,
    "longt5-local": LongT5Step,
    "mega": MegaStep,
    "roberta": BertStep,
    "xlm-roberta": BertStep,
}
OWN = {
    "bert": {"hidden_act"},
    "mega": {"attention_activation"},
    "roberta": set(),
    "xlm-roberta": set(),
    "diffllama": {"rope_scaling", "attention_bias"},
    "longt5-local": {"feed_forward_proj"},
}
VARIANTS = {
    "untied, another activation": {"hidden_act": "gelu_new", "tie_word_embeddings": False},
    "plain": {},
    "dynamic rotary tables": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 16},
    "biases and one key head": {"attention_bias": True, "num_key_value_heads": 1},
    "plain feed-forward layers": {"feed_forward_proj": "relu", "tie_word_embeddings": False},
    "gated feed-forward layers": {"feed_forward_proj": "gated-gelu"},
    "no chunks, root mean square": {
        "attention_activation": "softmax",
        "use_chunking": False,
        "chunk_size": -1,
        "normalization_type": "rmsnorm",
        "norm_affine": False,
    },
    "laplace, a bias by distance, norms behind": {
        "attention_activation": "laplace",
        "relative_positional_bias": "simple",
        "max_positions": 48,
        "normalization_type": "layernorm",
        "normalize_before_mega": False,
        "normalize_before_ffn": False,
        "add_token_type_embeddings": True,
    },
    "squares, no feed-forward layers": {
        "attention_activation": "relu2",
        "use_normalized_ffn": False,
        "add_lm_hidden_dense_layer": False,
    },
}
CASES = [(f, name) for f in LEAN for name, given in VARIANTS.items() if not given or OWN[f] & set(given)]


def make(family, **settings):
    name, config, defaults = FAMILIES[family]
    kind = getattr(longspan, config.__name__)
    settings = {**defaults, "eos_token_id": None, **settings}
    return randomise(
        getattr(longspan, name)(kind(**settings)), scale=0.1 if family.startswith("longt5") else 0.2
    ).eval()


@pytest.fixture
def made(monkeypatch):
    """Collects the token steps that models make."""
    steps = []
    for kind in set(LEAN.values()):
        original = kind.make.__func__

        def spy(cls, model, request, original=original):
            steps.append(original(cls, model, request))
            return steps[-1]

        monkeypatch.setattr(kind, "make", classmethod(spy))
    return steps


def by_forward(model):
    """A copy with a hook that changes nothing, so that `forward` serves."""
    model = copy.deepcopy(model)
    model.register_forward_hook(lambda *_: None)
    return model


def run(model, ids, mask, **settings):
    wanted = {"output_logits": True, "return_dict_in_generate": True, "max_new_tokens": 24}
    return model.generate(ids, attention_mask=mask, **{**wanted, **settings})


def compare(model, made, ids, mask, *, dtype="float32", **settings):
    """Logits of the token step equal those of `forward` for the same tokens."""
    made.clear()
    lean = run(model, ids, mask, **settings)
    assert all(step is not None for step in made)
    assert len(made) == 1
    made.clear()
    plain = run(by_forward(model), ids, mask, **settings)
    assert made == [None]
    if dtype == "float32":
        assert torch.equal(lean.sequences, plain.sequences)
        assert_close(torch.stack(lean.logits), torch.stack(plain.logits), dtype, "logits")
    else:  # later tokens may differ, since both round
        assert (lean.logits[1] - plain.logits[1]).abs().max() < 0.05 * plain.logits[1].abs().max()
    return lean


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_equal_logits(made, family, variant):
    settings = VARIANTS[variant]
    model = make(family, **settings)
    ids, mask = prompts(3, left=True)
    compare(model, made, ids, mask)
    compare(model, made, ids[:1], mask[:1], num_beams=3)
    compare(model, made, ids, mask, num_beams=3)
    assert isinstance(run(model, ids, mask) and made[-1], LEAN[family])


@pytest.mark.parametrize("family", LEAN)
def test_bfloat16(made, family):
    model = make(family).bfloat16()
    ids, mask = prompts(3, left=True)
    compare(model, made, ids, mask, dtype="bfloat16")


@pytest.mark.parametrize("family", LEAN)
def test_weights_in_their_own_place(made, family, monkeypatch):
    """Few tokens do not repay laying out the weights; neither layout changes the logits."""
    model = make(family)
    ids, mask = prompts(2, left=True)
    compare(model, made, ids, mask, max_new_tokens=9)
    run(model, ids, mask, max_new_tokens=9)
    assert made[-1].head.packed is None
    run(model, ids, mask)
    assert made[-1].head.packed is not None
    monkeypatch.setattr(token_step, "MOST_BYTES", 100)
    run(model, ids, mask)
    assert made[-1].head.packed is None


@pytest.mark.parametrize("family", LEAN)
def test_many_keys(made, family, monkeypatch):
    """Half-precision keys are widened up to a number only."""
    monkeypatch.setattr(few_rows, "WIDENED_KEYS", 4)
    ids, mask = prompts(3, left=True)
    model = make(family)
    compare(model, made, ids, mask)
    compare(model.bfloat16(), made, ids, mask, dtype="bfloat16")


def test_pruned_heads(made):
    model = make("diffllama")
    model.prune_heads({0: [1]})
    compare(model, made, *prompts(2, left=True))


def test_a_begun_answer_with_padding(made):
    model = make("longt5-local")
    ids, mask = prompts(2, left=False)
    begun = {"decoder_input_ids": [[0, 40, 41, 42], [0, 43]]}
    compare(model, made, ids, mask, **begun)


@pytest.mark.parametrize(
    "change", ["hook on the backbone", "inner module", "relative positions", "eager", "cross-attention"]
)
def test_bert_is_served_by_forward(made, change):
    settings = {"position_embedding_type": "relative_key"} if change == "relative positions" else {}
    model = make("bert", add_cross_attention=change == "cross-attention", **settings)
    if change == "hook on the backbone":
        model.bert.register_forward_hook(lambda *_: None)
    if change == "inner module":
        model.bert.encoder.layer[0].output.dense = torch.nn.Sequential(model.bert.encoder.layer[0].output.dense)
    if change == "eager":
        model.config.attn_implementation = "eager"
    assert model.generate([[5, 6, 7]], max_new_tokens=4).shape == (1, 7)
    assert made == [None]


@pytest.mark.parametrize(
    "settings", [{"truncation": 4}, {"normalization_type": "batchnorm"}, {"attn_implementation": "eager"}]
)
def test_mega_is_served_by_forward(made, settings):
    assert make("mega", **settings).generate([[5, 6, 7]], max_new_tokens=4).shape == (1, 7)
    assert made == [None]


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta"])
def test_a_padding_token_that_is_generated_has_the_place_of_padding(made, family):
    model = make(family)
    pad = model.config.pad_token_id
    with torch.no_grad():
        model.lm_head.decoder.bias[pad] = 100.0
    ids, mask = prompts(1, left=True)
    assert (compare(model, made, ids, mask).sequences[:, -24:] == pad).all()


class Subclass(longspan.DiffLlamaForCausalLM):
    """A user's own."""


@pytest.mark.parametrize(
    "change",
    ["subclass", "inner module", "replaced forward", "explicit implementation", "autocast", "mixed", "float64"],
)
def test_forward_serves_what_is_not_plain(made, change):
    model = make("diffllama")
    mlp = model.model.layers[1].mlp
    calls = []
    if change == "subclass":
        model = Subclass(model.config).eval()
    if change == "inner module":
        mlp.down_proj = torch.nn.Sequential(mlp.down_proj)
    if change == "replaced forward":
        mlp.forward = lambda x, forward=mlp.forward: calls.append(1) or forward(x)
    if change == "explicit implementation":
        model.config.attn_implementation = "eager"
    if change == "mixed":
        model.lm_head.double()
        model.model.norm.register_forward_hook(lambda module, inputs, output: output.double())
    if change == "float64":
        model.double()
    with torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"):
        rows = model.generate([[5, 6, 7]], max_new_tokens=4)
    assert rows.shape == (1, 7)
    assert [step for step in made if step is not None] == []
    assert len(calls) == (4 if change == "replaced forward" else 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"cache_implementation": "static"},
        {"use_cache": False},
        {"output_hidden_states": True, "return_dict_in_generate": True},
        {"position_ids": torch.tensor([[1, 2, 3]])},
    ],
)
def test_forward_serves_other_wishes(made, settings):
    make("diffllama").generate([[5, 6, 7]], max_new_tokens=4, **settings)
    assert [step for step in made if step is not None] == []


def test_a_source_without_tokens(made):
    model = make("longt5-local")
    ids, mask = prompts(2, left=False)
    encoded = model.get_encoder()(ids)
    mask[1] = 0
    settings = {"encoder_outputs": encoded, "attention_mask": mask, "max_new_tokens": 3}
    assert model.generate(**settings).shape == (2, 4)
    assert made == [None]


def test_global_hooks_are_called(made):
    model, calls = make("diffllama"), []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: calls.append(1))
    try:
        model.generate([[5]], max_new_tokens=3)
    finally:
        handle.remove()
    assert made == [None]
    assert len(calls) % 3 == 0
    assert calls
