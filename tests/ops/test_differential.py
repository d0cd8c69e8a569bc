"""Every implementation of differential attention against its definition in float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracle import differential as oracle
from tests.tolerances import TOLERANCE, as_numpy, assert_close, gradient_error
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from longspan.errors import InputError
from longspan.fast import differential_chunked
from longspan.ops.dispatch import recording
from longspan.ops.torch.differential import differential_attention

IMPLEMENTATIONS = ("chunked", "sdpa", "eager")
HEAD_DIM = 4
#: maps and key/value heads: as many, grouped, one, odd numbers
HEADS = [(4, 4), (4, 2), (4, 1), (6, 3), (2, 1), (12, 3)]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of three rows, so that short inputs take several."""
    monkeypatch.setattr(differential_chunked, "BLOCK_BYTES", 1)
    monkeypatch.setattr(differential_chunked, "MIN_ROWS", 3)


class Case:
    """Random inputs: 8 queries of 11 keys in two rows, and what the queries see."""

    def __init__(self, kind, *, num_maps=6, num_kv=3, num_queries=8, num_keys=11, seed=0):
        rng = np.random.default_rng(seed)
        self.query = rng.normal(size=(2, num_maps, num_queries, HEAD_DIM)) * 1.5
        self.key, self.value = rng.normal(size=(2, 2, num_kv, num_keys, HEAD_DIM))
        self.grad = rng.normal(size=(2, num_queries, num_maps // 2, 2 * HEAD_DIM))
        self.lam = 0.37
        self.scale = 0.6
        self.position = np.arange(num_keys - num_queries, num_keys)
        self.key_mask = self.segment_ids = None
        if kind == "static":  # a buffer with an unused end
            self.position = np.arange(2, 2 + num_queries)
        if kind == "scattered":
            self.position = rng.permutation(num_keys)[:num_queries]
        if kind == "padded":  # one row on the left, so that its first queries see nothing; holes in the other
            self.key_mask = np.ones((2, num_keys), bool)
            self.key_mask[0, : num_keys - num_queries + 3] = False
            self.key_mask[1, [1, 4, num_keys - 1]] = False
        if kind == "dead":  # the second row sees nothing at all
            self.key_mask = np.array([[True], [False]]).repeat(num_keys, axis=1)
        if kind == "packed":
            self.segment_ids = np.array([[0, 0, 0, 0, 0, 1, 1, 1, 2, 3, 3], [0] * 11])[:, :num_keys]
        self.given = kind in ("static", "scattered")

    def visible(self):
        return oracle.visible_keys(self.position, self.key.shape[2], self.key_mask, self.segment_ids, 2)

    def expected(self):
        return oracle.differential_attention(
            self.query, self.key, self.value, self.lam, self.visible(), scale=self.scale
        )

    def expected_gradients(self):
        return oracle.differential_attention_backward(
            self.grad, self.query, self.key, self.value, self.lam, self.visible(), scale=self.scale
        )

    def tensors(self, dtype=torch.float32):
        arrays = (self.query, self.key, self.value)
        tensors = [torch.tensor(array, dtype=dtype, requires_grad=True) for array in arrays]
        return [*tensors, torch.tensor(self.lam, dtype=torch.float32, requires_grad=True)]

    def options(self):
        given = {"key_mask": self.key_mask, "segment_ids": self.segment_ids}
        options = {name: None if array is None else torch.tensor(array) for name, array in given.items()}
        options["position"] = torch.tensor(self.position) if self.given else None
        return {**options, "scale": self.scale}


KINDS = ("causal", "static", "scattered", "padded", "dead", "packed")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.usefixtures("small_blocks")
def test_output_and_gradients_equal_the_definition(implementation, kind):
    case = Case(kind)
    tensors = case.tensors()
    with recording() as ran:
        output = differential_attention(*tensors, implementation=implementation, **case.options()).output
    assert ran == [implementation]
    assert_close(output, case.expected()[0])
    output.backward(torch.tensor(case.grad, dtype=torch.float32))
    for name, tensor, expected in zip(("query", "key", "value", "λ"), tensors, case.expected_gradients(), strict=True):
        assert gradient_error(tensor.grad, expected) <= TOLERANCE["float32"], name


@pytest.mark.parametrize(("num_maps", "num_kv"), HEADS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.usefixtures("small_blocks")
def test_any_number_of_key_value_heads(implementation, num_maps, num_kv):
    case = Case("padded", num_maps=num_maps, num_kv=num_kv)
    tensors = case.tensors()
    output = differential_attention(*tensors, implementation=implementation, **case.options()).output
    assert_close(output, case.expected()[0])
    output.backward(torch.tensor(case.grad, dtype=torch.float32))
    for tensor, expected in zip(tensors, case.expected_gradients(), strict=True):
        assert gradient_error(tensor.grad, expected) <= TOLERANCE["float32"]


@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 1), (1, 9), (5, 5), (2, 300), (130, 131)])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_lengths(implementation, num_queries, num_keys):
    case = Case("causal", num_queries=num_queries, num_keys=num_keys)
    with torch.no_grad():
        output = differential_attention(*case.tensors(), implementation=implementation, **case.options()).output
    assert_close(output, case.expected()[0])


