"""Every PyTorch MEGA class and setting against the reference on the same weights, where the reference is right."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from tests.parity.torch_parity import compare_gradients, randomise
from tests.tolerances import assert_close

import longspan
from longspan.ops.dispatch import recording

SETTINGS = {
    "vocab_size": 59,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "intermediate_size": 20,
    "ema_projection_size": 3,
    "shared_representation_size": 8,
    "nffn_hidden_size": 14,
    "max_positions": 40,
    "type_vocab_size": 3,
    "num_labels": 5,
    "dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "nffn_activation_dropout_prob": 0.0,
}
DECODER = {"is_decoder": True, "bidirectional": False}
SEQ2SEQ = {**DECODER, "add_cross_attention": True}
CHUNKS = {"use_chunking": True, "chunk_size": 6}
CLASSES = {
    "MegaModel": {},
    "MegaForCausalLM": DECODER,
    "MegaForMaskedLM": {},
    "MegaForSequenceClassification": {},
    "MegaForMultipleChoice": {},
    "MegaForTokenClassification": {},
    "MegaForQuestionAnswering": {"num_labels": 2},
}
#: rows of 18 tokens, three chunks: full, right-padded within a chunk and over a whole one, with holes
ROWS, LENGTH, CHUNK = 4, 18, 6


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A function that gives (our model, reference model) of a class on equal weights, both ready to train."""

    def make(name, **settings):
        config = transformers.MegaConfig(**{**SETTINGS, **settings})
        reference = randomise(getattr(transformers, name)(config))
        randomise_statistics(reference)
        directory = tmp_path_factory.mktemp(name)
        reference.save_pretrained(directory)
        return getattr(longspan, name).from_pretrained(directory).train(), reference.train()

    return make


def randomise_statistics(model):
    generator = torch.Generator().manual_seed(1)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.2)
        if name.endswith("running_var"):
            buffer.copy_(1 + torch.rand(buffer.shape, generator=generator))


def attention_mask():
    mask = torch.ones(ROWS, LENGTH, dtype=torch.long)
    mask[1, 14:] = 0
    mask[2, 4:] = 0  # two chunks without any real token
    mask[3, 7:9] = 0
    return mask


def inputs_of(name):
    """Inputs and labels of a class; labels at padding are ignored."""
    torch.manual_seed(1)
    shape = (2, 2, LENGTH) if name == "MegaForMultipleChoice" else (ROWS, LENGTH)
    mask = attention_mask()
    if name == "MegaForCausalLM":
        mask[3] = 1  # the reference counts the holes of a causal sequence as keys
    inputs = {"input_ids": torch.randint(0, 59, shape), "attention_mask": mask.view(shape)}
    if name in ("MegaForMaskedLM", "MegaForTokenClassification", "MegaForCausalLM"):
        labels = torch.randint(0, 5, shape)
        inputs["labels"] = labels.masked_fill(inputs["attention_mask"] == 0, -100)
    if name == "MegaForSequenceClassification":
        inputs["labels"] = torch.tensor([4, 0, 2, 2])
    if name == "MegaForMultipleChoice":
        inputs["labels"] = torch.tensor([1, 0])
    if name == "MegaForQuestionAnswering":
        inputs["start_positions"] = torch.tensor([3, 0, 99, 8])  # 99 lies outside and does not count
        inputs["end_positions"] = torch.tensor([5, 2, 99, 17])
    return inputs


def compare(ours, reference, keep=None):
    """Compare every field of the outputs; `keep` (B, S) marks the real positions, beyond which values are free."""
    assert set(reference.keys()) - {"past_key_values"} == set(ours.keys()) - {"past_key_values"}
    for name, expected in reference.items():
        if name == "past_key_values":
            continue
        pairs = zip(ours[name], expected, strict=True) if isinstance(expected, tuple) else [(ours[name], expected)]
        for index, (mine, theirs) in enumerate(pairs):
            if keep is not None and mine.dim() >= 2:
                mine, theirs = real(name, mine, keep), real(name, theirs, keep)
            assert_close(mine, theirs, "float32", f"{name}[{index}]")


def real(name, tensor, keep):
    """Zero the rows at padding: of weights (B, chunks, C, C) and (B, S, T), and of states (B, S, ...)."""
    if name == "attentions":
        return tensor.where(keep.view(*tensor.shape[:3], 1), torch.zeros(()))
    if tuple(tensor.shape[:2]) != tuple(keep.shape):
        return tensor
    return tensor.where(keep.view(*keep.shape, *([1] * (tensor.dim() - 2))), torch.zeros(()))


