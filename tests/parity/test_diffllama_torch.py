"""Every PyTorch DiffLlama class against the reference on the same weights: outputs, losses, gradients, files."""

from __future__ import annotations

import pytest
import torch
import transformers
from tests.parity.torch_parity import compare_gradients, compare_outputs, randomise
from tests.tolerances import TOLERANCE, assert_close

import longspan
from longspan.ops.dispatch import recording

LAYERS, LIMIT = 3, 24
SETTINGS = {
    "vocab_size": 97,
    "hidden_size": 36,
    "intermediate_size": 50,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "max_position_embeddings": LIMIT,
    "pad_token_id": 0,
    "num_labels": 5,
}
CLASSES = (
    "DiffLlamaModel",
    "DiffLlamaForCausalLM",
    "DiffLlamaForSequenceClassification",
    "DiffLlamaForQuestionAnswering",
    "DiffLlamaForTokenClassification",
)
IMPLEMENTATIONS = ("eager", "sdpa", "chunked")
ROWS, LENGTH = 4, 19
PAIRS = SETTINGS["head_dim"] // 2
ROPES = {
    "default": {"rope_type": "default"},
    "linear": {"type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0},
    "yarn-all-keys": {
        "rope_type": "yarn",
        "factor": 4.0,
        "attention_factor": 1.2,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "original_max_position_embeddings": 12,
    },
    "yarn-mscale": {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.2, "truncate": False},
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": [1.0, 1.1, 1.3, 1.7],
        "long_factor": [1.5, 2.0, 4.0, 7.0],
    },
    "longrope-attention-factor": {
        "rope_type": "longrope",
        "factor": 4.0,
        "attention_factor": 1.1,
        "original_max_position_embeddings": 12,
        "short_factor": [1.0, 1.1, 1.3, 1.7],
        "long_factor": [1.5, 2.0, 4.0, 7.0],
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A function that gives (our model, reference model) of a class on equal weights, made once each."""
    made = {}

    def make(name, implementation="auto", **settings):
        key = (name, repr(sorted(settings.items())))
        if key not in made:
            config = transformers.DiffLlamaConfig(**{**SETTINGS, **settings}, attn_implementation="eager")
            reference = randomise(getattr(transformers, name)(config))
            directory = tmp_path_factory.mktemp(name)
            reference.save_pretrained(directory)
            made[key] = (getattr(longspan, name).from_pretrained(directory), reference)
        ours, reference = made[key]
        ours.config.attn_implementation = implementation
        for model in (ours, reference):
            model.zero_grad()
            model.eval()
        return ours, reference

    return make


def padded_ids():
    """Rows without padding, padded on the right, with a hole, and padded on the left; 0 is the padding."""
    torch.manual_seed(1)
    ids = torch.randint(1, 97, (ROWS, LENGTH))
    ids[1, 11:] = 0
    ids[2, 4:6] = 0
    ids[3, :7] = 0
    return ids, (ids != 0).long()


def inputs_of(name):
    """Inputs and labels of a class; labels at padding are ignored."""
    ids, mask = padded_ids()
    inputs = {"input_ids": ids, "attention_mask": mask}
    if name == "DiffLlamaForCausalLM":
        after_real = torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], dim=1)
        inputs["labels"] = ids.masked_fill(mask * after_real == 0, -100)
    if name == "DiffLlamaForSequenceClassification":
        inputs["labels"] = torch.tensor([4, 0, 2, 2])
    if name == "DiffLlamaForTokenClassification":
        inputs["labels"] = torch.randint(0, 5, ids.shape).masked_fill(mask == 0, -100)
    if name == "DiffLlamaForQuestionAnswering":  # its loss scores every position: no left padding, which is unspecified
        inputs = {key: value[:3] for key, value in inputs.items()}
        inputs["start_positions"] = torch.tensor([3, 0, 99])  # 99 lies outside and does not count
        inputs["end_positions"] = torch.tensor([5, 2, 99])
    return inputs


def loss_of(output, keep):
    """The model's own loss; for the backbone, a function of all real states."""
    if "loss" in output:
        return output.loss
    weight = torch.linspace(-1, 1, output.last_hidden_state.shape[-1])
    return (output.last_hidden_state * keep[..., None] * weight).square().sum()


def compare_all_gradients(ours, reference):
    """Compare every gradient; those of λ against the largest of the model.

    The gradient of λ is one sum over all heads and positions of terms that cancel: the reference's own differs from
    float64 by up to 8e-5 of it, and by less than 1e-6 of the model's largest gradient.
    """
    parameters = dict(reference.named_parameters())
    largest = max(float(p.grad.abs().max()) for p in parameters.values() if p.grad is not None)
    for name, parameter in ours.named_parameters():
        if ".lambda_" in name:
            difference = float((parameter.grad - parameters[name].grad).abs().max()) / largest
            assert difference <= TOLERANCE["float32"], f"gradient of {name} differs by {difference:.3g}"
            parameter.grad = parameters[name].grad = None
    compare_gradients(ours, reference)


def compare(ours, reference, inputs, *, implementation, gradients=True):
    """Run both models; compare all outputs at real positions, the loss and every gradient."""
    keep = inputs["attention_mask"].bool() if "attention_mask" in inputs else None
    inputs = {**inputs, "output_hidden_states": True, "output_attentions": implementation == "eager"}
    with recording() as ran:
        output = ours(**inputs)
    assert set(ran) == {implementation}
    expected = reference(**inputs)
    compare_outputs(output, expected, keep=keep)
    if gradients:
        for result in (output, expected):
            loss_of(result, torch.ones(1, 1) if keep is None else keep).backward()
        compare_all_gradients(ours, reference)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", CLASSES)
def test_outputs_losses_and_gradients(pair, name, implementation):
    compare(*pair(name, implementation), inputs_of(name), implementation=implementation)


@pytest.mark.parametrize("length", [LENGTH, LIMIT + 9])
@pytest.mark.parametrize("rope", ROPES)
def test_every_rope_kind_below_and_above_the_limit(pair, rope, length):
    ours, reference = pair("DiffLlamaModel", "chunked", rope_scaling=ROPES[rope])
    inputs = {"input_ids": torch.randint(1, 97, (2, length))}
    compare(ours, reference, inputs, implementation="chunked")


def test_longrope_with_the_original_length_beside_the_scaling(pair):
    ours, reference = pair(
        "DiffLlamaModel", "chunked", rope_scaling=ROPES["longrope"], original_max_position_embeddings=8
    )
    for length in (8, 9):
        inputs = {"input_ids": torch.randint(1, 97, (2, length))}
        compare(ours, reference, inputs, implementation="chunked", gradients=False)


def test_the_documents_spelling_of_llama3_loads_in_the_reference(pair, tmp_path):
    _, reference = pair("DiffLlamaModel", rope_scaling=ROPES["llama3"])
    config = longspan.DiffLlamaConfig(**SETTINGS, rope_scaling={**ROPES["llama3"], "rope_type": "diffllama3"})
    ours = longspan.DiffLlamaModel(config).eval()
    ours.load_state_dict(reference.state_dict())
    ours.save_pretrained(tmp_path)
    back = transformers.DiffLlamaModel.from_pretrained(tmp_path)
    ids = torch.randint(1, 97, (2, LENGTH))
    assert_close(ours(ids).last_hidden_state, reference(ids).last_hidden_state)
    assert_close(back(ids).last_hidden_state, reference(ids).last_hidden_state)


SETTINGS_TO_VARY = [
    {"num_key_value_heads": 1},
    {"num_key_value_heads": 2},
    {"num_key_value_heads": None},
    {"num_attention_heads": 10, "num_key_value_heads": 5},
    {"attention_bias": True},
    {"head_dim": None, "num_attention_heads": 6},
    {"tie_word_embeddings": True},
    {"hidden_act": "gelu"},
    {"rms_norm_eps": 0.3},
    {"rope_theta": 500.0},
    {"pad_token_id": None},
]


@pytest.mark.parametrize("settings", SETTINGS_TO_VARY, ids=str)
def test_every_setting(pair, settings):
    ours, reference = pair("DiffLlamaForCausalLM", "chunked", **settings)
    compare(ours, reference, inputs_of("DiffLlamaForCausalLM"), implementation="chunked")


@pytest.mark.parametrize("num_kv_heads", [1, 2, 6])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_grouped_heads_in_the_other_implementations(pair, implementation, num_kv_heads):
    ours, reference = pair("DiffLlamaModel", implementation, num_key_value_heads=num_kv_heads)
    compare(ours, reference, inputs_of("DiffLlamaModel"), implementation=implementation)


def test_attention_dropout_draws_what_the_reference_draws(pair):
    ours, reference = pair("DiffLlamaModel", "eager", attention_dropout=0.4)
    ids = torch.randint(1, 97, (2, LENGTH))
    results = []
    for model in (ours, reference):
        model.train()
        torch.manual_seed(7)
        results.append(model(ids, output_attentions=True))
    compare_outputs(*results)
    dropped = results[0].attentions[0] == 0
    assert 0.3 < float(dropped[..., LENGTH - 1, :].float().mean()) < 0.5
    for result in results:
        loss_of(result, torch.ones(1, 1)).backward()
    compare_all_gradients(ours, reference)


def test_classifier_dropout_is_the_reference_one(pair):
    for settings, rate in ({}, 0.1), ({"hidden_dropout": 0.2}, 0.2), ({"classifier_dropout": 0.3}, 0.3):
        ours, reference = pair("DiffLlamaForTokenClassification", **settings)
        assert ours.dropout.p == reference.dropout.p == rate


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_embedded_inputs_and_positions(pair, implementation):
    ours, reference = pair("DiffLlamaModel", implementation)
    _, mask = padded_ids()
    inputs = {
        "inputs_embeds": torch.randn(ROWS, LENGTH, SETTINGS["hidden_size"]),
        "position_ids": torch.randint(0, LIMIT, (ROWS, LENGTH)),
        "attention_mask": mask,
    }
    compare(ours, reference, inputs, implementation=implementation)


@pytest.mark.parametrize("rows", [1, ROWS])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_positions_that_start_again_are_packed_documents(pair, implementation, rows):
    ours, reference = pair("DiffLlamaModel", implementation)
    documents = torch.cat([torch.arange(5), torch.arange(8), torch.arange(1), torch.arange(5)])
    inputs = {
        "input_ids": torch.randint(1, 97, (ROWS, LENGTH)),
        "position_ids": documents.expand(rows, -1),
        "use_cache": False,
    }
    compare(ours, reference, inputs, implementation=implementation)
    alone = ours(inputs["input_ids"][:, 5:13], use_cache=False).last_hidden_state
    assert_close(ours(**inputs).last_hidden_state[:, 5:13], alone)


@pytest.mark.parametrize("keep", [0, 1, 4, 40, torch.tensor([0, 5, 2])], ids=str)
def test_logits_to_keep(pair, keep):
    ours, reference = pair("DiffLlamaForCausalLM")
    ids, mask = padded_ids()
    with torch.no_grad():
        output = ours(ids[:3], mask[:3], logits_to_keep=keep)
        expected = reference(ids[:3], mask[:3], logits_to_keep=keep)
    assert output.logits.shape == expected.logits.shape
    assert_close(output.logits[0], expected.logits[0])


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification", None])
def test_losses_by_problem_type(pair, problem):
    ours, reference = pair("DiffLlamaForSequenceClassification", num_labels=1 if problem == "regression" else 5)
    ours.config.problem_type = reference.config.problem_type = problem
    labels = {
        "regression": torch.randn(ROWS),
        "multi_label_classification": torch.randint(0, 2, (ROWS, 5)).float(),
        None: torch.randint(0, 5, (ROWS,)),
    }[problem]
    ids, mask = padded_ids()
    compare_outputs(ours(ids, mask, labels=labels), reference(ids, mask, labels=labels))


def test_tuples_hold_what_the_reference_holds(pair):
    ours, reference = pair("DiffLlamaForCausalLM", "eager")
    inputs = inputs_of("DiffLlamaForCausalLM") | {"output_hidden_states": True, "output_attentions": True}
    output, expected = (model(**inputs, return_dict=False) for model in (ours, reference))
    assert [type(item).__name__ for item in output] == [type(item).__name__ for item in expected]
    assert_close(output[1][0], expected[1][0])


def test_caches_hold_what_the_reference_holds(pair):
    ours, reference = pair("DiffLlamaModel")
    ids = torch.randint(1, 97, (2, LENGTH))
    with torch.no_grad():
        mine, theirs = ours(ids).past_key_values, reference(ids).past_key_values
    assert len(mine) == LAYERS
    for layer in range(LAYERS):
        for actual, expected in zip(mine[layer], theirs[layer], strict=True):
            assert_close(actual, expected)


@pytest.mark.parametrize("name", CLASSES)
def test_saved_files_load_in_the_reference_byte_for_byte(pair, name, tmp_path):
    ours, reference = pair(name)
    ours.save_pretrained(tmp_path / "ours")
    back, info = getattr(transformers, name).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert info["missing_keys"] == []
    assert info["unexpected_keys"] == []
    state, expected = back.state_dict(), reference.state_dict()
    assert state.keys() == expected.keys() == ours.state_dict().keys()
    for key, tensor in expected.items():
        assert torch.equal(state[key], tensor), key


@pytest.mark.parametrize("source", CLASSES)
@pytest.mark.parametrize("target", CLASSES)
def test_a_checkpoint_of_any_class_feeds_the_backbone_of_any_other(pair, source, target, tmp_path):
    ours, _ = pair(source)
    ours.save_pretrained(tmp_path)
    loaded = getattr(longspan, target).from_pretrained(tmp_path, ignore_mismatched_sizes=True, strict=source == target)
    backbone, expected = (model.base_model.state_dict() for model in (loaded, ours))
    assert all(torch.equal(backbone[key], tensor) for key, tensor in expected.items())
