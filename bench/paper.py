"""Data and states on the `meta` device, where operations run without computing anything."""

from collections.abc import Mapping
from typing import Any

import torch

from speedyresnet.engine.evaluate import LabelledImages
from speedyresnet.engine.nets import make_net
from speedyresnet.engine.pack import Pack
from speedyresnet.engine.recipe import Recipe
from speedyresnet.engine.schedules import plan
from speedyresnet.engine.step import TrainingState
from speedyresnet.kernels.augment import normalisation

CIFAR10 = {"name": "cifar10", "train_images": [50_000, 32, 32, 3], "test_images": [10_000, 32, 32, 3], "classes": 10}
"""Name, image shapes and number of classes of CIFAR-10."""
_META = torch.device("meta")


def paper_pack(data: Mapping[str, Any]) -> Pack:
    """Return data with the name, shapes and number of classes given by `data`, which has the form of CIFAR10."""
    shapes = [data[f"{split}_images"] for split in ("train", "test")]
    images = [torch.empty(shape, dtype=torch.uint8, device=_META) for shape in shapes]
    labels = [torch.empty(shape[0], dtype=torch.int64, device=_META) for shape in shapes]
    return Pack(
        train_images=images[0],
        train_labels=labels[0],
        test_images=images[1],
        test_labels=labels[1],
        name=data["name"],
        class_names=tuple(map(str, range(data["classes"]))),
        sha256="",
        mean=(0.5,) * shapes[0][3],
        std=(0.25,) * shapes[0][3],
    )


def paper_state(
    recipe: Recipe, pack: Pack, dtype: torch.dtype, kernels: Mapping[str, str] | None = None
) -> TrainingState:
    """Return a state of `recipe`, in training mode, for data like `pack`."""
    net = make_net(recipe, classes=pack.num_classes, channels=pack.channels, dtype=dtype, device=_META).train()
    images = torch.empty(pack.train_images.shape, dtype=torch.uint8, device=_META)
    labels = torch.empty(len(pack.train_labels), dtype=torch.int64, device=_META)
    return TrainingState(net, recipe, plan(recipe, len(labels)), images, labels, pack.mean, pack.std, dtype, kernels)


def paper_test_set(pack: Pack, dtype: torch.dtype) -> LabelledImages:
    """Return the test images of data like `pack`, for a net of `dtype`."""
    scale, shift = normalisation(pack.mean, pack.std, torch.promote_types(dtype, torch.float32), _META)
    return LabelledImages(
        images=torch.empty(pack.test_images.shape, dtype=torch.uint8, device=_META),
        labels=torch.empty(len(pack.test_labels), dtype=torch.int64, device=_META),
        scale=scale,
        shift=shift,
        dtype=dtype,
    )
