"""BERT in Flax: calls, bad input, transformations of JAX, training, caches, parameters."""

from __future__ import annotations

import copy
import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze
from tests.tolerances import assert_close, gradient_error

import longspan
from longspan import BertConfig, FlaxBertForCausalLM, FlaxBertForMaskedLM, FlaxBertModel
from longspan.checkpoints.flax import flatten
from longspan.errors import ConfigError, InputError
from longspan.ops.dispatch import recording

SETTINGS = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 30,
    "max_position_embeddings": 20,
}
IDS = np.arange(12).reshape(2, 6)
TASKS = ["ForPreTraining", "ForCausalLM", "ForMaskedLM", "ForNextSentencePrediction", "ForSequenceClassification"]
TASKS += ["ForMultipleChoice", "ForTokenClassification", "ForQuestionAnswering"]
CLASSES = ["FlaxBertModel", *(f"FlaxBert{task}" for task in TASKS)]


def make(name="FlaxBertModel", *, arguments=(), **settings):
    """A model whose parameters are all random, norms and biases included."""
    if name == "FlaxBertForCausalLM":
        settings = {"is_decoder": True, **settings}
    model = getattr(longspan, name)(BertConfig(**{**SETTINGS, **settings}), _do_init=False, **dict(arguments))
    rng = np.random.default_rng(0)
    params = jax.tree_util.tree_map(
        lambda leaf: jnp.asarray(rng.normal(scale=0.2, size=leaf.shape), leaf.dtype), model.params_shape_tree
    )
    model._is_initialized, model._params = True, params
    return model


@pytest.fixture(scope="module")
def model():
    """A backbone; tests do not change it."""
    return make()


@pytest.fixture(scope="module")
def decoder():
    """A causal language model with dropout; tests do not change it."""
    return make("FlaxBertForCausalLM")


