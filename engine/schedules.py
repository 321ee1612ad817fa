"""From a recipe to tables with one entry a step: learning rate, averaging, and which epoch does what.

The training step reads the tables on the device, at its own counter, so that no schedule ever needs the host.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .errors import UserError
from .recipe import Averaging, Muon, Optimizer, Recipe, Schedule

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


def _one_cycle(schedule: Schedule, steps: int, ease: Callable[[float], float]) -> list[float]:
    """From `start` up to 1 at step peak * steps - 1 (a fraction), then to `end` at the last step.

    `ease` says how much of the way up or down is done after which part of its steps.
    """
    top = schedule.peak * steps - 1
    last = steps - 1

    def value(step: int) -> float:
        if step <= top:
            return schedule.start + (1 - schedule.start) * ease(step / top) if top > 0 else 1.0
        return 1 - (1 - schedule.end) * ease((step - top) / (last - top))

    return [value(step) for step in range(steps)]


def piecewise(schedule: Schedule, steps: int) -> list[float]:
    """Linear between the `knots`, at which it has the `values`, and constant outside them.

    As cifar10-fast has it: the first step is 1 / steps along, the last one at 1.
    """
    places = np.arange(1, steps + 1) / steps
    found: list[float] = np.interp(places, schedule.knots, schedule.values).tolist()
    return found


def _half_cosine(part: float) -> float:
    """From 0 at 0 to 1 at 1, and on from there as a cosine does."""
    return (1 - math.cos(math.pi * part)) / 2


def one_cycle(schedule: Schedule, steps: int) -> list[float]:
    """As torch.optim.lr_scheduler.OneCycleLR has it with anneal_strategy="linear"; see `_one_cycle`."""
    return _one_cycle(schedule, steps, lambda part: part)


def one_cycle_cosine(schedule: Schedule, steps: int) -> list[float]:
    """OneCycleLR with anneal_strategy="cos"."""
    return _one_cycle(schedule, steps, _half_cosine)


def cosine(schedule: Schedule, steps: int) -> list[float]:
    """From 1 towards `end`, then to and fro: CosineAnnealingLR with T_max = half_cycle * steps."""
    return [1 - (1 - schedule.end) * _half_cosine(step / (schedule.half_cycle * steps)) for step in range(steps)]


def exponential(schedule: Schedule, steps: int) -> list[float]:
    """From 1 towards `end` by the same factor each step: ExponentialLR with gamma = end ** (1 / steps)."""
    return [schedule.end ** (step / steps) for step in range(steps)]


def _cyclic(schedule: Schedule, steps: int, height: Callable[[float, float], float]) -> list[float]:
    """Triangles from `start` up in one `half_cycle` and down in the next, as CyclicLR has them.

    `height` of a triangle above `start`, as a part of the way to 1, by the step's place in the curve (from 0 to 1) and
    by the number of cycles that are over.
    """
    values = []
    for step in range(steps):
        cycle, place = divmod(step / (schedule.half_cycle * steps), 2)
        values.append(schedule.start + (1 - schedule.start) * (1 - abs(place - 1)) * height(step / steps, cycle))
    return values


def cyclic_triangular(schedule: Schedule, steps: int) -> list[float]:
    """CyclicLR with mode="triangular": every peak is 1."""
    return _cyclic(schedule, steps, lambda place, cycle: 1.0)


def cyclic_triangular2(schedule: Schedule, steps: int) -> list[float]:
    """CyclicLR with mode="triangular2": each cycle is half as high as the one before."""
    return _cyclic(schedule, steps, lambda place, cycle: 0.5**cycle)


def cyclic_exp_range(schedule: Schedule, steps: int) -> list[float]:
    """CyclicLR with mode="exp_range" and gamma = end ** (1 / steps): also the first peak is below 1."""
    return _cyclic(schedule, steps, lambda place, cycle: schedule.end**place)


SCHEDULES: dict[str, Callable[[Schedule, int], list[float]]] = {
    each.__name__: each
    for each in (
        triangle,
        one_cycle,
        one_cycle_cosine,
        linear,
        cosine,
        exponential,
        piecewise,
        cyclic_triangular,
        cyclic_triangular2,
        cyclic_exp_range,
    )
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


def batch_norm_bias_table(schedule: Schedule, curve_steps: int, steps: int) -> list[float]:
    """Learning rate of the biases of batch norm, likewise, where it is not the shared one."""
    return learning_rate_table(Schedule(kind="one_cycle", start=0.0, peak=schedule.peak, end=0.0), curve_steps, steps)


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
    """Per step: what the slow copy keeps of itself (1: it stays), and how much of it is written back, 0 to 1.

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
        write_back[-1] = averaging.blend
    return keep, write_back


