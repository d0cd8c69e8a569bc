"""LongT5 in Flax: calls, caches, bad input, transformations of JAX, training, parameters."""

from __future__ import annotations

import inspect
import os
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.grid import grid
from tests.tolerances import assert_close, gradient_error

import longspan
from longspan.errors import ConfigError, InputError
from longspan.nn.flax.buckets import bucket
from longspan.nn.flax.losses import cross_entropy

SETTINGS = {
    "vocab_size": 61,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 20,
    "num_heads": 4,
    "num_layers": 2,
    "local_radius": 3,
    "global_block_size": 4,
    "encoder_attention_type": "transient-global",
    "decoder_start_token_id": 0,
}
IDS = np.arange(2, 28).reshape(2, 13)
TARGETS = np.array([[0, 5, 6, 7, 8], [0, 9, 3, 2, 1]])
CLASSES = ["FlaxLongT5EncoderModel", "FlaxLongT5Model", "FlaxLongT5ForConditionalGeneration"]


def make(name="FlaxLongT5ForConditionalGeneration", *, arguments=(), **settings):
    """A model whose parameters are all random, norms and biases included."""
    config = longspan.LongT5Config(**{**SETTINGS, **settings})
    model = getattr(longspan, name)(config, _do_init=False, **dict(arguments))
    rng = np.random.default_rng(0)
    params = jax.tree_util.tree_map(
        lambda leaf: jnp.asarray(rng.normal(scale=0.3, size=leaf.shape), leaf.dtype), model.params_shape_tree
    )
    model._is_initialized, model._params = True, params
    return model


@pytest.fixture(scope="module")
def model():
    """A generating model with dropout; tests do not change it."""
    return make()


@pytest.fixture(scope="module")
def shallow():
    """The same with one layer, for programs that take long to compile."""
    return make(num_layers=1)


@pytest.fixture(scope="module")
def encoded(model):
    return model.encode(IDS)


class TestSignatures:
    """SPEC §3.2: names, order and defaults."""

    CONSTRUCTOR = "config input_shape=(1, 1) seed=0 dtype=float32 _do_init=True kwargs"
    FLAGS = "output_attentions=None output_hidden_states=None return_dict=None train=False params=None dropout_rng=None"
    CALL = "input_ids attention_mask=None decoder_input_ids=None decoder_attention_mask=None " + FLAGS
    ENCODE = "input_ids attention_mask=None " + FLAGS
    DECODE = (
        "decoder_input_ids encoder_outputs encoder_attention_mask=None decoder_attention_mask=None "
        "past_key_values=None " + FLAGS
    )

    @staticmethod
    def text(method):
        parameters = list(inspect.signature(method).parameters.values())[1:]
        return " ".join(
            p.name if p.default is p.empty else f"{p.name}={getattr(p.default, '__name__', p.default)}"
            for p in parameters
        )

    @pytest.mark.parametrize("name", [*CLASSES, "FlaxLongT5PreTrainedModel"])
    def test_order_and_defaults(self, name):
        cls = getattr(longspan, name)
        assert self.text(cls.__init__) == self.CONSTRUCTOR
        assert self.text(cls.__call__) == (self.ENCODE if name == "FlaxLongT5EncoderModel" else self.CALL)
        assert self.text(cls.encode) == self.ENCODE
        assert self.text(cls.decode) == self.DECODE
        assert self.text(cls.init_cache) == "batch_size max_length encoder_outputs"


class TestExamplesOfTheSpecification:
    """X5, X6 and X7, with a small checkpoint and any ids in the place of a tokenizer's."""

    def test_x5_call(self):
        output = make("FlaxLongT5Model", num_layers=1)(input_ids=IDS, decoder_input_ids=TARGETS)
        assert output.last_hidden_state.shape == (2, 5, 16)

    def test_x6_encode(self, encoded):
        assert encoded.last_hidden_state.shape == (2, 13, 16)

    def test_x7_decode(self, model, encoded):
        start = jnp.ones((2, 1), dtype="i4") * model.config.decoder_start_token_id
        assert model.decode(start, encoded).logits.shape == (2, 1, 61)


