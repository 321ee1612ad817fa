"""The recipes that come with the package: every module here lists its functions in `RECIPES` and, if any, `GROUPS`."""

import functools
import importlib
import pkgutil
from types import ModuleType

from ..recipe import GroupFunction, RecipeFunction


def _modules() -> list[ModuleType]:
    return [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]


@functools.cache
def registered_recipes() -> dict[str, RecipeFunction]:
    """The functions of all modules in this folder, by the name of the recipe they return."""
    return {function().name: function for module in _modules() for function in module.RECIPES}


@functools.cache
def registered_groups() -> dict[str, GroupFunction]:
    """The functions of all modules in this folder, by the name of the group they return."""
    return {function().name: function for module in _modules() for function in getattr(module, "GROUPS", ())}
