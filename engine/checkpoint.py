"""Checkpoints: the complete state of an interrupted run in one safetensors file.

The tensors are those that a step changes; the metadata identify the run and its progress. Steps depend on nothing
else, so on a CPU a resumed run is bit-identical to an uninterrupted one.
"""

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from .device import dtype_name
from .errors import UserError, note
from .files import Outputs
from .json_files import json_value
from .pack import Pack
from .recipe import Recipe
from .recipe_checks import checked_recipe
from .record import KERNEL_PROVIDERS, HistoryRow, RunRecord, finite_values
from .setup import Setup
from .signals import Stop
from .step import TrainingState
from .tensor_file import Header, read_tensors, save_tensors
from .typed_values import typed_value

FORMAT = "speedyresnet.checkpoint/1"
DEFAULT_MINUTES = 10.0
LEAST_MINUTES = 0.01
"""Lower limit of the interval, so that at least one step is done between two checkpoints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Identity and progress of a run: the metadata of a checkpoint."""

    recipe: Recipe
    seed: int
    data: str
    """Name of the data set."""
    sha256: str
    """Checksum of the data set."""
    device: str
    """cpu or cuda."""
    backend: str
    dtype: str
    steps: int
    prepare_seconds: float
    train_seconds: float
    history: tuple[HistoryRow, ...]
    """Rows of the finished epochs."""
    resumed_at_steps: tuple[int, ...]
    kernel_files: tuple[str, ...] = ()
    """OPERATION=PROVIDER of each kernel from outside the package."""
    batch_norm_groups: int | None = None
    """Groups of a whole batch, on all ranks together; None: as many as the recipe has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Content of a checkpoint file; see `read_checkpoint`."""

    path: Path
    progress: Progress
    tensors: dict[str, Tensor]

    def check_same_run(self, setup: Setup, pack: Pack, seed: int) -> None:
        """Raise UserError if this is a checkpoint of another run."""
        mine = self.progress
        pairs: dict[str, tuple[object, object]] = {
            "recipe hash": (mine.recipe.hash, setup.recipe.hash),
            "seed": (mine.seed, seed),
            "data checksum": (mine.sha256, pack.sha256),
            "device": (mine.device, setup.device.type),
            "backend": (mine.backend, setup.backends[0]),
            "dtype": (mine.dtype, dtype_name(setup.dtype)),
            "groups of batch norm on all ranks": (
                mine.batch_norm_groups or mine.recipe.net.batch_norm_groups,
                setup.ranks.batch_norm_groups(setup.recipe),
            ),
            "--kernel": (", ".join(mine.kernel_files) or "none", ", ".join(_outside(setup.kernels)) or "none"),
        }
        for name, (stored, given) in pairs.items():
            if stored != given:
                raise UserError(f"{self.path} holds a run with {name} {stored}, not {given}; go on with the same")

    @torch.no_grad()
    def restore(self, state: TrainingState, record: RunRecord) -> None:
        """Set `state` and `record`, made for the same run, to their values in the checkpoint.

        Raises:
            UserError: the checkpoint's tensors or steps do not match `state`.
        """
        progress, tensors = self.progress, state.changing_tensors()
        kinds = [{name: (t.dtype, t.shape) for name, t in each.items()} for each in (tensors, self.tensors)]
        ends = state.plan.epoch_ends()
        done, bounds = len(progress.history), [0, *ends, ends[-1]]
        if (
            kinds[0] != kinds[1]
            or [row.step for row in progress.history] != ends[:done]
            or not bounds[done] <= progress.steps <= bounds[done + 1]
            or int(self.tensors["counter"]) != progress.steps
        ):
            raise UserError(f"checkpoint {self.path} is damaged or of another version: its tensors do not fit the run")
        state.restart(progress.seed)
        for name, tensor in tensors.items():
            tensor.copy_(self.tensors[name])
        record.steps, record.history = progress.steps, list(progress.history)
        record.seconds.prepare, record.seconds.train = progress.prepare_seconds, progress.train_seconds
        record.resumed_at_steps = [*progress.resumed_at_steps, progress.steps]


