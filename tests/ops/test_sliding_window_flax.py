"""Sliding-window attention in JAX against its definition in float64 NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.grid import grid
from tests.oracle.sliding_window import SlidingWindow
from tests.tolerances import TOLERANCE, assert_close, gradient_error

from longspan.errors import InputError
from longspan.ops.dispatch import recording
from longspan.ops.flax import sliding_window_chunked
from longspan.ops.flax.sliding_window import DISPATCHER as OPERATION
from longspan.ops.flax.sliding_window import (
    ExtraKeys,
    Request,
    sliding_window_attention,
    sliding_window_attention_weights,
)

BATCH, HEADS, SIZE, VALUE_SIZE = 2, 3, 8, 5
SCALE = 0.4
IMPLEMENTATIONS = ["chunked", "blocked"]
#: length, left, right, extra keys, step: below, at and above the window and the block; odd; one-sided; very wide
SHAPES = [(1, 2, 2, 0, 1), (7, 3, 3, 5, 1), (129, 0, 9, 3, 40), (140, 300, 2, 1, 7), (267, 10, 6, 17, 16)]


@pytest.fixture(autouse=True)
def _all_heads(request, monkeypatch):
    """`chunked` takes one head at a time on a CPU; with this parameter all of them, as on accelerators."""
    if getattr(request, "param", False):
        monkeypatch.setattr(sliding_window_chunked, "_heads_at_once", lambda batch, heads: batch * heads)


class Case:
    """Random inputs in the layout of the definition, (B, H, S, D); the rows of the batch have different masks."""

    def __init__(self, length, left, right, num_extra, step, *, mask=None, biases=True):
        rng = np.random.default_rng(length)
        self.window = {"left": left, "right": right, "scale": SCALE}
        shapes = {"query": (length, SIZE), "key": (length, SIZE), "value": (length, VALUE_SIZE)}
        if num_extra:
            shapes |= {"extra_key": (num_extra, SIZE), "extra_value": (num_extra, VALUE_SIZE)}
        self.arrays = {name: rng.normal(size=(BATCH, HEADS, *shape)) for name, shape in shapes.items()}
        self.fixed, self.step = {}, step
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

    def oracle(self):
        return SlidingWindow(**self.arrays, **self.fixed, **self.window)

    def given(self, dtype="float32"):
        """The arrays that have gradients, tokens first."""
        return {name: jnp.asarray(swap(array), dtype) for name, array in self.arrays.items()}

    def arguments(self, given):
        fixed = {name: None if array is None else jnp.asarray(array) for name, array in self.fixed.items()}
        named = {**given, **fixed}
        extra = None
        if "extra_key" in named:
            fields = ("extra_key", "extra_value", "extra_mask", "extra_bias", "extra_position")
            extra = ExtraKeys(*(named.get(field) for field in fields), step=self.step)
        plain = {name: named.get(name) for name in ("query", "key", "value", "mask", "bias")}
        return {**plain, "extra": extra, **self.window}


def swap(array):
    """(B, H, S, D) <-> (B, S, H, D); biases stay."""
    return np.asarray(array).swapaxes(1, 2) if np.ndim(array) == 4 else np.asarray(array)


def check(case, implementation, dtype="float32"):
    """Compare the output and every gradient with the definition."""

    def attend(given):
        return sliding_window_attention(**case.arguments(given), implementation=implementation)

    @jax.jit
    def output_and_gradients(given, gradient):
        output, pull = jax.vjp(attend, given)
        return output, pull(gradient)[0]

    with recording() as ran:
        output, gradients = output_and_gradients(case.given(dtype), jnp.asarray(swap(case.gradient), dtype))
    assert ran == [implementation]
    oracle = case.oracle()
    assert str(output.dtype) == dtype
    assert_close(swap(output), oracle.output, dtype)
    expected = oracle.backward(case.gradient)
    for name, gradient in gradients.items():
        assert str(gradient.dtype) == dtype
        if np.abs(expected[name]).max() == 0:
            assert not gradient.any(), name
            continue
        assert gradient_error(swap(gradient), expected[name]) <= TOLERANCE[dtype], name


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_gradients(shape, implementation):
    check(Case(*shape, mask=(None, "random")[shape[0] % 2]), implementation)


@pytest.mark.parametrize("_all_heads", [True], indirect=True)
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[-1]])
def test_all_heads_at_once(shape):
    check(Case(*shape, mask="random"), "chunked")
    check(Case(*shape, biases=False), "chunked")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rows_without_any_key_give_zeros(implementation):
    case = Case(70, 4, 4, 3, 30, mask="dead", biases=False)
    check(case, implementation)
    output = jax.jit(lambda: sliding_window_attention(**case.arguments(case.given()), implementation=implementation))()
    assert not output[0].any()
    assert output[1].any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype, implementation):
    case = Case(150, 10, 10, 5, 40, mask="random")
    case.arrays = {name: swap(array).astype(np.float64) for name, array in case.given(dtype).items()}
    case.gradient = np.asarray(jnp.asarray(case.gradient, dtype), np.float64)
    check(case, implementation, dtype)


def test_weights():
    case = Case(23, 4, 4, 3, 10, mask="random")
    output, weights = jax.jit(lambda: sliding_window_attention_weights(**case.arguments(case.given()), rows=5))()
    oracle = case.oracle()
    assert_close(swap(output), oracle.output)
    assert weights.shape == (BATCH, HEADS, 5, 5, 3 + 5 + 8)
    for block in range(5):
        for row in range(min(5, 23 - 5 * block)):
            query = 5 * block + row
            assert_close(weights[:, :, block, row, :3], oracle.weights[:, :, query, :3])
            whole = np.zeros((BATCH, HEADS, 23 + 40))
            whole[:, :, 4 : 4 + 23] = oracle.weights[:, :, query, 3:]
            assert_close(weights[:, :, block, row, 3:], whole[:, :, 5 * block : 5 * block + 13])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_dropout_drops_that_part_and_keeps_the_mean(implementation):
    length, rate = 300, 0.3
    zeros, identity = jnp.zeros((1, length, 1, length)), jnp.eye(length)[None, :, None]
    extra = ExtraKeys(zeros[:, :8], jnp.zeros((1, 8, 1, length)))

    @jax.jit
    def attend(value, key):
        return sliding_window_attention(
            zeros, zeros, value, left=10, right=10, scale=1.0, extra=extra, dropout=rate, dropout_rng=key,
            implementation=implementation,
        )  # fmt: skip

    output, pull = jax.vjp(lambda value: attend(value, jax.random.key(0)), identity)
    weights = np.asarray(output[0, :, 0])  # values are the identity
    seen = np.abs(np.subtract.outer(np.arange(length), np.arange(length))) <= 10
    assert not weights[~seen].any()
    assert abs((weights[seen] == 0).mean() - rate) < 0.02
    inner = weights[20:-20][seen[20:-20]]
    np.testing.assert_allclose(inner[inner > 0], 1 / 29 / (1 - rate), rtol=1e-5)
    # the backward pass drops the same ones: the gradient of the values is the transposed weights
    (gradient,) = pull(identity)
    np.testing.assert_allclose(np.asarray(gradient[0, :, 0]), weights.T, atol=1e-7)
    assert (np.asarray(attend(identity, jax.random.key(1))[0, :, 0]) != weights).any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_vmap(implementation):
    case = Case(40, 3, 3, 4, 12, mask="random")

    def loss(query, arguments):
        output = sliding_window_attention(**{**arguments, "query": query}, **case.window, implementation=implementation)
        return jnp.square(output).sum(axis=(0, 1, 2, 3))

    arguments = case.arguments(case.given())
    arguments = {name: arguments[name] for name in ("key", "value", "mask", "bias", "extra")}
    queries = jnp.stack([case.given()["query"] * factor for factor in (1.0, 0.5)])
    together = jax.jit(jax.vmap(jax.grad(loss), in_axes=(0, None)))(queries, arguments)
    one = jax.jit(jax.grad(loss))
    for query, gradient in zip(queries, together, strict=True):
        assert_close(gradient, one(query, arguments))


def test_blocked_has_higher_derivatives():
    case = Case(9, 2, 2, 0, 1)

    def loss(scale):
        given = {**case.given(), "query": case.given()["query"] * scale}
        output = sliding_window_attention(**case.arguments(given), implementation="blocked")
        return jnp.square(output).sum()

    first, step = jax.jit(jax.grad(loss)), 1e-2
    exact = jax.jit(jax.grad(jax.grad(loss)))(1.0)
    differences = (first(1.0 + step) - first(1.0 - step)) / (2 * step)
    np.testing.assert_allclose(exact, differences, rtol=1e-2)  # the truncation error of the difference


# the backward pass holds what the forward pass does
@pytest.mark.parametrize("direction", grid(("forward", "backward"), wide=("forward",)))
def test_memory_is_linear_in_the_length(direction):
    """XLA's own count of the program's temporary memory; nothing runs."""

    def attend(states, key):
        extra = ExtraKeys(key, key, bias=jnp.zeros((2, 2 * key.shape[1] - 1)), position=_places(states), step=16)
        return sliding_window_attention(states, states, states, left=127, right=127, scale=1.0, extra=extra).sum()

    def _places(states):
        return jnp.arange(states.shape[1])[None] // 16

    def memory(length):
        shapes = [jax.ShapeDtypeStruct((1, tokens, 2, 16), jnp.float32) for tokens in (length, length // 16)]
        program = jax.jit(attend if direction == "forward" else jax.grad(attend, argnums=(0, 1)))
        return program.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    short, long = memory(4096), memory(32768)
    assert long <= 9 * short
    # a few tensors of the size of the inputs, and one block of queries against all summaries
    assert long <= 20 * (32768 * 2 * 16 * 4) + 4 * 128 * 2048 * 4


@pytest.mark.parametrize(
    ("platform", "num_scores", "needs_weights", "expected"),
    [
        ("cpu", 10, False, "chunked"),
        ("cpu", 10, True, "blocked"),
        ("gpu", 10, False, "blocked"),
        ("gpu", 1 << 30, False, "chunked"),
        ("gpu", 1 << 30, True, "blocked"),
    ],
)
def test_auto(platform, num_scores, needs_weights, expected):
    assert OPERATION.choose("auto", Request(platform, num_scores, needs_weights, asked=False)) == expected


class TestErrors:
    STATES = np.zeros((2, 6, 3, 4), np.float32)

    def attend(self, **changes):
        given = {"query": self.STATES, "key": self.STATES, "value": self.STATES, "left": 2, "right": 2, "scale": 1.0}
        return sliding_window_attention(**{**given, **changes})

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"left": -1}, "left and right must not be negative. Received: left=-1, right=2"),
            ({"key": STATES[:, :5]}, r"must have the shape \(batch, tokens, heads, head size\).*\(2, 5, 3, 4\)"),
            ({"mask": np.ones((2, 5), bool)}, r"mask must have the shape \(batch, tokens\) = \(2, 6\).*\(2, 5\)"),
            ({"bias": np.ones((3, 4))}, r"bias must have the shape .* = \(3, 5\). Received: \(3, 4\)"),
            ({"extra": ExtraKeys(STATES[:1], STATES)}, r"extra.key must have the shape .*\(2, 6, 3, 4\)"),
            ({"extra": ExtraKeys(STATES, STATES[:, :1])}, r"extra.value must have the shape .*\(2, 6, 3, 4\)"),
            ({"extra": ExtraKeys(STATES, STATES, mask=np.ones((2, 1)))}, r"extra.mask must have .* = \(2, 6\)"),
            ({"extra": ExtraKeys(STATES, STATES, bias=np.ones((3, 6)))}, r"extra.bias must have .* = \(3, 11\)"),
            ({"extra": ExtraKeys(STATES, STATES, bias=np.ones((3, 11)))}, "extra.bias needs extra.position"),
            (
                {"extra": ExtraKeys(STATES, STATES, position=np.ones((2, 5)))},
                r"extra.position must have .*\(2, 6\). Received: \(2, 5\)",
            ),
            ({"extra": ExtraKeys(STATES, STATES, step=0)}, "extra.step must be positive. Received: extra.step=0"),
            ({"implementation": "flash"}, "attn_implementation must be one of auto, blocked, chunked"),
        ],
    )
    def test_messages(self, changes, message):
        with pytest.raises(InputError, match=message):
            self.attend(**changes)

    def test_chunked_returns_no_weights(self):
        with pytest.raises(InputError, match="'chunked' cannot serve .* weights are returned by 'blocked' only"):
            sliding_window_attention_weights(
                self.STATES, self.STATES, self.STATES, left=1, right=1, scale=1.0, implementation="chunked"
            )

    def test_no_extra_keys_at_all(self):
        none = ExtraKeys(self.STATES[:, :0], self.STATES[:, :0])
        np.testing.assert_array_equal(self.attend(extra=none), self.attend())
