"""What every kernel costs on every target, found by compiling it: no GPU is needed.

Registers, spills, shared memory and wide loads are a regression check for machines without a GPU. They depend on the
compiler, so the committed budget (resources.json) is kept by Triton's minor version. `machine_code` looks for faults of
the compiler in the same machine code.
"""

import dataclasses
import difflib
import functools
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import machine_code
from .contract import CompileCase, Operation, registered
from .language import AVAILABLE, INTERPRETED, triton

TARGETS = ("sm_90", "sm_80", "sm_89", "sm_100", "sm_120", "gfx942")
"""The first gets every shape, the others the first shape of each kernel."""
BUDGET_FILE = Path(__file__).with_name("resources.json")
_LIMITED = ("registers", "spills", "shared_bytes")
"""Growth of these is a regression; of vector loads, their loss."""
H200_BYTES_PER_SECOND, H200_FLOPS_PER_SECOND = 4.3e12, 790e12
"""What floors assume on sm_90: an H200's copies and bfloat16 products. `bench kernels` measures a machine's own."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Of one kernel, shape and target."""

    kernel: str
    shape: str
    target: str
    registers: int
    """A thread; on AMD vector registers."""
    spills: int
    """Bytes a thread on NVIDIA, registers on AMD."""
    shared_bytes: int
    """A program."""
    vector_loads: int
    """Loads of 16 bytes from global memory in the code."""
    vector_stores: int
    unset_registers: list[str] = field(default_factory=list)
    """Registers that the code reads before anything has written them, each with the address; on NVIDIA only."""
    exchanges_in_loops: int = 0
    """Shuffles, barriers and operations on shared memory in loops; on NVIDIA only."""
    bytes: int
    flops: int
    floor_seconds: float | None
    """max(bytes / bandwidth, FLOPs / rate) of an H200; none for other targets."""
    problems: list[str] = field(default_factory=list)


def check_compiler() -> None:
    """Raise ValueError where kernels cannot be compiled."""
    if not AVAILABLE:
        raise ValueError("kernels need Triton, which is not installed here (Linux: pip install triton)")
    if INTERPRETED:
        raise ValueError("TRITON_INTERPRET=1 runs kernels in the interpreter, which compiles nothing; unset it")


def compile_cases(operations: Iterable[Operation], name: str | None = None) -> list[CompileCase]:
    """Cases of the kernel that `name` calls by its file, operation or device function, or of all.

    Args:
        operations: what to compile for, beside what each kernel says itself.
        name: none: all.

    Raises:
        ValueError: no kernel of that name.
    """
    wanted = tuple(operations)
    found = [
        ((kernel.file, kernel.operation, case.kernel), case)
        for kernel in registered().values()
        for case in kernel.cases(wanted)
    ]
    names = dict.fromkeys(each for names, _ in found for each in names)
    if name is not None and name not in names:
        raise ValueError(f"no kernel {name}: choose {', '.join(names)}")
    return [case for names, case in found if name is None or name in names]


def _gpu_target(target: str) -> Any:
    from triton.backends.compiler import GPUTarget

    if target.startswith("sm_"):
        return GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    return GPUTarget("hip", target, 64)


def compiled(case: CompileCase, target: str) -> Any:
    """The compiled kernel, from Triton's cache where it has it; `asm` has its code at every stage."""
    check_compiler()
    warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION")  # for good: threads share the filters
    return triton.compile(source_of(case), target=_gpu_target(target), options={"num_warps": case.warps})


def source_of(case: CompileCase) -> Any:
    """The kernel of a case with the types, constants and alignments that `compiled` compiles."""
    from triton.compiler import ASTSource

    names = [*case.arguments, *case.constants]
    if names != case.function.arg_names:
        raise ValueError(f"{case.kernel} takes {case.function.arg_names}, its case gives {names}")
    return ASTSource(
        case.function,
        case.arguments | dict.fromkeys(case.constants, "constexpr"),
        {(names.index(name),): value for name, value in case.constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name, kind in case.arguments.items() if kind[0] == "*"},
    )


def _nvidia_tool(name: str, code: bytes, *options: str) -> str:
    """What one of the tools in Triton's wheel prints of a cubin."""
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        return subprocess.run([str(tool), *options, file.name], capture_output=True, text=True, check=True).stdout


def ptxas_version(capability: int) -> str | None:
    """Name and version of the ptxas with which Triton compiles for an NVIDIA GPU, for example `ptxas 12.8.93`.

    Triton brings two, and takes others where TRITON_PTXAS_PATH or TRITON_PTXAS_BLACKWELL_PATH say so.

    Args:
        capability: compute capability as one number, such as 90.

    Returns:
        None where there is no Triton, or it finds no ptxas.
    """
    if not AVAILABLE:
        return None
    from triton.backends.nvidia.compiler import get_ptxas

    try:
        path = get_ptxas(capability).path
    except RuntimeError:  # how Triton says that it finds none
        return None
    return _tool_version(path)


