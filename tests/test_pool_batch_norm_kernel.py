"""The pooling batch-norm kernels against float64: in Triton's interpreter without a GPU, on the GPU with one."""

import pytest
import torch
import torch.nn.functional as F
from kernel_checks import (
    DEVICE,
    EPSILON,
    INTERPRETER_TRUNCATES,
    assert_rounded,
    channels_last,
    error,
    errors,
    poisoned_memory,
    results,
    shipped,
    vectors,
)
from tiers import parametrize
from torch import library

from speedyresnet.kernels.activations import ACTIVATIONS
from speedyresnet.kernels.pool_batch_norm import (
    KERNEL,
    PoolBatchNormAct2d,
    pool_batch_norm_act,
    pool_batch_norm_act_backward_reference,
    pool_batch_norm_act_reference,
)


def three_ways(shape, activation="gelu", groups=1, dtype=torch.float32, mean=0.0):
    """By the kernels, in float64, and by PyTorch's own operators in the same dtype."""
    x, (weight, bias) = channels_last(*shape, dtype=dtype, mean=mean), vectors(shape[1])
    gradient = channels_last(*shape[:2], shape[2] // 2, shape[3] // 2, dtype=dtype, seed=3).detach()

    def kernels(*tensors):
        with poisoned_memory():
            return pool_batch_norm_act(
                *tensors, activation=activation, momentum=0.3, epsilon=EPSILON, groups=groups
            )  # fmt: skip

    def exact(*tensors):
        x, *others = tensors
        u = F.max_pool2d(x, 2).reshape(-1, groups, x.shape[1], x.shape[2] // 2, x.shape[3] // 2)
        weight, bias, running_mean, running_variance = others
        parts, running = [], []
        for group in u.unbind(1):
            own = running_mean.clone(), running_variance.clone()
            parts.append(F.batch_norm(group, *own, weight, bias, True, 0.3, EPSILON))
            running.append(own)
        for index, each in enumerate((running_mean, running_variance)):
            each.copy_(torch.stack([own[index] for own in running]).mean(0))
        y = torch.stack(parts, 1).flatten(0, 1)
        return y if activation == "none" else ACTIVATIONS[activation](y)

    def native(x, weight, bias, *running):
        u = F.batch_norm(F.max_pool2d(x, 2), *running, weight, bias, True, 0.3, EPSILON)
        return u if activation == "none" else ACTIVATIONS[activation](u)

    wide = [each.detach().double().requires_grad_() for each in (x, weight, bias)]
    return (
        results(kernels, gradient, x, weight, bias),
        results(exact, gradient, *wide),
        results(native, gradient, x, weight, bias) if groups == 1 else None,
    )


@pytest.mark.parametrize("activation", ["none", *ACTIVATIONS])
def test_every_activation(activation):
    found, exact, _ = three_ways((4, 24, 9, 6), activation)
    for name, wrong in errors(found, exact).items():
        assert wrong < 2e-6, name


@parametrize(
    "shape",
    [
        (9, 1, 7, 6), (2, 3, 31, 31), (5, 24, 7, 7), (3, 64, 15, 14), (2, 67, 9, 11), (2, 512, 3, 3), (1, 8, 10, 11),
        (1, 200, 5, 2), (7, 64, 14, 15),
    ], default=5,
)  # fmt: skip
@parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], default=1)
def test_every_shape_and_dtype_is_as_exact_as_pytorch(shape, dtype):
    found, exact, native = three_ways(shape, dtype=dtype)
    allowed = 2.5 if dtype == torch.bfloat16 and INTERPRETER_TRUNCATES else 1.1
    natively = errors(native, exact)
    for name, wrong in errors(found, exact).items():
        assert found[name].dtype == native[name].dtype
        assert wrong <= allowed * natively[name] + 1e-6, name
    for name in ("y", "x"):
        assert found[name].is_contiguous(memory_format=torch.channels_last)


