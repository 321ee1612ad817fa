"""Kernels compiled ahead of time; in processes of their own, where no interpreter is on."""

import dataclasses
import json
import re
import textwrap
from pathlib import Path

import pytest
import torch
from kernel_checks import process

from speedyresnet.engine.fit import expected_data
from speedyresnet.engine.operations import operations_of, shipped_operations
from speedyresnet.engine.recipes import recipe, registered_recipes
from speedyresnet.kernels import resources
from speedyresnet.kernels.contract import registered
from speedyresnet.kernels.resources import TARGETS, Resources, compile_cases, problems


@pytest.fixture(scope="module", params=[["stem_gradient_kernel"], pytest.param([], marks=pytest.mark.exhaustive)])
def chosen(request):
    """Names for `speedyresnet kernels`: one kernel with few cases or, by none, all kernels."""
    return request.param


@pytest.fixture(scope="module")
def rows(chosen):
    done = process("-m", "speedyresnet.bench", "kernels", *chosen, "--check", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


HOPPER_ONLY = {"convolution_pool_kernel", "convolution_pool_gradient_kernel"}


def test_one_row_a_kernel_shape_and_target(rows):
    keys = [(row["kernel"], row["shape"], row["target"]) for row in rows]
    assert len(set(keys)) == len(keys)
    assert {row["target"] for row in rows} == set(TARGETS)
    for kernel in {row["kernel"] for row in rows}:
        own = [row for row in rows if row["kernel"] == kernel]
        shapes = {case.shape for case in compile_cases(shipped_operations(), kernel)}
        assert {row["shape"] for row in own if row["target"] == "sm_90"} == shapes
        others = 0 if kernel in HOPPER_ONLY else 1
        assert all(sum(row["target"] == target for row in own) == others for target in TARGETS[1:])


WRITING_TENSORS = {
    "augment_kernel", "apply_kernel", "input_gradient_kernel", "pool_statistics_kernel", "unpool_gradient_kernel",
    "stem_kernel", "convolution_pool_kernel", "convolution_pool_gradient_kernel",
}  # fmt: skip


def test_no_spills_on_hopper_and_wide_stores(rows):
    for row in rows:
        assert 16 <= row["registers"] <= 255
        if row["target"].startswith("sm_"):
            # Rows of 24, of 120 and of 168 bytes are no multiples of 16.
            scaled = row["kernel"] == "augment_kernel" and ("size 20" in row["shape"] or "size 28" in row["shape"])
            odd = "12 filters" in row["shape"] or scaled
            wide = row["kernel"] in WRITING_TENSORS and not odd
            assert (row["vector_stores"] >= 1) == wide
        if row["target"] == "sm_90":
            assert row["spills"] == 0
            assert row["floor_seconds"] == pytest.approx(max(row["bytes"] / 4.3e12, row["flops"] / 790e12))
        else:
            assert row["floor_seconds"] is None


def test_an_image_is_read_once_and_written_once():
    first = compile_cases(shipped_operations(), "augment_kernel")[0]
    assert first.bytes == 1024 * (32 * 32 * 3 * (1 + 2) + 2 * 8)


@pytest.mark.parametrize("name", registered_recipes())
def test_what_a_recipe_launches_is_compiled(name):
    """Of every recipe all that a kernel takes: its constants are those of a case."""
    made = recipe(name)
    compiled = {(case.shape, case.code) for case in compile_cases(shipped_operations())}
    operations = operations_of(made, expected_data(made).train_shape, torch.float16)
    taken = [each for each in operations if registered()[each.name].fits(each) is None]
    assert {each.name for each in taken} >= {"augment", "batch_norm_act"}
    for operation in taken:
        needed = {(case.shape, case.code) for case in registered()[operation.name].compile_cases(operation)}
        assert needed
        assert needed <= compiled


def test_this_version_of_triton_has_limits():
    """The oldest and the newest version that are supported."""
    assert {"3.6", "3.9"} <= set(json.loads(resources.BUDGET_FILE.read_text()))


def a_row(**changes):
    row = Resources(
        kernel="k", shape="s", target="sm_90", registers=40, spills=0, shared_bytes=512, vector_loads=2,
        vector_stores=4, bytes=1, flops=0, floor_seconds=None,
    )  # fmt: skip
    return dataclasses.replace(row, **changes)


LIMITS = {"k, s, sm_90": {"registers": 40, "spills": 0, "shared_bytes": 512, "vector_loads": 2, "vector_stores": 4}}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"registers": 39, "shared_bytes": 0, "vector_loads": 3}, []),
        ({"registers": 41}, ["registers 40 -> 41"]),
        ({"shared_bytes": 1024}, ["shared_bytes 512 -> 1024"]),
        ({"vector_loads": 1}, ["vector_loads 2 -> 1"]),
        ({"vector_stores": 0}, ["vector_stores 4 -> 0"]),
        ({"spills": 8}, ["spills 8 bytes", "spills 0 -> 8"]),
        ({"shape": "new"}, ["not in resources.json"]),
    ],
)
def test_growth_is_a_problem(changes, expected):
    case = dataclasses.replace(compile_cases(shipped_operations())[0], wide_loads=True)
    assert problems(a_row(**changes), case, LIMITS) == expected


