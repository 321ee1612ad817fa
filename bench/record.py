"""`bench record`: many runs of one recipe, and whether they prove what is claimed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from rich.console import Console
from rich.table import Table

from speedyresnet.engine.data import held_out
from speedyresnet.engine.errors import UserError
from speedyresnet.engine.files import Outputs
from speedyresnet.engine.pack import Pack
from speedyresnet.engine.ranks import launched
from speedyresnet.engine.recipe import Recipe, View
from speedyresnet.engine.record import RANKS, differences_told
from speedyresnet.engine.setup import PlacedRecipe
from speedyresnet.engine.trainer import Trainer

from .fleet import Fleet
from .pool import BASE, Pool, PoolPlan, kinds_of, open_pool
from .statistics import Summary, summary

Clock = Literal["train", "prepare+train", "total"]
CLOCKS: tuple[str, ...] = get_args(Clock)
VIEWS: tuple[str, ...] = get_args(View)


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What is claimed; none: nothing."""

    accuracy: float | None
    """A fraction, held against the lower bound of the mean."""
    view: str
    seconds: float | None
    """Held against the upper bound of the mean."""
    clock: str


def clock_seconds(record: dict[str, Any], clock: str) -> float:
    """What the run `record` took by `clock`."""
    seconds = record["seconds"]
    return float(seconds["prepare"] + seconds["train"] if clock == "prepare+train" else seconds[clock])


def check_view(recipe: Recipe, view: str) -> None:
    """Raise UserError for a view that `recipe` does not measure."""
    if VIEWS.index(view) > VIEWS.index(recipe.evaluation.view):
        raise UserError(f"--view {view} is not measured by {recipe.name}; add --set evaluation.view={view}")


def pack_to_test_on(pack: Pack, validation: int) -> Pack:
    """`pack`, or with `validation` its training images alone, so many of them held out to test on."""
    return held_out(pack, validation) if validation else pack


def record_runs(
    placed: PlacedRecipe,
    pack: Pack,
    plan: PoolPlan,
    out: Path,
    console: Console,
    outputs: Outputs | None = None,
) -> list[dict[str, Any]]:
    """Run the seeds of `plan` that `out` does not hold yet; see `run_pool`."""
    pack = pack_to_test_on(pack, plan.validation)
    trainer = Trainer(placed.with_data(pack.facts), pack)
    return run_pool({BASE: trainer}, plan, out, console, outputs)


def run_pool(
    trainers: Mapping[str, Trainer], plan: PoolPlan, out: Path, console: Console, outputs: Outputs | None = None
) -> list[dict[str, Any]]:
    """Run what `plan` wants and `out` does not hold yet, one line of it each; returns all its records.

    A run that is interrupted is not kept: it is run again when the pool goes on. One that the disk refuses is written
    with the next one or at the end. With a launcher all its ranks share the runs, see `fleet`, and only rank 0 opens
    the file and has the records; the others return none.

    Args:
        trainers: by arm.
        plan: what was decided beforehand.
        out: the JSON Lines file.
        console: is told of each run.
        outputs: of the command; an `out` that is refused does not end the runs. None: a note tells.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with all finished runs kept.
        UserError: `out` holds runs of another kind, is being written by another process, or cannot be opened.
    """
    outputs, ranks = outputs or Outputs(), launched()
    firsts = {arm: trainer.new_record(plan.first_seed) for arm, trainer in trainers.items()}
    work = partial(_finished_run, trainers)
    if not ranks.leads:
        Fleet(out).follow(kinds_of(plan, firsts), work)
        return []
    with open_pool(out, plan, firsts) as pool:
        missing, wanted = pool.missing_runs(), plan.runs * len(trainers)
        console.print(f"{wanted - len(missing)} of {wanted} runs are in {out}", highlight=False)
        keep = partial(_keep_run, pool, console, outputs)
        if ranks.size > 1:
            Fleet(out).lead(missing, kinds_of(plan, firsts), work, keep)
        else:
            for seed, arm in missing:
                keep(work(seed, arm), arm)
        outputs.attempt(out, pool.save)
        return pool.records


def _finished_run(trainers: Mapping[str, Trainer], seed: int, arm: str) -> dict[str, Any]:
    """Train a seed of an arm; the record as it is stored. KeyboardInterrupt where the run is interrupted."""
    record = trainers[arm].run(seed, validate=False)
    if record.status == "interrupted":
        raise KeyboardInterrupt
    stored: dict[str, Any] = json.loads(record.to_json())
    return stored


def _keep_run(pool: Pool, console: Console, outputs: Outputs, record: dict[str, Any], arm: str) -> None:
    """Add the record of a run to the pool, and tell of it."""
    outputs.attempt(pool.path, partial(pool.add, record, arm), again=True)
    view = record["recipe"]["evaluation"]["view"]
    place = f" on {record['device']}" if devices_at_once([record]) > 1 else ""
    console.print(
        f"{arm}, " * bool(pool.plan.variants) + f"seed {record['seed']}: {record['status']}, "
        f"{100 * record['accuracy'][view]:.2f} % {view}, total {record['seconds']['total']:.3f} s{place}",
        highlight=False,
        markup=False,
    )