def test_maps_are_those_before_the_subtraction():
    case = Case("padded")
    result = differential_attention(*case.tensors(), output_weights=True, **case.options())
    _, maps, difference = case.expected()
    assert_close(result.weights, maps)
    assert_close(result.differential_weights, difference)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["causal", "static", "padded", "dead"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.usefixtures("half_products")
def test_half_precision(implementation, kind, dtype):
    case = Case(kind)
    name = str(dtype).removeprefix("torch.")
    tensors = case.tensors(dtype)
    output = differential_attention(*tensors, implementation=implementation, **case.options()).output
    assert output.dtype == dtype
    assert_close(output, case.expected()[0], name)
    output.backward(torch.tensor(case.grad, dtype=dtype))
    for tensor, expected in zip(tensors, case.expected_gradients(), strict=True):
        # a gradient passes twice as many rounded products as the output
        assert gradient_error(tensor.grad, expected) <= 2 * TOLERANCE[name]


@pytest.mark.parametrize(("num_maps", "num_kv"), HEADS)
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.usefixtures("half_products")
def test_half_precision_with_any_number_of_key_value_heads(num_maps, num_kv):
    case = Case("padded", num_maps=num_maps, num_kv=num_kv)
    with torch.no_grad():
        output = differential_attention(*case.tensors(torch.bfloat16), **case.options()).output
    assert_close(output, case.expected()[0], "bfloat16")


@pytest.mark.parametrize("kind", ["causal", "static", "scattered"])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(70, 70), (130, 133), (40, 200)])
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.usefixtures("half_products")
def test_half_precision_in_many_blocks(num_queries, num_keys, kind):
    """Blocks end at, before and behind the places where their masks begin."""
    case = Case(kind, num_queries=num_queries, num_keys=num_keys)
    with torch.no_grad():
        output = differential_attention(*case.tensors(torch.bfloat16), **case.options()).output
    assert_close(output, case.expected()[0], "bfloat16")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.usefixtures("small_blocks")
def test_keys_and_values_may_lie_in_memory_as_a_model_makes_them(dtype):
    case = Case("causal", num_queries=70, num_keys=70, num_kv=2, num_maps=4)
    *tensors, lam = case.tensors(dtype)
    with torch.no_grad():
        strided = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in tensors]
        kept = [tensor.clone() for tensor in strided]
        output = differential_attention(*strided, lam, **case.options()).output
    assert_close(output, case.expected()[0], str(dtype).removeprefix("torch."))
    assert all(torch.equal(*pair) for pair in zip(strided, kept, strict=True))