class TestSignatures:
    """SPEC §5: names, order and defaults."""

    CONSTRUCTOR = {  # noqa: RUF012
        "config": inspect.Parameter.empty,
        "input_shape": (1, 1),
        "seed": 0,
        "dtype": jnp.float32,
        "_do_init": True,
        "gradient_checkpointing": False,
    }
    CALL = {  # noqa: RUF012
        "input_ids": inspect.Parameter.empty,
        "attention_mask": None,
        "token_type_ids": None,
        "position_ids": None,
        "head_mask": None,
        "encoder_hidden_states": None,
        "encoder_attention_mask": None,
        "params": None,
        "dropout_rng": None,
        "train": False,
        "output_attentions": None,
        "output_hidden_states": None,
        "return_dict": None,
        "past_key_values": None,
    }

    @pytest.mark.parametrize("name", [*CLASSES, "FlaxBertPreTrainedModel"])
    def test_constructor_and_call(self, name):
        cls = getattr(longspan, name)
        *constructor, last = inspect.signature(cls.__init__).parameters.values()
        assert {p.name: p.default for p in constructor[1:]} == self.CONSTRUCTOR
        assert [p.name for p in constructor[1:]] == list(self.CONSTRUCTOR)
        assert last.kind is inspect.Parameter.VAR_KEYWORD
        call = list(inspect.signature(cls.__call__).parameters.values())[1:]
        assert [(p.name, p.default) for p in call] == list(self.CALL.items())
        assert all(p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for p in [*constructor, *call])

    def test_all_classes_are_public(self):
        assert {name for name in longspan.__all__ if name.startswith("FlaxBert")} == {
            *CLASSES,
            "FlaxBertPreTrainedModel",
        }


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"input_ids": IDS[0]}, r"input_ids must have the shape \(batch, tokens\). Received: \(6,\)"),
            ({"input_ids": IDS + 0.5}, "input_ids must be integers. Received: float64"),
            ({"input_ids": IDS + 55}, r"input_ids must lie in \[0, vocab_size=61\). Received: 61 at position \(1, 0\)"),
            ({"input_ids": jnp.asarray(-IDS)}, r"input_ids must lie in .*. Received: -1 at position \(0, 1\)"),
            (
                {"input_ids": np.zeros((1, 21), int)},
                "must not be longer than max_position_embeddings=20 tokens. Received: 21 tokens. Truncate it",
            ),
            ({"input_ids": IDS, "token_type_ids": IDS}, r"token_type_ids must lie in \[0, type_vocab_size=2\)"),
            (
                {"input_ids": IDS, "token_type_ids": IDS[:, :3]},
                r"token_type_ids must have the shape of input_ids = \(2",
            ),
            ({"input_ids": IDS, "position_ids": IDS * 2}, r"position_ids must lie in \[0, max_position_embeddings=20"),
            ({"input_ids": IDS, "attention_mask": np.ones((2, 5))}, r"attention_mask must have .*\(2, 6\).*\(2, 5\)"),
            ({"input_ids": IDS, "head_mask": np.ones(3)}, r"head_mask must have the shape \(heads,\) = \(4,\) or"),
            (
                {"input_ids": IDS, "encoder_hidden_states": np.ones((2, 3, 24))},
                "encoder_hidden_states needs a decoder with cross-attention: .*is_decoder=False",
            ),
            (
                {"input_ids": IDS, "past_key_values": {"a": 1}},
                "past_key_values needs a decoder: config.is_decoder=True",
            ),
            ({"input_ids": IDS, "train": True}, r"train=True drops activations, which needs .*dropout_rng=None"),
        ],
    )
    def test_calls(self, model, arguments, message):
        with pytest.raises(InputError, match=message):
            model(**arguments)

    def test_cross_attention(self):
        cross = make("FlaxBertForCausalLM", add_cross_attention=True)
        states = np.ones((2, 3, 24), np.float32)
        with pytest.raises(InputError, match=r"\(batch, tokens, hidden_size\) = \(2, 3, 24\). Received: \(2, 3, 8\)"):
            cross(IDS, encoder_hidden_states=states[..., :8])
        with pytest.raises(InputError, match=r"encoder_attention_mask must have the shape \(batch, keys\) = \(2, 3\)"):
            cross(IDS, encoder_hidden_states=states, encoder_attention_mask=np.ones((2, 4)))

    def test_multiple_choice(self):
        choice = make("FlaxBertForMultipleChoice")
        with pytest.raises(InputError, match=r"input_ids must have the shape \(batch, choices, tokens\). Rece.*\(2, 6"):
            choice(IDS)
        with pytest.raises(
            InputError, match=r"must all have the shape \(batch, choices, ...\). Received: \[\(2, 6\)\]"
        ):
            choice.module.apply({"params": choice.params}, IDS)

    def test_construction(self):
        with pytest.raises(ConfigError, match="FlaxBertModel needs a BertConfig. Received: PretrainedConfig"):
            FlaxBertModel(longspan.PretrainedConfig())
        with pytest.raises(InputError, match="dtype must be float32, float16 or bfloat16. Received: 'int8'"):
            FlaxBertModel(BertConfig(**SETTINGS), dtype="int8")
        with pytest.raises(InputError, match="dtype must be float32, float16 or bfloat16. Received: 'quarter'"):
            FlaxBertModel(BertConfig(**SETTINGS), dtype="quarter")
        with pytest.raises(InputError, match="attn_implementation must be one of auto, packed, sdpa, eager for BERT"):
            FlaxBertModel(BertConfig(**SETTINGS, attn_implementation="flash"))
        with pytest.raises(ConfigError, match="an activation must be one of"):
            FlaxBertModel(BertConfig(**SETTINGS, hidden_act="gulu"))
        with pytest.warns(UserWarning, match="FlaxBertForCausalLM attends in both directions unless"):
            FlaxBertForCausalLM(BertConfig(**SETTINGS), _do_init=False)
        with pytest.warns(UserWarning, match="FlaxBertForMaskedLM should see both directions: set"):
            FlaxBertForMaskedLM(BertConfig(**SETTINGS, is_decoder=True), _do_init=False)

    def test_traced_ids_beyond_the_vocabulary_show_as_nan(self, model):
        states = jax.jit(lambda ids: model(ids).last_hidden_state)(jnp.array([[1, 61]]))
        assert bool(jnp.isnan(states).any())

    @pytest.mark.parametrize(
        ("implementation", "arguments", "reason"),
        [
            ("packed", {"output_attentions": True}, "attention weights are returned by 'eager' only"),
            ("packed", {"attention_mask": np.ones((2, 6, 6))}, r"packing needs an attention_mask of the shape \(batch"),
        ],
    )
    def test_implementations_that_cannot_serve(self, model, implementation, arguments, reason):
        chosen = _with(model, attn_implementation=implementation)
        with pytest.raises(InputError, match=f"attn_implementation='{implementation}' cannot serve .*{reason}"):
            chosen(IDS, **arguments)

    def test_sdpa_leaves_attention_weights_to_eager(self, model):
        found = _with(model, attn_implementation="sdpa")(IDS, output_attentions=True)
        expected = _with(model, attn_implementation="eager")(IDS, output_attentions=True)
        for mine, theirs in zip(found.attentions, expected.attentions, strict=True):
            np.testing.assert_array_equal(mine, theirs)

    def test_more_implementations_that_cannot_serve(self, model, decoder):
        packed = _with(model, attn_implementation="packed")
        with pytest.raises(InputError, match="packing reads the mask, which is slow on an accelerator and impossible"):
            jax.jit(lambda mask: packed(IDS, mask).pooler_output)(jnp.ones((2, 6)))
        with pytest.raises(InputError, match="packing works without a cache and without cross-attention"):
            _with(decoder, attn_implementation="packed")(IDS, past_key_values=decoder.init_cache(2, 8))
        with pytest.raises(InputError, match="relative position scores are computed by 'eager' only"):
            _with(model, attn_implementation="packed", position_embedding_type="relative_key")(IDS)
        with pytest.raises(InputError, match="the states at padding are needed, as for the loss of question answering"):
            make("FlaxBertForQuestionAnswering", attn_implementation="packed")(IDS)


