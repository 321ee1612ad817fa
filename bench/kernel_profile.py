"""`bench profile --backend graph`: the step that really runs, kernel by kernel, and what of a run could be recovered.

A run takes steps of several kinds, such as steps on images of 20, 24 and 32 pixels. Each kind is recorded on its own
and weighted by how often a run takes it. Every kernel belongs to a part; a part could give back its time less its
floor, the least that its bytes and FLOPs take at the ceilings measured in the same minute.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from speedyresnet.engine.backends import COMPILING, Variant, variant_of_step
from speedyresnet.engine.device import DTYPES
from speedyresnet.engine.errors import UserError
from speedyresnet.engine.files import write_text
from speedyresnet.engine.fit import fitting_plan
from speedyresnet.engine.recipe import Recipe
from speedyresnet.engine.recipes import recipe as recipe_called
from speedyresnet.engine.recipes import registered_recipes
from speedyresnet.engine.schedules import Plan, plan

from .kernel_parts import Assignment, Row, prepare_rows
from .kernel_table import SCHEMA, KernelTable, Launch, Phase
from .kernel_work import Slot, Work, evaluation_work, prepare_work, step_work
from .roofline import Ceilings
from .trace import GAPS

_GAPS: Row = (GAPS, GAPS)
_WHOLE: Row = ("not recorded by kernel", "evaluate")
ASSUMED_CEILINGS = Ceilings(copies=((1 << 30, 3.0e12),), rates={"float16": 8.0e14, "float32": 8.0e14})
"""Of the H100 that the first tables come from; they do not hold its ceilings."""


@dataclass(slots=True)
class Total:
    """What a part did in a run."""

    launches: float = 0.0
    seconds: float = 0.0
    bytes: int = 0
    flops: int = 0
    floor: float = 0.0

    def add(self, other: "Total", times: int = 1) -> None:
        """Count `other` so many times more."""
        self.launches += times * other.launches
        self.seconds += times * other.seconds
        self.bytes += times * other.bytes
        self.flops += times * other.flops
        self.floor += times * other.floor


Totals = dict[Row, Total]


# -- folding


def step_counts(recipe: Recipe, plan: Plan, table: KernelTable | None = None) -> Counter[Variant]:
    """How often a run takes each kind of step, in the order of their first; of the kinds that `table` tells apart."""
    kinds = (variant_of_step(recipe, plan, step) for step in range(plan.steps))
    return Counter(kinds if table is None else map(table.kind, kinds))


def _with_gaps(totals: Totals, phase: Phase) -> Totals:
    idle = max(phase.seconds - phase.busy_seconds, 0.0)
    return totals | {_GAPS: Total(seconds=idle)}


def _folded(
    launches: Sequence[Launch], rows: Sequence[Row], work: Iterable[tuple[Row, Slot]], ceilings: Ceilings
) -> Totals:
    """Time of each part, and the work of those that took any."""
    totals: Totals = {}
    for launch, row in zip(launches, rows, strict=True):
        totals.setdefault(row, Total()).add(Total(launch.launches, launch.microseconds / 1e6))
    for row, slot in work:
        if row in totals:
            totals[row].add(Total(bytes=slot.bytes, flops=slot.flops, floor=slot.floor(ceilings)))
    return totals


def _network_totals(phase: Phase, work: Work, ceilings: Ceilings, backend: str, by_layer: bool) -> Totals:
    """Of a step, or of an evaluation; one that was only timed is a part by itself."""
    if not phase.kernels:
        slots = [*(slot for each in work.slots.values() for slot in each), *work.parts.values()]
        floor = sum(each.floor(ceilings) for each in slots)
        moved, flops = sum(each.bytes for each in slots), sum(each.flops for each in slots)
        return {_WHOLE: Total(seconds=phase.seconds, bytes=moved, flops=flops, floor=floor)}
    compiled = backend in COMPILING
    assignment = Assignment(phase.kernels, work, ordered=phase.ordered, compiled=compiled, by_layer=by_layer)
    return _with_gaps(_folded(phase.kernels, assignment.rows, assignment.slots(), ceilings), phase)


def _prepare_totals(phase: Phase, work: Work, ceilings: Ceilings) -> Totals:
    slots = (((part, slot.group), slot) for part, slot in work.parts.items())
    return _with_gaps(_folded(phase.kernels, prepare_rows(phase.kernels), slots, ceilings), phase)


def _part(row: Row, total: Total, steps: int, whole: float) -> dict[str, Any]:
    """Plain values of a part whose `total` is of a run of so many steps."""
    seconds = total.seconds
    return {
        "name": row[0],
        "group": row[1],
        "launches": total.launches / steps,
        "seconds": seconds / steps,
        "share": seconds / whole if whole > 0 else 0.0,
        "bytes": total.bytes / steps,
        "flops": total.flops / steps,
        "bytes_per_second": total.bytes / seconds if seconds > 0 else 0.0,
        "flops_per_second": total.flops / seconds if seconds > 0 else 0.0,
        "floor_seconds": total.floor / steps,
        "run_milliseconds": 1e3 * seconds,
        "recoverable_milliseconds": 1e3 * (seconds - total.floor),
    }


def _parts(totals: Totals, steps: int = 1) -> list[dict[str, Any]]:
    """Parts of a run, those first that could give back most."""
    whole = sum(each.seconds for each in totals.values())
    parts = [_part(row, total, steps, whole) for row, total in totals.items()]
    return sorted(parts, key=lambda each: (-each["recoverable_milliseconds"], each["name"]))


def _groups(parts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parts of a kind together, in the same order."""
    found: dict[str, dict[str, Any]] = {}
    for each in parts:
        group = found.setdefault(each["group"], {"name": each["group"], "run_milliseconds": 0.0,
                                                 "recoverable_milliseconds": 0.0})  # fmt: skip
        for key in ("run_milliseconds", "recoverable_milliseconds"):
            group[key] += each[key]
    return sorted(found.values(), key=lambda each: -each["recoverable_milliseconds"])


