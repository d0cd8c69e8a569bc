"""Sliding-window attention in `keras.ops` against its definition in float64 NumPy, with TensorFlow behind Keras."""

from __future__ import annotations

import numpy as np
import pytest
from tests.keras.setting import import_keras
from tests.oracle.sliding_window import SlidingWindow
from tests.tolerances import TOLERANCE, assert_close, gradient_error

from longspan.errors import InputError
from longspan.ops.dispatch import recording

BATCH, HEADS, SIZE, VALUE_SIZE = 2, 3, 8, 5
#: length, left, right, extra keys, step: below, at and above the window and the block; odd; one-sided; very wide
SHAPES = [(1, 2, 2, 0, 1), (7, 3, 3, 5, 1), (129, 0, 9, 3, 40), (140, 300, 2, 1, 7), (267, 10, 6, 17, 16)]
keras = import_keras()


class Case:
    """Random inputs of the definition; the rows of the batch have different masks."""

    def __init__(self, length, left, right, num_extra, step, *, mask=None, biases=True):
        rng = np.random.default_rng(length)
        self.window = {"left": left, "right": right, "scale": 0.4}
        shapes = {"query": (length, SIZE), "key": (length, SIZE), "value": (length, VALUE_SIZE)}
        if num_extra:
            shapes |= {"extra_key": (num_extra, SIZE), "extra_value": (num_extra, VALUE_SIZE)}
        self.arrays = {name: rng.normal(size=(BATCH, HEADS, *shape)) for name, shape in shapes.items()}
        self.fixed = {}
        if biases:
            self.arrays["bias"] = rng.normal(size=(HEADS, left + right + 1))
        if biases and num_extra:
            self.arrays["extra_bias"] = rng.normal(size=(HEADS, 2 * num_extra - 1))
            start = np.array([[-2], [0]])  # one row begins before the axis of the extra keys, and stays at its end
            self.fixed["extra_position"] = np.minimum(start + np.arange(length) // step, num_extra - 1)
        if mask == "random":
            self.fixed["mask"] = rng.random((BATCH, length)) > 0.4
            self.fixed["extra_mask"] = rng.random((BATCH, num_extra)) > 0.4 if num_extra else None
        elif mask == "dead":  # the first row sees nothing at all, the second only its tail
            self.fixed["mask"] = np.stack([np.zeros(length, bool), np.arange(length) > length // 2])
            self.fixed["extra_mask"] = np.zeros((BATCH, num_extra), bool) if num_extra else None
        self.gradient = rng.normal(size=(BATCH, HEADS, length, VALUE_SIZE))
        self.oracle = SlidingWindow(**self.arrays, **self.fixed, **self.window)

    def attend(self, given, **options):
        from longspan.ops.keras.sliding_window import ExtraKeys, sliding_window_attention

        named = given | {name: None if array is None else keras.ops.array(array) for name, array in self.fixed.items()}
        fields = ("extra_key", "extra_value", "extra_mask", "extra_bias", "extra_position")
        extra = ExtraKeys(*(named.get(field) for field in fields)) if "extra_key" in named else None
        plain = {name: named.get(name) for name in ("query", "key", "value", "mask", "bias")}
        return sliding_window_attention(**plain, extra=extra, **self.window, **options)


def check(case, dtype="float32", implementation="auto", **graph):
    """Compare the output and every gradient with the definition; eagerly, or in a graph with these options."""
    import tensorflow as tf

    expected_name = "chunked" if implementation == "auto" else implementation

    def run(given):
        with tf.GradientTape() as tape:
            tape.watch(given)
            with recording() as ran:
                output, weights = case.attend(given, implementation=implementation)
            assert ran == [expected_name]
            assert weights is None
            loss = tf.reduce_sum(tf.cast(output, tf.float32) * case.gradient.astype(np.float32))
        return output, tape.gradient(loss, given)

    given = {name: tf.constant(array, dtype) for name, array in case.arrays.items()}
    if graph.pop("unknown", False):  # batch, length and number of extra keys are not known
        specs = {
            name: tf.TensorSpec([None, tensor.shape[1], None, tensor.shape[3]] if tensor.shape.rank == 4 else
                                [tensor.shape[0], None if name == "extra_bias" else tensor.shape[1]], dtype)
            for name, tensor in given.items()
        }  # fmt: skip
        graph["input_signature"] = [specs]
    output, gradients = (tf.function(run, autograph=False, **graph) if graph else run)(given)
    assert output.dtype == dtype
    assert_close(np.asarray(output, np.float32), case.oracle.output, dtype)
    expected = case.oracle.backward(case.gradient)
    for name, gradient in gradients.items():
        gradient = np.asarray(tf.convert_to_tensor(gradient), np.float32)
        if np.abs(expected[name]).max() == 0:
            assert not gradient.any(), name
        else:
            assert gradient_error(gradient, expected[name]) <= TOLERANCE[dtype], name


@pytest.mark.parametrize("implementation", ["auto", "blocked"])
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_gradients(shape, implementation):
    check(Case(*shape, mask=(None, "random")[shape[0] % 2]), implementation=implementation)


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[4]])
def test_outputs_and_gradients_in_graphs(shape):
    check(Case(*shape, mask="random"), unknown=True)
    check(Case(*shape, mask="random"), jit_compile=True)


def test_rows_without_any_key_give_zeros():
    case = Case(70, 4, 4, 3, 30, mask="dead", biases=False)
    check(case)
    output, _ = case.attend({name: keras.ops.cast(array, "float32") for name, array in case.arrays.items()})
    assert not np.asarray(output)[0].any()
    assert np.asarray(output)[1].any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype):
    case = Case(150, 10, 10, 5, 40, mask="random")
    rounded = {name: keras.ops.cast(array, dtype) for name, array in case.arrays.items()}
    case.arrays = {name: np.asarray(array, np.float64) for name, array in rounded.items()}
    case.oracle = SlidingWindow(**case.arrays, **case.fixed, **case.window)
    check(case, dtype)


