"""`bench compare --design factorial`: the main effects of up to 15 changes, from 16 configurations or 32 folded over.

Each change is a factor of two levels, with and without. A regular fractional factorial design combines them so that
every factor is on in half of the configurations, and any two factors meet in all four ways equally often. The effect of
a factor is the mean of the runs with it minus the mean of those without, so every run counts for every factor: 16 x 20
runs tell 15 effects as precisely as 160 runs with and 160 without would tell a single one.

The price is confounding: what two factors do to each other adds to the effect of a third. Where at most half of the
columns are taken, or the design is folded over (every configuration again with all levels swapped), main effects are
free of interactions of two factors. Source: Box, Hunter and Hunter, "Statistics for Experimenters" (2005), chapter 6.
"""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from speedyresnet.engine.errors import UserError
from speedyresnet.engine.recipes import recipe as recipe_called

from .compare import Arm, Run, arm_of, arm_row, print_neighbours, runs_of, what_was_run
from .pool import BASE, PoolPlan
from .statistics import Interval, mean_interval
from .verdicts import seconds_per_tenth_point, told, verdict_at_rate, verdict_on

SCHEMA = "speedyresnet.screening/1"
MOST_FACTORS = 15


@dataclass(frozen=True, slots=True)
class Factor:
    """A change that is made or not made."""

    name: str
    settings: tuple[str, ...]
    """`key=value`, all of them together."""


@dataclass(frozen=True, slots=True)
class Design:
    """Which factors are on in which configuration."""

    factors: tuple[Factor, ...]
    columns: tuple[int, ...]
    """One a factor: it is on in configuration i where i and the column share an odd number of bits."""
    configurations: int
    """A power of two, without those of the fold-over."""
    folded: bool

    @property
    def levels(self) -> list[tuple[bool, ...]]:
        """For each configuration whether each factor is on; in the first, the base, none is."""
        plain = [
            tuple((row & column).bit_count() % 2 == 1 for column in self.columns) for row in range(self.configurations)
        ]
        return plain + [tuple(not level for level in row) for row in plain] * self.folded

    @property
    def names(self) -> tuple[str, ...]:
        """Of the configurations: the factors that are on."""
        rows = ([each.name for each, on in zip(self.factors, row, strict=True) if on] for row in self.levels)
        return tuple(" ".join(row) or BASE for row in rows)

    def confounded(self, factor: int) -> list[tuple[str, str]]:
        """Pairs of factors whose interaction cannot be told from the effect of number `factor`."""
        if self.folded:
            return []
        pairs = itertools.combinations(range(len(self.factors)), 2)
        found = [pair for pair in pairs if self.columns[pair[0]] ^ self.columns[pair[1]] == self.columns[factor]]
        return [(self.factors[first].name, self.factors[second].name) for first, second in found]


def design_of(variants: Sequence[str], *, folded: bool) -> Design:
    """The smallest design for the changes that `variants` describe, each `key=value` settings parted by spaces.

    Raises:
        UserError: no settings, too few or too many factors, or two factors that set the same key.
    """
    factors = [_factor(variant) for variant in variants]
    if not 2 <= len(factors) <= MOST_FACTORS:
        raise UserError(f"--design factorial takes 2 to {MOST_FACTORS} factors, each a --variant, not {len(factors)}")
    keys: dict[str, str] = {}
    for factor in factors:
        for setting in factor.settings:
            key = setting.partition("=")[0]
            if key in keys:
                raise UserError(
                    f"factors {keys[key]!r} and {factor.name!r} both set {key}: combine or drop one of them"
                )
            keys[key] = factor.name
    configurations = max(4, 1 << len(factors).bit_length())  # more than there are factors
    # Columns of an odd number of bits first: the product of two of them is none of them.
    columns = sorted(range(1, configurations), key=lambda column: (column.bit_count() % 2 == 0, column.bit_count()))
    taken = tuple(columns[: len(factors)])
    if folded and all(column.bit_count() % 2 for column in taken):
        raise UserError(
            f"--fold-over: the {configurations} configurations for {len(factors)} factors are free of interactions of "
            f"two factors already; leave it out"
        )
    return Design(tuple(factors), taken, configurations, folded)


def _factor(variant: str) -> Factor:
    words = variant.split()
    if not words or any("=" not in word or word.startswith("backend=") for word in words):
        raise UserError(f"--variant {variant!r}: a factor is settings only, as in --variant 'loss.label_smoothing=0.1'")
    return Factor(" ".join(words), tuple(words))


