"""Settings, `part.key=value`, with which `--set` changes a recipe."""

import dataclasses
import typing
from collections.abc import Iterable
from typing import Any

from .errors import UserError, nearest_names
from .recipe import Recipe
from .recipe_checks import check_values, checked_recipe
from .typed_values import parsed_text


def with_settings(base: Recipe, settings: Iterable[str]) -> Recipe:
    """Return `base` with each `key=value` or `part.key=value` of `settings` replaced.

    Raises:
        UserError: a key is unknown (names the nearest ones), or a value has the wrong type or is out of range.
    """
    base = checked_recipe(base)
    known = setting_names(Recipe)
    for setting in settings:
        key, equals, text = (part.strip() for part in str(setting).partition("="))
        if not equals:
            raise UserError(f"--set {setting}: write it as key=value, for example --set epochs=2")
        if key not in known:
            raise UserError(f"unknown setting {key!r}: {nearest_names(key, known)}")
        base = _replaced(base, key.split("."), text, key)
    check_values(base)
    return base


def _replaced(part: Any, path: list[str], text: str, key: str) -> Any:
    name, *rest = path
    hint = typing.get_type_hints(type(part))[name]
    value = _replaced(getattr(part, name), rest, text, key) if rest else parsed_text(text, hint, key)
    return dataclasses.replace(part, **{name: value})


def setting_names(kind: type, prefix: str = "") -> list[str]:
    """Return all keys that `--set` accepts, dotted."""
    names = []
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            names += setting_names(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif name not in ("claim", "faithful", "mended"):
            names.append(prefix + name)
    return names
