import gzip
import json

import pytest
import torch

from speedyresnet.bench.net_parts import parts_of_net
from speedyresnet.bench.profiling import (
    folded_parts,
    middle_half,
    print_profile,
    print_side_by_side,
    profile_paths,
    profile_step,
    read_profile,
    side_by_side,
)
from speedyresnet.bench.roofline import Ceilings
from speedyresnet.bench.trace import StepParts, Work, covered, launches_and_idle_seconds, recorded_trace, step_parts
from speedyresnet.bench.traffic import Operation, Traffic, step_traffic, traffic_of
from speedyresnet.engine import UserError, parts, recipe
from speedyresnet.engine.backends import Variant
from speedyresnet.engine.files import Outputs
from speedyresnet.engine.pack_file import save_pack
from speedyresnet.engine.setup import place_recipe
from speedyresnet.engine.step import REFERENCE_KERNELS, training_step

TINY = ["batch_size=64", "width_multiplier=0.125", "epochs=2", "dtype=float32"]
CPU = torch.device("cpu")
CONVOLUTIONS = [
    "group1.conv1 31x31", "group1.conv2 15x15", "group2.conv1 15x15",
    "group2.conv2 7x7", "group3.conv1 7x7", "group3.conv2 3x3",
]  # fmt: skip


def event(category, name, start, end, *, thread=1, **arguments):
    return {
        "ph": "X", "cat": category, "name": name, "pid": 1, "tid": thread, "ts": start, "dur": end - start,
        "args": arguments,
    }  # fmt: skip


def microseconds(step):
    return {name: round(1e6 * seconds, 6) for name, seconds in step.parts.items()}


def host_step(at):
    """100 us: augment 10, a convolution 5 + 10 + 20, a cast in its backward pass 5, something unnamed 3."""
    return [
        event("user_annotation", "step", at, at + 99),
        event("user_annotation", "part: augment", at, at + 12),
        event("cpu_op", "aten::index", at + 1, at + 11),
        event("user_annotation", "part: conv forward", at + 14, at + 22),
        event("cpu_op", "Convolution", at + 15, at + 20, **{"Sequence number": 7}),
        event("cpu_op", "aten::convolution", at + 16, at + 19),
        event("cpu_op", "autograd::engine::evaluate_function: ConvolutionBackward", at + 30, at + 65,
              **{"Sequence number": 7}),
        event("user_annotation", "part: conv dgrad", at + 30, at + 40),
        event("cpu_op", "aten::convolution_backward", at + 30, at + 40),
        event("user_annotation", "part: conv wgrad", at + 40, at + 60),
        event("cpu_op", "aten::convolution_backward", at + 40, at + 60),
        event("cpu_op", "aten::to", at + 60, at + 65),
        event("cpu_op", "aten::add_", at + 70, at + 73),
    ]  # fmt: skip


def test_on_a_cpu_the_innermost_operation_counts():
    trace = {"traceEvents": [*host_step(1000), *host_step(1100), *host_step(1210)]}
    first, second = step_parts(trace)
    assert microseconds(first) == {
        "augment": 10, "conv forward": 5, "conv dgrad": 10, "conv wgrad": 25, "other": 3, "gaps": 47,
    }  # fmt: skip
    assert first.seconds == pytest.approx(100e-6)
    assert second.seconds == pytest.approx(110e-6)
    assert microseconds(second)["gaps"] == 57
    assert dict(first.calls) == {"augment": 1, "conv forward": 1, "conv dgrad": 1, "conv wgrad": 2, "other": 1}


