"""Every Flax BERT class against the PyTorch class and the reference's Flax class on the same file."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tests.grid import grid
from tests.parity.flax_parity import compare_gradients, compare_outputs
from tests.parity.torch_parity import randomise
from tests.tolerances import assert_close

import longspan
from longspan.nn.flax.losses import (
    causal_lm_loss,
    cross_entropy,
    question_answering_loss,
    sequence_classification_loss,
)
from longspan.ops.dispatch import recording

SETTINGS = {
    "vocab_size": 97,
    "hidden_size": 36,
    "num_attention_heads": 3,
    "intermediate_size": 50,
    "max_position_embeddings": 29,
    "type_vocab_size": 3,
    "num_labels": 5,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
#: class -> the PyTorch class
CLASSES = {
    "FlaxBertModel": "BertModel",
    "FlaxBertForPreTraining": "BertForPreTraining",
    "FlaxBertForCausalLM": "BertLMHeadModel",
    "FlaxBertForMaskedLM": "BertForMaskedLM",
    "FlaxBertForNextSentencePrediction": "BertForNextSentencePrediction",
    "FlaxBertForSequenceClassification": "BertForSequenceClassification",
    "FlaxBertForMultipleChoice": "BertForMultipleChoice",
    "FlaxBertForTokenClassification": "BertForTokenClassification",
    "FlaxBertForQuestionAnswering": "BertForQuestionAnswering",
}
#: rows of 19 tokens: full, right-padded, with holes behind the first token and in the middle
ROWS, LENGTH = 4, 19


def settings_of(name, **settings):
    extra = {"FlaxBertForCausalLM": {"is_decoder": True}, "FlaxBertForQuestionAnswering": {"num_labels": 2}}
    # compiling takes most of the time: the backbone has two layers, the other classes one
    return {**SETTINGS, "num_hidden_layers": 1 + (name == "FlaxBertModel"), **extra.get(name, {}), **settings}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A function that gives (Flax model, PyTorch model, directory) of a class on equal weights, made once each."""
    made = {}
    root = tmp_path_factory.mktemp("checkpoints")

    def make(name, **settings):
        key = (name, *sorted(settings.items()))
        if key not in made:
            config = longspan.BertConfig(**settings_of(name, **settings), attn_implementation="eager")
            expected = randomise(getattr(longspan, CLASSES[name])(config))
            directory = root / f"{len(made)}" / name
            expected.save_pretrained(directory)
            made[key] = (getattr(longspan, name).from_pretrained(directory), expected, directory)
        return made[key]

    return make


def attention_mask():
    mask = np.ones((ROWS, LENGTH), np.int64)
    mask[1, 11:] = 0
    mask[2, 1:7] = 0  # pooled heads read the first token, so that one is real
    mask[3, 4:6] = 0
    return mask


def inputs_of(name):
    """Inputs of a class, and labels under the PyTorch class's names; labels at padding are ignored."""
    rng = np.random.default_rng(1)
    shape = (2, 2, LENGTH) if name == "FlaxBertForMultipleChoice" else (ROWS, LENGTH)
    mask = attention_mask()
    inputs = {
        "input_ids": rng.integers(0, 97, shape),
        "token_type_ids": rng.integers(0, 3, shape),
        "attention_mask": mask.reshape(shape),
    }
    per_token = np.where(mask == 0, -100, rng.integers(0, 5, (ROWS, LENGTH)))
    after_real = np.concatenate([np.zeros_like(mask[:, :1]), mask[:, :-1]], axis=1)
    labels = {
        "FlaxBertModel": {},
        "FlaxBertForPreTraining": {"labels": per_token, "next_sentence_label": np.array([0, 1, 1, 0])},
        "FlaxBertForCausalLM": {"labels": np.where(mask * after_real == 0, -100, per_token)},
        "FlaxBertForMaskedLM": {"labels": per_token},
        "FlaxBertForNextSentencePrediction": {"labels": np.array([0, 1, 1, 0])},
        "FlaxBertForSequenceClassification": {"labels": np.array([4, 0, 2, 2])},
        "FlaxBertForMultipleChoice": {"labels": np.array([1, 0])},
        "FlaxBertForTokenClassification": {"labels": per_token},
        # 99 lies outside and does not count
        "FlaxBertForQuestionAnswering": {
            "start_positions": np.array([3, 0, 99, 8]),
            "end_positions": np.array([5, 2, 99, 18]),
        },
    }[name]
    return inputs, labels


