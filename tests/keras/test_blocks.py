"""Activations, losses and layers against PyTorch's definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.tolerances import assert_close

from longspan.errors import ConfigError, InputError
from longspan.nn.torch.activations import ACTIVATIONS as TORCH_ACTIVATIONS
from longspan.nn.torch.losses import question_answering_loss as torch_question_answering_loss


def test_activations_equal_pytorch(keras):
    from longspan.nn.keras.activations import ACTIVATIONS, get_activation

    assert set(ACTIVATIONS) == set(TORCH_ACTIVATIONS)
    x = np.linspace(-12, 12, 97, dtype=np.float32)
    for name, function in ACTIVATIONS.items():
        assert_close(function(keras.ops.convert_to_tensor(x)), TORCH_ACTIVATIONS[name](torch.from_numpy(x)), what=name)
    assert get_activation(np.tanh) is np.tanh
    with pytest.raises(ConfigError, match="an activation must be one of gelu, .* Received: 'gulu'"):
        get_activation("gulu")


def test_positions_outside_the_text_do_not_count(keras):
    from longspan.nn.keras.losses import question_answering_loss

    generator = np.random.default_rng(0)
    scores = [generator.standard_normal((4, 6)).astype(np.float32) for _ in range(2)]
    positions = [np.array([0, 5, 6, 99]), np.array([[2], [-3], [1], [6]])]
    expected = torch_question_answering_loss(*map(torch.from_numpy, [*scores, *positions]))
    assert_close(question_answering_loss(*scores, *positions)[0], expected)
    with pytest.raises(InputError, match=r"start_positions and end_positions must have the shape \(batch,\) = \(4,\)"):
        question_answering_loss(*scores, positions[0][:3], positions[0][:3])


def test_causal_labels_must_align(keras):
    from longspan.nn.keras.losses import causal_lm_loss

    with pytest.raises(
        InputError, match=r"labels must have the shape \(batch, tokens\) = \(2, 3\). Received: \(2, 4\)"
    ):
        causal_lm_loss(np.zeros((2, 3, 5), np.float32), np.zeros((2, 4), int))


def test_tokens_in_blocks_give_what_all_at_once_give(keras, monkeypatch):
    import tensorflow as tf

    import longspan
    from longspan import shapes
    from longspan.nn.keras.layers import tokenwise

    monkeypatch.setattr(shapes, "TOKEN_BLOCK_BYTES", 4 * 8 * 3)  # of three tokens of 8 features
    seen = []

    def square(states):
        seen.append(tuple(states.shape))
        return states * states

    x = tf.constant(np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32))
    for shape, training, expected in (
        ((2, 5, 4), False, [(1, 3, 4)]),
        ((None, None, 4), None, [(1, None, 4), (None, None, 4)]),  # both ways, of which a graph takes one
        ((2, 5, 4), True, [(2, 5, 4)]),
    ):
        seen.clear()

        @tf.function(input_signature=[tf.TensorSpec(shape)])
        def program(x, training=training):
            with tf.GradientTape() as tape:
                tape.watch(x)
                output = tokenwise(square, x, parts=(), width=8, training=training)
            return output, tape.gradient(output, x)

        program.get_concrete_function()
        assert seen == expected
        for states in (x, x[:1, :2]) if shape[0] is None else (x,):
            output, gradient = program(states)
            assert_close(output, states * states)
            assert_close(gradient, 2 * states)
    seen.clear()

    def trace(*parts):
        tf.function(lambda x: tokenwise(square, x, parts=parts, width=8)).get_concrete_function(x)

    with longspan.plain():
        trace()
    part, patched, derived = (keras.layers.Dense(4) for _ in range(3))
    patched.call = lambda x: x  # as a tool does
    derived.__class__ = type("Theirs", (keras.layers.Dense,), {"call": lambda self, x: x})
    for layer in (patched, derived, part):
        trace(keras.Sequential([layer]))
    monkeypatch.setattr(keras.layers.Dense, "call", lambda self, x: x)
    trace(part)
    assert seen == [(2, 5, 4), (2, 5, 4), (2, 5, 4), (1, 3, 4), (2, 5, 4)]
