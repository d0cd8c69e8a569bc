"""The attention of MEGA in PyTorch against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.oracle import gated_attention as oracle
from tests.oracle.derivatives import directional_derivative

from longspan.errors import InputError
from longspan.fast import gated_attention_tiles as tiles
from longspan.ops.dispatch import recording
from longspan.ops.torch.gated_attention import RotaryBias, ToeplitzBias, gated_attention, rotary_table, rotate

Z, V, POSITIONS = 6, 5, 40
ACTIVATIONS = ["softmax", "laplace", "relu2"]
BIASES = ["rotary", "simple"]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles along rows and queries at test size, and tiles of a single row."""
    monkeypatch.setattr(tiles, "TILE_QUERIES", 4)
    monkeypatch.setattr(tiles, "_MIN_TILE_QUERIES", 3)
    monkeypatch.setattr(tiles, "_TILE_SCORES", {"cpu": 64})


class Case:
    """Random arguments of one call, for the oracle and for the operation."""

    def __init__(self, bias: str, queries: int = 11, keys: int = 11, rows: int = 3, offset: int = 0, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.kind, self.offset = bias, offset
        self.query, self.key = rng.normal(size=(rows, queries, Z)), rng.normal(size=(rows, keys, Z))
        self.value = rng.normal(size=(rows, keys, V))
        size = (2 * POSITIONS - 1,) if bias == "simple" else (2, Z)
        self.bias = rng.normal(size=size) * 0.7
        self.mask = rng.random((rows, keys)) > 0.3
        self.mask[0] = False  # a row without any key
        self.mask[1, :2] = False  # leading padding
        self.cotangent = rng.normal(size=(rows, queries, V))

    def expected(self, query, key, value, bias, **settings):
        shape = (query.shape[1], key.shape[1], self.offset)
        if self.kind == "rotary":
            matrix = oracle.rotary_bias(bias[0], bias[1], *shape)
        else:
            matrix = oracle.simple_bias(bias, POSITIONS - 1, *shape)
        return oracle.gated_attention(query, key, value, matrix, offset=self.offset, **settings)

    def bias_of(self, tensor):
        if self.kind == "simple":
            return ToeplitzBias(tensor, POSITIONS - 1)
        table = rotary_table(POSITIONS, Z, device=torch.device("cpu"))
        table = tuple(part.double() for part in exact_table()) if tensor.dtype == torch.float64 else table
        return RotaryBias(rotate(tensor[:1], table), rotate(tensor[1:], table))

    def tensors(self, dtype=torch.float64, requires_grad=False):
        arrays = (self.query, self.key, self.value, self.bias)
        return [torch.tensor(array, dtype=dtype, requires_grad=requires_grad) for array in arrays]

    def actual(self, tensors, mask=None, **settings):
        query, key, value, bias = tensors
        mask = None if mask is None else torch.tensor(mask)
        return gated_attention(query, key, value, bias=self.bias_of(bias), mask=mask, offset=self.offset, **settings)


def exact_table():
    half = Z // 2
    angle = torch.arange(POSITIONS, dtype=torch.float64)[:, None] * 10000.0 ** (-torch.arange(half).double() / half)
    return torch.cos(angle), torch.sin(angle)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("implementation", ["eager", "tiled"])
@pytest.mark.parametrize("rows", [3, 5])  # the second adds the rotary bias rather than folding it
def test_outputs_and_weights(rows, implementation, activation, bias, masked, causal):
    case = Case(bias, rows=rows)
    mask = case.mask if masked else None
    settings = {"activation": activation, "causal": causal}
    expected, expected_weights = case.expected(case.query, case.key, case.value, case.bias, mask=mask, **settings)
    with recording() as ran:
        actual, _ = case.actual(case.tensors(), mask, implementation=implementation, **settings)
    assert ran == [implementation]
    np.testing.assert_allclose(actual, expected, atol=1e-12)
    with torch.no_grad():  # where memory is used again, and a rotary bias may be added by distance
        again, _ = case.actual(case.tensors(), mask, implementation=implementation, **settings)
    np.testing.assert_allclose(again, expected, atol=1e-12)
    _, weights = case.actual(case.tensors(), mask, return_weights=True, **settings)
    np.testing.assert_allclose(weights, expected_weights, atol=1e-12)


@pytest.mark.parametrize(("queries", "keys", "offset"), [(1, 9, 8), (1, 1, 0), (3, 9, 6), (9, 4, 0), (1, 4, 17)])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("implementation", ["eager", "tiled"])
def test_queries_that_start_later(implementation, activation, bias, queries, keys, offset):
    """Decoding steps (the last queries of a sequence) and cross-attention (positions of another sequence)."""
    case = Case(bias, queries, keys, offset=offset)
    causal = offset + queries == keys
    settings = {"activation": activation, "causal": causal, "mask": case.mask}
    expected, _ = case.expected(case.query, case.key, case.value, case.bias, **settings)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            actual, _ = case.actual(case.tensors(), implementation=implementation, **settings)
        np.testing.assert_allclose(actual, expected, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("implementation", "rows"), [("eager", 3), ("eager", 5), ("tiled", 3)])
def test_every_gradient(implementation, rows, activation, bias, causal):
    case = Case(bias, rows=rows)
    leaves = case.tensors(requires_grad=True)
    settings = {"activation": activation, "causal": causal}
    actual, _ = case.actual(leaves, case.mask, implementation=implementation, **settings)
    actual.backward(torch.tensor(case.cotangent))
    arguments = (case.query, case.key, case.value, case.bias)
    rng = np.random.default_rng(1)
    for index, leaf in enumerate(leaves):
        direction = rng.normal(size=leaf.shape)
        expected = directional_derivative(
            lambda *arrays: case.expected(*arrays, mask=case.mask, **settings)[0],
            arguments,
            index,
            direction,
            case.cotangent,
        )
        # relu² has a second derivative that jumps: central differences are good to their step there
        assert float((leaf.grad.numpy() * direction).sum()) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_tiled_gradients_with_dropout_are_those_of_its_own_forward(activation):
    """With the same seed the dropped weights are the same: then the operation is a plain function to differentiate."""
    case = Case("simple", queries=7, keys=7, rows=2)
    leaves = case.tensors(requires_grad=True)

    def function(*tensors):
        torch.manual_seed(0)
        return case.actual(tensors, activation=activation, causal=True, dropout=0.4, implementation="tiled")[0]

    assert torch.autograd.gradcheck(function, leaves, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "tiled"])
