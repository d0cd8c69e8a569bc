"""Every dense layer, embedding and norm of every Keras class is applied by calling it.

A tool puts a layer of its own in the place of ours. Here that layer adds a known term, so the output, and the gradient,
must be those of a model whose bias or table has grown by that term.
"""

from __future__ import annotations

import numpy as np
import pytest
from tests.grid import grid
from tests.keras.setting import (
    CLASSES,
    DIFFLLAMAS,
    LONGFORMERS,
    LONGT5,
    MEGAS,
    config_for,
    import_keras,
    inputs_of,
    make,
    randomise,
)
from tests.tolerances import assert_close

keras = import_keras()

#: settings under which every part takes part
CASES = {
    **{name: (name, {}) for name in (*CLASSES, LONGFORMERS[0], LONGT5, *DIFFLLAMAS, *MEGAS)},
    "decoder": ("TFBertLMHeadModel", {"add_cross_attention": True}),
    "mega tied": ("TFMegaForMaskedLM", {"tie_word_embeddings": True}),
    "mega decoder": ("TFMegaForCausalLM", {"add_cross_attention": True, "tie_word_embeddings": False}),
    "untied": ("TFBertForMaskedLM", {"tie_word_embeddings": False}),
    "relative": ("TFBertModel", {"position_embedding_type": "relative_key_query"}),
}
#: their scores are one or two numbers of a row's first token
ONE_SCORE_A_ROW = (
    "TFBertForNextSentencePrediction",
    "TFBertForSequenceClassification",
    "TFBertForMultipleChoice",
    LONGFORMERS[0],
    "TFDiffLlamaForSequenceClassification",
    MEGAS[1],
)
QUANTIZED = (*CLASSES, LONGFORMERS[0], LONGT5, *DIFFLLAMAS, *MEGAS)
FIRST = ("input_ids", "attention_mask")
#: ends of the names of norms that Keras lacks
NORMS = ("RMSNorm", "LongT5LayerNorm", "MegaScaleNorm")
KINDS = (keras.layers.Dense, keras.layers.Embedding, keras.layers.LayerNormalization)


class Wrapped(keras.layers.Layer):
    """What a layer gives, and a learned term."""

    def __init__(self, inner, term):
        super().__init__(name=inner.name)
        self.inner = inner
        self.input_dim = getattr(inner, "input_dim", None)
        self.term = self.add_weight(shape=term.shape, initializer="zeros", name="term")
        self.term.assign(term)
        self.built = True

    def call(self, inputs):
        return self.inner(inputs) + self.term


def parts(layer):
    """All places of a dense layer, embedding or norm: (layer that has it, attribute, the part)."""
    for attribute, value in {**vars(layer), **vars(layer).get("_modules", {})}.items():
        if attribute.startswith("_"):
            continue
        if isinstance(value, KINDS) or type(value).__name__.endswith(NORMS):
            yield layer, attribute, value
        elif isinstance(value, keras.layers.Layer):
            yield from parts(value)
        elif isinstance(value, list | tuple):
            for item in value:
                if isinstance(item, keras.layers.Layer):
                    yield from parts(item)


def run(model, name, **more):
    import tensorflow as tf

    inputs = inputs_of(name) | more
    with tf.GradientTape(persistent=True) as tape:
        output = model(**inputs)
        numbers = [value for value in output.values() if not isinstance(value, tuple)]
        loss = sum(tf.reduce_sum(tf.cast(value, tf.float32) * (1 + index)) for index, value in enumerate(numbers))
    return numbers, loss, tape


#: heads that families share (`longspan.nn.keras.tasks`), which cases of BERT show
SHARED_HEADS = (*DIFFLLAMAS[3:], MEGAS[0])