@pytest.mark.parametrize("num_kv", [2, 3])
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.usefixtures("native_half")
def test_half_precision_products_are_given_what_lies_in_one_piece(num_kv, monkeypatch):
    """They copy anything else, into fresh memory at each call."""
    case = Case("causal", num_queries=70, num_keys=70, num_kv=num_kv, num_maps=2 * num_kv)
    original, pieces = torch.bmm, []

    def record(a, b, **options):
        pieces.extend(tensor.is_contiguous() or tensor.transpose(1, 2).is_contiguous() for tensor in (a, b))
        return original(a, b, **options)

    monkeypatch.setattr(torch, "bmm", record)
    case.query, case.key, case.value = (array[:1] for array in (case.query, case.key, case.value))
    with torch.no_grad():
        differential_attention(*case.tensors(torch.bfloat16), scale=case.scale)
    assert len(pieces) == 2 * 2 * 24  # two products of each block
    assert all(pieces)


@pytest.fixture
def shifts(monkeypatch):
    """First rows of the blocks whose softmax is shifted by the maximum of each row."""
    starts = []
    shifted = differential_chunked._subtract_softmax

    def count(step, *arguments):
        starts.append(step.block.rows.start)
        return shifted(step, *arguments)

    monkeypatch.setattr(differential_chunked, "_subtract_softmax", count)
    return starts


@torch.no_grad()
def attend_to_exact_scores(scores, *, dtype=torch.bfloat16):
    """Two maps over one key head with these scores of six keys: output and definition."""
    query = torch.ones(1, 2, 6, HEAD_DIM, dtype=dtype) / HEAD_DIM
    key = scores[None, None, :, None].expand(1, 1, 6, HEAD_DIM).to(dtype)
    value = torch.randn(1, 1, 6, HEAD_DIM, generator=torch.Generator().manual_seed(0)).to(dtype)
    tensors = (query * torch.tensor([1.0, 0.5], dtype=dtype)[:, None, None], key, value)
    wide = (tensor.double() for tensor in tensors)
    lam = torch.tensor(0.4)
    expected = differential_attention(*wide, lam.double(), scale=1.0, implementation="eager").output
    return differential_attention(*tensors, lam, scale=1.0, implementation="chunked").output, expected


@pytest.mark.parametrize(
    ("scores", "shifted"),
    [
        ([1.0, 2.0, -1.0, 0.5, 3.0, -2.0], []),
        ([30.0, -30.0, 8.0, 0.0, 31.0, -31.0], []),
        ([-200.0, -200.0, -201.0, -200.0, -201.0, -200.0], [0, 3]),  # all powers would be 0
        ([300.0, 299.0, 300.0, -300.0, 0.0, 300.0], [0, 3]),  # all would be infinite
        ([1.0, 2.0, -1.0, 200.0, 3.0, 198.0], [0, 3]),  # only later rows need it: found at the end
    ],
)
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.usefixtures("native_half")
def test_rows_are_shifted_by_their_maximum_where_powers_leave_the_range(scores, shifted, shifts):
    output, expected = attend_to_exact_scores(torch.tensor(scores))
    assert_close(output, expected.numpy(), "bfloat16")
    assert shifts == shifted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_dtypes_are_always_shifted(dtype, shifts):
    output, expected = attend_to_exact_scores(torch.tensor([1.0, 2.0, -1.0, 0.5, 3.0, -2.0]), dtype=dtype)
    assert_close(output, expected.numpy(), str(dtype).removeprefix("torch."))
    assert shifts == [0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.usefixtures("small_blocks")
def test_a_query_without_keys_gives_exactly_zero(implementation, dtype):
    case = Case("padded")
    tensors = case.tensors(dtype)
    output = differential_attention(*tensors, implementation=implementation, **case.options()).output
    empty = ~torch.tensor(case.visible()).any(dim=-1)
    assert empty.any()
    assert (output[empty] == 0).all()
    output.sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in tensors)
    assert (tensors[0].grad.transpose(1, 2)[empty] == 0).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_scores_of_any_size_give_no_nan(implementation):
    case = Case("padded")
    query, key, value, lam = (tensor.detach() for tensor in case.tensors(torch.float16))
    with torch.no_grad():
        output = differential_attention(
            query * 60, key * 60, value, lam, implementation=implementation, **case.options()
        ).output
    assert output.isfinite().all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.usefixtures("half_products")
