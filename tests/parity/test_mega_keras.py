"""Every Keras MEGA class and setting against the PyTorch class on the same file: outputs, losses, gradients, caches."""

from __future__ import annotations

import filecmp

import numpy as np
import pytest
import torch
from tests.grid import grid
from tests.keras.setting import import_keras
from tests.parity.keras_parity import compare_gradients
from tests.parity.mega_setting import CHUNKS, CLASSES, DECODER, LENGTH, SETTINGS, VARIANTS, compare, inputs_of, tensors
from tests.parity.torch_parity import randomise
from tests.tolerances import assert_close

import longspan
from longspan.errors import ConfigError, InputError

keras = import_keras()
BATCH_NORM = {"normalization_type": "batchnorm"}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Blocks of eight tokens, so that short inputs take several."""
    from longspan.ops.keras import damped_ema

    monkeypatch.setattr(damped_ema, "BLOCK_SIZE", 8)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A function that gives (Keras model, PyTorch model, directory) of a class on equal weights, made once each."""
    made = {}

    def make(name, **settings):
        key = (name, repr(settings))
        if key not in made:
            config = longspan.MegaConfig(**{**SETTINGS, **settings}, attn_implementation="eager")
            expected = randomise(getattr(longspan, name)(config))
            directory = tmp_path_factory.mktemp(name)
            expected.save_pretrained(directory)
            made[key] = (getattr(longspan, f"TF{name}").from_pretrained(directory), expected, directory)
        made[key][1].zero_grad()
        return made[key]

    return make


def scalar(output, keep, ops):
    """The model's own loss; for the backbone, a function of all real states and pooled states."""
    if "loss" in output:
        return ops.sum(output["loss"])
    scale = np.linspace(-1, 1, 12, dtype=np.float32)
    weight, real = (torch.from_numpy(part) if ops is torch else part for part in (scale, keep.astype(np.float32)))
    states = ops.sum(ops.square(output["last_hidden_state"] * real[..., None] * weight))
    return states + ops.sum(output["pooler_output"][:3] * weight)


def check(pair, name, settings, **flags):
    """Outputs, loss and the gradient of every parameter."""
    import tensorflow as tf

    ours, theirs, _ = pair(name, **settings)
    inputs, labels = inputs_of(name, settings=settings)
    if name in ("MegaForSequenceClassification", "MegaForQuestionAnswering"):  # rows whose tokens all count
        inputs, labels = ({key: value[:3] for key, value in arrays.items()} for arrays in (inputs, labels))
    keep = inputs["attention_mask"].reshape(-1, LENGTH)
    expected = theirs(**tensors(inputs), **tensors(labels), **flags)
    with tf.GradientTape() as tape:
        output = ours(**inputs, **labels, **flags)
        loss = scalar(output, keep, keras.ops)
    assert type(output).__name__ == f"TF{type(expected).__name__}"
    theirs_loss = scalar(expected, keep, torch)
    assert_close(loss, theirs_loss)
    if "loss" in output:
        del output["loss"]
    compare(output, expected, keep)
    theirs_loss.backward()
    gradients = tape.gradient(loss, ours.trainable_weights)
    if name == "MegaForMultipleChoice":  # one bias for all choices changes no softmax: what both have is rounding
        place = next(i for i, weight in enumerate(ours.trainable_weights) if weight is ours.classifier.bias)
        assert max(abs(float(gradients[place][0])), abs(float(theirs.classifier.bias.grad[0]))) <= 1e-6
        gradients[place] = gradients[place] * 0.0
        theirs.classifier.bias.grad.zero_()
    compare_gradients(gradients, ours, theirs)


@pytest.mark.parametrize("name", CLASSES)
def test_outputs_losses_and_gradients(pair, name):
    check(pair, name, CLASSES[name], output_attentions=True, output_hidden_states=True)


# a decoder in chunks, and each of its other settings, has a test of its own
@pytest.mark.parametrize("variant", grid(VARIANTS, wide=("decoder-laplace",)))
def test_settings(pair, variant):
    settings = VARIANTS[variant]
    name = "MegaForCausalLM" if settings.get("is_decoder") else "MegaForMaskedLM"
    check(pair, name, settings, output_hidden_states=True)


