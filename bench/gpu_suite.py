"""Everything worth knowing of a machine in a few minutes, the most valuable first, each part saved as it ends.

Every part is a process of its own, so that one which crashes or hangs takes nothing else with it, and which is killed
when the minutes are over. A few small files: suite.json (the machine, and how each part ended), steps*.json,
runs.jsonl, profile.json, profile.trace.json.gz, kernels*.json, versus.json.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from speedyresnet.engine.files import write_text
from speedyresnet.engine.record import environment

from .processes import exit_code_within

_CHECKOUT = Path(__file__).resolve().parent.parent
_COMMAND = ("-c", "from speedyresnet.bench.cli import main; main()", "bench")
_OUTPUT_CHARACTERS = 6000


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One part of the suite."""

    name: str
    arguments: tuple[str, ...]
    """For Python; `{}` stands for a scratch folder that each part has to itself."""
    share: float
    """Of the suite's time at most; what earlier parts left over comes on top."""
    files: tuple[str, ...] = ()
    """To keep from the scratch folder, whether the part came to its end or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """How a part ended."""

    name: str
    exit_code: int | None
    """None: its time was over."""
    seconds: float
    output: str
    """The end of what it printed."""


def stages(
    recipe: str, settings: Sequence[str], data: str, device: str, runs: int, peers: Sequence[str]
) -> list[Stage]:
    """The parts in the order of their value."""
    chosen = ["--recipe", recipe, "--device", device, *(word for each in settings for word in ("--set", each))]

    def bench(*words: str) -> tuple[str, ...]:
        return (*_COMMAND, *words, *chosen)

    of_data, ours = ("--data", data), ("--provider", "triton", "--provider", "reference")
    found = [
        Stage(name="steps, eager", share=0.1, files=("steps.json",),
              arguments=bench("step", *of_data, "--backend", "eager", "--out", "{}/steps.json")),
        Stage(name="runs", share=0.25, files=("runs.jsonl",),
              arguments=bench("record", *of_data, "--runs", str(runs), "--out", "{}/runs.jsonl")),
        Stage(name="profile", share=0.1, files=("profile.json", "profile.trace.json.gz"),
              arguments=bench("profile", *of_data, "--out", "{}/profile.json")),
        Stage(name="kernels", share=0.1, files=("kernels.json",),
              arguments=bench("kernels", *ours, "--out", "{}/kernels.json")),
        Stage(name="steps of all backends", share=0.2, files=("steps.json",),
              arguments=bench("step", *of_data, "--out", "{}/steps.json")),
    ]  # fmt: skip
    if (_CHECKOUT / "tests").is_dir():  # an installed wheel has none
        tests = ("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", str(_CHECKOUT / "tests"))
        found.insert(0, Stage(name="tests", share=0.25, arguments=tests))
    if device != "cpu":
        found += [
            Stage(name=f"steps of {name}", share=0.1, files=(f"steps-{name}.json",),
                  arguments=(*_COMMAND, "step", "--recipe", name, "--device", device, *of_data, "--out",
                             f"{{}}/steps-{name}.json"))
            for name in ("airbench94-muon", "hiverge")
        ]  # fmt: skip
        found.append(Stage(name="kernels of all providers", share=0.25, files=("kernels-all.json",),
                           arguments=bench("kernels", "--out", "{}/kernels-all.json")))  # fmt: skip
    if peers:
        named = [word for each in peers for word in ("--peer", each)]
        words = ("versus", *of_data, *named, "--rounds", "2", "--out", "{}/versus.json")
        found.append(Stage(name="versus", share=1.0, files=("versus.json",), arguments=bench(*words)))
    return found


def run_stage(stage: Stage, seconds: float, out: Path) -> StageResult:
    """Run a part for at most `seconds`, and move the files it leaves to `out`."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryFile() as output:
        command = [sys.executable, *(word.replace("{}", scratch) for word in stage.arguments)]
        code = exit_code_within(seconds, command, stdout=output, stderr=subprocess.STDOUT)
        for name in stage.files:
            if (Path(scratch) / name).exists():
                shutil.copyfile(Path(scratch) / name, out / name)
        output.seek(0)
        text = output.read().decode(errors="replace")[-_OUTPUT_CHARACTERS:]
    return StageResult(name=stage.name, exit_code=code, seconds=time.monotonic() - started, output=text)


def run_gpu_suite(parts: Sequence[Stage], device: torch.device, minutes: float, out: Path) -> list[StageResult]:
    """Run `parts` in their order for `minutes` altogether, and save what they leave in the folder `out`.

    Returns:
        How each part ended that was begun.
    """
    began, whole = time.monotonic(), 60 * minutes
    about: dict[str, Any] = {"environment": environment(device), "minutes": minutes}
    out.mkdir(parents=True, exist_ok=True)
    results: list[StageResult] = []
    allowed = 0.0
    for stage in parts:
        allowed = min(allowed + stage.share * whole, whole)
        left = allowed - (time.monotonic() - began)
        if left <= 0:
            continue
        results.append(run_stage(stage, left, out))
        write_text(out / "suite.json", json.dumps(about | {"parts": [asdict(each) for each in results]}, indent=1))
        code = results[-1].exit_code
        ended = "cut off" if code is None else f"exit code {code}"
        print(f"{stage.name}: {ended} after {results[-1].seconds:.0f} s", flush=True)
    return results
