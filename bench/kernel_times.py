"""`bench kernels`: the time of every case and its floor."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from speedyresnet.engine.recipe import Recipe
from speedyresnet.engine.record import environment
from speedyresnet.engine.step import TrainingState

from .cases import Case, random_state
from .roofline import Ceilings, measured_ceilings
from .timers import HOST_INCLUDED, Timing, interleaved, stopwatch

_STORED = ("name", "operation", "layer", "provider", "direction", "shape", "dtype", "bytes", "flops")


def measured_cases(cases: Sequence[Case], state: TrainingState, rounds: int) -> list[tuple[Case, Timing]]:
    """Time `cases` on the device of `state`, interleaving those of one operation.

    Args:
        cases: sorted by operation.
        state: see `cases.random_state`.
        rounds: number of rounds for the medians.
    """
    device, found = state.images.device, list[tuple[Case, Timing]]()
    for _, group in itertools.groupby(cases, key=lambda case: case.operation):
        alike = list(group)
        watches = [stopwatch(case.make(state).call, device) for case in alike]
        found += zip(alike, interleaved(watches, rounds), strict=True)
    return found


def described(case: Case) -> dict[str, Any]:
    """Return what is known about a case before it is measured."""
    return {key: getattr(case, key) for key in _STORED}


def row(case: Case, timing: Timing, ceilings: Ceilings) -> dict[str, Any]:
    """Return everything known about a measured case."""
    floor = ceilings.floor(case.bytes, case.flops, case.dtype)
    return described(case) | {
        "seconds": timing.seconds,
        "low": timing.low,
        "high": timing.high,
        "rounds": timing.rounds,
        "method": timing.method,
        "bytes_per_second": case.bytes / timing.seconds,
        "flops_per_second": case.flops / timing.seconds,
        "floor_seconds": floor,
        "floor_share": floor / timing.seconds,
    }


def cases_report(
    recipe: Recipe, dtype: torch.dtype, device: torch.device, cases: Sequence[Case], rounds: int
) -> dict[str, Any]:
    """Return cases of `recipe` as plain values: measured over `rounds`, or only described if `rounds` is 0."""
    result = {
        "recipe": {"name": recipe.name, "hash": recipe.hash, "batch_size": recipe.batch_size},
        "environment": environment(device),
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
    }
    if rounds == 0:
        return result | {"cases": [described(case) for case in cases]}
    ceilings = measured_ceilings(device, [dtype])
    timings = measured_cases(cases, random_state(recipe, dtype, device), rounds)
    return result | {"ceilings": asdict(ceilings), "cases": [row(*each, ceilings) for each in timings]}


def print_cases(console: Console, result: dict[str, Any]) -> None:
    """Print the cases as a table, with times if they were measured."""
    rows, recipe = result["cases"], result["recipe"]
    table = Table(title=f"{recipe['name']}, batch {recipe['batch_size']}, {result['dtype']}, {result['device']}")
    for column in ("operation", "layer", "direction", "shape", "provider"):
        table.add_column(column, no_wrap=True)
    measured = "ceilings" in result
    for column in ("MB", "GFLOP", *(("us", "low", "high", "GB/s", "TFLOP/s", "floor, us", "floor, %") * measured)):
        table.add_column(column, justify="right", no_wrap=True)
    for each in rows:
        cells = [each["operation"], each["layer"], each["direction"], "x".join(map(str, each["shape"]))]
        cells += [each["provider"], f"{each['bytes'] / 1e6:.2f}", f"{each['flops'] / 1e9:.3f}"]
        if measured:
            cells += [f"{1e6 * each[key]:.1f}" for key in ("seconds", "low", "high")]
            cells += [f"{each['bytes_per_second'] / 1e9:.1f}", f"{each['flops_per_second'] / 1e12:.3f}"]
            cells += [f"{1e6 * each['floor_seconds']:.1f}", f"{100 * each['floor_share']:.0f}"]
        table.add_row(*cells)
    console.print(table)
    late = [each["name"] for each in rows if each.get("method", "").endswith(HOST_INCLUDED)]
    if late:
        console.print(f"the GPU waits for the host in these, {HOST_INCLUDED}: {', '.join(late)}", highlight=False)


def print_providers(console: Console, result: dict[str, Any]) -> None:
    """Print the microseconds of measured cases, one column per provider."""
    providers = list(dict.fromkeys(each["provider"] for each in result["cases"]))
    found: dict[tuple[Any, ...], dict[str, float]] = {}
    for each in result["cases"]:
        where = each["operation"], each["layer"], each["direction"], "x".join(map(str, each["shape"]))
        found.setdefault(where, {})[each["provider"]] = 1e6 * each["seconds"]
        found[where]["floor"] = 1e6 * each["floor_seconds"]
    table = Table(title="microseconds by provider")
    for column in ("operation", "layer", "direction", "shape"):
        table.add_column(column, no_wrap=True)
    for column in ("floor", *providers):
        table.add_column(column, justify="right", no_wrap=True)
    for where, times in found.items():
        table.add_row(*where, *(f"{times[key]:.1f}" if key in times else "" for key in ("floor", *providers)))
    console.print(table)