class TestOutputs:
    def test_encode_and_decode_make_up_a_call(self, model, encoded):
        mask = np.ones_like(IDS)
        mask[0, 9:] = 0
        whole = model(IDS, mask, TARGETS, output_hidden_states=True)
        states = model.encode(IDS, mask)
        assert_close(model.decode(TARGETS, states, mask).logits, whole.logits)
        assert_close(model.decode(TARGETS, (states.last_hidden_state,), mask).logits, whole.logits)
        assert_close(states.last_hidden_state, whole.encoder_last_hidden_state)
        assert [state.shape for state in whole.encoder_hidden_states] == [(2, 13, 16)] * 3
        assert [state.shape for state in whole.decoder_hidden_states] == [(2, 5, 16)] * 3
        assert (np.asarray(model(IDS, None, TARGETS).logits) != np.asarray(whole.logits)).any()

    def test_attentions(self, model):
        output = model(IDS, None, TARGETS, output_attentions=True)
        assert [weights.shape for weights in output.encoder_attentions] == [(2, 4, 4, 4, 12 + 3)] * 2
        assert [weights.shape for weights in output.decoder_attentions] == [(2, 4, 5, 5)] * 2
        assert [weights.shape for weights in output.cross_attentions] == [(2, 4, 5, 13)] * 2
        for weights in (*output.decoder_attentions, *output.cross_attentions):
            assert_close(weights.sum(axis=-1), np.ones((2, 4, 5)))

    def test_tuples(self, model):
        one, states = model(IDS, None, TARGETS, return_dict=False)
        assert (one.shape, states.shape) == ((2, 5, 61), (2, 13, 16))
        assert len(model.encode(IDS, return_dict=False)) == 1

    def test_the_configuration_sets_the_defaults(self):
        model = make(output_hidden_states=True, return_dict=False)
        assert len(model.encode(IDS)) == 2


