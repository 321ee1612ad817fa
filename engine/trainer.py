"""A run from recipe to record: build once, then prepare, train and evaluate for each seed.

The clocks: `build` is import, compilation, warm-up on synthetic pixels and the copy of the data to the device;
`prepare` the reset of the weights and the whitening; `train` the training loop with its augmentation; `evaluate` the
final evaluation. Validation between epochs runs outside all of them.

A run that nobody watches (no validation, display or checkpoints) is one stretch of device work: the loop never waits
for the device and reads nothing from it, so that nothing between two epochs can stay off the clocks. What the device
logged is read after the last clock has stopped.
"""

import contextlib
import dataclasses
import itertools
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .backends import LOG, BackendError, Variant, make_step, most_common_variant, variant_of_step, variants_of
from .checkpoint import Checkpoint, CheckpointFile, Pause
from .compiler_cache import compiled_code
from .device import Marks, synchronize
from .errors import UserError
from .evaluate import Accuracy, LabelledImages
from .evaluator import Evaluator
from .graphs import forget_memory
from .import_clock import import_seconds
from .init import reset_parameters, whitening_filters
from .nets import SpeedyResNet, make_net
from .pack import Pack
from .ranks import any_rank, give_to_all
from .record import HistoryRow, RunRecord, peak_bytes
from .run_records import epoch_row, new_record, note_divergence, read_history
from .setup import Setup
from .signals import AgreedStop, Stop, interrupt_flag
from .step import TrainingState
from .streams import SecondStream
from .watching import Display, Silent