def _phase_result(seconds: float, parts: list[dict[str, Any]]) -> dict[str, Any]:
    recoverable = sum(each["recoverable_milliseconds"] for each in parts)
    return {"seconds": seconds, "recoverable_milliseconds": recoverable, "parts": parts}


def _steps_totals(
    table: KernelTable, recipe: Recipe, dtype: torch.dtype, ceilings: Ceilings, by_layer: bool
) -> list[Totals]:
    """Of each kind of step, once.

    Raises:
        UserError: the recipe has no such steps, or more or fewer of them.
    """
    pack, found = table.pack(), []
    known = step_counts(recipe, fitting_plan(recipe, pack.facts), table)
    for phase in table.variants:
        if phase.variant is None or phase.variant not in known:
            raise UserError(
                f"{recipe.name} takes no steps of the kind {tuple(phase.variant or ())}, which the table has: give the "
                f"recipe and the settings that it was recorded with"
            )
        if known[phase.variant] != phase.steps:
            raise UserError(
                f"{recipe.name} takes {known[phase.variant]} steps of the kind {tuple(phase.variant)}, the table says "
                f"{phase.steps}: give the recipe and the settings that it was recorded with"
            )
        work = step_work(recipe, pack, dtype, phase.variant, table.kernels)
        found.append(_network_totals(phase, work, ceilings, table.backend, by_layer))
    return found


def _recipe_with_steps(table: KernelTable) -> Recipe:
    """The recipe of this package whose run takes each kind of step as often as the table says.

    Raises:
        UserError: there is none, or more than one.
    """
    images = len(table.pack().train_labels)
    counts = {phase.variant: phase.steps for phase in table.variants}
    known = [recipe_called(name) for name in registered_recipes()]
    found = [made for made in known if step_counts(made, plan(made, images), table) == counts]
    if len(found) != 1:
        names = f"; it may be {' or '.join(each.name for each in found)}" if found else ""
        raise UserError(f"the table does not hold its recipe: give --recipe{names}")
    return found[0]


def folded(table: KernelTable, recipe: Recipe | None = None, *, by_layer: bool = True) -> dict[str, Any]:
    """Fold a table into parts.

    Args:
        table: what was recorded.
        recipe: that it is of; none: the one that it holds, or the only one that takes just these steps.
        by_layer: tell layers apart where the order of kernels does.

    Returns:
        Plain values. `parts` are of the mean step of a run, sorted by the milliseconds that a run could recover.

    Raises:
        UserError: there is no recipe, or it does not fit.
    """
    recipe = recipe or table.recipe or _recipe_with_steps(table)
    name = table.dtype or ("float16" if recipe.dtype == "auto" else recipe.dtype)
    ceilings = table.ceilings or ASSUMED_CEILINGS
    by_variant = _steps_totals(table, recipe, DTYPES[name], ceilings, by_layer)
    return {
        "schema": SCHEMA,
        "recipe": {"name": recipe.name, "hash": recipe.hash, "batch_size": recipe.batch_size},
        "data": {"name": table.data["name"], "sha256": table.data.get("sha256")},
        "environment": table.environment,
        "device": table.device,
        "backend": table.backend,
        "dtype": name,
        "kernels": table.kernels,
        "ceilings": asdict(ceilings) | {"assumed": table.ceilings is None},
        "ordered": table.ordered and by_layer,
        **_run_result(table, by_variant),
        **_other_results(table, recipe, DTYPES[name], ceilings, by_layer),
        "table": table.to_dict(),
    }