@pytest.mark.parametrize("length", [1, 4, 13])
def test_lengths_below_and_above_a_chunk(pair, length):
    ours, theirs, _ = pair("MegaModel", **CLASSES["MegaModel"])
    ids = np.random.default_rng(length).integers(2, 59, (3, length))
    compare(ours(ids), theirs(torch.from_numpy(ids)), np.ones_like(ids))


@pytest.mark.parametrize("affine", [True, False])
def test_batch_normalisation_keeps_running_averages(pair, affine):
    import tensorflow as tf

    ours, theirs, directory = pair("MegaForTokenClassification", **BATCH_NORM, norm_affine=affine)
    inputs, labels = inputs_of("MegaForTokenClassification")
    theirs.train()
    expected = theirs(**tensors(inputs), **tensors(labels)).loss
    expected.backward()
    theirs.eval()
    with tf.GradientTape() as tape:
        loss = ours(**inputs, **labels, training=True).loss
    assert_close(loss[0], expected)
    compare_gradients(tape.gradient(loss, ours.trainable_weights), ours, theirs)
    compare(ours(**inputs), theirs(**tensors(inputs)), inputs["attention_mask"])  # of the averages that both moved
    ours.save_pretrained(directory / "moved")
    back = type(theirs).from_pretrained(directory / "moved").state_dict()
    for key, value in theirs.state_dict().items():
        assert_close(back[key], value, what=key)


@pytest.mark.parametrize(
    "settings",
    [
        {**DECODER, **CHUNKS, "attention_activation": "laplace"},
        {**DECODER, "truncation": 4},
        {**DECODER, "add_cross_attention": True},
    ],
    ids=["chunks", "truncated", "cross"],
)
def test_tokens_one_by_one_give_what_all_at_once_give(pair, settings):
    import tensorflow as tf

    ours, theirs, _ = pair("MegaForCausalLM", **settings)
    inputs, _ = inputs_of("MegaForCausalLM", settings=settings)
    inputs = {name: array[[0, 3]] for name, array in inputs.items()}
    with torch.no_grad():
        expected = theirs(**tensors(inputs), use_cache=False).logits.numpy()
    ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
    cache, parts = ours.init_cache(2, LENGTH + 4), []
    step = tf.function(lambda ids, mask, cache: ours(ids, mask, past_key_values=cache, **inputs), jit_compile=True)
    for start, stop in ((0, 9), (9, 10), (10, 11), (11, LENGTH)):
        run = step if stop - start == 1 else lambda ids, mask, cache: ours(ids, mask, past_key_values=cache, **inputs)
        shown = np.pad(mask[:, :stop], ((0, 0), (0, LENGTH - stop)))  # of one shape, so that one program serves
        output = run(tf.constant(ids[:, start:stop]), tf.constant(shown), cache)
        cache, parts = output.past_key_values, [*parts, output.logits]
    assert_close(np.concatenate(parts, axis=1) * mask[..., None], expected * mask[..., None])
    assert step.experimental_get_tracing_count() == 1


@pytest.mark.parametrize(
    "settings", [{"relative_positional_bias": "simple"}, {**CHUNKS, "truncation": 4}], ids=["whole", "chunks"]
)
def test_generated_tokens_equal_pytorchs(pair, settings):
    ours, theirs, _ = pair("MegaForCausalLM", **DECODER, **settings)
    ids, mask = (array[[0, 1, 3]] for array in inputs_of("MegaForCausalLM")[0].values())
    for options in ({"max_new_tokens": 9}, {"max_new_tokens": 5, "num_beams": 3}):
        options |= {"eos_token_id": None, "pad_token_id": 1}
        output = ours.generate(ids, attention_mask=mask, **options)
        expected = theirs.generate(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), **options)
        np.testing.assert_array_equal(np.asarray(output)[:, LENGTH:], expected[:, LENGTH:])


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_float16"])
def test_half_precision_and_dead_rows(pair, dtype):
    import tensorflow as tf

    ours, _, directory = pair("MegaForTokenClassification", **CHUNKS)
    inputs, labels = inputs_of("MegaForTokenClassification")
    half = longspan.TFMegaForTokenClassification.from_pretrained(
        directory, dtype=dtype, dropout_prob=0.1, use_feature_dropout=True
    )
    wide, keep = np.asarray(ours(**inputs).logits), inputs["attention_mask"][..., None]
    logits = half(**inputs).logits
    assert logits.dtype == dtype.removeprefix("mixed_")
    logits = np.asarray(logits, np.float32)
    assert np.isfinite(logits).all()  # the last row is nothing but padding
    assert (np.abs(logits - wide) * keep).max() <= 0.1 * np.abs(wide).max()
    with tf.GradientTape() as tape:
        loss = half(**inputs, **labels, training=True).loss
    for gradient in tape.gradient(loss, half.trainable_weights):
        assert np.isfinite(np.asarray(tf.convert_to_tensor(gradient), np.float32)).all()


