"""`bench compare`: variants of a recipe against the recipe, the same seeds in turns, and whether they are better.

Differences are paired by seed: the two runs of a seed draw the same numbers and are neighbours in time, so that what
they share cancels. A pair that trains on other images or weights shares less, which the intervals show. Every run
counts; one that diverged guesses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from speedyresnet.engine.errors import UserError
from speedyresnet.engine.files import Outputs
from speedyresnet.engine.pack import Pack
from speedyresnet.engine.recipe import Group, Recipe
from speedyresnet.engine.recipes import recipe as recipe_called
from speedyresnet.engine.settings import with_settings
from speedyresnet.engine.setup import PlacedRecipe, place_recipe
from speedyresnet.engine.trainer import Trainer

from .pool import BASE, PoolPlan
from .record import check_view, clock_seconds, neighbours_of, neighbours_told, pack_to_test_on, run_pool
from .statistics import CONFIDENCE, Interval, mean_interval
from .verdicts import seconds_per_tenth_point, told, verdict_at_rate, verdict_of_diverged, verdict_on

SCHEMA = "speedyresnet.comparison/1"
OWN_VIEW = "each recipe's own"


@dataclass(frozen=True, slots=True)
class Arm:
    """One of what is compared."""

    name: str
    recipe: Recipe
    backend: str


def arm_of(variant: str, recipe: str, settings: Sequence[str], backend: str) -> Arm:
    """The arm that a `--variant` describes.

    Args:
        variant: `key=value` settings, `backend=NAME` and at most one recipe, parted by spaces.
        recipe: of the base; a variant may name another.
        settings: of the base; those of the variant come on top.
        backend: of the base.

    Raises:
        UserError: no or several recipes, an unknown one, or a setting that is none.
    """
    words = variant.split()
    recipes = [word for word in words if "=" not in word]
    backends = [word.removeprefix("backend=") for word in words if word.startswith("backend=")]
    changes = [word for word in words if "=" in word and not word.startswith("backend=")]
    if not words or len(recipes) > 1:
        raise UserError(f"--variant {variant!r}: write settings, a recipe, or both, as in --variant 'pocket epochs=8'")
    made = recipe_called(recipes[0] if recipes else recipe, [*settings, *changes])
    return Arm(" ".join(words), made, (backends or [backend])[-1])


def group_arms(group: Group, settings: Sequence[str], backend: str) -> list[Arm]:
    """The base of a group and its variants, these by their names within it.

    Raises:
        UserError: a setting that is none.
    """
    names = BASE, *(each.name.removeprefix(f"{group.name}/") for each in group.variants)
    return [Arm(name, with_settings(each, settings), backend) for name, each in zip(names, group.members, strict=True)]


def place_arms(arms: Sequence[Arm], view: str | None, device: torch.device) -> dict[str, PlacedRecipe]:
    """The arms on a device, by their names.

    Raises:
        UserError: arms that are the same, a backend that cannot run, or a view that an arm does not measure.
    """
    seen: dict[tuple[str, str], str] = {}
    found = {}
    for arm in arms:
        found[arm.name] = placed = place_recipe(arm.recipe, device, arm.backend)
        if view is not None:
            check_view(arm.recipe, view)
        key = arm.recipe.hash, placed.backends[0]
        if key in seen:
            raise UserError(f"variant {arm.name!r} is the same as {seen[key]!r}; change something or leave it out")
        seen[key] = arm.name
    return found


def compare_runs(
    arms: Mapping[str, PlacedRecipe],
    pack: Pack,
    plan: PoolPlan,
    out: Path,
    console: Console,
    outputs: Outputs | None = None,
) -> list[dict[str, Any]]:
    """Train all arms with all seeds of `plan`; see `record.run_pool`.

    Each arm keeps its own copy of the data and, where CUDA graphs are replayed, the memory of its steps and evaluation.
    """
    pack = pack_to_test_on(pack, plan.validation)
    trainers = {name: Trainer(placed.with_data(pack.facts), pack) for name, placed in arms.items()}
    return run_pool(trainers, plan, out, console, outputs)


@dataclass(frozen=True, slots=True)
class Run:
    """What counts of a run."""

    seed: int
    status: str
    accuracy: float
    seconds: float


def runs_of(records: Sequence[dict[str, Any]], arm: str, view: str | None, clock: str) -> list[Run]:
    """Of an arm, by seed."""
    own = sorted((each for each in records if each["arm"] == arm), key=lambda each: int(each["seed"]))
    return [
        Run(
            seed=each["seed"],
            status=each["status"],
            accuracy=each["accuracy"][view or each["recipe"]["evaluation"]["view"]],
            seconds=clock_seconds(each, clock),
        )
        for each in own
    ]


def _diverged(base: Sequence[Run], runs: Sequence[Run]) -> str | None:
    """Whose runs diverged, in words; none where all came to their end."""
    counts = [("the base's", base), ("the variant's", runs)]
    found = [(sum(run.status == "diverged" for run in own), name, len(own)) for name, own in counts]
    return " and ".join(f"{count} of {name} {n} runs diverged" for count, name, n in found if count) or None


def difference(name: str, base: Sequence[Run], runs: Sequence[Run], rate: float | None) -> dict[str, Any]:
    """A variant against the base, paired by seed, as plain values.

    Args:
        name: of the variant.
        base: its runs, by seed.
        runs: the variant's, by the same seeds.
        rate: seconds that 0.1 point of accuracy is worth; none: nobody says.
    """
    pairs = list(zip(runs, base, strict=True))
    accuracy = mean_interval([own.accuracy - other.accuracy for own, other in pairs])
    seconds = mean_interval([own.seconds - other.seconds for own, other in pairs])
    diverged = _diverged(base, runs)
    if diverged:
        verdict, why = verdict_of_diverged(accuracy, diverged)
    elif rate is not None:
        worth = [1000 * rate * (own.accuracy - other.accuracy) - (own.seconds - other.seconds) for own, other in pairs]
        verdict, why = verdict_at_rate(mean_interval(worth), rate)
    else:
        verdict, why = verdict_on(accuracy, seconds, sum(run.seconds for run in base) / len(base))
    return {
        "name": name,
        "runs": len(pairs),
        "accuracy": asdict(accuracy),
        "seconds": asdict(seconds),
        "seconds_per_tenth_point": None if diverged else seconds_per_tenth_point(accuracy, seconds),
        "verdict": verdict,
        "why": why,
    }


def arm_row(name: str, records: Sequence[dict[str, Any]], runs: Sequence[Run]) -> dict[str, Any]:
    """An arm as plain values."""
    first = next(each for each in records if each["arm"] == name)
    return {
        "name": name,
        "recipe": first["recipe"],
        "backend": first["backend"],
        "runs": [asdict(run) for run in runs],
        "accuracy": asdict(mean_interval([run.accuracy for run in runs])),
        "seconds": asdict(mean_interval([run.seconds for run in runs])),
    }


def what_was_run(records: Sequence[dict[str, Any]], plan: PoolPlan, view: str | None, clock: str) -> dict[str, Any]:
    """What any result of a pool with several arms says of its runs, as plain values; see `comparison`."""
    views = {each["recipe"]["evaluation"]["view"] for each in records}
    first = next(each for each in records if each["arm"] == BASE)
    return {
        "recipe": {key: first["recipe"][key] for key in ("name", "hash")},
        "data": first["data"],
        "environment": first["environment"],
        "device": first["device"],
        **neighbours_of(records),
        "view": view or (views.pop() if len(views) == 1 else OWN_VIEW),
        "clock": clock,
        "confidence": CONFIDENCE,
        "seeds": list(plan.seeds),
    }


def comparison(
    records: Sequence[dict[str, Any]], plan: PoolPlan, view: str | None, clock: str, rate: float | None = None
) -> dict[str, Any]:
    """The whole result as plain values.

    Args:
        records: all runs of a pool with variants.
        plan: of the pool.
        view: of the accuracies; none: of each recipe its own.
        clock: of the times.
        rate: seconds that 0.1 point of accuracy is worth; none: nobody says.
    """
    runs = {arm: runs_of(records, arm, view, clock) for arm in plan.arms}
    return {
        "schema": SCHEMA,
        **what_was_run(records, plan, view, clock),
        "arms": [arm_row(arm, records, runs[arm]) for arm in plan.arms],
        "differences": [difference(arm, runs[BASE], runs[arm], rate) for arm in plan.variants],
    }


def print_neighbours(console: Console, result: dict[str, Any]) -> None:
    """Say where runs were done on several devices side by side; see `what_was_run`."""
    if told := neighbours_told(result):
        console.print(told, highlight=False, markup=False)


def print_comparison(console: Console, result: dict[str, Any]) -> None:
    """The result as a table, and a sentence a variant."""
    name, data, seeds = result["recipe"]["name"], result["data"]["name"], len(result["seeds"])
    table = Table(title=f"{name} on {data}, each with {seeds} seeds; {result['view']} view, {result['clock']} clock")
    table.add_column("", overflow="fold")
    for column in ("accuracy, %", "seconds", "points more", "seconds more", "s per 0.1 point"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    differences = {each["name"]: each for each in result["differences"]}
    for arm in result["arms"]:
        cells = [f"{100 * arm['accuracy']['mean']:.2f}", f"{arm['seconds']['mean']:.3f}"]
        if arm["name"] in differences:
            cells += _difference_cells(differences[arm["name"]])
        table.add_row(arm["name"], *cells)
    console.print(table)
    for each in result["differences"]:
        console.print(f"{each['name']}: {each['verdict']}. {each['why']}", highlight=False, markup=False)
    print_neighbours(console, result)
    console.print("(from to): 95 % confidence, Student's t on the differences paired by seed", highlight=False)


def _difference_cells(row: dict[str, Any]) -> list[str]:
    rate = row["seconds_per_tenth_point"]
    accuracy, seconds = (Interval(**row[key]) for key in ("accuracy", "seconds"))
    return [told(accuracy, 100, 2, ""), told(seconds, 1, 3, ""), "" if rate is None else f"{rate:.3f}", row["verdict"]]