@parametrize(("dtype", "mean"), [(torch.float32, 1000.0), (torch.float32, -1000.0), (torch.float16, 10.0)], default=1)
def test_a_large_mean_does_not_cancel(dtype, mean):
    found, exact, native = three_ways((16, 24, 15, 15), "none", dtype=dtype, mean=mean)
    for name in ("y", "x", "running_variance"):
        assert error(found[name], exact[name]) <= max(5e-5, 1.1 * error(native[name], exact[name])), name
    if dtype == torch.float32:
        assert error(found["y"], exact["y"]) <= 5e-5


@pytest.mark.parametrize("groups", [2, 3])
def test_ghost_groups_are_batch_norms_of_every_nth_image(groups):
    found, exact, _ = three_ways((6, 24, 5, 7), "celu", groups=groups)
    for name, wrong in errors(found, exact).items():
        assert wrong < 2e-6, name


def test_more_tiles_than_programs(monkeypatch):
    """Three programs share the tiles, and the last gets fewer."""
    monkeypatch.setattr("speedyresnet.kernels.batch_norm._PROGRAMS", 3)
    found, exact, _ = three_ways((7, 64, 19, 21), mean=3.0)  # 10 tiles of statistics, 5 of sums
    for name, wrong in errors(found, exact).items():
        assert wrong < 2e-6, name


def pooled_by_both(x):
    """Result and x's gradient by the kernels and by PyTorch, whose places of the maxima decide ties."""
    weight, bias = vectors(x.shape[1])
    running = torch.zeros_like(bias), torch.ones_like(bias)
    made = []
    for function in (
        lambda x: pool_batch_norm_act(x, weight, bias, *running, epsilon=EPSILON),
        lambda x: F.batch_norm(F.max_pool2d(x, 2), None, None, weight, bias, True, eps=EPSILON),
    ):
        own = x.detach().clone(memory_format=torch.channels_last).requires_grad_()
        y = function(own)
        slope = torch.arange(y.numel(), device=DEVICE).reshape(y.shape) % 7 - 3.0
        made += [y, *torch.autograd.grad(y, own, slope)]
    return made


def test_ties_nan_and_infinity_are_as_pytorchs():
    x = channels_last(3, 8, 6, 5).detach()
    x[:, 1] = 5.0  # constant: the first of equals gets the gradient
    x[:, 2] = x[:, 2].round()
    x[0, 3, 0, 0] = torch.nan
    x[1, 4, 3, 2] = torch.nan
    x[1, 5, 1, 1] = torch.inf
    x[:, 6, 2:4, 2:4] = -torch.inf
    x[2, 7, 5, 4] = torch.nan  # in the odd column, which nobody sees
    y, gradient, expected, expected_gradient = pooled_by_both(x)
    torch.testing.assert_close(y, expected, equal_nan=True, rtol=1e-5, atol=5e-5)  # PyTorch is off in channel 1
    assert not y[:, 7].isnan().any()
    for channel in (0, 1, 2, 7):
        torch.testing.assert_close(gradient[:, channel], expected_gradient[:, channel], rtol=1e-4, atol=1e-4)
    assert (gradient[:, :, :, 4] == 0).all()


def test_what_wants_no_gradient_gets_none():
    x, (weight, bias) = channels_last(2, 8, 4, 4), vectors(8)
    weight.requires_grad_(False)
    y = pool_batch_norm_act(x, weight, bias, torch.zeros_like(bias), torch.ones_like(bias), activation="gelu")
    y.sum().backward()
    assert weight.grad is None
    assert x.grad is not None
    assert bias.grad is not None


def test_the_input_is_not_kept():
    """What the backward pass holds is the pooled values in their own dtype and a byte each for the places."""
    x, (weight, bias) = channels_last(4, 16, 8, 8, dtype=torch.float16), vectors(16)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        pool_batch_norm_act(x, weight, bias, torch.zeros_like(bias), torch.ones_like(bias), activation="gelu")
    large = [each for each in kept if each.dim() == 4]
    assert sum(each.numel() * each.element_size() for each in large) == 3 * x.numel() // 4


