"""What a run is set up from: a recipe, a device and a data set, brought together once.

Whatever is wrong with what a user asked for is found here, before any work: `chosen_recipe` or `place_recipe` know the
faults that need no data, `PlacedRecipe.with_data` those of a recipe that does not fit its images.
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
    """A recipe on a device: what is known of a run before its data is."""

    recipe: Recipe
    device: torch.device
    backend: str
    """As it was asked for; see `backends`."""
    dtype: torch.dtype
    """Of weights and activations."""
    outside_kernels: Mapping[str, str] = field(default_factory=dict)
    """Providers from outside of the package by operation, see `outside_kernels.load_kernels`."""
    ranks: Ranks = ALONE
    """The processes that train the net together."""

    @property
    def share(self) -> Recipe:
        """What this process does of the recipe; see `Ranks.share_of`."""
        return self.ranks.share_of(self.recipe)

    @property
    def backends(self) -> tuple[str, ...]:
        """What is tried, one after the other, until one does not fail."""
        return default_backends(self.device) if self.backend == AUTO else (self.backend,)

    def with_data(self, data: DataFacts) -> "Setup":
        """The setup of runs on `data`.

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
    """All that decides how runs of a recipe are done on a data set and a device."""

    data: DataFacts
    plan: Plan
    """Steps and tables of the recipe on so many images."""
    kernels: dict[str, str]
    """The provider of each operation."""

    @property
    def requested(self) -> dict[str, str]:
        """The backend and the kernels as they were asked for, such as `auto`."""
        return {"backend": self.backend, "kernels": self.recipe.kernels}


def default_recipe(device: torch.device) -> str:
    """Name of the recipe that suits `device`."""
    return "airbench94" if device.type == "cuda" else "pocket"


def chosen_recipe(name: str | None, settings: Iterable[str] | None, device: str, backend: str = AUTO) -> PlacedRecipe:
    """What the options `--recipe`, `--set`, `--device` and `--backend` ask for.

    Args:
        name: of a recipe, or `my_file.py:function`; none: the one that suits the device.
        settings: `key=value`; none: no changes.
        device: auto, cpu, cuda or cuda:0.
        backend: one of `backends.BACKENDS`, or auto.

    Raises:
        UserError: any of them is wrong, or this machine cannot do it.
    """
    place = pick_device(device)
    return place_recipe(recipe_called(name or default_recipe(place), settings or ()), place, backend)


def place_recipe(
    recipe: Recipe, device: torch.device, backend: str = AUTO, outside_kernels: Mapping[str, str] | None = None
) -> PlacedRecipe:
    """`recipe` on `device`, which `pick_device` gave, with `outside_kernels` as `load_kernels` gave them.

    Raises:
        UserError: a backend or kernels that this machine cannot run.
    """
    check_backend(backend, device)
    dtype = pick_dtype(recipe, device)
    check_kernels(recipe, device, dtype)
    return PlacedRecipe(
        recipe=recipe, device=device, backend=backend, dtype=dtype, outside_kernels=outside_kernels or {}
    )


def set_up(recipe: Recipe, data: DataFacts, device: torch.device, backend: str = AUTO) -> Setup:
    """`place_recipe` and its `with_data` in one."""
    return place_recipe(recipe, device, backend).with_data(data)
