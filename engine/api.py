"""Python API: the commands of the command line as functions that return typed objects."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .backends import AUTO
from .checkpoint import DEFAULT_MINUTES, Checkpoint, CheckpointFile, read_checkpoint
from .data import load_data
from .device import pick_device
from .errors import UserError, note
from .evaluate import Accuracy
from .files import check_outputs
from .image_folders import Progress
from .model_file import Model, read_model, save_model
from .nets import SpeedyResNet
from .outside_kernels import load_kernels
from .pack import Pack
from .python_files import file_of
from .ranks import check_same, connected, launched
from .recipe import Recipe, View
from .recipe_checks import checked_recipe
from .recipes import recipe as recipe_called
from .record import RunRecord
from .setup import Setup, place_recipe
from .trainer import Trainer
from .watching import Display

MIN_SEED, MAX_SEED = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRun:
    """Result of `train`; see there for an example."""

    record: RunRecord
    net: SpeedyResNet
    """The net with the live weights of the run."""
    state: dict[str, Tensor]
    """Parameters and buffers with the weights that the recipe reports, live or averaged."""
    pack: Pack
    dtype: torch.dtype
    refused: str | None = None
    """Reason why the last checkpoint could not be written; None if it was written or none was requested."""

    def save(self, path: str | Path) -> None:
        """Write the reported weights as a model file for `evaluate`; raise UserError if `path` cannot be written."""
        save_model(Path(path), self.state, self.record.recipe, self.pack, self.dtype)


def train(
    recipe: Recipe | str,
    data: Pack | str | Path,
    *,
    device: str | torch.device = "auto",
    backend: str = AUTO,
    seed: int = 0,
    display: Display | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_minutes: float = DEFAULT_MINUTES,
    resume: Checkpoint | str | Path | None = None,
    kernels: Mapping[str, str] | None = None,
) -> TrainedRun:
    """Train one run. Ctrl-C or SIGTERM ends training early and keeps the finished steps; a second one stops at once.

    The processes of torchrun that call it train the net together, see `ranks`; each returns the same run.

    Outside the main thread, where Python delivers no signals, neither is handled.

    Args:
        recipe: a recipe or its name.
        data: a pack, or anything that `load_data` accepts.
        device: auto (a GPU if available), cpu, cuda or cuda:0.
        backend: eager, torchscript, compile, capture, graph, or auto: graph on a GPU and eager on a CPU.
        seed: seed of the initial weights, the data order and the augmentation; any 64-bit integer.
        display: receives the progress of the run.
        checkpoint: checkpoint file, written at intervals and when training ends, whether by a signal or on its own;
            None writes to the file of `resume`, if given. A failed write, such as on a full disk, does not end the
            run: it is reported as a warning and retried, and `TrainedRun.refused` has the reason.
        checkpoint_minutes: minutes between checkpoints.
        resume: checkpoint of the same run to resume from. On a CPU with the same number of threads the result is
            bit-identical to an uninterrupted run. The clocks `prepare` and `train` continue; `build` covers the last
            part only.
        kernels: custom kernels as `my_file.py:KERNEL`, by operation. Each is first compared with its reference on
            every shape of the recipe, and overrides the recipe's setting `kernels`.

    Raises:
        UserError: invalid input, such as a checkpoint of another run, or a checkpoint file that cannot be written or
            is one of the run's inputs.

    Examples:
        Four steps of a narrow net; a real run omits the settings.

        >>> from speedyresnet.engine import load_data, recipe, train
        >>> made = recipe("pocket", ["epochs=0.1", "batch_size=500", "width_multiplier=0.125"])
        >>> run = train(made, load_data("synthetic"), device="cpu", seed=3)
        >>> run.record.status, run.record.steps, run.record.images_seen
        ('finished', 4, 2000)
        >>> 0 <= run.record.accuracy.mirror <= 1
        True
        >>> run.record.seconds.total > run.record.seconds.train
        True
        >>> [row.step for row in run.record.history], run.record.backend
        ([4], 'eager')
        >>> sum(weight.numel() for weight in run.net.parameters()) == run.record.model["parameters"]
        True
        >>> run.save("model.safetensors")
        >>> run.record.write("run.json")
    """
    made = recipe_called(recipe) if isinstance(recipe, str) else checked_recipe(recipe)
    if type(seed) is not int or not MIN_SEED <= seed <= MAX_SEED:
        raise UserError(f"the seed {seed!r} must be an integer from {MIN_SEED} to {MAX_SEED}")
    begun = read_checkpoint(Path(resume)) if isinstance(resume, str | Path) else resume
    checkpoints = checkpoint_file(checkpoint, begun, checkpoint_minutes, display)
    read = [None if isinstance(data, Pack) else data, file_of(recipe) if isinstance(recipe, str) else None]
    check_outputs([checkpoints.path if checkpoints else None], read)
    placed = place_recipe(made, pick_device(str(device)), backend, load_kernels(kernels or {}))
    placed = replace(placed, ranks=launched())
    pack = data if isinstance(data, Pack) else load_data(data)
    setup = placed.with_data(pack.facts)
    return train_set_up(setup, pack, seed=seed, display=display, checkpoints=checkpoints, resume=begun)


def checkpoint_file(
    path: str | Path | None, begun: Checkpoint | None, minutes: float, display: Display | None
) -> CheckpointFile | None:
    """Return the checkpoint file at `path`, else at that of the resumed run; None if neither is given.

    Raises:
        UserError: `minutes` is too small.
    """
    resumed = begun.path if begun else None
    file = resumed if path is None else Path(path)
    return CheckpointFile(file, minutes, display.note if display else note) if file else None


def train_set_up(
    setup: Setup,
    pack: Pack,
    *,
    seed: int,
    display: Display | None = None,
    checkpoints: CheckpointFile | None = None,
    resume: Checkpoint | None = None,
) -> TrainedRun:
    """Train one run of `setup` on `pack`, the data set that it was made for; see `train`.

    Of several ranks the first writes the checkpoints.

    Raises:
        UserError: `resume` is a checkpoint of another run, the backend fails, or the weights of the ranks differ.
    """
    if resume:
        resume.check_same_run(setup, pack, seed)
    with connected(setup.ranks, setup.device):
        checkpoints = checkpoints if setup.ranks.leads else None
        return _trained(setup, pack, seed, display, checkpoints, resume)


def _trained(
    setup: Setup,
    pack: Pack,
    seed: int,
    display: Display | None,
    checkpoints: CheckpointFile | None,
    resume: Checkpoint | None,
) -> TrainedRun:
    """See `train_set_up`; a function of its own, so that all of the trainer is gone before the ranks part."""
    trainer = Trainer(setup, pack)
    record = trainer.run(seed, display, checkpoints=checkpoints, resume=resume)
    if setup.ranks.size > 1 and record.status != "interrupted":
        check_same(trainer.net.state_dict().values())
    refused = checkpoints.refused if checkpoints else None
    if refused and display is None:
        note(refused)
    state, dtype = trainer.reported_state(), setup.dtype
    return TrainedRun(record=record, net=trainer.net, state=state, pack=pack, dtype=dtype, refused=refused)


def evaluate(
    model: Model | str | Path,
    data: Pack | str | Path,
    *,
    device: str | torch.device = "auto",
    view: View | None = None,
    progress: Progress | None = None,
) -> Accuracy:
    """Return the accuracy of a model on test images.

    Classes are matched by name. Images whose size differs from the training size are resized to it as in
    `speedyresnet data pack --size`, with a warning.

    Args:
        model: a model from `read_model`, or a file written by `TrainedRun.save`.
        data: a pack, or anything that `load_data` accepts; an image folder may have only a test split, or be CLASS/*
            itself.
        device: as in `train`.
        view: single_view, mirror or six_view; None uses the view of the model's recipe.
        progress: receives the progress of reading images.

    Raises:
        UserError: the file is not a model, or the data does not fit it, for example has a class unknown to the model.

    Examples:
        >>> from speedyresnet.engine import evaluate, load_data, read_model, recipe, train
        >>> made = recipe("pocket", ["epochs=0.1", "batch_size=500", "width_multiplier=0.125"])
        >>> pack = load_data("synthetic")
        >>> run = train(made, pack, device="cpu")
        >>> run.save("model.safetensors")
        >>> accuracy = evaluate("model.safetensors", pack, device="cpu")
        >>> accuracy == run.record.accuracy
        True
        >>> model = read_model("model.safetensors")
        >>> model.recipe == made, model.image_size, model.class_names[0]
        (True, (32, 32), 'disc')
        >>> single = evaluate(model, pack, device="cpu", view="single_view")
        >>> single.single_view == accuracy.single_view, single.mirror
        (True, None)
    """
    loaded = model if isinstance(model, Model) else read_model(Path(model))
    return loaded.evaluate(data, pick_device(str(device)), view, progress)
