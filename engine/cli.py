"""The command line: train, evaluate, export, recipes, data. `bench` adds its own commands in speedyresnet.bench.cli."""

import contextlib
import dataclasses
import errno
import io
import json
import logging
import math
import os
import sys
import textwrap
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer
from rich.console import Console
from rich.table import Table

from ..kernels import resources
from .api import MAX_SEED, MIN_SEED, TrainedRun, checkpoint_file
from .api import evaluate as evaluate_model
from .api import train_set_up as train_run
from .backends import AUTO, BACKENDS, LOG
from .checkpoint import DEFAULT_MINUTES, LEAST_MINUTES, Checkpoint, Progress, read_checkpoint
from .contact_sheet import check_picture, save_contact_sheet
from .data import default_data, load_data, pack_name, pack_source, skipped_told, writable_pack_path
from .device import dtype_name, pick_device, pick_dtype
from .display import FileProgress, print_result, training_display
from .doctor import examination, examination_text
from .downloads import DOWNLOADS
from .errors import Note, UserError, one_line
from .export import FORMATS, check_format, export_model
from .files import Outputs, check_outputs, check_writable, write_text
from .fit import expected_data
from .memory import estimated_peak_bytes
from .model_file import read_model
from .nets import MAX_IMAGE_SIDE, forward_flops_per_image, make_net, parameter_counts
from .operations import shipped_operations
from .outside_kernels import kernel_references, load_kernels
from .pack import Pack
from .pack_file import save_pack
from .plots import check_plot, save_learning_rates
from .python_files import file_of
from .ranks import launched
from .recipe import DESCRIPTION, Group, Recipe
from .recipes import group as group_called
from .recipes import recipe as recipe_called
from .recipes import registered_groups, registered_recipes
from .record import claim_told
from .schedules import plan
from .settings import with_settings
from .setup import PlacedRecipe, Setup, chosen_recipe, place_recipe
from .signals import handle_stopping, interrupt_flag, stop_code
from .step import training_window

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Train an image classifier in seconds.",
)
data_app = typer.Typer(help="Make and inspect data packs.")
app.add_typer(data_app, name="data")

_USAGE_ERROR: Any = typer.BadParameter.__bases__[0]  # typer has no public name for what a mistyped option raises

SHARED_COMMANDS = {"train", "record", "compare", "trim"}
"""Commands that the ranks of torchrun share; any other command would run once on every rank."""
_TYPER_INTERRUPTED = 130
"""What Typer makes of a KeyboardInterrupt."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FILE_COLUMNS = 160  # tables that do not go to a terminal

RecipeOption = Annotated[str | None, typer.Option("--recipe", help="A name, or my_file.py:function.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Change a number: --set epochs=2.")]
DataOption = Annotated[
    str | None, typer.Option("--data", help="A name, a pack file or an image folder. None: what the recipe is for.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:0.")]
BackendOption = Annotated[str, typer.Option("--backend", help=", ".join(BACKENDS) + " or auto.")]
SeedOption = Annotated[
    int | None, typer.Option("--seed", min=MIN_SEED, max=MAX_SEED, help="Of weights, order and augmentation.")
]
OutOption = Annotated[Path | None, typer.Option("--out", help="Write the result to this JSON file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


def finite(value: float | None) -> float | None:
    """Refuses NaN and infinity, which no limit of an option does; a callback for options."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not finite.")
    return value


def run_command_line(application: typer.Typer) -> NoReturn:
    """Run `application` and exit.

    Exit codes: 0 done, 1 a check failed, 2 wrong input or a file that cannot be written (one line), 130 stopped by
    Ctrl-C, 143 stopped by SIGTERM.
    """
    handle_stopping()
    if isinstance(sys.stdout, io.TextIOWrapper):  # names that the encoding of the output lacks are no failure
        sys.stdout.reconfigure(errors="backslashreplace")
    show_notes()
    command = typer.main.get_command(application)
    add_debug_option(command)
    code, told = _ended(command)
    try:
        print(end="", flush=True)  # while a full disk can still be told
    except OSError as error:
        full_code, full = _output_refused(error)
        code, told = max(code, full_code), [*told, *full]
    if line := one_line("; ".join(filter(None, told))):
        print(f"speedyresnet: {line}", file=sys.stderr)
    sys.exit(code)


def _check_ranks(words: Sequence[str]) -> None:
    """Raise UserError if the ranks of a launcher run a command that knows nothing of them."""
    if launched().size > 1 and not SHARED_COMMANDS.intersection(words):
        raise UserError(f"torchrun is for the commands {', '.join(sorted(SHARED_COMMANDS))}; run others without it")


