"""The convolution with max-pooling against float64: in Triton's interpreter without a GPU, on the GPU with one."""

import pytest
import torch
import torch.nn.functional as F
from kernel_checks import INTERPRETER_TRUNCATES, channels_last, error, poisoned_memory, shipped
from tiers import parametrize
from torch import library

from speedyresnet.kernels import convolution_pool as kernels
from speedyresnet.kernels.convolution_pool import (
    KERNEL,
    convolution_pool,
    convolution_pool_backward_reference,
    convolution_pool_reference,
    takes_convolution_pool,
)
from speedyresnet.kernels.pool_batch_norm import unpooled

OPERATORS = torch.ops.speedyresnet


def inputs(shape, filters, dtype=torch.float32):
    """x, weight and a gradient of the result."""
    count, channels, height, width = shape
    gradient = channels_last(count, filters, height // 2, width // 2, dtype=dtype, seed=3)
    weight = channels_last(filters, channels, 3, 3, dtype=dtype, seed=1)
    return channels_last(*shape, dtype=dtype), weight, gradient.detach()


def check_against_float64(shape, filters, dtype=torch.float32):
    """Pooled values, places of the maxima among all u, and the weight gradient for these places."""
    x, weight, gradient = (each.detach() for each in inputs(shape, filters, dtype))
    with poisoned_memory():
        pooled, winners = OPERATORS.convolution_pool(x, weight)
        weight_gradient = OPERATORS.convolution_pool_backward(gradient, winners, x)
    rounding = max(5e-7, torch.finfo(dtype).eps * (2 if dtype == torch.bfloat16 and INTERPRETER_TRUNCATES else 1))
    u = F.conv2d(x.double(), weight.double(), padding=1)
    assert error(pooled, F.max_pool2d(u, 2)) < rounding
    whole = u[:, :, : shape[2] // 2 * 2, : shape[3] // 2 * 2]
    chosen = unpooled(torch.ones_like(pooled, dtype=torch.float64), winners, *whole.shape[2:])
    assert int(chosen.sum()) == pooled.numel()
    assert error(F.max_pool2d(torch.where(chosen > 0, whole, -torch.inf), 2), F.max_pool2d(u, 2)) < rounding
    expected = convolution_pool_backward_reference(gradient.double(), winners, x.double())
    assert error(weight_gradient, expected) < rounding
    for made, like in ((pooled, dtype), (winners, torch.uint8), (weight_gradient, dtype)):
        assert made.dtype == like
        assert made.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("shape", "filters"),
    [
        ((2, 24, 13, 13), 64), ((3, 24, 9, 12), 64), ((2, 8, 11, 7), 16), ((5, 16, 8, 10), 128), ((1, 24, 2, 3), 80),
        ((9, 8, 5, 4), 64),
    ],
)  # fmt: skip
@parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], default=1)
def test_every_shape_and_dtype_is_as_exact_as_its_rounding(shape, filters, dtype):
    check_against_float64(shape, filters, dtype)


def test_more_tiles_than_programs(monkeypatch):
    """Two programs share five tiles; the last of the second is beyond the images."""
    monkeypatch.setattr(kernels, "_PROGRAMS", 2)
    check_against_float64((3, 24, 18, 19), 64, torch.float16)  # 243 windows: 3.8 tiles
    check_against_float64((4, 8, 18, 18), 16, torch.float16)  # 324 windows: 5.1 tiles


def by_pytorch(x, weight):
    return F.max_pool2d(F.conv2d(x, weight, padding=1), 2)


@pytest.mark.parametrize("sides", [(7, 6), (6, 7)])
def test_ties_and_gradients_are_exactly_pytorchs(sides):
    """Of small integers, where sums are exact and most windows have several largest values."""
    x, weight, gradient = ((each.detach() * 2).round().clamp(-1, 1) for each in inputs((4, 8, *sides), 16))
    weight[:, 2:] = 0
    found, expected = (
        [y := function(one := x.clone().requires_grad_(), two := weight.clone().requires_grad_()),
         *torch.autograd.grad(y, [one, two], gradient)]
        for function in (convolution_pool, by_pytorch)
    )  # fmt: skip
    u = F.conv2d(x, weight, padding=1)
    largest = F.max_pool2d(u, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert (u[:, :, :6, :6] == largest).float().mean() > 0.28  # more than one of four
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_nan_wins_and_goes_no_further():
    x, weight, _ = (each.detach() for each in inputs((2, 24, 9, 11), 16))
    x[0, 3, 4, 4] = x[1, 23, 8, 10] = x[1, 20, 0, 5] = torch.nan
    found, expected = convolution_pool(x, weight), by_pytorch(x, weight)
    assert 0 < expected.isnan().float().mean() < 0.5
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-5, atol=1e-5)


