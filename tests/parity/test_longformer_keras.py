"""Every Keras Longformer class against the PyTorch class on the same safetensors: outputs, losses, gradients, files."""

from __future__ import annotations

import filecmp

import numpy as np
import pytest
import torch
from tests.grid import grid
from tests.keras.graphs import largest_tensor
from tests.keras.setting import import_keras
from tests.parity.keras_parity import at_real_positions, compare_gradients, compare_outputs
from tests.parity.longformer_keras_setting import CLASSES, ROWS, attention_mask, config_for, global_mask, inputs_of
from tests.parity.torch_parity import randomise
from tests.tolerances import assert_close

import longspan
from longspan.errors import InputError

keras = import_keras()
DTYPES = ("float32", "bfloat16", "float16", "mixed_bfloat16", "mixed_float16")
UNLABELLED = ("input_ids", "attention_mask", "token_type_ids")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A function that gives (Keras model, PyTorch model, directory) of a class on equal weights, made once each."""
    made = {}

    def make(name, **settings):
        key = (name, *sorted(settings.items()))
        if key not in made:
            torch_model = randomise(getattr(longspan, name.removeprefix("TF"))(config_for(**settings)))
            directory = tmp_path_factory.mktemp(name)
            torch_model.save_pretrained(directory)
            made[key] = (getattr(longspan, name).from_pretrained(directory), torch_model, directory)
        return made[key]

    return make


def torch_inputs(inputs):
    return {key: torch.tensor(value) if isinstance(value, np.ndarray) else value for key, value in inputs.items()}


def scalar(output, keep, ops):
    """The model's own loss; for the backbone, a function of all real states and pooled states."""
    if "loss" in output:
        return ops.sum(output["loss"])
    weight = np.linspace(-1, 1, 36, dtype=np.float32)
    weight, keep = (torch.from_numpy(weight), torch.from_numpy(keep)) if ops is torch else (weight, keep)
    states = ops.sum(ops.square(output["last_hidden_state"] * keep[..., None]) * weight)
    return states + ops.sum(ops.square(output["pooler_output"]) * weight)


def compare(pair, name, inputs, keep, **settings):
    """Outputs, loss and the gradient of every parameter."""
    import tensorflow as tf

    ours, theirs, _ = pair(name, **settings)
    keep = keep.astype(np.float32)
    with tf.GradientTape() as tape:
        output = ours(**inputs)
        loss = scalar(output, keep, keras.ops)
    theirs.zero_grad()
    expected = theirs(**torch_inputs(inputs))
    assert type(output).__name__ == f"TF{type(expected).__name__}"
    compare_outputs(output, expected, keep=keep)
    scalar(expected, keep, torch).backward()
    compare_gradients(tape.gradient(loss, ours.trainable_weights), ours, theirs)


@pytest.mark.parametrize("name", CLASSES)
def test_outputs_losses_and_gradients_equal_pytorch(pair, name):
    inputs = inputs_of(name) | {"output_hidden_states": True, "output_attentions": True}
    inputs["head_mask"] = np.array([[1, 0, 1], [1, 1, 0.5]], np.float32)
    compare(pair, name, inputs, attention_mask())


GLOBAL = [(kind, length) for length in (27, 130) for kind in ("none", "one", "all", "mixed")]


@pytest.mark.parametrize(("kind", "length"), grid(GLOBAL, wide=[("none", 130), ("one", 130), ("all", 130)]))
def test_global_tokens_equal_pytorch(pair, kind, length):
    inputs = inputs_of("", length=length)
    mask = inputs["attention_mask"]
    inputs["global_attention_mask"] = global_mask(mask, kind)
    settings = {"attention_window": 22, "max_position_embeddings": 140} if length > 100 else {}
    compare(pair, "TFLongformerModel", inputs | {"output_attentions": length < 100}, mask, **settings)


