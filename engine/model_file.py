"""Trained models on disk: one safetensors file with the weights and, as metadata, everything evaluation needs."""

import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..kernels.augment import normalisation
from .device import DTYPES, dtype_name
from .errors import UserError
from .evaluate import Accuracy, LabelledImages, device_scores, forward_of, read_scores
from .evaluation_data import Wanted, evaluation_data
from .image_folders import Progress
from .json_files import json_value
from .nets import MAX_IMAGE_SIDE, SpeedyResNet, check_image_size, make_net
from .pack import Pack
from .recipe import VIEWS, Recipe, View
from .recipe_checks import recipe_from_dict
from .tensor_file import DTYPE_NAMES, Header, read_tensors, save_tensors

FORMAT = "speedyresnet.model/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Net with trained weights and its metadata; see `evaluate` for an example."""

    net: SpeedyResNet
    recipe: Recipe
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: torch.dtype
    image_size: tuple[int, int] | None = None
    """Height and width of the training images; None if the file does not contain them."""

    def evaluate(
        self,
        data: Pack | str | Path,
        device: torch.device,
        view: View | None = None,
        progress: Progress | None = None,
    ) -> Accuracy:
        """Return the accuracy on the test images of `data`, with the recipe's views or `view`.

        Images and labels are those of `evaluation_data`; `progress` receives the progress of reading a folder.

        Raises:
            UserError: `evaluation_data` rejects the data, the images are too small, or the view is unknown.
        """
        if view is not None and view not in VIEWS:
            raise UserError(f"unknown view {view!r}: choose {', '.join(VIEWS)}")
        wanted = Wanted(class_names=self.class_names, channels=len(self.mean), image_size=self.image_size)
        images, labels = evaluation_data(data, wanted, progress)
        check_image_size(self.recipe.net, images.shape[1], images.shape[2])
        scale, shift = normalisation(self.mean, self.std, torch.promote_types(self.dtype, torch.float32), device)
        settings = self.recipe.evaluation
        labelled = LabelledImages(
            images=images.to(device), labels=labels.to(device), scale=scale, shift=shift, dtype=self.dtype
        )
        found = device_scores(
            forward_of(self.net.to(device).eval()), labelled, view=view or settings.view,
            batch_size=settings.batch_size, share=settings.share,
        )  # fmt: skip
        return Accuracy(weights=settings.weights, **read_scores(found, len(labels)).accuracy)


def save_model(path: Path, state: dict[str, Tensor], recipe: Recipe, pack: Pack, dtype: torch.dtype) -> None:
    """Write weights and metadata to `path` atomically; the same model gives the same bytes."""
    metadata = {
        "format": FORMAT,
        "recipe": json.dumps(dataclasses.asdict(recipe)),
        "class_names": json.dumps(pack.class_names),
        "mean": json.dumps(pack.mean),
        "std": json.dumps(pack.std),
        "image_size": json.dumps(pack.image_size),
        "dtype": dtype_name(dtype),
    }
    save_tensors(path, state, metadata)


def read_model(path: str | Path) -> Model:
    """Read the model in the file `path`, on the CPU.

    Raises:
        UserError: the file does not exist or is not a model of this version.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise UserError(f"model {path} does not exist; `speedyresnet train --save {path}` makes one")
    try:
        model, tensors = read_tensors(path, partial(_model_without_weights, path))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a model file or is damaged ({error}); train it again") from error
    model.net.to_empty(device="cpu").to(memory_format=torch.channels_last).load_state_dict(tensors)
    return model


def _model_without_weights(path: Path, header: Header) -> Model:
    """Return the model of a file's metadata, its net on the meta device; check that the file has that net's tensors."""
    if header.metadata.get("format") != FORMAT:
        raise UserError(f"{path} is not a SpeedyResNet model (its format is {header.metadata.get('format')!r})")
    try:
        model = _model_of(header.metadata)
    except (KeyError, ValueError, RuntimeError) as error:  # what JSON and PyTorch raise for invalid metadata
        raise _damaged(path, repr(error) if isinstance(error, KeyError) else str(error)) from error
    net = {name: (DTYPE_NAMES[value.dtype], tuple(value.shape)) for name, value in model.net.state_dict().items()}
    if header.tensors != net:
        wrong = min(name for name in {*net, *header.tensors} if net.get(name) != header.tensors.get(name))
        raise _damaged(path, f"{wrong} is not what its recipe makes")
    return model


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"model {path} is damaged or of another version: {reason[:200]}; train it again")


def _model_of(metadata: dict[str, str]) -> Model:
    """Return the model of `metadata`, its net on the meta device; raise ValueError or similar if they are invalid."""
    recipe = recipe_from_dict(json_value(metadata["recipe"]))
    class_names, mean, std = (json_value(metadata[key]) for key in ("class_names", "mean", "std"))
    if not _is_list(class_names, _is_name) or len(set(class_names)) != len(class_names):
        raise ValueError("class_names is no list of different names")
    if not (_is_list(mean, _is_fraction) and _is_list(std, _is_fraction) and len(mean) == len(std)):
        raise ValueError("mean and std are not as many numbers from 0 to 1")
    dtype = DTYPES[metadata["dtype"]]
    # The first files of this format have no size.
    image_size = json_value(metadata["image_size"]) if "image_size" in metadata else None
    if image_size is not None and not (_is_list(image_size, _is_side) and len(image_size) == 2):
        raise ValueError(f"image_size is not two numbers of pixels from 1 to {MAX_IMAGE_SIDE}")
    return Model(
        net=make_net(recipe, classes=len(class_names), channels=len(mean), dtype=dtype, device="meta"),
        recipe=recipe,
        class_names=tuple(class_names),
        mean=tuple(mean),
        std=tuple(std),
        dtype=dtype,
        image_size=image_size and (image_size[0], image_size[1]),
    )


def _is_list(values: Any, fits: Callable[[Any], bool]) -> bool:
    """Return whether `values`, from JSON, is a non-empty list whose items all fit."""
    return isinstance(values, list) and len(values) > 0 and all(map(fits, values))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _is_fraction(value: Any) -> bool:
    return isinstance(value, float) and 0 <= value <= 1


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_IMAGE_SIDE