def _run_result(table: KernelTable, by_variant: Sequence[Totals]) -> dict[str, Any]:
    """All steps of a run together, and each kind."""
    whole: Totals = {}
    for phase, totals in zip(table.variants, by_variant, strict=True):
        for row, total in totals.items():
            whole.setdefault(row, Total()).add(total, phase.steps)
    steps = sum(each.steps for each in table.variants)
    parts = _parts(whole, steps)
    kernels = sum(phase.steps * launch.microseconds for phase in table.variants for launch in phase.kernels) / 1e3
    return {
        "steps": steps,
        "step_seconds": sum(each.steps * each.seconds for each in table.variants) / steps,
        "run": {
            "kernel_milliseconds": kernels,
            "recoverable_milliseconds": sum(each["recoverable_milliseconds"] for each in parts),
            "unassigned_share": sum(each["share"] for each in parts if each["group"] == "other"),
            "groups": _groups(parts),
        },
        "variants": [_variant_result(*pair) for pair in zip(table.variants, by_variant, strict=True)],
        "parts": parts,
    }


def _other_results(
    table: KernelTable, recipe: Recipe, dtype: torch.dtype, ceilings: Ceilings, by_layer: bool
) -> dict[str, Any]:
    """Prepare and evaluate."""
    pack = table.pack()
    prepare = _prepare_totals(table.prepare, prepare_work(recipe, pack, dtype), ceilings)
    work = evaluation_work(recipe, pack, dtype, table.kernels)
    evaluate = _network_totals(table.evaluate, work, ceilings, table.backend, by_layer)
    return {
        "prepare": _phase_result(table.prepare.seconds, _parts(prepare)),
        "evaluate": _phase_result(table.evaluate.seconds, _parts(evaluate)),
    }


def run_milliseconds(table: KernelTable) -> tuple[dict[str, float], int]:
    """Milliseconds of the kernels of a run by group, from their names alone, and the steps of a run."""
    found: defaultdict[str, float] = defaultdict(float)
    for phase in table.variants:
        compiled = table.backend in COMPILING
        rows = Assignment(phase.kernels, Work(), ordered=phase.ordered, compiled=compiled).rows
        for (_, group), launch in zip(rows, phase.kernels, strict=True):
            found[group] += phase.steps * launch.microseconds / 1e3
    return dict(found), sum(each.steps for each in table.variants)


def _variant_result(phase: Phase, totals: Totals) -> dict[str, Any]:
    return {
        "variant": None if phase.variant is None else phase.variant._asdict(),
        "steps": phase.steps,
        "step_seconds": phase.seconds,
        "busy_seconds": phase.busy_seconds,
        "floor_seconds": sum(each.floor for each in totals.values()),
        "launches": sum(each.launches for each in totals.values()),
    }


# -- two tables


def compared(table: KernelTable, other: KernelTable, recipe: Recipe | None = None) -> dict[str, Any]:
    """The folded table with the other beside it, under `against`.

    Layers are told apart there where both tables do. A table without a recipe has the one given, or the other's.

    Returns:
        Under `against` what the other was, with groups and parts of both, the largest difference first.
    """
    result = folded(table, recipe or table.recipe or other.recipe)
    by_layer = table.ordered and other.ordered
    ours = (
        result
        if by_layer == table.ordered
        else folded(table, recipe or table.recipe or other.recipe, by_layer=by_layer)
    )
    theirs = folded(other, other.recipe or recipe or table.recipe, by_layer=by_layer)
    kept = ("recipe", "device", "backend", "dtype", "kernels", "environment", "step_seconds", "steps")
    beside = {key: theirs[key] for key in kept}
    beside["groups"] = _differences(ours["run"]["groups"], theirs["run"]["groups"])
    beside["parts"] = _differences(ours["parts"], theirs["parts"])
    for phase in ("prepare", "evaluate"):
        beside[phase] = _differences(ours[phase]["parts"], theirs[phase]["parts"])
    return result | {"against": beside}


