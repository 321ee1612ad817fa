"""The whole command line: the engine's commands and, under `bench`, what measures them."""

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from enum import StrEnum
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from speedyresnet.engine.api import MAX_SEED, MIN_SEED
from speedyresnet.engine.backends import AUTO, BACKENDS, COMPILING, backends_of, check_backend
from speedyresnet.engine.cli import (
    BackendOption,
    DataOption,
    DeviceOption,
    JsonOption,
    OutOption,
    RecipeOption,
    SetOption,
    app,
    finite,
    notes_console,
    run_command_line,
)
from speedyresnet.engine.data import load_data
from speedyresnet.engine.device import pick_device
from speedyresnet.engine.errors import UserError
from speedyresnet.engine.files import Outputs, check_outputs, check_writable, write_text
from speedyresnet.engine.operations import operations_of
from speedyresnet.engine.outside_kernels import check_outside_kernel, load_kernel
from speedyresnet.engine.plots import matplotlib_pyplot
from speedyresnet.engine.python_files import file_of
from speedyresnet.engine.ranks import launched
from speedyresnet.engine.recipe import Recipe
from speedyresnet.engine.recipes import group as group_called
from speedyresnet.engine.recipes import recipe as recipe_called
from speedyresnet.engine.record import environment
from speedyresnet.engine.setup import chosen_recipe, default_recipe, place_recipe

from .cases import OPERATIONS, PROVIDERS, RANDOM_IMAGES, cases_of
from .compare import Arm, arm_of, compare_runs, comparison, group_arms, place_arms, print_comparison
from .factorial import Design, design_arms, design_of, print_screening, screening
from .fleet import Announcements
from .gpu_queue import by_value
from .gpu_suite import failures, listed, make_site, print_list, run_queue
from .graph_count import count_graphs, print_graphs
from .kernel_profile import compared, folded, print_compared, print_kernel_profile, save
from .kernel_recording import check_device, record_table
from .kernel_table import KernelTable, read_table
from .kernel_times import cases_report, print_cases, print_providers
from .measured import readme_with_table
from .paper import CIFAR10, paper_pack
from .peers import check_data, parse_peers
from .pool import BASE, PoolPlan, read_pool
from .profiling import (
    print_profile,
    print_side_by_side,
    profile_paths,
    profile_step,
    read_profile,
    save_profile,
    side_by_side,
)
from .record import CLOCKS, VIEWS, Targets, check_view, print_report, record_runs, report
from .regress import (
    QUICK_SECONDS,
    ROUNDS,
    changed_cases,
    files_report,
    mann_whitney_p,
    print_regress,
    sitting_report,
    slower_cases,
)
from .report import groups_of, page_html, read_source
from .revisions import Plan, measure_revisions
from .step_time import all_build_seconds, measure_steps, print_steps, step_report
from .trim import Trimming, changes_of, follow, print_trim, trim
from .versus import Sitting, hold_sitting, print_versus, smoke_sitting

FirstSeedOption = Annotated[
    int, typer.Option("--seed", min=MIN_SEED, max=MAX_SEED, help="Of the first run; the others count up.")
]
ValidationOption = Annotated[
    int, typer.Option("--validation", min=0, help="Hold out so many training images and test on those instead.")
]
OperationOption = Annotated[
    list[str] | None, typer.Option("--operation", help="One of: " + ", ".join(OPERATIONS) + ". None: all.")
]

EAGER = "eager"
"""The backend whose step the host divides into parts."""

bench_app = typer.Typer(help="Measure. Never falls back to other data than asked for.")
app.add_typer(bench_app, name="bench")


@bench_app.callback()
def bench_commands() -> None:
    """Measure. Never falls back to other data than asked for."""


def _check_view_and_clock(view: str | None, clock: str) -> None:
    if view is not None and view not in VIEWS:
        raise UserError(f"--view {view}: choose {', '.join(VIEWS)}")
    if clock not in CLOCKS:
        raise UserError(f"--clock {clock}: choose {', '.join(CLOCKS)}")


def _check_seeds(first: int, count: int) -> None:
    if first + count - 1 > MAX_SEED:
        raise UserError(f"--seed {first} leaves no room for {count} seeds up to {MAX_SEED}; give a smaller one")


