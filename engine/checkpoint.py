"""Checkpoints: all that a run goes on from, in one safetensors file.

The tensors are those that a step changes; the metadata says which run it is and how far it has got. Steps depend on
nothing else, so on a CPU a run that goes on gives the same bits as one that was never interrupted.
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
"""So that a step is done between two checkpoints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Which run it is and how far it has got: the metadata of a checkpoint."""

    recipe: Recipe
    seed: int
    data: str
    """Name of the data set."""
    sha256: str
    """Of the data set."""
    device: str
    """cpu or cuda."""
    backend: str
    dtype: str
    steps: int
    prepare_seconds: float
    train_seconds: float
    history: tuple[HistoryRow, ...]
    """Of the epochs that are done."""
    resumed_at_steps: tuple[int, ...]
    kernel_files: tuple[str, ...] = ()
    """OPERATION=PROVIDER of each kernel from outside of the package."""
    batch_norm_groups: int | None = None
    """Of a whole batch, on all ranks together; none: as many as the recipe has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What `read_checkpoint` finds in a file."""

    path: Path
    progress: Progress
    tensors: dict[str, Tensor]

    def check_same_run(self, setup: Setup, pack: Pack, seed: int) -> None:
        """Raise UserError where this is a checkpoint of another run."""
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
        """Put `state` and `record`, which were made for the same run, where the checkpoint was written.

        Raises:
            UserError: tensors or steps that are not those of `state`.
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
    """OPERATION=PROVIDER of the kernels that this package does not ship."""
    return tuple(f"{name}={each}" for name, each in sorted(kernels.items()) if each not in KERNEL_PROVIDERS)


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in the file `path`, on the CPU.

    Raises:
        UserError: no such file, or one that is no checkpoint of this version.
    """
    if not os.path.isfile(path):
        raise UserError(f"checkpoint {path} does not exist; `speedyresnet train --checkpoint {path}` writes one")
    try:
        progress, tensors = read_tensors(path, partial(_progress, path))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a checkpoint or is damaged ({error}); begin the run again") from error
    return Checkpoint(path=path, progress=progress, tensors=tensors)


def _progress(path: Path, header: Header) -> Progress:
    """What the metadata of a checkpoint say."""
    if header.metadata.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of a run (its format is {header.metadata.get('format')!r})")
    try:
        progress: Progress = typed_value(json_value(header.metadata["progress"]), Progress, "progress")
        checked_recipe(progress.recipe)
    except (KeyError, ValueError) as error:
        raise UserError(f"checkpoint {path} is damaged or of another version ({error}); begin the run again") from error
    return progress


class CheckpointFile:
    """Where the checkpoints of a run go, each in the place of the one before, and when the next one is due.

    Args:
        path: the file.
        minutes: from one checkpoint to the next.
        tell: told when the first one is refused while the run goes on.

    Raises:
        UserError: too few minutes.
    """

    def __init__(self, path: Path, minutes: float, tell: Callable[[str], object] = note) -> None:
        if not minutes >= LEAST_MINUTES:
            raise UserError(f"--checkpoint-minutes {minutes} is too often; give at least {LEAST_MINUTES}")
        self.path, self.seconds = path, 60 * minutes
        self._tell, self._outputs = tell, Outputs()
        self._due_at = math.inf

    def wait(self) -> None:
        """From now on count the minutes to the next one."""
        self._due_at = time.monotonic() + self.seconds

    def is_due(self) -> bool:
        """Whether the minutes are over."""
        return time.monotonic() >= self._due_at

    @property
    def refused(self) -> str | None:
        """Why the last checkpoint could not be written; none: it was, or there is none yet."""
        return next(iter(self._outputs.refused), None)

    def attempt(self, state: TrainingState, record: RunRecord, *, again: bool) -> None:
        """Write a checkpoint, see `write`, or keep in `refused` why that failed; the next one is due in time.

        Args:
            state: of the run.
            record: of the run.
            again: whether the run goes on, and with it the attempts.
        """
        write = partial(self.write, state, record)
        self._outputs.attempt(self.path, write, again=again, tell=self._tell)
        self.wait()

    def write(self, state: TrainingState, record: RunRecord) -> None:
        """Write where `state` and `record` are now; `record` has the history of whole epochs only.

        Raises:
            UserError: the operating system refuses. The checkpoint before is still there.
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
    """Set when training has to stop for a moment: it is interrupted, or a checkpoint is due."""

    interrupted: Stop
    checkpoints: CheckpointFile

    def is_set(self) -> bool:
        """Whether it is time."""
        return self.interrupted.is_set() or self.checkpoints.is_due()
