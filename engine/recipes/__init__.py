"""The recipes that come with the package: every module here lists its functions in `RECIPES`."""

import functools
import importlib
import pkgutil

from ..recipe import RecipeFunction


@functools.cache
def registered_recipes() -> dict[str, RecipeFunction]:
    """The functions of all modules in this folder, by the name of the recipe they return."""
    found: dict[str, RecipeFunction] = {}
    for module in pkgutil.iter_modules(__path__):
        for function in importlib.import_module(f"{__name__}.{module.name}").RECIPES:
            found[function().name] = function
    return found