@pytest.mark.parametrize("length", [1, 3])
def test_below_the_window(pair, length):
    ids = np.random.default_rng(0).integers(3, 97, (ROWS, length))
    mask = np.ones((ROWS, length), np.int64)
    mask[1, 1:], mask[2, 0] = 0, 2
    inputs = {"input_ids": ids, "attention_mask": mask, "output_attentions": True}
    compare(pair, "TFLongformerModel", inputs, np.minimum(mask, 1))


def test_embedded_inputs_and_positions_equal_pytorch(pair):
    generator = np.random.default_rng(3)
    for positions in ({}, {"position_ids": generator.integers(0, 90, (ROWS, 27))}):
        embeds = generator.standard_normal((ROWS, 27, 36)).astype(np.float32)
        embeds[1, -2], embeds[3, 15] = np.nan, np.inf  # at padding
        inputs = {"inputs_embeds": embeds, "attention_mask": attention_mask(), **positions}
        ours, theirs, _ = pair("TFLongformerForSequenceClassification")
        compare_outputs(ours(**inputs), theirs(**torch_inputs(inputs)))


@pytest.mark.parametrize("dtype", grid(DTYPES, wide=("float16", "mixed_bfloat16")))
def test_dead_rows_give_zero_weights_and_no_nan(pair, dtype):
    _, theirs, directory = pair("TFLongformerModel")
    model = longspan.TFLongformerModel.from_pretrained(directory, dtype=dtype)
    mask = attention_mask()
    mask[1] = 0
    inputs = {"input_ids": inputs_of("")["input_ids"], "attention_mask": mask, "output_attentions": True}
    inputs["global_attention_mask"] = global_mask(mask, "mixed") | global_mask(mask, "one")
    output, expected = model(**inputs), theirs(**torch_inputs(inputs))
    states = np.asarray(output.last_hidden_state, np.float32)
    assert np.isfinite(states).all()
    for weights in (*output.attentions, *output.global_attentions):
        assert np.abs(np.asarray(weights, np.float32)[1]).max() == 0
    if dtype == "float32":
        compare_outputs(output, expected, keep=np.minimum(mask, 1))


@pytest.mark.parametrize("name", CLASSES)
def test_files_are_equal_to_the_byte_and_load_in_pytorch(pair, name, tmp_path):
    ours, theirs, directory = pair(name)
    ours.save_pretrained(tmp_path)
    for file in ("model.safetensors", "config.json"):
        assert filecmp.cmp(directory / file, tmp_path / file, shallow=False), file
    loaded = type(theirs).from_pretrained(tmp_path)
    for key, value in theirs.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_a_graph_an_xla_program_and_a_call_give_the_same(pair):
    import tensorflow as tf

    ours, theirs, _ = pair("TFLongformerForQuestionAnswering")
    inputs = inputs_of("", labelled=False)
    expected = theirs(**torch_inputs(inputs)).start_logits

    def run(ids, mask, segments):
        return ours(ids, attention_mask=mask, token_type_ids=segments)

    unknown = [tf.TensorSpec([None, None], tf.int64)] * 3
    for options in ({"input_signature": unknown}, {"jit_compile": True}):
        output = tf.function(run, autograph=False, **options)(*(inputs[name] for name in UNLABELLED))
        assert type(output).__name__ == "TFLongformerQuestionAnsweringModelOutput"
        scores = at_real_positions("logits", output.start_logits, attention_mask())
        assert_close(scores, at_real_positions("logits", expected, attention_mask()), what=str(options))


def test_a_compiled_program_marks_rows_with_more_global_tokens_than_it_has_room_for(pair):
    import tensorflow as tf

    ours, _, _ = pair("TFLongformerModel", num_global_slots=3)
    inputs = {"input_ids": inputs_of("")["input_ids"], "global_attention_mask": global_mask(attention_mask(), "mixed")}
    states = tf.function(lambda: ours(**inputs).last_hidden_state, autograph=False, jit_compile=True)()
    expected = ours(**inputs).last_hidden_state
    assert np.isnan(states[2]).all()
    rows = [0, 1, 3]
    assert_close(np.asarray(states)[rows], np.asarray(expected)[rows])