@pytest.mark.parametrize("case", grid(CASES, wide=SHARED_HEADS))
def test_layers_in_the_place_of_ours_take_effect_and_learn(case):
    from longspan.nn.keras.resizing import replace_layer

    name, settings = CASES[case]
    implementation = "auto" if name in (*LONGFORMERS, LONGT5) else "eager"
    settings = {"num_hidden_layers": 1, "attn_implementation": implementation, **settings}
    model = make(name, **settings)
    more = {}
    if settings.get("add_cross_attention"):
        more["encoder_hidden_states"] = np.random.default_rng(3).standard_normal((4, 7, 36)).astype(np.float32)
    generator = np.random.default_rng(0)
    # relative positions do not read the table of absolute ones
    found = [item for item in parts(model) if case != "relative" or item[1] != "position_embeddings"]
    assert len(found) >= 10
    terms = [generator.standard_normal(width(part)).astype(np.float32) / 8 for _, _, part in found]
    shifted = [shift(part, term) for (_, _, part), term in zip(found, terms, strict=True)]
    expected, loss, tape = run(model, name, **more)
    gradients = [None if offset is None else tape.gradient(loss, offset.value) for offset in shifted]
    wrappers = []
    for (parent, attribute, part), offset, term in zip(found, shifted, terms, strict=True):
        if offset is None:
            term = np.zeros_like(term)  # no weight of the model can stand for it: its gradient tells whether it acts
        else:
            offset.assign_sub(np.broadcast_to(term, offset.shape))
        wrappers.append(Wrapped(part, term))
        replace_layer(parent, attribute, wrappers[-1])
    outputs, loss, tape = run(model, name, **more)
    for one, two in zip(outputs, expected, strict=True):
        assert_close(one, two)
    learned = tape.gradient(loss, [wrapper.term.value for wrapper in wrappers])
    largest = max(float(np.abs(np.asarray(mine)).max()) for mine in learned if mine is not None)
    for (parent, attribute, part), mine, theirs in zip(found, learned, gradients, strict=True):
        assert mine is not None, f"{type(parent).__name__}.{attribute}"
        if attribute == "k":  # without a bias: a term of all keys shifts all scores of a query alike
            assert_close(mine / largest, np.zeros_like(mine))
        elif theirs is None:
            assert np.abs(np.asarray(mine)).max() > 1e-3
        else:
            full = np.asarray(theirs.values if hasattr(theirs, "values") else theirs)
            mine, theirs = np.asarray(mine), full.reshape(-1, width(part)).sum(0)
            # the gradient of key biases, which shift all scores of a query alike, is 0 but for rounding
            scale = max(np.abs(theirs).max(), 0.01 * largest)
            assert_close(mine / scale, theirs / scale, what=f"{type(parent).__name__}.{attribute}")


def width(part):
    return part.units if isinstance(part, keras.layers.Dense) else part.weights[-1].shape[-1]


def shift(part, term):
    """Add the term to the bias, offset or table of a part; the variable, or None if it has none."""
    attribute = {"Embedding": "_embeddings", "LayerNormalization": "beta"}.get(type(part).__name__, "bias")
    variable = getattr(part, attribute, None)
    if variable is not None:
        variable.assign_add(np.broadcast_to(term, variable.shape))
    return variable


@pytest.mark.parametrize("name", ["TFBertForMaskedLM", LONGFORMERS[0]])
def test_a_call_put_in_the_place_of_a_layers_own_acts_as_a_layer_in_its_place(name):
    """BERT's table is read as a projection too, and Longformer's global projections are folded otherwise."""
    from longspan.nn.keras.resizing import replace_layer

    model, inputs = make(name, num_hidden_layers=1), inputs_of(name)
    before, generator = model(**inputs)[0], np.random.default_rng(0)
    terms = [(item, generator.standard_normal(width(item[2])).astype(np.float32) / 8) for item in parts(model)]
    for (_, _, part), term in terms:
        part.call = lambda *args, call=part.call, term=term, **kwargs: call(*args, **kwargs) + term
    patched = model(**inputs)[0]
    for (parent, attribute, part), term in terms:
        del part.call
        replace_layer(parent, attribute, Wrapped(part, term))
    assert np.abs(np.asarray(patched) - np.asarray(before)).max() > 0.1
    assert_close(patched, model(**inputs)[0])


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.parametrize("name", grid(QUANTIZED, wide=ONE_SCORE_A_ROW[:3] + ONE_SCORE_A_ROW[4:]))
def test_int8_costs_little_and_adapters_act_everywhere(name):
    import longspan

    inputs = {key: value for key, value in inputs_of(name).items() if key in FIRST or "decoder" in key}
    inputs["attention_mask"][:] = 1

    def scores():
        output = model(inputs)
        fields = ("logits", "prediction_logits", "start_logits", "last_hidden_state")
        return np.asarray(next(output[field] for field in fields if field in output))

    # one score a row may by chance be near 0, where any error is large: several models are judged together
    seeds = 4 if name in ONE_SCORE_A_ROW else 1
    errors, sizes = [], []
    for seed in range(seeds):
        keras.utils.set_random_seed(seed)
        model = getattr(longspan, name)(config_for(name, num_hidden_layers=1, hidden_size=96, intermediate_size=64))
        expected = scores()
        model.quantize("int8")
        errors.append(np.linalg.norm(scores() - expected))
        sizes.append(np.linalg.norm(expected))
    assert np.linalg.norm(errors) < 0.02 * np.linalg.norm(sizes)
    embedding = model.get_input_embeddings()
    embedding.enable_lora(2)
    change = np.random.default_rng(0).standard_normal(embedding.lora_embeddings_b.shape)
    embedding.lora_embeddings_b.assign(change.astype(np.float32))
    assert np.linalg.norm(scores() - expected) > 0.05 * np.linalg.norm(expected)


