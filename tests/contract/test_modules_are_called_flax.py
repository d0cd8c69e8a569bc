"""Every dense layer, embedding and norm of every Flax class is applied by calling it.

`flax.linen.intercept_methods`, by which quantisers and adapters work, adds a known term to what each module gives, so
the output, and the gradient, must be those of a model whose bias or table has grown by that term.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tests.grid import grid
from tests.tolerances import assert_close

import longspan
from longspan import shapes
from longspan.checkpoints.flax import flatten, unflatten
from longspan.models.diffllama.flax_layers import FlaxDiffLlamaRMSNorm
from longspan.models.longt5.flax_layers import FlaxLongT5LayerNorm
from longspan.nn.flax.layers import Dense, Embedding, LayerNorm

BERT = {
    "vocab_size": 40, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 10,
    "max_position_embeddings": 16, "attn_implementation": "eager", "tie_word_embeddings": False,
}  # fmt: skip
LONGT5 = {
    "vocab_size": 40, "d_model": 12, "d_kv": 4, "d_ff": 10, "num_heads": 2, "num_layers": 1, "local_radius": 2,
    "global_block_size": 3, "tie_word_embeddings": False,
}  # fmt: skip
LONGFORMER = {**BERT, "attention_window": 4, "attn_implementation": "auto"}
DIFFLLAMA = {
    "vocab_size": 40, "hidden_size": 12, "intermediate_size": 10, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 4, "num_hidden_layers": 1, "attention_bias": True, "pad_token_id": 0,
}  # fmt: skip
MEGA = {
    "vocab_size": 40, "hidden_size": 12, "num_hidden_layers": 1, "intermediate_size": 14, "ema_projection_size": 3,
    "shared_representation_size": 8, "nffn_hidden_size": 10, "normalization_type": "layernorm",
    "tie_word_embeddings": False, "add_token_type_embeddings": True,
}  # fmt: skip
#: beginning of the classes' names -> configuration class, settings
FAMILIES = {
    "FlaxBert": (longspan.BertConfig, BERT),
    "FlaxDiffLlama": (longspan.DiffLlamaConfig, DIFFLLAMA),
    "FlaxLongT5": (longspan.LongT5Config, LONGT5),
    "FlaxLongformer": (longspan.LongformerConfig, LONGFORMER),
    "FlaxMega": (longspan.MegaConfig, MEGA),
    "FlaxRoberta": (longspan.RobertaConfig, BERT),
}
DECODER = {"is_decoder": True, "add_cross_attention": True}
DECODERS = ("FlaxBertForCausalLM", "FlaxMegaForCausalLM", "FlaxRobertaForCausalLM")
CASES = {
    **{
        name: (name, {})
        for name in longspan.__all__
        if name.startswith(tuple(FAMILIES)) and not name.endswith("PreTrainedModel") and name not in DECODERS
    },
    "decoder": ("FlaxBertForCausalLM", DECODER),
    "mega-decoder": ("FlaxMegaForCausalLM", {**DECODER, "bidirectional": False}),
    "relative": ("FlaxBertModel", {"position_embedding_type": "relative_key_query"}),
    "transient-global": ("FlaxLongT5EncoderModel", {"encoder_attention_type": "transient-global"}),
    "gated": ("FlaxLongT5EncoderModel", {"feed_forward_proj": "gated-gelu"}),
}
#: classes that write
WRITERS = {
    "bert": ("FlaxBertForCausalLM", {"is_decoder": True}),
    "diffllama": ("FlaxDiffLlamaForCausalLM", {}),
    "longt5": ("FlaxLongT5ForConditionalGeneration", {}),
    "mega": ("FlaxMegaForCausalLM", {"is_decoder": True, "bidirectional": False}),
}
#: module type -> the parameter that a term in its output can be added to
KINDS = {Dense: "bias", Embedding: "embedding", LayerNorm: "bias", FlaxLongT5LayerNorm: "", FlaxDiffLlamaRMSNorm: ""}
#: parameters of dense layers, embeddings and norms; others are their module's own
LEAVES = {"kernel", "embedding", "scale", "weight"}


def build(case):
    name, settings = (CASES | WRITERS)[case]
    config, common = next(family for prefix, family in FAMILIES.items() if name.startswith(prefix))
    model = getattr(longspan, name)(config(**{**common, **settings}))
    rng = np.random.default_rng(0)
    leaves = flatten(model.params).items()
    params = unflatten({path: leaf + rng.normal(scale=0.2, size=leaf.shape).astype("f") for path, leaf in leaves})
    shape = (2, 2, 9) if "Choice" in name else (2, 9)
    inputs = {"input_ids": rng.integers(0, 40, shape)}
    if "Longformer" in name or "Roberta" in name:
        inputs["input_ids"] = np.maximum(inputs["input_ids"], 2)  # no padding, whose row learns nothing
    if "Longformer" in name:
        inputs["global_attention_mask"] = np.zeros(shape, np.int32)
        inputs["global_attention_mask"][..., [1, 6]] = 1
    if "LongT5" in name and "Encoder" not in name:
        inputs["decoder_input_ids"] = rng.integers(0, 40, (2, 5))
    if settings.get("add_cross_attention"):
        inputs["encoder_hidden_states"] = rng.normal(size=(2, 6, 12)).astype("f")
    return model, params, inputs


def loss_of(output):
    leaves = jax.tree_util.tree_leaves(output)
    return sum((leaf * jnp.cos(jnp.arange(leaf.size).reshape(leaf.shape))).sum() for leaf in leaves), output


#: heads that families share (`longspan.nn.flax.tasks`), which cases of BERT show; RoBERTa has no others
SHARED_HEADS = ("ForMultipleChoice", "ForTokenClassification", "ForQuestionAnswering")
#: classes whose modules are all those of others
PARTS = {"FlaxBertModel", "FlaxBertForPreTraining", "FlaxBertForSequenceClassification", "FlaxDiffLlamaModel"}
PARTS |= {"FlaxLongT5Model", "FlaxLongT5EncoderModel"}
WIDE = [
    name
    for name in CASES
    if name in PARTS
    or name.startswith("FlaxRobertaFor")
    or (name.endswith(SHARED_HEADS) and not name.startswith("FlaxBert"))
]


@pytest.mark.parametrize("case", grid(CASES, wide=WIDE))
def test_terms_that_an_interceptor_adds_take_effect_and_learn(case):
    model, params, inputs = build(case)
    widths = {}

    def note(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if type(context.module) in KINDS and context.method_name == "__call__":
            widths[context.module.path] = (type(context.module), output.shape[-1])
        return output

    def forward(params, terms, offsets=()):
        def add(call, args, kwargs, context):
            output = call(*args, **kwargs)
            is_ours = context.method_name == "__call__" and context.module.path in terms
            if not is_ours:
                return output
            # different at each place: what is the same for all keys changes no softmax
            places = jnp.cos(jnp.arange(output[..., 0].size)).reshape(output.shape[:-1])[..., None]
            return output + terms[context.module.path] * (1.0 if context.module.path in offsets else places)

        with nn.intercept_methods(add):
            return loss_of(model.module.apply({"params": params}, **inputs))

    with nn.intercept_methods(note):
        jax.eval_shape(lambda: model.module.apply({"params": params}, **inputs))
    assert {path[:-1] for path in flatten(params) if path[-1] in LEAVES} <= set(widths)

    rng = np.random.default_rng(1)
    terms, shifted, places = {}, dict(flatten(params)), {}
    for path, (kind, width) in widths.items():
        terms[path], leaf = np.zeros(width, "f"), (*path, KINDS[kind])
        if leaf in shifted and not (case == "relative" and path[-1] == "position_embeddings"):
            terms[path] = rng.normal(scale=0.2, size=width).astype("f")
            shifted[leaf] = shifted[leaf] + terms[path]
            places[path] = leaf
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    function = partial(forward, offsets=frozenset(places))
    gradient = jax.jit(jax.grad(function, argnums=(0, 1), has_aux=True), compiler_options=options)
    (by_params, _), expected = gradient(
        unflatten(shifted), {path: jnp.zeros_like(term) for path, term in terms.items()}
    )
    (_, by_terms), output = gradient(params, terms)
    for one, two in zip(*map(jax.tree_util.tree_leaves, (output, expected)), strict=True):
        assert_close(one, two)
    by_params = flatten(by_params)
    largest = max(float(np.abs(np.asarray(learned)).max()) for learned in by_terms.values())
    for path, learned in by_terms.items():
        if path in places:
            full = np.asarray(by_params[places[path]]).reshape(-1, learned.size).sum(0)
            if path[-1] != "word_embeddings":  # its row of padding learns from no lookup
                assert np.abs(np.asarray(learned) - full).max() <= 1e-5 * largest, path
        elif not (case == "relative" and path[-1] == "position_embeddings"):
            assert np.abs(np.asarray(learned)).max() > 1e-4, path


def test_an_interceptor_and_a_patched_class_see_the_calls_that_fast_paths_go_around(monkeypatch):
    """Longformer's global projections, which are folded otherwise, and whole sequences, which go in blocks."""
    monkeypatch.setattr(shapes, "TOKEN_BLOCK_BYTES", 4 * 10 * 3)  # of three tokens
    model, params, inputs = build("FlaxLongformerModel")
    seen = {}

    def note(call, args, kwargs, context):
        if isinstance(context.module, Dense) and context.method_name == "__call__":
            seen.setdefault(context.module.path[-3:], []).append(args[0].shape)
        return call(*args, **kwargs)

    def apply():
        program = jax.jit(lambda: model.module.apply({"params": params}, **inputs).last_hidden_state)
        return program()

    usual = apply()
    with nn.intercept_methods(note):
        assert_close(apply(), usual)
    for path in (("attention", "self", "key_global"), ("attention", "self", "value_global"), ("0", "output", "dense")):
        assert seen[path] == [(2, 9, 10 if "output" in path else 12)]

    call = Dense.__call__
    monkeypatch.setattr(Dense, "__call__", lambda self, inputs: call(self, inputs) + jnp.cos(inputs[..., :1]))
    with longspan.plain():
        expected = apply()
    assert np.abs(np.asarray(expected - usual)).max() > 0.1
    assert_close(apply(), expected)


