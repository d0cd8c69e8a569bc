"""Attention against its definition in float64 NumPy: values, gradients, odd lengths, masked rows, packing, dropout."""

from __future__ import annotations

import numpy as np
import pytest
from tests.oracle.softmax_attention import softmax_attention
from tests.tolerances import assert_close

from longspan.ops.keras.attention import eager_attention, mask_to_bias, packed_attention, rows_that_attend

LENGTHS = {
    "odd": [7, 1, 5],
    "one row": [9],
    "empty rows": [4, 0, 6, 0, 0],
    "more rows than groups": [3, 11, 2, 7, 5, 1],
    "all empty": [0, 0],
}


def tensors(batch, length, heads=2, size=3, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.standard_normal((batch, heads, length, size)).astype(np.float32) for _ in range(3)]


@pytest.mark.parametrize("masked", [False, True])
def test_eager_attention_is_its_definition(masked):
    import tensorflow as tf

    query, key, value = tensors(3, 7)
    mask = np.random.default_rng(1).random((3, 1, 7, 7)) > 0.4 if masked else np.ones((3, 1, 7, 7), bool)
    mask[0, 0, 2] = False  # a query without keys
    bias = np.random.default_rng(2).standard_normal((1, 2, 7, 7)).astype(np.float32)
    head_mask = np.array([1.0, 0.5], np.float32)[None, :, None, None]
    upstream = np.random.default_rng(3).standard_normal(query.shape)
    with tf.GradientTape() as tape:
        watched = [tf.constant(tensor) for tensor in (query, key, value)]
        tape.watch(watched)
        context, weights = eager_attention(
            *watched,
            bias=mask_to_bias(mask) + bias,
            attends=rows_that_attend(mask),
            head_mask=head_mask,
            needs_weights=True,
        )
        loss = tf.reduce_sum(context * upstream.astype(np.float32))
    expected, expected_weights, gradients = softmax_attention(
        query, key, value, mask=mask, bias=bias, head_mask=head_mask, upstream=upstream
    )
    assert_close(context, expected)
    assert_close(weights, expected_weights)
    assert np.abs(np.asarray(context)[0, :, 2]).max() == 0
    for mine, theirs in zip(tape.gradient(loss, watched), gradients, strict=True):
        assert_close(mine, theirs)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("case", LENGTHS)
def test_packed_attention_equals_attention_in_each_row(case, traced):
    import tensorflow as tf

    from longspan.nn.keras.packing import Packing

    lengths = np.array(LENGTHS[case])
    width = max(int(lengths.max()), 2)
    mask = np.arange(width) < lengths[:, None]
    query, key, value = (tensor.transpose(0, 2, 1, 3) for tensor in tensors(len(lengths), width))
    upstream = np.random.default_rng(3).standard_normal(query.shape) * mask[..., None, None]

    def run(mask, *states):
        shape = tuple(mask.shape) if not traced else (tf.shape(mask)[0], tf.shape(mask)[1])
        packing = Packing.from_mask(mask, shape)
        with tf.GradientTape() as tape:
            tape.watch(states)
            packed = (packing.take(tf.reshape(state, [-1, width, 6])) for state in states)
            heads = (tf.reshape(state, [-1, 2, 3]) for state in packed)
            context = packed_attention(*heads, groups=packing.groups)
            context = packing.unpack(tf.reshape(context, [-1, 6]))
            loss = tf.reduce_sum(tf.reshape(context, [-1, width, 2, 3]) * upstream.astype(np.float32))
        return context, tape.gradient(loss, states)

    unknown = [tf.TensorSpec([None, None], tf.bool)] + [tf.TensorSpec([None, None, 2, 3])] * 3
    function = tf.function(run, input_signature=unknown, autograph=False) if traced else run
    context, gradients = function(tf.constant(mask), *map(tf.constant, (query, key, value)))
    expected, _, expected_gradients = softmax_attention(
        *(state.transpose(0, 2, 1, 3) for state in (query, key, value)),
        mask=(mask[:, None, :, None] & mask[:, None, None, :]),
        upstream=upstream.transpose(0, 2, 1, 3),
    )
    assert_close(np.asarray(context).reshape(query.shape), expected.transpose(0, 2, 1, 3))
    for mine, theirs in zip(gradients, expected_gradients, strict=True):
        assert_close(tf.convert_to_tensor(mine), theirs.transpose(0, 2, 1, 3))


def test_dropout_acts_on_the_weights_and_keeps_their_mean(keras):
    query, key, value = tensors(4, 16)
    dropout = keras.layers.Dropout(0.25)
    kept, full = [], eager_attention(query, key, value, needs_weights=True)[1]
    for _ in range(20):
        weights = eager_attention(query, key, value, dropout=lambda w: dropout(w, training=True), needs_weights=True)[1]
        kept.append(np.asarray(weights))
    assert abs(np.mean(np.stack(kept) == 0) - 0.25) < 0.02
    assert np.abs(np.mean(kept, axis=0) - np.asarray(full)).mean() < 0.03


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_stays_finite_with_large_scores_and_masked_rows(keras, dtype):
    from keras import ops

    query, key, value = (ops.cast(tensor * 30, dtype) for tensor in tensors(2, 5, size=64))
    mask = np.ones((2, 1, 1, 5), bool)
    mask[1] = False
    context, _ = eager_attention(query, key, value, bias=mask_to_bias(mask), attends=rows_that_attend(mask))
    assert keras.backend.standardize_dtype(context.dtype) == dtype
    context = np.asarray(ops.cast(context, "float32"))
    assert np.isfinite(context).all()
    assert np.abs(context[1]).max() == 0
