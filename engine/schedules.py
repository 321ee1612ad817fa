"""From a recipe to tables with one entry a step: learning rate, averaging, and which epoch does what.

The training step reads the tables on the device, at its own counter, so that no schedule ever needs the host.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .errors import UserError
from .recipe import Averaging, Muon, Recipe, Schedule

MAX_STEPS = 1_000_000
"""Of a run, and of every curve in it: the tables of a longer one would fill the memory."""


def _fall(end: float, steps: int) -> list[float]:
    """Linear from 1 at step 0 towards `end` at step `steps`, one step after the last value."""
    return [1 - (1 - end) * step / steps for step in range(steps)]


def linear(schedule: Schedule, steps: int) -> list[float]:
    """Linear from 1 at the first step towards `end` at step `steps`, as airbench94_muon has it."""
    return _fall(schedule.end, steps)


def triangle(schedule: Schedule, steps: int) -> list[float]:
    """Linear from `start` up to 1 at step int(peak * steps), then linear towards `end` at step `steps`.

    As airbench has it: the last of the `steps` values is one short of `end`.
    """
    rise = int(schedule.peak * steps)
    up = [schedule.start + (1 - schedule.start) * step / rise for step in range(rise)]
    return up + _fall(schedule.end, steps - rise)


def one_cycle(schedule: Schedule, steps: int) -> list[float]:
    """Linear from `start` up to 1 at step peak * steps - 1 (a fraction), then linear to `end` at the last step.

    As torch.optim.lr_scheduler.OneCycleLR has it with anneal_strategy="linear".
    """
    top = schedule.peak * steps - 1
    last = steps - 1

    def value(step: int) -> float:
        if step <= top:
            return schedule.start + (1 - schedule.start) * step / top if top > 0 else 1.0
        return 1 - (1 - schedule.end) * (step - top) / (last - top)

    return [value(step) for step in range(steps)]


def piecewise(schedule: Schedule, steps: int) -> list[float]:
    """Linear between the `knots`, at which it has the `values`, and constant outside them.

    As cifar10-fast has it: the first step is 1 / steps along, the last one at 1.
    """
    places = np.arange(1, steps + 1) / steps
    found: list[float] = np.interp(places, schedule.knots, schedule.values).tolist()
    return found


SCHEDULES: dict[str, Callable[[Schedule, int], list[float]]] = {
    "triangle": triangle,
    "one_cycle": one_cycle,
    "linear": linear,
    "piecewise": piecewise,
}


def learning_rate_table(schedule: Schedule, curve_steps: int, steps: int) -> list[float]:
    """Multiple of the peak at each of `steps` steps: a curve of `curve_steps`, its last value from then on."""
    curve = [max(value, schedule.floor) for value in SCHEDULES[schedule.kind](schedule, curve_steps)]
    return (curve + curve[-1:] * steps)[:steps]


def whitening_bias_table(shared: list[float], kind: str, trained_steps: int) -> list[float]:
    """Learning rate of the whitening bias as a multiple of its peak, one a step; what follows its freezing is 0."""
    own = _fall(0.0, trained_steps) if kind == "linear" else shared
    steps = len(shared)
    return (own[:trained_steps] + [0.0] * steps)[:steps]


def renormalisation_table(muon: Muon, curve_steps: int, steps: int) -> list[float]:
    """1 at the steps at which Muon renormalises the filter banks, else 0.

    At step k = 1, 2, ... it does so when the last time is `renormalise_every` steps past, and as many more as the
    whole part of renormalise_growth * k / curve_steps, which stops growing at curve_steps.
    """
    table, last = [0.0] * steps, 0
    for k in range(1, steps + 1):
        interval = muon.renormalise_every + int(muon.renormalise_growth * (min(k, curve_steps) / curve_steps))
        if muon.renormalise_every and k - last >= interval:
            table[k - 1], last = 1.0, k
    return table


def averaging_tables(averaging: Averaging, first_step: int, steps: int) -> tuple[list[float], list[float]]:
    """Per step: what the slow copy keeps of itself (1: it stays), and how much of it is written back (0 or 1).

    With k = step + 1 the copy moves at every k divisible by `averaging.every`, from `first_step` on. Where the
    average covers only the end of a run, its first move is a plain copy of the live weights.
    """
    keep, write_back = [1.0] * steps, [0.0] * steps
    if averaging.kind == "none":
        return keep, write_back
    moves = [k for k in range(1, steps + 1) if k > first_step and k % averaging.every == 0]
    for k in moves:
        keep[k - 1] = averaging.decay**averaging.every * (k / steps) ** averaging.power
        write_back[k - 1] = float(averaging.kind == "lookahead")
    if (averaging.epochs is not None or averaging.tail is not None) and moves:
        keep[moves[0] - 1], write_back[moves[0] - 1] = 0.0, 0.0
    if averaging.finish:
        write_back[-1] = 1.0
    return keep, write_back


def _first_averaging_step(recipe: Recipe, steps_per_epoch: int, steps: int) -> int | None:
    """Steps done before the average begins; none without one."""
    averaging = recipe.averaging
    if averaging.kind == "none":
        return None
    if averaging.tail is not None:
        return max(steps - math.ceil(averaging.tail * steps_per_epoch), 0)
    return steps_per_epoch * max(math.floor(recipe.epochs) - averaging.epochs, 0) if averaging.epochs else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A recipe applied to a number of training images."""

    steps_per_epoch: int
    steps: int
    learning_rate: list[float]
    """Multiple of the peak, one a step."""
    whitening_bias_learning_rate: list[float]
    """Of the whitening bias, likewise."""
    renormalise: list[float]
    """1 where Muon renormalises the filter banks, else 0."""
    averaging_keep: list[float]
    averaging_write_back: list[float]
    first_averaging_epoch: int | None
    first_cutmix_epoch: int | None
    """First epoch (0-based) with cutmix; none: never."""
    whitening_bias_steps: int

    def epoch_ends(self) -> list[int]:
        """The number of steps done at the end of each epoch; the last epoch may be a partial one."""
        return [*range(self.steps_per_epoch, self.steps, self.steps_per_epoch), self.steps]


