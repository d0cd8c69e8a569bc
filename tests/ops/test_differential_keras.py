"""Differential attention in `keras.ops` against its definition in float64 NumPy, with TensorFlow behind Keras."""

from __future__ import annotations

import numpy as np
import pytest
from tests.keras.setting import import_keras
from tests.ops.test_differential import KINDS, Case
from tests.tolerances import TOLERANCE, assert_close, gradient_error

from longspan.errors import InputError
from longspan.ops.dispatch import recording

keras = import_keras()
HOWS = {"fixed": {}, "dynamic": {"dynamic_shapes": True}, "graph": {"dynamic_shapes": True}, "xla": {}}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Blocks of three queries, and two parts, so that short inputs take several."""
    from longspan.ops.keras import differential

    monkeypatch.setattr(differential, "BLOCK_ROWS", 3)
    monkeypatch.setattr(differential, "_MANY_BLOCKS", 2)


def tensors_of(case, dtype="float32"):
    arrays = (case.query, case.key, case.value)
    return [keras.ops.cast(array, dtype) for array in arrays] + [keras.ops.convert_to_tensor(np.float32(case.lam))]


def attend(case, *tensors, **options):
    from longspan.ops.keras.differential import differential_attention

    given = {"key_mask": case.key_mask, "segment_ids": case.segment_ids}
    given["position"] = case.position if case.given else None
    arrays = {name: None if array is None else keras.ops.array(array) for name, array in given.items()}
    return differential_attention(*tensors, scale=case.scale, **arrays, **options)


def value_and_gradients(case, how="fixed", dtype="float32", **options):
    """The output, and the gradients of its product with `case.grad`: in eager mode, a graph of unknown shapes, XLA."""
    import tensorflow as tf

    def run(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            output = attend(case, *tensors, **options, **HOWS[how]).output
            product = tf.reduce_sum(tf.cast(output, tf.float32) * case.grad.astype("f"))
        return output, tape.gradient(product, tensors)

    tensors = tensors_of(case, dtype)
    if how == "graph":
        known = (None, case.query.shape[1], None, 4), *((None, case.key.shape[1], None, 4),) * 2, ()
        specs = [tf.TensorSpec(shape, tensor.dtype) for shape, tensor in zip(known, tensors, strict=True)]
        run = tf.function(run, input_signature=specs, autograph=False)
    return (tf.function(run, jit_compile=True, autograph=False) if how == "xla" else run)(*tensors)


def check(case, output, gradients, dtype="float32", tolerance=TOLERANCE["float32"]):
    assert_close(np.asarray(output, "f"), case.expected()[0], dtype)
    for name, mine, theirs in zip(("query", "key", "value", "λ"), gradients, case.expected_gradients(), strict=True):
        assert gradient_error(np.asarray(mine, "f"), theirs) <= tolerance, name


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        *(("fixed", kind) for kind in KINDS),
        *(("dynamic", kind) for kind in ("scattered", "padded", "packed")),
        *(("graph", kind) for kind in ("static", "dead")),
        ("xla", "packed"),
    ],
)
def test_output_and_gradients_equal_the_definition(how, kind):
    case = Case(kind)
    with recording() as ran:
        output, gradients = value_and_gradients(case, how)
    assert set(ran) == {"chunked"}
    check(case, output, gradients)


def test_the_definition_itself():
    case = Case("padded")
    check(case, *value_and_gradients(case, implementation="eager"))


@pytest.mark.parametrize(("num_maps", "num_kv"), [(4, 4), (2, 1), (12, 3)])
def test_any_number_of_key_value_heads(num_maps, num_kv):
    case = Case("padded", num_maps=num_maps, num_kv=num_kv)
    check(case, *value_and_gradients(case))


@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 9), (5, 5), (13, 14)])
def test_lengths(num_queries, num_keys):
    case = Case("causal", num_queries=num_queries, num_keys=num_keys)
    check(case, *value_and_gradients(case, "dynamic"))


def test_maps_are_those_before_the_subtraction():
    case = Case("padded")
    with recording() as ran:
        result = attend(case, *tensors_of(case), output_weights=True)
    assert ran == ["eager"]
    _, maps, difference = case.expected()
    assert_close(result.weights, maps)
    assert_close(result.differential_weights, difference)


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", "dead"), ("float16", "padded")])
def test_half_precision(dtype, kind):
    case = Case(kind)
    output, gradients = value_and_gradients(case, "dynamic", dtype)
    assert keras.backend.standardize_dtype(output.dtype) == dtype
    # a gradient passes twice as many rounded products as the output
    check(case, keras.ops.cast(output, "float32"), [keras.ops.cast(g, "float32") for g in gradients], dtype,
          2 * TOLERANCE[dtype])  # fmt: skip


def test_the_backward_pass_drops_what_the_forward_pass_dropped():
    from longspan.ops.keras.differential import Dropout

    case = Case("causal")
    query, key, value, lam = tensors_of(case)
    outputs = []
    for shift in (-0.5, 0.5):  # the maps are those of one seed
        dropout = Dropout(0.3, keras.random.SeedGenerator(1))
        outputs.append(attend(case, query, key, value, lam + shift, dropout=dropout, dynamic_shapes=True).output)
    difference = float(np.sum((np.asarray(outputs[1]) - np.asarray(outputs[0])) * case.grad))  # linear in λ
    _, (*_, slope) = value_and_gradients(case, "dynamic", dropout=Dropout(0.3, keras.random.SeedGenerator(1)))
    assert abs(difference - float(slope)) <= 1e-4 * abs(difference)
    plain = attend(case, query, key, value, lam).output
    draws = keras.random.SeedGenerator(2)
    mean = np.mean([np.asarray(attend(case, query, key, value, lam, dropout=Dropout(0.3, draws)).output)
                    for _ in range(30)], axis=0)  # fmt: skip
    # standard error of a mean of 30 draws: √(0.3/0.7/30) = 0.12 of an entry of a map
    assert np.abs(mean - np.asarray(plain)).max() < 0.5


def test_both_passes_hold_one_block_of_maps_at_most(monkeypatch):
    import tensorflow as tf
    from tests.keras.graphs import largest_tensor

    from longspan.ops.keras import differential

    monkeypatch.setattr(differential, "BLOCK_ROWS", 16)
    length, num_maps = 512, 4

    def loss(query, key, value, lam):
        with tf.GradientTape() as tape:
            tape.watch([query, key, value, lam])
            output = differential.differential_attention(query, key, value, lam).output
            total = tf.reduce_sum(tf.square(output))
        return tape.gradient(total, [query, key, value, lam])

    shapes = [(1, num_maps, length, 4), (1, 1, length, 4), (1, 1, length, 4), ()]
    graph = tf.function(loss, autograph=False, jit_compile=True)
    block = num_maps * 16 * length
    assert block // 2 <= largest_tensor(graph, *(tf.TensorSpec(shape) for shape in shapes)) <= block < length * length


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": (2, 5, 8, 4)}, "an even number of maps that the key/value heads divide. Received: 5 maps, 3 key"),
        ({"value": (2, 3, 10, 4)}, r"must agree in B, K, T and D. Received: \(2, 6, 8, 4\), \(2, 3, 11, 4\)"),
        ({"position": (7,)}, r"position must have the shape \(S,\) = \(8,\). Received: \(7,\)"),
        ({"key_mask": (2, 8)}, r"key_mask must have the shape \(B, T\) = \(2, 11\). Received: \(2, 8\)"),
    ],
)
def test_wrong_shapes(changes, message):
    from longspan.ops.keras.differential import differential_attention

    shapes = {"query": (2, 6, 8, 4), "key": (2, 3, 11, 4), "value": (2, 3, 11, 4), **changes}
    with pytest.raises(InputError, match=message):
        differential_attention(lam=0.4, **{name: np.ones(shape, "f") for name, shape in shapes.items()})


def test_an_implementation_without_maps_says_so():
    case = Case("causal")
    with pytest.raises(InputError, match="'chunked' cannot serve .*attention weights that were asked for"):
        attend(case, *tensors_of(case), implementation="chunked", output_weights=True)
