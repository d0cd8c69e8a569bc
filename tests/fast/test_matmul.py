"""Matrix products by oneDNN against the usual ones."""

from __future__ import annotations

import pytest
import torch
from tests.tolerances import assert_close
from torch.nn import Linear
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from longspan.fast import matmul as ops
from longspan.fast.gated_linear import as_function, gated_linear
from longspan.fast.matmul import linear, linear_function, matmul
from longspan.nn.torch.activations import ACTIVATIONS
from longspan.nn.torch.apply import project
from longspan.ops.torch.differential import differential_attention
from longspan.ops.torch.sliding_window import sliding_window_attention


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    """oneDNN serves whatever the CPU."""
    monkeypatch.setattr(ops, "is_faster", ops.has_onednn)


@pytest.fixture
def calls(monkeypatch):
    """The shapes of the products that oneDNN was given."""
    shapes = []
    original = ops._linear_pointwise

    def record(a, b, *others):
        shapes.append((tuple(a.shape), tuple(b.shape)))
        return original(a, b, *others)

    monkeypatch.setattr(ops, "_linear_pointwise", record)
    return shapes


def linear_silu(x, weight, bias=None):
    return linear_function(x, weight, bias, activation=F.silu)(x)


class Kernel(TorchDispatchMode):
    """Collects the weights that oneDNN is called with."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.mkldnn._linear_pointwise.default:
            self.weights.append(args[1])
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_a_part_of_a_larger_tensor_is_copied_first():
    """The kernel for other strides is far slower."""
    whole, x = torch.randn(128, 96), torch.randn(64, 48)
    part = whole[:, :48]
    with Kernel() as kernel:
        results = [linear(x, part), linear(x, part.contiguous()), matmul(x, part.t()), matmul(x, whole[:48, :64])]
        results.append(linear_silu(x, part))
    assert len(kernel.weights) == 5
    assert all(weight.is_contiguous() or weight.t().is_contiguous() for weight in kernel.weights)
    expected = F.linear(x, part.contiguous())
    for result in results[:3]:
        torch.testing.assert_close(result, expected)
    torch.testing.assert_close(results[3], x @ whole[:48, :64])
    torch.testing.assert_close(results[4], F.silu(expected))


@torch.no_grad()
@pytest.mark.parametrize("name", ["gelu", "gelu_new", "silu", "relu", "gelu_10"])
def test_an_activation_is_that_of_the_definition(name):
    torch.manual_seed(0)
    x, weight, bias, activation = 3 * torch.randn(2, 50, 64), torch.randn(96, 64), torch.randn(96), ACTIVATIONS[name]
    product = F.linear(x.double(), weight.double(), bias.double())
    exact = activation(product)
    for result in (linear(x, weight, bias, activation), linear_function(x, weight, bias, activation=activation)(x)):
        assert float((result - exact).abs().max()) < 4e-7 * float(product.abs().max())


@torch.no_grad()
def test_an_activation_takes_no_pass_of_its_own(calls):
    x, weight, seen = torch.randn(64, 64), torch.randn(96, 64), []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Calls():
        linear(x, weight, None, ACTIVATIONS["gelu"])
    assert torch.ops.aten.gelu.default not in seen
    assert calls == [((64, 64), (96, 64))]


def test_an_activation_has_its_gradient():
    x, weight = torch.randn(64, 48, requires_grad=True), torch.randn(96, 48, requires_grad=True)
    given = torch.randn(64, 96)
    found = torch.autograd.grad(linear(x, weight, None, F.gelu), (x, weight), given)
    wanted = torch.autograd.grad(F.gelu(F.linear(x, weight)), (x, weight), given)
    for result, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_an_activation_of_somebody_else_is_called():
    layer, seen = Linear(48, 64), []

    def activation(x):
        seen.append(x.shape)
        return F.gelu(x)

    x = torch.randn(40, 48)
    torch.testing.assert_close(project(layer, x, activation), F.gelu(layer(x)))
    assert seen == [(40, 64)]


@pytest.mark.parametrize("layout", ["rows", "columns", "strided"])
@pytest.mark.parametrize("side", ["a", "b"])
def test_matmul(calls, side, layout):
    a, b = torch.randn(64, 41), torch.randn(41, 53)
    operands = {"a": a, "b": b}
    if layout == "columns":
        operands[side] = operands[side].t().contiguous().t()
    if layout == "strided":
        rows, columns = operands[side].shape
        wide = torch.randn(rows, columns + 13)
        wide[:, 5 : 5 + columns] = operands[side]
        operands[side] = wide[:, 5 : 5 + columns]
    torch.testing.assert_close(matmul(**operands), (a.double() @ b.double()).float())
    assert calls == [((64, 41), (53, 41))]


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 64), (64, 32)])
def test_linear_and_its_gradients(calls, inputs, outputs, has_bias):
    shapes = [(2, 32, inputs), (outputs, inputs)] + [(outputs,)] * has_bias
    leaves = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    exact = [leaf.clone().requires_grad_() for leaf in leaves]
    single = [leaf.float().requires_grad_() for leaf in leaves]
    expected, actual = F.linear(*exact), linear(*single)
    torch.testing.assert_close(actual, expected.float())
    gradient = torch.randn(2, 32, outputs, dtype=torch.float64)
    expected.backward(gradient)
    actual.backward(gradient.float())
    for mine, theirs in zip(single, exact, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad.float(), rtol=1e-5, atol=1e-5)
    assert len(calls) == 3  # the output, the gradient of the input, the gradient of the weight


def test_frozen_weights_take_no_gradient(calls):
    x, weight = torch.randn(64, 40, requires_grad=True), torch.randn(60, 40)
    linear(x, weight).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(64, -1))
    assert len(calls) == 2


def test_second_derivatives(calls):
    x, weight = torch.randn(40, 33, requires_grad=True), torch.randn(35, 33, requires_grad=True)
    results = []
    for function in (linear, F.linear):
        (first,) = torch.autograd.grad(function(x, weight).pow(3).sum(), x, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), (x, weight)))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-2 * float(theirs.abs().max()) * 1e-2)
    assert calls


def test_bfloat16_without_gradients(calls):
    x, weight, bias = torch.randn(2, 32, 33).bfloat16(), torch.randn(35, 33).bfloat16(), torch.randn(35).bfloat16()
    assert_close(linear(x, weight, bias), F.linear(x.double(), weight.double(), bias.double()), "bfloat16")
    assert len(calls) == bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@torch.no_grad()
def test_few_numbers_of_rows_reach_the_kernel(calls):
    """It keeps memory for each of them, and for good."""
    weight, bias, x = torch.randn(35, 33), torch.randn(35), torch.randn(3000, 33)
    expected = F.linear(x, weight, bias)
    for rows in range(32, 3000, 7):
        torch.testing.assert_close(linear(x[:rows], weight, bias), expected[:rows])
    assert len({a for a, _ in calls}) <= 7 + 12 + 8  # multiples of 32 below 256, of 64 below 1,024, and of 256
    sizes = [ops._pieces(rows) for rows in range(1, 100_000)]
    assert len({size for pair in sizes for size in pair}) < 140
    assert all(head + tail >= rows >= max(head, tail) for rows, (head, tail) in enumerate(sizes, 1) if head < rows)
    assert linear(x[:74].view(2, 37, 33), weight).shape == (2, 37, 35)


def test_without_wide_vectors_the_usual_kernel_is_faster(calls, monkeypatch):
    monkeypatch.setattr(ops, "is_faster", lambda: False)
    x, weight = torch.randn(64, 64, requires_grad=True), torch.randn(64, 64, requires_grad=True)
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight))
    torch.testing.assert_close(ops.batched_matmul(x[None], weight[None])[0], x @ weight)
    with torch.no_grad():
        torch.testing.assert_close(linear_silu(x, weight), F.silu(F.linear(x, weight)))
        torch.testing.assert_close(matmul(x, weight), x @ weight)
    assert not calls


def test_where_it_cannot_serve_all_goes_as_usual(calls):
    x, weight = torch.randn(64, 64), torch.randn(64, 64)
    linear(x.double(), weight.double())
    linear(x.half(), weight.half())
    linear(x.bfloat16(), weight.bfloat16().requires_grad_())
    linear(x[:8].bfloat16(), weight.bfloat16())
    linear(x[:8], weight)  # too few rows
    linear(x[:, :8], weight[:, :8])
    matmul(x[:8], weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    torch.func.vmap(lambda row: linear(row, weight))(torch.randn(3, 64, 64))
    torch.func.grad(lambda value: linear(value, weight).sum())(x)
    torch.compile(linear, fullgraph=True, backend="eager")(x, weight)
    torch._dynamo.reset()
    assert not calls


def test_a_plain_layer(calls):
    layer, x = Linear(40, 50), torch.randn(3, 32, 40)
    torch.testing.assert_close(project(layer, x), layer(x))
    assert len(calls) == 1


def test_operations_are_counted_whatever_the_kernel():
    x = torch.randn(4, 50, 64, requires_grad=True)
    layer = Linear(64, 128)
    for product in (layer, lambda x: project(layer, x)):
        with FlopCounterMode(display=False) as counter:
            product(x).sum().backward()
        assert counter.get_total_flops() == 3 * 2 * 200 * 64 * 128


@pytest.fixture
def fused(monkeypatch):
    """An entry for each call of a kernel that takes silu of its result."""
    entries = []
    original = ops._linear_pointwise

    def record(a, b, bias, activation, *others):
        entries.extend([activation] * (activation != "none"))
        return original(a, b, bias, activation, *others)

    monkeypatch.setattr(ops, "_linear_pointwise", record)
    return entries


def rounding(dtype):
    """Largest relative error of rounding to a half-precision dtype."""
    return torch.finfo(dtype).eps / 2


@torch.no_grad()
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_linear_silu(fused, dtype, has_bias):
    """Whether one kernel serves or several, half precision is rounded once."""
    x, weight = torch.randn(3, 32, 64).to(dtype), (torch.randn(48, 64) / 8).to(dtype)
    bias = torch.randn(48).to(dtype) if has_bias else None
    exact = F.silu(F.linear(x.double(), weight.double(), None if bias is None else bias.double()))
    has_fused_kernel = dtype in ops._inference_dtypes()
    if dtype == torch.float32 or has_fused_kernel or dtype in ops.widened_dtypes():
        tolerance = {"rtol": 1e-5 if dtype == torch.float32 else 1.01 * rounding(dtype), "atol": 1e-5}
        torch.testing.assert_close(linear_silu(x, weight, bias).double(), exact, **tolerance)
    assert fused == ["swish"] * has_fused_kernel


@pytest.mark.parametrize("rows", [1, 37])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_linear_silu_in_two_steps_rounds_twice(fused, dtype, rows):
    """With a gradient, or for few rows: the product z, and z · sigmoid(z), whose derivative is at most 1.1."""
    x, weight = torch.randn(rows, 64).to(dtype), (torch.randn(48, 64) / 8).to(dtype).requires_grad_(rows > 1)
    product = F.linear(x.double(), weight.double())
    exact = F.silu(product)
    error = (linear_silu(x, weight).double() - exact).abs()
    assert (error <= 1.05 * rounding(dtype) * (1.1 * product.abs() + exact.abs()) + 1e-6).all()
    assert fused == []


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_without_instructions_for_it_is_rounded_once(monkeypatch, dtype):
    monkeypatch.setattr(ops, "widened_dtypes", lambda: (torch.bfloat16, torch.float16))
    monkeypatch.setattr(ops, "_inference_dtypes", lambda: (torch.float32,))
    x, weight, bias = torch.randn(2, 40, 64).to(dtype), torch.randn(48, 64).to(dtype), torch.randn(48).to(dtype)
    product = F.linear(x.double(), weight.double(), bias.double())
    for result, exact in ((linear(x, weight, bias), product), (linear_silu(x, weight, bias), F.silu(product))):
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), exact, rtol=1.01 * rounding(dtype), atol=1e-5)


def test_linear_silu_has_a_gradient(fused):
    x, weight = torch.randn(40, 64, requires_grad=True), torch.randn(48, 64, requires_grad=True)
    linear_silu(x, weight).sum().backward()
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight)]
    F.silu(F.linear(*exact)).sum().backward()
    torch.testing.assert_close(x.grad, exact[0].grad.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weight.grad, exact[1].grad.float(), rtol=1e-5, atol=1e-5)
    assert fused == []


def test_a_function_gives_gradients_to_what_the_one_before_made():
    """Its weight and the input of the whole may need none."""
    frozen, like = Linear(64, 48).requires_grad_(False), torch.randn(40, 64)
    states = torch.randn(40, 64, requires_grad=True)
    as_function(frozen, like)(states).sum().backward()
    torch.testing.assert_close(states.grad, frozen.weight.sum(dim=0).expand(40, -1))


@torch.no_grad()
def test_a_watched_or_replaced_layer_is_called(fused):
    layer, other, x = Linear(64, 48), Linear(64, 48), torch.randn(64, 64)
    up = other(x)
    expected = F.silu(layer(x)) * up
    torch.testing.assert_close(gated_linear(layer, other, F.silu, x)(x), expected)
    assert fused == ["swish"]
    seen = []
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    torch.testing.assert_close(gated_linear(layer, other, F.silu, x)(x), expected)
    torch.testing.assert_close(gated_linear(torch.nn.Sequential(layer), other, F.silu, x)(x), expected)
    torch.testing.assert_close(gated_linear(layer, other, torch.tanh, x)(x), layer(x).tanh() * up)
    assert len(seen) == 4
    assert fused == ["swish"]


@torch.no_grad()
@pytest.mark.parametrize("watched", ["gate", "up"])
def test_what_a_hook_saw_stays_as_it_was(watched):
    layers = {"gate": Linear(64, 48), "up": Linear(64, 48)}
    x, seen = torch.randn(40, 64), []
    expected = layers[watched](x)
    layers[watched].register_forward_hook(lambda module, inputs, output: seen.append(output))
    product = gated_linear(layers["gate"], layers["up"], lambda states: states, x)(x)
    assert torch.equal(seen[0], expected)
    torch.testing.assert_close(product, F.linear(x, layers["gate"].weight, layers["gate"].bias) * layers["up"](x))


@torch.no_grad()
def test_a_gated_product_can_be_mapped_over_some_weights():
    gate, x, weights = Linear(64, 48), torch.randn(40, 64), torch.randn(3, 48, 64)

    def product(weight):
        return gated_linear(gate, lambda states: F.linear(states, weight), F.silu, x)(x)

    expected = torch.stack([F.silu(gate(x)) * F.linear(x, weight) for weight in weights])
    torch.testing.assert_close(torch.func.vmap(product)(weights), expected)


def test_gradients_of_a_gated_product_equal_the_definition():
    gate, up, x = Linear(64, 48), Linear(64, 48), torch.randn(40, 64)
    gated_linear(gate, up, F.silu, x)(x).square().sum().backward()
    exact = [Linear(64, 48).double() for _ in range(2)]
    for ours, theirs in zip((gate, up), exact, strict=True):
        theirs.load_state_dict(ours.state_dict())
    (F.silu(exact[0](x.double())) * exact[1](x.double())).square().sum().backward()
    for ours, theirs in zip((gate, up), exact, strict=True):
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad.float(), rtol=1e-4, atol=1e-4)


class _HalfProducts(TorchDispatchMode):
    """Names of the batched products of half precision that run inside."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        is_half = any(isinstance(arg, torch.Tensor) and arg.dtype in (torch.bfloat16, torch.float16) for arg in args)
        if is_half and func.overloadpacket.__name__ in ("bmm", "baddbmm", "baddbmm_"):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("is_widened", [True, False])
@pytest.mark.parametrize("operation", ["windows", "differential"])
def test_attention_takes_no_half_precision_product_that_the_cpu_lacks(operation, is_widened, monkeypatch):
    monkeypatch.setattr(ops, "widened_dtypes", lambda: (torch.bfloat16,) if is_widened else ())
    states = [torch.randn(1, 4, 600, 16, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]

    def run():
        if operation == "windows":
            return sliding_window_attention(*states, left=20, right=20, scale=0.25, implementation="chunked")
        return differential_attention(*states, torch.tensor(0.5), implementation="chunked").output

    with torch.no_grad(), _HalfProducts() as products:
        assert run().dtype == torch.bfloat16
    assert bool(products.found) != is_widened
    run().float().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.dtype == torch.bfloat16 for tensor in states)