@functools.cache
def _tool_version(path: str) -> str | None:
    """Name and version of one of NVIDIA's compilers; none where it tells no version."""
    told = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"\bV(\d+(?:\.\d+)*)", told)
    return f"{Path(path).name} {version[1]}" if version else None


def _usage(registers: int, spills: int, wide: list[str]) -> dict[str, Any]:
    """`wide` are the operations of 16 bytes in the code: `ld` or `load`, `st` or `store`."""
    loads = sum(name in ("ld", "load") for name in wide)
    return {"registers": registers, "spills": spills, "vector_loads": loads, "vector_stores": len(wide) - loads}


def _nvidia_usage(asm: dict[str, Any]) -> dict[str, Any]:
    usage = _nvidia_tool("cuobjdump", asm["cubin"], "--dump-resource-usage")
    numbers = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    wide = re.findall(r"\b(ld|st)\.global[.\w:]*\.(?:v4\.[bfsu]32|v2\.[bfsu]64|v8\.[bf]16)", asm["ptx"])
    return _usage(numbers["REG"], numbers["STACK"] + numbers["LOCAL"], wide) | _in_machine_code(asm["cubin"])


def _in_machine_code(cubin: bytes) -> dict[str, Any]:
    """What `machine_code` finds in a cubin, kept in Triton's cache: disassembling takes 0.7 s a kernel."""
    from triton.runtime.cache import get_cache_manager

    rules = Path(machine_code.__file__).read_bytes()
    cache = get_cache_manager(hashlib.sha256(rules + cubin).hexdigest())
    if (known := cache.get_file("machine_code.json")) is not None:
        stored: dict[str, Any] = json.loads(Path(known).read_text(encoding="utf-8"))
        return stored
    listing = _nvidia_tool("cuobjdump", cubin, "--dump-sass")
    found = {
        "unset_registers": [str(each) for each in machine_code.unset_registers(listing)],
        "exchanges_in_loops": machine_code.exchanges_in_loops(listing),
    }
    cache.put(json.dumps(found), "machine_code.json", binary=False)
    return found


def _amd_usage(asm: dict[str, Any]) -> dict[str, Any]:
    numbers = {name: int(value) for name, value in re.findall(r"\.([sv]gpr_\w*count):\s*(\d+)", asm["amdgcn"])}
    wide = re.findall(r"\b(?:global|buffer)_(load|store)_dwordx4", asm["amdgcn"])
    return _usage(numbers["vgpr_count"], numbers["vgpr_spill_count"] + numbers["sgpr_spill_count"], wide)


def resources(case: CompileCase, target: str) -> Resources:
    """Compile a case and read what it uses."""
    made = compiled(case, target)
    usage = _nvidia_usage(made.asm) if "cubin" in made.asm else _amd_usage(made.asm)
    floor = max(case.bytes / H200_BYTES_PER_SECOND, case.flops / H200_FLOPS_PER_SECOND)
    return Resources(
        kernel=case.kernel,
        shape=case.shape,
        target=target,
        shared_bytes=made.metadata.shared,
        bytes=case.bytes,
        flops=case.flops,
        floor_seconds=floor if target == "sm_90" else None,
        **usage,
    )


def cases_by_target(cases: Sequence[CompileCase]) -> Iterator[tuple[CompileCase, str]]:
    """Every case for the first target, the first of each kernel for the others that get it."""
    yield from ((case, TARGETS[0]) for case in cases)
    firsts = {case.kernel: case for case in reversed(cases)}
    for case in (each for each in reversed(firsts.values()) if not each.hopper_only):
        yield from ((case, target) for target in TARGETS[1:])


def all_resources(operations: Iterable[Operation], name: str | None = None) -> list[Resources]:
    """Rows for what `compile_cases` gives, each with its problems; same code is compiled once.

    Raises:
        ValueError: no such kernel, or no compiler.
    """
    check_compiler()
    cases = list(cases_by_target(compile_cases(operations, name)))
    distinct = {(case.code, target): (case, target) for case, target in cases}
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # compilers run without Python's global lock
        found = dict(zip(distinct, threads.map(lambda pair: resources(*pair), distinct.values()), strict=True))
    rows = []
    for case, target in cases:
        floor = max(case.bytes / H200_BYTES_PER_SECOND, case.flops / H200_FLOPS_PER_SECOND)
        own = dataclasses.replace(
            found[case.code, target],
            shape=case.shape,
            bytes=case.bytes,
            flops=case.flops,
            floor_seconds=floor if target == "sm_90" else None,
        )
        rows.append(dataclasses.replace(own, problems=problems(own, case, budget())))
    return rows


def triton_minor_version() -> str:
    """For example 3.6."""
    return ".".join(triton.__version__.split(".")[:2])


@functools.cache
def budget() -> dict[str, dict[str, int]] | None:
    """The limits by kernel, shape and target for this version of Triton; none where it is not known."""
    stored: dict[str, dict[str, dict[str, int]]] = json.loads(BUDGET_FILE.read_text(encoding="utf-8"))
    return stored.get(triton_minor_version())


def budget_key(row: Resources) -> str:
    """How a row is called in the budget."""
    return f"{row.kernel}, {row.shape}, {row.target}"


