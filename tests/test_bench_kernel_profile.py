import dataclasses
import json
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from rich.console import Console

from speedyresnet.bench import kernel_recording, kernel_table
from speedyresnet.bench.kernel_names import FORMER_KERNELS, OWN_KERNELS, Kernel, kernel_of
from speedyresnet.bench.kernel_parts import Assignment, prepare_rows
from speedyresnet.bench.kernel_profile import (
    compared,
    folded,
    print_compared,
    print_kernel_profile,
    save,
    step_counts,
)
from speedyresnet.bench.kernel_recording import launches_of, record_table
from speedyresnet.bench.kernel_table import CIFAR10, KernelTable, Launch, Phase, read_table, table_from
from speedyresnet.bench.kernel_work import Work, own_kernel_bytes, step_work
from speedyresnet.bench.report import read_source
from speedyresnet.bench.roofline import Ceilings
from speedyresnet.bench.traffic import Operation, evaluation_operations, step_operations
from speedyresnet.engine import UserError, recipe
from speedyresnet.engine.backends import Variant
from speedyresnet.engine.operations import shipped_operations
from speedyresnet.engine.schedules import plan
from speedyresnet.engine.setup import place_recipe
from speedyresnet.engine.step import REFERENCE_KERNELS
from speedyresnet.kernels.language import AVAILABLE
from speedyresnet.kernels.resources import compile_cases

EVIDENCE = Path(__file__).resolve().parent.parent / "bench/evidence/2026-11-28-speedy-graph-kernels-h100.json"
CPU = torch.device("cpu")
TRITON = REFERENCE_KERNELS | dict.fromkeys(("augment", "stem", "batch_norm_act", "pool_batch_norm_act"), "triton")
CEILINGS = Ceilings(copies=((1 << 20, 2e12),), rates={"float16": 5e14})
SMALL = Variant(whitening_bias=True, cutmix=False, size=20)
LAYERS = [f"group{group}.conv{number}" for group in (1, 2, 3) for number in (1, 2)]
PASSES = ("forward", "dgrad", "wgrad")
CUDNN = "sm90_xmma_{}_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize64x64x64_execute_{}_kernel__5x_cudnn"
INITIALISES = "void cask_plugin__5x_cudnn::init_device_workspace_kernel<implicit_gemm::wgrad_indexed::Params>(bool)"
REDUCES = "void at::native::reduce_kernel<128, 4, at::native::ReduceOp<float, at::native::func_wrapper_t<float>>>"
LOOKS_UP = "void at::native::(anonymous namespace)::indexSelectSmallIndex<float, long, unsigned int, 1, 1, -2>"
MANY = "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<TensorListMetadata<2>, BinaryOpListAlpha>"


# -- names


@pytest.mark.parametrize(
    ("name", "role", "what"),
    [
        ("stem_gradient_kernel", "own", "stem_gradient_kernel"),
        (CUDNN.format("fprop", "segment_k_off"), "convolution", "forward"),
        (CUDNN.format("dgrad", "segment_k_off"), "convolution", "dgrad"),
        (CUDNN.format("wgrad_indexed", "segment_k_on"), "convolution", "wgrad"),
        (CUDNN.format("wgrad_indexed", "split_k"), "after", "wgrad"),
        ("_ZN17cutlass__5x_cudnn6KernelINS_4conv6kernel23ImplicitGemmConvolutionINS1_52"
         "Conv2dWgradOutputGradientTileAccessIteratorOptimizedINS_11MatrixShapeILi64ELi32EEE", "convolution", "wgrad"),
        ("_ZN17cutlass__5x_cudnn6KernelINS_4conv6kernel23ImplicitGemmConvolutionINS1_44"
         "Conv2dDgradFilterTileAccessIteratorOptimizedI", "convolution", "dgrad"),
        ("void cutlass__5x_cudnn::Kernel<cutlass_tensorop_f16_s16816fprop_optimized_f16_256x64_32x4_nhwc_align8>"
         "(cutlass_tensorop_f16_s16816fprop_optimized_f16_256x64_32x4_nhwc_align8::Params)", "convolution", "forward"),
        ("void cutlass__5x_cudnn::Kernel<cutlass__5x_cudnn::reduction::kernel::ReduceSplitK<float> >", "after", ""),
        ("void cudnn::cnn::wgrad_alg0_engine<float, 128, 5, 5, 3>(int)", "convolution", "wgrad"),
        ("void implicit_convolve_sgemm<float, float, 1024, 5, 5, 3>(int)", "convolution", "forward"),
        ("void cudnn::ops::nchwToNhwcKernel<__half, __half, float>(int)", "before", ""),
        (INITIALISES, "before", "wgrad"),
        ("nvjet_sm90_hsh_64x64_64x13_2x4_h_bz_TNT", "product", ""),
        ("ampere_fp16_s16816gemm_fp16_64x64_ldg8_relu_f2f_stages_64x5_nn", "product", ""),
        ("void cutlass::Kernel2<cutlass_80_tensorop_s16816gemm_f16_64x64_32x6_nt_align2>(int)", "product", ""),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float, __half>(int)", "after_product", ""),
        ("Memset (Unknown)", "fill", ""),
        ("memset32", "fill", ""),
        ("triton_per_fused__log_softmax__log_softmax_backward_data__to_copy_add_amax_argmax_1", "words", "head+loss"),
        ("triton_poi_fused_max_pool2d_with_indices_0", "words", "pool"),
        ("triton_red_fused_gelu_native_batch_norm_max_pool2d_4", "words", "norm+activation"),
        ("triton_poi_fused_constant_pad_nd_permute_stack_view_9", "words", "optimizer"),
        ("triton_poi_fused_add_eye_mul_11", "words", "optimizer"),
        ("triton_poi_fused__foreach_add__foreach_mul_mul_squeeze_19", "words", "optimizer"),
        ("triton_for_fused_17", "inductor", ""),
        ("void cudnn::bn_fw_tr_1C11_kernel_NCHW<float, float, int, 512>(int)", "words", "norm+activation"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl>", "words",
         "norm+activation"),
        (REDUCES, "native", ""),
        (MANY, "words", "optimizer"),
        ("my_own_kernel", "unknown", ""),
    ],
)  # fmt: skip
def test_names_tell_what_kernels_do(name, role, what):
    found = kernel_of(name)
    assert (found.role, found.what) == (role, what)


