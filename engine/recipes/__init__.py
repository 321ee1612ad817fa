"""Registry of the recipes that come with the package.

Every module here lists its functions in `RECIPES` and, if any, its groups in `GROUPS`.
"""

import functools
import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType

from ..errors import UserError, nearest_names
from ..python_files import failures_explained, file_of, function_of
from ..recipe import Group, GroupFunction, Recipe, RecipeFunction
from ..recipe_checks import checked_recipe
from ..settings import with_settings


def _modules() -> list[ModuleType]:
    return [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]


@functools.cache
def registered_recipes() -> dict[str, RecipeFunction]:
    """Return the functions of all modules in this folder, by the name of the recipe they return."""
    return {function().name: function for module in _modules() for function in module.RECIPES}


@functools.cache
def registered_groups() -> dict[str, GroupFunction]:
    """Return the functions of all modules in this folder, by the name of the group they return."""
    return {function().name: function for module in _modules() for function in getattr(module, "GROUPS", ())}


def recipe(name: str, settings: Iterable[str] = ()) -> Recipe:
    """Return the recipe called `name`, or made by `my_file.py:function`, with `a.b=value` settings applied.

    Raises:
        UserError: unknown name, unusable file or function, unknown or ill-typed setting.

    Examples:
        >>> import dataclasses
        >>> from speedyresnet.engine import recipe
        >>> made = recipe("airbench94", ["epochs=12", "net.widths=64,256,384"])
        >>> made.name, made.epochs, made.batch_size
        ('airbench94', 12.0, 1024)
        >>> made.net.widths, made.net.activation
        ((64, 256, 384), 'gelu')
        >>> made.hash == recipe("airbench94").hash
        False
        >>> other = dataclasses.replace(made, name="mine", epochs=8.0)
        >>> other.name, other.epochs
        ('mine', 8.0)
        >>> recipe("airbench94", ["epoch=12"])
        Traceback (most recent call last):
        speedyresnet.engine.errors.UserError: unknown setting 'epoch': did you mean epochs...
    """
    made = _recipe_by_name(name) if file_of(name) is None else _recipe_from_file(name)
    return with_settings(made, settings)


def _recipe_by_name(name: str) -> Recipe:
    functions = registered_recipes()
    if name in functions:
        return functions[name]()
    groups = [function() for function in registered_groups().values()]
    members = {each.name: each for group in groups for each in group.members}
    if name not in members:
        hint = nearest_names(name, [*functions, *members])
        raise UserError(f"unknown recipe {name!r}: {hint} (your own: --recipe file.py:function)")
    return members[name]


def _recipe_from_file(reference: str) -> Recipe:
    function = function_of(reference, "recipe")
    with failures_explained(f"recipe {reference}"):
        made = function()
    if not isinstance(made, Recipe):
        raise UserError(f"{reference} returned {type(made).__name__}, not a speedyresnet.engine.Recipe")
    return checked_recipe(made)


def group(name: str) -> Group:
    """Return the group called `name`.

    Raises:
        UserError: there is no group of that name.
    """
    functions = registered_groups()
    if name not in functions:
        raise UserError(f"unknown group {name!r}: {nearest_names(name, functions)}")
    return functions[name]()