def _check_pool(out: Path, inputs: Sequence[str | Path | None]) -> None:
    """Refuse a file that is no pool, or that the command reads, before any work; rank 0 alone opens it."""
    if launched().leads:
        check_outputs([out], inputs)
        read_pool(out)


def _check_changes(names: Sequence[str], made: Recipe, known: Sequence[str]) -> None:
    for each in names:
        if each not in known:
            raise UserError(f"--what {each}: {made.name} has {', '.join(dict.fromkeys(known))}")


def _check_operations(names: list[str] | None) -> None:
    for each in names or ():
        if each not in OPERATIONS:
            raise UserError(f"--operation {each}: choose {', '.join(OPERATIONS)}")


def _show(
    result: dict[str, Any],
    printed: Callable[[Console, dict[str, Any]], None],
    console: Console,
    as_json: bool,
    out: Path | None = None,
    outputs: Outputs | None = None,
) -> None:
    """Write a result to `out`, and print it as JSON or as `printed` does, even where a file is refused.

    Args:
        result: as plain values.
        printed: prints it as a table.
        console: for the table.
        as_json: instead of the table.
        out: a JSON file; none: nothing is written here.
        outputs: of the command, whose refusals are raised at the end; none: it has no other files.

    Raises:
        UserError: files were refused.
    """
    text = json.dumps(result, indent=1)
    with outputs or Outputs() as files:
        if out is not None:
            files.attempt(out, lambda: write_text(out, text + "\n"))
        if as_json:
            print(text)
        else:
            printed(console, result)


