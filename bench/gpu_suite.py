"""Everything worth knowing of a machine in a few minutes, the most valuable first, each part saved as it ends.

environment.json, tests.json (the GPU tests), steps.json (time of a step by recipe and backend) and runs.jsonl (as
many full airbench94 runs as fit; compiled steps come after them). A suite that is cut off leaves what it measured
before.
"""

import json
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from speedyresnet.engine.backends import BACKENDS
from speedyresnet.engine.data import Pack
from speedyresnet.engine.files import write_text
from speedyresnet.engine.recipe import recipe
from speedyresnet.engine.recipes import registered_recipes
from speedyresnet.engine.record import environment
from speedyresnet.engine.trainer import Trainer

from .step_time import measure_steps

_CHECKOUT = Path(__file__).resolve().parent.parent


def run_gpu_suite(pack: Pack, device: torch.device, minutes: float, out: Path, settings: Sequence[str] = ()) -> None:
    """Measure on `device` for `minutes` and save the parts in the folder `out`.

    Tests get at most a third of the time, full runs what is left of two thirds, compiled steps the rest; a measurement
    or run that has begun is finished. `settings` are applied to every recipe.
    """
    started, seconds = time.monotonic(), 60 * minutes
    about = environment(device)
    _save(out / "environment.json", about)
    _save(out / "tests.json", _gpu_tests(seconds / 3))
    steps: list[dict[str, Any]] = []

    def measure_steps(backend: str) -> None:
        for row in _step_times(pack, device, backend, started + seconds, settings):
            steps.append(row)
            _save(out / "steps.json", {"environment": about, "data": pack.name, "steps": steps})

    measure_steps("eager")
    _full_runs(pack, device, started + seconds * 2 / 3, out / "runs.jsonl", settings)
    for backend in BACKENDS[1:]:
        measure_steps(backend)


def _save(path: Path, document: Any) -> None:
    write_text(path, json.dumps(document, indent=1) + "\n")
    print(f"saved {path}", flush=True)


def _gpu_tests(seconds: float) -> dict[str, Any]:
    """The tests marked gpu, in a process of their own; an installed wheel has none."""
    if not (_CHECKOUT / "tests").is_dir():
        return {"exit_code": None, "output": "no tests beside the installed package"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    try:
        done = subprocess.run(command, cwd=_CHECKOUT, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"exit_code": None, "output": f"not finished after {seconds:.0f} s"}
    return {"exit_code": done.returncode, "output": (done.stdout + done.stderr)[-8000:]}


def _step_times(
    pack: Pack, device: torch.device, backend: str, deadline: float, settings: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Time of a step of each recipe, airbench94 first."""
    steps = 10 if device.type == "cuda" else 1
    for name in sorted(registered_recipes(), key=lambda each: (each != "airbench94", each)):
        if time.monotonic() >= deadline:
            return
        row: dict[str, Any] = {"recipe": name, "backend": backend}
        try:
            yield row | asdict(measure_steps(recipe(name, settings), pack, device, [backend], rounds=5, steps=steps)[0])
        except Exception:  # one failing combination is a result; the others are still wanted
            yield row | {"error": traceback.format_exc()[-4000:]}


def _full_runs(pack: Pack, device: torch.device, deadline: float, out: Path, settings: Sequence[str]) -> None:
    """Whole airbench94 runs with seeds 0, 1, ... as long as the next one still fits."""
    trainer, seed, longest = Trainer(recipe("airbench94", settings), pack, device, "eager"), 0, 0.0
    with out.open("a", encoding="utf-8") as file:
        while time.monotonic() + longest < deadline:
            started = time.monotonic()
            record = trainer.run(seed)
            file.write(record.to_json(indent=None) + "\n")
            file.flush()
            print(f"seed {seed}: {record.accuracy}, {record.seconds}", flush=True)
            longest, seed = max(longest, time.monotonic() - started), seed + 1
            if record.status == "interrupted":
                raise KeyboardInterrupt
