import json

import pytest
import torch
from rich.console import Console
from tiers import parametrize

from speedyresnet.bench import kernel_times
from speedyresnet.bench.cases import OPERATIONS, cases_of, random_state
from speedyresnet.bench.kernel_times import cases_report
from speedyresnet.bench.traffic import traffic_of
from speedyresnet.engine import recipe
from speedyresnet.engine.nets import forward_flops_per_image

TINY = ["batch_size=16", "width_multiplier=0.25", "dtype=float32"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny_cases():
    return cases_of(recipe("airbench94", TINY), torch.float32, CPU)


def case_named(cases, operation, layer, direction):
    (found,) = [each for each in cases if (each.operation, each.layer, each.direction) == (operation, layer, direction)]
    return found


def test_every_operation_has_cases_with_names_of_their_own(tiny_cases):
    names = [case.name for case in tiny_cases]
    assert len(set(names)) == len(names) == 54
    assert {case.operation for case in tiny_cases} == set(OPERATIONS)


def test_bytes_are_inputs_and_results_once(tiny_cases):
    """A convolution 6 of 24 -> 16 channels on 31 x 31; its width is a quarter of airbench94's 64."""
    image, weight, result = 16 * 24 * 31 * 31 * 4, 16 * 24 * 9 * 4, 16 * 16 * 31 * 31 * 4
    for direction in ("forward", "dgrad", "wgrad"):
        case = case_named(tiny_cases, "convolution", "group1.1", direction)
        assert case.shape == (16, 24, 31, 31)
        assert case.bytes == image + weight + result
    pooled = 16 * 16 * 15 * 15 * 4
    assert case_named(tiny_cases, "pool", "group1", "forward").bytes == result + pooled
    assert case_named(tiny_cases, "pool", "group1", "backward").bytes == result + pooled
    norm = case_named(tiny_cases, "batch_norm_act", "group1.1", "forward")
    assert norm.bytes == 2 * pooled + 2 * 16 * 4
    assert case_named(tiny_cases, "batch_norm_act", "group1.1", "backward").bytes == 3 * pooled + 3 * 16 * 4
    both = case_named(tiny_cases, "pool_batch_norm_act", "group1", "forward")
    assert both.shape == (16, 16, 31, 31)
    assert both.bytes == result + pooled + 2 * 16 * 4
    backward = case_named(tiny_cases, "pool_batch_norm_act", "group1", "backward")
    assert backward.bytes == 2 * result + pooled + 3 * 16 * 4
    fused = case_named(tiny_cases, "convolution_pool", "group1", "forward")
    assert fused.bytes == case_named(tiny_cases, "convolution_pool", "group1", "backward").bytes
    assert fused.bytes == image + weight + pooled
    augmented = case_named(tiny_cases, "augment", "", "forward")
    assert augmented.bytes == 16 * 32 * 32 * 3 * (1 + 4) + 16 * 8
    whitened = case_named(tiny_cases, "augment+stem", "", "forward")
    assert whitened.bytes == 16 * (32 * 32 * 3 + 24 * 31 * 31 * 4) + 4 * (24 * 12 + 24)
    assert whitened.flops == 2 * 16 * 31 * 31 * 24 * 12


@pytest.mark.parametrize("crop", [20, 36])
def test_cases_have_the_size_of_the_windows(crop):
    cases = cases_of(recipe("airbench94", [*TINY, f"augmentation.crop={crop}"]), torch.float32, CPU)
    read = min(crop, 32) ** 2 * 3
    assert case_named(cases, "augment", "", "forward").bytes == 16 * (read + crop**2 * 3 * 4 + 8)
    whitened = case_named(cases, "augment+stem", "", "forward")
    assert whitened.bytes == 16 * (read + 24 * (crop - 1) ** 2 * 4) + 4 * (24 * 12 + 24)
    assert case_named(cases, "stem", "", "forward").shape == (16, 3, crop, crop)
    assert case_named(cases, "convolution", "group1.1", "forward").shape == (16, 24, crop - 1, crop - 1)


@pytest.mark.parametrize("crop", [0, 20])
def test_other_providers_do_the_same_work(crop):
    """Those that only a GPU's tables have, called on a CPU; their results are those of the reference."""
    made, side = recipe("airbench94", [*TINY, f"augmentation.crop={crop}"]), crop or 32
    paper, state = (random_state(made, torch.float32, torch.device(name)) for name in ("meta", "cpu"))
    cases = [case for name in ("augment", "pool_batch_norm_act") for case in OPERATIONS[name](paper)]
    cases = [case for case in cases if case.layer in ("", "group3")]
    assert {case.provider for case in cases} == {"reference", "triton", "compile", "native", "torchvision", "masks"}
    for case in cases:
        if case.provider in ("torchvision", "masks"):
            batch = case.make(state).call()
            assert batch.shape == (16, 3, side, side)
            assert batch.is_contiguous(memory_format=torch.channels_last)
            assert 0.5 < float(batch.std()) < 2
        if case.provider == "native" and case.direction == "forward":
            assert case.make(state).call().shape == (16, 64, side // 10, side // 10)


@pytest.mark.parametrize(("width", "padded"), [(24, [32, 64]), (32, [64]), (40, [64]), (64, [])])
def test_convolutions_have_cases_with_padded_channels(width, padded):
    """24 channels in two ways, 40 in one, as both make 64 of them, and none where there is nothing to pad."""
    made = recipe("airbench94", [*TINY, "net.widths=64,96", f"net.project_width={4 * width}"])
    cases = [
        case
        for case in OPERATIONS["convolution"](random_state(made, torch.float32, torch.device("meta")))
        if case.layer == "group1.1" and case.direction == "wgrad"
    ]
    state = random_state(made, torch.float32, CPU)
    found = {case.provider: case.make(state).call()[0].shape[1] for case in cases}
    assert (found.pop("reference"), found.pop("heuristic")) == (width, width)
    assert sorted(found.values()) == padded
    assert len({case.bytes for case in cases}) == len({case.flops for case in cases}) == 1


def test_padded_and_guessed_convolutions_give_what_the_reference_gives():
    made = recipe("airbench94", [*TINY, "batch_size=4"])
    paper, state = (random_state(made, torch.float32, torch.device(name)) for name in ("meta", "cpu"))
    results = {}
    for case in OPERATIONS["convolution"](paper):
        if case.layer == "group1.1":
            torch.manual_seed(0)
            called = case.make(state).call()
            results[case.direction, case.provider] = called if case.direction == "forward" else called[0]
    providers = {provider for _, provider in results}
    assert providers == {"reference", "heuristic", "padded-32", "padded-64"}
    for (direction, provider), value in results.items():
        expected = results[direction, "reference"]
        channels = expected.shape[1]
        torch.testing.assert_close(value[:, :channels], expected, rtol=1e-4, atol=1e-4)
        extra = value[:, channels:]
        assert extra.numel() == 0 or (provider.startswith("padded") and not extra.any())


def test_kernels_that_only_a_gpu_runs_are_counted_on_paper():
    """kernels=triton, which is refused where it cannot run, says nothing of where bytes are counted."""
    found = [
        [
            case.name
            for case in cases_of(recipe("airbench94", [f"kernels={kernels}"]), torch.float16, torch.device("cuda"))
        ]
        for kernels in ("auto", "triton")
    ]
    assert found[0] == found[1]
    assert any(name.endswith("-triton") for name in found[1])


@pytest.mark.exhaustive
def test_a_compiled_provider_gives_what_the_reference_gives():
    made = recipe("airbench94", TINY)
    paper, state = (random_state(made, torch.float32, torch.device(name)) for name in ("meta", "cpu"))
    found = {}
    for case in OPERATIONS["pool_batch_norm_act"](paper):
        if case.layer == "group3" and case.provider in ("reference", "compile") and case.direction == "backward":
            torch.manual_seed(0)
            call = case.make(state).call
            found[case.provider] = [call() for _ in range(2)][1]
    for one, other in zip(found["reference"], found["compile"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_flops_leave_out_taps_in_the_padding(tiny_cases):
    """Along a side of 31 pixels 91 of the 93 taps of a 3-tap filter meet a pixel."""
    for direction in ("forward", "dgrad", "wgrad"):
        case = case_named(tiny_cases, "convolution", "group1.1", direction)
        assert case.flops == round(2 * 16 * 16 * 24 * 9 * 31 * 31 * (91 / 93) ** 2)


def test_flops_of_a_step_are_those_of_its_convolutions_and_head():
    made = recipe("airbench94", TINY)
    (step,) = [case for case in cases_of(made, torch.float32, CPU) if case.operation == "step"]
    forward = 16 * forward_flops_per_image(made, classes=10, channels=3, height=32, width=32)
    assert 2.2 * forward < step.flops < 3 * forward


@parametrize(
    "name", ["airbench94", "hlb-v0.4", "pocket", "page-ladder/baseline", "page-ladder/3x3"], default=["pocket"]
)
def test_every_case_runs(name):
    made = recipe(name, TINY)
    cases = cases_of(made, torch.float32, CPU)
    state = random_state(made, torch.float32, CPU)
    for case in cases:
        work = case.make(state)
        work.call()
        assert case.bytes > 0
        counted = traffic_of(work.call)
        assert counted.flops == case.flops  # on paper and in the flesh


def test_gradient_cases_compute_what_autograd_does(tiny_cases):
    torch.manual_seed(0)
    state = random_state(recipe("airbench94", TINY), torch.float32, CPU)
    for direction, index in (("dgrad", 0), ("wgrad", 1)):
        work = case_named(tiny_cases, "convolution", "group2.1", direction).make(state)
        (found,) = work.call()
        assert found.shape == work.writes[0].shape
        assert work.reads[1].shape != work.writes[0].shape or index == 1
        assert found.abs().sum() > 0


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["airbench94", "airbench94-muon"])
def test_the_optimizer_is_timed_on_random_gradients_and_keeps_weights_finite(name):
    made = recipe(name, TINY)
    (case,) = OPERATIONS["optimizer"](random_state(made, torch.float32, torch.device("meta")))
    work = case.make(random_state(made, torch.float32, CPU))
    weights, gradients = work.writes, work.reads[len(work.writes) :]
    assert all(float((each == 0).float().mean()) < 0.01 for each in gradients)
    assert not any(each.requires_grad for each in gradients)
    before = [each.clone() for each in weights]
    for _ in range(100):
        work.call()
    assert all(torch.isfinite(each).all() and not each.equal(old) for each, old in zip(weights, before, strict=True))


def test_cases_are_timed(tiny_cases):
    made = recipe("airbench94", TINY)
    pools = [case for case in tiny_cases if case.operation == "pool"]
    result = cases_report(made, torch.float32, CPU, pools, rounds=3)
    assert [row["name"] for row in result["cases"]] == [case.name for case in pools]
    for row in result["cases"]:
        assert 0 < row["low"] <= row["seconds"] <= row["high"] < 1
        assert row["rounds"] == 3
        assert row["floor_share"] == pytest.approx(row["floor_seconds"] / row["seconds"])
        assert row["bytes_per_second"] == pytest.approx(row["bytes"] / row["seconds"])


def test_cases_that_wait_for_the_gpu_are_named_below_the_table(tiny_cases, capsys):
    stored = [kernel_times.described(case) for case in tiny_cases if case.operation == "pool"]
    for case in stored:
        case["method"] = "CUDA events, cache flushed"
    result = {"cases": stored, "recipe": {"name": "airbench94", "batch_size": 16}, "dtype": "float32", "device": "cuda"}
    kernel_times.print_cases(Console(width=200), result)
    assert "host" not in capsys.readouterr().out
    stored[1]["method"] += ", host included"
    kernel_times.print_cases(Console(width=200), result)
    assert capsys.readouterr().out.endswith(f"host included: {stored[1]['name']}\n")


@pytest.fixture
def kernels(speedyresnet):
    """A function that runs the command."""
    return lambda *options: speedyresnet("bench", "kernels", *options)


def test_the_command_lists_without_measuring(kernels):
    settings = [word for each in TINY for word in ("--set", each)]
    done = kernels("--recipe", "pocket", *settings, "--device", "cpu", "--operation", "pool", "--list", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {row["operation"] for row in result["cases"]} == {"pool"}
    assert "seconds" not in result["cases"][0]


def test_an_unknown_provider_is_one_line(kernels):
    done = kernels("--provider", "nosuch")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "native" in done.stderr


def test_providers_are_chosen(kernels):
    settings = [word for each in TINY for word in ("--set", each)]
    done = kernels("--recipe", "pocket", *settings, "--device", "cpu", "--list", "--json", "--provider", "eager")
    assert done.returncode == 0, done.stderr
    assert {row["provider"] for row in json.loads(done.stdout)["cases"]} == {"eager"}


def test_an_unknown_operation_is_one_line(kernels):
    done = kernels("--operation", "pooling")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "batch_norm_act" in done.stderr


@pytest.mark.gpu
def test_every_case_is_timed_on_the_gpu():
    made = recipe("airbench94", ["batch_size=64"])
    device = torch.device("cuda")
    cases = cases_of(made, torch.float16, device)
    assert {case.provider for case in cases} >= {"reference", "triton", "compile", "native", "torchvision", "masks"}
    cases = [case for case in cases if case.provider != "compile" or case.layer in ("", "group3")]
    result = cases_report(made, torch.float16, device, cases, rounds=3)
    assert all(0 < row["seconds"] < 1 for row in result["cases"])