def test_the_reference_has_the_gradients_of_its_function():
    """gradcheck of the formulas that the kernels use, in float64."""
    x = channels_last(4, 3, 5, 4, dtype=torch.float64)
    weight, bias = (each.detach().double().requires_grad_() for each in vectors(3))

    def forward(x, weight, bias):
        running = x.new_zeros(3), x.new_ones(3)
        return pool_batch_norm_act_reference(x, weight, bias, *running, "gelu", 0.1, 1e-5, 2)

    assert torch.autograd.gradcheck(lambda *inputs: forward(*inputs)[0], (x, weight, bias))
    y, pooled, winners, mean, inverse = forward(x, weight, bias)
    gradient = torch.randn_like(y)
    expected = torch.autograd.grad(y, (x, weight, bias), gradient)
    tensors = (each.detach() for each in (gradient, pooled, winners, weight, bias, mean, inverse))
    found = pool_batch_norm_act_backward_reference(*tensors, 5, 4, "gelu", 2)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_operators_pass_pytorchs_checks():
    x, (weight, bias) = channels_last(2, 8, 5, 6).detach(), vectors(8)
    weight, bias = weight.detach(), bias.detach()
    running = torch.zeros(8, device=DEVICE), torch.ones(8, device=DEVICE)
    arguments = x, weight, bias, *running, "gelu", 0.1, 1e-5, 2
    library.opcheck(torch.ops.speedyresnet.pool_batch_norm_act.default, arguments)
    y, pooled, winners, mean, inverse = torch.ops.speedyresnet.pool_batch_norm_act(*arguments)
    backward = y, pooled, winners, weight, bias, mean, inverse, 5, 6, "gelu", 2
    library.opcheck(torch.ops.speedyresnet.pool_batch_norm_act_backward.default, backward)


def test_a_graph_with_the_function_gives_the_same():
    weight, bias = vectors(8)

    def loss_and_gradients(x, running_mean, running_variance):
        y = pool_batch_norm_act(x * 2, weight, bias, running_mean, running_variance, activation="silu")
        return torch.autograd.grad((y * y).sum(), [x, weight, bias])

    torch._dynamo.config.trace_autograd_ops = True
    compiled = torch.compile(loss_and_gradients, fullgraph=True, backend="aot_eager")
    x = channels_last(2, 8, 4, 5)
    statistics = [(torch.zeros(8, device=DEVICE), torch.ones(8, device=DEVICE)) for _ in range(2)]
    found, expected = compiled(x, *statistics[0]), loss_and_gradients(x, *statistics[1])
    for one, other in zip([*found, *statistics[0]], [*expected, *statistics[1]], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": lambda x: x.contiguous()}, "channels_last"),
        ({"x": lambda x: x.double()}, "float16, bfloat16 or float32"),
        ({"x": lambda x: x[:, :, :1].contiguous(memory_format=torch.channels_last)}, "at least 2 x 2 pixels"),
        ({"weight": lambda w: w.half()}, r"weight has to be float32 \[8\]"),
        ({"running_mean": lambda m: m.to("meta")}, "running_mean has to be"),
        ({"activation": lambda _: "tanh"}, "choose none, gelu"),
        ({"groups": lambda _: 3}, "3 equal groups"),
        ({"groups": lambda _: 2}, "more than one value per channel"),
        ({"momentum": lambda _: 2.0}, "momentum 2.0"),
    ],
)
def test_what_it_does_not_take_is_refused(change, message):
    weight, bias = vectors(8)
    arguments = {
        "x": channels_last(2, 8, 3, 3).detach(), "weight": weight, "bias": bias,
        "running_mean": torch.zeros(8, device=DEVICE), "running_variance": torch.ones(8, device=DEVICE),
        "activation": "gelu", "groups": 1, "momentum": 0.1,
    }  # fmt: skip
    ((name, function),) = change.items()
    with pytest.raises(ValueError, match=message):
        pool_batch_norm_act(**(arguments | {name: function(arguments[name])}))


