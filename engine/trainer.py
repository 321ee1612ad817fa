"""A run from recipe to record: build once, then prepare, train and evaluate for each seed.

The clocks: `build` is import, compilation, warm-up on synthetic pixels and the copy of the data to the device;
`prepare` the reset of the weights and the whitening; `train` the training loop with its augmentation; `evaluate` the
final evaluation. Validation between epochs runs outside all of them.

A run that nobody watches (no validation, display or checkpoints) is one stretch of device work: the loop never waits
for the device and reads nothing from it, so that nothing between two epochs can stay off the clocks. What the device
logged is read after the last clock has stopped.
"""

import dataclasses
import itertools
import math
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .backends import (
    AUTO,
    CAPTURING,
    LOG,
    BackendError,
    Variant,
    check_backend,
    default_backends,
    make_scorer,
    make_step,
    most_common_variant,
    variant_of_step,
)
from .checkpoint import Checkpoint, CheckpointFile
from .data import Pack
from .errors import UserError
from .evaluate import Accuracy, LabelledImages, Scores, read_scores
from .init import reset_parameters, whitening_filters
from .kernel_choice import pick_kernels as pick_kernels  # known by this address to other revisions, see bench regress
from .nets import SpeedyResNet, check_image_size, forward_flops_per_image, last_map_size, make_net, parameter_counts
from .outside_kernels import with_outside_kernels
from .recipe import Recipe, View
from .record import HistoryRow, RunRecord, Seconds, environment, peak_bytes
from .schedules import Plan, plan
from .signals import interrupt_flag
from .step import TrainingState, training_window

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


class Display(Protocol):
    """Who wants to know how a run goes. Called from the training loop: `step` has to be quick."""

    def start(self, steps: int) -> None:
        """Training begins."""

    def step(self, step: int) -> None:
        """So many steps are issued."""

    def epoch(self, row: HistoryRow) -> None:
        """An epoch ended."""

    def note(self, text: str) -> None:
        """Something else is going on."""


class Silent:
    """A display that shows nothing."""

    def start(self, steps: int) -> None:
        """Training begins."""

    def step(self, step: int) -> None:
        """So many steps are issued."""

    def epoch(self, row: HistoryRow) -> None:
        """An epoch ended."""

    def note(self, text: str) -> None:
        """Something else is going on."""


