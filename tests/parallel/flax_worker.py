"""Four devices of JAX that share sequences, and what they compute beside one: run by `tests/parallel`, prints JSON."""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
sys.path.insert(0, str(Path(__file__).parents[2]))
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from tests.parallel import cases
from tests.tolerances import assert_gradients_close, error

import longspan
from longspan.nn.flax import losses
from longspan.parallel.flax import context_parallel

TOKENS = P(None, "tokens")
LOSSES = {
    "ForMaskedLM": losses.cross_entropy,
    "ForTokenClassification": losses.cross_entropy,
    "ForCausalLM": losses.causal_lm_loss,
    "ForConditionalGeneration": losses.cross_entropy,
    "ForMultipleChoice": losses.cross_entropy,
}
LABELS = ("labels", "start_positions", "end_positions")
OUTPUTS = ("logits", "start_logits", "end_logits")


def flax_model(case):
    """The Flax class of a case, with one layer and random weights, norms and biases."""
    model = case.make()
    cls, config = getattr(longspan, f"Flax{type(model).__name__}"), copy.deepcopy(model.config)
    for name in ("num_hidden_layers", "num_layers", "num_decoder_layers"):  # compiling takes most of the time
        if hasattr(config, name):
            setattr(config, name, 1)
    if isinstance(getattr(config, "attention_window", None), list):
        config.attention_window = config.attention_window[1:]
    ours = cls(config)
    flat = jax.tree_util.tree_leaves_with_path(ours.params)
    rng = np.random.default_rng(0)
    noise = [leaf + 0.1 * rng.standard_normal(leaf.shape).astype("float32") for _, leaf in flat]
    ours.params = jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(ours.params), noise)
    return ours


def loss_of(model, output, labels):
    name = type(model).__name__
    if "start_positions" in labels:
        return losses.question_answering_loss(output.start_logits, output.end_logits, *labels.values())
    if "ForSequenceClassification" in name:
        return losses.sequence_classification_loss(model.config, output.logits, labels["labels"])
    return next(loss for suffix, loss in LOSSES.items() if name.endswith(suffix))(output.logits, labels["labels"])


def spec(name, value, inputs):
    tokens = np.shape(inputs["input_ids"])[-1]
    is_target = name == "labels" and "decoder_input_ids" in inputs
    if value.shape[-1] != tokens or value.ndim < 2 or is_target:
        return P()
    return P(*[None] * (value.ndim - 1), "tokens")


def prepared(case):
    """Inputs and labels as arrays of JAX."""
    inputs = {name: jnp.asarray(value.numpy()) for name, value in case.inputs.items() if hasattr(value, "numpy")}
    if "longt5" in case.name:
        inputs["decoder_input_ids"] = jnp.roll(inputs["labels"], 1, axis=1).at[:, 0].set(0)
    labels = {name: inputs.pop(name) for name in LABELS if name in inputs}
    return inputs, labels


def programs(case, model, mesh):
    """Loss, scores and gradients in one device and in all."""
    inputs, labels = prepared(case)
    everything = {**inputs, **labels}

    def run(params, given):
        arguments = {name: value for name, value in given.items() if name not in LABELS}
        output = model(**arguments, params=params)
        loss = loss_of(model, output, {name: given[name] for name in LABELS if name in given})
        return loss, {name: output[name] for name in OUTPUTS if output.get(name) is not None}

    specs = {name: spec(name, value, inputs) for name, value in everything.items()}
    outputs = {name: P() if axis is None else TOKENS for name, axis in case.outputs.items() if name in OUTPUTS}
    shared = context_parallel(run, mesh=mesh, axis="tokens", in_specs=(P(), specs), out_specs=(P(), outputs))
    differentiate = lambda function: jax.jit(jax.value_and_grad(function, has_aux=True))  # noqa: E731  # said twice
    return differentiate(run), differentiate(shared), (model.params, everything)


def compare(name):
    case = cases.CASES[name]
    case.name = name
    model = flax_model(case)
    mesh = jax.make_mesh((4,), ("tokens",))
    single, shared, arguments = programs(case, model, mesh)
    (loss, outputs), gradients = single(*arguments)
    (own_loss, own), found = shared(*arguments)
    errors = {"loss": error(own_loss, loss)}
    for key, value in own.items():
        real = case.real(np.zeros(0), None) if case.outputs[key] is None else case.inputs.get("attention_mask")
        real = 1.0 if real is None or isinstance(real, float) else np.asarray(real != 0)[..., None]
        errors[key] = error(value * real, outputs[key] * real)
    flat = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)}
    mine = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(found)}
    try:
        assert_gradients_close(mine, flat)
    except AssertionError as problem:
        return {**errors, "gradients": str(problem)}
    return {**errors, "gradients": len(flat)}


def run_memory():
    """Bytes of temporary memory of a compiled step over 4,096 tokens, of a device of four beside one alone."""
    case = cases.long_case("LongformerForTokenClassification", 4096, width=32)
    case.name = "longformer"
    single, shared, arguments = programs(case, flax_model(case), jax.make_mesh((4,), ("tokens",)))
    sizes = [each.lower(*arguments).compile().memory_analysis().temp_size_in_bytes for each in (single, shared)]
    return {"part": sizes[1] / sizes[0], "bytes": sizes}


def run_errors():
    """What is said of calls that cannot be shared; where values cannot be seen, a row is NaN."""
    longformer, mega = (flax_model(cases.CASES[name]) for name in ("longformer_fill", "mega_generate_chunks"))
    mesh = jax.make_mesh((4,), ("tokens",))
    ids = jnp.asarray(cases.ids().numpy())

    def call(model, axis="tokens", **flags):
        def run(params, ids, mask):
            return model(ids, attention_mask=mask, params=params, **flags).logits

        specs = {"in_specs": (P(), TOKENS, TOKENS), "out_specs": TOKENS}
        shared = context_parallel(run, mesh=mesh, axis=axis, **specs)
        return lambda ids, mask: shared(model.params, ids, mask)

    def all_of(length):
        return ids[:, :length], jnp.ones((2, length), jnp.int32)

    norm = cases.make("MegaForMaskedLM", **cases.MEGA, normalization_type="batchnorm")
    batchnorm = flax_model(cases.Case(norm, {}))
    late = jnp.ones((2, 24), jnp.int32).at[0, 0].set(0)
    return {
        "axis": cases.message(lambda: call(longformer, axis="words")),
        "short": cases.message(lambda: call(longformer)(*all_of(12))),
        "chunks": cases.message(lambda: call(mega)(*all_of(32))),
        "weights": cases.message(lambda: call(longformer, output_attentions=True)(*all_of(32))),
        "norm": cases.message(lambda: call(batchnorm, train=True, dropout_rng=jax.random.key(0))(*all_of(24))),
        "left": jnp.isnan(call(mega)(ids[:, :24], late)).all(axis=(1, 2)).tolist(),
    }


if __name__ == "__main__":
    for name in sys.argv[1:]:
        found = compare(name) if name in cases.CASES else globals()[f"run_{name}"]()
        print(json.dumps([name, found]), flush=True)