@pytest.mark.parametrize("name", ["MegaForCausalLM", "MegaForSequenceClassification"])
def test_files_go_both_ways_and_auto_classes_find_them(pair, name, tmp_path):
    ours, theirs, directory = pair(name, **CLASSES[name])
    ours.save_pretrained(tmp_path)
    for file in ("model.safetensors", "config.json"):
        assert filecmp.cmp(directory / file, tmp_path / file, shallow=False), file
    auto = getattr(longspan, name.replace("Mega", "TFAutoModel"))
    assert type(auto.from_pretrained(tmp_path)) is type(ours)
    for key, value in type(theirs).from_pretrained(tmp_path).state_dict().items():
        assert torch.equal(value, theirs.state_dict()[key]), key


def test_a_graph_for_any_length_and_an_xla_program_give_the_same(pair):
    import tensorflow as tf

    for name, settings in (("MegaForTokenClassification", CHUNKS), ("MegaForQuestionAnswering", {"num_labels": 2})):
        ours, theirs, _ = pair(name, **settings)
        field = "logits" if settings is CHUNKS else "end_logits"

        def run(ids, mask, ours=ours, field=field):
            return ours(ids, mask)[field]

        graphs = [
            tf.function(run, autograph=False, input_signature=[tf.TensorSpec([None, None], tf.int64)] * 2),
            tf.function(run, autograph=False, jit_compile=True),
        ]
        for length, graph in ((19, graphs[0]), (4, graphs[0]), (19, graphs[1])):
            ids, mask = (array[[0, 2], :length] for array in inputs_of(name)[0].values())
            with torch.no_grad():
                expected = theirs(torch.from_numpy(ids), torch.from_numpy(mask))[field].numpy()
            keep = mask.reshape(*mask.shape, *[1] * (expected.ndim - 2))
            assert_close(np.asarray(graph(ids, mask)) * keep, expected * keep)


def test_no_tensor_of_a_traced_step_is_longer_than_the_text_in_two_axes(pair):
    """Forward and backward, as XLA sees them: every shape is known."""
    import tensorflow as tf

    ours, _, _ = pair("MegaForTokenClassification", **CHUNKS)

    def largest(length):
        def step(ids, mask, labels):
            with tf.GradientTape() as tape:
                loss = ours(ids, attention_mask=mask, labels=labels, training=True).loss
            return tape.gradient(loss, ours.trainable_weights)

        specs = [tf.TensorSpec((1, length), tf.int32)] * 3
        graph = tf.function(step, autograph=False, jit_compile=True).get_concrete_function(*specs).graph
        sizes = [t.shape.num_elements() for node in graph.get_operations() for t in node.outputs]
        return max(size for size in sizes if size is not None)  # lists of axes have unknown lengths

    assert largest(1536) <= 2 * largest(768) < 768**2