def device_step(at, number):
    """Issued in 60 us by two threads; runs 10 us later for 30 us of augment, 40 of a forward, 50 of its backward."""
    launch = {"thread": 1, "correlation": number}
    return [
        event("user_annotation", "step", at, at + 60),
        event("user_annotation", "part: augment", at, at + 5),
        event("cpu_op", "aten::index", at + 1, at + 4),
        event("cuda_runtime", "cudaLaunchKernel", at + 2, at + 3, **launch),
        event("user_annotation", "part: pool", at + 6, at + 20),
        event("cpu_op", "aten::max_pool2d", at + 7, at + 15, **{"Sequence number": 3}),
        event("cuda_runtime", "cuLaunchKernelEx", at + 8, at + 9, **(launch | {"correlation": number + 1})),
        event("cpu_op", "autograd::engine::evaluate_function: MaxPoolBackward", at + 30, at + 50, thread=2,
              **{"Sequence number": 3}),
        event("cpu_op", "aten::max_pool2d_backward", at + 31, at + 49, thread=2),
        event("cuda_runtime", "cudaMemsetAsync", at + 32, at + 33, thread=2, correlation=number + 2),
        event("cuda_runtime", "cudaLaunchKernel", at + 34, at + 35, thread=2, correlation=number + 3),
        event("kernel", "gather", at + 12, at + 42, thread=77, correlation=number),
        event("kernel", "pool", at + 45, at + 85, thread=77, correlation=number + 1),
        event("gpu_memset", "Memset", at + 85, at + 90, thread=77, correlation=number + 2),
        event("kernel", "pool_backward", at + 90, at + 135, thread=77, correlation=number + 3),
    ]  # fmt: skip


def test_on_a_gpu_kernels_belong_to_the_part_that_launched_them():
    trace = {"traceEvents": [*device_step(1000, 10), *device_step(1140, 20), *device_step(1280, 30)]}
    first, _ = step_parts(trace)
    assert microseconds(first) == {"augment": 30, "pool": 90, "gaps": 20}
    assert first.seconds == pytest.approx(140e-6)
    assert dict(first.calls) == {"augment": 1, "pool": 3}


def test_calls_and_kernels_without_a_correlation_are_nobodys():
    nobodys = [event("cuda_runtime", "cudaDeviceSynchronize", 1001, 1002), event("kernel", "?", 1050, 1051)]
    del nobodys[0]["args"]
    both = [*device_step(1000, 10), *nobodys, *device_step(1140, 20)]
    assert step_parts({"traceEvents": both}) == step_parts(
        {"traceEvents": [*device_step(1000, 10), *device_step(1140, 20)]}
    )


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_a_profiler_that_sees_no_kernel_is_no_profile():
    """What a GPU is without CUPTI: the profiler only has the host's side."""
    with pytest.raises(UserError, match="saw no kernel"):
        recorded_trace(lambda: torch.ones(3) + 1, torch.device("cuda"))


def test_launches_and_idle_time_of_a_trace():
    launches, idle = launches_and_idle_seconds({"traceEvents": [*device_step(1000, 10), *device_step(1200, 20)]})
    assert launches == 6  # two cudaLaunchKernel and one cuLaunchKernelEx each; a memset is no launch
    assert idle == pytest.approx((3 + 77 + 3) * 1e-6)


@pytest.mark.parametrize(
    ("work", "expected", "gaps"),
    [
        ([], {}, 10),
        ([(2, 5, "a")], {"a": 3}, 7),
        ([(0, 10, "a"), (2, 5, "b"), (3, 4, "c")], {"a": 7, "b": 2, "c": 1}, 0),
        ([(0, 3, "a"), (2, 6, "b")], {"a": 2, "b": 4}, 4),
        ([(-5, 3, "a"), (8, 20, "b")], {"a": 3, "b": 2}, 5),
        ([(0, 9, "a"), (1, 2, "b"), (4, 5, "b")], {"a": 7, "b": 2}, 1),
    ],
)
def test_no_moment_counts_twice(work, expected, gaps):
    found, uncovered = covered([Work(*each) for each in work], 0, 10)
    assert {name: round(1e6 * seconds, 6) for name, seconds in found.items()} == expected
    assert uncovered == pytest.approx(gaps * 1e-6)


def test_means_are_over_the_middle_half():
    steps = [StepParts(float(seconds), {}, {}) for seconds in (9, 1, 5, 4, 3, 100, 2, 6)]
    assert [each.seconds for each in middle_half(steps)] == [3, 4, 5, 6]
    assert len(middle_half(steps[:1])) == 1


