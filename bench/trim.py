"""`bench trim`: everything of a recipe that could go or be replaced, with and without it, and what to cut first.

A change is a `--variant` of `bench compare`, so that any of them can be tried there too. Base and change are built side
by side and their steps timed in turns; a step is the mean over a run: every kind of step that the run has is timed, and
weighted by how often the run takes it. Views change the evaluation only, whose seconds are spread over the run's steps.
Accuracy comes from whole runs with the same seeds, each recipe's in a pool of its own.
"""

import gc
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch
from rich.console import Console
from rich.table import Table

from speedyresnet.engine.backends import backends_of
from speedyresnet.engine.device import pick_dtype
from speedyresnet.engine.errors import UserError
from speedyresnet.engine.files import Outputs, write_text
from speedyresnet.engine.kernel_choice import pick_kernels
from speedyresnet.engine.nets import make_net
from speedyresnet.engine.pack import Pack
from speedyresnet.engine.recipe import VIEWS, Activation, Recipe
from speedyresnet.engine.recipes import recipe as recipe_called
from speedyresnet.engine.record import environment
from speedyresnet.engine.setup import place_recipe, set_up
from speedyresnet.engine.step import training_window
from speedyresnet.engine.trainer import Trainer

from .compare import Arm, arm_of
from .fleet import Announcements
from .ladder import ladder
from .pool import BASE, PoolPlan
from .record import record_runs
from .statistics import Interval, mean_interval
from .step_time import timed_round
from .verdicts import told, told_accuracy, verdict_on

SCHEMA = "speedyresnet.trim/1"
NARROWER = 0.75
"""How wide a group is that is made narrower."""
GROWTH = (0.75, 0.875)
"""Of the images' side: what they grow over, a third of the epochs each, where a recipe does not scale them."""
_LEAST_LOSS = 1e-4
"""Accuracy: a smaller loss counts as this one where savings are divided by it."""


@dataclass(frozen=True, slots=True)
class Change:
    """One thing without which, or with another one in the place of which, a recipe might do."""

    what: str
    variant: str
    """As `bench compare --variant` takes it; the first setting is the point, the others make it fit."""


VIEWS_CHANGE = "views"
"""The change that concerns the evaluation only."""
_CHANGES = (
    ("crop", "augmentation.crop=0"),
    ("crop", "augmentation.padding=0"),
    ("flip", "augmentation.flip=none"),
    ("cutout", "augmentation.cutout=0"),
    ("cutmix", "augmentation.cutmix=0"),
    ("brightness", "augmentation.brightness=0"),
    ("contrast", "augmentation.contrast=0"),
    ("whitening", "net.whitening_kernel=2 net.whitening_padding=0"),
    ("whitening", "net.whitening_kernel=3 net.whitening_padding=1"),
    ("whitening", "net.whitening_kernel=0 net.whitening_padding=0 net.whitening_bias=false"),
    ("whitening bias", "net.whitening_bias=false"),
    ("whitening sign pairs", "net.whitening_sign_pairs=false"),
    ("projection", "net.project_width=0"),
    ("batch norm", "net.batch_norm_precision=float32"),
    ("batch norm", "net.batch_norm_precision=native"),
    ("batch norm scale", "net.batch_norm_scale=frozen"),
    ("batch norm scale", "net.batch_norm_scale=learned"),
    ("ghost batch norm", "net.batch_norm_groups=1"),
    *(("activation", f"net.activation={name} net.whitening_activation={name}") for name in get_args(Activation)),
    ("residual", "net.residual=none"),
    ("pool", "net.pool=before_norm"),
    ("pool", "net.pool=after_norm"),
    ("averaging", "averaging.kind=none evaluation.weights=live"),
    ("label smoothing", "loss.label_smoothing=0"),
    ("optimizer", "optimizer.kind=muon"),
    (
        "optimizer",  # with the rates that airbench94 has, as those beside Muon are for the head and the biases only
        "optimizer.kind=sgd optimizer.learning_rate=1.5 optimizer.momentum=0.85 optimizer.batch_norm_bias_scale=64 "
        "optimizer.head_scale=1",
    ),
    ("master weights", "optimizer.master_weights=false"),
    *((VIEWS_CHANGE, f"evaluation.view={view}") for view in VIEWS),
    *(("dtype", f"dtype={name}") for name in ("float16", "bfloat16", "float32")),
    *(("memory format", f"net.memory_format={name}") for name in ("channels_last", "contiguous")),
    *(("kernels", f"kernels={name}") for name in ("triton", "reference")),
)
_NEVER = {
    "what": "width",
    "change": "of one convolution alone",
    "reason": "all convolutions of a group have its width, see net.widths",
}