def _ended(command: Any) -> tuple[int, list[str]]:
    """Run `command`; its exit code, and what went wrong, to be told in one line."""
    try:
        _check_ranks(sys.argv[1:3])
        code = command.main(sys.argv[1:] or ["--help"], prog_name="speedyresnet", standalone_mode=False)
    except (typer.Exit, typer.Abort) as end:
        code = getattr(end, "exit_code", _TYPER_INTERRUPTED)
    except (UserError, _USAGE_ERROR, MemoryError, RuntimeError, OSError) as error:
        LOG.debug("%s", error, exc_info=error)
        code, told = _refusal(error)
        return code, [*getattr(error, "__notes__", ()), *told]
    except KeyboardInterrupt:
        code = _TYPER_INTERRUPTED
    if code == _TYPER_INTERRUPTED:  # whichever signal it was
        code = stop_code()
    return (code if isinstance(code, int) else 0), []


def _refusal(error: Exception) -> tuple[int, list[str]]:
    """Exit code and what to tell of an error that is the user's; raises any other error again."""
    if isinstance(error, UserError):
        return 2, [str(error)]
    if isinstance(error, _USAGE_ERROR):
        where = f" (see {error.ctx.command_path} --help)" if error.ctx and error.format_message() else ""
        return 2, [error.format_message() + where]
    if isinstance(error, OSError):
        return _output_refused(error)
    full = _full_memory(error)
    if full is None:
        raise error
    return 2, [f"{full}: lower --set batch_size, --set evaluation.batch_size or --set width_multiplier"]


def add_debug_option(command: Any) -> None:
    """Give `command` and all commands below it the option `--debug`, which changes nothing but what is printed.

    Args:
        command: what `typer.main.get_command` makes, for which Typer has no public type.
    """
    application = typer.Typer(add_completion=False)
    application.command()(_with_debug)
    _add_parameters(command, typer.main.get_command(application).params)


def _add_parameters(command: Any, parameters: Sequence[Any]) -> None:
    command.params.extend(parameters)
    for each in getattr(command, "commands", {}).values():
        _add_parameters(each, parameters)


