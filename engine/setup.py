"""Setup of a run: a recipe, a device and a data set, combined once.

All errors in a user's request are found here, before any work: `chosen_recipe` or `place_recipe` find those that need
no data, `PlacedRecipe.with_data` those of a recipe that does not fit its images.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from .backends import AUTO, check_backend, default_backends
from .device import pick_device, pick_dtype
from .fit import check_fit, fitting_plan
from .kernel_choice import check_kernels, pick_kernels
from .outside_kernels import with_outside_kernels
from .pack import DataFacts
from .ranks import ALONE, Ranks
from .recipe import Recipe
from .recipes import recipe as recipe_called
from .schedules import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedRecipe:
    """Recipe on a device: the part of a run's setup that needs no data."""

    recipe: Recipe
    device: torch.device
    backend: str
    """Backend as requested; see `backends`."""
    dtype: torch.dtype
    """Dtype of weights and activations."""
    outside_kernels: Mapping[str, str] = field(default_factory=dict)
    """Providers from outside the package by operation, see `outside_kernels.load_kernels`."""
    ranks: Ranks = ALONE
    """The processes that train the net together."""

    @property
    def share(self) -> Recipe:
        """The part of the recipe that this process does; see `Ranks.share_of`."""
        return self.ranks.share_of(self.recipe)

    @property
    def backends(self) -> tuple[str, ...]:
        """Backends that are tried in order until one does not fail."""
        return default_backends(self.device) if self.backend == AUTO else (self.backend,)

    def with_data(self, data: DataFacts) -> "Setup":
        """Return the setup of runs on `data`.

        Raises:
            UserError: the net, the augmentation or the batches do not fit the images or the ranks, or a kernel from
                outside differs from its reference.
        """
        recipe, device, backend, dtype, share = self.recipe, self.device, self.backend, self.dtype, self.share
        fitting, images = fitting_plan(recipe, data), data.train_shape
        check_fit(share, *data.image_size)
        kernels = pick_kernels(share, device, dtype, backend, images)
        return Setup(
            recipe=recipe,
            device=device,
            backend=backend,
            dtype=dtype,
            outside_kernels=self.outside_kernels,
            data=data,
            plan=fitting,
            kernels=with_outside_kernels(kernels, self.outside_kernels, share, images, device, dtype, backend),
            ranks=self.ranks,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup(PlacedRecipe):
    """Everything that determines how runs of a recipe are done on a data set and a device."""

    data: DataFacts
    plan: Plan
    """Steps and tables of the recipe for this number of images."""
    kernels: dict[str, str]
    """Provider of each operation."""

    @property
    def requested(self) -> dict[str, str]:
        """Backend and kernels as requested, such as `auto`."""
        return {"backend": self.backend, "kernels": self.recipe.kernels}


def default_recipe(device: torch.device) -> str:
    """Return the name of the default recipe for `device`."""
    return "airbench94" if device.type == "cuda" else "pocket"


def chosen_recipe(name: str | None, settings: Iterable[str] | None, device: str, backend: str = AUTO) -> PlacedRecipe:
    """Return the recipe requested by the options `--recipe`, `--set`, `--device` and `--backend`.

    Args:
        name: name of a recipe, or `my_file.py:function`; None uses the device's default.
        settings: `key=value` texts; None for no changes.
        device: auto, cpu, cuda or cuda:0.
        backend: one of `backends.BACKENDS`, or auto.

    Raises:
        UserError: an option is invalid or not supported on this machine.
    """
    place = pick_device(device)
    return place_recipe(recipe_called(name or default_recipe(place), settings or ()), place, backend)


def place_recipe(
    recipe: Recipe, device: torch.device, backend: str = AUTO, outside_kernels: Mapping[str, str] | None = None
) -> PlacedRecipe:
    """Return `recipe` on `device`, with results of `pick_device` and `load_kernels` as arguments.

    Raises:
        UserError: the backend or the kernels are not supported on this machine.
    """
    check_backend(backend, device)
    dtype = pick_dtype(recipe, device)
    check_kernels(recipe, device, dtype)
    return PlacedRecipe(
        recipe=recipe, device=device, backend=backend, dtype=dtype, outside_kernels=outside_kernels or {}
    )


def set_up(recipe: Recipe, data: DataFacts, device: torch.device, backend: str = AUTO) -> Setup:
    """Call `place_recipe` and its `with_data`."""
    return place_recipe(recipe, device, backend).with_data(data)
