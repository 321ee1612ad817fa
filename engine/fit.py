"""Fit between recipe and data: the recipe's dataset, and checks of net, augmentation and batches against its images."""

import math

from .downloads import DOWNLOADS
from .errors import UserError
from .nets import check_image_size, last_map_size
from .pack import DataFacts
from .recipe import Recipe
from .schedules import Plan, plan
from .step import training_window


def check_fit(recipe: Recipe, height: int, width: int) -> None:
    """Raise UserError if the net or the augmentation of `recipe` does not support images of this size."""
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
    check_image_size(recipe.net, height, width)  # evaluation uses whole images
    _check_window_fit(recipe, *training_window(recipe, height, width))


def _check_window_fit(recipe: Recipe, height: int, width: int) -> None:
    """Raise UserError if the net or the augmentation of `recipe` does not support windows of this size."""
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


def fitting_plan(recipe: Recipe, data: DataFacts) -> Plan:
    """Return the plan of `recipe` on `data`; raise UserError if net, augmentation or batches do not fit the images."""
    check_fit(recipe, *data.image_size)
    return plan(recipe, data.train_images)


def expected_data(recipe: Recipe) -> DataFacts:
    """Return the facts of the recipe's dataset; those of CIFAR-10 if it is not a download."""
    source = DOWNLOADS.get(recipe.data, DOWNLOADS["cifar10"])
    train_images, test_images, classes = source.counts
    return DataFacts(
        image_size=(source.size, source.size),
        channels=3,
        classes=classes,
        train_images=train_images,
        test_images=test_images,
    )