def test_lambda_is_not_rounded_to_the_dtype_of_the_maps(implementation):
    """One key: both maps are 1, the output is (1 − λ) v. bfloat16 would round this λ to 1."""
    value = torch.ones(1, 2, 1, HEAD_DIM, dtype=torch.bfloat16)
    lam = torch.tensor(1 - 2.0**-10)
    output = differential_attention(value, value, value, lam, implementation=implementation).output
    assert torch.equal(output, torch.full_like(output, 2.0**-10))


class TestDropout:
    """With the identity as values the output is the difference of the dropped maps itself."""

    SIZE, RATE, LAM = 16, 0.3, 0.37

    def run(self, implementation, *, rate=RATE, seed=3):
        generator = torch.Generator().manual_seed(0)
        query = torch.randn(1, 4, self.SIZE, self.SIZE, generator=generator, requires_grad=True)
        key = torch.randn(1, 2, self.SIZE, self.SIZE, generator=generator, requires_grad=True)
        value = torch.eye(self.SIZE).expand(1, 2, -1, -1).clone().requires_grad_()
        lam = torch.tensor(self.LAM, requires_grad=True)
        torch.manual_seed(seed)
        output = differential_attention(query, key, value, lam, implementation=implementation, dropout=rate).output
        return (query, key, value, lam), output

    def masks(self, implementation):
        """The factors of both maps, (2 pairs, S, T), read off the output; checks that both value halves share them."""
        tensors, output = self.run(implementation)
        maps = differential_attention(*tensors, implementation="eager", output_weights=True).weights[0].detach()
        left, right = output[0].detach().transpose(0, 1).chunk(2, dim=-1)  # (2, S, T) each
        assert torch.equal(left, right)
        seen = torch.ones(self.SIZE, self.SIZE).tril().bool()
        first, second = maps.chunk(2)
        keep = 1 / (1 - self.RATE)
        candidates = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]) * keep
        values = torch.stack([a * first - b * self.LAM * second for a, b in candidates])
        errors = (values - left).abs()
        assert (errors.min(dim=0).values[:, seen] < 1e-5).all()
        return candidates[errors.argmin(dim=0)].unbind(-1), tensors, output

    @pytest.mark.parametrize("implementation", ["chunked", "eager"])
    @pytest.mark.usefixtures("small_blocks")
    def test_each_map_has_its_own_draw_and_the_value_halves_share_it(self, implementation):
        (first, second), _, _ = self.masks(implementation)
        seen = torch.ones(self.SIZE, self.SIZE).tril().bool()
        for factors in (first, second):
            dropped = (factors[:, seen] == 0).float().mean()
            assert abs(float(dropped) - self.RATE) < 0.08
        assert not torch.equal(first, second)

    @pytest.mark.parametrize("implementation", ["chunked", "eager"])
    @pytest.mark.usefixtures("small_blocks")
    def test_gradients_follow_the_same_draw(self, implementation):
        (first, second), tensors, output = self.masks(implementation)
        grad = torch.randn_like(output)
        actual = torch.autograd.grad(output, tensors, grad)
        query, key, value, lam = tensors
        scores = query[0] @ key[0].repeat_interleave(2, dim=0).transpose(-1, -2) / self.SIZE**0.5
        hidden = torch.ones(self.SIZE, self.SIZE).triu(1).bool()
        maps = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
        difference = first * maps[:2] - lam * (second * maps[2:])
        again = torch.cat((difference @ value[0, 0], difference @ value[0, 1]), dim=-1).transpose(0, 1)[None]
        for mine, theirs in zip(actual, torch.autograd.grad(again, tensors, grad), strict=True):
            assert gradient_error(mine, theirs) <= TOLERANCE["float32"]

    @pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
    def test_the_mean_over_draws_is_the_output_without(self, implementation):
        with torch.no_grad():
            expected = self.run(implementation, rate=0.0)[1]
            mean = torch.stack([self.run(implementation, rate=0.1, seed=seed)[1] for seed in range(300)]).mean(0)
        # standard error of a mean of 300 draws: √(0.1/0.9/300) = 0.02 of an entry of at most 1
        assert (mean - expected).abs().max() < 0.1

    @pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
    def test_a_seed_fixes_the_draw(self, implementation):
        with torch.no_grad():
            outputs = [self.run(implementation, seed=seed)[1] for seed in (1, 1, 2)]
        assert torch.equal(outputs[0], outputs[1])
        assert not torch.equal(outputs[0], outputs[2])