def changes_of(made: Recipe, image_size: tuple[int, int], device: torch.device, backend: str) -> list[Change]:
    """All changes that change something in a recipe.

    Args:
        made: the recipe.
        image_size: height and width.
        device: where; says which backends there are.
        backend: that the recipe runs with now.
    """
    third = max(math.ceil(made.epochs) // 3, 1)
    side = min(training_window(made, *image_size))
    sizes = [round(share * side) for share in GROWTH for _ in range(third)]
    growth = "" if made.augmentation.sizes else ",".join(map(str, [*sizes, 0]))
    widths = made.net.widths
    own = [
        ("resolution", f"augmentation.sizes={growth}"),
        ("convolutions a group", f"net.group_convolutions={max(made.net.group_convolutions - 1, 1)}"),
    ]
    for group, width in enumerate(widths):
        narrow = [*widths[:group], max(round(NARROWER * width), 1), *widths[group + 1 :]]
        own.append((f"width of group {group + 1}", f"net.widths={','.join(map(str, narrow))}"))
    found = [Change(*each) for each in (*_CHANGES, *own) if _differs(made, each[1].split()[0])]
    others = [each for each in backends_of(device) if each != backend]
    return found + [Change("backend", f"backend={each}") for each in others]


def _differs(made: Recipe, setting: str) -> bool:
    """Whether a recipe has another value, as `recipes` prints it, than `key=value` says."""
    key, _, text = setting.partition("=")
    value = attrgetter(key)(made)
    if isinstance(value, tuple):
        return ",".join(map(str, value)) != text
    return str(value).lower() != text if isinstance(value, bool | str) else value != float(text)


@dataclass(frozen=True, slots=True)
class Rounds:
    """Seconds a step of the base and of a change, by round."""

    base: list[float]
    changed: list[float]

    @property
    def saving(self) -> Interval:
        """What the change saves a step, paired by round."""
        return mean_interval([one - other for one, other in zip(self.base, self.changed, strict=True)])


def step_seconds(trainer: Trainer, steps: int) -> float:
    """Seconds a step of a run takes in the mean; of each kind that a run has at most `steps` steps are timed."""
    trainer.net.train()
    kinds = trainer.counted_steps
    return sum(count * timed_round(trainer, min(steps, count), step)[0] for step, count in kinds) / trainer.plan.steps


def evaluation_seconds(trainer: Trainer, _: int) -> float:
    """Seconds that the final evaluation takes, a step of the run."""
    return trainer.evaluate()[1] / trainer.plan.steps


def rounds_in_turns(
    measured: Callable[[Trainer, int], float], base: Trainer, changed: Trainer, rounds: int, steps: int
) -> Rounds:
    """What `measured` says of both, in turns, every other round backwards; a first round is thrown away."""
    found = Rounds([], [])
    pairs = (base, found.base), (changed, found.changed)
    for number in range(-1, rounds):
        for trainer, values in pairs if number % 2 == 0 else reversed(pairs):
            values.append(measured(trainer, steps))
    return Rounds(found.base[1:], found.changed[1:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Trimming:
    """What is measured, and how."""

    recipe: str
    settings: tuple[str, ...]
    pack: Pack
    device: torch.device
    backend: str
    rounds: int
    steps: int
    what: tuple[str, ...]
    """Only these changes; none: all."""
    seeds: int
    """Runs each way; 0: no accuracies."""
    validation: int
    out: Path | None
    """Where the result is kept, complete after every change; runs are kept in a folder beside it."""
    outputs: Outputs = field(default_factory=Outputs)
    """Of the command: files that are refused do not end the measurements."""
    announcements: Announcements | None = None
    """Where rank 0 tells the other ranks of a launcher whose runs come next; none: there is one rank."""

    @property
    def base(self) -> Arm:
        """The recipe as it is."""
        return Arm(BASE, recipe_called(self.recipe, self.settings), self.backend)

    def arm(self, variant: str) -> Arm:
        """The base with a change."""
        return arm_of(variant, self.recipe, self.settings, self.backend)


def _effect(made: Recipe, device: torch.device) -> tuple[Any, ...]:
    """What dtypes and kernels come to on a device."""
    dtype = pick_dtype(made, device)
    net = make_net(made, classes=10, channels=3, dtype=dtype, device="meta")
    return dtype, pick_kernels(made, device, dtype), [tensor.dtype for tensor in net.state_dict().values()]


def check_effect(base: Recipe, changed: Recipe, what: str, device: torch.device) -> None:
    """Raise UserError for dtypes or kernels that are those which the base has here anyhow."""
    concerned = what in ("dtype", "kernels", "batch norm", "master weights")
    if concerned and _effect(base, device) == _effect(changed, device):
        raise UserError("changes nothing here")


def accuracies(trimming: Trimming, arm: Arm, console: Console) -> list[float] | None:
    """Of the runs of an arm by seed, in the view that its recipe reports; runs what its pool lacks.

    Raises:
        UserError: a pool of another number of runs or held-out images.
    """
    if not trimming.seeds or trimming.out is None:
        return None
    if trimming.announcements:
        trimming.announcements.send(arm.name)
    runs, view = _runs(trimming, arm, trimming.out, console), arm.recipe.evaluation.view
    found = {int(run["seed"]): float(run["accuracy"][view]) for run in runs}
    return [found[seed] for seed in range(trimming.seeds)]


def _runs(trimming: Trimming, arm: Arm, out: Path, console: Console) -> list[dict[str, Any]]:
    """The runs of an arm, those that its pool beside `out` lacks done first; see `record.run_pool`."""
    plan = PoolPlan(runs=trimming.seeds, first_seed=0, validation=trimming.validation)
    pool = out.with_suffix(".runs") / f"{arm.recipe.hash}-{arm.backend}.jsonl"
    placed = place_recipe(arm.recipe, trimming.device, arm.backend)
    return record_runs(placed, trimming.pack, plan, pool, console, trimming.outputs)


def follow(trimming: Trimming, console: Console) -> None:
    """Do this rank's share of the runs that rank 0 announces; the steps are timed by rank 0 alone."""
    for name in trimming.announcements or ():
        arm = trimming.base if name == BASE else trimming.arm(name)
        if trimming.out is not None:
            _runs(trimming, arm, trimming.out, console)


def row_of(
    change: Change, rounds: Rounds, base: float, steps_of_a_run: int, accuracy: Interval | None
) -> dict[str, Any]:
    """A change as plain values.

    Args:
        change: which.
        rounds: its seconds a step, beside the base's; of views those of the evaluation.
        base: seconds a step of the base.
        steps_of_a_run: which the saving is made in.
        accuracy: difference to the base; none: not measured.
    """
    saving = rounds.saving
    why = f"saves {told(saving, 1e3, 4, ' ms')} of {1e3 * base:.4f} ms a step, {saving.mean / base:+.1%}"
    if change.what == VIEWS_CHANGE:
        why = f"the step stays, the evaluation saves {told(saving, steps_of_a_run, 4, ' s')} a run"
    verdict: str = _verdict_on_time(saving)
    if accuracy is not None:
        verdict, reason = verdict_on(accuracy, _more_seconds(saving, steps_of_a_run), steps_of_a_run * base)
        why = f"{why}; of a whole run: {reason}"
    return {
        "what": change.what,
        "change": change.variant,
        "step_seconds": base if change.what == VIEWS_CHANGE else median(rounds.changed),
        "saving_seconds": asdict(saving),
        "accuracy_difference": None if accuracy is None else asdict(accuracy),
        "verdict": verdict,
        "why": why,
    }


def _verdict_on_time(saving: Interval) -> str:
    if saving.lower is None or saving.upper is None or saving.lower <= 0 <= saving.upper:
        return "cannot tell"
    return "faster" if saving.mean > 0 else "slower"


def _more_seconds(saving: Interval, steps: int) -> Interval:
    """What `steps` steps take more, where each saves that."""
    bounds = [None if bound is None else -steps * bound for bound in (saving.upper, saving.lower)]
    return Interval(mean=-steps * saving.mean, lower=bounds[0], upper=bounds[1])


def cut_first(row: dict[str, Any]) -> float:
    """By what rows are sorted, highest first: the saving or, with accuracies, the saving for each point lost."""
    saving, accuracy = float(row["saving_seconds"]["mean"]), row["accuracy_difference"]
    if accuracy is None or saving <= 0:
        return saving
    return saving / max(-float(accuracy["mean"]), _LEAST_LOSS)


def _prepared(arm: Arm, trimming: Trimming) -> Trainer:
    trainer = Trainer(set_up(arm.recipe, trimming.pack.facts, trimming.device, arm.backend), trimming.pack)
    trainer.prepare(seed=0)
    return trainer


def measured_rounds(change: Change, base: Trainer, trimming: Trimming) -> Rounds:
    """The base and a change in turns.

    Raises:
        UserError: a change that this recipe, data set or machine does not allow.
    """
    arm = trimming.arm(change.variant)
    check_effect(base.recipe, arm.recipe, change.what, trimming.device)
    measured = evaluation_seconds if change.what == VIEWS_CHANGE else step_seconds
    rounds = rounds_in_turns(measured, base, _prepared(arm, trimming), trimming.rounds, trimming.steps)
    gc.collect()  # a compiled step is part of cycles, and only one trainer beside the base has to fit into memory
    return rounds


def _begun(base: Trainer, trimming: Trimming) -> dict[str, Any]:
    """The result before the first change."""
    steps = min(trimming.steps, base.plan.steps)
    rungs = ladder(base, trimming.rounds, steps)
    base.prepare(seed=0)
    return {
        "schema": SCHEMA,
        "recipe": {"name": base.recipe.name, "hash": base.recipe.hash},
        "data": base.new_record(0).data,
        "environment": environment(trimming.device),
        "device": str(trimming.device),
        "backend": base.backend,
        "base_step_seconds": median(step_seconds(base, steps) for _ in range(trimming.rounds)),
        "rows": [],
        "ladder": rungs,
        "impossible": [dict(_NEVER)],
    }


def trim(trimming: Trimming, console: Console) -> dict[str, Any]:
    """Measure all changes; the result as plain values, which is also written after every change.

    Raises:
        UserError: a recipe that does not fit the data, or pools of another plan.
    """
    base = _prepared(trimming.base, trimming)
    result, base_accuracies = _begun(base, trimming), accuracies(trimming, trimming.base, console)
    for change in changes_of(base.recipe, trimming.pack.image_size, trimming.device, base.backend):
        if trimming.what and change.what not in trimming.what:
            continue
        try:
            rounds = measured_rounds(change, base, trimming)
        except UserError as error:
            result["impossible"].append({"what": change.what, "change": change.variant, "reason": str(error)})
            continue
        own = accuracies(trimming, trimming.arm(change.variant), console)
        pairs = zip(own, base_accuracies, strict=True) if own and base_accuracies else None
        accuracy = mean_interval([one - other for one, other in pairs]) if pairs else None
        row = row_of(change, rounds, result["base_step_seconds"], base.plan.steps, accuracy)
        result["rows"] = sorted([*result["rows"], row], key=cut_first, reverse=True)
        console.print(f"{change.variant}: {row['why']}", highlight=False, markup=False)
        if trimming.out is not None:
            write = partial(write_text, trimming.out, json.dumps(result, indent=1) + "\n")
            trimming.outputs.attempt(trimming.out, write, again=True)
    if trimming.announcements:
        trimming.announcements.send(None)
    return result


def print_trim(console: Console, result: dict[str, Any]) -> None:
    """The result as two tables, and a line for each change that is impossible."""
    whole = result["base_step_seconds"]
    name = f"{result['recipe']['name']} on {result['data']['name']}, {result['backend']}"
    table = Table(title=f"{name}, {1e3 * whole:.4f} ms a step: cut from the top")
    table.add_column("what", no_wrap=True)
    table.add_column("change", overflow="fold")
    for column in ("ms a step", "saves, ms", "%", "points"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("why", overflow="fold")
    for row in result["rows"]:
        saving, accuracy = Interval(**row["saving_seconds"]), row["accuracy_difference"]
        points = "" if accuracy is None else told_accuracy(Interval(**accuracy)).replace(" points", "")
        cells = [f"{1e3 * row['step_seconds']:.4f}", f"{1e3 * saving.mean:+.4f}", f"{100 * saving.mean / whole:+.1f}"]
        table.add_row(row["what"], row["change"], *cells, points, row["verdict"], row["why"])
    console.print(table)
    rungs = Table(title=f"{name}: layer by layer, the most common kind of step")
    for column in ("", "ms a step", "more, ms"):
        rungs.add_column(column, justify="right" if column else "left", no_wrap=True)
    before = 0.0
    for rung in result["ladder"]:
        rungs.add_row(
            rung["name"], f"{1e3 * rung['step_seconds']:.4f}", f"{1e3 * (rung['step_seconds'] - before):+.4f}"
        )
        before = rung["step_seconds"]
    console.print(rungs)
    for each in result["impossible"]:
        console.print(
            f"not measured: {each['what']}, {each['change']}: {each['reason']}", highlight=False, markup=False
        )