def test_without_limits_only_what_is_wrong_in_itself_is_a_problem():
    case = dataclasses.replace(compile_cases(shipped_operations())[0], wide_loads=True)
    assert problems(a_row(registers=200), case, None) == []
    assert problems(a_row(spills=8, vector_loads=0), case, None) == ["spills 8 bytes", "no loads of 16 bytes"]


def test_unset_registers_are_a_problem_and_are_looked_for_once(tmp_path, monkeypatch):
    listings, asked = Path(__file__).with_name("listings"), []
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    def disassembled(name, cubin, *options):
        asked.append(cubin)
        return (listings / f"{cubin.decode()}.sass").read_text()

    monkeypatch.setattr(resources, "_nvidia_tool", disassembled)
    found = {name: [resources._in_machine_code(name) for _ in range(2)] for name in (b"faulty", b"mended")}
    assert [each["unset_registers"] for each in found[b"faulty"]] == 2 * [["UR30 at 0x40", "UR31 at 0x80"]]
    assert [each["unset_registers"] for each in found[b"mended"]] == [[], []]
    assert asked == [b"faulty", b"mended"]
    case = dataclasses.replace(compile_cases(shipped_operations())[0], wide_loads=True)
    told = "reads registers before they are written: UR30 at 0x40, UR31 at 0x80"
    assert problems(a_row(unset_registers=found[b"faulty"][0]["unset_registers"]), case, None) == [told]


def test_exchanges_in_loops_are_a_problem_of_reductions_only():
    cases = compile_cases(shipped_operations())
    case = next(each for each in cases if each.streams)
    assert problems(a_row(exchanges_in_loops=3), dataclasses.replace(case, streams=False), None) == []
    assert problems(a_row(exchanges_in_loops=0), case, None) == []
    told = "3 exchanges between threads in loops of a reduction"
    assert problems(a_row(exchanges_in_loops=3), case, None) == [told]
    reductions = {case.kernel for case in cases if case.streams}
    assert reductions == {"statistics_kernel", "gradient_sums_kernel", "pool_statistics_kernel"}


def test_a_planted_regression_fails_the_check_and_an_unknown_triton_does_not(
    chosen, rows, tmp_path, monkeypatch, speedyresnet
):
    """With a budget whose limits are one register lower, or are for no version at all; what is compiled is known."""
    known = {(row["kernel"], row["shape"], row["target"]): Resources(**row) for row in rows}
    monkeypatch.setattr(resources, "resources", lambda case, target: known[case.kernel, case.shape, target])
    monkeypatch.setattr(resources, "INTERPRETED", False)
    monkeypatch.setattr(resources, "budget", resources.budget.__wrapped__)  # without its cache
    stored = json.loads(resources.BUDGET_FILE.read_text())
    lower = {
        version: {key: limit | {"registers": limit["registers"] - 1} for key, limit in limits.items()}
        for version, limits in stored.items()
    }
    for text, code, words in ((lower, 1, "registers"), ({"2.0": {}}, 0, "no limits for Triton")):
        monkeypatch.setattr(resources, "BUDGET_FILE", tmp_path / "resources.json")
        resources.BUDGET_FILE.write_text(json.dumps(text))
        done = speedyresnet("kernels", *chosen, "--check", "--json")
        assert done.returncode == code
        assert words in done.stderr