def _first_averaging_step(recipe: Recipe, steps_per_epoch: int, steps: int) -> int | None:
    """Steps done before the average begins; none without one."""
    averaging = recipe.averaging
    if averaging.kind == "none":
        return None
    if averaging.tail is not None:
        return max(steps - math.ceil(averaging.tail * steps_per_epoch), 0)
    return steps_per_epoch * max(math.floor(recipe.epochs) - averaging.epochs, 0) if averaging.epochs else 0


def _trained_steps(optimizer: Optimizer, steps_per_epoch: int, steps: int) -> tuple[int, int | None]:
    """`Plan.whitening_bias_steps` and `Plan.first_group_steps`."""
    whitening_bias = math.ceil(optimizer.whitening_bias_epochs * steps_per_epoch)
    if not optimizer.first_group_frozen_epochs:
        return whitening_bias, None
    first_group = max(steps - math.ceil(optimizer.first_group_frozen_epochs * steps_per_epoch), 0)
    return min(whitening_bias, first_group), first_group


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A recipe applied to a number of training images."""

    steps_per_epoch: int
    steps: int
    learning_rate: list[float]
    """Multiple of the peak, one a step."""
    own_learning_rates: dict[str, list[float]]
    """Likewise, of the groups of parameters that have a table of their own; see `TrainingState.groups`."""
    renormalise: list[float]
    """1 where Muon renormalises the filter banks, else 0."""
    averaging_keep: list[float]
    averaging_write_back: list[float]
    first_averaging_step: int | None
    """Steps done before the average begins; none without one."""
    first_cutmix_epoch: int | None
    """First epoch (0-based) with cutmix; none: never."""
    whitening_bias_steps: int
    first_group_steps: int | None
    """Steps after which group 1 is frozen, and the whitening bias at the latest; none: never."""

    @property
    def first_averaging_epoch(self) -> int | None:
        """The epoch (0-based) in which the average begins; none without one."""
        return None if self.first_averaging_step is None else self.first_averaging_step // self.steps_per_epoch

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
    whitening_bias_steps, first_group_steps = _trained_steps(recipe.optimizer, steps_per_epoch, steps)
    own_tables = {"whitening_bias": whitening_bias_table(learning_rate, schedule.whitening_bias, whitening_bias_steps)}
    if schedule.batch_norm_biases == "one_cycle":
        own_tables["batch_norm_biases"] = batch_norm_bias_table(schedule, curve_steps, steps)
    return Plan(
        steps_per_epoch=steps_per_epoch,
        steps=steps,
        learning_rate=learning_rate,
        own_learning_rates=own_tables,
        renormalise=renormalisation_table(recipe.optimizer.muon, curve_steps, steps),
        averaging_keep=keep,
        averaging_write_back=write_back,
        first_averaging_step=first_averaging_step,
        first_cutmix_epoch=max(math.ceil(recipe.epochs - augmentation.cutmix_epochs), 0) if cutmix else None,
        whitening_bias_steps=whitening_bias_steps,
        first_group_steps=first_group_steps,
    )
