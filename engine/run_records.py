"""Contents of a run's record: its initial state, and its epochs as read from the device's logs."""

import math

import torch
from torch import Tensor

from .device import Marks, dtype_name
from .evaluate import Accuracy
from .nets import SpeedyResNet, forward_flops_per_image, parameter_counts
from .pack import Pack
from .record import HistoryRow, RunRecord, Seconds, environment
from .setup import Setup
from .step import TrainingState, training_window


def new_record(
    setup: Setup, pack: Pack, net: SpeedyResNet, *, seed: int, backend: str, build_seconds: float
) -> RunRecord:
    """Return the record of a run that has not begun.

    Args:
        setup: setup of the run.
        pack: the data set.
        net: the net to train.
        seed: seed of the run.
        backend: backend that runs the steps.
        build_seconds: clock `build`.
    """
    return RunRecord(
        status="interrupted",
        recipe=setup.recipe,
        data={
            "name": pack.name,
            "sha256": pack.sha256,
            "train_images": setup.data.train_images,
            "test_images": setup.data.test_images,
            "classes": setup.data.classes,
        },
        seed=seed,
        device=str(setup.device),
        backend=backend,
        dtype=dtype_name(setup.dtype),
        kernels=setup.kernels,
        requested=setup.requested,
        environment=environment(setup.device),
        model=model_facts(setup, net),
        memory={"peak_bytes": None},
        seconds=Seconds(build=build_seconds),
        accuracy=Accuracy(weights=setup.recipe.evaluation.weights),
    )


def model_facts(setup: Setup, net: SpeedyResNet) -> dict[str, int]:
    """Return the record's facts about the net; FLOPs are those of one training image, two per multiply-add."""
    height, width = training_window(setup.recipe, *setup.data.image_size)
    parameters, trainable = parameter_counts(net)
    flops = forward_flops_per_image(
        setup.recipe, classes=setup.data.classes, channels=setup.data.channels, height=height, width=width
    )
    return {"parameters": parameters, "trainable_parameters": trainable, "forward_flops_per_image": flops}


def epoch_row(state: TrainingState, epoch: int, last: int, seconds: float) -> HistoryRow | None:
    """Return the row of an epoch without validation; None if none of its steps was done. Synchronises.

    Args:
        state: state whose logs are read.
        epoch: number of the epoch, from 0.
        last: number of steps done at its end.
        seconds: train clock at its end.
    """
    first = epoch * state.plan.steps_per_epoch
    if last <= first:
        return None
    losses, correct = (log[first:last].double() for log in (state.loss_log, state.correct_log))
    return _row(state, epoch, last, losses, correct, seconds)


def read_history(state: TrainingState, steps: int, marks: Marks) -> list[HistoryRow]:
    """Return the rows of an unwatched run (no display, validation or checkpoints), read after its end.

    Args:
        state: state of the run.
        steps: number of steps done.
        marks: start and end of each epoch.
    """
    losses, correct = (log[:steps].double().cpu() for log in (state.loss_log, state.correct_log))
    rows = []
    for epoch, seconds in enumerate(marks.seconds()):
        first, last = epoch * state.plan.steps_per_epoch, min(state.plan.epoch_ends()[epoch], steps)
        if last > first:
            rows.append(_row(state, epoch, last, losses[first:last], correct[first:last], seconds))
    return rows


def _row(state: TrainingState, epoch: int, last: int, losses: Tensor, correct: Tensor, seconds: float) -> HistoryRow:
    """Make a row, see `epoch_row`; losses and numbers of correct images are those of its steps, in double precision."""
    return HistoryRow(
        epoch=epoch + 1,
        step=last,
        loss=float(losses.mean()),
        lr=state.plan.learning_rate[last - 1] * state.recipe.optimizer.convolution_learning_rate,
        seconds=seconds,
        train_accuracy=float(correct.mean()) / state.recipe.batch_size,
    )


def note_divergence(record: RunRecord, state: TrainingState) -> bool:
    """Return whether a mean loss of the history is not finite; if so, record the first such step, counted from 1."""
    if all(math.isfinite(row.loss) for row in record.history):
        return False
    bad = ~torch.isfinite(state.loss_log)
    record.status, record.diverged_at_step = "diverged", int(bad.nonzero()[0]) + 1
    return True