def test_inductor_numbers_its_kernels():
    assert kernel_of("triton_for_fused_17") == Kernel("inductor", "", 17)
    assert kernel_of("triton_poi_fused_add_eye_mul_11").number == 11


@pytest.mark.skipif(not AVAILABLE, reason="there are no cases without Triton")
def test_every_kernel_of_the_package_has_a_group():
    assert {case.kernel for case in compile_cases(shipped_operations())} == set(OWN_KERNELS) - set(FORMER_KERNELS)


# -- the work


@pytest.fixture(scope="module")
def speedy():
    return recipe("speedy", [])


@pytest.fixture(scope="module")
def ordered(speedy):
    """The operations of a step at 20 pixels, in their order."""
    return step_operations(speedy, bare_table([]).pack(), torch.float16, SMALL, TRITON)


def bare_table(variants, **fields):
    empty = Phase(seconds=0.002, busy_seconds=0.0, kernels=[], ordered=True)
    return KernelTable(
        **{"backend": "graph", "kernels": TRITON, "variants": variants, "prepare": empty, "evaluate": empty}
        | {"always_averages": True}
        | fields
    )


def test_our_kernels_move_what_their_compile_cases_say(speedy):
    """At 32 pixels, in float16; partial sums, which the cases count as well, are small."""
    work = step_work(speedy, bare_table([]).pack(), torch.float16, Variant(False, False, 0), TRITON)
    expected = {"statistics_kernel": 90e6, "pool_statistics_kernel": 540e6, "apply_kernel": 360e6,
                "gradient_sums_kernel": 360e6, "input_gradient_kernel": 270e6,
                "unpool_gradient_kernel": 630e6}  # fmt: skip
    found = {name: sum(slot.bytes for slot in work.slots[name]) for name in expected}
    assert found == pytest.approx(expected, rel=0.01)
    assert [slot.name for slot in work.slots["unpool_gradient_kernel"]] == [
        "group3.conv1 unpool_gradient", "group2.conv1 unpool_gradient", "group1.conv1 unpool_gradient",
    ]  # fmt: skip
    assert [slot.name for slot in work.slots["apply_kernel"]] == [f"{layer} apply" for layer in LAYERS]
    taps = (3 * 31 - 2) / (3 * 31)  # of three along a side, those that meet a pixel
    assert work.slots["forward"][0].flops == pytest.approx(2 * 1536 * 31 * 31 * 64 * 24 * 9 * taps**2)
    assert work.head_products == 3
    assert len(work.slots["product"]) == 3 + 11  # Newton-Schulz in Gram form
    assert work.averaging_reads == 2


def test_a_residual_is_read_and_its_gradient_written():
    def bytes_of(name, reads, writes):
        return own_kernel_bytes(Operation(f"speedyresnet.{name}.default", 0, 0, "float16", reads, writes))

    forward = bytes_of("batch_norm_act", (100, 4, 4, 4, 4, 100), (100, 4, 4))
    assert forward == {"statistics_kernel": 100, "apply_kernel": 300}
    backward = bytes_of("batch_norm_act_backward", (100, 100, 4, 4, 100, 4, 4), (100, 4, 4, 100))
    assert backward == {"gradient_sums_kernel": 300, "input_gradient_kernel": 500}
    assert own_kernel_bytes(Operation("aten.add", 5, 0, "float32")) == {}


