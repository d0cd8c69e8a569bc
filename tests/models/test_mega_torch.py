"""What MEGA must do where the reference is wrong or silent: the paper's answer, or that of a path without defect."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.parity.torch_parity import randomise
from tests.tolerances import assert_close

from longspan import (
    MegaConfig,
    MegaForCausalLM,
    MegaForMaskedLM,
    MegaForSequenceClassification,
    MegaModel,
)
from longspan.fast import mega_spans
from longspan.models.mega.torch_layers import MegaDropout
from longspan.models.mega.torch_norms import MegaRMSNorm, MegaSequenceNorm

TINY = {
    "vocab_size": 59,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "intermediate_size": 20,
    "ema_projection_size": 3,
    "shared_representation_size": 8,
    "nffn_hidden_size": 14,
    "max_positions": 64,
}
DECODER = {"is_decoder": True, "bidirectional": False}
SEQ2SEQ = {**DECODER, "add_cross_attention": True}
ACTIVATIONS = ("softmax", "laplace", "relu2")
CHUNK = 5


def make(cls=MegaModel, **extra):
    return randomise(cls(MegaConfig(**{**TINY, **extra})), scale=0.3)


def ids_of(*shape):
    return torch.randint(2, 59, shape, generator=torch.Generator().manual_seed(1))


# -- cached decoding equals the full forward -----------------------------------------------------------------------


@pytest.mark.parametrize("truncation", [None, 4])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("bias", ["rotary", "simple"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@torch.no_grad()
def test_cached_decoding_equals_the_full_forward(activation, bias, chunked, truncation):
    """For prompts that are shorter than a chunk, a chunk, longer than a chunk, and two chunks."""
    chunks = {"use_chunking": True, "chunk_size": CHUNK} if chunked else {}
    extra = {"attention_activation": activation, "relative_positional_bias": bias, "truncation": truncation}
    model = make(MegaForCausalLM, **DECODER, **chunks, **extra)
    ids = ids_of(2, 13)
    full = model(ids, use_cache=False, output_attentions=True)
    assert full.past_key_values is None
    for prompt in (1, 3, CHUNK, 7, 2 * CHUNK):
        output = model(ids[:, :prompt])
        assert_close(output.logits, full.logits[:, :prompt], what=f"prompt of {prompt}")
        for position in range(prompt, 13):
            cache = output.past_key_values
            assert cache.get_seq_length() == position
            held = position % CHUNK if chunked else position
            assert [tensor.shape[1] for tensor in cache[0][:2]] == [held, held]
            token = ids[:, position : position + 1]
            output = model(token, past_key_values=cache, output_attentions=True)
            assert_close(output.logits[:, 0], full.logits[:, position], what=f"token {position} after {prompt}")
            row = full.attentions[0][:, position // CHUNK if chunked else 0, held, : held + 1]
            assert_close(output.attentions[0][:, 0, 0], row)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("bias", ["rotary", "simple"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@torch.no_grad()
def test_cached_decoding_with_an_encoder_equals_the_full_forward(activation, bias, chunked):
    chunks = {"use_chunking": True, "chunk_size": 16} if chunked else {}
    extra = {"attention_activation": activation, "relative_positional_bias": bias}
    model = make(MegaForCausalLM, **SEQ2SEQ, **chunks, **extra)
    ids, states = ids_of(2, 14), torch.randn(2, 6, 12)
    encoder = {"encoder_hidden_states": states, "encoder_attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2])}
    full = model(ids, **encoder, use_cache=False, output_attentions=True)
    output = model(ids[:, :3], **encoder)
    for position in range(3, 14):
        # the keys of the encoder's states come from the cache, so that the states themselves may be left out
        given = encoder if position % 2 else {"encoder_attention_mask": encoder["encoder_attention_mask"]}
        token = ids[:, position : position + 1]
        output = model(token, past_key_values=output.past_key_values, output_attentions=True, **given)
        assert_close(output.logits[:, 0], full.logits[:, position])
        assert_close(output.cross_attentions[1][:, 0], full.cross_attentions[1][:, position])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@torch.no_grad()
def test_cached_decoding_with_padding_equals_the_full_forward(activation, chunked, side):
    chunks = {"use_chunking": True, "chunk_size": CHUNK} if chunked else {}
    model = make(MegaForCausalLM, **DECODER, **chunks, attention_activation=activation)
    ids, mask = ids_of(3, 12), torch.ones(3, 12, dtype=torch.long)
    prompt = 8
    if side == "left":
        mask[1, :3], mask[2, :7] = 0, 0
    else:
        mask[1, 6:prompt], mask[2, 2:prompt] = 0, 0
    full = model(ids, attention_mask=mask, use_cache=False)
    whole = model(ids[:, :prompt], attention_mask=mask[:, :prompt])
    only_new = whole
    for position in range(prompt, 12):
        token = ids[:, position : position + 1]
        # the mask of all tokens, that of the new token, or none: the cache knows which of its own are real
        whole = model(token, attention_mask=mask[:, : position + 1], past_key_values=whole.past_key_values)
        given = {"attention_mask": mask[:, position : position + 1]} if position % 2 else {}
        only_new = model(token, past_key_values=only_new.past_key_values, **given)
        assert_close(whole.logits[:, 0], full.logits[:, position])
        assert_close(only_new.logits[:, 0], full.logits[:, position])


@torch.no_grad()
def test_a_cache_of_tuples_returns_tuples_and_knows_its_place():
    model = make(MegaForCausalLM, **SEQ2SEQ, use_chunking=True, chunk_size=CHUNK)
    ids, encoder = ids_of(2, 9), {"encoder_hidden_states": torch.randn(2, 6, 12)}
    full = model(ids, **encoder, use_cache=False)
    cache = model(ids[:, :CHUNK], **encoder).past_key_values.to_legacy_cache()
    cache = tuple((None, None, *layer[2:]) for layer in cache)  # how the reference writes the end of a chunk
    for position in range(CHUNK, 9):
        mask = torch.ones(2, position + 1)
        output = model(ids[:, position : position + 1], mask, past_key_values=cache, **encoder)
        cache = output.past_key_values
        assert type(cache) is tuple
        assert [len(layer) for layer in cache] == [5, 5]
        assert_close(output.logits[:, 0], full.logits[:, position])


@torch.no_grad()
def test_a_cache_follows_the_rows_of_a_beam():
    model = make(MegaForCausalLM, **DECODER)
    ids, mask = ids_of(2, 6), torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    rows = torch.tensor([1, 1, 0])
    cache = model(ids, attention_mask=mask).past_key_values
    cache.reorder_cache(rows)
    token = ids_of(3, 1)
    expected = model(torch.cat([ids[rows], token], 1), attention_mask=torch.cat([mask[rows], torch.ones(3, 1)], 1))
    assert_close(model(token, past_key_values=cache).logits[:, 0], expected.logits[:, -1])
    cache = model(ids, attention_mask=mask).past_key_values
    cache.batch_repeat_interleave(2)
    assert all(tensor.shape[0] == 4 for layer in cache for tensor in layer)


# -- causality -----------------------------------------------------------------------------------------------------


@st.composite
def decoder_settings(draw):
    extra = {
        "hidden_size": draw(st.integers(4, 9)),
        "intermediate_size": draw(st.integers(1, 9)),
        "shared_representation_size": 2 * draw(st.integers(1, 4)),
        "ema_projection_size": draw(st.integers(1, 4)),
        "activation": draw(st.sampled_from(["silu", "relu", "linear", "gelu", "gelu_accurate"])),
        "attention_activation": draw(st.sampled_from(ACTIVATIONS)),
        "relative_positional_bias": draw(st.sampled_from(["rotary", "simple"])),
        "normalization_type": draw(st.sampled_from(["scalenorm", "layernorm", "rmsnorm", "batchnorm"])),
        "normalize_before_mega": draw(st.booleans()),
        "normalize_before_ffn": draw(st.booleans()),
        "use_normalized_ffn": draw(st.booleans()),
        "truncation": draw(st.none() | st.integers(1, 20)),
        "add_cross_attention": draw(st.booleans()),
    }
    if draw(st.booleans()):
        extra |= {"use_chunking": True, "chunk_size": draw(st.integers(1, 20))}
        if extra["add_cross_attention"]:
            extra["relative_positional_bias"] = "rotary"  # the simple bias of cross-attention ends with a chunk
    return extra


@given(extra=decoder_settings(), length=st.integers(2, 30), data=st.data())
@settings(max_examples=60, deadline=None)
def test_no_token_sees_its_future(extra, length, data):
    changed = data.draw(st.integers(1, length - 1))
    model = make(**DECODER, **extra)
    ids = ids_of(1, length)
    other = ids.clone()
    other[:, changed] = (ids[:, changed] + 1) % 59
    encoder = {"encoder_hidden_states": torch.randn(1, 5, extra["hidden_size"])} if extra["add_cross_attention"] else {}
    with torch.no_grad():
        before, after = (model(x, **encoder).last_hidden_state for x in (ids, other))
    # what rounds differently in a matrix product of another content stays far below any leak
    assert_close(after[:, :changed], before[:, :changed])
    if extra["activation"] != "relu":  # which may be dead at this width
        assert not torch.equal(after[:, changed], before[:, changed])


# -- chunks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [{}, DECODER], ids=["encoder", "decoder"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@torch.no_grad()
def test_any_length_works_with_chunks(activation, mode):
    """A sequence gives what it gives when the caller pads it to whole chunks and masks the padding."""
    model = make(use_chunking=True, chunk_size=CHUNK, attention_activation=activation, **mode)
    for length in (1, 4, 5, 6, 11, 15):
        ids = ids_of(2, length)
        padded = torch.cat([ids, ids_of(2, -length % CHUNK)], dim=1)
        mask = (torch.arange(padded.shape[1]) < length).long().expand(2, -1)
        expected = model(padded, attention_mask=mask).last_hidden_state[:, :length]
        actual = model(ids, output_attentions=True)
        assert_close(actual.last_hidden_state, expected)
        size = min(length, CHUNK)
        assert actual.attentions[0].shape == (2, -(-length // CHUNK), size, size)


@pytest.mark.parametrize("mode", [{}, DECODER, SEQ2SEQ], ids=["encoder", "decoder", "seq2seq"])
@pytest.mark.parametrize("norm", ["scalenorm", "batchnorm"])
@torch.no_grad()
def test_spans_give_what_the_whole_gives(monkeypatch, mode, norm):
    """Long inputs are read in spans at inference; the result must not show where they meet."""
    model = make(use_chunking=True, chunk_size=CHUNK, normalization_type=norm, **mode)
    ids, mask = ids_of(2, 58), torch.ones(2, 58, dtype=torch.long)
    mask[1, 33:] = 0
    encoder = {"encoder_hidden_states": torch.randn(2, 7, 12)} if "add_cross_attention" in mode else {}
    options = {"attention_mask": mask, "output_hidden_states": True, **encoder}
    whole = model(ids, **options)
    embeddings = model.get_input_embeddings()(ids)
    copy = embeddings.clone()
    spans = []
    original = mega_spans.run_in_spans
    monkeypatch.setattr(mega_spans, "SPAN_TOKENS", 45)
    monkeypatch.setattr(
        "longspan.fast.mega_spans.run_in_spans", lambda *args: spans.append(args[-1]) or original(*args)
    )
    parts = model(inputs_embeds=embeddings, **options)
    assert spans == [20, 20]
    assert torch.equal(embeddings, copy), "the caller's embeddings were overwritten"
    for mine, theirs in zip(parts.hidden_states, whole.hidden_states, strict=True):
        assert_close(mine, theirs)
    if mode:
        for mine, theirs in zip(parts.past_key_values, whole.past_key_values, strict=True):
            for tensor, expected in zip(mine, theirs, strict=True):
                assert_close(tensor, expected)
        assert parts.past_key_values.get_seq_length() == 58
    assert_close(model(ids, **options | {"output_hidden_states": False}).last_hidden_state, whole.last_hidden_state)


# -- padding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [{}, DECODER], ids=["encoder", "decoder"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@torch.no_grad()
def test_left_padding_gives_what_right_padding_gives(activation, mode):
    model = make(attention_activation=activation, **mode)
    ids = ids_of(1, 9)
    expected = model(ids).last_hidden_state
    for before, after in ((4, 0), (0, 4), (3, 2)):
        padded = torch.cat([ids_of(1, before), ids, ids_of(1, after)], dim=1)
        mask = torch.tensor([[0] * before + [1] * 9 + [0] * after])
        output = model(padded, attention_mask=mask).last_hidden_state
        assert_close(output[:, before : before + 9], expected)


@pytest.mark.parametrize("mode", [{}, DECODER], ids=["encoder", "decoder"])
@pytest.mark.parametrize("implementation", ["eager", "tiled"])
@torch.no_grad()
def test_chunks_begin_at_the_first_real_token(monkeypatch, mode, implementation):
    monkeypatch.setattr(mega_spans, "SPAN_TOKENS", 3 * CHUNK)
    model = make(**mode, use_chunking=True, chunk_size=CHUNK, attn_implementation=implementation)
    ids = ids_of(5, 24)
    mask = torch.ones(5, 24, dtype=torch.long)
    mask[1, :1], mask[2, :5], mask[3, :13], mask[4] = 0, 0, 0, 0
    mask[3, 17:] = 0
    whole = model(ids, attention_mask=mask).last_hidden_state
    for row, keep in enumerate(mask[:4].bool()):
        assert_close(whole[row, keep], model(ids[row : row + 1, keep]).last_hidden_state[0])
    assert bool(whole.isfinite().all())


@torch.no_grad()
def test_cached_decoding_of_rows_that_begin_later_with_chunks():
    """Also of one whose first real token comes after the prompt."""
    model = make(MegaForCausalLM, **DECODER, use_chunking=True, chunk_size=CHUNK)
    ids, mask = ids_of(4, 20), torch.ones(4, 20, dtype=torch.long)
    mask[1, :3], mask[2, :7], mask[3, :10] = 0, 0, 0
    full = model(ids, attention_mask=mask, use_cache=False).logits
    output = model(ids[:, :8], attention_mask=mask[:, :8])
    for position in range(8, 20):
        step = {"attention_mask": mask[:, : position + 1], "past_key_values": output.past_key_values}
        output = model(ids[:, position : position + 1], **step)
        assert_close(output.logits[:, 0], full[:, position])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunks", [{}, {"use_chunking": True, "chunk_size": CHUNK}], ids=["whole", "chunks"])
@pytest.mark.parametrize("mode", [{}, DECODER], ids=["encoder", "decoder"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_padding_gives_nan(activation, mode, chunks, dtype):
    model = make(attention_activation=activation, **mode, **chunks).to(dtype)
    ids = ids_of(5, 17)
    mask = torch.ones(5, 17, dtype=torch.long)
    mask[0], mask[1, :9], mask[2, 9:], mask[3, ::2] = 0, 0, 0, 0  # row 0 has no token at all
    for implementation in ("eager", "tiled"):
        model.config.attn_implementation = implementation
        output = model(ids, attention_mask=mask, output_attentions=implementation == "eager")
        assert bool(output.last_hidden_state.isfinite().all())
        if implementation == "eager":
            assert all(bool((weights[0] == 0).all()) for weights in output.attentions)
        output.last_hidden_state.float().sum().backward()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@torch.no_grad()
def test_an_encoder_without_real_tokens_gives_no_nan():
    for activation in ACTIVATIONS:
        model = make(**SEQ2SEQ, attention_activation=activation)
        mask = torch.tensor([[0, 0, 0, 0], [1, 1, 0, 0]])
        output = model(ids_of(2, 6), encoder_hidden_states=torch.randn(2, 4, 12), encoder_attention_mask=mask)
        assert bool(output.last_hidden_state.isfinite().all())


# -- the formulas --------------------------------------------------------------------------------------------------


def test_rmsnorm_is_the_papers():
    norm = MegaRMSNorm(hidden_size=3, eps=1e-5, affine=True)
    norm.weight.data = torch.tensor([1.0, 2.0, -1.0])
    x = torch.tensor([[3.0, 4.0, 12.0]])
    root = (169.0 / 3 + 1e-5) ** 0.5
    torch.testing.assert_close(norm(x), torch.tensor([[3.0, 8.0, -12.0]]) / root)


@pytest.mark.parametrize("kind", ["layernorm", "scalenorm", "rmsnorm", "batchnorm"])
def test_without_affine_a_norm_has_no_parameters(kind):
    plain = MegaSequenceNorm(MegaConfig(**TINY, normalization_type=kind, norm_affine=False))
    affine = MegaSequenceNorm(MegaConfig(**TINY, normalization_type=kind))
    assert not list(plain.parameters())
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(plain(x), affine(x))


@torch.no_grad()
def test_truncation_limits_what_the_average_sees():
    """With truncation 3 the average of a token sees its neighbours at most 2 away; chunks of 1 take attention away."""
    model = make(num_hidden_layers=1, truncation=3, use_chunking=True, chunk_size=1, use_normalized_ffn=False)
    ids = ids_of(1, 11)
    other = ids.clone()
    other[:, 5] += 1
    changed = (model(ids).last_hidden_state - model(other).last_hidden_state).abs().amax(-1)[0]
    assert (changed[3:8] > 1e-4).all()
    assert (changed[[0, 1, 2, 8, 9, 10]] < 1e-6).all()


def test_feature_dropout_drops_a_feature_for_all_tokens():
    drop = MegaDropout(0.5, featurewise=True)
    x = torch.ones(3, 7, 40)
    output = drop(x)
    assert set(output.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(output, output[:, :1].expand_as(output))
    assert not torch.equal(output[0], output[1])
    assert 0.3 < (output[:, 0] == 0).float().mean() < 0.7
    assert torch.equal(drop.eval()(x), x)
    plain = MegaDropout(0.5, featurewise=False)(x)
    assert not torch.equal(plain, plain[:, :1].expand_as(plain))


def test_dropout_acts_in_training_only_and_feature_dropout_on_every_place(monkeypatch):
    ids = ids_of(2, 9)
    for feature in (False, True):
        model = make(use_feature_dropout=feature)
        torch.testing.assert_close(model(ids)[0], model(ids)[0], rtol=0, atol=0)
        model.train()
        assert not torch.equal(model(ids)[0], model(ids)[0])


def test_nothing_is_remembered_across_weights():
    """The reference keeps the kernel of the first call in evaluation mode, and cannot go backward through it twice."""
    model, other = make(), make()
    randomise(other, seed=5)
    ids = ids_of(2, 9)
    model(ids).last_hidden_state.sum().backward()
    model(ids).last_hidden_state.sum().backward()
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(model(ids)[0], other(ids)[0], rtol=0, atol=0)


# -- half precision ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [{}, {"use_chunking": True, "chunk_size": 128}], ids=["whole", "chunks"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@torch.no_grad()
def test_half_precision_stays_within_a_percent_at_4096_tokens(activation, chunks):
    torch.manual_seed(0)
    extra = {"vocab_size": 100, "attention_activation": activation, "num_hidden_layers": 2, **chunks}
    model = MegaModel(MegaConfig(**extra)).eval()
    ids = torch.randint(0, 100, (1, 4096))
    expected = model(ids).last_hidden_state
    for dtype in (torch.bfloat16, torch.float16):
        actual = copy.deepcopy(model).to(dtype)(ids).last_hidden_state.float()
        assert float((actual - expected).norm() / expected.norm()) < 1e-2, dtype


def test_autocast_trains_in_half_precision():
    model = make(MegaForCausalLM, **DECODER).train()
    ids = ids_of(2, 20)
    torch.manual_seed(0)
    expected = model(ids, labels=ids).loss
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        actual = model(ids, labels=ids).loss
    actual.backward()
    assert_close(actual, expected, "bfloat16")
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


# -- gradient checkpointing, compilation, export -------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["eager", "tiled"])
def test_gradient_checkpointing_changes_no_gradient(implementation):
    model = make(attn_implementation=implementation).train()
    ids = ids_of(2, 20)
    gradients = []
    for enable in (False, True):
        if enable:
            model.gradient_checkpointing_enable()
        assert model.is_gradient_checkpointing == enable
        model.zero_grad()
        torch.manual_seed(0)
        model(ids).last_hidden_state.square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_gradient_checkpointing_keeps_less():
    model = make(use_chunking=True, chunk_size=8, num_hidden_layers=3).train()

    def saved() -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model(ids_of(2, 64))
        return sum(sizes)

    before = saved()
    model.gradient_checkpointing_enable()
    assert saved() < before / 3


def test_gradient_checkpointing_keeps_no_cache():
    model = make(**DECODER).train()
    model.gradient_checkpointing_enable()
    with pytest.warns(UserWarning, match="use_cache=True cannot be used with gradient checkpointing"):
        assert model(ids_of(1, 4)).past_key_values is None


# -- vocabulary, heads, files --------------------------------------------------------------------------------------


def test_resizing_the_vocabulary_reaches_both_ends():
    for cls, extra in ((MegaForCausalLM, DECODER), (MegaForMaskedLM, {})):
        model = make(cls, **extra)
        model.resize_token_embeddings(70)
        assert model(torch.tensor([[69, 1]])).logits.shape == (1, 2, 70)
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        untied = make(cls, **extra, tie_word_embeddings=False)
        assert untied.get_output_embeddings().weight is not untied.get_input_embeddings().weight


def test_logits_to_keep():
    model = make(MegaForCausalLM, **DECODER)
    ids = ids_of(2, 7)
    full = model(ids).logits
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, full[:, -2:])
    torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([0, 3])).logits, full[:, [0, 3]])


def test_a_head_starts_from_a_backbone_and_back(tmp_path):
    backbone = make()
    backbone.save_pretrained(tmp_path / "backbone")
    classifier, report = MegaForSequenceClassification.from_pretrained(
        tmp_path / "backbone", num_labels=3, output_loading_info=True
    )
    assert set(report.initialised) == {
        f"classifier.{n}" for n in ("dense.weight", "dense.bias", "out_proj.weight", "out_proj.bias")
    }
    classifier.save_pretrained(tmp_path / "classifier")
    again = MegaModel.from_pretrained(tmp_path / "classifier", add_pooling_layer=False)
    ids = ids_of(1, 6)
    torch.testing.assert_close(again(ids)[0], backbone(ids)[0], rtol=0, atol=0)


def test_a_decoder_starts_from_a_bidirectional_encoder(tmp_path):
    """The example of the reference's documentation: half of the EMA's parameters go, and are drawn anew."""
    make(MegaForMaskedLM).save_pretrained(tmp_path)
    config = MegaConfig.from_pretrained(tmp_path)
    config.is_decoder = True
    config.bidirectional = False
    model = MegaForCausalLM.from_pretrained(tmp_path, config=config, ignore_mismatched_sizes=True)
    assert {key.rpartition(".")[2] for key, *_ in model.load_report.mismatched} == {
        "damping_factor",
        "decay_factor",
        "ema_expansion_matrix",
        "kernel_projection_matrix",
    }
    assert model(ids_of(1, 5)).logits.isfinite().all()


def test_return_forms():
    model = make(**DECODER)
    ids = ids_of(1, 4)
    output = model(ids, output_hidden_states=True, output_attentions=True)
    values = model(ids, output_hidden_states=True, output_attentions=True, return_dict=False)
    assert isinstance(values, tuple)
    assert list(output) == ["last_hidden_state", "pooler_output", "hidden_states", "past_key_values", "attentions"]
    assert len(values) == 5
    model.config.return_dict = False
    assert isinstance(model(ids), tuple)
