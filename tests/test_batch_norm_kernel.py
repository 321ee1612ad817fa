"""The batch-norm kernels against float64: in Triton's interpreter without a GPU, on the GPU with one."""

import json
import re
from threading import get_ident

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
    process,
    results,
    shipped,
    vectors,
)
from tiers import parametrize
from torch import library

from speedyresnet.kernels.activations import ACTIVATIONS, activated_device, activation_slope_device
from speedyresnet.kernels.batch_norm import (
    KERNEL,
    BatchNormAct2d,
    arrivals_like,
    batch_norm_act,
    batch_norm_act_reference,
    batch_norm_act_triton,
    with_activation,
)
from speedyresnet.kernels.language import tl, triton


def three_ways(shape, activation="gelu", place="none", groups=1, dtype=torch.float32, mean=0.0):
    """By the kernels, in float64, and by PyTorch's own operators in the same dtype."""
    x, (weight, bias) = channels_last(*shape, dtype=dtype, mean=mean), vectors(shape[1])
    residual = None if place == "none" else channels_last(*shape, dtype=dtype, seed=2)
    gradient = channels_last(*shape, dtype=dtype, seed=3).detach()

    def kernels(x, weight, bias, running_mean, running_variance, residual=None):
        with poisoned_memory():
            return batch_norm_act(
                x, weight, bias, running_mean, running_variance, activation=activation, residual=residual,
                residual_place=place, momentum=0.3, epsilon=EPSILON, groups=groups,
            )  # fmt: skip

    def exact(x, weight, bias, running_mean, running_variance, residual=None):
        arguments = x, weight, bias, running_mean, running_variance, residual
        return batch_norm_act_reference(*arguments, activation, place, 0.3, EPSILON, groups)[0]

    def native(x, weight, bias, running_mean, running_variance, residual=None):
        u = F.batch_norm(x, running_mean, running_variance, weight, bias, True, 0.3, EPSILON)
        return with_activation(u, residual, activation, place)

    wide = [None if each is None else each.detach().double().requires_grad_() for each in (x, weight, bias, residual)]
    return (
        results(kernels, gradient, x, weight, bias, residual),
        results(exact, gradient, *wide),
        results(native, gradient, x, weight, bias, residual) if groups == 1 else None,
    )


@pytest.mark.parametrize("activation", ["none", *ACTIVATIONS])
@pytest.mark.parametrize("place", ["none", "before_activation", "after_activation"])
def test_every_activation_and_residual(activation, place):
    found, exact, _ = three_ways((4, 24, 9, 5), activation, place)
    for name, wrong in errors(found, exact).items():
        assert wrong < 2e-6, name


@triton.jit
def activation_kernel(x_ptr, y_ptr, slope_ptr, KIND: tl.constexpr, COUNT: tl.constexpr):
    """An activation and its slope at COUNT places."""
    places = tl.arange(0, COUNT)
    x = tl.load(x_ptr + places)
    tl.store(y_ptr + places, activated_device(x, KIND, 0.3))
    tl.store(slope_ptr + places, activation_slope_device(x, KIND, 0.3))


def test_gelu_and_its_slope_are_as_exact_as_float32_everywhere():
    x = torch.linspace(-16, 16, 8192)
    x[:4] = torch.tensor([-1e30, 1e30, torch.inf, torch.nan])
    y, slope, x = torch.empty_like(x, device=DEVICE), torch.empty_like(x, device=DEVICE), x.to(DEVICE)
    activation_kernel[(1,)](x, y, slope, KIND="gelu", COUNT=8192)
    exact = x.double().requires_grad_()
    expected = F.gelu(exact)
    (expected_slope,) = torch.autograd.grad(expected.sum(), exact)
    finite = slice(4, None)
    error_of_size = (y.double() - expected)[finite].abs() / expected[finite].abs().clamp_min(1)
    assert float(error_of_size.max()) < 2e-7
    assert float((slope.double() - expected_slope)[finite].abs().max()) < 3e-7
    assert y[:3].tolist() == [0.0, pytest.approx(1e30), torch.inf]
    assert y[3].isnan()