def devices_at_once(records: Sequence[dict[str, Any]]) -> int:
    """On how many devices runs were done side by side, at most, as the records say."""
    return max(int(record["environment"].get(RANKS, 1)) for record in records)


def neighbours_of(records: Sequence[dict[str, Any]]) -> dict[str, int]:
    """On how many devices runs were done side by side, where there were several, as a result tells it."""
    devices = devices_at_once(records)
    return {"devices_at_once": devices} if devices > 1 else {}


def neighbours_told(result: Mapping[str, Any]) -> str | None:
    """`neighbours_of` a result in words; none where runs had no neighbours."""
    if "devices_at_once" not in result:
        return None
    return (
        f"up to {result['devices_at_once']} devices ran at once: neighbours share power and host, so a run alone may "
        f"take less time"
    )


def summaries(records: Sequence[dict[str, Any]]) -> dict[str, Summary]:
    """Of each view that was measured and of each clock; every run counts, diverged ones too."""
    views = [view for view in VIEWS if records[0]["accuracy"][view] is not None]
    found = {view: summary([record["accuracy"][view] for record in records]) for view in views}
    return found | {clock: summary([clock_seconds(record, clock) for record in records]) for clock in CLOCKS}


def verdicts(found: dict[str, Summary], targets: Targets) -> list[dict[str, Any]]:
    """For each target: what was asked, the bound it is held against, and whether it is met."""
    rows: list[dict[str, Any]] = []
    if targets.accuracy is not None:
        bound = found[targets.view].lower_bound
        met = bound is not None and bound >= targets.accuracy
        rows.append({"of": targets.view, "target": targets.accuracy, "lower_bound": bound, "met": met})
    if targets.seconds is not None:
        bound = found[targets.clock].upper_bound
        met = bound is not None and bound <= targets.seconds
        rows.append({"of": targets.clock, "target": targets.seconds, "upper_bound": bound, "met": met})
    return rows


def report(records: Sequence[dict[str, Any]], targets: Targets) -> dict[str, Any]:
    """The whole result as plain values."""
    found = summaries(records)
    return {
        "recipe": {key: records[0]["recipe"][key] for key in ("name", "hash")},
        "data": records[0]["data"],
        "environment": records[0]["environment"],
        "device": records[0]["device"],
        "backend": records[0]["backend"],
        "kernels": records[0]["kernels"],
        "requested": records[0].get("requested"),
        "dtype": records[0]["dtype"],
        "pool": records[0]["pool"],
        "runs": len(records),
        "diverged": sum(record["status"] == "diverged" for record in records),
        **neighbours_of(records),
        "weights": records[0]["accuracy"]["weights"],
        "accuracy": {name: asdict(value) for name, value in found.items() if name in VIEWS},
        "seconds": {name: asdict(value) for name, value in found.items() if name in CLOCKS},
        "targets": verdicts(found, targets),
    }


def print_report(console: Console, result: dict[str, Any]) -> None:
    """The result as a table and a line a target."""
    name, runs, diverged = result["recipe"]["name"], result["runs"], result["diverged"]
    table = Table(title=f"{name} on {result['data']['name']}: {runs} runs, {diverged} diverged")
    table.add_column("", no_wrap=True)
    for column in ("mean", "std", "min", "median", "max", "bound"):
        table.add_column(column, justify="right", no_wrap=True)
    for kind, factor, digits in (("accuracy", 100.0, 2), ("seconds", 1.0, 3)):
        for row, value in result[kind].items():
            low = kind == "accuracy"
            bound = value["lower_bound"] if low else value["upper_bound"]
            keys = ("mean", "std", "minimum", "median", "maximum")
            cells = ["" if value[key] is None else f"{factor * value[key]:.{digits}f}" for key in keys]
            last = "" if bound is None else f"{'>' if low else '<'} {factor * bound:.{digits}f}"
            table.add_row(f"{row}, {'%' if low else 's'}", *cells, last)
    console.print(table)
    console.print("bound: of the mean, one-sided, 95 % confidence, Student's t", highlight=False)
    for told in filter(None, (differences_told(result), neighbours_told(result))):
        console.print(told, highlight=False, markup=False)
    for target in result["targets"]:
        factor = 100.0 if target["of"] in VIEWS else 1.0
        kind = "lower_bound" if target["of"] in VIEWS else "upper_bound"
        bound = "unknown from one run" if target[kind] is None else f"{factor * target[kind]:.3f}"
        verdict = "met" if target["met"] else "missed"
        console.print(
            f"target {factor * target['target']:g} for {target['of']}: {verdict} (bound {bound})", highlight=False
        )