@bench_app.command("record")
def record_command(
    runs: Annotated[int, typer.Option("--runs", min=1, help="How many; fixed when the file is begun.")],
    out: Annotated[Path, typer.Option("--out", help="JSON Lines file, one run a line; goes on where it ended.")],
    recipe: RecipeOption = None,
    settings: SetOption = None,
    data: DataOption = None,
    device: DeviceOption = "auto",
    backend: BackendOption = AUTO,
    seed: FirstSeedOption = 0,
    target: Annotated[
        float | None, typer.Option("--target", min=0, max=100, callback=finite, help="Accuracy in percent.")
    ] = None,
    view: Annotated[str | None, typer.Option("--view", help="Of the target: " + ", ".join(VIEWS) + ".")] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", min=0, callback=finite, help="Time that the mean must stay below.")
    ] = None,
    clock: Annotated[str, typer.Option("--clock", help="Of the time: " + ", ".join(CLOCKS) + ".")] = "prepare+train",
    validation: ValidationOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe many times and say with what confidence it reaches its targets (exit code 1: it does not)."""
    placed, console = chosen_recipe(recipe, settings, device, backend), notes_console(as_json)
    made = placed.recipe
    view = view or made.evaluation.view
    _check_view_and_clock(view, clock)
    check_view(made, view)
    _check_seeds(seed, runs)
    _check_pool(out, [data or made.data, file_of(recipe)])
    targets = Targets(accuracy=None if target is None else target / 100, view=view, seconds=seconds, clock=clock)
    plan = PoolPlan(runs=runs, first_seed=seed, validation=validation)
    outputs = Outputs()
    records = record_runs(placed, load_data(data or made.data), plan, out, console, outputs)
    if not launched().leads:
        return
    result = report(records, targets)
    _show(result, print_report, console, as_json, outputs=outputs)
    raise typer.Exit(0 if all(each["met"] for each in result["targets"]) else 1)


class CompareDesign(StrEnum):
    """How variants are put together."""

    PAIRS = "pairs"
    FACTORIAL = "factorial"


def _factors(design: CompareDesign, variants: list[str], group: str | None, *, fold_over: bool) -> Design | None:
    """The factorial design of the variants; none where each is compared with the base."""
    if design == CompareDesign.PAIRS:
        if fold_over:
            raise UserError("--fold-over belongs to --design factorial: add that, or leave --fold-over out")
        return None
    if group:
        raise UserError("--design factorial takes settings as factors: give --variant instead of --group")
    return design_of(variants, folded=fold_over)


def _paired_arms(
    variants: list[str], group: str | None, recipe: str | None, name: str, settings: list[str], backend: str
) -> list[Arm]:
    """The base, the variants of its group where it has one, and those given one by one."""
    if group is None:
        arms = [Arm(BASE, recipe_called(name, settings), backend)]
    elif recipe is not None:
        raise UserError("--group has a base of its own: leave --recipe out")
    else:
        arms = group_arms(group_called(group), settings, backend)
        name = arms[0].recipe.name
    return [*arms, *(arm_of(variant, name, settings, backend) for variant in variants)]


@bench_app.command("compare")
def compare_command(
    variants: Annotated[
        list[str] | None, typer.Option("--variant", help="Settings, backend=NAME, a recipe; several parted by spaces.")
    ] = None,
    group: Annotated[
        str | None, typer.Option("--group", help="Instead of a recipe: the base and all variants of a group.")
    ] = None,
    design: Annotated[
        CompareDesign,
        typer.Option("--design", help="Each variant against the base, or all variants at once as factors."),
    ] = CompareDesign.PAIRS,
    fold_over: Annotated[
        bool, typer.Option("--fold-over", help="Of a factorial design: twice as many configurations.")
    ] = False,
    recipe: RecipeOption = None,
    settings: SetOption = None,
    data: DataOption = None,
    device: DeviceOption = "auto",
    backend: BackendOption = AUTO,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Seeds; fixed when the file is begun.")] = 10,
    seed: FirstSeedOption = 0,
    view: Annotated[
        str | None, typer.Option("--view", help=", ".join(VIEWS) + ". None: what each recipe reports.")
    ] = None,
    clock: Annotated[
        str, typer.Option("--clock", help=", ".join(CLOCKS) + ". Only total has the views of the evaluation.")
    ] = "total",
    rate: Annotated[
        float | None,
        typer.Option("--seconds-per-tenth-point", min=0.0, callback=finite, help="What 0.1 point is worth."),
    ] = None,
    validation: ValidationOption = 0,
    out: Annotated[Path, typer.Option("--out", help="JSON Lines file, one run a line; goes on where it ended.")] = Path(
        "comparison.jsonl"
    ),
    as_json: JsonOption = False,
) -> None:
    """Compare variants of a recipe with the recipe, the same seeds in turns: better, worse, cannot tell."""
    place, console = pick_device(device), notes_console(as_json)
    variants = variants or []
    if not (group or variants):
        raise UserError("nothing to compare: give --variant, or --group")
    _check_view_and_clock(view, clock)
    name, factors = recipe or default_recipe(place), _factors(design, variants, group, fold_over=fold_over)
    if factors:
        arms = design_arms(factors, name, settings or (), backend)
    else:
        arms = _paired_arms(variants, group, recipe, name, settings or [], backend)
    placed = place_arms(arms, view, place)
    _check_seeds(seed, runs)
    source = data or arms[0].recipe.data
    _check_pool(out, [source, *(file_of(word) for each in (name, *variants) for word in each.split())])
    plan = PoolPlan(runs=runs, first_seed=seed, validation=validation, variants=tuple(arm.name for arm in arms[1:]))
    outputs = Outputs()
    records = compare_runs(placed, load_data(source), plan, out, console, outputs)
    if not launched().leads:
        return
    if factors:
        effects = screening(records, plan, factors, view, clock, rate)
        _show(effects, print_screening, console, as_json, outputs=outputs)
    else:
        _show(comparison(records, plan, view, clock, rate), print_comparison, console, as_json, outputs=outputs)


@bench_app.command("trim")
def trim_command(
    recipe: RecipeOption = None,
    settings: SetOption = None,
    data: DataOption = None,
    device: DeviceOption = "auto",
    backend: BackendOption = AUTO,
    rounds: Annotated[int, typer.Option("--rounds", min=2, help="With and without, in turns.")] = 10,
    steps: Annotated[int, typer.Option("--steps", min=1, help="A round, of each kind of step.")] = 10,
    what: Annotated[list[str] | None, typer.Option("--what", help="Only that, such as whitening. None: all.")] = None,
    accuracy: Annotated[int, typer.Option("--accuracy", min=0, help="Also train so many seeds each way.")] = 0,
    validation: ValidationOption = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="JSON file; runs go into a folder beside it, where they go on.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What of a recipe could go or be replaced: step time with and without, and what to cut first."""
    console = notes_console(as_json)
    if accuracy and out is None:
        raise UserError("--accuracy needs --out FILE, beside which its runs are kept")
    placed = chosen_recipe(recipe, settings, device, backend)
    made, place = placed.recipe, placed.device
    if launched().leads:
        check_outputs([out], [data or made.data, file_of(recipe)])
    pack = load_data(data or made.data)
    _check_changes(what or (), made, [each.what for each in changes_of(made, pack.image_size, place, backend)])
    trimming = Trimming(
        recipe=recipe or default_recipe(place),
        settings=tuple(settings or ()),
        pack=pack,
        device=place,
        backend=backend,
        rounds=rounds,
        steps=steps,
        what=tuple(what or ()),
        seeds=accuracy,
        validation=validation,
        out=out,
        announcements=Announcements() if launched().size > 1 else None,
    )
    if not launched().leads:
        return follow(trimming, console)
    result = trim(trimming, console)
    _show(result, print_trim, console, as_json, out, trimming.outputs)