def _with_debug(
    debug: Annotated[
        bool,
        typer.Option(
            "--debug",
            help="Print the traceback of what is told in one line.",
            callback=lambda value: show_tracebacks() if value else None,
            expose_value=False,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Lend all commands its option, which Typer makes of functions only."""


def show_tracebacks() -> None:
    """From now on print on standard error what `backends.LOG` gets."""
    if not LOG.isEnabledFor(logging.DEBUG):
        LOG.addHandler(logging.StreamHandler())
        LOG.setLevel(logging.DEBUG)


def show_notes() -> None:
    """From now on print each `Note` as one line on standard error, in the manner of errors."""
    show_others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, Note):
            print(f"speedyresnet: {message}", file=sys.stderr)
        else:
            show_others(message, category, *place, **more)

    warnings.simplefilter("always", Note)
    warnings.showwarning = show


def _output_refused(error: OSError) -> tuple[int, list[str]]:
    """Exit code and what to tell where standard output takes no more; raises any other error again."""
    if error.errno not in (*_FULL, errno.EPIPE):
        raise error
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python writes what is left when it ends
    if error.errno == errno.EPIPE:
        return 1, []
    where = error.filename or "the output"
    return 2, [f"cannot write {where}: {error.strerror}; make room, or write elsewhere"]


def _full_memory(error: Exception) -> str | None:
    """In words which memory is full, if that is what `error` says."""
    if isinstance(error, torch.OutOfMemoryError):
        return f"the GPU's memory is full ({torch.cuda.max_memory_allocated() / 2**30:.1f} GiB were in use)"
    # PyTorch has no exception of its own for the memory of the CPU.
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "the memory is full"
    return None


def notes_console(quiet: bool = False) -> Console:
    """Where notes go: standard output, or standard error when standard output is for JSON only; of rank 0 alone."""
    # Without markup, because names and paths may have brackets and colons.
    options: dict[str, Any] = {"stderr": quiet, "soft_wrap": True, "markup": False, "emoji": False}
    options["quiet"] = not launched().leads
    console = Console(**options)
    return console if console.is_terminal else Console(**options, width=_FILE_COLUMNS)


def _errors_console() -> Console:
    """Standard error, for progress and warnings; of rank 0 alone."""
    return Console(stderr=True, quiet=not launched().leads)


def _data_called(name: str) -> Pack:
    with contextlib.closing(FileProgress(_errors_console())) as progress:
        return load_data(name, progress=progress)


def _data_for(recipe: Recipe) -> Pack:
    """What `recipe` is for, or the synthetic data set and a warning."""
    console = _errors_console()
    with contextlib.closing(FileProgress(console)) as progress:
        return default_data(recipe.data, progress, lambda text: console.print(f"warning: {text}", soft_wrap=True))


def _with_those_of(
    begun: Progress, device: str, backend: str, seed: int | None, data: str | None
) -> tuple[str, str, int, str]:
    """Device, backend, seed and data: what the user did not choose is that of the run that goes on."""
    return (
        begun.device if device == "auto" else device,
        begun.backend if backend == AUTO else backend,
        begun.seed if seed is None else seed,
        data or begun.data,
    )


def _placed_recipe(
    begun: Checkpoint | None, recipe: str | None, settings: list[str] | None, device: str, backend: str
) -> PlacedRecipe:
    """What the options ask for; the recipe of the run that goes on where they name none and change nothing."""
    if begun and not (recipe or settings):
        return place_recipe(begun.progress.recipe, pick_device(device), backend)
    return chosen_recipe(recipe, settings, device, backend)


@app.command("train")
def train_command(
    recipe: RecipeOption = None,
    settings: SetOption = None,
    data: DataOption = None,
    device: DeviceOption = "auto",
    backend: BackendOption = AUTO,
    seed: SeedOption = None,
    out: OutOption = None,
    save: Annotated[Path | None, typer.Option("--save", help="Write the trained model here.")] = None,
    checkpoint: Annotated[Path | None, typer.Option("--checkpoint", help="Write what --resume takes here.")] = None,
    minutes: Annotated[
        float, typer.Option("--checkpoint-minutes", min=LEAST_MINUTES, help="From one checkpoint to the next.")
    ] = DEFAULT_MINUTES,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Go on from this checkpoint; --data only if it was no name.")
    ] = None,
    kernels: Annotated[
        list[str] | None, typer.Option("--kernel", help="Your own: OPERATION=my_file.py:KERNEL, checked first.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train once. Without options: on the GPU if there is one, on CIFAR-10 if it can be had."""
    console = notes_console(as_json)
    begun = None if resume is None else read_checkpoint(resume)
    if begun:
        device, backend, seed, data = _with_those_of(begun.progress, device, backend, seed, data)
    placed = _placed_recipe(begun, recipe, settings, device, backend)
    outside = load_kernels(kernel_references(kernels or ()))
    placed = dataclasses.replace(placed, outside_kernels=outside, ranks=launched())
    check_outputs([out, save, checkpoint or resume], [data or placed.recipe.data, file_of(recipe)])
    pack, seed = _data_called(data) if data else _data_for(placed.recipe), seed or 0
    setup = placed.with_data(pack.facts)  # before anything is printed
    console.print(_setup_told(setup, pack, seed), highlight=False)
    with contextlib.ExitStack() as stack:
        with training_display(console) as display:
            checkpoints = checkpoint_file(checkpoint, begun, minutes, display)
            run = train_run(setup, pack, seed=seed, display=display, checkpoints=checkpoints, resume=begun)
            stack.enter_context(interrupt_flag())  # from here on a signal waits until the result is kept
        if placed.ranks.leads:
            _keep_result(run, out, save, console, as_json)
    raise typer.Exit({"finished": 0, "diverged": 1, "interrupted": stop_code()}[run.record.status])


def _setup_told(setup: Setup, pack: Pack, seed: int) -> str:
    """The line that `train` begins with."""
    recipe, facts, size = setup.recipe, setup.data, setup.ranks.size
    ranks = f" and those of {size - 1} more ranks" if size > 1 else ""
    return (
        f"recipe {recipe.name} ({recipe.hash}), data {pack.name} ({facts.train_images:,} + {facts.test_images:,} "
        f"images), device {setup.device}{ranks}, backend {setup.backends[0]}, {dtype_name(setup.dtype)}, seed {seed}"
    )


def _keep_result(run: TrainedRun, out: Path | None, save: Path | None, console: Console, as_json: bool) -> None:
    """Write the files asked for, and print the result, as a table or as JSON, even where files are refused.

    Raises:
        UserError: files were refused, the last checkpoint too, and why.
    """
    if run.record.status == "diverged":
        advice = f"the loss is not finite from step {run.record.diverged_at_step} on: lower optimizer.learning_rate"
        console.print(advice, highlight=False)
    with Outputs() as outputs:
        if out is not None:
            outputs.attempt(out, partial(run.record.write, out))
        if save is not None:
            outputs.attempt(save, partial(run.save, save))
        outputs.count(run.refused)
        if as_json:
            print(run.record.to_json())
        else:
            print_result(console, run.record)


@app.command("evaluate")
def evaluate_command(
    model: Annotated[Path, typer.Argument(help="A file that `train --save` wrote.")],
    data: DataOption = None,
    device: DeviceOption = "auto",
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Accuracy of a saved model on the test images of a data set (default: what its recipe is for).

    A folder needs no train split: test/CLASS/* or CLASS/* will do.
    """
    place = pick_device(device)
    check_outputs([out], [model, data])
    loaded = read_model(model)
    source = data or loaded.recipe.data
    check_outputs([out], [source])
    with contextlib.closing(FileProgress(Console(stderr=True))) as progress:
        accuracy = evaluate_model(loaded, source, device=place, progress=progress)
    text = json.dumps({"accuracy": dataclasses.asdict(accuracy)}, indent=1)
    with Outputs() as outputs:
        if out is not None:
            outputs.attempt(out, partial(write_text, out, text + "\n"))
        if as_json:
            print(text)
            return
        for view in ("single_view", "mirror", "six_view"):
            value = getattr(accuracy, view)
            if value is not None:
                print(f"{view:12s} {value:.4f}")


@app.command("export")
def export_command(
    model: Annotated[Path, typer.Argument(help="A file that `train --save` wrote.")],
    file_format: Annotated[str, typer.Option("--format", help=" or ".join(FORMATS) + ".")],
    out: Annotated[Path, typer.Option("--out", help="Write the net here, as NAME.pt2 for pt2.")],
    size: Annotated[
        int | None, typer.Option("--size", min=1, max=MAX_IMAGE_SIDE, help="SIZE x SIZE pixels; none: as in training.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """A saved model as one file that PyTorch runs without this package, normalisation inside."""
    check_format(file_format)
    check_outputs([out], [model])
    metadata = export_model(read_model(model), out, file_format, None if size is None else (size, size))
    written = {"file": str(out), "bytes": out.stat().st_size} | metadata
    if as_json:
        print(json.dumps(written, indent=1))
        return
    shapes = [", ".join(map(str, metadata[side]["shape"])) for side in ("input", "output")]
    print(
        f"{out}: {file_format}, {written['bytes']:,} bytes, "
        f"float32 [{shapes[0]}] in [0, 1] -> logits float32 [{shapes[1]}]"
    )


def _described(made: Recipe) -> dict[str, Any]:
    """What `recipes` tells of a recipe, on the data it is for, or on CIFAR-10 where that is no download.

    Memory is a GPU's. FLOPs are those of a training image, as in run records: of the window, where one is cropped out.
    """
    facts = expected_data(made)
    height, width = training_window(made, *facts.image_size)
    net = make_net(made, classes=facts.classes, channels=facts.channels, dtype=torch.float32, device="meta")
    parameters, trainable = parameter_counts(net)
    schedule = plan(made, facts.train_images)
    return {
        "name": made.name,
        "summary": made.summary,
        "source": made.source,
        "data": made.data,
        "claim": dataclasses.asdict(made.claim) if made.claim else None,
        "faithful": made.faithful,
        "mended": made.mended,
        "parameters": parameters,
        "trainable_parameters": trainable,
        "forward_flops_per_image": forward_flops_per_image(
            made, classes=facts.classes, channels=facts.channels, height=height, width=width
        ),
        "estimated_peak_bytes": estimated_peak_bytes(made, facts, pick_dtype(made, torch.device("cuda"))),
        "steps": schedule.steps,
        "images_seen": schedule.steps * made.batch_size,
        "hash": made.hash,
        "recipe": dataclasses.asdict(made),
    }


@app.command("recipes")
def recipes_command(
    name: Annotated[str | None, typer.Argument(help="A recipe or a group; none lists all recipes.")] = None,
    settings: SetOption = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="Draw the learning rates here, png or svg.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the recipes, or those of a group, or all numbers of one."""
    if picture is not None:
        if name is None:
            raise UserError("--picture needs the name of a recipe or of a group")
        check_plot(picture)
    made = [with_settings(each, settings or ()) for each in _recipes_called(name)]
    rows = list(map(_described, made))
    with Outputs() as outputs:
        if picture is not None:
            labelled = {each.name.removeprefix(f"{name}/"): each for each in made}
            images = expected_data(made[0]).train_images
            title = f"{name}, {images:,} training images"
            outputs.attempt(picture, partial(save_learning_rates, title, labelled, images, picture))
        if as_json:
            print(json.dumps(rows, indent=1))
        elif name is None or name in registered_groups():
            _print_recipes(rows)
        else:
            _print_recipe(rows[0])
        if name is None and not as_json:
            _print_groups([function() for function in registered_groups().values()])


def _recipes_called(name: str | None) -> list[Recipe]:
    """The recipe, or the members of the group, of that name; without one every recipe that is in no group."""
    if name in registered_groups():
        return list(group_called(name).members)
    return [recipe_called(each) for each in (sorted(registered_recipes()) if name is None else [name])]


@app.command("doctor")
def doctor_command(as_json: JsonOption = False) -> None:
    """What this machine can do, and how to get what is missing."""
    placed = chosen_recipe(None, None, "auto")
    facts = examination(placed.with_data(expected_data(placed.recipe)))
    print(json.dumps(facts, indent=1) if as_json else examination_text(facts))


@app.command("kernels")
def kernels_command(
    name: Annotated[str | None, typer.Argument(help="A kernel or its file; none: all.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit code 1 if one got worse than resources.json.")] = False,
    update: Annotated[bool, typer.Option("--update", help="Make these the limits in resources.json.")] = False,
    dump: Annotated[str | None, typer.Option("--dump", help="Print its code: ttir, ptx or sass.")] = None,
    against: Annotated[
        str | None, typer.Option("--against", help="Print how it differs from that git revision.")
    ] = None,
    ptx_hash: Annotated[
        bool, typer.Option("--ptx-hash", help="Print a hash of each kernel's PTX, to see whether a change alters it.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """What the Triton kernels need, compiled here for every target; no GPU is needed."""
    try:
        if ptx_hash:
            hashes = resources.ptx_hashes(shipped_operations(), name)
            print(json.dumps(hashes, indent=1) if as_json else "\n".join(f"{hashes[key]}  {key}" for key in hashes))
            return
        if dump is not None:
            print(resources.dumped_code(shipped_operations(), name, dump, against), end="")
            return
        if update and name is not None:
            raise UserError("--update takes no name: the limits of a version of Triton are of all its kernels")
        rows = resources.all_resources(shipped_operations(), name)
    except ValueError as error:
        raise UserError(str(error)) from error
    with Outputs() as outputs:
        if update:
            text = resources.budget_with(rows)
            outputs.attempt(resources.BUDGET_FILE, partial(write_text, resources.BUDGET_FILE, text))
        if as_json:
            print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
        else:
            _print_kernels(rows)
    if check:
        raise typer.Exit(_checked(rows))


def _checked(rows: list[resources.Resources]) -> int:
    """Exit code of `kernels --check`; says on standard error what is wrong."""
    version = resources.triton_minor_version()
    if resources.budget() is None:
        print(f"resources.json has no limits for Triton {version}: nothing is held to them", file=sys.stderr)
    for row in rows:
        for problem in row.problems:
            print(f"{row.kernel}, {row.shape}, {row.target}: {problem}", file=sys.stderr)
    return 1 if any(row.problems for row in rows) else 0


def _print_kernels(rows: list[resources.Resources]) -> None:
    table = Table(title=f"Triton {resources.triton_minor_version()}")
    for column in ("kernel", "shape", "target"):
        table.add_column(column, no_wrap=column != "shape")
    uses = "registers", "spills", "shared, B", "16-byte loads", "stores", "exchanges in loops"
    for column in (*uses, "MB", "floor on an H200, us"):
        table.add_column(column, justify="right")
    for row in rows:
        floor = "" if row.floor_seconds is None else f"{1e6 * row.floor_seconds:.2f}"
        wide = row.vector_loads, row.vector_stores
        numbers = row.registers, row.spills, row.shared_bytes, *wide, row.exchanges_in_loops
        table.add_row(row.kernel, row.shape, row.target, *map(str, numbers), f"{row.bytes / 1e6:.2f}", floor)
    notes_console().print(table)


def _print_recipes(rows: list[dict[str, Any]]) -> None:
    table = Table()
    table.add_column("recipe", no_wrap=True)
    for column in ("parameters", "MFLOP/image", "GB", "steps"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("claimed")
    table.add_column("what")
    for row in rows:
        flops, memory = f"{row['forward_flops_per_image'] / 1e6:.1f}", f"{row['estimated_peak_bytes'] / 1e9:.1f}"
        numbers = f"{row['parameters']:,}", flops, memory, str(row["steps"])
        table.add_row(row["name"], *numbers, claim_told(row["claim"]), row["summary"])
    notes_console().print(table)
    print("each on the data it is for, CIFAR-10 unless it says otherwise; MFLOP/image: forward, a training image")
    print("GB: the most that a step holds on a GPU, estimated; what the device itself and cuDNN need comes on top")


def _print_groups(groups: list[Group]) -> None:
    table = Table(title="groups, for `recipes NAME` and `bench compare --group NAME`")
    table.add_column("group", no_wrap=True)
    table.add_column("recipes", justify="right")
    table.add_column("what")
    for group in groups:
        table.add_row(group.name, str(len(group.members)), group.summary)
    notes_console().print(table)


def _print_recipe(row: dict[str, Any]) -> None:
    for key, value in (row | {"claim": claim_told(row["claim"]) or "none"}).items():
        if key != "recipe":
            for text in (value or ("none",)) if isinstance(value, tuple) else (value,):
                print(_wrapped(f"{key:26s} {text}"))
    print("settings (change with --set):")
    for key, value in row["recipe"].items():
        if key in DESCRIPTION:
            continue
        if isinstance(value, dict):
            for inner, setting in value.items():
                print(f"  {key + '.' + inner:36s} {_setting(setting)}")
        else:
            print(f"  {key:36s} {_setting(value)}")


def _wrapped(line: str) -> str:
    """A key in 26 columns and its text, which goes on in the column behind them."""
    joined = line.replace("--set ", "--set\0")  # stays on one line with what it sets
    options: dict[str, Any] = {"subsequent_indent": 27 * " ", "break_on_hyphens": False, "break_long_words": False}
    return textwrap.fill(joined, notes_console().width, **options).replace("\0", " ")


def _setting(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


@data_app.command("pack")
def pack_command(
    source: Annotated[
        str, typer.Argument(help=", ".join(DOWNLOADS) + ", synthetic, or a folder {train,test|val}/<class>/*.")
    ],
    name: Annotated[str | None, typer.Option("--name", help="Name in the cache.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write here instead of into the cache.")] = None,
    size: Annotated[
        int | None, typer.Option("--size", min=1, max=MAX_IMAGE_SIDE, help="Resize images to SIZE x SIZE.")
    ] = None,
    holdout: Annotated[
        float | None, typer.Option("--holdout", help="Test on this share of a folder that has no test split.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=MAX_SEED, help="Of synthetic images.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Turn images into one file that trains at once."""
    path = out or writable_pack_path(pack_name(source, name, size))
    check_writable(path)
    progress = FileProgress(Console(stderr=True))
    try:
        pack = pack_source(source, name=name, size=size, holdout=holdout, seed=seed, progress=progress)
    finally:
        progress.close()
    with Outputs() as outputs:
        outputs.attempt(path, partial(save_pack, pack, path))
        _print_pack(pack, as_json, None if outputs.refused else path)


@data_app.command("info")
def info_command(
    data: Annotated[str, typer.Argument(help="A name, a pack file or an image folder.")],
    picture: Annotated[Path | None, typer.Option("--picture", help="Draw some images of each class here.")] = None,
    as_json: JsonOption = False,
) -> None:
    """What is in a data set."""
    if picture is not None:
        check_picture(picture)
    pack = _data_called(data)
    with Outputs() as outputs:
        if picture is not None:
            outputs.attempt(picture, partial(save_contact_sheet, pack, picture))
        _print_pack(pack, as_json, None)


def _print_pack(pack: Pack, as_json: bool, path: Path | None) -> None:
    height, width = pack.image_size
    facts: dict[str, Any] = {
        "name": pack.name,
        "sha256": pack.sha256,
        "train_images": len(pack.train_labels),
        "test_images": len(pack.test_labels),
        "height": height,
        "width": width,
        "channels": pack.channels,
        "classes": pack.num_classes,
        "class_names": list(pack.class_names),
        "train_images_per_class": pack.train_labels.bincount(minlength=pack.num_classes).tolist(),
        "mean": list(pack.mean),
        "std": list(pack.std),
    }
    if pack.skipped:
        facts["skipped"] = dict(pack.skipped)
    if path is not None:
        facts["path"] = str(path)
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    for key, value in facts.items():
        print(f"{key:24s} {skipped_told(value) if key == 'skipped' else _setting(value)}")