def problems(row: Resources, case: CompileCase, limits: dict[str, dict[str, int]] | None) -> list[str]:
    """What is wrong with a row, in words."""
    found = []
    if row.target == "sm_90" and row.spills:
        found.append(f"spills {row.spills} bytes")
    if case.wide_loads and row.target.startswith("sm_") and not row.vector_loads:
        found.append("no loads of 16 bytes")
    if case.streams and row.exchanges_in_loops:
        found.append(f"{row.exchanges_in_loops} exchanges between threads in loops of a reduction")
    if row.unset_registers:
        found.append(f"reads registers before they are written: {', '.join(row.unset_registers)}")
    if limits is None:
        return found
    limit = limits.get(budget_key(row))
    if limit is None:
        return [*found, "not in resources.json"]
    found += [f"{key} {limit[key]} -> {getattr(row, key)}" for key in _LIMITED if getattr(row, key) > limit[key]]
    for key in ("vector_loads", "vector_stores"):
        if getattr(row, key) < limit[key]:
            found.append(f"{key} {limit[key]} -> {getattr(row, key)}")
    return found


def budget_with(rows: Sequence[Resources]) -> str:
    """The text of resources.json with `rows` as the limits of this version of Triton."""
    stored = json.loads(BUDGET_FILE.read_text(encoding="utf-8")) if BUDGET_FILE.exists() else {}
    keys = (*_LIMITED, "vector_loads", "vector_stores")
    stored[triton_minor_version()] = {budget_key(row): {key: getattr(row, key) for key in keys} for row in rows}
    return json.dumps(dict(sorted(stored.items())), indent=1) + "\n"


def ptx_hash(ptx: str) -> str:
    """SHA-256 of the instructions of `ptx`; line numbers, paths and comments of the source do not change it."""
    code = re.split(r"^\s*\.(?:file|section)\b", ptx, maxsplit=1, flags=re.MULTILINE)[0]
    lines = (line.partition("//")[0].strip() for line in code.splitlines())
    instructions = "\n".join(line for line in lines if line and not line.startswith((".loc", "$L__tmp", "$L__func")))
    return hashlib.sha256(instructions.encode()).hexdigest()


def ptx_hashes(operations: Iterable[Operation], name: str | None = None) -> dict[str, str]:
    """SHA-256 of the PTX instructions of every case and NVIDIA target, by `budget_key`; same code is compiled once.

    Equal hashes before and after a change show that it leaves the kernels alone. They hold for one version of Triton.

    Raises:
        ValueError: no such kernel, or no compiler.
    """
    check_compiler()
    seen: dict[tuple[Any, ...], str] = {}
    found = {}
    for case, target in cases_by_target(compile_cases(operations, name)):
        if target.startswith("sm_"):
            key = case.code, target
            if key not in seen:
                seen[key] = ptx_hash(compiled(case, target).asm["ptx"])
            found[f"{case.kernel}, {case.shape}, {target}"] = seen[key]
    return found


STAGES = ("ttir", "ptx", "sass")


def code(case: CompileCase, stage: str) -> str:
    """The code of a case for sm_90 at one of STAGES."""
    asm = compiled(case, TARGETS[0]).asm
    return _nvidia_tool("cuobjdump", asm["cubin"], "--dump-sass") if stage == "sass" else str(asm[stage])


def dumped_code(operations: Iterable[Operation], name: str | None, stage: str, revision: str | None = None) -> str:
    """The code of the first case of a kernel, or how it differs from that of a git revision.

    Raises:
        ValueError: an unknown kernel, stage or revision, no name, or no compiler.
    """
    if name is None or stage not in STAGES:
        raise ValueError(f"--dump: give a kernel and one of {', '.join(STAGES)}")
    check_compiler()
    case = compile_cases(operations, name)[0]
    if revision is None:
        return code(case, stage)
    there, here = _code_at(revision, name, stage), code(case, stage)
    lines = difflib.unified_diff(
        there.splitlines(keepends=True), here.splitlines(keepends=True), f"{case.kernel} at {revision}", case.kernel
    )
    return "".join(lines)


def _code_at(revision: str, name: str, stage: str) -> str:
    """What `speedyresnet kernels NAME --dump STAGE` of another git revision of the checkout that runs prints."""
    checkout = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(  # of this checkout, not of a repository around it
            ["git", "--git-dir=.git", "archive", revision, "kernels", "engine"],
            cwd=checkout, capture_output=True, check=False,
        )  # fmt: skip
        if archive.returncode:
            raise ValueError(f"--against {revision}: {archive.stderr.decode().strip().splitlines()[-1]}")
        (Path(folder) / "speedyresnet").mkdir()
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(Path(folder) / "speedyresnet", filter="data")
        done = subprocess.run(
            [sys.executable, "-m", "speedyresnet.engine", "kernels", name, "--dump", stage],
            capture_output=True, text=True, check=False, cwd=folder, env=os.environ | {"PYTHONPATH": folder},
        )  # fmt: skip
    if done.returncode:
        raise ValueError(f"--against {revision}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout
