"""The attention of MEGA in `keras.ops` against its definition in float64 NumPy, with TensorFlow behind Keras."""

from __future__ import annotations

import numpy as np
import pytest
from tests.keras.setting import import_keras
from tests.ops.test_gated_attention import POSITIONS, Case
from tests.oracle import gated_attention as oracle
from tests.oracle.derivatives import directional_derivative
from tests.tolerances import assert_close

from longspan.errors import InputError

keras = import_keras()


def attend(case, arrays, *, mask=None, **settings):
    """Output and weights from query, key, value and bias."""
    from longspan.ops.keras.gated_attention import Keys, RotaryBias, ToeplitzBias, gated_attention

    query, key, value, bias = arrays
    bias = ToeplitzBias(bias, POSITIONS - 1) if case.kind == "simple" else RotaryBias(bias[:1], bias[1:])
    places, positions = (keras.ops.arange(states.shape[1], dtype="int32") for states in (key, query))
    keys = Keys(key, value, places, None if mask is None else keras.ops.array(mask), bias)
    return gated_attention(query, case.offset + positions, keys, **settings)


def arrays_of(case, dtype="float32"):
    return [keras.ops.cast(array, dtype) for array in (case.query, case.key, case.value, case.bias)]


@pytest.mark.parametrize(
    ("activation", "kind", "masked", "causal", "offset"),
    [
        ("softmax", "rotary", True, True, 0), ("softmax", "simple", False, False, 0),
        ("laplace", "rotary", True, False, 0), ("laplace", "simple", True, True, 0),
        ("relu2", "rotary", False, True, 0), ("relu2", "simple", True, False, 6),
    ],
)  # fmt: skip
def test_outputs_weights_and_gradients(activation, kind, masked, causal, offset):
    import tensorflow as tf

    case = Case(kind, keys=11 + offset, offset=offset)
    mask = case.mask if masked else None
    settings = {"activation": activation, "causal": causal}
    expected, expected_weights = case.expected(case.query, case.key, case.value, case.bias, mask=mask, **settings)
    with tf.GradientTape() as tape:
        given = arrays_of(case)
        tape.watch(given)
        output, weights = attend(case, given, mask=mask, **settings)
        loss = tf.reduce_sum(output * case.cotangent.astype("f"))
    assert_close(output, expected)
    assert_close(weights, expected_weights)
    rng, exact = np.random.default_rng(4), [np.asarray(array, np.float64) for array in given]
    for index, gradient in enumerate(tape.gradient(loss, given)):
        direction = rng.normal(size=exact[index].shape)
        derivative = directional_derivative(
            lambda *moved: case.expected(*moved, mask=mask, **settings)[0], exact, index, direction, case.cotangent
        )
        mine = float(np.sum(np.asarray(tf.convert_to_tensor(gradient)) * direction))
        assert abs(mine - derivative) <= 1e-4 * max(1.0, abs(derivative)), index


def test_a_mask_may_differ_from_query_to_query():
    case = Case("rotary", queries=10, keys=10)
    chunks = np.array([[0] * 5 + [1] * 5, [0] * 3 + [1] * 7, [0] * 10])
    mask = chunks[:, :, None] == chunks[:, None]
    output, _ = attend(case, arrays_of(case), mask=mask, activation="softmax", causal=True)
    matrix = oracle.rotary_bias(case.bias[0], case.bias[1], 7, 7)
    expected, _ = oracle.gated_attention(
        case.query[1:2, 3:], case.key[1:2, 3:], case.value[1:2, 3:], matrix, activation="softmax", causal=True
    )
    assert_close(output[1:2, 3:], expected)


@pytest.mark.parametrize("activation", ["softmax", "laplace", "relu2"])
def test_half_precision_and_dropout(activation):
    case = Case("rotary")
    settings = {"activation": activation, "mask": case.mask}
    output, _ = attend(case, arrays_of(case, "bfloat16"), **settings)
    assert output.dtype == "bfloat16"
    expected = case.expected(case.query, case.key, case.value, case.bias, **settings)[0]
    assert_close(np.asarray(output, np.float32), expected, "bfloat16")
    halved, weights = attend(case, arrays_of(case), dropout=lambda weights: weights / 2, **settings)
    assert_close(2 * halved, expected)
    assert_close(weights @ case.value.astype("f"), expected)  # before dropout


def test_errors():
    case = Case("rotary", queries=3, keys=3)
    with pytest.raises(InputError, match="attn_implementation must be one of auto, eager"):
        attend(case, arrays_of(case), activation="softmax", implementation="tiled")
    with pytest.raises(InputError, match="activation must be one of softmax, laplace, relu2. Received: 'elu'"):
        attend(case, arrays_of(case), activation="elu")