def test_shares_and_floors_of_a_part():
    ceilings = Ceilings(copies=((1000, 100.0),), rates={"float32": 10.0})
    traffic = {"pool": Traffic([Operation("a", 100, 0, "float32"), Operation("b", 300, 50, "float32")])}
    steps = [StepParts(10.0, {"pool": 8.0, "gaps": 2.0}, {"pool": 3}), StepParts(20.0, {"pool": 12.0, "gaps": 8.0}, {})]
    pool, other, gaps = folded_parts(steps, traffic, ceilings)
    assert (pool.name, pool.seconds, pool.share, pool.calls) == ("pool", 10.0, pytest.approx(2 / 3), 1.5)
    assert (pool.bytes, pool.flops, pool.floor_seconds) == (400, 50, 1.0 + 5.0)
    assert (pool.bandwidth_share, pool.rate_share) == (0.4, 0.5)
    assert (gaps.name, gaps.seconds, other.name, other.seconds) == ("gaps", 5.0, "other", 0.0)


def test_traffic_is_what_operations_read_and_write():
    x = torch.empty(4, 3, 8, 8, device="meta")
    weight = torch.empty(5, 3, 3, 3, device="meta")
    table, index = torch.empty(1000, 6, device="meta"), torch.empty(10, dtype=torch.int64, device="meta")

    def counted(function):
        (operation,) = traffic_of(function).operations
        return operation.bytes, operation.flops

    image, filters, result = 4 * 3 * 64 * 4, 5 * 27 * 4, 4 * 5 * 64 * 4
    flops = round(2 * 4 * 5 * 3 * 9 * 64 * (22 / 24) ** 2)  # of 24 taps along a side 22 meet a pixel
    assert counted(lambda: torch.conv2d(x, weight, padding=1)) == (image + filters + result, flops)
    assert counted(lambda: torch.conv2d(x, weight, stride=2))[1] == 2 * 4 * 5 * 27 * 9
    assert counted(lambda: table.index_select(0, index)) == (2 * 10 * 6 * 4 + 80, 0)
    assert counted(lambda: table[index]) == (2 * 10 * 6 * 4 + 80, 0)
    assert counted(lambda: table.add_(1)) == (2 * 1000 * 6 * 4, 0)
    assert counted(lambda: table + 1) == (2 * 1000 * 6 * 4, 0)
    assert counted(lambda: torch._foreach_mul_([table, x], 2.0)) == (2 * (1000 * 6 * 4 + image), 0)
    row = torch.empty(1, 6, device="meta")
    assert counted(lambda: row.expand(50, 6).exp()) == (50 * 6 * 4 + 6 * 4, 0)
    assert traffic_of(lambda: table.view(6, 1000).t()).operations == []


@pytest.mark.parametrize(("crop", "read", "written"), [(0, 32, 32), (20, 20, 20), (36, 32, 36)])
def test_the_augmentation_kernel_reads_the_windows_and_writes_them(small_pack, crop, read, written):
    made = recipe("airbench94", [*TINY, f"augmentation.crop={crop}"])
    kernels = REFERENCE_KERNELS | {"augment": "triton"}
    variant = Variant(whitening_bias=True, cutmix=False)
    (operation,) = step_traffic(made, small_pack, torch.float32, variant, kernels)["augment"].operations
    assert operation.bytes == 64 * 3 * (read**2 + 4 * written**2) + 64 * 8