def _counted_graphs(made: Recipe, data: str | None, backend: str | None) -> dict[str, Any]:
    """The graphs of a run on `data`; none: on images like CIFAR-10's. Without a backend of `graph`."""
    if backend is not None and backend not in BACKENDS:
        raise UserError(f"unknown backend {backend!r}: choose {', '.join(BACKENDS)}")
    return count_graphs(made, paper_pack(CIFAR10) if data is None else load_data(data), backend or "graph")


@bench_app.command("step")
def step_command(
    recipe: RecipeOption = None,
    settings: SetOption = None,
    data: DataOption = None,
    device: DeviceOption = "auto",
    backend: Annotated[str | None, typer.Option("--backend", help="One of them; none: all.")] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Medians are over so many.")] = 10,
    steps: Annotated[int, typer.Option("--steps", min=1, help="A round.")] = 10,
    builds: Annotated[bool, typer.Option("--builds", help="Also build with a cold and a warm compiler cache.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count the graphs that torch.compile makes; no GPU or data is needed.")
    ] = False,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time of a step by backend: whole, of the host, idle; launches, memory, build (exit code 1: one failed)."""
    console = notes_console(as_json)
    if dry_run:
        made = recipe_called(recipe or default_recipe(pick_device(device)), settings or ())
        _show(_counted_graphs(made, data, backend), print_graphs, console, as_json, out)
        return
    placed = chosen_recipe(recipe, settings, device, backend or AUTO)
    made, place = placed.recipe, placed.device
    name, source = recipe or default_recipe(place), data or made.data
    backends = [backend] if backend else backends_of(place)
    check_outputs([out], [source, file_of(recipe)])
    pack = load_data(source)
    times, failed = measure_steps(made, pack, place, backends, rounds=rounds, steps=steps)
    compiling = [each.backend for each in times if each.backend in COMPILING] if builds else []
    found, unbuilt = all_build_seconds(name, settings or (), source, device, compiling)
    failed |= unbuilt
    result = step_report(made, pack, environment(place), times, failed, found)
    _show(result, print_steps, console, as_json, out)
    raise typer.Exit(1 if failed else 0)


def _stored_table(
    path: Path, recipe: str | None, settings: list[str], backend: str
) -> tuple[KernelTable, Recipe | None]:
    """A table of kernels and the recipe that the user says it is of."""
    if settings and recipe is None:
        raise UserError("--set with --from needs --recipe: a table holds its recipe as it is")
    table = read_table(path, "--from")
    if backend not in (EAGER, table.backend):
        raise UserError(f"--backend {backend}: the table in {path} is of {table.backend}; leave --backend out")
    return table, recipe_called(recipe, settings) if recipe else None


def _recorded_table(
    recipe: str | None, settings: list[str], data: str | None, device: str, backend: str, steps: int, out: Path | None
) -> KernelTable:
    """The kernels of a backend whose step nothing on the host divides."""
    placed = chosen_recipe(recipe, settings, device, backend)
    check_device(backend, placed.device)
    source = data or placed.recipe.data
    check_outputs([out], [source, file_of(recipe)])
    return record_table(placed, load_data(source), steps)


def _show_kernels(
    table: KernelTable, other: KernelTable | None, made: Recipe | None, out: Path | None, as_json: bool
) -> None:
    """Fold a table, beside another if there is one; write and print what comes out."""
    result = folded(table, made) if other is None else compared(table, other, made)
    with Outputs() as outputs:
        if out is not None:
            outputs.attempt(out, lambda: save(result, out))
        if as_json:
            print(json.dumps(result, indent=1))
            return
        console = notes_console(as_json)
        print_kernel_profile(console, result)
        if other is not None:
            print_compared(console, result)
        _print_written(console, [out] if out else [], outputs)


def _print_written(console: Console, paths: Sequence[Path], outputs: Outputs) -> None:
    """Say which files of a profile are there."""
    written = ", ".join(str(path) for path in paths if not outputs.refuses(path))
    told = written or "nothing" + "; --out profile.json keeps the result" * (not paths)
    console.print(f"written: {told}", highlight=False, soft_wrap=True)


def _profile_eagerly(
    recipe: str | None,
    settings: list[str],
    data: str | None,
    device: str,
    steps: int,
    out: Path | None,
    against: Path | None,
    as_json: bool,
) -> None:
    """`bench profile` of the eager step, which the host divides into parts."""
    placed, console = chosen_recipe(recipe, settings, device, EAGER), notes_console(as_json)
    source = data or placed.recipe.data
    if out is not None:
        check_writable(out)
        check_outputs(profile_paths(out), [source, file_of(recipe)])
        matplotlib_pyplot()
    other = None if against is None else read_profile(against)
    result, trace = profile_step(placed, load_data(source), steps)
    if other is not None:
        result["against"] = side_by_side(result, other)
    with Outputs() as outputs:
        if out is not None:
            save_profile(result, trace, out, outputs)
        if as_json:
            print(json.dumps(result, indent=1))
            return
        print_profile(console, result)
        if other is not None:
            print_side_by_side(console, result)
        _print_written(console, profile_paths(out) if out else (), outputs)


@bench_app.command("profile")
def profile_command(
    recipe: RecipeOption = None,
    settings: SetOption = None,
    data: DataOption = None,
    device: DeviceOption = "auto",
    backend: Annotated[
        str, typer.Option("--backend", help="eager: by the code; graph, capture or compile: by kernels, on a GPU.")
    ] = EAGER,
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="To record, of each kind; eager: the middle half of them counts.")
    ] = 12,
    stored: Annotated[
        Path | None, typer.Option("--from", help="Measure nothing: a table of kernels that --out stored.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="JSON file; eager: the trace and two pictures are put beside it.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option("--against", help="A profile that --out stored; both are shown side by side.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Where the time of a training step goes, part by part, beside the least it could take."""
    if stored is not None or backend != EAGER:
        if stored is not None and data is not None:
            raise UserError("--data with --from: a table holds the shapes of its data; leave --data out")
        check_outputs([out], [stored, against, data, file_of(recipe)])
        other = None if against is None else read_table(against, "--against")
        if stored is not None:
            table, made = _stored_table(stored, recipe, settings or [], backend)
        else:
            table, made = _recorded_table(recipe, settings or [], data, device, backend, steps, out), None
        return _show_kernels(table, other, made, out, as_json)
    return _profile_eagerly(recipe, settings or [], data, device, steps, out, against, as_json)


@bench_app.command("versus")
def versus_command(
    peers: Annotated[list[str], typer.Option("--peer", help="NAME=PATH: a script or a checkout of its repository.")],
    recipe: RecipeOption = None,
    settings: SetOption = None,
    data: DataOption = None,
    device: DeviceOption = "auto",
    backend: BackendOption = AUTO,
    runs: Annotated[int, typer.Option("--runs", min=1, help="A process.")] = 5,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Each starts every script and ours once.")] = 3,
    timeout: Annotated[float, typer.Option("--timeout", min=1.0, callback=finite, help="Seconds a process.")] = 600.0,
    compile_seconds: Annotated[
        float,
        typer.Option("--compile-seconds", min=1.0, callback=finite, help="For each to compile, in a run of its own."),
    ] = 900.0,
    smoke: Annotated[bool, typer.Option("--smoke", help="Only see whether the scripts start, on the CPU.")] = False,
    work: Annotated[
        Path | None, typer.Option("--work", help="Keep scripts, data, output and what they compiled in this folder.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file; goes on where it ended.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Our recipe against the scripts of others, whole processes in turns (exit code 1: one crashed)."""
    console, scripts, place = notes_console(as_json), parse_peers(peers), pick_device("cpu" if smoke else device)
    if place.index:
        raise UserError(f"--device {device}: peers take the first GPU; set CUDA_VISIBLE_DEVICES={place.index} instead")
    name = recipe or default_recipe(place)
    made = place_recipe(recipe_called(name, settings or ()), place, backend).recipe
    check_outputs([out, work and work / "log"], [data or made.data, file_of(recipe)])
    pack = load_data(data or made.data)
    check_data(pack)
    options = ["--recipe", name, *(word for each in settings or () for word in ("--set", each))]
    options += ["--device", str(place), "--backend", backend]
    sitting = Sitting(made, pack, place, scripts, options, runs, rounds, timeout, compile_seconds)
    outputs = Outputs()
    with nullcontext(work) if work else TemporaryDirectory() as folder:
        hold = smoke_sitting if smoke else hold_sitting
        result = hold(sitting, Path(folder).absolute(), out, console, outputs)
    with outputs:
        if as_json:
            print(json.dumps(result, indent=1))
        elif not smoke:
            print_versus(console, result)
    raise typer.Exit(0 if result["passed"] else 1)


@bench_app.command("kernels")
def kernels_command(
    recipe: RecipeOption = None,
    settings: SetOption = None,
    device: DeviceOption = "auto",
    only: OperationOption = None,
    providers: Annotated[
        list[str] | None,
        typer.Option("--provider", help="For example triton, compile, or my_file.py:KERNEL, checked first. None: all."),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Medians are over so many.")] = 15,
    listed: Annotated[bool, typer.Option("--list", help="Only say what would be measured.")] = False,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time of each operation of a step, on its own, beside the least it could take."""
    console = notes_console(as_json)
    _check_operations(only)
    placed = chosen_recipe(recipe, settings, device, EAGER)
    made, place, dtype = placed.recipe, placed.device, placed.dtype
    check_outputs([out], [file_of(recipe)])
    providers = [_provider_called(each, made, dtype, place) for each in providers or ()]
    cases = [case for case in cases_of(made, dtype, place) if not only or case.operation in only]
    cases = [case for case in cases if not providers or case.provider in providers]
    result = cases_report(made, dtype, place, cases, 0 if listed else rounds)
    _show(result, print_cases, console, as_json, out)
    if not (as_json or listed) and len({case.provider for case in cases}) > 1:
        print_providers(console, result)


def _provider_called(name: str, made: Recipe, dtype: torch.dtype, device: torch.device) -> str:
    """A provider of cases; a kernel from a file of the user's own is loaded, and held to its reference."""
    if ".py:" in name:
        operation, provider = load_kernel(name)
        check_outside_kernel(operations_of(made, RANDOM_IMAGES, dtype), operation, provider, device)
        return provider
    if name not in PROVIDERS:
        raise UserError(f"--provider {name}: choose {', '.join(PROVIDERS)} or my_file.py:KERNEL")
    return name


@bench_app.command("regress")
def regress_command(
    base: Annotated[str, typer.Argument(help="A git revision, or a .json file of pytest-benchmark.")],
    head: Annotated[str, typer.Argument(help="Another, which may be slower.")],
    effect: Annotated[float, typer.Option("--effect", min=0.0, callback=finite, help="Percent that matter.")] = 3.0,
    quick: Annotated[bool, typer.Option("--quick", help="Take two minutes; says what there was no time for.")] = False,
    recipe: RecipeOption = None,
    settings: SetOption = None,
    device: DeviceOption = "auto",
    backend: BackendOption = AUTO,
    only: OperationOption = None,
    rounds: Annotated[int, typer.Option("--rounds", min=2, help="Each times each case once in both.")] = ROUNDS,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """What got slower between two revisions, or two files of `pytest bench` (exit code 1: something did)."""
    deadline = time.monotonic() + QUICK_SECONDS if quick else math.inf
    console = notes_console(as_json)
    mann_whitney_p([0.0], [1.0])  # refuses a missing scipy before anything is measured
    check_outputs([out], [base, head, file_of(recipe)])
    if base.endswith(".json") or head.endswith(".json"):
        result = files_report(Path(base), Path(head), effect / 100)
    else:
        place = pick_device(device)
        check_backend(backend, place)
        _check_operations(only)
        name = recipe or default_recipe(place)
        subject = {"name": name, "settings": list(settings or ()), "device": str(place), "backend": backend}
        plan = Plan(subject=subject, operations=only or (), rounds=rounds, deadline=deadline)
        sitting = measure_revisions((base, head), plan, lambda found: changed_cases(found, effect / 100), console)
        result = sitting_report(sitting, effect / 100) | {"subject": subject, "environment": environment(place)}
    _show(result, print_regress, console, as_json, out)
    raise typer.Exit(1 if slower_cases(result) else 0)


@bench_app.command("report")
def report_command(
    files: Annotated[list[Path], typer.Argument(help="What train --out, bench commands and pytest-benchmark stored.")],
    out: Annotated[Path | None, typer.Option("--out", help="Write the page, HTML, here.")] = None,
    readme: Annotated[
        Path | None, typer.Option("--readme", help="Put the table of runs between the marks of this Markdown file.")
    ] = None,
) -> None:
    """One page of all that was measured, whole in itself: no network, no script."""
    targets = [each for each in (out, readme) if each is not None]
    if not targets:
        raise UserError("nothing to write: give --out report.html, or --readme README.md")
    check_outputs(targets, files)
    sources = [read_source(path) for path in dict.fromkeys(files)]
    texts = []
    if out is not None:
        texts.append((out, page_html(sources)))
    if readme is not None:
        texts.append((readme, readme_with_table(readme, groups_of(sources))))
    with Outputs() as outputs:
        for path, text in texts:
            outputs.attempt(path, partial(write_text, path, text))
        print("written:", ", ".join(str(path) for path in targets if not outputs.refuses(path)) or "nothing")


@bench_app.command("gpu-suite")
def gpu_suite_command(
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the archive and summary of the results; goes on where it ended.")
    ] = Path("gpu-results"),
    minutes: Annotated[float, typer.Option("--minutes", min=0.0, callback=finite, help="Of this call.")] = 9.0,
    device: DeviceOption = "auto",
    images: Annotated[
        list[Path] | None, typer.Option("--images", help="Folder with a part of CIFAR-10 as sheets; parts add up.")
    ] = None,
    peers: Annotated[list[str] | None, typer.Option("--peer", help="NAME=PATH, as for versus.")] = None,
    names: Annotated[list[str] | None, typer.Option("--only", help="Only that entry. None: all.")] = None,
    shown: Annotated[bool, typer.Option("--list", help="Only show the queue and how its entries ended.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run the questions that wait for a GPU, the most valuable first; on a CPU, rehearse them in small.

    Again with the same --out it goes on: what ended, well or with a target missed, is not repeated. Exit code 1: an
    entry failed.
    """
    entries, console, outputs = by_value(), notes_console(as_json), Outputs()
    for name in names or ():
        if name not in (known := [entry.name for entry in entries]):
            raise UserError(f"--only {name}: there are {', '.join(known)}")
    chosen = [entry for entry in entries if not names or entry.name in names]
    failed = list[str]()
    if not shown:
        check_writable(out / "suite.json")
        parse_peers(list(peers or ()))
        site = make_site(pick_device(device), images or (), peers or ())
        failed = failures(run_queue(entries, chosen, site, minutes, out, console, outputs), entries)
    rows = listed(chosen, out)
    with outputs:
        if as_json:
            print(json.dumps(rows, indent=1))
        elif shown:
            print_list(console, rows)
    raise typer.Exit(1 if failed else 0)


def main(*, in_bench: bool = False) -> None:
    """Run the command line and exit; `in_bench`: commands that only `bench` has need not name it."""
    own, others = ({each.name for each in group.registered_commands} for group in (bench_app, app))
    if in_bench and len(sys.argv) > 1 and sys.argv[1] in own - others:
        sys.argv.insert(1, "bench")
    run_command_line(app)