def pick_device(name: str) -> torch.device:
    """The device called `name`, made ready; `auto` is the GPU if there is one, else the CPU.

    Raises:
        UserError: unknown device, or CUDA asked for and absent.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}: choose auto, cpu, cuda or cuda:0") from None
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise UserError(f"device {name!r} is not supported: choose auto, cpu, cuda or cuda:0")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no CUDA GPU here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: there are only {torch.cuda.device_count()} CUDA GPUs")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # a few shapes, met hundreds of times: let cuDNN try its ways
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # kernels are launched on the current device, wherever their tensors are
    return device


def pick_dtype(recipe: Recipe, device: torch.device) -> torch.dtype:
    """The dtype of weights and activations that `recipe` means on `device`."""
    if recipe.dtype != "auto":
        return DTYPES[recipe.dtype]
    if device.type == "cuda":
        return torch.float16
    able = torch.cpu.get_capabilities()
    fast = able.get("amx_bf16", False) or able.get("avx512_bf16", False)
    return torch.bfloat16 if recipe.optimizer.master_weights and fast else torch.float32


def check_fit(recipe: Recipe, height: int, width: int) -> None:
    """Raise UserError where the net or the augmentation of `recipe` cannot take images of this size."""
    augmentation, room = recipe.augmentation, 2 * recipe.augmentation.padding
    if augmentation.padding >= min(height, width):
        raise UserError(
            f"augmentation.padding={augmentation.padding} must be smaller than images of {min(height, width)} pixels"
        )
    if augmentation.crop > min(height, width) + room:
        raise UserError(
            f"augmentation.crop={augmentation.crop} exceeds images of {height} x {width} pixels padded to "
            f"{height + room} x {width + room}"
        )
    check_image_size(recipe.net, height, width)  # which evaluation takes whole
    _check_window_fit(recipe, *training_window(recipe, height, width))


def _check_window_fit(recipe: Recipe, height: int, width: int) -> None:
    """Raise UserError where the net or the augmentation of `recipe` cannot take windows of this size."""
    augmentation, side = recipe.augmentation, min(height, width)
    for size in augmentation.sizes:
        if size > side:
            raise UserError(f"augmentation.sizes: windows of {height} x {width} pixels cannot be scaled down to {size}")
    for size in {0, *augmentation.sizes}:
        rows, columns = size or height, size or width
        check_image_size(recipe.net, rows, columns)
        groups = recipe.net.batch_norm_groups
        if recipe.batch_size // groups * math.prod(last_map_size(recipe.net, rows, columns)) < 2:
            raise UserError(
                f"batch_size={recipe.batch_size} leaves batch norm one value of {rows} x {columns} pixels; "
                f"set it to {2 * groups} or more"
            )
    for name in ("cutout", "cutmix"):
        if getattr(augmentation, name) > side:
            raise UserError(f"augmentation.{name}={getattr(augmentation, name)} exceeds windows of {side} pixels")


def fitting_plan(recipe: Recipe, pack: Pack) -> Plan:
    """The plan of `recipe` on `pack`; raises UserError where its net, augmentation or batches do not fit the images."""
    check_fit(recipe, *pack.image_size)
    return plan(recipe, len(pack.train_labels))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Marks:
    """Moments in the work of a device, taken without waiting for it.

    Args:
        device: on CUDA a mark is an event between two kernels; on a CPU, which is never behind, it is the time.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []

    def add(self) -> None:
        """Mark the end of all work that has been issued."""
        if self._device.type == "cuda":
            self._marks.append(torch.cuda.Event(enable_timing=True))
            self._marks[-1].record()
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Seconds from the first mark to each later one; the device has to be done with its work."""
        if self._device.type == "cuda":
            return [self._marks[0].elapsed_time(mark) / 1e3 for mark in self._marks[1:]]
        return [mark - self._marks[0] for mark in self._marks[1:]]


@dataclass(frozen=True, slots=True)
class Pause:
    """Set when training has to stop for a moment: it is interrupted, or a checkpoint is due."""

    interrupted: threading.Event
    checkpoints: CheckpointFile

    def is_set(self) -> bool:
        """Whether it is time."""
        return self.interrupted.is_set() or self.checkpoints.is_due()


class Trainer:
    """A recipe, a data set and a device made ready; `run(seed)` as often as wanted.

    Args:
        recipe: what to do.
        pack: the data set.
        device: where.
        backend: see `backends.py`.
        kernels: providers of operations from outside of the package, see `outside_kernels.load_kernels`.

    Raises:
        UserError: data that does not fit the recipe, or a backend this machine cannot run.
    """

    def __init__(
        self,
        recipe: Recipe,
        pack: Pack,
        device: torch.device,
        backend: str,
        kernels: Mapping[str, str] | None = None,
    ) -> None:
        from . import IMPORT_SECONDS  # known once the package is imported

        started = time.perf_counter()
        check_backend(backend, device)
        self.requested = {"backend": backend, "kernels": recipe.kernels}
        self.plan = fitting_plan(recipe, pack)
        self.recipe, self.pack, self.device = recipe, pack, device
        self.dtype = pick_dtype(recipe, device)
        images = pack.train_images.shape
        picked = pick_kernels(recipe, device, self.dtype, backend, images)
        self.kernels = with_outside_kernels(picked, kernels or {}, recipe, images, device, self.dtype, backend)
        net = make_net(recipe, classes=pack.num_classes, channels=pack.channels, dtype=self.dtype, device=device)
        self.state = TrainingState(
            net,
            recipe,
            self.plan,
            torch.randint(0, 256, pack.train_images.shape, dtype=torch.uint8, device=device),
            torch.zeros(len(pack.train_labels), dtype=torch.int64, device=device),
            pack.mean,
            pack.std,
            self.dtype,
            self.kernels,
        )
        self._test = LabelledImages(
            images=torch.randint(0, 256, pack.test_images.shape, dtype=torch.uint8, device=device),
            labels=torch.zeros(len(pack.test_labels), dtype=torch.int64, device=device),
            scale=self.state.scale,
            shift=self.state.shift,
            dtype=self.dtype,
        )
        self._build_steps(default_backends(device) if backend == AUTO else (backend,))
        self.state.images.copy_(pack.train_images)
        self.state.labels.copy_(pack.train_labels)
        self._test.images.copy_(pack.test_images)
        self._test.labels.copy_(pack.test_labels)
        synchronize(device)
        self.build_seconds = IMPORT_SECONDS + time.perf_counter() - started

    @property
    def net(self) -> SpeedyResNet:
        """The net with its live weights."""
        return self.state.net

    @property
    def main_variant(self) -> Variant:
        """The kind of step that a run takes most often."""
        return most_common_variant(self.recipe, self.plan)

    @property
    def main_step(self) -> Callable[[], None]:
        """The function that does a step of the main variant."""
        return self._steps[self.main_variant]

    @property
    def counted_steps(self) -> list[tuple[Callable[[], None], int]]:
        """The function that does a step of each kind, and how many such steps a run takes."""
        counts = Counter(map(self._variant, range(self.plan.steps)))
        return [(self._steps[variant], count) for variant, count in counts.items()]

    def _variant(self, step: int) -> Variant:
        return variant_of_step(self.recipe, self.plan, step)

    def _variants(self) -> list[Variant]:
        """All variants in the order of their first step; they change only at epoch ends and at the freezing."""
        changes = [0, *self.plan.epoch_ends()[:-1], self.plan.whitening_bias_steps]
        first_steps = sorted(step for step in changes if step < self.plan.steps)
        return list(dict.fromkeys(map(self._variant, first_steps)))

    def _build_steps(self, backends: Sequence[str]) -> None:
        """Make all steps with the first of `backends` that does not fail, and say which fail; the last may raise."""
        for backend, following in itertools.pairwise(backends):
            try:
                return self._warm_up(backend)
            except BackendError as error:
                LOG.debug("%s", error, exc_info=error)
                warnings.warn(f"{error}. Going on with {following}.", stacklevel=3)
            self.state.graph_memory = None  # PyTorch captures no second graph into the memory of one that failed
        return self._warm_up(backends[-1])  # outside of `except`, whose error would keep alive what failed

    def _warm_up(self, backend: str) -> None:
        """Do everything once on random pixels, so that compilation and the libraries' own set-up are over."""
        self.backend = backend
        self._scorers: dict[tuple[str, View], Callable[[], dict[str, Tensor]]] = {}
        self._steps = {variant: make_step(self.state, self.backend, variant) for variant in self._variants()}
        self.prepare(seed=0)
        self.net.train()
        for step in self._steps.values():
            step()
        self.net.eval()
        settings, whole = self.recipe.evaluation, self._test
        if self.backend in CAPTURING:
            self.evaluate()
        else:  # one batch sets everything up
            few = slice(0, settings.batch_size)
            part = dataclasses.replace(whole, images=whole.images[few], labels=whole.labels[few])
            make_scorer(self.state, self.backend, self._other_weights(settings.weights), part, settings.view)()

    def prepare(self, seed: int) -> float:
        """Reset everything for a run with `seed`; returns the seconds it took."""
        started = time.perf_counter()
        settings, state = self.recipe.net, self.state
        reset_parameters(self.net, settings, seed)
        if settings.whitening_kernel:
            pixels = state.images[: settings.whitening_images]
            with torch.no_grad():
                self.net.stem.whitening.weight.copy_(whitening_filters(pixels, state.scale, state.shift, settings))
        state.restart(seed)
        synchronize(self.device)
        return time.perf_counter() - started

    def train(
        self,
        record: RunRecord,
        display: Display,
        *,
        validate: bool = True,
        checkpoints: CheckpointFile | None = None,
    ) -> None:
        """The training loop over the prepared state, from where `record` is; a signal to stop ends it with what is
        done.

        Fills in the status, steps, train clock and history of `record`.
        """
        display.start(self.plan.steps)
        if checkpoints:
            checkpoints.wait()
        with interrupt_flag() as interrupted:
            for epoch, end in enumerate(self.plan.epoch_ends()):
                if epoch < len(record.history):  # done before the run went on
                    continue
                self._train_until(end, record, display, interrupted, checkpoints)
                stopped = interrupted.is_set()
                if stopped and checkpoints:
                    checkpoints.attempt(self.state, record, again=False)
                if record.steps > epoch * self.plan.steps_per_epoch:
                    record.history.append(self._validated_row(epoch, record, validate=validate and not stopped))
                    display.epoch(record.history[-1])
                    if not math.isfinite(record.history[-1].loss):
                        record.status, record.diverged_at_step = "diverged", self._first_bad_step()
                        return
                if stopped:
                    return
            record.status = "interrupted" if interrupted.is_set() else "finished"
            if checkpoints:
                checkpoints.attempt(self.state, record, again=False)

    def _train_until(
        self,
        end: int,
        record: RunRecord,
        display: Display,
        interrupted: threading.Event,
        checkpoints: CheckpointFile | None,
    ) -> None:
        """The steps up to number `end`, with the checkpoints that fall due, which are on no clock."""
        self.net.train()
        if checkpoints is None:
            self._steps_until(end, record, display, interrupted)
            return
        pause = Pause(interrupted, checkpoints)
        self._steps_until(end, record, display, pause)
        while record.steps < end and not interrupted.is_set():
            checkpoints.attempt(self.state, record, again=True)
            self._steps_until(end, record, display, pause)

    def _steps_until(self, end: int, record: RunRecord, display: Display, pause: Pause | threading.Event) -> None:
        """The steps up to number `end`, on the train clock; a pause lets the step at hand finish."""
        started = time.perf_counter()
        while record.steps < end and not pause.is_set():
            self._steps[self._variant(record.steps)]()
            record.steps += 1
            display.step(record.steps)
        synchronize(self.device)
        record.seconds.train = (record.seconds.train or 0.0) + time.perf_counter() - started

    def _train_unwatched(self, record: RunRecord, marks: Marks) -> None:
        """Issue all steps without waiting for the device, then wait once; a signal to stop ends it with what is
        issued.

        Fills in the status, steps and train clock of `record`; `marks` gets the start and the end of each epoch.
        """
        with interrupt_flag() as interrupted:
            started = time.perf_counter()
            self.net.train()
            marks.add()
            for end in self.plan.epoch_ends():
                while record.steps < end and not interrupted.is_set():
                    self._steps[self._variant(record.steps)]()
                    record.steps += 1
                marks.add()
                if interrupted.is_set():
                    break
            synchronize(self.device)
            record.seconds.train = time.perf_counter() - started
            record.status = "interrupted" if interrupted.is_set() else "finished"

    def _read_history(self, record: RunRecord, marks: Marks) -> None:
        """Fill in the history of a run that nobody watched, and whether it diverged."""
        losses, correct = (log[: record.steps].double().cpu() for log in (self.state.loss_log, self.state.correct_log))
        for epoch, seconds in enumerate(marks.seconds()):
            first, last = epoch * self.plan.steps_per_epoch, min(self.plan.epoch_ends()[epoch], record.steps)
            if last > first:
                record.history.append(self._history_row(epoch, last, losses[first:last], correct[first:last], seconds))
        if record.status == "finished" and not all(math.isfinite(row.loss) for row in record.history):
            record.status, record.diverged_at_step = "diverged", self._first_bad_step()

    def _first_bad_step(self) -> int:
        """The first step, counted from 1, whose loss is not finite."""
        return int((~torch.isfinite(self.state.loss_log)).nonzero()[0]) + 1

    def _history_row(self, epoch: int, last: int, losses: Tensor, correct: Tensor, seconds: float) -> HistoryRow:
        """The row of an epoch without validation.

        Args:
            epoch: counted from 0.
            last: number of steps done at its end.
            losses: of its steps, in double precision.
            correct: images of each step that were classified correctly, in double precision.
            seconds: of the train clock at its end.
        """
        return HistoryRow(
            epoch=epoch + 1,
            step=last,
            loss=float(losses.mean()),
            lr=self.plan.learning_rate[last - 1] * self.recipe.optimizer.convolution_learning_rate,
            seconds=seconds,
            train_accuracy=float(correct.mean()) / self.recipe.batch_size,
        )

    def _validated_row(self, epoch: int, record: RunRecord, *, validate: bool) -> HistoryRow:
        """The row of the epoch that just ended, read from the logs, and validation if that is wanted and due."""
        first, last = epoch * self.plan.steps_per_epoch, record.steps
        losses, correct = (log[first:last].double() for log in (self.state.loss_log, self.state.correct_log))
        row = self._history_row(epoch, last, losses, correct, record.seconds.train or 0.0)
        every = self.recipe.evaluation.every
        if not (validate and every > 0 and (epoch + 1) % every == 0):
            return row
        live = self.scores("live")
        started = self.plan.first_averaging_epoch
        averaged = self.scores("averaged") if started is not None and epoch >= started else None
        return dataclasses.replace(
            row,
            val_loss=live.loss,
            val_accuracy=live.accuracy["single_view"],
            averaged_accuracy=averaged.accuracy["single_view"] if averaged else None,
        )

    def scores(self, weights: str, view: View = "single_view") -> Scores:
        """Accuracy and loss on all test images of the `live` or `averaged` weights; leaves the net evaluating."""
        self.net.eval()
        if (weights, view) not in self._scorers:
            other = self._other_weights(weights)
            self._scorers[weights, view] = make_scorer(self.state, self.backend, other, self._test, view)
        return read_scores(self._scorers[weights, view](), len(self._test.labels))

    def _other_weights(self, weights: str) -> dict[str, Tensor] | None:
        """What to evaluate instead of the net's own parameters and buffers, by name."""
        return self.state.averaged_state() if weights == "averaged" else None

    def evaluate(self) -> tuple[Accuracy, float]:
        """The recipe's final evaluation, and the seconds it took."""
        started = time.perf_counter()
        settings = self.recipe.evaluation
        accuracy = self.scores(settings.weights, settings.view).accuracy
        synchronize(self.device)
        return Accuracy(weights=settings.weights, **accuracy), time.perf_counter() - started

    def reported_state(self) -> dict[str, Tensor]:
        """Parameters and buffers of the weights that the recipe reports, by name."""
        if self.recipe.evaluation.weights == "averaged":
            return self.state.averaged_state()
        return self.net.state_dict()

    def run(
        self,
        seed: int,
        display: Display | None = None,
        *,
        validate: bool = True,
        checkpoints: CheckpointFile | None = None,
        resume: Checkpoint | None = None,
    ) -> RunRecord:
        """Prepare, train and evaluate with `seed`; a run that diverges or is interrupted is recorded as such.

        Without validation, display, checkpoints and `resume` the device is waited for only at the end of training.

        Args:
            seed: of weights, order and augmentation.
            display: told how the run goes.
            validate: between epochs, as the recipe says; or leave that out.
            checkpoints: written when they are due and when training ends; `CheckpointFile.refused` says whether the
                last one is there.
            resume: go on from here instead of preparing.

        Raises:
            UserError: `resume` is of another run.
        """
        record = self.new_record(seed)
        watched = display or checkpoints or resume or (validate and self.recipe.evaluation.every > 0)
        marks = None if watched else Marks(self.device)
        started = time.perf_counter()
        if resume:
            resume.restore(self.state, record)
        else:
            record.seconds.prepare = self.prepare(seed)
        try:
            if marks:
                self._train_unwatched(record, marks)
            else:
                self.train(record, display or Silent(), validate=validate, checkpoints=checkpoints)
            if record.status != "interrupted":
                record.accuracy, record.seconds.evaluate = self.evaluate()
                record.seconds.wall = None if resume else time.perf_counter() - started
        except KeyboardInterrupt:
            record.status = "diverged" if record.status == "diverged" else "interrupted"
        if marks:
            self._read_history(record, marks)
        record.images_seen = record.steps * self.recipe.batch_size
        record.memory = {"peak_bytes": peak_bytes(self.device)}
        return record

    def new_record(self, seed: int) -> RunRecord:
        """The record of a run that has not begun."""
        pack = self.pack
        height, width = training_window(self.recipe, *pack.image_size)
        parameters, trainable = parameter_counts(self.net)
        flops = forward_flops_per_image(
            self.recipe, classes=pack.num_classes, channels=pack.channels, height=height, width=width
        )
        return RunRecord(
            status="interrupted",
            recipe=self.recipe,
            data={
                "name": pack.name,
                "sha256": pack.sha256,
                "train_images": len(pack.train_labels),
                "test_images": len(pack.test_labels),
                "classes": pack.num_classes,
            },
            seed=seed,
            device=str(self.device),
            backend=self.backend,
            dtype=str(self.dtype).removeprefix("torch."),
            kernels=self.kernels,
            requested=self.requested,
            environment=environment(self.device),
            model={
                "parameters": parameters,
                "trainable_parameters": trainable,
                "forward_flops_per_image": flops,
            },
            memory={"peak_bytes": None},
            seconds=Seconds(build=self.build_seconds),
            accuracy=Accuracy(weights=self.recipe.evaluation.weights),
        )