def loss_of(name, config, output, labels, keep):
    """The loss of a Flax output, as the PyTorch class computes it; of the backbone, a function of all real states."""
    if name == "FlaxBertModel":
        weight = jnp.linspace(-1, 1, output.last_hidden_state.shape[-1])
        states = jnp.square(output.last_hidden_state * keep[..., None] * weight).sum()
        return states + (output.pooler_output * weight).sum()
    if name == "FlaxBertForPreTraining":
        sentences = cross_entropy(output.seq_relationship_logits, labels["next_sentence_label"])
        return cross_entropy(output.prediction_logits, labels["labels"]) + sentences
    if name == "FlaxBertForCausalLM":
        return causal_lm_loss(output.logits, labels["labels"])
    if name == "FlaxBertForSequenceClassification":
        return sequence_classification_loss(config, output.logits, labels["labels"])
    if name == "FlaxBertForQuestionAnswering":
        return question_answering_loss(output.start_logits, output.end_logits, *labels.values())
    return cross_entropy(output.logits, labels["labels"])


def expected_loss(output, keep):
    if "loss" in output:
        return output.loss
    weight = torch.linspace(-1, 1, output.last_hidden_state.shape[-1])
    states = (output.last_hidden_state * torch.from_numpy(keep)[..., None] * weight).square().sum()
    return states + (output.pooler_output * weight).sum()


def tensors(arrays):
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


CASES = [(name, "eager") for name in CLASSES]
CASES += [("FlaxBertModel", "sdpa")]
CASES += [("FlaxBertModel", "packed"), ("FlaxBertForMultipleChoice", "packed")]
CASES += [("FlaxBertForCausalLM", "sdpa"), ("FlaxBertForCausalLM", "packed")]


@pytest.mark.parametrize(("name", "implementation"), grid(CASES, wide=CASES[-2:]))
def test_outputs_losses_and_gradients_equal_the_pytorch_class(pair, name, implementation):
    ours, theirs, _ = pair(name)
    ours.config.attn_implementation = implementation
    theirs.zero_grad()
    inputs, labels = inputs_of(name)
    head_mask = np.array([[1, 0, 1], [1, 1, 0]], np.float32)[: ours.config.num_hidden_layers]
    flags = {"output_hidden_states": True, "output_attentions": implementation == "eager"}
    keep = attention_mask()

    def loss_and_output(params):
        output = ours(**inputs, head_mask=head_mask, params=params, **flags)
        return loss_of(name, ours.config, output, labels, keep), output

    with recording() as ran:
        (loss, output), gradients = jax.jit(jax.value_and_grad(loss_and_output, has_aux=True))(ours.params)
    assert ran == [implementation]
    cache = {"use_cache": False} if name == "FlaxBertForCausalLM" else {}
    expected = theirs(**tensors(inputs), **tensors(labels), head_mask=torch.from_numpy(head_mask), **flags, **cache)
    compare_outputs(output, expected, keep=keep)
    wanted = expected_loss(expected, keep)
    assert_close(loss, wanted, what="loss")
    wanted.backward()
    compare_gradients(gradients, theirs)


#: heads of the reference that are a dense layer behind the backbone
DENSE_HEADS = [f"FlaxBertFor{task}" for task in ("NextSentencePrediction", "MultipleChoice", "TokenClassification")]
DENSE_HEADS += ["FlaxBertForQuestionAnswering"]


@pytest.fixture(scope="module")
def reference_of(pair):
    """A function that gives the directories of classes with what the reference's Flax class makes of them."""
    return functools.cache(lambda names: run_reference(pair, names))


@pytest.fixture
def reference(reference_of, name):
    """Directory of a class with the outputs and the msgpack file of the reference's Flax class."""
    dense = name in DENSE_HEADS
    return reference_of(tuple(each for each in CLASSES if (each in DENSE_HEADS) == dense))[name]


def run_reference(pair, names):
    folders = {}
    for name in names:
        _, _, directory = pair(name)
        inputs, _ = inputs_of(name)
        np.savez(directory / "inputs.npz", **inputs)
        folders[name] = directory
    root = folders[names[0]].parents[1] / f"reference of {names[0]}"
    root.mkdir()
    for name, directory in folders.items():
        (root / name).symlink_to(directory)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("USE_")}
    command = [sys.executable, str(Path(__file__).with_name("flax_reference.py")), str(root)]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folders


@pytest.mark.parametrize("name", grid(CLASSES, wide=DENSE_HEADS))
def test_outputs_equal_the_references_flax_class(pair, reference, name):
    ours, _, _ = pair(name)
    ours.config.attn_implementation = "eager"
    inputs, _ = inputs_of(name)
    output = ours(**inputs, output_attentions=True, output_hidden_states=True)
    expected = {}
    for entry, array in np.load(reference / "outputs.npz").items():
        field, _, _ = entry.rpartition(".")
        several = field in ("hidden_states", "attentions")
        expected[field] = (*expected.get(field, ()), array) if several else array
    compare_outputs(output, expected, keep=attention_mask())