@pytest.mark.parametrize("implementation", ["eager", "tiled"])
@pytest.mark.parametrize("name", CLASSES)
def test_outputs_losses_and_gradients_equal_the_reference(pair, name, implementation):
    ours, reference = pair(name, **CLASSES[name])
    ours.config.attn_implementation = implementation
    inputs = inputs_of(name)
    options = {"output_hidden_states": True, "output_attentions": implementation == "eager"}
    if name == "MegaForCausalLM":
        options["use_cache"] = False
    with recording() as ran:
        actual = ours(**inputs, **options)
    assert set(ran) == {implementation}
    expected = reference(**inputs, **options)
    keep = inputs["attention_mask"].bool().view(-1, LENGTH)
    compare(actual, expected, keep)
    loss_of(actual, keep).backward()
    loss_of(expected, keep).backward()
    compare_gradients(ours, reference)


def loss_of(output, keep):
    """The loss, or for a model without one a weighted sum of what it returns at real positions."""
    if "loss" in output:
        return output["loss"]
    states = output["last_hidden_state"] * keep[..., None]
    return (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum() + output["pooler_output"].sum()


SETTING_CASES = [
    *(
        {"normalization_type": kind, **place}
        for kind in ("layernorm", "batchnorm", "syncbatchnorm")
        for place in ({}, {"normalize_before_mega": False, "normalize_before_ffn": False})
    ),
    {"normalize_before_mega": False},
    {"normalize_before_ffn": False, "norm_affine": False},
    {"normalization_type": "batchnorm", "norm_affine": False},
    *({"activation": kind} for kind in ("relu", "linear", "gelu", "gelu_accurate")),
    {"use_normalized_ffn": False},
    {"add_token_type_embeddings": True},
    {"relative_positional_bias": "simple", "chunk_size": 30},
    {"truncation": 1},
    {"truncation": 100},
]
ATTENTION_CASES = [
    {"attention_activation": activation, "relative_positional_bias": bias, **chunks, **mode, **truncation}
    for activation in ("softmax", "laplace", "relu2")
    for bias in ("rotary", "simple")
    for chunks in ({}, CHUNKS)
    for mode, truncation in (({}, {}), ({}, {"truncation": 5}), (DECODER, {}), (DECODER, {"truncation": 5}))
]


def name_of(settings):
    return "-".join(f"{value}" for value in settings.values()) or "default"


@pytest.mark.parametrize("settings", [*SETTING_CASES, *ATTENTION_CASES], ids=name_of)
def test_every_setting_equals_the_reference(pair, settings):
    ours, reference = pair("MegaModel", **settings)
    torch.manual_seed(1)
    inputs = {"input_ids": torch.randint(0, 59, (ROWS, LENGTH))}
    keep = torch.ones(ROWS, LENGTH, dtype=torch.bool)
    if "batch" not in settings.get("normalization_type", ""):  # which mixes real tokens with padding
        inputs["attention_mask"] = attention_mask()
        if settings.get("is_decoder"):
            inputs["attention_mask"][3] = 1
        keep = inputs["attention_mask"].bool()
    if settings.get("add_token_type_embeddings"):
        inputs["token_type_ids"] = torch.randint(0, 3, (ROWS, LENGTH))
    options = {"output_hidden_states": True, "output_attentions": True, "use_cache": False}
    actual, expected = ours(**inputs, **options), reference(**inputs, **options)
    compare(actual, expected, keep)
    loss_of(actual, keep).backward()
    loss_of(expected, keep).backward()
    # batch normalisation cancels most of the gradients of the biases before it: the reference is itself off by 2e-5
    # from float64, and so are we
    compare_gradients(ours, reference, 5e-5 if "batch" in settings.get("normalization_type", "") else 1e-5)
    ours.eval()
    reference.eval()
    with torch.no_grad():
        compare(ours(**inputs, **options), reference(**inputs, **options), keep)


@pytest.mark.parametrize("bias", ["rotary", "simple"])
@pytest.mark.parametrize("activation", ["softmax", "laplace", "relu2"])
@pytest.mark.parametrize("source", [9, 18, 25])
def test_cross_attention_equals_the_reference(pair, source, activation, bias):
    settings = {"attention_activation": activation, "relative_positional_bias": bias, **SEQ2SEQ}
    ours, reference = pair("MegaForCausalLM", **settings)
    torch.manual_seed(1)
    mask = torch.ones(ROWS, source, dtype=torch.long)
    mask[1, 5:] = 0
    inputs = {
        "input_ids": torch.randint(0, 59, (ROWS, LENGTH)),
        "encoder_hidden_states": torch.randn(ROWS, source, 12, requires_grad=True),
        "encoder_attention_mask": mask,
    }
    inputs["labels"] = inputs["input_ids"]
    options = {"output_hidden_states": True, "output_attentions": True}
    actual, expected = ours(**inputs, **options), reference(**inputs, **options)
    compare(actual, expected)
    expected.loss.backward()
    states_gradient = inputs["encoder_hidden_states"].grad.clone()
    inputs["encoder_hidden_states"].grad = None
    actual.loss.backward()
    compare_gradients(ours, reference)
    assert_close(inputs["encoder_hidden_states"].grad, states_gradient)


def test_embeddings_as_input_equal_the_reference(pair):
    ours, reference = pair("MegaModel")
    torch.manual_seed(1)
    embeddings = torch.randn(2, LENGTH, 12)
    compare(ours(inputs_embeds=embeddings), reference(inputs_embeds=embeddings))


def test_chunks_that_are_longer_than_the_input_equal_the_reference(pair):
    ours, reference = pair("MegaModel", use_chunking=True, chunk_size=30, attention_activation="laplace")
    ids = torch.randint(0, 59, (2, LENGTH))
    options = {"output_attentions": True}
    compare(ours(ids, **options), reference(ids, **options))


def test_cached_decoding_equals_the_reference_where_it_is_right(pair):
    """Softmax without chunks, truncation or cross-attention; also one cache may be handed to the other's model."""
    ours, reference = pair("MegaForCausalLM", **DECODER)
    ours.eval()
    reference.eval()
    ids = torch.randint(0, 59, (2, 9))
    with torch.no_grad():
        expected, actual = reference(ids[:, :6]), ours(ids[:, :6])
        for position in (6, 7, 8):
            for mine, theirs in zip(actual.past_key_values, expected.past_key_values, strict=True):
                for index in range(3):
                    assert_close(mine[index], theirs[index])
            token = ids[:, position : position + 1]
            given = actual.past_key_values if position == 6 else expected.past_key_values
            actual = ours(token, past_key_values=given)
            expected = reference(token, past_key_values=expected.past_key_values)
            assert type(actual.past_key_values) is type(given)
            assert_close(actual.logits, expected.logits)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", CLASSES)
def test_the_reference_loads_our_checkpoints(name, tied, tmp_path):
    settings = {**SETTINGS, **CLASSES[name], "tie_word_embeddings": tied}
    ours = randomise(getattr(longspan, name)(longspan.MegaConfig(**settings)))
    ours.save_pretrained(tmp_path)
    reference, report = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    inputs = {key: value for key, value in inputs_of(name).items() if key in ("input_ids", "attention_mask")}
    keep = inputs["attention_mask"].bool().view(-1, LENGTH)
    with torch.no_grad():
        compare(ours(**inputs), reference(**inputs), keep)


def test_initial_weights_are_distributed_like_the_references():
    settings = {**SETTINGS, "hidden_size": 96, "intermediate_size": 64, "max_positions": 500}
    for extra in ({}, {"relative_positional_bias": "simple"}, {"normalization_type": "layernorm"}):
        ours = longspan.MegaModel(longspan.MegaConfig(**settings, **extra))
        reference = transformers.MegaModel(transformers.MegaConfig(**settings, **extra))
        expected = dict(reference.named_parameters())
        for name, parameter in ours.named_parameters():
            count = parameter.numel()
            for moment in (torch.mean, lambda x: torch.std(x, correction=0)):
                mine, theirs = (float(moment(tensor.detach())) for tensor in (parameter, expected[name]))
                spread = float(expected[name].detach().std(correction=0)) + 1e-6
                assert abs(mine - theirs) < 8 * spread / count**0.5, f"{name}: {mine} and {theirs}"


def test_gradients_of_the_average_are_within_rounding_of_float64(pair):
    """Each sums over all tokens, in another order in either library; float64 tells rounding from a wrong formula."""
    ours, reference = pair("MegaForQuestionAnswering", num_labels=2)
    inputs = inputs_of("MegaForQuestionAnswering")
    exact = copy.deepcopy(ours).double()
    for model in (ours, reference, exact):
        model(**inputs)["loss"].backward()
        # it shifts all tokens alike: 0 by formula, and the terms of its sum, up to 1, are no smaller for that
        assert float(model.qa_outputs.bias.grad.abs().max()) <= 2 * torch.finfo(torch.float32).eps
        model.qa_outputs.bias.grad = None
    compare_gradients(ours, exact)
    compare_gradients(reference, exact)
