"""Everything worth knowing of a machine, from first contact to the claims, in calls of a few minutes that go on.

Every part is a process of its own, so that one which crashes or hangs takes nothing else with it, and which is ended
when its time is over. It writes a few small files straight into the folder of the results, where a later call goes on:
a part that came to its end is not repeated, one whose command goes on from its own file does so.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from speedyresnet.engine.errors import UserError
from speedyresnet.engine.files import write_text
from speedyresnet.engine.record import environment

from .pool import check_kind
from .processes import exit_code_within

FASTEST = "speedy"
"""The recipe that the record is for."""
CUTS = "speedy-cuts"
"""The group of what it might do without."""
SAME_AS_AIRBENCH = "airbench94-muon"
"""The recipe with the mathematics of the peer airbench94_muon."""

_CHECKOUT = Path(__file__).resolve().parent.parent
_CRASHED = 3
_COMMAND = (
    "-c",
    f"""\
import sys, traceback
try:
    from speedyresnet.bench.cli import main
    main()
except Exception:
    traceback.print_exc()
    sys.exit({_CRASHED})  # Python's own 1 is a target that was missed
""",
    "bench",
)
_RUNS = 200
"""Of the record."""
_PROCESS_SECONDS = 300
"""Given to a script of others; within the share of a part against them, so that one that hangs is seen to."""
_GRACE_SECONDS = 5.0
"""On top of a part's time, mostly not taken."""
_OUTPUT_CHARACTERS = 6000


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One part of the suite."""

    name: str
    arguments: tuple[str, ...]
    """For Python; `{}` stands for the folder of the results."""
    share: float
    """Of a call's time at most, what earlier parts left over comes on top; with half of it at least it begins."""
    files: tuple[str, ...] = ()
    """What it leaves there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """How a part ended, the last time that it ran."""

    name: str
    exit_code: int | None
    """None: its time was over."""
    seconds: float
    output: str
    """The end of what it printed."""
    environment: dict[str, Any]

    @property
    def ended(self) -> bool:
        """Whether it came to its end; a target that was missed is a result."""
        return self.exit_code in (0, 1)


def stages(
    recipe: str, settings: Sequence[str], data: str, device: str, runs: int, peers: Sequence[str]
) -> list[Stage]:
    """The parts in the order of their value.

    Args:
        recipe: for all parts up to the kernels.
        settings: of `recipe`; on a CPU, where all parts are to be small, also of the record.
        data: a name or a path.
        device: on a CPU, runs are few and the scripts of others are only started.
        runs: of `recipe`; on a CPU also of the record.
        peers: NAME=PATH.
    """
    small, on, changed = device == "cpu", ("--device", device), [word for each in settings for word in ("--set", each)]
    chosen, of_data = ("--recipe", recipe, *on, *changed), ("--data", data)
    ours = ("--provider", "triton", "--provider", "reference")
    found = [
        _stage("steps, eager", 0.1, "steps-eager.json", "step", *chosen, *of_data, "--backend", "eager"),
        _stage("runs", 0.25, "runs.jsonl", "record", *chosen, *of_data, "--runs", str(runs)),
        _stage("profile", 0.1, "profile.json", "profile", *chosen, *of_data),
        _stage("kernels", 0.15, "kernels.json", "kernels", *chosen, *ours),
        _stage("steps of all backends", 0.3, "steps.json", "step", *chosen, *of_data),
    ]
    if (folder := _CHECKOUT / "tests").is_dir():  # an installed wheel has none
        measuring = sorted(map(str, folder.glob("test_bench_*.py")))  # what else runs would disturb them
        others = [word for file in measuring for word in ("--ignore", file)]
        found.insert(0, _tests("tests", 0.2, "gpu", "-n", "4", "--dist", "loadfile", *others, str(folder)))
        found.append(_tests("tests of measuring", 0.2, "gpu", *measuring))
        if not small:  # a CPU has them in every run of the tests
            kernels = sorted(map(str, folder.glob("test_*_kernel.py")))
            found.insert(3, _tests("tests of the kernels", 0.2, "not slow", "-n", "8", *kernels))
    if not small:
        found += [
            _stage(f"steps of {name}", 0.3, f"steps-{name}.json", "step", "--recipe", name, *on, *of_data)
            for name in (SAME_AS_AIRBENCH, FASTEST)
        ]
        every = ("--recipe", FASTEST, "--set", "kernels=triton", "--backend", "graph")  # also those auto leaves out
        found.append(_stage("steps with every kernel", 0.2, "steps-triton.json", "step", *every, *on, *of_data))
        found.append(_stage("kernels of all providers", 0.25, "kernels-all.json", "kernels", *chosen))
    of_all = (*on, *of_data)
    of_record = (*of_all, *changed * small, "--runs", str(runs if small else _RUNS))
    tried = changed if small else ("--validation", "5000", "--backend", "capture")
    cuts = _stage("cuts", 0.4, "cuts.jsonl", "compare", "--group", CUTS, *of_all, *tried, "--runs", str(runs))
    return [*found, *_claims(peers, (*of_all, *["--smoke"] * small), of_record), cuts]


def _tests(name: str, share: float, marker: str, *words: str) -> Stage:
    arguments = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marker, *words)
    return Stage(name=name, share=share, arguments=arguments)


def _stage(name: str, share: float, file: str, *words: str) -> Stage:
    return Stage(name=name, share=share, files=(file,), arguments=(*_COMMAND, *words, "--out", f"{{}}/{file}"))


def _claims(peers: Sequence[str], of_versus: Sequence[str], of_record: Sequence[str]) -> list[Stage]:
    """The parts that claims rest on, in the order of their value; all go on, so that they may be cut off anywhere."""

    def against(some: Sequence[str], name: str, recipe: str, runs: int, rounds: int) -> Stage:
        plan = ("--runs", str(runs), "--rounds", str(rounds), "--timeout", str(_PROCESS_SECONDS))
        given = (*of_versus, "--recipe", recipe, *plan, *(word for each in some for word in ("--peer", each)))
        return _stage(name, 0.65, f"{name.replace(' ', '-')}.json", "versus", *given)

    target = ("--target", "94", "--seconds", "6", "--clock", "total")
    found = [_stage("record", 0.4, "record.jsonl", "record", *of_record, "--recipe", FASTEST, *target)]
    if same := [each for each in peers if each.startswith("airbench94_muon=")]:
        found.insert(0, against(same, "same mathematics", SAME_AS_AIRBENCH, 20, 5))
    if peers:
        found.insert(0, against(peers, "yardstick", FASTEST, 10, 2))
    return found


def earlier_results(out: Path, asked: dict[str, Any]) -> list[StageResult]:
    """How the parts ended that `out` has from earlier calls, the latest last; none where there were none.

    Args:
        out: folder of the results.
        asked: what must not change from call to call, by its option.

    Raises:
        UserError: `out` is of something else.
    """
    path = out / "suite.json"
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_bytes())
        earlier, results = dict(found["asked"]), [StageResult(**each) for each in found["parts"]]
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{path} is no result of bench gpu-suite; give another --out") from None
    check_kind(path, "parts", earlier, asked)
    return results


def waiting_stages(parts: Sequence[Stage], results: Sequence[StageResult], out: Path) -> list[Stage]:
    """Those of `parts` that are to run: never begun, cut off, crashed, or without their files.

    What has waited longest is first, so that nothing that fails in every call can keep the others from their turn.
    """
    begun = [each.name for each in results]
    ended = {each.name for each in results if each.ended}
    waiting = [
        each for each in parts if each.name not in ended or not all((out / name).exists() for name in each.files)
    ]
    return sorted(waiting, key=lambda each: begun.index(each.name) + 1 if each.name in begun else 0)


def run_stage(stage: Stage, seconds: float, out: Path, about: dict[str, Any]) -> StageResult:
    """Run a part, whose files go to `out`, for at most `seconds`; `about` is the environment."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        command = [sys.executable, *(word.replace("{}", str(out)) for word in stage.arguments)]
        code = exit_code_within(seconds, command, grace=_GRACE_SECONDS, stdout=output, stderr=subprocess.STDOUT)
        output.seek(0)
        text = output.read().decode(errors="replace")[-_OUTPUT_CHARACTERS:]
    spent = time.monotonic() - started
    return StageResult(name=stage.name, exit_code=code, seconds=spent, output=text, environment=about)