def _with(model, **settings):
    """The same module and parameters under a changed configuration."""
    other = copy.copy(model)
    other._config = copy.deepcopy(model.config)
    other._config.update(settings)
    other._module = model.module.clone(config=other._config)
    other.__setstate__(other.__getstate__())
    return other


class TestParameters:
    def test_without_parameters(self, model):
        bare = FlaxBertModel(BertConfig(**SETTINGS), _do_init=False)
        for use in (lambda: bare.params, lambda: bare(IDS)):
            with pytest.raises(InputError, match="keeps no parameters, because it was made with _do_init=False: pass"):
                use()
        with pytest.raises(InputError, match="pass params=... to every call instead of setting model.params"):
            bare.params = model.params
        assert_close(bare(IDS, params=model.params).pooler_output, model(IDS).pooler_output)
        assert_close(bare(IDS, params=freeze(model.params)).pooler_output, model(IDS).pooler_output)

    def test_missing_parameters_are_named(self, model):
        other, params = copy.copy(model), copy.deepcopy(model.params)
        del params["pooler"]["dense"]["bias"]
        with pytest.raises(
            InputError, match="params must hold every parameter of the model. Missing: pooler.dense.bias"
        ):
            other.params = params
        other.params = freeze(model.params)
        assert type(other.params) is dict

    def test_values_at_initialisation(self):
        config = BertConfig(**{**SETTINGS, "hidden_size": 64, "vocab_size": 500, "initializer_range": 0.05})
        first, again, other = (FlaxBertForMaskedLM(config, seed=seed).params for seed in (0, 0, 1))
        jax.tree_util.tree_map(np.testing.assert_array_equal, first, again)
        for path, leaf in flatten(first).items():
            values = np.asarray(leaf)
            if path[-1] == "scale":
                assert (values == 1).all()
            elif path[-1] == "bias":
                assert (values == 0).all()
            else:
                rows = values[1:] if "word_embeddings" in path else values
                assert abs(rows.std() - 0.05) < 0.015, path
                assert not np.array_equal(values, flatten(other)[path])
        table = first["bert"]["embeddings"]["word_embeddings"]["embedding"]
        assert bool((table[config.pad_token_id] == 0).all())

    def test_the_module_alone_makes_the_same_tree(self, model):
        drawn = model.module.init(jax.random.key(0), IDS)["params"]
        same = jax.tree_util.tree_map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), drawn, model.params)
        assert all(jax.tree_util.tree_leaves(same))
        output = model.module.apply({"params": model.params}, IDS)
        assert_close(output.last_hidden_state, model(IDS).last_hidden_state)

    def test_only_missing_parameters_are_drawn(self, model):
        params = {name: model.params[name] for name in ("embeddings", "encoder")}
        whole = model.init_weights(jax.random.key(3), (1, 1), params)
        assert whole["pooler"]["dense"]["kernel"].shape == (24, 24)
        assert whole["encoder"] is not params["encoder"]
        jax.tree_util.tree_map(np.testing.assert_array_equal, whole["encoder"], params["encoder"])
        shapes = jax.eval_shape(model.init_weights, jax.random.key(3))
        assert jax.tree_util.tree_structure(shapes) == jax.tree_util.tree_structure(model.params)

    def test_required_parameters(self, model):
        assert model.required_params == set(flatten(model.params))
        assert model.framework == "flax"
        without = FlaxBertModel(BertConfig(**SETTINGS), _do_init=False, add_pooling_layer=False)
        assert model.required_params - without.required_params == {
            ("pooler", "dense", "kernel"), ("pooler", "dense", "bias"),
        }  # fmt: skip

    def test_casting_with_a_mask(self, model):
        mask = jax.tree_util.tree_map_with_path(lambda path, leaf: "LayerNorm" not in str(path), model.params)
        cast = model.to_bf16(model.params, mask)
        assert str(cast["embeddings"]["LayerNorm"]["scale"].dtype) == "float32"
        assert str(cast["pooler"]["dense"]["kernel"].dtype) == "bfloat16"
        assert str(model.to_fp16(model.params)["pooler"]["dense"]["kernel"].dtype) == "float16"
        back = model.to_fp32(cast)
        assert {str(leaf.dtype) for leaf in jax.tree_util.tree_leaves(back)} == {"float32"}
        assert_close(model(IDS, params=cast).pooler_output, model(IDS).pooler_output, "bfloat16")
        with pytest.raises(InputError, match="mask must have the structure of params"):
            model.to_bf16(model.params, {"pooler": True})

    def test_dtype_is_that_of_the_computation_alone(self, model):
        half = FlaxBertModel(BertConfig(**SETTINGS), dtype=jnp.bfloat16)
        assert {str(leaf.dtype) for leaf in jax.tree_util.tree_leaves(half.params)} == {"float32"}
        output = half(IDS, params=model.params, output_attentions=True)
        assert {str(leaf.dtype) for leaf in jax.tree_util.tree_leaves(output)} == {"bfloat16"}
        assert_close(output.pooler_output, model(IDS).pooler_output, "bfloat16")

    def test_pickle_and_copy(self, model):
        for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
            assert_close(other(IDS).last_hidden_state, model(IDS).last_hidden_state)
        for name in CLASSES:
            cls = getattr(longspan, name)
            assert pickle.loads(pickle.dumps(cls)) is cls


