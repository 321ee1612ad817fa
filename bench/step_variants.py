"""Milliseconds of each kind of step, and seconds of a run, under one change at a time, in one process.

`python -m speedyresnet.bench.step_variants --data synthetic --variant speedy --variant 'speedy kernels=reference' --out
variants.json`; a variant is a recipe and settings, as for `bench compare`. Nothing is trained to its end: the time of a
run is that of its steps, each kind counted as often as a run takes it. A variant that fails is a row with its error;
then the exit code is 1, and the others are measured all the same. With `--overlap` each variant has a second row, in
which what is behind group 1 is updated on a second stream while the backward pass goes on (`step.training_step`).
"""

import gc
import itertools
import json
import statistics
import traceback
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from speedyresnet.engine.backends import AUTO
from speedyresnet.engine.cli import BackendOption, DeviceOption, SetOption, run_command_line
from speedyresnet.engine.data import load_data
from speedyresnet.engine.device import pick_device
from speedyresnet.engine.errors import UserError
from speedyresnet.engine.files import Outputs, check_outputs, write_text
from speedyresnet.engine.pack import Pack
from speedyresnet.engine.record import environment
from speedyresnet.engine.setup import PlacedRecipe, place_recipe
from speedyresnet.engine.trainer import Trainer

from .compare import arm_of
from .step_time import timed_round

app = typer.Typer(add_completion=False)
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


def variant_row(variant: str, placed: PlacedRecipe, pack: Pack, *, overlap: bool = False) -> dict[str, Any]:
    """What is known of a variant, which `placed` is, once it has been measured, or why it could not be."""
    try:
        trainer = Trainer(placed.with_data(pack.facts), pack, overlap=overlap)
        kinds = kinds_of_steps(trainer)
    except (UserError, RuntimeError) as error:
        traceback.print_exc()
        return {"variant": variant, "overlap": overlap, "error": f"{type(error).__name__}: {error}"}
    return {
        "variant": variant,
        "overlap": overlap,
        "recipe": {"name": placed.recipe.name, "hash": placed.recipe.hash},
        "backend": trainer.backend,
        "kernels": trainer.kernels,
        "build_seconds": trainer.build_seconds,
        "kinds": kinds,
        "run_seconds": sum(each["steps"] * each["milliseconds"] for each in kinds) / 1e3,
    }


def told(row: dict[str, Any]) -> str:
    """A row as a line."""
    name = row["variant"] + " on two streams" * row["overlap"]
    if "error" in row:
        return f"{name}: {row['error']}"
    steps = ", ".join(f"{each['steps']} x {each['milliseconds']:.3f}" for each in row["kinds"])
    return f"{name}: {row['run_seconds']:.3f} s a run, build {row['build_seconds']:.1f} s; ms a step: {steps}"


@app.command()
def main(
    data: Annotated[str, typer.Option("--data", help="A name, a pack file or an image folder.")],
    variants: Annotated[list[str], typer.Option("--variant", help="A recipe and settings, parted by spaces.")],
    out: Annotated[Path, typer.Option("--out", help="Write the result to this JSON file.")],
    settings: SetOption = None,
    device: DeviceOption = "auto",
    backend: BackendOption = AUTO,
    overlap: Annotated[
        bool, typer.Option("--overlap", help="Measure each variant on two streams, too: optimizer beside backward.")
    ] = False,
) -> None:
    """Measure all variants, storing the rows after each (exit code 1: one failed)."""
    place = pick_device(device)
    arms = [arm_of(f"{variant} {' '.join(settings or ())}", "speedy", (), backend) for variant in variants]
    placed = [place_recipe(arm.recipe, place, arm.backend) for arm in arms]
    check_outputs([out], [data])
    pack = load_data(data)
    rows: list[dict[str, Any]] = []
    with Outputs() as outputs:
        for (variant, each), two in itertools.product(zip(variants, placed, strict=True), (False, True)[: 1 + overlap]):
            rows.append(variant_row(variant, each, pack, overlap=two))
            print(told(rows[-1]), flush=True)
            result = {"environment": environment(place), "data": pack.name, "rows": rows}
            text = json.dumps(result, indent=1) + "\n"
            outputs.attempt(out, partial(write_text, out, text), again=True)
            gc.collect()
            if place.type == "cuda":
                torch.cuda.empty_cache()
    raise typer.Exit(1 if any("error" in row for row in rows) else 0)


if __name__ == "__main__":
    run_command_line(app)
