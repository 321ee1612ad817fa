"""Milliseconds of each kind of step, and seconds of a run, under one change at a time, in one process.

`python -m speedyresnet.bench.step_variants --data synthetic --variant speedy --variant 'speedy kernels=reference' --out
variants.json`; a variant is a recipe and settings, as for `bench compare`. Nothing is trained to its end: the time of a
run is that of its steps, each kind counted as often as a run takes it. A variant that fails is a row with its error;
then the exit code is 1, and the others are measured all the same.
"""

import argparse
import gc
import json
import statistics
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from speedyresnet.engine.backends import AUTO
from speedyresnet.engine.data import Pack, load_data
from speedyresnet.engine.errors import UserError
from speedyresnet.engine.files import Outputs, check_outputs, write_text
from speedyresnet.engine.record import environment
from speedyresnet.engine.trainer import Trainer, pick_device

from .compare import arm_of
from .step_time import timed_round

ROUNDS = 5
"""Medians are over so many, after one that is thrown away."""
STEPS = 20
"""A round, at most."""


def kinds_of_steps(trainer: Trainer) -> list[dict[str, float]]:
    """Of each kind of step in the order of a run: how many a run takes, and the milliseconds of one."""
    trainer.prepare(0)
    trainer.net.train()
    found = []
    for step, count in trainer.counted_steps:
        rounds = [timed_round(trainer, min(STEPS, count), step)[0] for _ in range(ROUNDS + 1)][1:]
        found.append({"steps": count, "milliseconds": 1e3 * statistics.median(rounds)})
    return found


def variant_row(
    variant: str, settings: Sequence[str], backend: str, pack: Pack, device: torch.device
) -> dict[str, Any]:
    """What is known of a variant once it has been measured, or why it could not be."""
    try:
        arm = arm_of(variant + " " + " ".join(settings), "speedy", (), backend)
        trainer = Trainer(arm.recipe, pack, device, arm.backend)
        kinds = kinds_of_steps(trainer)
    except (UserError, RuntimeError) as error:
        traceback.print_exc()
        return {"variant": variant, "error": f"{type(error).__name__}: {error}"}
    return {
        "variant": variant,
        "recipe": {"name": arm.recipe.name, "hash": arm.recipe.hash},
        "backend": trainer.backend,
        "kernels": trainer.kernels,
        "build_seconds": trainer.build_seconds,
        "kinds": kinds,
        "run_seconds": sum(each["steps"] * each["milliseconds"] for each in kinds) / 1e3,
    }


def told(row: dict[str, Any]) -> str:
    """A row as a line."""
    if "error" in row:
        return f"{row['variant']}: {row['error']}"
    steps = ", ".join(f"{each['steps']} x {each['milliseconds']:.3f}" for each in row["kinds"])
    return f"{row['variant']}: {row['run_seconds']:.3f} s a run, build {row['build_seconds']:.1f} s; ms a step: {steps}"


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    found = argparse.ArgumentParser(prog="python -m speedyresnet.bench.step_variants", description=__doc__)
    found.add_argument("--data", required=True)
    found.add_argument("--device", default="auto")
    found.add_argument("--backend", default=AUTO)
    found.add_argument("--variant", dest="variants", action="append", required=True)
    found.add_argument("--set", dest="settings", action="append", default=[])
    found.add_argument("--out", type=Path, required=True)
    return found


def main() -> None:
    """Measure all variants, storing the rows after each, and exit with 1 where one failed."""
    given = parser().parse_args()
    check_outputs([given.out], [given.data])
    device, pack = pick_device(given.device), load_data(given.data)
    rows: list[dict[str, Any]] = []
    with Outputs() as outputs:
        for variant in given.variants:
            rows.append(variant_row(variant, given.settings, given.backend, pack, device))
            print(told(rows[-1]), flush=True)
            result = {"environment": environment(device), "data": pack.name, "rows": rows}
            text = json.dumps(result, indent=1) + "\n"
            outputs.attempt(given.out, partial(write_text, given.out, text), again=True)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    sys.exit(1 if any("error" in row for row in rows) else 0)


if __name__ == "__main__":
    main()