def test_weights():
    from longspan.ops.keras.sliding_window import weights_by_offset

    case = Case(23, 4, 4, 3, 10, mask="random")
    given = {name: keras.ops.cast(array, "float32") for name, array in case.arrays.items()}
    output, weights = case.attend(given, rows=5, needs_weights=True)
    assert_close(output, case.oracle.output)
    assert tuple(weights.shape) == (BATCH, HEADS, 5, 5, 3 + 5 + 8)
    by_offset = weights_by_offset(weights, left=4, right=4, length=23)
    assert_close(by_offset[..., :3], case.oracle.weights[..., :3])
    assert_close(by_offset[..., 3:], case.oracle.window_weights(4, 4))


def test_dropout_drops_that_part_and_keeps_the_mean():
    from longspan.ops.keras.sliding_window import ExtraKeys, sliding_window_attention

    keras.utils.set_random_seed(0)
    zeros, identity = np.zeros((1, 1, 300, 300), np.float32), np.eye(300, dtype=np.float32)[None, None]
    extra = ExtraKeys(zeros[:, :, :8], zeros[:, :, :8])
    layer = keras.layers.Dropout(0.3)
    output, _ = sliding_window_attention(
        zeros, zeros, identity, left=10, right=10, scale=1.0, extra=extra, dropout=lambda x: layer(x, training=True)
    )
    weights = np.asarray(output)[0, 0]  # values are the identity
    seen = np.abs(np.subtract.outer(np.arange(300), np.arange(300))) <= 10
    assert not weights[~seen].any()
    assert abs((weights[seen] == 0).mean() - 0.3) < 0.02
    inner = weights[20:-20][seen[20:-20]]
    np.testing.assert_allclose(inner[inner > 0], 1 / 29 / 0.7, rtol=1e-5)


def test_no_tensor_of_a_traced_program_grows_faster_than_the_length():
    import tensorflow as tf

    def largest(length):
        def run(states):
            from longspan.ops.keras.sliding_window import ExtraKeys, sliding_window_attention

            with tf.GradientTape() as tape:
                tape.watch(states)
                extra = ExtraKeys(states[:, :, :2], states[:, :, :2])
                mask = tf.ones((1, length), tf.bool)
                output, _ = sliding_window_attention(
                    states, states, states, left=8, right=8, scale=1.0, extra=extra, mask=mask
                )
            return tape.gradient(output, states)

        graph = tf.function(run, autograph=False).get_concrete_function(tf.TensorSpec((1, 2, length, 4))).graph
        nodes = [node for node in graph.get_operations() if node.type != "BroadcastGradientArgs"]  # lists of axes
        # what a loop keeps of its rounds is a list of tensors, without a shape
        return max(tensor.shape.num_elements() or 0 for node in nodes for tensor in node.outputs)

    sizes = {length: largest(length) for length in (1024, 4096)}
    assert sizes[4096] <= 4 * sizes[1024]  # none is longer in two axes


class TestErrors:
    STATES = np.zeros((2, 3, 6, 4), np.float32)

    @pytest.mark.parametrize(
        ("changes", "extra", "message"),
        [
            ({"left": -1}, {}, "left and right must not be negative. Received: left=-1, right=2"),
            ({"key": STATES[:, :, :5]}, {}, r"must have the shape \(batch, heads, tokens, head size\).*\(2, 3, 5, 4\)"),
            ({"mask": np.ones((2, 5), bool)}, {}, r"mask must have the shape \(2, 6\). Received: \(2, 5\)"),
            ({"bias": np.ones((3, 4))}, {}, r"bias must have the shape \(3, 5\). Received: \(3, 4\)"),
            ({}, {"key": STATES[:1]}, r"extra.key must have the shape \(2, 3, None, 4\). Received: \(1, 3, 6, 4\)"),
            ({}, {"value": STATES[:, :, :1]}, r"extra.value must have the shape \(2, 3, 6, 4\)"),
            ({}, {"mask": np.ones((2, 1))}, r"extra.mask must have the shape \(2, 6\)"),
            ({}, {"bias": np.ones((3, 11))}, "extra.bias needs extra.position"),
            ({}, {"bias": np.ones((3, 6)), "position": np.ones((2, 6))}, r"extra.bias must have the shape \(3, 11\)"),
            ({}, {"position": np.ones((2, 5))}, r"extra.position must have the shape \(2, 6\). Received: \(2, 5\)"),
            ({"implementation": "flash"}, {}, "attn_implementation must be one of auto, chunked, blocked"),
        ],
    )
    def test_messages(self, changes, extra, message):
        from longspan.ops.keras.sliding_window import ExtraKeys, sliding_window_attention

        given = {"query": self.STATES, "key": self.STATES, "value": self.STATES, "left": 2, "right": 2, "scale": 1.0}
        keys = ExtraKeys(**{"key": self.STATES, "value": self.STATES, **extra}) if extra else None
        with pytest.raises(InputError, match=message):
            sliding_window_attention(**{**given, **changes}, extra=keys)