class TestResizing:
    @pytest.mark.parametrize("tied", [True, False])
    def test_old_rows_stay_and_new_ones_are_their_mean(self, tied):
        model = make("FlaxBertForMaskedLM", tie_word_embeddings=tied)
        before = model(IDS).logits
        old = model.params
        grown = model.resize_token_embeddings(65, pad_to_multiple_of=8)
        assert model.config.vocab_size == 72
        assert model.params is grown
        after = model(IDS).logits
        assert after.shape == (2, 6, 72)
        assert_close(after[..., :61], before)
        table = grown["bert"]["embeddings"]["word_embeddings"]["embedding"]
        assert_close(table[61:], np.tile(old["bert"]["embeddings"]["word_embeddings"]["embedding"].mean(0), (11, 1)))
        if not tied:
            kernel = old["cls"]["predictions"]["decoder"]["kernel"].mean(1, keepdims=True)
            assert_close(grown["cls"]["predictions"]["decoder"]["kernel"][:, 61:], np.tile(kernel, (1, 11)))
        model.resize_token_embeddings(61)
        jax.tree_util.tree_map(np.testing.assert_array_equal, model.params, old)

    def test_drawn_rows_and_given_parameters(self):
        model = make("FlaxBertForMaskedLM")
        own = model.params
        given = model.resize_token_embeddings(70, mean_resizing=False, params=own)
        assert model._params is own
        new = given["bert"]["embeddings"]["word_embeddings"]["embedding"][61:]
        assert 0.01 < float(new.std()) < 0.03
        assert bool((given["cls"]["predictions"]["bias"][61:] == 0).all())
        assert model(np.array([[69]]), params=given).logits.shape == (1, 1, 70)

    @pytest.mark.parametrize(("arguments", "name"), [((0,), "new_num_tokens=0"), ((9, -8), "pad_to_multiple_of=-8")])
    def test_sizes_must_be_positive(self, model, arguments, name):
        with pytest.raises(InputError, match=f"must be positive. Received: {name}"):
            model.resize_token_embeddings(*arguments)


