"""Loops of all frameworks on the same data, and what one step makes of the weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from tests.training.conftest import SETTINGS, documents

from longspan import BertConfig, BertModel
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
    return loss, {name: np.asarray(each.read()) for name, each in one.task.model._tensors_to_save(moved).items()}


def step_of_keras(one) -> tuple[float, dict[str, np.ndarray]]:
    """The loss of the only step, and the weights less their gradients, as `fit` makes them."""
    import keras

    from longspan.training.keras_loop import Passes

    (step,) = one.epoch(0)
    plain = keras.optimizers.SGD(1.0, gradient_accumulation_steps=one.num_passes)
    one.learner.compile(plain, jit_compile=one.learner.jit_compile)
    one.learner.fit(Passes(one, [step]), shuffle=False, verbose=0)
    weights = {name: np.asarray(each.read()) for name, each in one.task.model.tensors_to_save().items()}
    return float(one.learner.step_loss.result()), weights


STEPS = {"flax": step_of_flax, "keras": step_of_keras}


def assert_same_step(found, expected) -> None:
    """Loss and weights of a step are those of PyTorch."""
    loss, weights, largest = expected
    assert abs(found[0] - loss) < 1e-5 * abs(loss), (found[0], loss)
    assert found[1].keys() <= weights.keys()
    assert len(found[1]) >= len(weights) - 1  # tied weights stand once
    for name, weight in found[1].items():
        np.testing.assert_allclose(weight, weights[name], rtol=0, atol=1e-5 * max(1, largest), err_msg=name)
