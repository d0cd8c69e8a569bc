"""The damped average of MEGA in `keras.ops` against its definition in float64 NumPy, with TensorFlow behind Keras."""

from __future__ import annotations

import numpy as np
import pytest
from tests.keras.setting import import_keras
from tests.ops.test_damped_ema import D, N, case, random_mask
from tests.oracle import damped_ema as oracle
from tests.oracle.derivatives import directional_derivative
from tests.tolerances import assert_close

from longspan.errors import InputError

keras = import_keras()


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    from longspan.ops.keras import damped_ema

    monkeypatch.setattr(damped_ema, "BLOCK_SIZE", 5)


def coefficients(arrays):
    from longspan.ops.keras.damped_ema import ema_coefficients

    alpha, delta, beta, eta = (keras.ops.cast(array, "float32") for array in arrays)
    return ema_coefficients(
        damping_factor=alpha[..., None], decay_factor=delta[..., None], expansion=beta[..., None], projection=eta
    )


def averaged(x, forward, backward=None, **options):
    from longspan.ops.keras.damped_ema import damped_ema

    backward = None if backward is None else coefficients(backward)
    return damped_ema(keras.ops.cast(x, "float32"), coefficients(forward), backward, return_state=True, **options)


@pytest.mark.parametrize(("length", "masked"), [(1, False), (4, True), (5, False), (11, True), (43, False)])
def test_both_directions_and_the_state(length, masked):
    x, forward, backward = case(length)
    mask = random_mask(length) if masked else None
    start = np.random.default_rng(3).normal(size=(2, D, N)).astype("f")
    expected, expected_state = oracle.damped_ema(x, *forward, mask=mask, state=start)
    outputs, state = averaged(x, forward, mask=mask, state=start)
    assert_close(outputs, expected)
    assert_close(state, expected_state)
    expected = oracle.bidirectional_damped_ema(x, forward, backward, mask=mask)
    assert_close(averaged(x, forward, backward, mask=mask)[0], expected)


@pytest.mark.parametrize(("length", "truncation"), [(3, 7), (13, 4), (12, 12)])
def test_a_truncated_average_sees_its_last_inputs_only(length, truncation):
    x, forward, backward = case(length)
    mask = random_mask(length)
    expected = oracle.bidirectional_damped_ema(x, forward, backward, mask=mask, truncation=truncation)
    assert_close(averaged(x, forward, backward, mask=mask, truncation=truncation)[0], expected)


@pytest.mark.parametrize("truncation", [None, 4])
def test_a_sequence_may_be_read_part_by_part(truncation):
    x, forward, _ = case(19)
    outputs, state = [], None
    for start, stop in ((0, 7), (7, 8), (8, 9), (9, 19)):
        output, state = averaged(x[:, start:stop], forward, truncation=truncation, state=state)
        outputs.append(output)
    assert_close(keras.ops.concatenate(outputs, axis=1), averaged(x, forward, truncation=truncation)[0])


@pytest.mark.parametrize("both", [True, False], ids=["both", "forward"])
def test_parts_of_whole_blocks_hand_states_in_each_direction(both):
    from longspan.ops.keras.damped_ema import backward_state_before, damped_ema_of_part, ema_blocks

    x, forward, backward = case(35)
    mask, state = random_mask(35), keras.ops.zeros((2, D, N))
    expected, expected_state = oracle.damped_ema(x, *forward, mask=mask)
    if both:
        expected = oracle.bidirectional_damped_ema(x, forward, backward, mask=mask)
    blocks = ema_blocks(coefficients(forward), coefficients(backward) if both else None)
    parts = [slice(0, 10), slice(10, 25), slice(25, 30), slice(30, 35)]
    inputs = [{"inputs": keras.ops.cast(x[:, part], "float32"), "mask": mask[:, part]} for part in parts]
    arriving = [state if both else None]
    for part in reversed(inputs[1:]):
        arriving.append(backward_state_before(**part, blocks=blocks, backward_state=arriving[-1]) if both else None)
    outputs = []
    for part, behind in zip(inputs, reversed(arriving), strict=True):
        output, state = damped_ema_of_part(**part, blocks=blocks, state=state, backward_state=behind)
        outputs.append(output)
    assert_close(keras.ops.concatenate(outputs, axis=1), expected)
    assert_close(state, expected_state)


@pytest.mark.parametrize("kind", ["call", "any length", "xla"])
def test_gradients_are_those_of_the_definition(kind):
    """In a call, in a graph whose lengths are unknown, whose doublings are a loop, and in one that XLA compiles."""
    import tensorflow as tf

    x, forward, backward = case(43)
    rng = np.random.default_rng(5)
    cotangent = rng.normal(size=x.shape)
    arrays = (x, *forward, *backward)

    def run(*moved):
        with tf.GradientTape() as tape:
            tape.watch(moved)
            outputs, state = averaged(moved[0], moved[1:5], moved[5:])
            loss = tf.reduce_sum(outputs * tf.cast(cotangent, "float32"))
        return outputs, state, tape.gradient(loss, moved)

    tensors = [tf.constant(array, "float32") for array in arrays]
    if kind != "call":
        specs = [tf.TensorSpec((None, None, D)), *[tf.TensorSpec((D, N))] * 8]
        options = {"jit_compile": True} if kind == "xla" else {"input_signature": specs}
        run = tf.function(run, autograph=False, **options)
    outputs, state, gradients = run(*tensors)
    assert_close(outputs, oracle.bidirectional_damped_ema(x, forward, backward))
    assert_close(state, oracle.damped_ema(x, *forward)[1])
    for index, gradient in enumerate(gradients):
        direction = rng.normal(size=arrays[index].shape)
        expected = directional_derivative(
            lambda x, *ways: oracle.bidirectional_damped_ema(x, ways[:4], ways[4:]), arrays, index, direction, cotangent
        )
        assert abs(float(np.sum(np.asarray(gradient) * direction)) - expected) <= 1e-4 * max(1.0, abs(expected)), index


def test_no_tensor_of_a_traced_program_grows_faster_than_the_length():
    import tensorflow as tf

    _, forward, backward = case(1)

    def largest(length):
        def run(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = tf.reduce_sum(tf.square(averaged(x, forward, backward)[0]))
            return tape.gradient(loss, x)

        graph = tf.function(run, autograph=False).get_concrete_function(tf.TensorSpec((1, length, D))).graph
        sizes = [t.shape.num_elements() for node in graph.get_operations() for t in node.outputs]
        return max(size for size in sizes if size is not None)  # lists of axes have unknown lengths

    assert largest(2000) <= 2 * largest(1000) < 1000**2


def test_a_state_of_another_shape_is_refused():
    x, forward, _ = case(4)
    with pytest.raises(InputError, match=r"an EMA state must have the shape .* = \(2, 3, 4\). Received: \(2, 3, 5\)"):
        averaged(x, forward, state=np.zeros((2, 3, 5), "f"))