LARGE = "statistics", "apply", "gradient_sums", "input_gradient", "pool_statistics", "unpool_gradient"
"""Kernels whose tensors may have more than 2**31 values."""


@pytest.fixture(scope="module")
def dumped():
    """(kernel, kind): code, all by one process."""
    wanted = [["augment_kernel", "ptx"], ["augment", "sass"], ["augment", "ttir"]]
    wanted += [[f"{name}_kernel", "ttir"] for name in LARGE]
    program = f"""
        import json
        from speedyresnet.engine.operations import shipped_operations
        from speedyresnet.kernels.resources import dumped_code
        print(json.dumps([dumped_code(shipped_operations(), name, kind) for name, kind in {wanted}]))
    """
    done = process("-c", textwrap.dedent(program))
    assert done.returncode == 0, done.stderr
    return {tuple(pair): code for pair, code in zip(wanted, json.loads(done.stdout), strict=True)}


PTX = """\
.version 9.4
.visible .entry kernel(
{
\t.loc\t1 {line} 0                         // {path}:{line}:0
$L__tmp{line}:
\tadd.s32 \t%r1, %r2, {addend};             // a comment
\tret;
}
\t.file\t1 "{path}"
\t.section\t.debug_abbrev
"""


def test_ptx_hashes_ignore_where_the_source_is_and_nothing_else():
    def hashed(line, path, addend):
        text = PTX.replace("{line}", str(line)).replace("{path}", path).replace("{addend}", str(addend))
        return resources.ptx_hash(text)

    assert hashed(7, "/here/a.py", 1) == hashed(99, "/there/b.py", 1)
    assert hashed(7, "/here/a.py", 1) != hashed(7, "/here/a.py", 2)


@pytest.mark.exhaustive
def test_every_case_has_a_ptx_hash():
    done = process("-m", "speedyresnet.bench", "kernels", "statistics_kernel", "--ptx-hash", "--json")
    assert done.returncode == 0, done.stderr
    cases = compile_cases(shipped_operations(), "statistics_kernel")
    rows = [(case, target) for case, target in resources.cases_by_target(cases) if target.startswith("sm_")]
    hashes = json.loads(done.stdout)
    assert list(hashes) == [f"{case.kernel}, {case.shape}, {target}" for case, target in rows]
    assert all(re.fullmatch("[0-9a-f]{64}", each) for each in hashes.values())
    assert len(set(hashes.values())) > len(TARGETS)  # shapes differ in their constants, targets in their instructions


def test_code_is_dumped(dumped):
    assert ".entry augment_kernel" in dumped["augment_kernel", "ptx"]
    assert "st.global.v4" in dumped["augment_kernel", "ptx"]
    assert "STG" in dumped["augment", "sass"]
    assert "tt.func public @augment_kernel" in dumped["augment", "ttir"]
    assert "i64" in dumped["augment", "ttir"]


def test_launches_compile_to_the_code_that_is_checked():
    """What a launcher gives Triton is what `speedyresnet kernels` compiles: no other constants, types, alignment."""
    done = process(Path(__file__).with_name("launch_rehearsal.py"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {case.kernel for case in compile_cases(shipped_operations())}
    for name, (launched, checked) in found.items():
        assert launched in checked, name


@pytest.mark.parametrize("kernel", LARGE)
def test_rows_of_large_tensors_are_addressed_in_64_bits(kernel, dumped):
    ttir = dumped[f"{kernel}_kernel", "ttir"]
    assert re.search(r"arith.muli .*: tensor<\d+x1xi64>", ttir)
    halves = re.findall(r"tt.addptr .*ptr<f16>>, tensor<\d+x\d+x(i\d+)>", ttir)
    assert set(halves) == {"i64"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nosuch"], "choose augment"),
        (["augment", "--dump", "llir"], "ttir, ptx, sass"),
        (["--dump", "ptx"], "give a kernel"),
        (["augment", "--dump", "ttir", "--against", "nosuch"], "nosuch"),
    ],
)
def test_wrong_input_is_one_line(arguments, words, monkeypatch, speedyresnet):
    monkeypatch.setattr(resources, "INTERPRETED", False)  # as users have it
    done = speedyresnet("kernels", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted where there is a GPU")
def test_the_interpreter_compiles_nothing(speedyresnet):
    done = speedyresnet("kernels")
    assert done.returncode == 2
    assert "TRITON_INTERPRET" in done.stderr