def test_no_gradient_of_x_is_computed_where_it_wants_none(monkeypatch):
    x, weight, gradient = inputs((2, 8, 6, 6), 16)
    y = convolution_pool(x.detach(), weight)
    monkeypatch.setattr(kernels, "_convolution_gradients", None)
    y.backward(gradient)
    assert weight.grad.abs().sum() > 0
    frozen = convolution_pool(x, weight.detach())
    monkeypatch.undo()
    monkeypatch.setattr(torch.ops.speedyresnet, "convolution_pool_backward", None)
    frozen.backward(gradient)
    assert x.grad.abs().sum() > 0


def test_what_is_kept_is_the_input_and_a_byte_a_pooled_value():
    x, weight, _ = inputs((4, 8, 8, 8), 16, torch.float16)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = convolution_pool(x, weight)
    assert sum(each.nbytes for each in kept) == x.nbytes + weight.nbytes + y.numel()


def test_the_reference_has_the_gradients_of_its_function():
    x, weight, gradient = inputs((2, 3, 5, 4), 2, torch.float64)
    assert torch.autograd.gradcheck(lambda *both: convolution_pool_reference(*both)[0], (x, weight))
    pooled, winners = convolution_pool_reference(x, weight)
    (expected,) = torch.autograd.grad(pooled, weight, gradient)
    torch.testing.assert_close(convolution_pool_backward_reference(gradient, winners, x.detach()), expected)


def test_the_operators_pass_pytorchs_checks():
    x, weight, gradient = (each.detach() for each in inputs((2, 8, 5, 6), 16))
    library.opcheck(OPERATORS.convolution_pool.default, (x, weight))
    _, winners = OPERATORS.convolution_pool(x, weight)
    library.opcheck(OPERATORS.convolution_pool_backward.default, (gradient, winners, x))


def test_a_graph_with_the_function_gives_the_same():
    x, weight, _ = inputs((2, 8, 4, 5), 16)

    def loss_and_gradients(x, weight):
        y = convolution_pool(x * 2, weight)
        return torch.autograd.grad((y * y).sum(), [x, weight])

    torch._dynamo.config.trace_autograd_ops = True
    compiled = torch.compile(loss_and_gradients, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(x, weight), loss_and_gradients(x, weight), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": lambda x: x.contiguous()}, "x has to be in channels_last"),
        ({"x": lambda x: x.double()}, "float16, bfloat16 or float32"),
        ({"x": lambda x: x[:0]}, "float16, bfloat16 or float32"),
        ({"x": lambda x: x[:, :, :1].contiguous(memory_format=torch.channels_last)}, "at least 2 x 2 pixels"),
        ({"weight": lambda w: w.contiguous()}, "weight has to be in channels_last"),
        ({"weight": lambda w: w.half()}, r"weight has to be torch.float32 \[K, 8, 3, 3\]"),
        ({"weight": lambda w: w[:, :, :1]}, r"weight has to be"),
        ({"weight": lambda w: w.to("meta")}, "weight has to be"),
        ({"weight": lambda w: w[:8]}, "filters one of 16"),
    ],
)
def test_what_it_does_not_take_is_refused(change, message):
    x, weight, _ = inputs((2, 8, 4, 3), 16)
    arguments = {"x": x.detach(), "weight": weight.detach()}
    ((name, function),) = change.items()
    with pytest.raises(ValueError, match=message):
        convolution_pool(**(arguments | {name: function(arguments[name])}))


def test_what_it_takes():
    assert [c for c in range(70) if takes_convolution_pool(c, 64)] == [8, 16, 24]
    assert [k for k in range(70) if takes_convolution_pool(24, k)] == [16, 32, 48, 64]


