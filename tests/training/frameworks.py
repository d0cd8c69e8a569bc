"""Loops of all frameworks on the same data, and what one step makes of the weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from tests.training.conftest import SETTINGS, documents

from longspan import BertConfig, BertModel
from longspan.embeddings.pooling import Dense
from longspan.training.options import TrainOptions
from longspan.training.runs import make_loop, prepare

#: all documents in one step of several forward passes
ONE_STEP = {"batch_tokens": 10000, "micro_tokens": 100, "validation_split": 0.0}
#: what makes two windows of 32 tokens of an even document
TWO_WINDOWS = {"max_length": 32, "stride": 0}


def without_dropout(encoder: Path, folder: Path) -> Path:
    """A BERT of one layer with the encoder's tokenizer, random weights, biases and norms, and dropout 0."""
    settings = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_hidden_layers": 1}
    model = BertModel(BertConfig.from_pretrained(encoder, **settings))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return with_model(encoder, folder, model)


def with_model(encoder: Path, folder: Path, model) -> Path:
    """A folder with a model and the encoder's tokenizer."""
    shutil.copytree(encoder, folder, ignore=shutil.ignore_patterns("model.safetensors", "config.json"))
    model.save_pretrained(folder)
    return folder


def even(count: int, *, seed: int) -> list[dict[str, str]]:
    """Documents of sixty tokens, labels by turns: two windows of 32, so that few shapes occur."""
    found = documents(count, seed=seed, longest=60)
    return [one | {"text": " ".join((one["text"].split() * 8)[:60])} for one in found]


def make(framework, task, model, data, **settings):
    """The loop of a framework."""
    options = TrainOptions.of({**SETTINGS, **ONE_STEP, **settings, "framework": framework})
    prepared = prepare(task, model, data, "unused", validation=None, options=options)
    return make_loop(prepared, show_progress=False)


def with_head(task, model, data, folder: Path, **settings) -> Path:
    """A folder with the model and a head for the task, drawn in PyTorch."""
    made = make("torch", task, model, data, **settings).task
    made.save(made.model, folder)
    return folder


def step_of_torch(one) -> tuple[float, dict[str, np.ndarray], float]:
    """The loss of the only step, the weights less their gradients, and the largest gradient."""
    one.model.eval()
    (step,) = one.epoch(0)
    assert len(step.passes) > 1
    loss = one.accumulate(step)
    parameters = dict(one.base.named_parameters())
    weights = {name: (each - each.grad if each.grad is not None else each).detach().numpy()
               for name, each in parameters.items()}  # fmt: skip
    return loss, weights, max(float(each.grad.abs().max()) for each in parameters.values() if each.grad is not None)


def step_of_flax(one) -> tuple[float, dict[str, np.ndarray]]:
    """The loss of the only step, and the weights less their gradients."""
    import jax

    (step,) = one.epoch(0)
    loss, gradients = one.accumulate(step, train=False)
    moved = jax.tree.map(lambda weight, gradient: weight - gradient, one.params, gradients)
    one.params = moved
    one._hand_over(moved)
    return loss, tensors_of(one.task)


def step_of_keras(one) -> tuple[float, dict[str, np.ndarray]]:
    """The loss of the only step, and the weights less their gradients, as `fit` makes them."""
    return loss_of_keras_step(one), tensors_of(one.task)


def loss_of_keras_step(one) -> float:
    """The loss of the only step; `fit` takes the gradients from the weights."""
    import keras

    from longspan.training.keras_loop import Passes

    (step,) = one.epoch(0)
    with one._scope():
        plain = keras.optimizers.SGD(1.0, gradient_accumulation_steps=one.num_passes)
        one.learner.compile(plain, jit_compile=one.learner.jit_compile)
        one.learner.fit(Passes(one, [step]), shuffle=False, verbose=0)
    return float(one.learner.step_loss.result())


def take_adapters(one, trained) -> int:
    """Give a loop of Keras or Flax the adapters of PEFT by its names; how many matrices they are."""
    if one.options.framework == "flax":
        for place, pair in one.params["adapters"].items():
            one.params["adapters"][place] = {
                letter: trained[f"{place}.lora_{letter.upper()}.default.weight"].detach().numpy().T for letter in pair
            }
        return 2 * len(one.params["adapters"])
    layers = [layer for layer in one.task.model._flatten_layers() if getattr(layer, "lora_enabled", False)]
    for layer in layers:
        for letter in "ab":
            name = f"layer.0.attention.self.{layer.name}.lora_{letter.upper()}.default.weight"
            (found,) = [each for full, each in trained.items() if full.endswith(name)]
            getattr(layer, f"lora_kernel_{letter}").assign(found.detach().numpy().T)
    return len(one.learner.trainable_variables)


def tensors_of(task) -> dict[str, np.ndarray]:
    """The weights of a model of Flax or Keras under the names that PyTorch has for them."""
    model = task._framework.detach(task.model) if task.name == "embed" else task.model
    tensors = model.tensors_to_save() if hasattr(model, "tensors_to_save") else model._tensors_to_save(model.params)
    found = {name: np.asarray(each.read()) for name, each in tensors.items()}
    layers = task._framework.layers_of(task.model, task.encoder._modules.layers) if task.name == "embed" else ()
    for place, layer in enumerate(layers):
        prefix = f"sentence_layers.{place}{'.0' if isinstance(layer, Dense) else ''}"
        found |= {f"{prefix}.{name}": getattr(layer, name) for name in ("weight", "bias")}
    return found


def assert_recomputed_dropout_is_the_same() -> None:
    """Layers that are computed again draw the same dropout twice, and the next time as they would otherwise."""
    import keras

    from longspan.training.keras_recomputing import recompute_layers

    class Layer(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.dropout = keras.layers.Dense(64), keras.layers.Dropout(0.5, seed=7)
            self.calls = 0

        def call(self, states, *, scale, training=None):
            self.calls += 1
            return self.dropout(keras.ops.tanh(self.dense(states)), training=training) * scale["by"][0], "more"

    class Model(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.gain = self.add_weight(shape=(), initializer="ones")
            self.stack = [Layer(), Layer()]

        def call(self, states, training=None):
            for layer in self.stack:
                states, _ = layer(states, scale={"by": (self.gain * 3,)}, training=training)
            return states

    states = np.random.default_rng(0).normal(size=(9, 64)).astype(np.float32)
    found = []
    for again in (False, True):
        keras.utils.set_random_seed(0)
        model = Model()
        model(states)
        if again:
            recompute_layers(model)
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=keras.backend.backend() == "jax")
        before = model.stack[0].calls
        losses = [float(model.train_on_batch(states, states)) for _ in range(3)]
        found.append((losses, [np.asarray(each) for each in model.weights], model.stack[0].calls - before))
    (losses, weights, once), (again, same, calls) = found
    assert abs(losses[2] - losses[0]) > 1e-3
    np.testing.assert_allclose(again, losses, rtol=1e-5)
    for one, other in zip(same, weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    assert calls > once or keras.backend.backend() == "jax"  # JAX traces once and repeats what it traced


STEPS = {"flax": step_of_flax, "keras": step_of_keras}


def assert_same_step(found, expected) -> None:
    """Loss and weights of a step are those of PyTorch."""
    loss, weights, largest = expected
    assert abs(found[0] - loss) < 1e-5 * abs(loss), (found[0], loss)
    assert found[1].keys() <= weights.keys()
    assert len(found[1]) >= len(weights) - 1  # tied weights stand once
    for name, weight in found[1].items():
        np.testing.assert_allclose(weight, weights[name], rtol=0, atol=1e-5 * max(1, largest), err_msg=name)