def test_a_fused_part_moves_only_what_comes_from_and_goes_to_others(ordered):
    """Read and written: weights and momenta in float16; read: gradients; and what goes through Muon's products.

    Those are three of matrices of 1,179,648 bytes, six of them, that are read, and two that are written each time.
    """
    weights, matrices = 3_935_232, 6 * 1_179_648
    assert ordered.fused_bytes["optimizer"] == pytest.approx(5 * weights + 3 * matrices, rel=0.05)
    assert 4 * weights <= ordered.fused_bytes["averaging"] < 4.1 * weights


def test_an_evaluation_has_a_convolution_for_each_layer_batch_and_view(speedy):
    names = Counter(part for part, each in evaluation_operations(
        speedy, bare_table([]).pack(), torch.float16).operations if each.name.startswith("convolution"))  # fmt: skip
    batches = -(-10_000 // speedy.evaluation.batch_size)
    assert set(names.values()) == {6 * batches}
    assert len(names) == 7


def test_an_evaluation_pools_with_the_first_convolution_where_the_steps_do(speedy):
    """And takes no kernel that needs the statistics of a batch."""
    kernels = dict.fromkeys(TRITON, "triton")
    operations = evaluation_operations(speedy, bare_table([]).pack(), torch.float16, kernels).operations
    own = Counter((part, each.name) for part, each in operations if each.name.startswith("speedyresnet."))
    views = 6 * -(-10_000 // speedy.evaluation.batch_size)
    assert own == {("group1.conv1+pool 31x31 forward", "speedyresnet.convolution_pool.default"): views}


# -- a step in its order


TAIL = [REDUCES, "void at::native::unrolled_elementwise_kernel<direct_copy_kernel_cuda>"]
"""What follows one of our kernels inside its operator."""


def kernels_of_operation(part, operation, compiled):
    """Names of the kernels that `operation` could run, with the parts that they belong to."""
    name = operation.name
    if name.startswith("convolution"):
        layer, which = part.split(" ")[0], part.rsplit(" ", 1)[1]
        row = f"{layer} {which}"
        if which == "forward":
            return [(CUDNN.format("fprop", "segment_k_off"), row)]
        if which == "dgrad":
            return [("Memset (Device)", row), (CUDNN.format("dgrad", "segment_k_off"), row)]
        split = (CUDNN.format("wgrad_indexed", "split_k"), row)
        return [(INITIALISES, row), ("memset32", row), (CUDNN.format("wgrad_indexed", "segment_k_on"), row), split]
    if name.startswith("speedyresnet.stem"):
        ours = [(kernel, kernel.removesuffix("_kernel")) for kernel in own_kernel_bytes(operation)]
        return ours + ([(tail, "stem_gradient") for tail in TAIL] if "backward" in name else [])
    if name.startswith("mm"):
        return [("void cutlass::Kernel2<gemm_align2>", part), ("void cublasLt::splitKreduce_kernel<32>", part)]
    if name.startswith("bmm"):
        return [("nvjet_sm90_hsh_64x64", "optimizer products")]
    rest = "optimizer+averaging" if part in ("optimizer", "averaging") and compiled else part
    if part == "head+loss":
        return [("triton_poi_fused_max_pool2d_with_indices_0", part)] if "max_pool2d" in name else []
    if name.startswith("index_select"):
        return [] if compiled else [(LOOKS_UP, rest)]
    if name.startswith("_foreach"):
        return [("triton_for_fused_3" if compiled else MANY, rest)]
    return []


def events_of_step(operations, *, compiled=True, seed=0):
    """Names, parts that are expected, and durations of the kernels of a step."""
    numbers = random.Random(seed)
    norms, layer, rows = [], "", []
    for part, operation in operations:
        if part.endswith(" forward"):
            layer = part.split(" ")[0]
        if "batch_norm" in operation.name:
            if "backward" not in operation.name:
                norms.append(layer)
            place = norms.pop() if "backward" in operation.name else layer
            found = [(kernel, f"{place} {kernel.removesuffix('_kernel')}") for kernel in own_kernel_bytes(operation)]
        else:
            found = kernels_of_operation(part, operation, compiled)
        rows += [(name, row, numbers.uniform(1, 100)) for name, row in found]
    return rows


def step_phase(rows, **fields):
    kernels = [Launch(name, 1.0, time) for name, _, time in rows]
    busy = sum(time for _, _, time in rows) / 1e6
    return Phase(
        **{"seconds": busy + 5e-6, "busy_seconds": busy, "kernels": kernels, "ordered": True, "steps": 7,
           "variant": SMALL} | fields
    )  # fmt: skip


@pytest.mark.parametrize("compiled", [True, False])
def test_the_order_of_a_step_tells_the_part_of_every_kernel(speedy, ordered, compiled):
    rows = events_of_step(ordered.operations, compiled=compiled)
    work = step_work(speedy, bare_table([]).pack(), torch.float16, SMALL, TRITON)
    found = Assignment(step_phase(rows).kernels, work, ordered=True, compiled=compiled)
    wrong = [(name[:40], row, got) for (name, row, _), (got, _) in zip(rows, found.rows, strict=True) if row != got]
    assert not wrong
    assert {"averaging", "optimizer+averaging"} & {name for name, _ in found.rows} == {
        "optimizer+averaging" if compiled else "averaging"
    }


def test_helpers_on_another_stream_do_not_come_between(speedy, ordered):
    """A copy and a product beside the last convolutions; each helper belongs to its own stream's next kernel."""
    rows = events_of_step(ordered.operations)
    launches = list(step_phase(rows).kernels)
    last = max(place for place, each in enumerate(launches) if "init_device_workspace" in each.name)
    beside = [Launch("memset32", 1.0, 1.0, 1), Launch("nvjet_sm90_hsh_64x64", 1.0, 1.0, 1)]
    products = [place for place, each in enumerate(launches) if each.name.startswith("nvjet")]
    del launches[products[0]]
    launches[last + 1 : last + 1] = beside
    work = step_work(speedy, bare_table([]).pack(), torch.float16, SMALL, TRITON)
    found = Assignment(launches, work, ordered=True, compiled=True).rows
    assert found[last][0] == "group1.conv1 wgrad"
    assert [row[0] for row in found[last + 1 : last + 3]] == ["optimizer products"] * 2
    assert [row[0] for row in found[last + 3 : last + 6]] == ["group1.conv1 wgrad"] * 3


def test_layers_are_not_guessed_where_launches_do_not_fit(speedy, ordered):
    """One weight gradient in two kernels: no order tells which layer has both."""
    rows = events_of_step(ordered.operations)
    extra = next(row for row in rows if "segment_k_on" in row[0])
    launches = step_phase([*rows, extra]).kernels
    work = step_work(speedy, bare_table([]).pack(), torch.float16, SMALL, TRITON)
    found = {row for row, _ in Assignment(launches, work, ordered=True, compiled=True).rows}
    assert "convolutions wgrad" in found
    assert not {f"{layer} wgrad" for layer in LAYERS} & found
    assert {f"{layer} dgrad" for layer in LAYERS} <= found


def test_a_kernel_that_nothing_tells_is_unassigned():
    launches = [Launch("my_own_kernel", 1.0, 3.0), Launch("stem_kernel", 1.0, 1.0)]
    found = Assignment(launches, Work(), ordered=False, compiled=True)
    assert found.rows == [("unassigned", "other"), ("stem", "stem")]


def test_parts_of_prepare():
    names = ["void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>",
             "sm90_xmma_gemm_f64f64_f64f64_f64_nt_n", "Memcpy DtoH (Device -> Pageable)"]  # fmt: skip
    assert [name for name, _ in prepare_rows([Launch(each, 1.0, 1.0) for each in names])] == [
        "reset", "whitening", "whitening"
    ]  # fmt: skip


# -- folding


@pytest.fixture(scope="module")
def evidence(speedy):
    return folded(read_table(EVIDENCE, "--from"), speedy)


def test_the_first_run_on_a_gpu_folds_to_what_is_known_of_it(evidence):
    """Milliseconds a run, as they were summed by hand from the same kernels."""
    groups = {each["name"]: each["run_milliseconds"] for each in evidence["run"]["groups"]}
    assert evidence["run"]["kernel_milliseconds"] == pytest.approx(766.3, rel=1e-3)
    assert sum(each["run_milliseconds"] for each in evidence["parts"]) == pytest.approx(766.3, rel=0.01)
    assert groups["convolution wgrad"] == pytest.approx(187, rel=0.015)
    assert groups["convolution dgrad"] == pytest.approx(115, rel=0.01)
    assert groups["convolution forward"] == pytest.approx(142, rel=0.01)
    assert groups["norm+pool"] == pytest.approx(246, rel=0.01)
    assert groups["stem"] == pytest.approx(27, rel=0.01)
    parts = {each["name"]: each["run_milliseconds"] for each in evidence["parts"]}
    assert parts["optimizer products"] == pytest.approx(14.3, rel=0.01)
    # Inductor's kernels, 28.9, with the head's products, 3.3 + 0.6
    assert parts["optimizer+averaging"] + parts["head+loss"] == pytest.approx(28.9 + 3.8, rel=0.01)
    assert evidence["run"]["unassigned_share"] <= 0.01
    assert 1e3 * evidence["evaluate"]["seconds"] == pytest.approx(50.5, abs=0.1)
    assert sum(each["seconds"] for each in evidence["prepare"]["parts"]) == pytest.approx(2.045e-3, rel=0.01)
    assert evidence["ceilings"]["assumed"]


def test_parts_are_sorted_by_what_a_run_could_recover(evidence):
    gains = [each["recoverable_milliseconds"] for each in evidence["parts"]]
    assert gains == sorted(gains, reverse=True)
    for each in evidence["parts"]:
        floor = 1e3 * evidence["steps"] * each["floor_seconds"]
        assert each["recoverable_milliseconds"] == pytest.approx(each["run_milliseconds"] - floor)
    assert evidence["parts"][0]["name"] == "convolutions wgrad"
    assert evidence["step_seconds"] == pytest.approx(sum(each["seconds"] for each in evidence["parts"]), rel=0.01)
    assert sum(each["share"] for each in evidence["parts"]) == pytest.approx(1)


def test_kinds_of_steps_count_as_often_as_a_run_takes_them(speedy, ordered, capsys):
    rows = events_of_step(ordered.operations)
    later = SMALL._replace(whitening_bias=False)
    twice = [(name, row, 2 * time) for name, row, time in rows if "stem_gradient" not in row]
    without = [each for each in twice if each[1] != "group1.conv1 dgrad"]
    table = bare_table([step_phase(rows, steps=7), step_phase(without, steps=89, variant=later)], ceilings=CEILINGS)
    result = folded(table, speedy)
    parts = {each["name"]: each for each in result["parts"]}
    times = {name: sum(time for _, row, time in rows if row == name) for name in ("group2.conv1 wgrad", "stem")}
    for name, time in times.items():
        assert parts[name]["run_milliseconds"] == pytest.approx((7 + 2 * 89) * time / 1e3)
        assert parts[name]["seconds"] == pytest.approx((7 + 2 * 89) * time / 96e6)
    assert parts["group1.conv1 dgrad"]["launches"] == pytest.approx(2 * 7 / 96)  # with its memset
    assert parts["gaps"]["run_milliseconds"] == pytest.approx(96 * 5e-3)
    flops = 31_457_280_000  # of group 2's first convolution at 20 pixels, in each kind
    wide = parts["group2.conv1 wgrad"]
    assert wide["flops"] == pytest.approx(flops)
    assert wide["floor_seconds"] == pytest.approx(flops / 5e14)
    assert wide["flops_per_second"] == pytest.approx(flops / wide["seconds"])
    assert parts["stem"]["bytes_per_second"] == pytest.approx(parts["stem"]["bytes"] / parts["stem"]["seconds"])
    assert result["run"]["unassigned_share"] == 0
    assert result["variants"][1]["steps"] == 89
    assert not result["ceilings"]["assumed"]
    print_kernel_profile(Console(width=100), result)
    printed = capsys.readouterr().out
    assert all(row in printed for _, row, _ in rows)
    assert max(map(len, printed[printed.index("Groups") :].splitlines())) <= 100


def test_a_table_is_small_and_reads_back_as_it_was(speedy, ordered, tmp_path):
    phases = [step_phase(events_of_step(ordered.operations, seed=seed)) for seed in range(4)]
    evaluate = dataclasses.replace(step_phase(events_of_step(ordered.operations) * 6), variant=None, steps=1)
    two_streams = [dataclasses.replace(each, stream=place % 2) for place, each in enumerate(phases[1].kernels)]
    phases[1] = dataclasses.replace(phases[1], kernels=two_streams)
    table = bare_table(phases, recipe=speedy, dtype="float16", ceilings=CEILINGS, evaluate=evaluate, device="cuda")
    result = folded(table)
    save(result, tmp_path / "p.json")
    assert (tmp_path / "p.json").stat().st_size < 200_000
    again = read_table(tmp_path / "p.json", "--from")
    assert (again.recipe, again.ceilings, again.data) == (speedy, CEILINGS, CIFAR10)
    assert again.variants[1].kernels[3].stream == 1
    back = folded(again)
    assert [each["name"] for each in back["parts"]] == [each["name"] for each in result["parts"]]
    assert back["step_seconds"] == pytest.approx(result["step_seconds"])
    for kind in ("parts", "evaluate"):
        one, other = (each[kind] if kind == "parts" else each[kind]["parts"] for each in (result, back))
        assert [each["seconds"] for each in one] == pytest.approx([each["seconds"] for each in other], rel=1e-3)
    (source,) = [read_source(tmp_path / "p.json")]
    assert source.kind.name == "kernel profile"
    names = {row[0] for row in source.blocks[1].rows}
    assert {"group1.conv1 wgrad", "gaps"} <= names


def test_a_table_of_another_recipe_is_refused():
    with pytest.raises(UserError, match=r"airbench94 takes no steps of the kind \(True, False, 20, True, True\)"):
        folded(read_table(EVIDENCE, "--from"), recipe("airbench94", []))
    table = read_table(EVIDENCE, "--from")
    fewer = dataclasses.replace(table.variants[3], steps=106)
    with pytest.raises(UserError, match=r"speedy takes 108 steps of the kind .*, the table says 106"):
        folded(dataclasses.replace(table, variants=[*table.variants[:3], fewer]), recipe("speedy", []))


def test_a_table_of_before_some_steps_left_averaging_out_has_fewer_kinds_of_steps():
    """Its steps all averaged, so what is one kind in it may be two kinds of a run today."""
    made = recipe("speedy", [])
    schedule, old = plan(made, 50_000), read_table(EVIDENCE, "--from")
    today = bare_table([step_phase([], variant=each) for each in step_counts(made, schedule)], always_averages=False)
    assert (old.always_averages, len(old.variants), len(today.variants)) == (True, 4, 5)
    assert step_counts(made, schedule, old) == {phase.variant: phase.steps for phase in old.variants}
    assert step_counts(made, schedule, today) == step_counts(made, schedule)
    kept = today.to_dict()
    assert [each["variant"] for each in kept["variants"]][-2:] == [
        [False, False, 0, False, True], [False, False, 0, True, True],
    ]  # fmt: skip
    assert kept["always_averages"] is False


def test_kinds_of_steps_are_read_as_each_version_wrote_them():
    for stored in ([True, False, 20], [True, False, 20, False], [True, False, 20, False, False]):
        assert kernel_table._variant(stored) == Variant(*stored)
    with pytest.raises(ValueError, match="a variant is no"):
        kernel_table._variant([True, False, 20, False, False, True])


def test_a_table_without_a_recipe_is_of_the_one_that_takes_just_these_steps():
    assert folded(read_table(EVIDENCE, "--from"))["recipe"]["name"] == "speedy"
    table = read_table(EVIDENCE, "--from")
    fewer = dataclasses.replace(table, variants=[dataclasses.replace(table.variants[0], steps=6), *table.variants[1:]])
    with pytest.raises(UserError, match="give --recipe"):
        folded(fewer)


def test_the_printed_tables_fit_a_hundred_columns(evidence, capsys):
    print_kernel_profile(Console(width=100), evidence)
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    tables = lines[next(place for place, line in enumerate(lines) if line.startswith("Groups")) :]
    assert max(map(len, tables)) <= 100
    assert "…" not in printed
    assert "kernels 766.3 ms" in printed
    assert "assumed, those of an H100" in printed
    first = next(line.split() for line in lines if line.lstrip().startswith("convolutions wgrad"))
    assert first[2:4] == ["21.0", "188.76"]


@pytest.mark.exhaustive
def test_two_tables_are_compared_by_milliseconds_a_run(speedy, ordered, evidence, capsys):
    rows = events_of_step(ordered.operations)
    one = bare_table([step_phase(rows)], recipe=speedy, ceilings=CEILINGS)
    slower = [(name, row, time * (3 if row == "group2.conv2 dgrad" else 1)) for name, row, time in rows]
    other = dataclasses.replace(one, variants=[step_phase(slower)])
    result = compared(one, other)
    first, *rest = result["against"]["parts"]
    own = sum(time for _, row, time in rows if row == "group2.conv2 dgrad") * 7 / 1e3
    assert first["name"] == "group2.conv2 dgrad"
    assert first["run_milliseconds"] == pytest.approx(own)
    assert first["difference"] == pytest.approx(-2 * own)
    assert all(each["difference"] == pytest.approx(0) for each in rest)
    # Beside a table without an order, layers are summed.
    beside = compared(one, read_table(EVIDENCE, "--against"))
    assert {f"{layer} wgrad" for layer in LAYERS} <= {each["name"] for each in beside["parts"]}
    names = {each["name"]: each for each in beside["against"]["parts"]}
    assert names["convolutions wgrad"]["other_run_milliseconds"] == pytest.approx(188.8, abs=0.1)
    assert "group1.conv1 wgrad" not in names
    print_compared(Console(width=100), result)
    assert "group2.conv2 dgrad" in capsys.readouterr().out


# -- recording


def event(name, start, duration, stream=7):
    return {"cat": "kernel", "ph": "X", "name": name, "ts": start, "dur": duration, "args": {"stream": stream}}


def test_the_first_call_does_not_count_and_streams_may_overlap():
    """a runs 2 us; b of another stream begins earlier or later than its second launch does."""
    warm = [event("a", 0, 50), event("b", 60, 50, stream=8), event("a", 120, 50)]
    one = [event("a", 1000, 10), event("b", 1005, 10, stream=8), event("a", 1020, 4)]
    two = [event("a", 2000, 12), event("a", 2014, 6), event("b", 2016, 20, stream=8)]
    launches, busy = launches_of([*two, *warm, *one], calls=3)
    assert [(each.name, each.microseconds, each.stream) for each in launches] == [
        ("a", 11.0, 0), ("b", 15.0, 1), ("a", 5.0, 0),
    ]  # fmt: skip
    assert busy == pytest.approx((15 + 4 + 12 + 22) / 2 * 1e-6)


@pytest.mark.parametrize("events", [
    [], [event("a", 0, 1)] * 3, [event("a", 0, 1), event("a", 2, 1), event("a", 4, 1), event("b", 6, 1)],
])  # fmt: skip
def test_calls_that_ran_different_kernels_are_refused(events):
    with pytest.raises(UserError, match="same kernels in every call"):
        launches_of(events, calls=4)


def test_a_table_is_recorded_from_what_the_profiler_sees(small_pack, monkeypatch):
    """On a CPU, with a profiler that sees one kernel for every step, and two for all else."""
    made = recipe("airbench94", ["batch_size=64", "width_multiplier=0.125", "epochs=1", "dtype=float32",
                                 "evaluation.view=single_view", "net.whitening_images=64"])  # fmt: skip
    monkeypatch.setattr(kernel_recording, "_ROUNDS", 1)
    traces, calls = [], []

    def trace_of(run, device):
        before = len(calls)
        run()
        count = len(calls) - before
        traces.append(count)
        names = ["stem_kernel"] if len(traces) <= 2 else ["a", "b"]
        events = [event(name, 10 * index, 1 + index) for index, name in enumerate(names * (count or 4))]
        return {"traceEvents": [*events, {"ph": "M", "name": "process_name"}]}

    build = kernel_recording.Trainer.counted_steps.fget

    def counted(self):
        return [(lambda step=step: (calls.append(1), step()), count) for step, count in build(self)]

    monkeypatch.setattr(kernel_recording, "recorded_trace", trace_of)
    monkeypatch.setattr(kernel_recording, "measured_ceilings", lambda *_: CEILINGS)
    monkeypatch.setattr(kernel_recording.Trainer, "counted_steps", property(counted))
    table = record_table(place_recipe(made, CPU, "eager"), small_pack, 3)
    counts = step_counts(made, plan(made, len(small_pack.train_labels)))
    assert traces[: len(counts)] == [4] * len(counts)
    assert [(each.variant, each.steps) for each in table.variants] == list(counts.items())
    assert [each.name for each in table.variants[0].kernels] == ["stem_kernel"]
    assert table.variants[0].kernels[0].microseconds == pytest.approx((2 + 3 + 4) / 3)
    assert [each.name for each in table.evaluate.kernels] == ["a", "b"]
    assert all(each.seconds > 0 for each in (*table.variants, table.prepare, table.evaluate))
    assert table.data["train_images"] == [640, 32, 32, 3]
    assert table_from(json.loads(json.dumps(folded(table)))).recipe == made


def test_a_run_of_one_step_is_refused(small_pack):
    with pytest.raises(UserError, match="one step cannot be profiled"):
        record_table(place_recipe(recipe("airbench94", ["batch_size=640", "epochs=1"]), CPU, "eager"), small_pack, 3)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["capture", "graph"])
def test_kernels_of_a_step_on_the_gpu_have_parts(small_pack, backend):
    made = recipe("speedy", ["batch_size=64", "epochs=4"])
    table = record_table(place_recipe(made, torch.device("cuda"), backend), small_pack, 5)
    result = folded(table)
    assert result["run"]["unassigned_share"] <= 0.01
    assert sum(each["seconds"] for each in result["parts"]) == pytest.approx(result["step_seconds"], rel=0.05)
    names = {each["name"] for each in result["parts"]}
    assert {f"{layer} {which}" for layer in LAYERS for which in PASSES} - {"group1.conv1 dgrad"} <= names


# -- the command


def test_the_command_folds_a_stored_table(speedyresnet, tmp_path):
    out = tmp_path / "p.json"
    done = speedyresnet("bench", "profile", "--from", EVIDENCE, "--json", "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert result == json.loads(out.read_text())
    assert result["step_seconds"] == pytest.approx(0.7704836 / 300)
    assert result["parts"][0]["run_milliseconds"] == pytest.approx(188.8, abs=0.1)
    done = speedyresnet("bench", "profile", "--recipe", "speedy", "--from", out, "--against", EVIDENCE)
    assert (done.returncode, done.stderr) == (0, "")
    assert "convolutions wgrad" in done.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--from", EVIDENCE, "--set", "epochs=2"], "--set with --from needs --recipe"),
        (["--from", EVIDENCE, "--data", "cifar100"], "leave --data out"),
        (["--from", "none.json", "--recipe", "speedy"], "--from none.json: No such file or directory; make it with"),
        (["--from", EVIDENCE, "--recipe", "airbench94"], "takes no steps of the kind"),
        (["--from", EVIDENCE, "--recipe", "speedy", "--out", EVIDENCE], "it is read by the same command"),
        (["--from", EVIDENCE, "--backend", "capture"], "is of graph; leave --backend out"),
        (["--backend", "torchscript"], "bench profile takes eager, graph, capture, compile"),
        (["--backend", "nonsense"], "unknown backend 'nonsense'"),
        (["--backend", "auto"], "bench profile takes eager, graph, capture, compile"),
        (["--backend", "graph", "--device", "cpu"], "needs a CUDA GPU; use --backend eager"),
        (["--backend", "compile", "--device", "cpu"], "on a CUDA GPU only; use --backend eager"),
    ],
)
def test_what_cannot_be_folded_or_recorded_is_one_line(speedyresnet, options, words):
    done = speedyresnet("bench", "profile", *options)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert words in done.stderr