@pytest.mark.gpu
def test_offsets_beyond_2_to_the_31():
    x = torch.zeros(5600, 24, 128, 128, dtype=torch.float16, device="cuda").to(memory_format=torch.channels_last)
    assert x.numel() > 2**31
    x[-1].normal_()
    weight = torch.randn(64, 24, 3, 3, dtype=torch.float16, device="cuda").to(memory_format=torch.channels_last)
    weight.requires_grad_()
    y = convolution_pool(x, weight)
    assert error(y[-1:], by_pytorch(x[-1:].double(), weight.double())) < 1e-3
    assert not y[:-1].any()
    y[-1].float().sum().backward()
    expected = weight.detach().clone().requires_grad_()
    convolution_pool(x[-1:], expected).float().sum().backward()
    assert error(weight.grad, expected.grad) < 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("operation", shipped(KERNEL), ids=str)
def test_every_shipped_shape(operation):
    check_against_float64(operation.shape, operation["filters"], torch.float16)


def test_a_shipped_shape_with_few_images():
    (operation,) = [each for each in shipped(KERNEL) if each.shape[2] == 19]  # the least that a recipe has
    check_against_float64((2, *operation.shape[1:]), operation["filters"], torch.float16)


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [8, 16, 24])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_number_of_channels_in_both_half_types(channels, dtype):
    check_against_float64((1024, channels, 31, 31), 64, dtype)


MUTATIONS = {
    "kernels/convolution_pool.py": [
        ("((windows // AN_IMAGE - first) * S.height", "((windows // AN_IMAGE) * S.height"),
        ("row = windows % AN_IMAGE // (S.width // 2)", "row = windows // (S.width // 2)"),
        ("+ 2 * row - 1) * S.width + 2 * column - 1", "+ 2 * row - 1) * S.width + 2 * column"),
        ("pixel * S.channels, row, column, windows < ROWS", "pixel * S.channels, row, column, windows < ROWS - 1"),
        ("exists = exists & (row > 0)", "exists = exists & (row >= 0)"),
        ("if INDEX == 3 and S.height % 2 == 0:", "if INDEX == 3 and S.width % 2 == 0:"),
        ("(column > 0)[:, None] | (values >= S.channels)", "(column >= 0)[:, None] | (values >= S.channels)"),
        ("(column < S.width // 2 - 1)[:, None] | (values < 3", "(column < S.width // 2)[:, None] | (values < 3"),
        ("((values >= 0) & (values < 3 * S.channels))[:, None]", "((values >= 0) & (values < 4 * S.channels))[:, None]"),
        ("FIRST: tl.constexpr = S.middle - COLUMN * S.channels", "FIRST: tl.constexpr = S.middle"),
        ("(value > largest) | (value != value)", "value > largest"),
        ("(value > largest) | (value != value)", "(value >= largest) | (value != value)"),
        ("right if position % 2 else left", "left"),
        ("tl.program_id(1) * S.block_filters + tl.arange", "tl.arange"),
        ("tile = tl.program_id(0) * TILES_EACH + number", "tile = tl.program_id(0) + number"),
        ("tl.where(winner == across + 2, gradient, 0.0)", "tl.where(winner >= across + 2, gradient, 0.0)"),
        ("rows, values = DOWN + rests // REST", "rows, values = rests // REST"),
        ("| (rows > 0)[None, :])", "| (rows >= 0)[None, :])"),
        ("| (rows < 3)[None, :])", "| (rows < 4)[None, :])"),
        ("_with_product_device(sums, index - 1, lower", "_with_product_device(sums, index - 1, upper"),
        ("tl.dot(lower if down else upper, rests", "tl.dot(upper, rests"),
        ("sums.sum(0).transpose(0, 1)", "sums[:1].sum(0).transpose(0, 1)"),
        ("if ctx.needs_input_grad[0]:", "if True:"),
        ("gradient.to(tl.float32)", "gradient.to(tl.float16).to(tl.float32)"),
    ],
}  # fmt: skip
"""Lines of kernels, each with a mistake in its place that these tests have to catch: `python tests/mutations.py`."""