def design_arms(design: Design, recipe: str, settings: Sequence[str], backend: str) -> list[Arm]:
    """An arm for each configuration; see `compare.arm_of`.

    Raises:
        UserError: settings that do not go together.
    """
    arms = [arm_of(name, recipe, settings, backend) for name in design.names if name != BASE]
    return [Arm(BASE, recipe_called(recipe, settings), backend), *arms]


def _effect(on: Sequence[bool], values: "np.ndarray[Any, Any]") -> Interval:
    """Difference of the means with and without a factor, of one value a configuration (rows) and seed (columns).

    Each seed gives one difference, in which what the runs of a seed share cancels.
    """
    chosen = np.array(on)
    return mean_interval(list(values[chosen].mean(0) - values[~chosen].mean(0)))


def _effect_row(
    design: Design, number: int, runs: Sequence[Sequence[Run]], rate: float | None, base_seconds: float
) -> dict[str, Any]:
    """The main effect of a factor as plain values."""
    on = [row[number] for row in design.levels]
    accuracies, times = (
        np.array([[getattr(run, key) for run in own] for own in runs]) for key in ("accuracy", "seconds")
    )
    accuracy, seconds = _effect(on, accuracies), _effect(on, times)
    if rate is None:
        verdict, why = verdict_on(accuracy, seconds, base_seconds)
    else:
        verdict, why = verdict_at_rate(_effect(on, 1000 * rate * accuracies - times), rate)
    return {
        "name": design.factors[number].name,
        "accuracy": asdict(accuracy),
        "seconds": asdict(seconds),
        "seconds_per_tenth_point": seconds_per_tenth_point(accuracy, seconds),
        "verdict": verdict,
        "why": why,
        "confounded_with": [list(pair) for pair in design.confounded(number)],
    }


def screening(
    records: Sequence[dict[str, Any]], plan: PoolPlan, design: Design, view: str | None, clock: str,
    rate: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The whole result as plain values.

    Args:
        records: all runs of a pool whose arms are the configurations of `design`.
        plan: of the pool.
        design: which factors are on where.
        view: of the accuracies; none: of each recipe its own.
        clock: of the times.
        rate: seconds that 0.1 point of accuracy is worth; none: nobody says.
    """
    runs = [runs_of(records, arm, view, clock) for arm in plan.arms]
    base_seconds = float(np.mean([run.seconds for run in runs[0]]))
    return {
        "schema": SCHEMA,
        **what_was_run(records, plan, view, clock),
        "folded_over": design.folded,
        "arms": [arm_row(arm, records, own) for arm, own in zip(plan.arms, runs, strict=True)],
        "diverged": sum(run.status == "diverged" for own in runs for run in own),
        "effects": [_effect_row(design, number, runs, rate, base_seconds) for number in range(len(design.factors))],
    }


def confounding_told(result: dict[str, Any]) -> str:
    """What the main effects of a screening cannot be told from, in one sentence."""
    mixed = [each for each in result["effects"] if each["confounded_with"]]
    if not mixed:
        return "Main effects are free of interactions of two factors; interactions of three are confounded with them."
    names = mixed[0]["name"], " and ".join(mixed[0]["confounded_with"][0])
    return (
        f"Interactions are confounded with main effects: that of {names[0]} contains what {names[1]} do to each other, "
        f"among others (confounded_with in --json). --fold-over frees all of them; confirm what wins with fresh seeds."
    )


def print_screening(console: Console, result: dict[str, Any]) -> None:
    """The effects as a table, the largest gain in accuracy first, and what they are confounded with."""
    name, data, seeds = result["recipe"]["name"], result["data"]["name"], len(result["seeds"])
    runs = seeds * len(result["arms"])
    table = Table(
        title=f"{name} on {data}: {len(result['arms'])} configurations x {seeds} seeds = {runs} runs; "
        f"{result['view']} view, {result['clock']} clock"
    )
    table.add_column("factor", overflow="fold")
    for column in ("points more", "seconds more", "s per 0.1 point"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for each in sorted(result["effects"], key=lambda each: -float(each["accuracy"]["mean"])):
        accuracy, seconds = (Interval(**each[key]) for key in ("accuracy", "seconds"))
        rate = each["seconds_per_tenth_point"]
        price = "" if rate is None else f"{rate:.3f}"
        table.add_row(each["name"], told(accuracy, 100, 2, ""), told(seconds, 1, 3, ""), price, each["verdict"])
    console.print(table)
    if result["diverged"]:
        console.print(f"{result['diverged']} of {runs} runs diverged; they count as guesses", highlight=False)
    console.print(confounding_told(result), highlight=False, markup=False)
    print_neighbours(console, result)
    console.print("(from to): 95 % confidence, Student's t on one effect a seed", highlight=False)