@parametrize(
    "shape",
    [
        (3, 1, 2, 2), (2, 3, 31, 31), (5, 24, 7, 7), (3, 64, 15, 15), (2, 67, 9, 11), (2, 512, 3, 3), (1, 8, 1, 5),
        (1, 200, 40, 3),
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
@pytest.mark.parametrize("place", ["none", "before_activation"])
def test_ghost_groups_are_batch_norms_of_every_nth_image(groups, place):
    found, exact, _ = three_ways((6, 24, 5, 7), "celu", place, groups=groups)
    for name, wrong in errors(found, exact).items():
        assert wrong < 2e-6, name
    x, (weight, bias) = channels_last(6, 24, 5, 7), vectors(24)
    alone = F.celu(F.batch_norm(x[1::groups], None, None, weight, bias, True), alpha=0.3)
    if place == "none":
        torch.testing.assert_close(found["y"][1::groups], alone, rtol=1e-5, atol=1e-5)


def test_more_tiles_than_programs(monkeypatch):
    """Two programs share the tiles, and the last gets fewer."""
    monkeypatch.setattr("speedyresnet.kernels.batch_norm._PROGRAMS", 2)
    found, exact, _ = three_ways((7, 64, 9, 10), mean=3.0)  # 3 tiles of statistics, 5 of sums
    for name, wrong in errors(found, exact).items():
        assert wrong < 2e-6, name


@pytest.mark.parametrize("groups", [1, 2])
def test_the_last_program_combines_and_the_next_launch_begins_anew(groups, monkeypatch):
    """Several programs of several blocks of channels; the same bits each time, and counters that are 0 again."""
    arrivals = {}
    monkeypatch.setattr("speedyresnet.kernels.batch_norm._ARRIVALS", arrivals)
    shape = (6, 72, 12, 11)  # 4 or 2 programs a group, the last with few rows
    found, exact, _ = three_ways(shape, "silu", "before_activation", groups, mean=2.0)
    for name, wrong in errors(found, exact).items():
        assert wrong < 2e-6, name
    again, _, _ = three_ways(shape, "silu", "before_activation", groups, mean=2.0)
    assert all(torch.equal(again[name], value) for name, value in found.items())
    assert arrivals
    assert not any(counter.any() for counter in arrivals.values())


def test_counters_are_allocated_by_another_thread_and_once_a_size(monkeypatch):
    """Else the memory of graphs that torch.compile warms up in this thread would hold them, which it forbids."""
    allocate, threads = torch.zeros, []
    monkeypatch.setattr("speedyresnet.kernels.batch_norm._ARRIVALS", {})
    monkeypatch.setattr(torch, "zeros", lambda *sizes, **kind: threads.append(get_ident()) or allocate(*sizes, **kind))
    x = channels_last(2, 8, 3, 3)
    first = arrivals_like(x, 3)
    assert first.tolist() == [0, 0, 0, 0]
    assert arrivals_like(x, 4) is first
    assert arrivals_like(x, 5).tolist() == [0] * 8
    assert len(threads) == 2
    assert get_ident() not in threads


REDUCTIONS_IN_PTX = """
import json
from speedyresnet.engine.operations import shipped_operations
from speedyresnet.kernels.resources import code, compile_cases
cases = {case.kernel: case for case in compile_cases(shipped_operations()) if case.streams}
print(json.dumps({name: code(case, "ptx") for name, case in cases.items()}))
"""


@pytest.mark.exhaustive
def test_partial_results_are_stored_before_the_counter_and_read_after_it():
    """What the interpreter cannot show: it runs programs one after the other, and so their accesses are in order."""
    done = process("-c", REDUCTIONS_IN_PTX)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # Running statistics are read as well, which no other program writes.
    own_reads = {"statistics_kernel": 2, "pool_statistics_kernel": 2, "gradient_sums_kernel": 0}
    assert set(found) == set(own_reads)
    for name, ptx in found.items():
        (counting,) = re.findall(r"\b(?:atom|red)\.\S+", ptx)
        assert counting == "atom.global.gpu.acq_rel.add.u32", name
        before, _, after = ptx.partition(counting)
        assert "bar.sync" in before.rpartition("st.global")[2], name  # all threads of the program have stored
        assert "bar.sync" in after.partition("ld.global")[0], name  # and all wait for what the counter says
        loads = re.findall(r"\bld\.global\S*", after)
        past_the_first_cache = [each for each in loads if each.startswith("ld.global.cg.")]
        assert len(past_the_first_cache) >= 2, name
        assert len(loads) - len(past_the_first_cache) == own_reads[name], name


@pytest.mark.gpu
def test_reductions_inside_of_the_graphs_of_torch_compile(monkeypatch):
    """Where the first launch of all is the one that warms them up."""
    monkeypatch.setattr("speedyresnet.kernels.batch_norm._ARRIVALS", {})
    norm, x = BatchNormAct2d(256).to(DEVICE), channels_last(64, 256, 15, 15, dtype=torch.float16)
    compiled = torch.compile(norm, mode="reduce-overhead", fullgraph=True)
    expected = norm(x)
    expected.float().square().sum().backward()
    expected_gradient, x.grad = x.grad, None
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        y = compiled(x)
        y.float().square().sum().backward()
        assert torch.equal(y, expected)
        assert torch.equal(x.grad, expected_gradient)
        x.grad = None


@pytest.mark.gpu
@pytest.mark.parametrize("warmed_up", [True, False])
def test_every_replay_of_a_graph_combines_anew(warmed_up):
    """With the counters of the stream that is captured, and where there are none yet."""
    x, (weight, bias) = channels_last(256, 256, 15, 15, dtype=torch.float16).detach(), vectors(256)

    def launched():
        running = torch.zeros(256, device=DEVICE), torch.ones(256, device=DEVICE)
        return batch_norm_act_triton(x, weight, bias, *running, None, "gelu", "none", 0.1, EPSILON, 1)

    expected, stream, graph = launched(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    if warmed_up:
        with torch.cuda.stream(stream):
            launched()
    with torch.cuda.graph(graph, stream=stream):
        found = launched()
    for _ in range(20):
        for each in found:
            each.fill_(torch.nan)
        graph.replay()
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_constant_channels_nan_and_infinity_are_as_pytorchs():
    x, (weight, bias) = channels_last(3, 8, 4, 4).detach(), vectors(8)
    x[:, 1] = 5.0
    x[0, 2, 0, 0] = torch.nan
    x[0, 3, 1, 1] = torch.inf
    statistics = torch.zeros(8, device=DEVICE), torch.ones(8, device=DEVICE)
    with poisoned_memory():
        found = batch_norm_act(x, weight, bias, *statistics, activation="relu", epsilon=EPSILON)
    expected = F.relu(F.batch_norm(x, None, None, weight, bias, True, eps=EPSILON))
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-5, atol=1e-5)
    assert statistics[0][2].isnan()
    assert not statistics[0][[0, 1, 4]].isnan().any()


def test_what_wants_no_gradient_gets_none():
    x, (weight, bias) = channels_last(2, 8, 4, 4), vectors(8)
    weight.requires_grad_(False)
    y = batch_norm_act(x, weight, bias, torch.zeros_like(bias), torch.ones_like(bias), activation="gelu")
    y.sum().backward()
    assert weight.grad is None
    assert x.grad is not None
    assert bias.grad is not None


def test_the_reference_has_the_gradients_of_its_function():
    """gradcheck of the formulas that the kernels use, in float64."""
    for activation, place in (("gelu", "before_activation"), ("celu", "none"), ("silu", "after_activation")):
        x = channels_last(4, 3, 2, 3, dtype=torch.float64)
        weight, bias = (each.detach().double().requires_grad_() for each in vectors(3))
        residual = None if place == "none" else channels_last(4, 3, 2, 3, dtype=torch.float64, seed=5)
        inputs = [x, weight, bias] + ([] if residual is None else [residual])

        def forward(x, weight, bias, *residual, activation=activation, place=place):
            running = x.new_zeros(3), x.new_ones(3)
            given = residual[0] if residual else None
            return batch_norm_act_reference(x, weight, bias, *running, given, activation, place, 0.1, 1e-5, 2)[0]

        assert torch.autograd.gradcheck(forward, inputs)
        y = forward(*inputs)
        gradient = torch.randn_like(y)
        expected = torch.autograd.grad(y, inputs, gradient)
        variance, mean = torch.var_mean(x.detach().reshape(-1, 2, 3, 2, 3), dim=(0, 3, 4), correction=0)
        from speedyresnet.kernels.batch_norm import batch_norm_act_backward_reference

        found = batch_norm_act_backward_reference(
            gradient, x.detach(), weight.detach(), bias.detach(), None if residual is None else residual.detach(),
            mean, (variance + 1e-5).rsqrt(), activation, place, 2,
        )  # fmt: skip
        for one, other in zip(found[:3], expected[:3], strict=True):
            torch.testing.assert_close(one, other)
        if place == "before_activation":
            torch.testing.assert_close(found[3], expected[3])


def test_the_operators_pass_pytorchs_checks():
    x, (weight, bias) = channels_last(2, 8, 4, 3).detach(), vectors(8)
    weight, bias = weight.detach(), bias.detach()
    residual = channels_last(2, 8, 4, 3, seed=4).detach()
    for given, place in ((None, "none"), (residual, "before_activation")):
        running = torch.zeros(8, device=DEVICE), torch.ones(8, device=DEVICE)
        arguments = x, weight, bias, *running, given, "gelu", place, 0.1, 1e-5, 2
        library.opcheck(torch.ops.speedyresnet.batch_norm_act.default, arguments)
        _, mean, inverse = torch.ops.speedyresnet.batch_norm_act(*arguments)
        backward = x, x, weight, bias, given, mean, inverse, "gelu", place, 2
        library.opcheck(torch.ops.speedyresnet.batch_norm_act_backward.default, backward)


def test_a_graph_with_the_function_gives_the_same():
    weight, bias = vectors(8)

    def loss_and_gradients(x, running_mean, running_variance):
        y = batch_norm_act(x * 2, weight, bias, running_mean, running_variance, activation="silu")
        return torch.autograd.grad((y * y).sum(), [x, weight, bias])

    torch._dynamo.config.trace_autograd_ops = True
    compiled = torch.compile(loss_and_gradients, fullgraph=True, backend="aot_eager")
    x = channels_last(2, 8, 4, 3)
    statistics = [(torch.zeros(8, device=DEVICE), torch.ones(8, device=DEVICE)) for _ in range(2)]
    found, expected = compiled(x, *statistics[0]), loss_and_gradients(x, *statistics[1])
    for one, other in zip([*found, *statistics[0]], [*expected, *statistics[1]], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": lambda x: x.contiguous()}, "channels_last"),
        ({"x": lambda x: x.double()}, "float16, bfloat16 or float32"),
        ({"x": lambda x: x[0]}, r"\[N, C, H, W\]"),
        ({"x": lambda x: x[:0]}, "empty"),
        ({"weight": lambda w: w.half()}, r"weight has to be float32 \[8\]"),
        ({"bias": lambda b: b[:3]}, r"bias has to be"),
        ({"running_mean": lambda m: m.to("meta")}, "running_mean has to be"),
        ({"residual": lambda r: r.half()}, "residual has to be"),
        ({"residual": lambda r: r[:1]}, "residual has to be"),
        ({"residual": lambda r: r.contiguous()}, "residual has to be in channels_last"),
        ({"residual": lambda _: None}, "no residual"),
        ({"residual_place": lambda _: "none"}, "a residual"),
        ({"activation": lambda _: "tanh"}, "choose none, gelu"),
        ({"groups": lambda _: 3}, "3 equal groups"),
        ({"groups": lambda _: 0}, "groups 0"),
        ({"residual_place": lambda _: "after"}, "choose none, before_activation, after_activation"),
        ({"momentum": lambda _: None}, "momentum None"),
        ({"momentum": lambda _: -0.1}, "momentum -0.1"),
        ({"epsilon": lambda _: -1.0}, "epsilon -1.0"),
        ({"x": lambda x: x[:1, :, :1, :1], "residual": lambda r: r[:1, :, :1, :1]}, "more than one value per channel"),
    ],
)
def test_what_it_does_not_take_is_refused(change, message):
    weight, bias = vectors(8)
    arguments = {
        "x": channels_last(2, 8, 4, 3).detach(), "weight": weight, "bias": bias,
        "running_mean": torch.zeros(8, device=DEVICE), "running_variance": torch.ones(8, device=DEVICE),
        "activation": "gelu", "residual": channels_last(2, 8, 4, 3).detach(), "residual_place": "before_activation",
        "groups": 1, "momentum": 0.1, "epsilon": 1e-5,
    }  # fmt: skip
    changed = {name: function(arguments[name]) for name, function in change.items()}
    with pytest.raises(ValueError, match=message):
        batch_norm_act(**(arguments | changed))


def test_the_module_is_batch_norm_and_activation_in_training_and_evaluation():
    ours, plain = BatchNormAct2d(8, "silu", eps=1e-3, momentum=0.2).to(DEVICE), torch.nn.BatchNorm2d(8, 1e-3, 0.2)
    plain = plain.to(DEVICE)
    with torch.no_grad():
        for module in (ours, plain):
            module.weight.copy_(vectors(8)[0])
            module.bias.copy_(vectors(8)[1])
    x, residual = channels_last(3, 8, 5, 4).detach(), channels_last(3, 8, 5, 4, seed=7).detach()
    torch.testing.assert_close(ours(x, residual), F.silu(plain(x) + residual), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours(x), F.silu(plain(x)), rtol=1e-5, atol=1e-5)
    ours.eval(), plain.eval()
    torch.testing.assert_close(ours(x, residual), F.silu(plain(x) + residual), rtol=1e-5, atol=1e-5)
    assert not BatchNormAct2d(8, freeze_weight=True).weight.requires_grad


@pytest.mark.gpu
def test_offsets_beyond_2_to_the_31():
    x = torch.zeros(2100, 64, 128, 128, dtype=torch.float16, device="cuda").to(memory_format=torch.channels_last)
    assert x.numel() > 2**31
    x[-1].normal_()
    weight, bias = torch.ones(64, device="cuda"), torch.zeros(64, device="cuda")
    found = batch_norm_act(x, weight, bias, torch.zeros_like(bias), torch.ones_like(bias))
    expected = F.batch_norm(x[-1:].float(), x.mean((0, 2, 3)).float(), x.float().var((0, 2, 3)), weight, bias)
    assert error(found[-1:], expected) < 2e-3


def check_shipped(shape, activation, groups):
    """In the dtype that recipes launch; with a residual too, which the last norm of a group may have."""
    for place in ("none", "before_activation"):
        found, exact, _ = three_ways(shape, activation, place, groups, dtype=torch.float16)
        assert_rounded(found, exact)


@pytest.mark.gpu
@pytest.mark.parametrize("operation", shipped(KERNEL), ids=str)
def test_every_shipped_shape(operation):
    check_shipped(operation.shape, operation["activation"], operation["groups"])


@pytest.mark.exhaustive
def test_shipped_shapes_with_few_images():
    for operation in shipped(KERNEL)[::15]:
        groups = operation["groups"]
        check_shipped((2 * groups, operation.shape[1], 4, 3), operation["activation"], groups)


MUTATIONS = {
    "kernels/batch_norm.py": [
        ("(rows < ROWS)[:, None]", "(rows >= 0)[:, None]"),
        ("(rows < ROWS)[:, None]", "(rows < ROWS - 1)[:, None]"),
        ("(places // S.pixels * S.groups + tl.program_id(2)) * S.pixels",
         "(places // S.pixels + tl.program_id(2) * (ROWS // S.pixels)) * S.pixels"),
        ("exists = (tl.arange(0, S.depth)[:, None, None] * LANES + lane[None] < left).to(tl.float32)",
         "exists = (tl.arange(0, S.depth)[:, None, None] * LANES + lane[None] >= 0).to(tl.float32)"),
        ("(left - lane + LANES - 1) // LANES", "(left - lane) // LANES"),
        ("squares + own_squares + step * step * (count * share)", "squares + own_squares + step * step * count"),
        ("tl.sum(squares + steps * steps * count, 0)", "tl.sum(squares, 0)"),
        ("cache_modifier=\".cg\").to(tl.float32)", "cache_modifier=\".cg\").to(tl.float32) * 0.0"),
        ("mask = (program < tl.num_programs(0))[:, None]", "mask = (program < tl.num_programs(0) - 1)[:, None]"),
        ("counts = tl.minimum(ROWS - tl.arange(0, PROGRAMS) * rows_each, rows_each)",
         "counts = tl.minimum(ROWS, rows_each) + 0 * tl.arange(0, PROGRAMS)"),
        ("tl.store(arrivals, 0)", "tl.store(arrivals, 1)"),
        ("sem=\"acq_rel\"", "sem=\"relaxed\""),
        ("scope=\"gpu\"", "scope=\"cta\""),
        ("return first, tl.load(partial[1] + places, mask=mask, other=0.0, cache_modifier=\".cg\")",
         "return first, tl.load(partial[1] + places, mask=mask, other=0.0)"),
        ("tl.num_programs(0) * tl.num_programs(2) - 1", "tl.num_programs(0) - 1"),
        ("tl.sqrt_rn(squares / ROWS + epsilon)", "tl.sqrt_rn(squares / ROWS) + epsilon"),
        ("batch_variance += squares / tl.maximum(ROWS - 1, 1) / S.groups", "batch_variance += squares / ROWS / S.groups"),
        ("old_mean + momentum * (batch_mean - old_mean)", "batch_mean + momentum * (old_mean - batch_mean)"),
        ("return vectors[2] * (du - bias_mean", "return vectors[1] * (du - bias_mean"),
        ("in_lanes_device(du * centred, S)", "in_lanes_device(du, S)"),
        ("weight_sum *= vectors[1]", "weight_sum *= 1.0"),
        ("du - bias_mean - centred * (vectors[1] * weight_mean)", "du - bias_mean + centred * (vectors[1] * weight_mean)"),
        ("other=0.0).to(tl.float32) - pivot[None, :]", "other=0.0).to(tl.float16).to(tl.float32) - pivot[None, :]"),
        ("(gradient if after else residual_gradient)", "residual_gradient"),
    ],
    "kernels/activations.py": [
        ("x = tl.where(x < 0.0, 0.0, x)", "x = tl.maximum(x, -0.01)"),
        ("ALPHA * (tl.exp(x / ALPHA) - 1.0)", "tl.exp(x) - 1.0"),
        ("slope = tl.where(x <= 0.0, tl.exp(x / ALPHA), 1.0)", "slope = tl.where(x <= 0.0, tl.exp(x), 1.0)"),
        ("+ x * density", "+ density"),
        ("power * size - 0.000136936461", "power * size + 0.000136936461"),
        ("tl.where(x < 0.0, tail, 1.0 - tail)", "tl.where(x < 0.0, tail, 1.0 + tail)"),
        ("gate * (1.0 + x * (1.0 - gate))", "gate"),
        ("(1.0 + 3.0 * 0.044715 * x * x)", "(1.0 + 0.044715 * x * x)"),
    ],
}  # fmt: skip
"""Lines of kernels, each with a mistake in its place that these tests have to catch: `python tests/mutations.py`."""