class Trainer:
    """A recipe, a data set and a device made ready; `run(seed)` as often as wanted.

    Args:
        setup: what to do, where and how.
        pack: the data set that it was made for.
        overlap: give the steps a second stream, see `step.TrainingState`.

    Raises:
        BackendError: the backend that was asked for fails, or all that `auto` tries.
        UserError: `overlap` with several ranks.
    """

    def __init__(self, setup: Setup, pack: Pack, *, overlap: bool = False) -> None:
        started = time.perf_counter()
        self.setup, self.pack = setup, pack
        self.recipe, self.plan, self.device = setup.recipe, setup.plan, setup.device
        self.dtype, self.kernels, self.requested = setup.dtype, setup.kernels, setup.requested
        self.state = self._new_state()
        if overlap:
            if setup.ranks.size > 1:
                raise UserError("two streams are for one rank: the gradients of ranks are summed in one exchange")
            self.state.second_stream = SecondStream(self.device)
        self._test = LabelledImages(
            images=torch.randint(0, 256, pack.test_images.shape, dtype=torch.uint8, device=self.device),
            labels=torch.zeros(len(pack.test_labels), dtype=torch.int64, device=self.device),
            scale=self.state.scale,
            shift=self.state.shift,
            dtype=self.dtype,
        )
        self._build_steps(setup.backends)
        self.state.images.copy_(pack.train_images)
        self.state.labels.copy_(pack.train_labels)
        self._test.images.copy_(pack.test_images)
        self._test.labels.copy_(pack.test_labels)
        synchronize(self.device)
        self.build_seconds = import_seconds() + time.perf_counter() - started

    def _new_state(self) -> TrainingState:
        """The state of the run on random pixels: no pixel of the data set is read before its clocks run."""
        pack, device, share = self.pack, self.device, self.setup.share
        net = make_net(share, classes=pack.num_classes, channels=pack.channels, dtype=self.dtype, device=device)
        return TrainingState(
            net,
            self.recipe,
            self.plan,
            torch.randint(0, 256, pack.train_images.shape, dtype=torch.uint8, device=device),
            torch.zeros(len(pack.train_labels), dtype=torch.int64, device=device),
            pack.mean,
            pack.std,
            self.dtype,
            self.kernels,
            self.setup.ranks,
        )

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

    def _build_steps(self, backends: Sequence[str]) -> None:
        """Make all steps with the first of `backends` that does not fail, and say which fail; the last may raise."""
        for backend, following in itertools.pairwise(backends):
            try:
                return self._warm_up(backend)
            except BackendError as error:
                LOG.debug("%s", error, exc_info=error)
                warnings.warn(f"{error}. Going on with {following}.", stacklevel=3)
            forget_memory(self.state)  # PyTorch captures no second graph into the memory of one that failed
        return self._warm_up(backends[-1])  # outside of `except`, whose error would keep alive what failed

    def _warm_up(self, backend: str) -> None:
        """Do everything once on random pixels, so that compilation and the libraries' own set-up are over."""
        self.backend = backend
        variants = variants_of(self.recipe, self.plan)
        self._steps = {variant: make_step(self.state, backend, variant) for variant in variants}
        self._evaluator = Evaluator(self.state, self._test, backend)
        with compiled_code(self.recipe, backend, self.device):
            self._run_everything_once()

    def _run_everything_once(self) -> None:
        self.prepare(seed=0)
        self.net.train()
        for step in self._steps.values():
            step()
        self._evaluator.warm_up()

    def prepare(self, seed: int) -> float:
        """Reset everything for a run with `seed`; returns the seconds it took."""
        started = time.perf_counter()
        settings, state = self.recipe.net, self.state
        reset_parameters(self.net, settings, seed)
        if settings.whitening_kernel:
            pixels = state.images[: settings.whitening_images]
            with torch.no_grad():
                self.net.stem.whitening.weight.copy_(whitening_filters(pixels, state.scale, state.shift, settings))
        if state.ranks.size > 1:  # whose devices may have rounded the whitening in different ways
            give_to_all(self.net.state_dict().values())
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
        """Run the training loop over the prepared state, from where `record` is.

        Fills in the status, steps, train clock and history of `record`. A signal to stop ends the loop early.
        """
        display.start(self.plan.steps)
        if checkpoints:
            checkpoints.wait()
        with self._interrupt(record) as interrupted:
            for epoch, end in enumerate(self.plan.epoch_ends()):
                if epoch < len(record.history):  # done before the run went on
                    continue
                self._train_until(end, record, display, interrupted, checkpoints)
                stopped = interrupted.is_set()
                if stopped and checkpoints:
                    checkpoints.attempt(self.state, record, again=False)
                if row := self._row(epoch, record, validate=validate and not stopped):
                    record.history.append(row)
                    display.epoch(row)
                    if note_divergence(record, self.state):
                        return
                if stopped:
                    return
            record.status = "interrupted" if interrupted.is_set() else "finished"
            if checkpoints:
                checkpoints.attempt(self.state, record, again=False)

    @contextlib.contextmanager
    def _interrupt(self, record: RunRecord) -> Iterator[Stop]:
        """What a signal to stop sets, on all ranks that train together at the same step of `record`."""
        with interrupt_flag() as flag:
            alone = self.setup.ranks.size == 1
            yield flag if alone else AgreedStop(flag, any_rank, lambda: record.steps)

    def _train_until(
        self,
        end: int,
        record: RunRecord,
        display: Display,
        interrupted: Stop,
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

    def _steps_until(self, end: int, record: RunRecord, display: Display, pause: Stop) -> None:
        """The steps up to number `end`, on the train clock; a pause lets the step at hand finish."""
        started = time.perf_counter()
        while record.steps < end and not pause.is_set():
            self._steps[self._variant(record.steps)]()
            record.steps += 1
            display.step(record.steps)
        synchronize(self.device)
        record.seconds.train = (record.seconds.train or 0.0) + time.perf_counter() - started

    def _train_unwatched(self, record: RunRecord, marks: Marks) -> None:
        """Issue all steps without waiting for the device, then wait once.

        Fills in the status, steps and train clock of `record`; `marks` gets the start and the end of each epoch. A
        signal to stop ends the loop early.
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
        record.history = read_history(self.state, record.steps, marks)
        if record.status == "finished":
            note_divergence(record, self.state)

    def _row(self, epoch: int, record: RunRecord, *, validate: bool) -> HistoryRow | None:
        """The row of the epoch that just ended, with validation if that is wanted and due; None without any step."""
        row = epoch_row(self.state, epoch, record.steps, record.seconds.train or 0.0)
        every = self.recipe.evaluation.every
        if row is None or not (validate and every > 0 and (epoch + 1) % every == 0):
            return row
        live = self._evaluator.scores("live")
        started = self.plan.first_averaging_epoch
        averaged = self._evaluator.scores("averaged") if started is not None and epoch >= started else None
        return dataclasses.replace(
            row,
            val_loss=live.loss,
            val_accuracy=live.accuracy["single_view"],
            averaged_accuracy=averaged.accuracy["single_view"] if averaged else None,
        )

    def evaluate(self) -> tuple[Accuracy, float]:
        """The recipe's final evaluation, and the seconds it took."""
        return self._evaluator.evaluate()

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
        watched = watched or self.setup.ranks.size > 1  # which agree on when to stop
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
        return self._completed(record, marks)

    def _completed(self, record: RunRecord, marks: Marks | None) -> RunRecord:
        """`record` with what is read once all clocks have stopped."""
        if marks:
            self._read_history(record, marks)
        record.images_seen = record.steps * self.recipe.batch_size
        record.memory = {"peak_bytes": peak_bytes(self.device)}
        return record

    def new_record(self, seed: int) -> RunRecord:
        """The record of a run that has not begun."""
        return new_record(
            self.setup, self.pack, self.net, seed=seed, backend=self.backend, build_seconds=self.build_seconds
        )