@pytest.mark.parametrize("name", grid(CLASSES, wide=DENSE_HEADS))
def test_the_references_msgpack_gives_the_same_parameters(pair, reference, name):
    ours, _, _ = pair(name)
    assert (reference / "msgpack" / "flax_model.msgpack").is_file()
    model, params = getattr(longspan, name).from_pretrained(reference / "msgpack", _do_init=False)
    assert model.load_report.missing == ()
    jax.tree_util.tree_map(np.testing.assert_array_equal, params, ours.params)


#: each dtype and each implementation once, then the other pairs
MASKED = [("float32", "eager"), ("bfloat16", "sdpa"), ("float16", "packed"), ("bfloat16", "packed")]
MASKED += [("float32", "sdpa"), ("float32", "packed"), ("bfloat16", "eager"), ("float16", "eager"), ("float16", "sdpa")]


@pytest.mark.parametrize(("dtype", "implementation"), grid(MASKED, wide=MASKED[3:]))
def test_masks_give_no_nan_in_any_dtype(pair, dtype, implementation):
    ours, theirs, directory = pair("FlaxBertModel")
    ours.config.attn_implementation = implementation
    model = longspan.FlaxBertModel.from_pretrained(
        directory, dtype=dtype, param_dtype=dtype, attn_implementation=implementation
    )
    ids, mask = inputs_of("FlaxBertModel")[0]["input_ids"], attention_mask()
    mask[0] = 0  # a fully masked row
    with recording() as ran:
        output = model(ids, mask)
    assert ran == [implementation]
    states = output.last_hidden_state
    assert str(states.dtype) == dtype
    assert jnp.isfinite(states).all()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).last_hidden_state
    difference = np.abs((np.asarray(states, np.float32) - expected.numpy()) * mask[..., None]).max()
    # two layers of roundings: errors grow beyond one rounding of the table
    assert difference / expected.abs().max() < {"float32": 1e-5, "bfloat16": 6e-2, "float16": 8e-3}[dtype]


# the second kind computes the scores of the first and its own
@pytest.mark.parametrize("kind", grid(("relative_key", "relative_key_query"), wide=("relative_key",)))
def test_relative_positions(pair, kind):
    name = "FlaxBertForTokenClassification"
    ours, theirs, _ = pair(name, position_embedding_type=kind)
    theirs.zero_grad()
    inputs, labels = inputs_of(name)

    def loss_and_output(params):
        output = ours(**inputs, params=params, output_attentions=True)
        return cross_entropy(output.logits, labels["labels"]), output

    with recording() as ran:
        (_, output), gradients = jax.jit(jax.value_and_grad(loss_and_output, has_aux=True))(ours.params)
    assert ran == ["eager"]
    expected = theirs(**tensors(inputs), **tensors(labels), output_attentions=True)
    compare_outputs(output, expected, keep=attention_mask())
    expected.loss.backward()
    compare_gradients(gradients, theirs)


def test_positions_chunks_and_a_mask_for_every_query(pair):
    ours, theirs, _ = pair("FlaxBertModel", chunk_size_feed_forward=8)
    rng = np.random.default_rng(3)
    inputs = {
        "input_ids": rng.integers(0, 97, (ROWS, LENGTH)),
        "position_ids": rng.integers(0, 29, (ROWS, LENGTH)),
        "attention_mask": rng.random((ROWS, LENGTH, LENGTH)) > 0.4,
    }
    inputs["attention_mask"] |= np.eye(LENGTH, dtype=bool)
    expected = theirs(**tensors(inputs))
    compare_outputs(ours(**inputs), expected)


def test_untied_embeddings(pair):
    ours, theirs, _ = pair("FlaxBertForMaskedLM", tie_word_embeddings=False)
    assert ours.params["cls"]["predictions"]["decoder"].keys() == {"kernel"}
    inputs, _ = inputs_of("FlaxBertForMaskedLM")
    compare_outputs(ours(**inputs), theirs(**tensors(inputs)), keep=attention_mask())


def test_pruned_heads(pair):
    _, theirs, directory = pair("FlaxBertModel", num_attention_heads=4)
    theirs.prune_heads({0: [1, 3], 1: [0]})
    theirs.save_pretrained(directory / "pruned")
    ours = longspan.FlaxBertModel.from_pretrained(directory / "pruned", attn_implementation="eager")
    inputs, _ = inputs_of("FlaxBertModel")
    expected = theirs(**tensors(inputs), output_attentions=True)
    compare_outputs(ours(**inputs, output_attentions=True), expected, keep=attention_mask())
    kept = np.array([[1, 0, 0, 0], [0, 1, 1, 1]], np.float32)  # of layer 0, head 0 stays; of layer 1, all that are left
    masked = ours(**inputs, head_mask=kept, output_attentions=True).attentions
    assert_close(masked[0][:, 1], jnp.zeros_like(masked[0][:, 1]))
    assert float(jnp.abs(masked[0][:, 0]).max()) > 0