class TestOutputs:
    def test_dictionary_or_tuple(self, model):
        output = model(IDS, output_hidden_states=True)
        assert type(output).__name__ == "FlaxBaseModelOutputWithPooling"
        assert list(output) == ["last_hidden_state", "pooler_output", "hidden_states"]
        assert len(output.hidden_states) == 2
        plain = model(IDS, output_hidden_states=True, return_dict=False)
        assert type(plain) is tuple
        assert_close(plain[2][1], output.hidden_states[1])

    def test_the_configuration_gives_the_defaults(self, model):
        plain = _with(model, return_dict=False, output_attentions=True)(IDS)
        assert type(plain) is tuple
        assert len(plain) == 3
        assert plain[2][0].shape == (2, 4, 6, 6)

    def test_a_changed_configuration_takes_effect(self, model):
        other = _with(model)
        before = other(IDS).last_hidden_state
        other.config.is_decoder = True
        after = other(IDS)
        assert type(after).__name__ == "FlaxBaseModelOutputWithPoolingAndCrossAttentions"
        assert gradient_error(after.last_hidden_state, before) > 1e-3
        assert_close(after.last_hidden_state[:, -1:].shape, (2, 1, 24))

    def test_lists_are_accepted(self, model):
        assert_close(model(IDS.tolist(), [[1] * 6, [1] * 6]).pooler_output, model(IDS).pooler_output)

    def test_auto_packs_padded_batches_and_only_those(self, model):
        ids = np.arange(8 * 20).reshape(8, 20) % 61
        mask = (np.arange(20) < np.array([20, 4, 3, 5, 4, 3, 4, 4])[:, None]).astype(int)
        cases = [
            ({"attention_mask": mask}, "packed"),
            ({"attention_mask": np.ones_like(mask)}, "sdpa"),
            ({}, "sdpa"),
            ({"attention_mask": mask, "output_attentions": True}, "eager"),
        ]
        results = []
        for extra, wanted in cases:
            with recording() as ran:
                results.append(model(ids, **extra).last_hidden_state)
            assert ran == [wanted]
        assert_close(results[1], results[2])
        assert_close(results[0] * mask[..., None], results[3] * mask[..., None])

    def test_batches_of_one_shape_share_one_program(self, model):
        ids = np.zeros((4, 20), int)
        packed, fresh = _with(model, attn_implementation="packed"), []
        for lengths in ((20, 9, 7, 3), (18, 2, 1, 5), (4, 4, 4, 4)):
            packed(ids, (np.arange(20) < np.array(lengths)[:, None]).astype(int))
            fresh.append(packed._compiled._cache_size())
        assert fresh == [1, 1, 1]