def test_no_tensor_of_a_traced_step_is_longer_than_the_text_in_two_axes(pair):
    """Forward and backward, as XLA sees them: every shape is known."""
    import tensorflow as tf

    ours, _, _ = pair("TFLongformerForTokenClassification", max_position_embeddings=4200, num_global_slots=4)

    def largest(length):
        def step(ids, mask, labels):
            with tf.GradientTape() as tape:
                loss = ours(ids, attention_mask=mask, global_attention_mask=mask, labels=labels, training=True).loss
            return tape.gradient(loss, ours.trainable_weights)

        specs = [tf.TensorSpec((1, length), tf.int32)] * 3
        return largest_tensor(tf.function(step, autograph=False, jit_compile=True), *specs)

    assert largest(4096) <= 4 * largest(1024) < 1024**2


def test_lengths_beyond_the_positions_and_ids_beyond_the_table_are_named(pair):
    import tensorflow as tf

    ours, _, _ = pair("TFLongformerModel")
    ids = np.full((1, 89), 5)
    message = "the input must not be longer than max_position_embeddings - pad_token_id - 1=88 tokens"
    with pytest.raises(InputError, match=message):
        ours(ids)
    assert ours(np.pad(ids[:, 1:], ((0, 0), (0, 9)), constant_values=1)).last_hidden_state.shape[1] == 97
    graph = tf.function(lambda ids: ours(ids).last_hidden_state, autograph=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match="must not be longer"):
        graph(ids)
    with pytest.raises(InputError, match=r"input_ids must lie in \[0, vocab_size=97\). Received: 97 at position"):
        ours(np.full((1, 5), 97))
    with pytest.raises(InputError, match=r"global_attention_mask must have the shape \(batch, tokens\) = \(1, 5\)"):
        ours(ids[:, :5], global_attention_mask=ids[:, :4])


def test_rows_without_a_question_or_a_choice_warn(pair):
    for name, what in (("QuestionAnswering", "question: no separator and no token"), ("MultipleChoice", "choice: no")):
        ours, theirs, _ = pair(f"TFLongformerFor{name}")
        ids = np.random.default_rng(0).integers(3, 97, (2, 3, 11) if name == "MultipleChoice" else (2, 11))
        ids[0, ..., 3] = 2
        with pytest.warns(UserWarning, match=f"the model cannot find a {what}"):
            output = ours(ids)
        with pytest.warns(UserWarning, match="the model cannot find"):
            expected = theirs(torch.from_numpy(ids))
        compare_outputs(output, expected)


def test_pruned_heads_are_those_that_a_head_mask_removes(pair, tmp_path):
    _, _, directory = pair("TFLongformerModel")
    model = longspan.TFLongformerModel.from_pretrained(directory)
    inputs = inputs_of("") | {"global_attention_mask": global_mask(attention_mask(), "mixed")}
    head_mask = np.array([[1, 0, 1], [0, 1, 0]], np.float32)
    expected = model(**inputs, head_mask=head_mask).last_hidden_state
    model.prune_heads({0: [1], 1: [0, 2]})
    for arguments in ({}, {"head_mask": head_mask}):  # a mask counts heads as they were
        assert_close(model(**inputs, **arguments).last_hidden_state, expected)
    model.save_pretrained(tmp_path)
    again = longspan.TFLongformerModel.from_pretrained(tmp_path)
    assert again.encoder.layer[1].attention.self.key_global.kernel.shape == (36, 12)
    np.testing.assert_array_equal(again(**inputs).last_hidden_state, model(**inputs).last_hidden_state)
    with pytest.raises(InputError, match=r"layers to prune must lie in \[0, 2\). Received: 2"):
        model.prune_heads({2: [0]})
