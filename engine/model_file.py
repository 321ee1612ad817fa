"""Trained models on disk: one safetensors file with the weights and, as metadata, all that evaluation needs."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..kernels.augment import normalisation
from .data import Pack
from .errors import UserError
from .evaluate import Accuracy, LabelledImages, device_scores, forward_of, read_scores
from .files import write_atomically
from .nets import SpeedyResNet, make_net
from .recipe import Recipe, View, recipe_from_dict
from .trainer import DTYPES

FORMAT = "speedyresnet.model/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A net with trained weights and what belongs to it; `evaluate` has an example."""

    net: SpeedyResNet
    recipe: Recipe
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: torch.dtype
    image_size: tuple[int, int] | None = None
    """Height and width of the images it was trained on; none where the file does not tell."""

    def evaluate(self, pack: Pack, device: torch.device, view: View | None = None) -> Accuracy:
        """Accuracy on the test images of `pack`, with the views of the recipe or those asked for.

        Raises:
            UserError: the pack has other classes or channels.
        """
        if pack.class_names != self.class_names:
            raise UserError(
                f"the model knows {len(self.class_names)} classes ({_listed(self.class_names)}), "
                f"the data {pack.name} has {pack.num_classes} ({_listed(pack.class_names)})"
            )
        scale, shift = normalisation(self.mean, self.std, torch.promote_types(self.dtype, torch.float32), device)
        settings = self.recipe.evaluation
        data = LabelledImages(
            images=pack.test_images.to(device), labels=pack.test_labels.to(device), scale=scale, shift=shift,
            dtype=self.dtype,
        )  # fmt: skip
        found = device_scores(
            forward_of(self.net.to(device).eval()), data, view=view or settings.view, batch_size=settings.batch_size,
            share=settings.share,
        )  # fmt: skip
        return Accuracy(weights=settings.weights, **read_scores(found, len(data.labels)).accuracy)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def save_model(path: Path, state: dict[str, Tensor], recipe: Recipe, pack: Pack, dtype: torch.dtype) -> None:
    """Write weights and metadata to `path`, which appears whole or not at all."""
    metadata = {
        "format": FORMAT,
        "recipe": json.dumps(dataclasses.asdict(recipe)),
        "class_names": json.dumps(pack.class_names),
        "mean": json.dumps(pack.mean),
        "std": json.dumps(pack.std),
        "image_size": json.dumps(pack.image_size),
        "dtype": str(dtype).removeprefix("torch."),
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    write_atomically(path, lambda part: save_file(tensors, part, metadata))


def read_model(path: str | Path) -> Model:
    """The model in the file `path`, on the CPU.

    Raises:
        UserError: no such file, or one that is no model of this version.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"model {path} does not exist; `speedyresnet train --save {path}` makes one")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except SafetensorError as error:
        raise UserError(f"{path} is not a model file or is damaged ({error}); train it again") from error
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} is not a SpeedyResNet model (its format is {metadata.get('format')!r})")
    try:
        return _assembled(metadata, tensors)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"model {path} is damaged or of another version: {reason}") from error


def _assembled(metadata: dict[str, str], tensors: dict[str, Tensor]) -> Model:
    recipe = recipe_from_dict(json.loads(metadata["recipe"]))
    class_names = _strings(json.loads(metadata["class_names"]))
    mean, std = (tuple(map(float, json.loads(metadata[key]))) for key in ("mean", "std"))
    dtype = DTYPES[metadata["dtype"]]
    net = make_net(recipe, classes=len(class_names), channels=len(mean), dtype=dtype, device="meta")
    net = net.to_empty(device="cpu").to(memory_format=torch.channels_last)
    net.load_state_dict(tensors)
    return Model(
        net=net,
        recipe=recipe,
        class_names=class_names,
        mean=mean,
        std=std,
        dtype=dtype,
        image_size=_image_size(metadata),
    )


def _image_size(metadata: dict[str, str]) -> tuple[int, int] | None:
    if "image_size" not in metadata:  # the first files of this format did without
        return None
    height, width = map(int, json.loads(metadata["image_size"]))
    return height, width


def _strings(values: Any) -> tuple[str, ...]:
    return tuple(str(value) for value in values)
