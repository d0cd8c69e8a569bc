"""Every implementation of sliding-window attention against its definition in float64 NumPy."""

import sys

import numpy as np
import pytest
import torch
from tests.oracle.sliding_window import SlidingWindow
from torch._dynamo.testing import CompileCounter

from longspan.errors import InputError
from longspan.fast import sliding_window_chunked
from longspan.ops import dispatch
from longspan.ops.torch.sliding_window import (
    ExtraKeys,
    sliding_window_attention,
    sliding_window_attention_weights,
    weights_by_offset,
)
from longspan.ops.torch.sliding_window_flex import flex_attention

BATCH, HEADS, HEAD_DIM = 2, 3, 8
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
#: one bfloat16 / float16 rounding is 2^-9 / 2^-12 relative; scores, weights and products are rounded once each
HALF_TOLERANCE = {torch.bfloat16: 3e-2, torch.float16: 4e-3}

# length, left, right, extra keys: below, at and above the window; odd; no window at all on one side; many extras
SHAPES = [(1, 2, 2, 0), (5, 3, 3, 1), (7, 3, 3, 0), (67, 4, 4, 3), (130, 32, 32, 2), (129, 0, 9, 1), (140, 300, 2, 0)]


class Case:
    """Random inputs of one shape; the two rows of the batch have different masks."""

    def __init__(self, length, left, right, num_extra, *, bias=False, extra_bias=False, mask=None, seed=0):
        rng = np.random.default_rng(seed)
        self.window = {"left": left, "right": right, "scale": 0.4}
        self.arrays = {name: rng.normal(size=(BATCH, HEADS, length, HEAD_DIM)) for name in ("query", "key", "value")}
        if num_extra:
            for name in ("extra_key", "extra_value"):
                self.arrays[name] = rng.normal(size=(BATCH, HEADS, num_extra, HEAD_DIM))
        if bias:
            self.arrays["bias"] = rng.normal(size=(HEADS, left + right + 1))
        if extra_bias:
            self.arrays["extra_bias"] = rng.normal(size=(HEADS, 2 * num_extra - 1))
        self.fixed = {}
        if extra_bias:
            start = np.array([[-2], [0]])  # one row begins before the axis of the extra keys
            self.fixed["extra_position"] = np.minimum(start + np.arange(length) * num_extra // length, num_extra - 1)
        if mask == "random":
            self.fixed["mask"] = rng.random((BATCH, length)) > 0.4
            self.fixed["extra_mask"] = rng.random((BATCH, num_extra)) > 0.4 if num_extra else None
        elif mask == "dead":  # the first row sees nothing at all, the second only its tail
            self.fixed["mask"] = np.stack([np.zeros(length, bool), np.arange(length) > length // 2])
            self.fixed["extra_mask"] = np.zeros((BATCH, num_extra), bool) if num_extra else None
        self.grad = rng.normal(size=(BATCH, HEADS, length, HEAD_DIM))

    def oracle(self):
        return SlidingWindow(**self.arrays, **self.fixed, **self.window)

    def tensors(self, dtype):
        return {name: torch.tensor(array, dtype=dtype, requires_grad=True) for name, array in self.arrays.items()}

    def arguments(self, tensors):
        """Keyword arguments of the operation."""
        fixed = {name: None if array is None else torch.from_numpy(array) for name, array in self.fixed.items()}
        named = tensors | fixed
        extra = None
        if "extra_key" in named:
            fields = ("extra_key", "extra_value", "extra_mask", "extra_bias", "extra_position")
            extra = ExtraKeys(*(named.get(field) for field in fields))
        plain = {name: named.get(name) for name in ("query", "key", "value", "mask", "bias")}
        return {**plain, "extra": extra, **self.window}


def assert_close(actual, expected, tolerance, what):
    scale = max(np.abs(expected).max(initial=0.0), 1e-3)
    actual = actual.detach().double().numpy()
    assert np.isfinite(actual).all(), what
    assert np.abs(actual - expected).max(initial=0.0) <= tolerance * scale, what


def check_against_oracle(case, implementation, dtype, tolerance):
    oracle, tensors = case.oracle(), case.tensors(dtype)
    with dispatch.recording() as ran:
        output = sliding_window_attention(**case.arguments(tensors), implementation=implementation)
    assert ran == [implementation]
    assert output.dtype == dtype
    assert_close(output, oracle.output, tolerance, "output")
    output.backward(torch.tensor(case.grad, dtype=dtype))
    expected = oracle.backward(case.grad)
    for name, tensor in tensors.items():
        assert tensor.grad.dtype == dtype
        assert_close(tensor.grad, expected[name], tolerance, f"gradient of {name}")


@pytest.mark.parametrize("implementation", ["chunked", "blocked"])
class TestAgainstOracle:
    @pytest.mark.parametrize("mask", [None, "random", "dead"])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_outputs_and_gradients(self, implementation, shape, mask):
        case = Case(*shape, mask=mask, bias=shape[0] % 2 == 1)
        check_against_oracle(case, implementation, torch.float32, TOLERANCE[torch.float32])

    @pytest.mark.parametrize("shape", [(9, 3, 3, 2), (70, 5, 7, 17), (200, 20, 20, 5)])
    def test_both_biases_in_float64(self, implementation, shape):
        case = Case(*shape, bias=True, extra_bias=True, mask="random")
        check_against_oracle(case, implementation, torch.float64, TOLERANCE[torch.float64])

    @pytest.mark.parametrize("mask", [None, "dead"])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.usefixtures("half_products")
    def test_half_precision(self, implementation, dtype, mask):
        case = Case(150, 10, 10, 3, bias=True, extra_bias=True, mask=mask)
        check_against_oracle(case, implementation, dtype, HALF_TOLERANCE[dtype])

    def test_three_sequences_in_groups_of_two(self, implementation, monkeypatch):
        monkeypatch.setattr(sliding_window_chunked, "CHUNK_SCORES", HEADS * 20 * 22 * 2)  # two of 20 tokens
        monkeypatch.setattr(sliding_window_chunked, "MIN_ROWS", 20)
        monkeypatch.setattr(sys.modules[__name__], "BATCH", 3)
        case = Case(20, 4, 4, 2, bias=True, mask="random")
        check_against_oracle(case, implementation, torch.float32, TOLERANCE[torch.float32])

    def test_queries_without_keys_give_zero(self, implementation):
        case = Case(70, 5, 5, 2, mask="dead")
        output = sliding_window_attention(**case.arguments(case.tensors(torch.float32)), implementation=implementation)
        assert torch.count_nonzero(output[0]) == 0
        assert torch.count_nonzero(output[1, :, 50]) == HEADS * HEAD_DIM

    def test_large_scores_do_not_overflow(self, implementation):
        case = Case(40, 4, 4, 2, mask="random")
        case.window["scale"] = 1e3
        check_against_oracle(case, implementation, torch.float64, 1e-9)  # scores of 1e4 lose 4 digits in exp()

    def test_inputs_that_are_views(self, implementation):
        case = Case(90, 8, 8, 0, mask="random")
        oracle = case.oracle()
        packed = torch.tensor(np.stack([case.arrays[name] for name in ("query", "key", "value")]), dtype=torch.float32)
        packed = packed.permute(1, 3, 0, 2, 4).contiguous().requires_grad_()  # (B, S, 3, H, D), as a projection gives
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        arguments = case.arguments({"query": query, "key": key, "value": value})
        output = sliding_window_attention(**arguments, implementation=implementation)
        assert_close(output, oracle.output, 1e-5, "output")
        output.backward(torch.tensor(case.grad, dtype=torch.float32))
        expected = oracle.backward(case.grad)
        for index, name in enumerate(("query", "key", "value")):
            assert_close(packed.grad[:, :, index].transpose(1, 2), expected[name], 1e-5, name)


class TestDropout:
    @pytest.mark.parametrize("implementation", ["chunked", "blocked"])
    def test_backward_uses_the_mask_of_the_forward(self, implementation):
        case = Case(150, 10, 10, 3, bias=True, extra_bias=True, mask="random")
        tensors = case.tensors(torch.float64)
        names = list(tensors)

        def run(*values):
            torch.manual_seed(3)
            arguments = case.arguments(dict(zip(names, values, strict=True)))
            return sliding_window_attention(**arguments, dropout=0.3, implementation=implementation)

        torch.autograd.gradcheck(run, tuple(tensors.values()), fast_mode=True)

    @pytest.mark.parametrize("implementation", ["chunked", "blocked"])
    def test_rate_scaling_and_seed(self, implementation):
        length, ones = 400, torch.ones(1, 2, 400, 4)

        def run():  # equal scores and values of one: the output is the sum of the kept weights
            return sliding_window_attention(
                torch.zeros(1, 2, length, 4), ones, ones, left=50, right=50, scale=1.0, dropout=0.25,
                implementation=implementation,
            )  # fmt: skip

        torch.manual_seed(0)
        first, second = run(), run()
        torch.manual_seed(0)
        assert torch.equal(run(), first)
        assert not torch.equal(first, second)
        middle = first[:, :, 50:-50, 0] * 101 * 0.75  # number of kept keys
        assert torch.allclose(middle, middle.round(), atol=1e-3)
        assert abs(middle.mean().item() / 101 - 0.75) < 0.01
        assert torch.equal(first[..., 0], first[..., 3])


class TestWeights:
    @pytest.mark.parametrize("shape", [(5, 3, 3, 1), (67, 4, 6, 3), (64, 2, 2, 0)])
    def test_weights_are_those_of_the_oracle(self, shape):
        case = Case(*shape, bias=True, mask="random")
        length, left, right, num_extra = shape
        oracle = case.oracle()
        output, weights = sliding_window_attention_weights(**case.arguments(case.tensors(torch.float32)), rows=16)
        assert weights.shape == (BATCH, HEADS, -(-length // 16), 16, num_extra + 16 + left + right)
        assert_close(output, oracle.output, 1e-5, "output")
        rows = weights_by_offset(weights, left=left, right=right, length=length)
        assert_close(rows[..., :num_extra], oracle.weights[..., :num_extra], 1e-5, "extra keys")
        assert_close(rows[..., num_extra:], oracle.window_weights(left, right), 1e-5, "window")


class TestFlex:
    """Its uncompiled definition, which runs without CUDA."""

    @pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # that is what is tested
    @pytest.mark.parametrize("mask", [None, "random", "dead"])
    @pytest.mark.parametrize("shape", [(7, 3, 3, 0), (67, 4, 4, 3), (300, 32, 16, 2), (128, 9, 9, 128)])
    def test_outputs(self, shape, mask):
        case = Case(*shape, bias=True, extra_bias=shape[3] > 0, mask=mask)
        tensors = {name: tensor.detach() for name, tensor in case.tensors(torch.float32).items()}
        output = flex_attention(**case.arguments(tensors))
        assert_close(output, case.oracle().output, 1e-5, "output")

    def test_skips_blocks_outside_the_band(self, monkeypatch):
        from longspan.ops.torch import sliding_window_flex

        seen = {}
        monkeypatch.setattr(sliding_window_flex, "_flex_attention", lambda q, *args, **kwargs: seen.update(kwargs) or q)
        case = Case(1000, 100, 0, 1)
        flex_attention(**case.arguments(case.tensors(torch.float32)))
        # 8 blocks of queries; each sees its own block and the one before, and the block of the extra key
        assert seen["block_mask"].kv_num_blocks.flatten().tolist() == [2, 3, 3, 3, 3, 3, 3, 2]

    def test_cannot_serve_on_a_cpu(self):
        case = Case(7, 3, 3, 0)
        with pytest.raises(InputError, match=r"flex.*cannot serve.*needs a CUDA device, and the tensors are on cpu"):
            sliding_window_attention(**case.arguments(case.tensors(torch.float32)), implementation="flex")


class TestMemory:
    """Neither pass keeps or makes anything of the size of the weights."""

    def test_saves_no_weights(self):
        case = Case(1000, 100, 100, 2, mask="random")
        saved = []

        def pack(tensor):
            saved.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            sliding_window_attention(**case.arguments(case.tensors(torch.float32)), implementation="chunked")
        assert saved
        assert sum(tensor.numel() for tensor in saved) < 3.1 * BATCH * HEADS * 1000 * HEAD_DIM

    @pytest.mark.parametrize("num_extra", [1, 64])
    def test_largest_tensor_does_not_grow_with_the_length(self, num_extra):
        def largest(length):
            with LargestTensor() as watch:
                case = Case(length, 16, 16, num_extra, extra_bias=True, mask="random")
                tensors = case.tensors(torch.float32)
                output = sliding_window_attention(**case.arguments(tensors), implementation="chunked")
                output.sum().backward()
            return watch.numel / (BATCH * HEADS * length * HEAD_DIM)

        assert largest(4000) <= largest(1000)  # relative to an input
        assert largest(4000) <= 1.0


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Remembers the largest new storage that an operation made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


class TestTracing:
    def run(self, query, key, value, mask, extra_key, extra_value, extra_mask):
        return sliding_window_attention(
            query,
            key,
            value,
            left=5,
            right=5,
            scale=0.3,
            mask=mask,
            extra=ExtraKeys(extra_key, extra_value, extra_mask),
        )

    def inputs(self, length):
        case = Case(length, 5, 5, 3, mask="random", seed=length)
        arguments = case.arguments({name: tensor.detach() for name, tensor in case.tensors(torch.float32).items()})
        return (*(arguments[name] for name in ("query", "key", "value", "mask")), *arguments["extra"][:3])

    def test_compiles_to_one_graph_for_all_lengths(self):
        torch._dynamo.reset()
        counter = CompileCounter()
        compiled = torch.compile(self.run, fullgraph=True, dynamic=True, backend=counter)
        for length in (40, 64, 65, 130, 257):
            inputs = self.inputs(length)
            assert torch.allclose(compiled(*inputs), self.run(*inputs), atol=1e-6)
        assert counter.frame_count == 1

    def test_exports_with_a_dynamic_length(self):
        class Module(torch.nn.Module):
            forward = staticmethod(self.run)

        tokens = torch.export.Dim("tokens", min=2, max=4096)
        shapes = ({2: tokens}, {2: tokens}, {2: tokens}, {1: tokens}, None, None, None)
        program = torch.export.export(Module(), self.inputs(40), dynamic_shapes=shapes).module()
        for length in (3, 64, 65, 131):
            inputs = self.inputs(length)
            assert torch.allclose(program(*inputs), self.run(*inputs), atol=1e-6)

    def test_torch_func(self):
        case = Case(30, 3, 3, 0)
        query, key, value = (tensor.detach() for tensor in case.tensors(torch.float64).values())

        def loss(query):
            return sliding_window_attention(query, key, value, **case.window).square().sum()

        gradient = torch.func.grad(loss)(query)
        expected = query.clone().requires_grad_()
        loss(expected).backward()
        assert torch.allclose(gradient, expected.grad)

    def test_chunks_cannot_be_traced(self):
        case = Case(7, 3, 3, 0)
        arguments = case.arguments(case.tensors(torch.float32))
        with pytest.raises(InputError, match=r"chunked.*cannot serve.*loop over the length"):
            torch.func.vmap(
                lambda scale: sliding_window_attention(**arguments | {"scale": scale}, implementation="chunked")
            )(torch.ones(2))


def test_auto_takes_chunks_on_a_cpu():
    case = Case(7, 3, 3, 1)
    with dispatch.recording() as ran:
        sliding_window_attention(**case.arguments(case.tensors(torch.float32)))
    assert ran == ["chunked"]


@pytest.mark.parametrize("mask", [None, "random", "dead"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_memory_of_the_queries_may_take_the_result(shape, mask):
    case = Case(*shape, bias=True, mask=mask)
    arguments = case.arguments(case.tensors(torch.float32))
    with torch.no_grad():
        expected = sliding_window_attention(**arguments)
        # as a model makes them: heads of one token lie side by side
        query = arguments["query"].transpose(1, 2).clone().transpose(1, 2)
        output = sliding_window_attention(**arguments | {"query": query}, overwrite_query=True)
    assert (output.data_ptr(), output.stride()) == (query.data_ptr(), query.stride())
    assert torch.equal(output, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_queries_stay_where_they_are_needed(dtype):
    """With gradients, as long as nothing is said, and where the products run in another dtype."""
    case = Case(50, 3, 3, 2)
    arguments = {name: value.detach() if isinstance(value, torch.Tensor) else value
                 for name, value in case.arguments(case.tensors(dtype)).items()}  # fmt: skip
    before = arguments["query"].clone()
    with torch.no_grad():
        expected = sliding_window_attention(**arguments)
        assert torch.equal(arguments["query"], before)
    query = before.clone().requires_grad_()
    output = sliding_window_attention(**arguments | {"query": query}, overwrite_query=True)
    assert torch.equal(output, expected)
    assert torch.equal(query, before)
    with torch.no_grad():
        query, wide = before.clone(), torch.cat((arguments["value"], arguments["value"]), dim=-1)
        extra = arguments["extra"]._replace(value=torch.cat((arguments["extra"].value,) * 2, dim=-1))
        sliding_window_attention(**arguments | {"query": query, "value": wide, "extra": extra}, overwrite_query=True)
    assert torch.equal(query, before), "values of another size do not fit"


def test_no_extra_keys_is_the_same_as_an_empty_set():
    case = Case(50, 3, 3, 0, mask="random")
    arguments = case.arguments(case.tensors(torch.float32))
    empty = torch.zeros(BATCH, HEADS, 0, HEAD_DIM)
    expected = sliding_window_attention(**arguments)
    extra = ExtraKeys(empty, empty, torch.zeros(BATCH, 0, dtype=torch.bool), torch.zeros(HEADS, 0))
    assert torch.equal(sliding_window_attention(**arguments | {"extra": extra}), expected)


def test_autocast_leaves_the_dtype_of_the_inputs():
    case = Case(50, 3, 3, 2, mask="random")
    tensors = case.tensors(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = sliding_window_attention(**case.arguments(tensors), implementation="chunked")
        output.sum().backward()
    assert output.dtype == torch.float32
    assert_close(output, case.oracle().output, 1e-5, "output")
    assert_close(tensors["query"].grad, case.oracle().backward(np.ones_like(case.grad))["query"], 1e-5, "gradient")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"left": -1}, "left and right must not be negative. Received: left=-1, right=3"),
        ({"query": torch.zeros(2, 3, 7)}, r"must have the shape \(batch, heads, tokens, head size\)"),
        ({"key": torch.zeros(2, 3, 8, 8)}, r"agree in all but the value's head size. Received: \(2, 3, 7, 8\), "),
        ({"mask": torch.ones(2, 8, dtype=torch.bool)}, r"mask must have the shape \(batch, tokens\) = \(2, 7\)"),
        ({"bias": torch.zeros(3, 6)}, r"bias must have the shape \(heads, left \+ right \+ 1\) = \(3, 7\)"),
        ({"extra": ExtraKeys(torch.zeros(2, 2, 1, 8), torch.zeros(2, 3, 1, 8))}, r"extra.key must .* = \(2, 3, 1, 8\)"),
        ({"extra": ExtraKeys(torch.zeros(2, 3, 2, 8), torch.zeros(2, 3, 1, 8))}, r"extra.value must .* \(2, 3, 2, 8\)"),
        (
            {"extra": ExtraKeys(torch.zeros(2, 3, 2, 8), torch.zeros(2, 3, 2, 8), bias=torch.zeros(3, 3))},
            "extra.bias needs extra.position",
        ),
        ({"implementation": "fast"}, "attn_implementation must be one of auto, flex, chunked, blocked"),
    ],
)
def test_clear_errors(change, message):
    case = Case(7, 3, 3, 0)
    with pytest.raises(InputError, match=message):
        sliding_window_attention(**case.arguments(case.tensors(torch.float32)) | change)