#: classes that decode with a cache
DECODERS = {
    "bert": ("TFBertLMHeadModel", {"add_cross_attention": True}),
    "diffllama": (
        "TFDiffLlamaForCausalLM",
        {"num_attention_heads": 6, "num_key_value_heads": 3, "attention_bias": True},
    ),
    "longt5": ("TFLongT5ForConditionalGeneration", {}),
    "mega": ("TFMegaForCausalLM", {"is_decoder": True, "bidirectional": False}),
    "roberta": ("TFRobertaForCausalLM", {}),
}
SMALL_LONGT5 = {"d_model": 36, "d_kv": 12, "d_ff": 50, "num_heads": 3, "num_layers": 1, "local_radius": 2}
SMALL_MEGA = {"ema_projection_size": 3, "shared_representation_size": 8, "nffn_hidden_size": 14}


def make_decoder(family):
    """(model with random weights, ids (2, 9), its other inputs, the cache that it begins with)."""
    import longspan

    name, settings = DECODERS[family]
    config_class = getattr(longspan, name[2:].partition("For")[0].partition("LMHead")[0] + "Config")
    common = {"vocab_size": 40, **({"longt5": SMALL_LONGT5, "mega": SMALL_MEGA}.get(family, {}))}
    if family != "longt5":
        common |= {"hidden_size": 36, "num_hidden_layers": 1, "intermediate_size": 50}
    if family in ("bert", "roberta"):
        common |= {"num_attention_heads": 3, "is_decoder": True}
    model = randomise(getattr(longspan, name)(config_class(**{**common, **settings})))
    rng = np.random.default_rng(3)
    ids = rng.integers(2, 40, (2, 9))
    states = rng.standard_normal((2, 7, 36)).astype(np.float32)
    inputs = {"bert": {"encoder_hidden_states": states}, "longt5": {"encoder_outputs": (states,)}}.get(family, {})
    return model, ids, inputs, model.init_cache(2, 9) if family == "mega" else None


@pytest.mark.parametrize("family", DECODERS)
def test_cached_steps_show_what_was_put_in_the_place_of_layers(family):
    import tensorflow as tf

    from longspan.nn.keras.resizing import replace_layer

    model, ids, inputs, cache = make_decoder(family)
    key = "decoder_input_ids" if family == "longt5" else "input_ids"
    before = np.asarray(model(**{key: ids}, **inputs).logits)
    encoder = {id(part) for _, _, part in parts(model.encoder)} if family == "longt5" else set()
    wrappers, generator = [], np.random.default_rng(0)
    for parent, attribute, part in [item for item in parts(model) if id(item[2]) not in encoder]:
        wrappers.append(Wrapped(part, generator.standard_normal(width(part)).astype(np.float32) / 4))
        replace_layer(parent, attribute, wrappers[-1])
    assert len(wrappers) >= 9
    with tf.GradientTape() as tape:
        whole = model(**{key: ids}, **inputs).logits
        loss = tf.reduce_sum(tf.square(whole))
    learned = tape.gradient(loss, [wrapper.term.value for wrapper in wrappers])
    for wrapper, gradient in zip(wrappers, learned, strict=True):
        assert gradient is not None, wrapper.name
        # what is the same for all keys changes no softmax
        assert (
            wrapper.name in ("key", "k", "k_proj", "relative_attention_bias")
            or np.abs(np.asarray(gradient)).max() > 1e-3
        )
    assert np.abs(np.asarray(whole) - before).max() > 0.1
    pieces = []
    for start, stop in ((0, 5), (5, 6), (6, 9)):
        output = model(**{key: ids[:, start:stop]}, past_key_values=cache, **inputs)
        cache = output.past_key_values
        pieces.append(np.asarray(output.logits))
    assert_close(np.concatenate(pieces, axis=1), np.asarray(whole))


@pytest.mark.parametrize(("family", "place"), [*((family, "layer") for family in DECODERS), ("diffllama", "call")])
def test_generate_shows_what_was_put_in_the_place_of_layers_after_its_programs_were_made(family, place):
    from longspan.nn.keras.resizing import replace_layer

    model, ids, inputs, _ = make_decoder(family)
    settings = {"max_new_tokens": 3, "eos_token_id": None, "suppress_tokens": [1]}  # RoBERTa's padding
    given = {key: value for key, value in inputs.items() if key == "encoder_hidden_states"}

    def write():
        written = np.asarray(model.generate(ids, **given, **settings))
        if family == "longt5":  # whose encoder `generate` calls by itself
            whole, first = np.asarray(model(ids, decoder_input_ids=written).logits), 1
        else:
            whole, first = np.asarray(model(written, **given).logits), 9
        scores = np.where(np.arange(40) == 1, -np.inf, whole[:, first - 1 : -1])
        np.testing.assert_array_equal(written[:, first:], scores.argmax(-1))
        return written

    before = write()
    for number, (parent, attribute, part) in enumerate(list(parts(model))):
        term = np.random.default_rng(number).standard_normal(width(part)).astype(np.float32)
        if place == "call":
            part.call = lambda *args, call=part.call, term=term, **kwargs: call(*args, **kwargs) + term
        else:
            replace_layer(parent, attribute, Wrapped(part, term))
    assert (write() != before).any()