def run_gpu_suite(
    parts: Sequence[Stage], asked: dict[str, Any], device: torch.device, minutes: float, out: Path
) -> list[StageResult]:
    """Run what is waiting of `parts` for `minutes` altogether, and keep in `out` how each ended.

    Shares are of the minutes, or more where those of all that is waiting do not fill them.

    Returns:
        How each part ended that was begun.

    Raises:
        UserError: `out` is of something else than was `asked`.
    """
    began, whole = time.monotonic(), 60 * minutes
    results, about = earlier_results(out, asked), environment(device)
    waiting = waiting_stages(parts, results, out)
    out.mkdir(parents=True, exist_ok=True)
    allowed, ran = 0.0, []
    for stage in waiting:
        allowed = min(allowed + whole * stage.share / min(1.0, sum(each.share for each in waiting)), whole)
        left = allowed - (time.monotonic() - began)
        if left < whole * stage.share / 2:
            continue
        ran.append(run_stage(stage, left, out, about))
        results = [*(each for each in results if each.name != stage.name), ran[-1]]
        saved = {"asked": asked, "environment": about, "minutes": minutes, "parts": [asdict(each) for each in results]}
        write_text(out / "suite.json", json.dumps(saved, indent=1) + "\n")
        ended = "cut off" if ran[-1].exit_code is None else f"exit code {ran[-1].exit_code}"
        print(f"{stage.name}: {ended} after {ran[-1].seconds:.0f} s", flush=True)
    waiting = waiting_stages(parts, results, out)
    names = ", ".join(each.name for each in waiting)
    print(f"to go on with, by the same command: {names}" if waiting else f"all {len(parts)} parts have ended")
    return ran