def damaged(change):
    """The text of the evidence with `change` made to what is in it."""
    document = json.loads(EVIDENCE.read_text())
    change(document)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no json", "damaged one"),
        ("[]", "it holds no speedyresnet.kernel_profile/1"),
        ("[" * 100_000, "damaged one"),
        ("{}", "'prepare_seconds' is missing"),
        ('{"schema": "speedyresnet.profile/1", "parts": []}', "it holds no speedyresnet.kernel_profile/1"),
        ('{"schema": "speedyresnet.kernel_profile/1"}', "'table' is missing"),
        (lambda: damaged(lambda d: d.update(variants=[])), "there are no steps"),
        (lambda: damaged(lambda d: d.update(variants={})), "variants is no list"),
        (lambda: damaged(lambda d: d["variants"][0].update(kernels=[])), "has no kernels"),
        (lambda: damaged(lambda d: d["variants"][0].update(steps=-1)), "a number of steps is '-1'"),
        (lambda: damaged(lambda d: d["variants"][0].update(steps=True)), "a number of steps is 'True'"),
        (lambda: damaged(lambda d: d["variants"][0]["kernels"][0].__setitem__(2, -1.0)), "a kernel's time is '-1.0'"),
        (
            lambda: damaged(lambda d: d["variants"][0]["kernels"][0].__setitem__(2, float("nan"))),
            "'NaN' is not a finite number",
        ),
        (lambda: damaged(lambda d: d["variants"][0]["kernels"][0].__setitem__(1, 10**400)), "is not a finite number"),
        (lambda: damaged(lambda d: d["variants"][0]["kernels"][0].__setitem__(0, 3)), "a kernel's name is '3'"),
        (lambda: damaged(lambda d: d["variants"][0]["kernels"].append([])), "not enough values"),
        (lambda: damaged(lambda d: d["variants"][0].update(variant=[1, 2, 3])), "whitening bias, cutmix, size"),
        (lambda: damaged(lambda d: d["variants"].append(None)), "damaged one"),
        (lambda: damaged(lambda d: d.update(names=["a"])), "a whole number from 0 to 0"),
        (lambda: damaged(lambda d: d.update(backend="other")), "the backend or the dtype is unknown"),
        (lambda: damaged(lambda d: d.update(dtype="int4")), "the backend or the dtype is unknown"),
        (lambda: damaged(lambda d: d["variants"][0].update(milliseconds=0)), "a kind of step takes no time"),
        (lambda: damaged(lambda d: d["variants"][0].update(busy_us=0.0)), "a kind of step takes no time"),
        (lambda: damaged(lambda d: d["variants"][0]["kernels"].pop(3)), "us, but those listed for"),
        (lambda: damaged(lambda d: d["variants"][0]["kernels"][0].__setitem__(2, 0.0)), "us, but those listed for"),
        (lambda: damaged(lambda d: d["kernels"].update(stem="cuda")), "provider other than"),
        (lambda: damaged(lambda d: d["kernels"].update(stem=["cuda"])), "damaged one"),
        (lambda: damaged(lambda d: d.pop("kernels")), "'kernels' is missing"),
        (lambda: damaged(lambda d: d.update(kernels=["stem"])), "damaged one"),
        (lambda: damaged(lambda d: d.update(prepare_seconds="1")), "prepare_seconds is '1'"),
        (lambda: damaged(lambda d: d.update(ceilings={"copies": [], "rates": {}})), "ceilings are not positive"),
        (lambda: damaged(lambda d: d.update(data={"train_images": [0, 32, 32, 3]})), "there are no images"),
        (lambda: damaged(lambda d: d.update(data={"train_images": [10**9, 32, 32, 3]})), "the shape of images"),
        (lambda: damaged(lambda d: d.update(recipe={"epochs": "many"})), "the recipe was stored by another version"),
        (lambda: damaged(lambda d: d.update(environment=7)), "damaged one"),
    ],
)
@pytest.mark.parametrize("option", ["--from", "--against"])
def test_a_damaged_table_is_one_line(speedyresnet, tmp_path, text, words, option):
    path = tmp_path / "table.json"
    path.write_text(text if isinstance(text, str) else text())
    options = ["--from", path] if option == "--from" else ["--from", EVIDENCE, "--against", path]
    done = speedyresnet("bench", "profile", "--recipe", "speedy", *options)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert words in done.stderr
    assert f"{option} {path}: " in done.stderr


def test_a_report_shows_groups_of_a_table_that_does_not_tell_its_recipe():
    source = read_source(EVIDENCE)
    assert source.kind.name == "table of a step's kernels"
    assert ["norm+pool", "246.4"] in source.blocks[0].rows
    assert "766.3 ms of kernels in 300 steps" in source.blocks[0].title