class TestTransformations:
    def test_jit_equals_the_plain_call(self, model):
        mask = np.ones_like(IDS)
        mask[1, 3:] = 0
        with recording() as ran:
            traced = jax.jit(lambda params, ids, mask: model(ids, mask, params=params))(model.params, IDS, mask)
        assert ran == []  # nothing is announced while tracing
        assert type(traced).__name__ == "FlaxBaseModelOutputWithPooling"
        expected = model(IDS, mask).last_hidden_state
        assert_close(traced.last_hidden_state * mask[..., None], expected * mask[..., None])

    def test_vmap_equals_a_batch(self, model):
        rows = jax.vmap(lambda ids: model(ids[None]).last_hidden_state[0])(jnp.asarray(IDS))
        assert_close(rows, model(IDS).last_hidden_state)

    def test_vmap_over_parameters(self, model):
        stack = jax.tree_util.tree_map(lambda leaf: jnp.stack([leaf, 2 * leaf]), model.params)
        outputs = jax.vmap(lambda params: model(IDS, params=params).pooler_output)(stack)
        double = jax.tree_util.tree_map(lambda leaf: 2 * leaf, model.params)
        assert_close(outputs[1], model(IDS, params=double).pooler_output)

    def test_recomputed_activations_give_the_same_gradients(self):
        model, rng = make("FlaxBertForMaskedLM"), jax.random.key(5, impl="rbg")  # compiles faster

        def loss(params):
            logits = model(IDS, params=params, train=True, dropout_rng=rng).logits
            return jnp.square(logits).mean()

        kept = jax.jit(jax.value_and_grad(loss))(model.params)
        assert "remat" not in str(jax.make_jaxpr(lambda params: loss(params))(model.params))
        checkpointed = jax.jit(jax.value_and_grad(jax.checkpoint(loss)))(model.params)
        assert not model.is_gradient_checkpointing
        model.enable_gradient_checkpointing()
        assert model.is_gradient_checkpointing
        assert str(jax.make_jaxpr(lambda params: loss(params))(model.params)).count("remat") >= 1
        recomputed = jax.jit(jax.value_and_grad(loss))(model.params)
        for other in (checkpointed, recomputed):
            assert_close(other[0], kept[0])
            jax.tree_util.tree_map(assert_close, other[1], kept[1])
        model.disable_gradient_checkpointing()
        assert not model.is_gradient_checkpointing
        assert FlaxBertModel(
            BertConfig(**SETTINGS), gradient_checkpointing=True, _do_init=False
        ).is_gradient_checkpointing

    def test_every_parameter_gets_a_gradient(self):
        model = make("FlaxBertForPreTraining")

        def loss(params):
            output = model(IDS, token_type_ids=IDS % 2, params=params)
            return (output.prediction_logits**2).sum() + output.seq_relationship_logits.sum()

        for path, leaf in flatten(jax.jit(jax.grad(loss))(model.params)).items():
            assert bool(jnp.isfinite(leaf).all()), path
            assert bool((leaf != 0).any()), path

    def test_the_padding_row_learns_from_the_output_side_only(self, model):
        gradient = jax.jit(jax.grad(lambda params: jnp.square(model(IDS, params=params).last_hidden_state).sum()))
        table = gradient(model.params)["embeddings"]["word_embeddings"]["embedding"]
        assert bool((table[0] == 0).all())
        assert bool((table[1:12] != 0).any(axis=1).all())