def _outside(kernels: Mapping[str, str]) -> tuple[str, ...]:
    """Return OPERATION=PROVIDER of the kernels that this package does not ship."""
    return tuple(f"{name}={each}" for name, each in sorted(kernels.items()) if each not in KERNEL_PROVIDERS)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the checkpoint in the file `path`, with tensors on the CPU.

    Raises:
        UserError: the file does not exist or is not a checkpoint of this version.
    """
    if not os.path.isfile(path):
        raise UserError(f"checkpoint {path} does not exist; `speedyresnet train --checkpoint {path}` writes one")
    try:
        progress, tensors = read_tensors(path, partial(_progress, path))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a checkpoint or is damaged ({error}); begin the run again") from error
    return Checkpoint(path=path, progress=progress, tensors=tensors)


def _progress(path: Path, header: Header) -> Progress:
    """Parse the metadata of a checkpoint."""
    if header.metadata.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of a run (its format is {header.metadata.get('format')!r})")
    try:
        progress: Progress = typed_value(json_value(header.metadata["progress"]), Progress, "progress")
        checked_recipe(progress.recipe)
    except (KeyError, ValueError) as error:
        raise UserError(f"checkpoint {path} is damaged or of another version ({error}); begin the run again") from error
    return progress


class CheckpointFile:
    """Checkpoint file of a run, overwritten by each new checkpoint, and its schedule.

    Args:
        path: the file.
        minutes: minutes between checkpoints.
        tell: called with a message the first time a write fails while the run continues.

    Raises:
        UserError: `minutes` is too small.
    """

    def __init__(self, path: Path, minutes: float, tell: Callable[[str], object] = note) -> None:
        if not minutes >= LEAST_MINUTES:
            raise UserError(f"--checkpoint-minutes {minutes} is too often; give at least {LEAST_MINUTES}")
        self.path, self.seconds = path, 60 * minutes
        self._tell, self._outputs = tell, Outputs()
        self._due_at = math.inf

    def wait(self) -> None:
        """Restart the interval until the next checkpoint."""
        self._due_at = time.monotonic() + self.seconds

    def is_due(self) -> bool:
        """Return whether the interval has passed."""
        return time.monotonic() >= self._due_at

    @property
    def refused(self) -> str | None:
        """Reason why the last checkpoint could not be written; None if it was written or there is none yet."""
        return next(iter(self._outputs.refused), None)

    def attempt(self, state: TrainingState, record: RunRecord, *, again: bool) -> None:
        """Try to `write` a checkpoint, store the reason of a failure in `refused`, and restart the interval.

        Args:
            state: state of the run.
            record: record of the run.
            again: whether the run, and with it the attempts, continues.
        """
        write = partial(self.write, state, record)
        self._outputs.attempt(self.path, write, again=again, tell=self._tell)
        self.wait()

    def write(self, state: TrainingState, record: RunRecord) -> None:
        """Write `state` and `record` to the file; `record` has the history of whole epochs only.

        Raises:
            UserError: the operating system refuses. The previous checkpoint is kept.
        """
        progress = Progress(
            recipe=record.recipe,
            seed=record.seed,
            data=record.data["name"],
            sha256=record.data["sha256"],
            device=record.device.partition(":")[0],
            backend=record.backend,
            dtype=record.dtype,
            steps=record.steps,
            prepare_seconds=record.seconds.prepare or 0.0,
            train_seconds=record.seconds.train or 0.0,
            history=tuple(record.history),
            resumed_at_steps=tuple(record.resumed_at_steps),
            kernel_files=_outside(record.kernels),
            batch_norm_groups=state.ranks.batch_norm_groups(state.recipe),
        )
        metadata = {"format": FORMAT, "progress": json.dumps(finite_values(dataclasses.asdict(progress)))}
        save_tensors(self.path, state.changing_tensors(), metadata)


@dataclass(frozen=True, slots=True)
class Pause:
    """Condition under which training pauses: an interruption, or a checkpoint that is due."""

    interrupted: Stop
    checkpoints: CheckpointFile

    def is_set(self) -> bool:
        """Return whether training should pause."""
        return self.interrupted.is_set() or self.checkpoints.is_due()
