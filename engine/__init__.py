"""The training engine: recipes, data on the device, the training step, runs and their records.

>>> from speedyresnet.engine import load_data, recipe, train
>>> run = train(recipe("pocket", ["epochs=1"]), load_data("synthetic"))
>>> run.record.accuracy.single_view
"""

import logging
import os

from . import import_clock  # before everything else

# PyTorch reads this at its first allocation. It puts large CPU tensors on huge pages, which saves most page faults and
# a fifth of the time of a step of pocket (bench/LOG.md, 2026-11-21).
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# Without Triton, PyTorch would log at every import that it cannot count the FLOPs of Triton kernels.
logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)

from .api import TrainedRun, evaluate, train
from .data import load_data
from .errors import UserError
from .evaluate import Accuracy
from .export import export_model
from .image_files import read_image
from .model_file import Model, read_model, save_model
from .nets import SpeedyResNet
from .pack import Pack
from .recipe import Augmentation, Averaging, Claim, Evaluation, Loss, Net, Optimizer, Recipe, Schedule
from .recipes import recipe
from .record import RunRecord
from .settings import with_settings

import_clock.stop()

__all__ = [
    "Accuracy",
    "Augmentation",
    "Averaging",
    "Claim",
    "Evaluation",
    "Loss",
    "Model",
    "Net",
    "Optimizer",
    "Pack",
    "Recipe",
    "RunRecord",
    "Schedule",
    "SpeedyResNet",
    "TrainedRun",
    "UserError",
    "evaluate",
    "export_model",
    "load_data",
    "read_image",
    "read_model",
    "recipe",
    "save_model",
    "train",
    "with_settings",
]