class TestDropout:
    def test_random_keys_decide(self, model):
        runs = [model(IDS, train=True, dropout_rng=jax.random.key(seed)).last_hidden_state for seed in (0, 0, 1)]
        assert bool((runs[0] == runs[1]).all())
        assert gradient_error(runs[0], runs[2]) > 1e-2
        assert gradient_error(runs[0], model(IDS).last_hidden_state) > 1e-2

    def test_the_raw_keys_of_older_code_work(self, model):
        old = model(IDS, train=True, dropout_rng=jax.random.PRNGKey(0)).last_hidden_state
        assert_close(old, model(IDS, train=True, dropout_rng=jax.random.key(0)).last_hidden_state)

    def test_no_key_is_needed_where_nothing_drops(self):
        model = make(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        assert_close(model(IDS, train=True).last_hidden_state, model(IDS).last_hidden_state)

    @pytest.mark.parametrize("implementation", ["eager", "sdpa", "packed"])
    def test_attention_drops_in_every_implementation(self, model, implementation):
        mask = np.ones_like(IDS)
        mask[1, 2:] = 0
        only = _with(model, hidden_dropout_prob=0.0, attn_implementation=implementation)
        dropped = only(IDS, mask, train=True, dropout_rng=jax.random.key(0)).last_hidden_state
        whole = only(IDS, mask).last_hidden_state
        assert gradient_error(dropped * mask[..., None], whole * mask[..., None]) > 1e-3


class TestCache:
    def test_shapes_of_the_dict(self):
        cache = make("FlaxBertForCausalLM", num_hidden_layers=2).init_cache(2, 8)
        entry = cache["bert"]["encoder"]["layer"]["1"]["attention"]["self"]
        assert entry["cached_key"].shape == entry["cached_value"].shape == (2, 8, 4, 6)
        assert entry["cache_index"].dtype == jnp.int32
        assert sorted(cache["bert"]["encoder"]["layer"]) == ["0", "1"]

    def test_a_mask_for_all_that_fits(self, decoder):
        mask = np.ones((2, 8), int)
        mask[1, :2] = 0
        cache = decoder(IDS[:, :4], mask, past_key_values=decoder.init_cache(2, 8)).past_key_values
        last = decoder(IDS[:, 4:], mask, past_key_values=cache)
        whole = decoder(IDS, mask[:, :6]).logits
        keep = mask[:, 4:6, None]
        assert_close(last.logits * keep, whole[:, 4:] * keep)
        plain = decoder(IDS[:, 4:], mask, past_key_values=cache, return_dict=False)
        assert type(plain) is tuple
        assert plain[1].keys() == {"bert"}

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda cache: [], None),
            (lambda cache: (1, 2), "past_key_values must be the dict of init_cache. Received: tuple"),
            (
                lambda cache: cache["bert"],
                "must come from init_cache of a model of the same class and configuration. Re",
            ),
            (
                lambda cache: jax.tree_util.tree_map(lambda leaf: leaf[:1] if leaf.ndim else leaf, cache),
                r"must fit the batch: bert.encoder.layer.0.attention.self.cached_key must have .*\(2, 8, 4, 6\). Rece",
            ),
            (
                lambda cache: jax.tree_util.tree_map(lambda leaf: leaf if leaf.ndim else leaf + 3, cache),
                "must have room for the new tokens: .*Received: 6 new tokens for a cache of max_length=8 that holds 3",
            ),
        ],
    )
    def test_wrong_caches(self, decoder, change, message):
        cache = change(decoder.init_cache(2, 8))
        if message is None:  # an empty one counts as none
            assert "past_key_values" not in decoder(IDS, past_key_values=cache)
            return
        with pytest.raises(InputError, match=message):
            decoder(IDS, past_key_values=cache)

    def test_more_errors(self, decoder, model):
        with pytest.raises(InputError, match="init_cache needs a decoder: config.is_decoder=True"):
            model.init_cache(1, 8)
        with pytest.raises(InputError, match="must not be longer than max_position_embeddings=20 tokens"):
            decoder.init_cache(1, 21)
        cache = decoder.init_cache(2, 8)
        for width in (5, 9):
            with pytest.raises(InputError, match=rf"all that fit: between 6 and 8. Received: the shape \(2, {width}\)"):
                decoder(IDS, np.ones((2, width), int), past_key_values=cache)
        tokens = make("FlaxBertForTokenClassification", is_decoder=True)
        with pytest.raises(
            InputError, match="FlaxBertForTokenClassification reads whole sequences and takes no past_k"
        ):
            tokens(IDS, past_key_values=cache)

    def test_positions_go_on_from_the_cache(self, decoder):
        cache = decoder(IDS[:, :4], past_key_values=decoder.init_cache(2, 8)).past_key_values
        implicit = decoder(IDS[:, 4:], past_key_values=cache).logits
        explicit = decoder(IDS[:, 4:], past_key_values=cache, position_ids=np.array([[4, 5]])).logits
        assert_close(implicit, explicit)