@pytest.mark.parametrize(
    ("settings", "inputs", "message"),
    [
        ({}, {}, "exactly one of input_ids and inputs_embeds must be given. Received: neither"),
        ({}, {"input_ids": [1, 2]}, r"input_ids must have the shape \(batch, tokens\). Received: \(2,\)"),
        ({}, {"input_ids": [[99]]}, r"input_ids must lie in \[0, vocab_size=59\). Received: 99"),
        ({}, {"input_ids": np.zeros((1, 0), int)}, "the input must have at least one token. Received: 0 tokens"),
        ({}, {"input_ids": [[1]], "attention_mask": [[1, 1]]}, r"attention_mask must have the shape \(batch, tokens\)"),
        ({}, {"input_ids": [[1]], "past_key_values": [(1,)]}, "past_key_values needs a decoder"),
        (DECODER, {"input_ids": [[1]], "past_key_values": ()}, "past_key_values must be what init_cache made"),
        ({}, {"input_ids": [[1]], "encoder_hidden_states": np.ones((1, 1, 12))}, "a model with cross-attention"),
        ({"relative_positional_bias": "simple"}, {"input_ids": [[1] * 41]}, "reaches max_positions=40 tokens"),
    ],
)
def test_errors(settings, inputs, message):
    model = longspan.TFMegaModel(longspan.MegaConfig(**{**SETTINGS, **settings}))
    inputs = {name: np.asarray(value) if name != "past_key_values" else value for name, value in inputs.items()}
    with pytest.raises(InputError, match=message):
        model(**inputs)


def test_a_cache_that_is_full_or_of_another_model_is_refused():
    model = longspan.TFMegaForCausalLM(longspan.MegaConfig(**{**SETTINGS, **DECODER, **CHUNKS}))
    with pytest.raises(InputError, match="the cache has room for 2 tokens. Received: 3 tokens"):
        model(np.ones((1, 3), int), past_key_values=model.init_cache(1, 2))
    cache = model(np.ones((1, 3), int), past_key_values=model.init_cache(1, 4)).past_key_values
    with pytest.raises(InputError, match="the cache has room for 4 tokens. Received: 5 tokens"):
        model(np.ones((1, 2), int), past_key_values=cache)
    with pytest.raises(InputError, match="past_key_values must be what init_cache made"):
        model(np.ones((1, 3), int), past_key_values=model.init_cache(2, 4))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("TFMegaForCausalLM", {}, "TFMegaForCausalLM needs is_decoder=True and bidirectional=False"),
        ("TFMegaModel", {"is_decoder": True}, "a decoder needs bidirectional=False"),
        ("TFMegaModel", {"add_cross_attention": True}, "add_cross_attention needs is_decoder=True"),
    ],
)
def test_settings_that_no_model_can_have(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        getattr(longspan, name)(longspan.MegaConfig(**{**SETTINGS, **settings}))


def test_a_masked_language_model_that_sees_one_direction_is_warned_of_where_it_is_made():
    with pytest.warns(UserWarning, match="TFMegaForMaskedLM should see both directions") as warned:
        longspan.TFMegaForMaskedLM(longspan.MegaConfig(**{**SETTINGS, **DECODER}))
    assert warned[0].filename == __file__


def test_weights_that_a_file_lacks_are_drawn(pair, tmp_path):
    _, theirs, _ = pair("MegaForCausalLM", **DECODER)
    theirs.save_pretrained(tmp_path)
    model = longspan.TFMegaForCausalLM.from_pretrained(tmp_path, add_cross_attention=True)
    cross = model.mega.layers_[0].cross_attn
    assert np.asarray(cross.norm.norm.scalar) == 1.0
    assert np.abs(np.asarray(cross.rel_pos_bias.alpha)).max() > 0


def test_a_larger_vocabulary_keeps_old_scores(pair, tmp_path):
    for tied in (True, False):
        _, _, directory = pair("MegaForMaskedLM", tie_word_embeddings=tied)
        model, ids = longspan.TFMegaForMaskedLM.from_pretrained(directory), inputs_of("MegaForMaskedLM")[0]["input_ids"]
        before = np.asarray(model(ids).logits)
        model.resize_token_embeddings(61)
        np.testing.assert_allclose(np.asarray(model(ids).logits)[..., :59], before, atol=1e-5)
        model.save_pretrained(tmp_path / str(tied))
        again = longspan.TFAutoModelForMaskedLM.from_pretrained(tmp_path / str(tied))
        np.testing.assert_array_equal(again(ids).logits, model(ids).logits)