class TestCache:
    def full(self, model, encoded, mask):
        return model.decode(TARGETS, encoded, mask, output_hidden_states=True)

    @pytest.mark.parametrize("steps", [[1, 1, 1, 1, 1], [3, 2]])
    def test_step_by_step_equals_the_whole(self, model, encoded, steps):
        mask = np.ones_like(IDS)
        mask[1, :5] = 0
        expected, done = self.full(model, encoded, mask).logits, 0
        cache = model.init_cache(2, 7, encoded)
        for length in steps:
            output = model.decode(TARGETS[:, done : done + length], encoded, mask, past_key_values=cache)
            assert_close(output.logits, expected[:, done : done + length])
            cache, done = output.past_key_values, done + length

    def test_a_traced_loop(self, model, encoded):
        """Inside of jit the number of cached tokens is unknown: the source is computed anew in every step."""

        @jax.jit
        def decode(cache, encoded, targets):
            def step(cache, token):
                output = model.decode(token[:, None], encoded, past_key_values=cache)
                return output.past_key_values, output.logits[:, 0]

            return jax.lax.scan(step, cache, targets.T)[1].swapaxes(0, 1)

        expected = model.decode(TARGETS, encoded).logits
        assert_close(decode(model.init_cache(2, 5, encoded), encoded, TARGETS), expected)

    def test_masks_of_the_target(self, model, encoded):
        mask = np.array([[1, 1, 0, 1, 1], [1, 0, 1, 1, 1]])
        expected = model.decode(TARGETS, encoded, decoder_attention_mask=mask).logits
        cache = model.init_cache(2, 6, encoded)
        first = model.decode(TARGETS[:, :4], encoded, decoder_attention_mask=mask[:, :4], past_key_values=cache)
        second = model.decode(
            TARGETS[:, 4:], encoded, decoder_attention_mask=mask, past_key_values=first.past_key_values
        )
        assert_close(second.logits, expected[:, 4:])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"cache": "list"}, "past_key_values must be the dict of init_cache. Received: list"),
            ({"cache": "batch"}, "past_key_values must fit the batch"),
            ({"cache": "part"}, "must come from init_cache .* a cache that lacks decoder.block.0.layer.0.SelfAtt"),
            ({"targets": TARGETS.repeat(2, axis=1)}, "must have room for the new tokens: .* 10 new tokens"),
            ({"mask": np.ones((2, 9))}, "attention_mask must describe the tokens up to the new ones"),
        ],
    )
    def test_errors(self, model, encoded, change, message):
        cache = model.init_cache(2, 7, encoded)
        if change.get("cache") == "list":
            cache = [cache]
        elif change.get("cache") == "batch":
            cache = model.init_cache(3, 7, (np.zeros((3, 13, 16)),))
        elif change.get("cache") == "part":
            cache = {"decoder": {"cached_key": np.zeros((2, 7, 4, 4)), "cache_index": np.array(0)}}
        with pytest.raises(InputError, match=message):
            model.decode(
                change.get("targets", TARGETS),
                encoded,
                decoder_attention_mask=change.get("mask"),
                past_key_values=cache,
            )

    def test_more_source_than_room(self, model, encoded):
        longer = (np.zeros((2, 100, 16), np.float32),)
        with pytest.raises(InputError, match="100 source tokens for a cache of 64"):
            model.decode(TARGETS, longer, past_key_values=model.init_cache(2, 7, encoded))


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"input_ids": IDS[0]}, r"input_ids must have the shape \(batch, tokens\). Received: \(13,\)"),
            ({"input_ids": IDS + 0.5}, "input_ids must be integers. Received: float64"),
            ({"input_ids": IDS + 40}, r"input_ids must lie in \[0, vocab_size=61\). Received: 61 at position \(1, 6\)"),
            (
                {"attention_mask": np.ones((2, 5))},
                r"attention_mask must have the shape .*\(2, 13\). Received: \(2, 5\)",
            ),
            ({"decoder_input_ids": None}, "decoder_input_ids must be given; prepare_decoder_input_ids_from_labels"),
            ({"decoder_input_ids": TARGETS[:1]}, r"decoder_input_ids must have the shape \(batch,\) .*\(2,\)"),
            ({"decoder_attention_mask": np.ones((2, 4))}, r"decoder_attention_mask must have .*\(2, 5\)"),
            ({"train": True}, r"train=True drops activations, which needs .*dropout_rng=None"),
        ],
    )
    def test_calls(self, model, arguments, message):
        with pytest.raises(InputError, match=message):
            model(**{"input_ids": IDS, "decoder_input_ids": TARGETS, **arguments})

    def test_encoder_outputs(self, model):
        with pytest.raises(InputError, match=r"encoder_outputs\[0\] must have .* = \(2, 13, 16\). .*\(2, 13, 8\)"):
            model.decode(TARGETS, (np.zeros((2, 13, 8)),))
        with pytest.raises(InputError, match=r"encoder_attention_mask must have the shape .*\(2, 13\)"):
            model.decode(TARGETS, (np.zeros((2, 13, 16)),), np.ones((2, 4)))

    def test_an_encoder_has_no_decoder(self):
        with pytest.raises(InputError, match="FlaxLongT5EncoderModel has no decoder; use FlaxLongT5For"):
            make("FlaxLongT5EncoderModel").decode(TARGETS, (np.zeros((2, 13, 16)),))

    def test_implementation_and_labels(self, model):
        with pytest.raises(InputError, match="attn_implementation must be one of auto, blocked, chunked"):
            make(attn_implementation="packed")
        make(attn_implementation="sdpa")  # a name of the reference leaves the choice to us
        config = longspan.LongT5Config(**{**SETTINGS, "decoder_start_token_id": None, "pad_token_id": None})
        with pytest.raises(ConfigError, match="shifting labels needs pad_token_id"):
            longspan.FlaxLongT5Model(config, _do_init=False).prepare_decoder_input_ids_from_labels(IDS)
        shifted = model.prepare_decoder_input_ids_from_labels(np.array([[4, 5, -100, -100]]))
        np.testing.assert_array_equal(shifted, [[0, 4, 5, 0]])