class LargestTensor(TorchDispatchMode):
    """Remembers the entries of the largest tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.usefixtures("small_blocks")
def test_both_passes_hold_one_block_of_scores_at_most(masked):
    length, num_maps, num_kv = 200, 8, 1
    query = torch.randn(1, num_maps, length, HEAD_DIM)
    key, value = torch.randn(2, 1, num_kv, length, HEAD_DIM)
    mask = (torch.rand(1, length) > 0.2) if masked else None
    arguments = (query, key, value, torch.tensor(0.4), None, mask, None, None, 0.5, 0.0)
    with torch.no_grad(), LargestTensor() as memory:
        output = differential_chunked._forward(*arguments)
        differential_chunked._backward(torch.randn_like(output), *arguments)
    rows = differential_chunked.MIN_ROWS
    assert memory.entries <= max(num_maps * rows * length, num_maps * length * HEAD_DIM)
    assert memory.entries < length * length


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.usefixtures("small_blocks")
def test_the_memory_of_the_queries_may_take_the_result(masked, dtype):
    # as a model makes them: heads of one token lie side by side
    query, key, value = (torch.randn(2, 70, heads, HEAD_DIM).to(dtype).transpose(1, 2) for heads in (8, 2, 2))
    arguments = {"key_mask": torch.rand(2, 70) > 0.2} if masked else {}
    before, lam = query.clone(), torch.tensor(0.4)
    with torch.no_grad():
        expected = differential_attention(query, key, value, lam, **arguments).output
        assert torch.equal(query, before)
        output = differential_attention(query, key, value, lam, **arguments, overwrite_query=True).output
    assert torch.equal(output, expected)
    if dtype == torch.float32:
        assert output.data_ptr() == query.data_ptr()
        assert output.shape == (2, 70, 4, 2 * HEAD_DIM)
    query = before.clone().requires_grad_()
    with_gradient = differential_attention(query, key, value, lam, **arguments, overwrite_query=True).output
    assert torch.equal(with_gradient, expected)
    assert torch.equal(query, before)


def test_keys_and_values_are_never_repeated():
    num_maps, length = 16, 512
    query = torch.randn(1, num_maps, 2, 64)
    key, value = torch.randn(1, 1, length, 64), torch.randn(1, 1, length, 64)
    with torch.no_grad(), LargestTensor() as memory:
        differential_attention(query, key, value, torch.tensor(0.4), implementation="chunked")
    assert memory.entries <= key.numel() < num_maps * key.numel()


@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    num_kv=st.integers(1, 3),
    group=st.sampled_from([2, 4]),
    length=st.integers(2, 12),
    implementation=st.sampled_from(IMPLEMENTATIONS),
)
def test_a_later_key_changes_no_earlier_output(data, num_kv, group, length, implementation):
    changed = data.draw(st.integers(1, length - 1))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    query = torch.randn(1, num_kv * group, length, HEAD_DIM, generator=generator)
    key, value = torch.randn(2, 1, num_kv, length, HEAD_DIM, generator=generator)
    outputs = []
    for _ in range(2):
        outputs.append(differential_attention(query, key, value, torch.tensor(0.4), implementation=implementation))
        key, value = key.clone(), value.clone()
        key[:, :, changed], value[:, :, changed] = 9.0, -7.0
    assert torch.equal(outputs[0].output[:, :changed], outputs[1].output[:, :changed])
    assert not torch.equal(outputs[0].output[:, changed:], outputs[1].output[:, changed:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": (2, 5, 8, 4)}, "an even number of maps that the key/value heads divide. Received: 5 maps, 3 key"),
        ({"query": (2, 8, 8, 4)}, "an even number of maps that the key/value heads divide. Received: 8 maps, 3 key"),
        ({"key": (2, 3, 11, 6)}, r"must agree in B, K, T and D. Received: \(2, 6, 8, 4\), \(2, 3, 11, 6\)"),
        ({"value": (2, 3, 10, 4)}, "must agree in B, K, T and D"),
        ({"query": (1, 6, 8, 4)}, "must agree in B, K, T and D"),
        ({"position": (7,)}, r"position must have the shape \(S,\) = \(8,\). Received: \(7,\)"),
        ({"key_mask": (2, 8)}, r"key_mask must have the shape \(B, T\) = \(2, 11\). Received: \(2, 8\)"),
        ({"segment_ids": (1, 11)}, r"segment_ids must have the shape \(B, T\) = \(2, 11\). Received: \(1, 11\)"),
    ],
)
def test_wrong_shapes(changes, message):
    shapes = {"query": (2, 6, 8, 4), "key": (2, 3, 11, 4), "value": (2, 3, 11, 4), **changes}
    with pytest.raises(InputError, match=message):
        differential_attention(lam=torch.tensor(0.4), **{name: torch.ones(shape) for name, shape in shapes.items()})


def test_mixed_dtypes():
    query, key, value, lam = Case("causal").tensors()
    with pytest.raises(InputError, match="must have one dtype. Received: torch.float32, torch.float32, torch.float16"):
        differential_attention(query, key, value.half(), lam)


def test_an_implementation_without_maps_says_so():
    with pytest.raises(InputError, match="'chunked' cannot serve .*attention weights that were asked for"):
        differential_attention(*Case("causal").tensors(), implementation="chunked", output_weights=True)


def test_auto_runs_the_blocked_implementation_on_a_cpu_unless_maps_are_asked_for():
    tensors = Case("causal").tensors()
    with recording() as ran:
        differential_attention(*tensors)
        differential_attention(*tensors, output_weights=True)
    assert ran == ["chunked", "eager"]


@pytest.mark.parametrize("kind", ["causal", "padded", "static", "packed"])
def test_the_operator_is_registered_correctly(kind):
    case = Case(kind)
    options = case.options()
    arguments = (*case.tensors(), options["position"], options["key_mask"], options["segment_ids"], None, 0.5, 0.0)
    torch.library.opcheck(torch.ops.longspan.differential_attention.default, arguments)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_one_graph_serves_all_lengths(dropout):
    counter = CompileCounter()

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def compiled(*tensors, **options):
        return differential_attention(*tensors, dropout=dropout, **options).output

    for length in (7, 12, 17):
        case = Case("padded", num_queries=length - 2, num_keys=length)
        tensors, options = case.tensors(), case.options()
        torch.manual_seed(1)
        output = compiled(*tensors, **options)
        torch.manual_seed(1)
        assert torch.equal(output, differential_attention(*tensors, dropout=dropout, **options).output)
        output.backward(torch.tensor(case.grad, dtype=torch.float32))
        if dropout == 0.0:
            for tensor, expected in zip(tensors, case.expected_gradients(), strict=True):
                assert gradient_error(tensor.grad, expected) <= TOLERANCE["float32"]
    assert counter.frame_count == 1


def test_a_second_derivative_is_refused():
    tensors = Case("causal").tensors()
    output = differential_attention(*tensors, implementation="chunked").output
    (gradient,) = torch.autograd.grad(output.sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        gradient.sum().backward()


def test_the_oracle_gradient_is_the_derivative_of_the_oracle():
    case = Case("padded", num_maps=4, num_kv=2, num_queries=4, num_keys=5)
    step, index = 1e-6, (1, 2, 3, 1)
    values = []
    for sign in (1, -1):
        moved = case.query.copy()
        moved[index] += sign * step
        output = oracle.differential_attention(moved, case.key, case.value, case.lam, case.visible(), scale=case.scale)
        values.append((output[0] * case.grad).sum())
    expected = case.expected_gradients()[0][index]
    assert abs((values[0] - values[1]) / (2 * step) - expected) <= 1e-7 * max(1.0, abs(expected))
    assert np.abs(as_numpy(expected)) > 1e-3