def _check_steps(recipe: Recipe, steps_per_epoch: int) -> None:
    epochs = {
        "epochs": recipe.epochs,
        "schedule.epochs": recipe.schedule.epochs or 0,
        "optimizer.whitening_bias_epochs": recipe.optimizer.whitening_bias_epochs,
    }
    for key, value in epochs.items():
        if value * steps_per_epoch > MAX_STEPS:
            raise UserError(
                f"{key}={value:g} are {value * steps_per_epoch:,.0f} steps of {recipe.batch_size} images, more than "
                f"{MAX_STEPS:,}: lower {key} or raise batch_size"
            )


def plan(recipe: Recipe, train_images: int) -> Plan:
    """The steps and tables of `recipe` on `train_images` images; batches that do not fill up are dropped.

    Raises:
        UserError: fewer images than one batch, or more than MAX_STEPS steps.
    """
    if train_images < recipe.batch_size:
        raise UserError(
            f"batch_size {recipe.batch_size} exceeds the {train_images} training images; "
            f"lower it, for example --set batch_size={max(train_images // 8, 1)}"
        )
    steps_per_epoch = train_images // recipe.batch_size
    _check_steps(recipe, steps_per_epoch)
    steps = math.ceil(steps_per_epoch * recipe.epochs)
    augmentation, schedule = recipe.augmentation, recipe.schedule
    first_averaging_step = _first_averaging_step(recipe, steps_per_epoch, steps)
    keep, write_back = averaging_tables(recipe.averaging, first_averaging_step or 0, steps)
    cutmix = augmentation.cutmix > 0 and augmentation.cutmix_epochs > 0
    curve_steps = steps if schedule.epochs is None else math.ceil(steps_per_epoch * schedule.epochs)
    learning_rate = learning_rate_table(schedule, curve_steps, steps)
    whitening_bias_steps = math.ceil(recipe.optimizer.whitening_bias_epochs * steps_per_epoch)
    return Plan(
        steps_per_epoch=steps_per_epoch,
        steps=steps,
        learning_rate=learning_rate,
        whitening_bias_learning_rate=whitening_bias_table(learning_rate, schedule.whitening_bias, whitening_bias_steps),
        renormalise=renormalisation_table(recipe.optimizer.muon, curve_steps, steps),
        averaging_keep=keep,
        averaging_write_back=write_back,
        first_averaging_epoch=None if first_averaging_step is None else first_averaging_step // steps_per_epoch,
        first_cutmix_epoch=max(math.ceil(recipe.epochs - augmentation.cutmix_epochs), 0) if cutmix else None,
        whitening_bias_steps=whitening_bias_steps,
    )