def test_dropout_drops_the_stated_share_and_keeps_the_mean(implementation):
    # one key and a value of 1: each output shows whether its only weight was dropped
    ones = torch.ones(1, 4000, 1)
    bias = ToeplitzBias(torch.zeros(7999), 3999)
    torch.manual_seed(0)
    output, _ = gated_attention(
        ones, ones[:, :1], ones[:, :1], activation="softmax", bias=bias, dropout=0.3, implementation=implementation
    )
    dropped = output == 0.0
    assert 0.27 < dropped.float().mean() < 0.33
    torch.testing.assert_close(output[~dropped], torch.full_like(output[~dropped], 1.0 / 0.7))


@pytest.mark.parametrize("implementation", ["eager", "tiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.usefixtures("half_products")
def test_dtypes(activation, dtype, implementation):
    case = Case("rotary", queries=40, keys=40)
    rounded = [tensor.double().numpy() for tensor in case.tensors(dtype)]
    expected, _ = case.expected(*rounded, activation=activation, causal=True, mask=case.mask)
    actual, _ = case.actual(
        case.tensors(dtype), case.mask, activation=activation, causal=True, implementation=implementation
    )
    assert actual.dtype == dtype
    assert bool((actual[0] == 0.0).all())  # the row without keys
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    np.testing.assert_allclose(actual.double(), expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_squared_scores_survive_half_precision(dtype):
    """Scores of 2e-4 have squares of 4e-8, which float16 rounds to 0 or twice that."""
    ones = torch.ones(1, 4096, 1, dtype=dtype)
    bias = ToeplitzBias(torch.zeros(8191, dtype=dtype), 4095)
    output, _ = gated_attention(ones, ones, ones * 4096, activation="relu2", bias=bias)
    torch.testing.assert_close(output, ones, rtol=1e-2, atol=0)


def test_autocast_chooses_the_dtype():
    case = Case("rotary")
    tensors = case.tensors(torch.float32)
    expected, _ = case.actual(tensors, activation="laplace")
    for implementation in ("eager", "tiled"):
        with torch.autocast("cpu", torch.bfloat16):
            actual, _ = case.actual(tensors, activation="laplace", implementation=implementation)
        assert actual.dtype == torch.bfloat16
        torch.testing.assert_close(actual.float(), expected, atol=5e-2, rtol=0)


def test_auto_takes_tiles_where_they_save_something():
    small, large, weights = Case("rotary", 4, 4), Case("rotary", 30, 30), Case("rotary", 30, 30)
    with recording() as ran:
        small.actual(small.tensors(), activation="softmax")
        large.actual(large.tensors(), activation="softmax")
        weights.actual(weights.tensors(), activation="softmax", return_weights=True)
    assert ran == ["eager", "tiled", "eager"]


def test_tiles_keep_no_weights_for_the_backward_pass():
    case = Case("rotary", 40, 40, rows=2)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        case.actual(case.tensors(requires_grad=True), case.mask, activation="laplace", implementation="tiled")
    assert max(sizes) == 2 * 40 * 2 * Z  # the largest is [q, rotated α]


def test_errors():
    case = Case("rotary")
    with pytest.raises(InputError, match=r"activation must be one of softmax, laplace, relu2\. Received: 'gelu'"):
        case.actual(case.tensors(), activation="gelu")
    with pytest.raises(InputError, match=r"attn_implementation='tiled' cannot serve .*: it keeps no attention weights"):
        case.actual(case.tensors(), activation="softmax", implementation="tiled", return_weights=True)
    with pytest.raises(InputError, match=r"attn_implementation must be one of auto, tiled, eager"):
        case.actual(case.tensors(), activation="softmax", implementation="flash")