class TestDecoder:
    """Causal attention, cross-attention and caches."""

    SETTINGS = {"is_decoder": True, "add_cross_attention": True}  # noqa: RUF012

    def inputs(self):
        rng = np.random.default_rng(2)
        mask, encoder_mask = np.ones((3, 11), np.int64), np.ones((3, 7), np.int64)
        mask[1, :4] = 0  # prompts of unequal length are padded on the left
        encoder_mask[2, 5:] = 0
        states = rng.normal(size=(3, 7, 36)).astype(np.float32)
        encoder = {"encoder_hidden_states": states, "encoder_attention_mask": encoder_mask}
        return rng.integers(0, 97, (3, 11)), mask, encoder

    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    def test_outputs_and_gradients(self, pair, implementation):
        ours, theirs, _ = pair("FlaxBertForCausalLM", **self.SETTINGS)
        ours.config.attn_implementation = implementation
        theirs.zero_grad()
        ids, mask, encoder = self.inputs()
        flags = {"output_hidden_states": True, "output_attentions": implementation == "eager"}
        labels = np.where(mask == 0, -100, ids)
        labels[1, 4] = -100  # follows padding, whose state is free

        def loss_and_output(params):
            output = ours(ids, mask, **encoder, params=params, **flags)
            return causal_lm_loss(output.logits, labels), output

        (loss, output), gradients = jax.jit(jax.value_and_grad(loss_and_output, has_aux=True))(ours.params)
        expected = theirs(**tensors({"input_ids": ids, "attention_mask": mask, "labels": labels, **encoder}), **flags)
        compare_outputs(output, expected, keep=mask)
        assert_close(loss, expected.loss)
        expected.loss.backward()
        compare_gradients(gradients, theirs)

    @pytest.mark.parametrize(("implementation", "cross"), [("eager", False), ("sdpa", True)])
    def test_cached_steps_equal_the_full_pass(self, pair, implementation, cross):
        ours, theirs, _ = pair("FlaxBertForCausalLM", **{**self.SETTINGS, "add_cross_attention": cross})
        ours.config.attn_implementation = implementation
        ids, mask, encoder = self.inputs()
        encoder = encoder if cross else {}
        cache, logits = ours.init_cache(3, 16), []
        with torch.no_grad():
            arguments = tensors({"input_ids": ids, "attention_mask": mask, **encoder})
            expected = theirs(**arguments, use_cache=False).logits.numpy()
        for start, stop in ((0, 7), (7, 9), (9, 11)):
            output = ours(ids[:, start:stop], mask[:, :stop], **encoder, past_key_values=cache)
            cache = output.past_key_values
            logits.append(output.logits)
        assert int(cache["bert"]["encoder"]["layer"]["0"]["attention"]["self"]["cache_index"]) == 11
        assert_close(np.concatenate(logits, axis=1) * mask[..., None], expected * mask[..., None])

    def test_the_backbone_returns_cache_and_cross_attentions(self, pair):
        ours, theirs, _ = pair("FlaxBertModel", **self.SETTINGS)
        ours.config.attn_implementation = "eager"
        ids, mask, encoder = self.inputs()
        output = ours(ids, mask, **encoder, output_attentions=True, past_key_values=ours.init_cache(3, 11))
        expected = theirs(
            **tensors({"input_ids": ids, "attention_mask": mask, **encoder}), output_attentions=True, use_cache=True
        )
        compare_outputs(output, expected, keep=mask)
        assert list(output) == [
            "last_hidden_state",
            "pooler_output",
            "past_key_values",
            "attentions",
            "cross_attentions",
        ]

    def test_one_compiled_step_serves_every_token(self, pair):
        ours, _, _ = pair("FlaxBertForCausalLM", **{**self.SETTINGS, "add_cross_attention": False})
        ours.config.attn_implementation = "auto"
        ids, mask, _ = self.inputs()
        first = ours.prepare_inputs_for_generation(ids[:, :6], max_length=12, attention_mask=mask[:, :6])
        traced = []

        @jax.jit
        def step(params, tokens, arguments):
            traced.append(tokens.shape)
            output = ours(tokens, **arguments, params=params)
            return output.logits, ours.update_inputs_for_generation(output, arguments)

        whole = ours(ids, mask, position_ids=np.maximum(mask.cumsum(1) - 1, 0)).logits
        logits, arguments = step(ours.params, ids[:, :6], first)
        assert_close(logits * mask[:, :6, None], whole[:, :6] * mask[:, :6, None])
        for position in range(6, 11):
            logits, arguments = step(ours.params, ids[:, position : position + 1], arguments)
            assert_close(logits[:, 0], whole[:, position])
        assert traced == [(3, 6), (3, 1)]
