"""Every PyTorch LongT5 class against the reference on the same weights, and each listed difference."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
import transformers
from tests.parity.torch_parity import compare_gradients, randomise
from tests.tolerances import assert_close

import longspan
from longspan.errors import CheckpointError, ConfigError, InputError
from longspan.ops.dispatch import recording

SETTINGS = {
    "vocab_size": 97,
    "d_model": 36,
    "d_kv": 10,  # heads need not divide the width
    "d_ff": 50,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 3,
    "local_radius": 4,
    "global_block_size": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 11,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}
#: of the random weights: attention scores are not scaled, and large ones make all gradients rounding errors
SCALE = 0.1
KINDS = ("local", "transient-global")
CLASSES = ("LongT5EncoderModel", "LongT5Model", "LongT5ForConditionalGeneration")
ROWS, LENGTH, TARGET = 3, 29, 7  # odd, no multiple of the blocks of 5 and 4 tokens


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A function that gives (our model, reference model) of a class on equal weights, made once each."""
    made = {}

    def make(name, kind="local", **settings):
        key = (name, kind, *sorted((key, str(value)) for key, value in settings.items()))
        if key not in made:
            config = transformers.LongT5Config(**{**SETTINGS, "encoder_attention_type": kind, **settings})
            reference = randomise(getattr(transformers, name)(config), scale=SCALE)
            directory = tmp_path_factory.mktemp(name)
            reference.save_pretrained(directory)
            made[key] = (getattr(longspan, name).from_pretrained(directory), reference)
        ours, reference = made[key]
        ours.eval().zero_grad()
        reference.eval().zero_grad()
        ours.config.attn_implementation = "auto"
        return ours, reference

    return make


def token_ids(shape):
    return torch.randint(2, 97, shape)


def right_padded(lengths, total):
    """Padding mask of rows of the given lengths."""
    return (torch.arange(total) < torch.tensor(lengths)[:, None]).long()


def inputs_of(name, mask=None):
    torch.manual_seed(1)
    mask = right_padded((29, 18, 22), LENGTH) if mask is None else mask
    inputs = {"input_ids": token_ids(mask.shape), "attention_mask": mask}
    if name == "LongT5Model":
        inputs["decoder_input_ids"] = token_ids((len(mask), TARGET))
        inputs["decoder_attention_mask"] = right_padded((7, 5, 6), TARGET)[: len(mask)]
    if name == "LongT5ForConditionalGeneration":
        inputs["labels"] = token_ids((len(mask), TARGET))
        inputs["labels"][0, 5:] = -100
    return inputs


def blocks_of(mask, rows):
    """(B, S) -> (B, N, rows)."""
    padded = torch.nn.functional.pad(mask, (0, -mask.shape[1] % rows))
    return padded.unflatten(1, (-1, rows))


def kept_places(name, tensor, mask, target_mask):
    """Which values of an output field belong to real tokens; broadcastable to the tensor."""
    if name.startswith("encoder_attentions"):
        return blocks_of(mask, tensor.shape[3])[:, :, None, :, None].bool()
    if name.startswith(("decoder_attentions", "cross_attentions")):
        return target_mask[:, None, :, None].bool()
    is_source = name.startswith("encoder") or target_mask is None
    keep = mask if is_source else target_mask
    return keep[..., None].bool()


def compare_outputs(ours, reference, mask, target_mask=None):
    """Compare every field of the reference's output at real positions."""
    assert set(reference.keys()) == set(ours.keys())
    for name, expected in reference.items():
        mine = ours[name]
        if name == "past_key_values":
            mine, expected = mine.to_legacy_cache(), expected.to_legacy_cache()
            for layer, (here, there) in enumerate(zip(mine, expected, strict=True)):
                for index, (a, b) in enumerate(zip(here, there, strict=True)):
                    keep = (target_mask if index < 2 else mask)[:, None, :, None].bool()
                    assert_close(a.where(keep, 0), b.where(keep, 0), what=f"cache {layer}")
            continue
        several = isinstance(expected, tuple)
        pairs = zip(mine, expected, strict=True) if several else [(mine, expected)]
        for index, (a, b) in enumerate(pairs):
            if a.dim() > 0:
                field = "encoder_attentions" if (name, target_mask) == ("attentions", None) else name
                keep = kept_places(field, b, mask, target_mask)
                a, b = a.where(keep, 0), b.where(keep, 0)
            assert_close(a, b, what=f"{name}[{index}]")