def _differences(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Milliseconds a run of both; a part that one of them lacks takes no time there."""
    times = [Counter({each["name"]: each["run_milliseconds"] for each in rows}) for rows in (ours, theirs)]
    rows = [
        {"name": name, "run_milliseconds": times[0][name], "other_run_milliseconds": times[1][name],
         "difference": times[0][name] - times[1][name]}
        for name in {**times[0], **times[1]}
    ]  # fmt: skip
    return sorted(rows, key=lambda each: (-abs(each["difference"]), each["name"]))


# -- showing


def save(result: dict[str, Any], path: Path) -> None:
    """Write the whole result, which `--from` and `--against` read."""
    write_text(path, json.dumps(result, separators=(",", ":")) + "\n")


_COLUMNS = ("launches", "ms/run", "MB", "GFLOP", "TB/s", "TFLOP/s", "floor", "gain")
_SMALL = 0.05
"""Milliseconds a run; smaller parts are shown as one line."""


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(
        title=escape(title), box=None, padding=(0, 1, 0, 0), title_justify="left", title_style="bold", min_width=80
    )
    table.add_column("part", no_wrap=True, overflow="ellipsis", max_width=36)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _parts_table(title: str, parts: Sequence[dict[str, Any]], steps: int) -> Table:
    table = _table(title, _COLUMNS)
    shown = [each for each in parts if each["run_milliseconds"] >= _SMALL]
    for each in shown:
        table.add_row(
            each["name"],
            f"{each['launches']:.1f}",
            f"{each['run_milliseconds']:.2f}",
            f"{each['bytes'] / 1e6:.1f}",
            f"{each['flops'] / 1e9:.1f}",
            f"{each['bytes_per_second'] / 1e12:.2f}",
            f"{each['flops_per_second'] / 1e12:.0f}",
            f"{1e3 * steps * each['floor_seconds']:.2f}",
            f"{each['recoverable_milliseconds']:.2f}",
        )
    if small := len(parts) - len(shown):
        time = sum(each["run_milliseconds"] for each in parts if each["run_milliseconds"] < _SMALL)
        table.add_row(f"{small} smaller", "", f"{time:.2f}")
    return table


def heading(result: dict[str, Any]) -> str:
    """What was profiled, and where."""
    recipe, gpu = result["recipe"], result["environment"].get("gpu") or result["device"] or "unknown GPU"
    return f"{recipe['name']} {recipe['hash'][:6]}, {result['backend']} {result['dtype']}, {gpu}"


def print_kernel_profile(console: Console, result: dict[str, Any]) -> None:
    """The result in tables of at most 100 columns: steps, groups, parts, prepare and evaluate."""

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    run, steps = result["run"], result["steps"]
    say(heading(result))
    say(
        f"{steps} steps a run: {1e3 * steps * result['step_seconds']:.1f} ms, kernels {run['kernel_milliseconds']:.1f} "
        f"ms, could be recovered {run['recoverable_milliseconds']:.1f} ms, unassigned {run['unassigned_share']:.1%}"
    )
    for each in result["variants"]:
        kind = ", ".join(f"{key} {value}" for key, value in each["variant"].items())
        times = [f"{1e3 * each[key]:.3f}" for key in ("step_seconds", "busy_seconds", "floor_seconds")]
        say(f"  {each['steps']:4} x {times[0]} ms, busy {times[1]}, floor {times[2]}: {kind}")
    say(_ceilings_text(result["ceilings"]))
    groups = _table("Groups", ("ms/run", "gain"))
    for each in run["groups"]:
        groups.add_row(each["name"], f"{each['run_milliseconds']:.1f}", f"{each['recoverable_milliseconds']:.1f}")
    console.print(groups)
    title = "Parts: launches, MB, GFLOP a step; floor, gain (time less floor) in ms a run"
    console.print(_parts_table(title, result["parts"], steps))
    for phase in ("prepare", "evaluate"):
        seconds = 1e3 * result[phase]["seconds"]
        console.print(_parts_table(f"{phase}, {seconds:.2f} ms", result[phase]["parts"], 1))


def _ceilings_text(ceilings: dict[str, Any]) -> str:
    copies = ", ".join(f"{rate / 1e12:.2f} TB/s moving {moved / 2**20:g} MiB" for moved, rate in ceilings["copies"])
    rates = ", ".join(f"{rate / 1e12:.0f} TFLOP/s {name}" for name, rate in ceilings["rates"].items())
    source = "assumed, those of an H100: the table does not tell its own" if ceilings["assumed"] else "measured"
    return f"ceilings ({source}): copy {copies}; matrix multiplication {rates}"


def print_compared(console: Console, result: dict[str, Any]) -> None:
    """Both profiles of a result with `against`, in milliseconds a run."""
    other = result["against"]
    for title in ("groups", "parts", "prepare", "evaluate"):
        table = _table(f"{title}, ms a run, against {heading(other)}", ("ms/run", "other", "difference"))
        for each in other[title]:
            values = each["run_milliseconds"], each["other_run_milliseconds"]
            if max(values) >= _SMALL:
                table.add_row(each["name"], *(f"{value:.2f}" for value in values), f"{each['difference']:+.2f}")
        console.print(table)