def test_gradients_of_a_convolution_read_only_what_they_need():
    x, weight = torch.empty(4, 3, 8, 8, device="meta"), torch.empty(5, 3, 3, 3, device="meta")
    gradient = torch.empty(4, 5, 8, 8, device="meta")
    image, filters, result = 4 * 3 * 64 * 4, 5 * 27 * 4, 4 * 5 * 64 * 4
    for mask in ([True, False, False], [False, True, False]):
        options = [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask
        (found,) = traffic_of(
            lambda o=options: torch.ops.aten.convolution_backward(gradient, x, weight, None, *o)
        ).operations
        assert found.bytes == result + image + filters  # what is not read has the size of what is written
        assert found.flops == round(2 * 4 * 5 * 27 * 64 * (22 / 24) ** 2)


def test_the_parts_of_a_step_hold_all_its_operations(small_pack):
    made = recipe("airbench94", TINY)
    traffic = step_traffic(made, small_pack, torch.float32, Variant(whitening_bias=True, cutmix=False))
    passes = {f"{name} {kind}" for name in CONVOLUTIONS for kind in ("forward", "dgrad", "wgrad")}
    rest = {"augment", "stem", "pool", "norm+activation", "head+loss", "optimizer", "averaging", "other"}
    assert set(traffic) == passes | rest
    assert {each.name for each in traffic["other"].operations} <= {"ones_like.default", "add_.Tensor"}
    names = {part: {each.name.partition(".")[0] for each in found.operations} for part, found in traffic.items()}
    assert {"max_pool2d_with_indices", "max_pool2d_with_indices_backward"} <= names["pool"]
    assert {"gelu", "gelu_backward", "native_batch_norm_backward"} <= names["norm+activation"]
    assert "convolution_backward" in names["stem"]  # the whitening bias
    assert "mm" in names["head+loss"]
    assert "_foreach_sub_" in names["optimizer"]
    assert {each.split(".")[0] for each in names["averaging"]} >= {"_foreach_mul_", "index_select"}
    for name in CONVOLUTIONS:
        assert traffic[f"{name} forward"].flops == traffic[f"{name} dgrad"].flops == traffic[f"{name} wgrad"].flops > 0


@pytest.mark.parametrize("whitening_bias", [True, False])
def test_splitting_the_convolutions_does_not_change_the_step(make_state, whitening_bias):
    states = [make_state("airbench94"), make_state("airbench94")]
    training_step(states[0], whitening_bias=whitening_bias, cutmix=False)
    with parts_of_net(states[1].net, whitening_bias=whitening_bias):
        training_step(states[1], whitening_bias=whitening_bias, cutmix=False)
    assert states[1].net.stem.whitening.bias.requires_grad
    assert states[0].loss_log[0] == states[1].loss_log[0]
    for one, other in zip(states[0].net.parameters(), states[1].net.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    for module in states[1].net.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_nobody_listens_after_a_profile():
    entered = []

    class Context:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            entered.append(self.name)

        def __exit__(self, *_):
            pass

    with parts.listening(Context), parts.part("a"):
        pass
    with parts.part("b"):
        pass
    assert entered == ["a"]


@pytest.fixture(scope="module")
def profiled(small_pack):
    return profile_step(place_recipe(recipe("airbench94", [*TINY, "epochs=8"]), CPU, "eager"), small_pack, steps=8)


def test_parts_add_up_to_the_step(profiled):
    result, _ = profiled
    found = {each["name"]: each for each in result["parts"]}
    assert sum(each["seconds"] for each in result["parts"]) == pytest.approx(result["step_seconds"], rel=0.03)
    assert sum(each["share"] for each in result["parts"]) == pytest.approx(1, rel=0.03)
    assert found["other"]["share"] <= 0.05
    assert found["gaps"]["seconds"] > 0
    assert found["gaps"]["floor_seconds"] == 0
    passes = {f"{name} {kind}" for name in CONVOLUTIONS for kind in ("forward", "dgrad", "wgrad")}
    # The whitening bias is frozen for most of a run, so the first convolution needs no input gradient.
    rest = {"augment", "stem", "pool", "norm+activation", "head+loss", "optimizer", "averaging", "other", "gaps"}
    assert set(found) == passes - {"group1.conv1 31x31 dgrad"} | rest
    for name in passes - {"group1.conv1 31x31 dgrad"}:
        assert found[name]["seconds"] > 0
        assert found[name]["flops"] > 0
        assert found[name]["calls"] >= 1
    assert result["steps"] == 4
    assert result["variant"] == {
        "whitening_bias": False,
        "cutmix": False,
        "size": 0,
        "averaging": True,
        "first_group": True,
    }


def test_a_profile_is_printed_and_drawn(profiled, tmp_path, capsys):
    from rich.console import Console

    from speedyresnet.bench.profiling import save_profile

    result, trace = profiled
    print_profile(Console(width=160), result)
    printed = capsys.readouterr().out
    assert "group2.conv1 15x15 wgrad" in printed
    with Outputs() as outputs:
        save_profile(result, trace, tmp_path / "p.json", outputs)
    stored, trace_path, *pictures = profile_paths(tmp_path / "p.json")
    assert json.loads(stored.read_text()) == json.loads(json.dumps(result))
    assert len(step_parts(json.loads(gzip.decompress(trace_path.read_bytes())))) == 8
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "p.json", "p.parts.png", "p.roofline.png", "p.trace.json.gz",
    ]  # fmt: skip


def test_two_profiles_side_by_side(profiled, capsys):
    from rich.console import Console

    result = dict(profiled[0])
    other = json.loads(json.dumps(result))
    dropped = next(part for part in other["parts"] if part["name"] == "pool")
    other["parts"] = [part | {"seconds": 2 * part["seconds"]} for part in other["parts"] if part is not dropped]
    other["parts"].append(dropped | {"name": "augment+stem", "seconds": 0.5})
    result["against"] = side_by_side(result, other)
    rows = {row["name"]: row for row in result["against"]["parts"]}
    ours = {part["name"]: part for part in result["parts"]}
    assert set(rows) == {*ours, "augment+stem"}
    assert rows["augment"]["ratio"] == pytest.approx(0.5)
    assert rows["augment"]["difference"] == pytest.approx(-ours["augment"]["seconds"])
    assert rows["augment"]["other_floor_seconds"] == ours["augment"]["floor_seconds"]
    assert (rows["pool"]["other_seconds"], rows["pool"]["ratio"]) == (0.0, None)
    assert (rows["augment+stem"]["seconds"], rows["augment+stem"]["difference"]) == (0.0, -0.5)
    print_side_by_side(Console(width=160), result)
    assert "augment+stem" in capsys.readouterr().out


@pytest.mark.parametrize("text", [None, "no json", "[]", '{"schema": "speedyresnet.run/1"}'])
def test_only_a_stored_profile_can_be_compared_with(text, tmp_path):
    if text is not None:
        (tmp_path / "other.json").write_text(text)
    with pytest.raises(UserError, match=r"other\.json.*bench profile --out"):
        read_profile(tmp_path / "other.json")


@pytest.mark.exhaustive
def test_the_command_prints_one_document(small_pack, tmp_path, speedyresnet):
    data, out = tmp_path / "small.safetensors", tmp_path / "profile.json"
    save_pack(small_pack, data)
    settings = [word for each in TINY for word in ("--set", each)]
    options = ["--recipe", "pocket", *settings, "--data", data, "--device", "cpu", "--steps", "3"]
    done = speedyresnet("bench", "profile", *options, "--json", "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    result = json.loads(done.stdout)
    assert result == json.loads(out.read_text())
    assert result["step_seconds"] == pytest.approx(sum(each["seconds"] for each in result["parts"]), rel=0.03)


@pytest.mark.gpu
def test_parts_of_a_step_on_the_gpu_add_up(small_pack):
    made = recipe("airbench94", ["batch_size=64", "epochs=2"])
    result, _ = profile_step(place_recipe(made, torch.device("cuda"), "eager"), small_pack, steps=8)
    assert sum(each["seconds"] for each in result["parts"]) == pytest.approx(result["step_seconds"], rel=0.03)
    found = {each["name"]: each for each in result["parts"]}
    assert found["other"]["share"] <= 0.05
    assert all(found[f"{name} wgrad"]["seconds"] > 0 for name in CONVOLUTIONS)