def loss_of(output, mask, target_mask):
    if "loss" in output:
        return output.loss
    keep = mask if target_mask is None else target_mask
    weight = torch.linspace(-1, 1, output.last_hidden_state.shape[-1])
    return (output.last_hidden_state * keep[..., None] * weight).square().sum()


def check(ours, reference, inputs):
    """Compare outputs and gradients."""
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
    target_mask = None
    if "decoder_input_ids" in inputs or "labels" in inputs:
        target = inputs["labels"] if "labels" in inputs else inputs["decoder_input_ids"]
        target_mask = inputs.get("decoder_attention_mask", torch.ones_like(target))
    output, expected = ours(**inputs), reference(**inputs)
    compare_outputs(output, expected, mask, target_mask)
    for result in (output, expected):
        loss_of(result, mask, target_mask).backward()
    if mask.shape[1] < SETTINGS["global_block_size"]:
        drop_zero_gradients(ours, reference)
    compare_gradients(ours, reference)


def drop_zero_gradients(ours, reference):
    """Without any summary, the reference gives the summaries' parameters no gradient; longspan's is zero."""
    unused = [name for name, parameter in reference.named_parameters() if parameter.grad is None]
    for name in unused:
        assert "global" in name
        assert torch.count_nonzero(ours.get_parameter(name).grad) == 0
        ours.get_parameter(name).grad = None


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CLASSES)
def test_outputs_losses_and_gradients_equal_the_reference(pair, name, kind, weights):
    ours, reference = pair(name, kind)
    inputs = inputs_of(name) | {"output_hidden_states": True, "output_attentions": weights}
    inputs["head_mask"] = torch.tensor([[1, 0, 1], [1, 1, 0.5], [0, 1, 1]])
    if name != "LongT5EncoderModel":
        inputs["decoder_head_mask"] = torch.tensor([[1, 1, 0], [1, 0.5, 1]])
        inputs["cross_attn_head_mask"] = torch.tensor([[0, 1, 1], [1, 1, 1]])
    with recording() as ran:
        check(ours, reference, inputs)
    assert ran == ["blocked" if weights else "chunked"] * 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 3, 4, 5, 6, 8, 9, 10, 15, 16, 40])