class TestPrograms:
    @pytest.mark.parametrize(("length", "expected"), [(1, 64), (64, 64), (65, 128), (1000, 1024), (1100, 1152)])
    def test_buckets(self, length, expected):
        assert bucket(length) == expected

    def test_buckets_waste_at_most_an_eighth_beyond_512(self):
        for length in range(513, 40000, 77):
            assert length <= bucket(length) <= length * 1.125 + 1

    def test_one_program_serves_a_bucket(self, model):
        ids = np.concatenate([IDS, IDS, IDS], axis=1)
        model.encode(ids)
        model(ids, None, TARGETS)
        before = model._compiled._cache_size()
        for length in (3, 4, 20, 38):
            model.encode(ids[:, :length])
            model(ids[:, :length], np.ones((2, length)), TARGETS[:, : length % 5 + 1])
        assert model._compiled._cache_size() == before

    def test_vmap(self, model):
        def states(ids):
            return model.encode(ids[None]).last_hidden_state[0]

        assert_close(jax.jit(jax.vmap(states))(IDS), model.encode(IDS).last_hidden_state)

    def test_vmap_of_gradients(self, shallow):
        """Gradients of every row by itself add up to those of the batch."""

        def loss(params, ids, targets):
            logits = shallow(ids[None], None, targets[None], params=params).logits
            return jnp.square(logits).sum()

        each = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0, 0)))(shallow.params, IDS, TARGETS)
        whole = jax.jit(jax.grad(lambda params: jnp.square(shallow(IDS, None, TARGETS, params=params).logits).sum()))
        for one, other in zip(*map(jax.tree_util.tree_leaves, (each, whole(shallow.params))), strict=True):
            assert gradient_error(one.sum(axis=0), other) < 1e-5

    def test_vmap_of_generation(self, shallow):
        settings = {"max_new_tokens": 4, "min_new_tokens": 4, "num_beams": 2}

        def continue_one(ids):
            return shallow.generate(ids[None], **settings).sequences[0]

        sequences = jax.jit(jax.vmap(continue_one))(IDS)
        np.testing.assert_array_equal(sequences, shallow.generate(IDS, **settings).sequences)

    def test_values_that_are_there_inside_of_jit(self, shallow):
        """Checks of values, and padding to buckets, must not be traced."""
        model = shallow
        ids, labels = jnp.asarray(IDS), jnp.asarray(TARGETS)

        @jax.jit
        def loss(params):
            output = model(ids, jnp.ones_like(ids), labels, params=params)
            return cross_entropy(output.logits, labels) + model.encode(ids).last_hidden_state.sum()

        @jax.jit
        def sequences(unused):
            return model.generate(ids, max_new_tokens=3).sequences + unused

        assert jnp.isfinite(loss(model.params))
        assert sequences(0).shape == (2, 4)

    @pytest.mark.wide  # four devices serve every family in test_flax_transformations
    def test_eight_devices(self):
        script = Path(__file__).with_name("longt5_flax_devices.py")
        done = subprocess.run(
            [sys.executable, str(script)], check=False, capture_output=True, text=True, env=dict(os.environ)
        )
        assert done.stdout.strip() == "equal", done.stderr[-3000:]


class TestTraining:
    @staticmethod
    def loss(model, params, rng=None):
        labels = np.where(TARGETS == 1, -100, TARGETS)
        targets = model.prepare_decoder_input_ids_from_labels(labels)
        output = model(IDS, None, targets, params=params, train=rng is not None, dropout_rng=rng)
        return cross_entropy(output.logits, labels)

    def test_gradient_checkpointing_changes_nothing(self):
        models = [
            make(num_layers=1, encoder_attention_type="local", arguments={"gradient_checkpointing": recompute})
            for recompute in (False, True)
        ]
        assert [model.is_gradient_checkpointing for model in models] == [False, True]
        key = jax.random.key(0, impl="rbg")  # compiles faster
        gradients, programs = [], []
        for model in models:
            traced = jax.jit(jax.grad(lambda params, model=model: self.loss(model, params, key))).trace(model.params)
            programs.append(str(traced.jaxpr))
            gradients.append(traced.lower().compile()(model.params))
        assert ["remat" in program or "checkpoint" in program for program in programs] == [False, True]
        for one, other in zip(*map(jax.tree_util.tree_leaves, gradients), strict=True):
            assert gradient_error(other, one) < 1e-5

    def test_dropout_depends_on_its_key_and_on_train_alone(self, shallow):
        first = self.loss(shallow, shallow.params, jax.random.key(0))
        assert first == self.loss(shallow, shallow.params, jax.random.key(0))
        assert first != self.loss(shallow, shallow.params, jax.random.key(1))
        assert self.loss(shallow, shallow.params) == self.loss(shallow, shallow.params)

    def test_every_parameter_gets_a_gradient(self, shallow):
        """Of one layer; tests/parity/test_longt5_flax.py compares the gradients of several with PyTorch's."""
        for name, gradient in jax.tree_util.tree_leaves_with_path(
            jax.jit(jax.grad(lambda params: self.loss(shallow, params)))(shallow.params)
        ):
            assert jnp.isfinite(gradient).all(), name
            assert gradient.any(), name