def test_the_module_pools_in_training_and_evaluation():
    ours, plain = (
        PoolBatchNormAct2d(8, "silu", momentum=0.2).to(DEVICE),
        torch.nn.BatchNorm2d(8, momentum=0.2).to(DEVICE),
    )
    x = channels_last(3, 8, 5, 4).detach()
    torch.testing.assert_close(ours(x), F.silu(plain(F.max_pool2d(x, 2))), rtol=1e-5, atol=1e-5)
    ours.eval(), plain.eval()
    torch.testing.assert_close(ours(x), F.silu(plain(F.max_pool2d(x, 2))), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_offsets_beyond_2_to_the_31():
    x = torch.zeros(2100, 64, 128, 128, dtype=torch.float16, device="cuda").to(memory_format=torch.channels_last)
    assert x.numel() > 2**31
    x[-1].normal_()
    x.requires_grad_()
    weight, bias = torch.ones(64, device="cuda"), torch.zeros(64, device="cuda")
    found = pool_batch_norm_act(x, weight, bias, torch.zeros_like(bias), torch.ones_like(bias))
    pooled = F.max_pool2d(x.detach(), 2).float()
    variance, mean = torch.var_mean(pooled, (0, 2, 3), correction=0)
    assert error(found[-1:], F.batch_norm(pooled[-1:], mean, variance, weight, bias)) < 2e-3
    found[-1].square().sum().backward()
    assert x.grad[-1].abs().sum() > 0


@pytest.mark.gpu
@pytest.mark.parametrize("operation", shipped(KERNEL), ids=str)
def test_every_shipped_shape(operation):
    found, exact, _ = three_ways(operation.shape, operation["activation"], operation["groups"], dtype=torch.float16)
    assert_rounded(found, exact)


@pytest.mark.exhaustive
def test_shipped_shapes_with_few_images():
    by_groups = {each["groups"]: each for each in shipped(KERNEL)}
    assert set(by_groups) == {1, 16}
    for groups, operation in by_groups.items():
        shape = 2 * groups, operation.shape[1], 5, 4
        found, exact, _ = three_ways(shape, operation["activation"], groups, dtype=torch.float16)
        assert_rounded(found, exact)


MUTATIONS = {
    "kernels/pool_batch_norm.py": [
        ("(DOWN * ACROSS) * S.groups + tl.program_id(2)", "(DOWN * ACROSS) + tl.program_id(2)"),
        ("inside // ACROSS, inside % ACROSS", "inside // DOWN, inside % DOWN"),
        ("pixel = (index // 2) * WIDTH + index % 2\n        value", "pixel = (index % 2) * WIDTH + index // 2\n        value"),
        ("(value > largest) | (value != value)", "value > largest"),
        ("(value > largest) | (value != value)", "(value >= largest) | (value != value)"),
        ("tl.static_range(1, 4)", "tl.static_range(1, 3)"),
        ("first = tl.program_id(2).to(tl.int64) * (HEIGHT * WIDTH * S.channels) + channels", "first = channels"),
        ("tl.store(pooled_ptr + places, largest.to(pooled_ptr.dtype.element_ty), mask=mask)",
         "tl.store(pooled_ptr + places, largest.to(pooled_ptr.dtype.element_ty), mask=mask & (places > 0))"),
        ("tile = tl.program_id(0) * TILES_EACH + index", "tile = tl.program_id(0) + index"),
        ("_windows_device(tl.program_id(0), (HEIGHT + 1) // 2, (WIDTH + 1) // 2, S)",
         "_windows_device(tl.program_id(0), HEIGHT // 2, WIDTH // 2, S)"),
        ("whole = in_group & (row < HEIGHT // 2) & (column < WIDTH // 2)", "whole = in_group"),
        ("inside = in_group & (2 * row + index // 2 < HEIGHT)", "inside = in_group & (2 * row < HEIGHT)"),
        ("(2 * column + index % 2 < WIDTH)", "(2 * column < WIDTH)"),
        ("tl.where(winner == index, dp, 0.0)", "tl.where(winner >= index, dp, 0.0)"),
        ("ctx.settings = x.shape[2], x.shape[3], activation", "ctx.settings = x.shape[3], x.shape[2], activation"),
    ],
}  # fmt: skip
"""Lines of kernels, each with a mistake in its place that these tests have to catch: `python tests/mutations.py`."""