def test_every_length(pair, length, kind):
    """Below one block of either kind, at and above them, with tokens that fill no block."""
    ours, reference = pair("LongT5EncoderModel", kind)
    lengths = (length, max(length - 3, 1), max(length // 2, 1))
    inputs = inputs_of("LongT5EncoderModel", right_padded(lengths, length))
    check(ours, reference, inputs | {"output_attentions": True})
    ours.zero_grad()
    reference.zero_grad()
    check(ours, reference, inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_without_masks(pair, kind):
    ours, reference = pair("LongT5Model", kind)
    inputs = {"input_ids": token_ids((2, LENGTH)), "decoder_input_ids": token_ids((2, TARGET))}
    check(ours, reference, inputs)


@pytest.mark.parametrize("implementation", ["chunked", "blocked"])
@pytest.mark.parametrize("kind", KINDS)
def test_named_implementation_runs(pair, kind, implementation):
    ours, reference = pair("LongT5EncoderModel", kind)
    ours.config.attn_implementation = implementation
    with recording() as ran:
        check(ours, reference, inputs_of("LongT5EncoderModel"))
    assert ran == [implementation] * 3


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu", "gated-silu", "gelu_new", "silu"])
def test_every_feed_forward(pair, feed_forward):
    ours, reference = pair("LongT5ForConditionalGeneration", feed_forward_proj=feed_forward)
    assert ours.config.dense_act_fn == reference.config.dense_act_fn
    assert ours.config.is_gated_act == reference.config.is_gated_act
    check(ours, reference, inputs_of("LongT5ForConditionalGeneration"))


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_head(pair, tied, tmp_path):
    ours, reference = pair("LongT5ForConditionalGeneration", tie_word_embeddings=tied)
    assert (ours.lm_head.weight is ours.shared.weight) == tied
    check(ours, reference, inputs_of("LongT5ForConditionalGeneration"))
    ours.save_pretrained(tmp_path)
    again = longspan.LongT5ForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, reference.lm_head.weight)


def test_embedded_inputs(pair):
    ours, reference = pair("LongT5Model")
    inputs = {"inputs_embeds": torch.randn(2, LENGTH, 36), "decoder_inputs_embeds": torch.randn(2, TARGET, 36)}
    assert_close(ours(**inputs).last_hidden_state, reference(**inputs).last_hidden_state)


def test_tuples_and_defaults_of_the_configuration(pair):
    ours, reference = pair("LongT5ForConditionalGeneration")
    inputs = inputs_of("LongT5ForConditionalGeneration") | {"return_dict": False, "output_hidden_states": True}
    mine, theirs = ours(**inputs), reference(**inputs)
    assert isinstance(mine, tuple)
    assert len(mine) == len(theirs)
    assert_close(mine[1], theirs[1])
    ours_config, reference_config = longspan.LongT5Config(), transformers.LongT5Config()
    for key in {*inspect.signature(transformers.LongT5Config).parameters, "is_gated_act", "hidden_size"} - {"kwargs"}:
        assert getattr(ours_config, key) == getattr(reference_config, key), key


class TestDecoder:
    """Incremental decoding, encoder outputs that are given, masks."""

    def encoded(self, ours, kind="local"):
        inputs = inputs_of("LongT5EncoderModel")
        return inputs["attention_mask"], ours.get_encoder()(**inputs), inputs

    @pytest.mark.parametrize("cache_kind", ["dynamic", "legacy", "static"])
    def test_cached_steps_equal_the_full_pass(self, pair, cache_kind):
        ours, reference = pair("LongT5ForConditionalGeneration")
        inputs = inputs_of("LongT5EncoderModel")
        ids, mask = token_ids((ROWS, 9)), torch.ones(ROWS, 9, dtype=torch.long)
        mask[1, :3] = 0  # prompts of unequal length are padded on the left
        logits, cache = [], None
        if cache_kind == "static":
            cache = longspan.EncoderDecoderCache(
                longspan.StaticCache(ours.config, max_cache_len=12), longspan.DynamicCache()
            )
        with torch.no_grad():
            full = reference(**inputs, decoder_input_ids=ids, decoder_attention_mask=mask, use_cache=False).logits
            encoder_outputs = ours.get_encoder()(**inputs)
            for start, stop in ((0, 4), (4, 6), (6, 7), (7, 8), (8, 9)):
                output = ours(
                    attention_mask=inputs["attention_mask"],
                    encoder_outputs=encoder_outputs,
                    decoder_input_ids=ids[:, start:stop],
                    decoder_attention_mask=mask[:, :stop],
                    past_key_values=cache,
                    use_cache=True,
                )
                cache = output.past_key_values
                if cache_kind == "legacy":
                    cache = cache if isinstance(cache, tuple) else cache.to_legacy_cache()
                    assert len(cache[0]) == 4
                logits.append(output.logits)
        keep = mask[..., None]
        assert_close(torch.cat(logits, dim=1) * keep, full * keep)

    def test_cross_keys_are_computed_once(self, pair):
        ours, _ = pair("LongT5ForConditionalGeneration")
        mask, encoded, _ = self.encoded(ours)
        calls = []
        hook = ours.decoder.block[1].layer[1].EncDecAttention.k.register_forward_hook(lambda *args: calls.append(1))
        cache = None
        for token in range(3):
            arguments = {"attention_mask": mask, "encoder_outputs": encoded, "past_key_values": cache}
            cache = ours(**arguments, decoder_input_ids=torch.full((ROWS, 1), token)).past_key_values
        hook.remove()
        assert len(calls) == 1
        assert cache.get_seq_length() == 3

    @pytest.mark.parametrize("as_tuple", [True, False])
    def test_encoder_outputs_that_are_given(self, pair, as_tuple):
        ours, _ = pair("LongT5Model")
        mask, encoded, inputs = self.encoded(ours)
        target = token_ids((ROWS, TARGET))
        expected = ours(**inputs, decoder_input_ids=target)
        given = encoded.to_tuple() if as_tuple else encoded
        output = ours(attention_mask=mask, encoder_outputs=given, decoder_input_ids=target)
        assert_close(output.last_hidden_state, expected.last_hidden_state)
        assert_close(output.encoder_last_hidden_state, expected.encoder_last_hidden_state)

    def test_head_mask_of_both_stacks(self, pair):
        ours, reference = pair("LongT5Model", num_decoder_layers=3)
        inputs = inputs_of("LongT5Model") | {"head_mask": torch.tensor([0.0, 1.0, 0.5])}
        with pytest.warns(FutureWarning, match="head_mask is used for the decoder as well"):
            output = ours(**inputs)
        inputs["head_mask"] = inputs["head_mask"].expand(3, 3)
        expected = reference(**inputs, decoder_head_mask=inputs["head_mask"])
        assert_close(output.encoder_last_hidden_state * 0, expected.encoder_last_hidden_state * 0)
        keep = inputs["decoder_attention_mask"][..., None]
        assert_close(output.last_hidden_state * keep, expected.last_hidden_state * keep)

    def test_start_token_is_the_padding_token_by_default(self, pair):
        ours, reference = copy.deepcopy(pair("LongT5ForConditionalGeneration"))
        ours.config.decoder_start_token_id = None
        labels = torch.tensor([[5, -100, 6], [7, 8, 9]])
        shifted = ours.prepare_decoder_input_ids_from_labels(labels)
        assert shifted.tolist() == [[0, 5, 0], [0, 7, 8]]
        assert torch.equal(shifted, reference.prepare_decoder_input_ids_from_labels(labels))
        ours.config.pad_token_id = None
        with pytest.raises(ConfigError, match=r"shifting labels needs pad_token_id.*Received: pad_token_id=None"):
            ours.prepare_decoder_input_ids_from_labels(labels)


class TestFiles:
    @pytest.mark.parametrize("name", CLASSES)
    def test_saved_files_load_in_the_reference_byte_for_byte(self, pair, name, tmp_path):
        ours, reference = pair(name, "transient-global")
        ours.save_pretrained(tmp_path)
        back, info = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True)
        assert info["unexpected_keys"] == []
        expected = reference.state_dict()
        assert back.state_dict().keys() == expected.keys() == ours.state_dict().keys()
        for key, tensor in back.state_dict().items():
            assert torch.equal(tensor, expected[key]), key

    def test_shared_weight_alone_feeds_everything(self, pair, tmp_path):
        from safetensors.torch import load_file, save_file

        ours, reference = pair("LongT5ForConditionalGeneration")
        reference.save_pretrained(tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        for key in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
            tensors.pop(key, None)
        assert "shared.weight" in tensors
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        again = longspan.LongT5ForConditionalGeneration.from_pretrained(tmp_path)
        for weight in (again.encoder.embed_tokens.weight, again.decoder.embed_tokens.weight, again.lm_head.weight):
            assert weight is again.shared.weight
        inputs = inputs_of("LongT5ForConditionalGeneration")
        assert_close(again(**inputs).logits, ours(**inputs).logits)

    def test_encoder_from_a_whole_checkpoint(self, pair, tmp_path):
        ours, _ = pair("LongT5ForConditionalGeneration")
        ours.save_pretrained(tmp_path)
        encoder = longspan.LongT5EncoderModel.from_pretrained(tmp_path)
        inputs = inputs_of("LongT5EncoderModel")
        assert_close(encoder(**inputs).last_hidden_state, ours.get_encoder()(**inputs).last_hidden_state)
        encoder.save_pretrained(tmp_path / "encoder")
        with pytest.raises(CheckpointError, match=r"(?s)missing.*decoder\.block\.0"):
            longspan.LongT5Model.from_pretrained(tmp_path / "encoder")

    def test_auto_classes(self, pair, tmp_path):
        pair("LongT5ForConditionalGeneration")[0].save_pretrained(tmp_path)
        assert type(longspan.AutoConfig.from_pretrained(tmp_path)) is longspan.LongT5Config
        assert type(longspan.AutoModel.from_pretrained(tmp_path)) is longspan.LongT5Model
        made = longspan.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
        assert type(made) is longspan.LongT5ForConditionalGeneration

    def test_resized_vocabulary(self):
        model = longspan.LongT5ForConditionalGeneration(longspan.LongT5Config(**SETTINGS))
        model.resize_token_embeddings(101)
        assert model.encoder.embed_tokens is model.decoder.embed_tokens is model.shared
        assert model.lm_head.weight is model.shared.weight
        assert model(input_ids=token_ids((1, 5)), labels=torch.full((1, 3), 100)).logits.shape[-1] == 101

    def test_initial_weights_have_the_reference_spread(self):
        torch.manual_seed(0)
        settings = {**SETTINGS, "d_model": 80, "d_ff": 90, "num_layers": 1, "num_decoder_layers": 1, "d_kv": 50}
        settings |= {"tie_word_embeddings": False, "encoder_attention_type": "transient-global"}
        settings |= {"initializer_factor": 0.7, "relative_attention_num_buckets": 32, "vocab_size": 400}
        settings |= {"relative_attention_max_distance": 128}
        ours = longspan.LongT5ForConditionalGeneration(longspan.LongT5Config(**settings))
        reference = transformers.LongT5ForConditionalGeneration(transformers.LongT5Config(**settings))
        expected = reference.state_dict()
        for name, tensor in ours.state_dict().items():
            spread = 0.0 if name.endswith("norm.weight") else float(expected[name].std())
            assert abs(float(tensor.std()) - spread) <= 0.25 * spread, name
            assert abs(float(tensor.mean() - expected[name].mean())) <= 0.5 * max(spread, 0.01), name


class TestDifferences:
    """Where longspan differs from the reference on purpose."""

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("real", [3, 11, 16, 23])
    def test_left_padded_equals_right_padded(self, pair, kind, real):
        ours, reference = pair("LongT5ForConditionalGeneration", kind)
        ids, labels = token_ids((1, real)), token_ids((1, TARGET))
        outputs = []
        for before, behind in ((0, 26 - real), (26 - real, 0), (2, 24 - real)):
            inputs = {"input_ids": torch.nn.functional.pad(ids, (before, behind))}
            inputs["attention_mask"] = torch.nn.functional.pad(torch.ones_like(ids), (before, behind))
            output = ours(**inputs, labels=labels)
            states = output.encoder_last_hidden_state[:, before : before + real]
            outputs.append((states, output.logits))
            if before == 0:
                assert_close(output.logits, reference(**inputs, labels=labels).logits)
        for states, logits in outputs[1:]:
            assert_close(states, outputs[0][0])
            assert_close(logits, outputs[0][1])

    def test_boolean_masks(self, pair):
        ours, reference = pair("LongT5EncoderModel", "transient-global")
        inputs = inputs_of("LongT5EncoderModel")
        expected = reference(**inputs).last_hidden_state
        mask = inputs["attention_mask"].bool()
        output = ours(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state
        assert_close(output[mask], expected[mask])

    @pytest.mark.parametrize("padding", ["none", "right", "left", "all"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("kind", KINDS)
    def test_no_nan_whatever_is_masked(self, pair, kind, dtype, padding):
        ours = copy.deepcopy(pair("LongT5ForConditionalGeneration", kind)[0]).to(dtype)
        mask = torch.ones(2, 21, dtype=torch.long)
        dead = {"none": slice(0, 0), "right": slice(8, None), "left": slice(0, 13), "all": slice(None)}[padding]
        mask[1, dead] = 0
        target_mask = torch.ones(2, TARGET, dtype=torch.long)
        target_mask[1, : TARGET if padding == "all" else 2] = 0
        output = ours(
            input_ids=token_ids((2, 21)), attention_mask=mask, decoder_input_ids=token_ids((2, TARGET)),
            decoder_attention_mask=target_mask, output_hidden_states=True,
        )  # fmt: skip
        output.logits.float().square().mean().backward()
        assert torch.isfinite(output.logits).all()
        assert all(torch.isfinite(states).all() for states in output.encoder_hidden_states)
        assert all(torch.isfinite(parameter.grad).all() for parameter in ours.parameters())

    @pytest.mark.parametrize("gate", ["", "gated-"])
    def test_float16_survives_a_large_residual(self, gate):
        torch.manual_seed(0)
        config = longspan.LongT5Config(**SETTINGS, feed_forward_proj=f"{gate}relu")
        model = longspan.LongT5EncoderModel(config).eval()
        with torch.no_grad():
            for block in model.encoder.block:  # feed-forward outputs far beyond 65504, from weights within it
                for name, weight in block.layer[1].DenseReluDense.named_parameters():
                    weight.mul_(1e3 if name.startswith("wo.") else 1e2)
            inputs = {"input_ids": token_ids((2, 21))}
            expected = model(**inputs, output_hidden_states=True)
            output = copy.deepcopy(model).half()(**inputs, output_hidden_states=True)
        assert expected.hidden_states[-2].abs().max() > 65504
        assert all(torch.isfinite(states).all() for states in output.hidden_states)
        assert_close(output.last_hidden_state, expected.last_hidden_state, "float16")

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_queries_beyond_float16_are_its_limit_as_in_the_reference(self, pair, dtype):
        ours, theirs = (copy.deepcopy(model).eval() for model in pair("LongT5EncoderModel"))
        with torch.no_grad():
            for model in (ours, theirs):
                for name, weight in model.named_parameters():
                    if name.endswith(".q.weight"):
                        weight.mul_(5e4)
            inputs = {"input_ids": token_ids((2, 21))}
            expected = ours(**inputs).last_hidden_state
            found = [bool(model.to(dtype)(**inputs).last_hidden_state.isfinite().all()) for model in (ours, theirs)]
        assert expected.isfinite().all()
        assert found == [dtype == torch.bfloat16] * 2

    def test_missing_keys_raise(self, pair, tmp_path):
        from safetensors.torch import load_file, save_file

        pair("LongT5Model")[0].save_pretrained(tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        del tensors["shared.weight"]
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=r"shared\.weight"):
            longspan.LongT5Model.from_pretrained(tmp_path)

    @pytest.mark.parametrize("kind", KINDS)
    def test_dense_attentions_are_the_definition(self, pair, kind):
        ours, _ = pair("LongT5EncoderModel", kind)
        seen = []
        attention = ours.encoder.block[0].layer[0].attention
        hook = attention.register_forward_hook(lambda module, args, output: seen.append((args[0], output[0])))
        mask = right_padded((LENGTH, 18), LENGTH)
        inputs = {"input_ids": token_ids((2, LENGTH)), "attention_mask": mask}
        weights = ours(**inputs, output_attentions=True).attentions[0]
        hook.remove()
        dense = longspan.blocked_attentions_to_dense(weights, LENGTH)
        states, context = seen[0]
        num_summaries = LENGTH // 4 if kind == "transient-global" else 0
        assert dense.shape == (2, 3, LENGTH, LENGTH + num_summaries)
        keep = mask.bool()
        assert_close(dense.sum(-1).transpose(1, 2)[keep], torch.ones(int(mask.sum()), 3))
        distance = (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)).abs()
        assert (dense[..., :LENGTH][:, :, (distance > 4)] == 0).all()
        values = attention.split(attention.v(states))
        if num_summaries:
            sums = torch.stack([block_sums(row, int(n), num_summaries) for row, n in zip(states, mask.sum(1))])  # noqa: B905
            summaries = attention.global_input_layer_norm(sums)
            values = torch.cat([values, attention.split(attention.v(summaries))], dim=2)
        assert_close(attention.merge(dense @ values)[keep], context[keep])


def block_sums(states, length, number):
    """Sums of blocks of 4 tokens; those that fill no block go to the last full one."""
    sums = torch.zeros(number, states.shape[-1])
    for token in range(length):
        sums[min(token // 4, length // 4 - 1)] += states[token]
    return sums


class TestTraining:
    @pytest.mark.parametrize("kind", KINDS)
    def test_gradient_checkpointing_changes_nothing(self, pair, kind):
        ours, reference = pair("LongT5ForConditionalGeneration", kind)
        ours.gradient_checkpointing_enable()
        ours.train()
        reference.train()
        try:
            check(ours, reference, inputs_of("LongT5ForConditionalGeneration") | {"use_cache": False})
            with pytest.warns(UserWarning, match="use_cache=True cannot be used with gradient checkpointing"):
                assert ours(**inputs_of("LongT5ForConditionalGeneration")).past_key_values is None
        finally:
            ours.gradient_checkpointing_disable()

    def test_dropout(self):
        model = longspan.LongT5EncoderModel(longspan.LongT5Config(**{**SETTINGS, "dropout_rate": 0.5}))
        ids = token_ids((1, 20))
        model.train()
        assert not torch.equal(model(ids)[0], model(ids)[0])
        attention = model.encoder.block[0].layer[0].attention
        assert attention.dropout == 0.5
        model.eval()
        assert attention.dropout == 0.0
        assert torch.equal(model(ids)[0], model(ids)[0])


@pytest.mark.parametrize("kind", KINDS)
class TestTracing:
    def test_one_graph_for_all_lengths(self, pair, kind):
        from torch._dynamo.testing import CompileCounter

        ours, _ = pair("LongT5EncoderModel", kind, num_layers=2)
        torch._dynamo.reset()
        counter = CompileCounter()
        compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend=counter)
        with torch.no_grad():
            for length in (29, 64, 3, 65, 131):
                mask = right_padded((length, max(length // 2, 1)), length)
                ids = token_ids(mask.shape)
                output = compiled(ids, attention_mask=mask).last_hidden_state
                assert_close(output[mask.bool()], ours(ids, attention_mask=mask).last_hidden_state[mask.bool()])
        assert counter.frame_count == 1

    def test_whole_model_in_one_graph(self, pair, kind):
        ours, reference = pair("LongT5Model", kind, num_layers=1, num_decoder_layers=1)
        torch._dynamo.reset()
        compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
        inputs = inputs_of("LongT5Model") | {"use_cache": False}
        for model in (compiled, reference):
            loss_of(model(**inputs), None, inputs["decoder_attention_mask"]).backward()
        compare_gradients(ours, reference)

    def test_export_with_a_dynamic_length(self, pair, kind):
        ours, _ = pair("LongT5EncoderModel", kind, num_layers=2)
        axes = {0: torch.export.Dim("batch", min=1, max=8), 1: torch.export.Dim("tokens", min=2, max=512)}
        inputs = inputs_of("LongT5EncoderModel")
        shapes = {"input_ids": axes, "attention_mask": axes}
        program = torch.export.export(ours, (), inputs, dynamic_shapes=shapes).module()
        with torch.no_grad():
            for length in (2, 5, 64, 65, 200):
                mask = right_padded((length, max(length // 2, 1)), length)
                arguments = {"input_ids": token_ids(mask.shape), "attention_mask": mask}
                keep = mask.bool()
                assert_close(program(**arguments)[0][keep], ours(**arguments)[0][keep])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"local_radius": 0}, "local_radius must be positive. Received: local_radius=0"),
        ({"global_block_size": -1}, "global_block_size must be positive. Received: global_block_size=-1"),
        ({"relative_attention_num_buckets": 7}, "must be even and at least 4.*relative_attention_num_buckets=7"),
        ({"relative_attention_num_buckets": 2}, "must be even and at least 4.*relative_attention_num_buckets=2"),
        ({"relative_attention_max_distance": 4}, "relative_attention_max_distance must exceed half of .*=4, "),
        ({"encoder_attention_type": "global"}, "must be one of local, transient-global. Received: .*'global'"),
        ({"feed_forward_proj": "gated-gelu-new"}, "feed_forward_proj must be .*Received: .*'gated-gelu-new'"),
        ({"feed_forward_proj": "gated-"}, "feed_forward_proj must be"),
        ({"feed_forward_proj": "cubed"}, "an activation must be one of .*Received: 'cubed'"),
        ({"num_heads": 0}, "num_heads must be positive"),
        ({"dropout_rate": 1.5}, r"dropout_rate must lie in \[0, 1\)"),
    ],
)
def test_clear_configuration_errors(settings, message):
    with pytest.raises(ConfigError, match=message):
        longspan.LongT5EncoderModel(longspan.LongT5Config(**{**SETTINGS, **settings}))


IDS, TARGETS = torch.full((2, 9), 5), torch.full((2, 3), 5)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"attention_mask": torch.ones(2, 8)}, r"attention_mask must have the shape \(batch, tokens\) = \(2, 9\)"),
        ({"decoder_attention_mask": torch.ones(2, 2)}, r"decoder_attention_mask must have the shape.*\(2, 3\)"),
        ({"decoder_input_ids": None}, "exactly one of decoder_input_ids and decoder_inputs_embeds must be given"),
        ({"decoder_inputs_embeds": torch.ones(2, 3, 36)}, "decoder_inputs_embeds must be given.*Received: both"),
        ({"decoder_input_ids": torch.full((3,), 5)}, r"decoder_input_ids must have the shape \(batch, target tokens\)"),
        ({"decoder_input_ids": torch.full((2, 3), 97)}, r"decoder_input_ids must lie in \[0, vocab_size=97\)"),
        ({"input_ids": None}, "exactly one of input_ids and inputs_embeds must be given"),
        ({"input_ids": torch.full((2, 9), -1)}, r"input_ids must lie in \[0, vocab_size=97\). Received: -1"),
        ({"head_mask": torch.ones(2, 3), "decoder_head_mask": torch.ones(3)}, "head_mask must have the shape"),
    ],
)
def test_clear_input_errors(pair, inputs, message):
    ours, _ = pair("LongT5Model")
    with pytest.raises(InputError, match=message):
        ours(**{"input_ids": IDS, "decoder_input_ids": TARGETS, **inputs})


@torch.no_grad()
def test_a_decoder_without_encoder_states(pair):
    """Its layers skip their cross-attention."""
    ours, reference = pair("LongT5Model")
    mine, theirs = (model.eval().get_decoder()(TARGETS) for model in (ours, reference))
    assert_close(mine.last_hidden_state, theirs.last_hidden_state)
    assert ours.get_decoder()(TARGETS, output_attentions=True).cross_attentions is None
    more = ours.get_decoder()(TARGETS[:, :1], past_key_values=mine.past_key_values).last_hidden_state
    expected = reference.get_decoder()(TARGETS[:, :1], past_key_values=theirs.past_key_values).last_hidden_state
    assert_close(more, expected)


def test_an_unknown_implementation():
    with pytest.raises(InputError, match="attn_implementation must be one of auto, flex, chunked, blocked"):
        longspan.LongT5Model(longspan.LongT5Config(**SETTINGS, attn_implementation="fast"))