@pytest.mark.parametrize("name", ["FlaxBertForMaskedLM", "FlaxLongT5ForConditionalGeneration"])
def test_a_tied_head_is_a_method_of_the_table(name):
    CASES["tied"] = (name, {"tie_word_embeddings": True})
    model, params, inputs = build("tied")
    plain = model.module.apply({"params": params}, **inputs).logits

    def add(call, args, kwargs, context):
        output = call(*args, **kwargs)
        return output + 3.0 if context.method_name == "attend" else output

    with nn.intercept_methods(add):
        assert_close(model.module.apply({"params": params}, **inputs).logits, plain + 3.0)


class Adding:
    """An interceptor that adds to what every dense layer, embedding and norm gives."""

    def __init__(self):
        self.paths = set()

    def __call__(self, call, args, kwargs, context):
        output = call(*args, **kwargs)
        if type(context.module) not in KINDS or context.method_name != "__call__":
            return output
        self.paths.add(context.module.path)
        return output + jnp.sin(jnp.arange(output.shape[-1]) + sum(map(ord, "".join(context.module.path)))) / 2


@pytest.mark.parametrize("case", WRITERS)
def test_cached_steps_and_generate_show_what_an_interceptor_adds(case):
    model, params, inputs = build(case)
    ids = inputs["input_ids"] = np.maximum(inputs["input_ids"], 2)  # `generate` would mask padding
    model.params = params

    def decode(tokens, cache, encoded):
        return (
            model(tokens, past_key_values=cache)
            if encoded is None
            else model.decode(tokens, encoded, past_key_values=cache)
        )

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True})
    def write():
        encoded = model.encode(ids) if case == "longt5" else None
        target = ids if encoded is None else inputs["decoder_input_ids"]
        cache = model.init_cache(2, target.shape[1], *([] if encoded is None else [encoded]))
        begin = decode(target[:, :4], cache, encoded)
        end = decode(target[:, 4:], begin.past_key_values, encoded)
        sequences = model.generate(ids, max_new_tokens=3, eos_token_id=None).sequences
        again = model(sequences) if encoded is None else model(ids, decoder_input_ids=sequences)
        return model(**inputs).logits, jnp.concatenate([begin.logits, end.logits], axis=1), sequences, again.logits

    adding = Adding()
    with nn.intercept_methods(adding):
        whole, cached, sequences, again = write()
    assert {path[:-1] for path in flatten(params) if path[-1] in LEAVES} <= adding.paths
    assert_close(cached, whole)
    first = sequences.shape[1] - 3
    np.testing.assert_array_equal(sequences[:, first:], again[:, first - 1 : -1].argmax(-1))


def test_a_program_made_before_does_not_serve_where_an_interceptor_is_in_force():
    model, params, inputs = build("bert")
    model.params = params
    settings = {"max_new_tokens": 2, "eos_token_id": None}
    before, written = model(**inputs).logits, model.generate(**inputs, **settings).sequences
    with nn.intercept_methods(Adding()):
        assert np.abs(np.asarray(model(**inputs).logits - before)).max() > 0.1
        assert (model.generate(**inputs, **settings).sequences != written).any()
    np.testing.assert_array_equal(model(**inputs).logits, before)
    np.testing.assert_array_equal(model.generate(**inputs, **settings).sequences, written)
