"""Operations of a recipe that kernels can compute, as descriptors; nothing is computed."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import torch

from ..kernels.contract import Operation
from .fit import expected_data
from .nets import Convolution, make_net, net_operations
from .recipe import Recipe
from .recipes import recipe as recipe_called
from .recipes import registered_recipes
from .step import batch_shapes, step_sizes, transforms_of

INPUT, STEM = "input", "stem"
"""Places outside the modules that request kernels: the batch itself, and the batch behind the whitening."""


def placed_operations(recipe: Recipe, images: Sequence[int], dtype: torch.dtype) -> dict[str, list[Operation]]:
    """Return what kernels can compute in any kind of step of `recipe`, by the place where it is done.

    All alternatives are included: a first convolution with what follows it, its pooling with what follows that, and the
    latter alone.

    Args:
        recipe: recipe of the run.
        images: [N, H, W, C] of the training images.
        dtype: dtype of the activations.
    """
    inputs = list(_input_operations(recipe, tuple(images), dtype))
    places = {INPUT: [each for each in inputs if each.name == "augment"]}
    places[STEM] = [each for each in inputs if each.name == "stem"]
    in_net = net_operations(recipe, batch_shapes(recipe, images), dtype)
    return places | {path: list(operations) for path, operations in in_net.items()}


def operations_of(recipe: Recipe, images: Sequence[int], dtype: torch.dtype) -> list[Operation]:
    """Return the distinct operations of `placed_operations`."""
    places = placed_operations(recipe, images, dtype)
    return list(dict.fromkeys(each for operations in places.values() for each in operations))


def _input_operations(recipe: Recipe, images: tuple[int, ...], dtype: torch.dtype) -> Iterator[Operation]:
    """Yield the batches of each kind of step, and those behind the whitening, if any."""
    stem = make_net(recipe, classes=10, channels=images[3], dtype=dtype, device="meta").stem
    layout = recipe.net.memory_format
    for cutmix in (False, True) if recipe.augmentation.cutmix else (False,):
        for size in step_sizes(recipe):
            transforms = dataclasses.asdict(transforms_of(recipe, cutmix=cutmix, size=size))
            options = {"batch_size": recipe.batch_size} | transforms
            yield Operation("augment", images, dtype, layout, tuple(options.items()))
            if isinstance(stem.whitening, Convolution):
                filters, _, kernel, _ = stem.whitening.weight.shape
                options |= {
                    "filters": filters,
                    "kernel": kernel,
                    "stride": recipe.net.whitening_stride,
                    "whitening_padding": recipe.net.whitening_padding,
                    "biased": stem.whitening.bias is not None,
                    "activation": stem.whitening_activation,
                }
                yield Operation("stem", images, dtype, layout, tuple(options.items()))


@functools.cache
def shipped_operations() -> tuple[Operation, ...]:
    """Return the operations of all recipes of the package in float16, as they run on a GPU."""
    recipes = [recipe_called(name) for name in sorted(registered_recipes())]
    found = (each for made in recipes for each in operations_of(made, expected_data(made).train_shape, torch.float16))
    return tuple(dict.fromkeys(found))
