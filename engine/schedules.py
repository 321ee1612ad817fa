"""From a recipe to tables with one entry a step: learning rate, averaging, and which epoch does what.

The training step reads the tables on the device, at its own counter, so that no schedule ever needs the host.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from .errors import UserError
from .recipe import Averaging, Recipe, Schedule


def triangle(schedule: Schedule, steps: int) -> list[float]:
    """Linear from `start` up to 1 at step int(peak * steps), then linear towards `end` at step `steps`.

    As airbench has it: the last of the `steps` values is one short of `end`.
    """
    rise = int(schedule.peak * steps)
    up = [schedule.start + (1 - schedule.start) * step / rise for step in range(rise)]
    fall = steps - rise
    return up + [1 - (1 - schedule.end) * step / fall for step in range(fall)]


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


SCHEDULES: dict[str, Callable[[Schedule, int], list[float]]] = {"triangle": triangle, "one_cycle": one_cycle}


def averaging_tables(averaging: Averaging, first_step: int, steps: int) -> tuple[list[float], list[float]]:
    """Per step: what the slow copy keeps of itself (1: it stays), and how much of it is written back (0 or 1).

    With k = step + 1 the copy moves at every k divisible by `averaging.every`, from `first_step` on. Where the
    average covers only the last epochs, its first move is a plain copy of the live weights.
    """
    keep, write_back = [1.0] * steps, [0.0] * steps
    if averaging.kind == "none":
        return keep, write_back
    moves = [k for k in range(1, steps + 1) if k > first_step and k % averaging.every == 0]
    for k in moves:
        keep[k - 1] = averaging.decay**averaging.every * (k / steps) ** averaging.power
        write_back[k - 1] = float(averaging.kind == "lookahead")
    if averaging.epochs is not None and moves:
        keep[moves[0] - 1], write_back[moves[0] - 1] = 0.0, 0.0
    if averaging.finish:
        write_back[-1] = 1.0
    return keep, write_back


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A recipe applied to a number of training images."""

    steps_per_epoch: int
    steps: int
    learning_rate: list[float]
    """Multiple of the peak, one a step."""
    averaging_keep: list[float]
    averaging_write_back: list[float]
    first_averaging_epoch: int | None
    first_cutmix_epoch: int | None
    """First epoch (0-based) with cutmix; none: never."""
    whitening_bias_steps: int

    def epoch_ends(self) -> list[int]:
        """The number of steps done at the end of each epoch; the last epoch may be a partial one."""
        return [*range(self.steps_per_epoch, self.steps, self.steps_per_epoch), self.steps]


def plan(recipe: Recipe, train_images: int) -> Plan:
    """The steps and tables of `recipe` on `train_images` images; batches that do not fill up are dropped.

    Raises:
        UserError: fewer images than one batch.
    """
    if train_images < recipe.batch_size:
        raise UserError(
            f"batch_size {recipe.batch_size} exceeds the {train_images} training images; "
            f"lower it, for example --set batch_size={max(train_images // 8, 1)}"
        )
    steps_per_epoch = train_images // recipe.batch_size
    steps = math.ceil(steps_per_epoch * recipe.epochs)
    averaging, augmentation = recipe.averaging, recipe.augmentation
    first_averaging_epoch = None
    if averaging.kind != "none":
        first_averaging_epoch = max(math.floor(recipe.epochs) - averaging.epochs, 0) if averaging.epochs else 0
    keep, write_back = averaging_tables(averaging, steps_per_epoch * (first_averaging_epoch or 0), steps)
    cutmix = augmentation.cutmix > 0 and augmentation.cutmix_epochs > 0
    return Plan(
        steps_per_epoch=steps_per_epoch,
        steps=steps,
        learning_rate=SCHEDULES[recipe.schedule.kind](recipe.schedule, steps),
        averaging_keep=keep,
        averaging_write_back=write_back,
        first_averaging_epoch=first_averaging_epoch,
        first_cutmix_epoch=max(math.ceil(recipe.epochs - augmentation.cutmix_epochs), 0) if cutmix else None,
        whitening_bias_steps=math.ceil(recipe.optimizer.whitening_bias_epochs * steps_per_epoch),
    )