class TestMemory:
    KINDS = (("local", "forward"), ("transient-global", "backward"))
    #: the backward pass holds what the forward pass does
    FURTHER = (("local", "backward"), ("transient-global", "forward"))

    @pytest.mark.parametrize(("kind", "direction"), grid((*KINDS, *FURTHER), wide=FURTHER))
    def test_linear_from_4096_to_32768_tokens(self, kind, direction):
        """XLA's own count of the program's temporary memory; nothing runs."""
        model = make(
            "FlaxLongT5EncoderModel", num_layers=1, local_radius=127, global_block_size=16, encoder_attention_type=kind
        )

        def total(params, ids, mask):
            return model.encode(ids, mask, params=params).last_hidden_state.sum()

        def memory(length):
            tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
            program = jax.jit(total if direction == "forward" else jax.grad(total))
            return program.lower(model.params, tokens, tokens).compile().memory_analysis().temp_size_in_bytes

        short, long = memory(4096), memory(32768)
        assert short > 4096 * 16 * 4  # what is counted includes a tensor of states
        assert long <= 9 * short


class TestParameters:
    def test_drawn_as_the_reference_draws_them(self):
        config = longspan.LongT5Config(**{**SETTINGS, "d_model": 64, "d_ff": 128, "initializer_factor": 0.5})
        params = longspan.FlaxLongT5Model(config, seed=3).params
        attention = params["encoder"]["block"]["0"]["layer"]["0"]["TransientGlobalSelfAttention"]
        feed_forward = params["decoder"]["block"]["1"]["layer"]["2"]["DenseReluDense"]
        for leaf, std in (
            (params["shared"]["embedding"], 1.0),
            (attention["q"]["kernel"], (64 * 4) ** -0.5),
            (attention["k"]["kernel"], 64**-0.5),
            (attention["o"]["kernel"], 16**-0.5),
            (feed_forward["wi"]["kernel"], 64**-0.5),
            (feed_forward["wo"]["kernel"], 128**-0.5),
        ):
            assert abs(float(leaf.std()) / (0.5 * std) - 1) < 0.1
        np.testing.assert_array_equal(params["encoder"]["final_layer_norm"]["weight"], 0.5)

    def test_without_init(self, tmp_path):
        model = longspan.FlaxLongT5Model(longspan.LongT5Config(**SETTINGS), _do_init=False)
        with pytest.raises(InputError, match="keeps no parameters, because it was made with _do_init=False"):
            model(IDS, None, TARGETS)
        params = model.init_weights(jax.random.PRNGKey(0))
        assert model(IDS, None, TARGETS, params=params).last_hidden_state.shape == (2, 5, 16)

    def test_pickle_and_half_parameters(self, shallow):
        model = shallow
        again = pickle.loads(pickle.dumps(model))
        assert_close(again(IDS, None, TARGETS).logits, model(IDS, None, TARGETS).logits)
        half = model.to_bf16(model.params)
        assert {str(leaf.dtype) for leaf in jax.tree_util.tree_leaves(half)} == {"bfloat16"}
        assert model(IDS, None, TARGETS, params=half).logits.dtype == jnp.float32

    def test_resizing(self):
        model = make(num_layers=1)
        model.resize_token_embeddings(70)
        assert model(IDS, None, TARGETS).logits.shape == (2, 5, 70)
