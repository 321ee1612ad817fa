"""Conversion to the types of dataclass fields: from parsed JSON, Python or the text of a setting."""

import contextlib
import dataclasses
import re
import reprlib
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal

from .errors import UserError


def typed_value(value: Any, hint: Any, key: str) -> Any:
    """Convert `value`, from Python or parsed JSON, to the type `hint`; `key` is its dotted name, empty for a recipe."""
    kinds = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return None if value is None else typed_value(value, _without_none(kinds), key)
    if dataclasses.is_dataclass(hint):
        return _typed_parts(value, hint, key)
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(typed_value(item, kinds[0], key) for item in value)
    # Compared, because an integer can be too large for a float; NaN fails every comparison.
    if hint is float and isinstance(value, float | int) and type(value) is not bool and abs(value) < 1e300:
        return float(value)
    fits = isinstance(value, str) and value in kinds if typing.get_origin(hint) is Literal else type(value) is hint
    if not fits or hint is float:
        raise UserError(f"{key} must be {_in_words(hint)}, not {reprlib.repr(value)}")
    return value


def _typed_parts(value: Any, hint: Any, key: str) -> Any:
    hints = typing.get_type_hints(hint)
    parts = {name: getattr(value, name) for name in hints} if isinstance(value, hint) else value
    needed = {each.name for each in dataclasses.fields(hint) if each.default is each.default_factory}  # both missing
    if not isinstance(parts, dict) or not needed <= set(parts):
        raise UserError(f"{key or 'a recipe'} must be a {hint.__name__}, not {type(value).__name__}")
    if unknown := set(parts) - set(hints):
        raise UserError(f"{key or 'a recipe'} has an unknown setting {reprlib.repr(min(unknown, key=str))}")
    before = f"{key}." if key else ""
    return hint(**{name: typed_value(part, hints[name], before + name) for name, part in parts.items()})


def parsed_text(text: str, hint: Any, key: str) -> Any:
    """Parse `text` as the type `hint`."""
    kinds = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return None if text.lower() == "none" else parsed_text(text, _without_none(kinds), key)
    if typing.get_origin(hint) is tuple:
        items = text.strip("()[]").removesuffix(",")
        return tuple(parsed_text(item.strip(), kinds[0], key) for item in items.split(",")) if items.strip() else ()
    if hint is str or text in kinds:
        return text
    if hint is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    # Python would also accept 1_000 and the digits of other scripts.
    if hint in (int, float) and re.fullmatch(r"[-+.0-9a-zA-Z]+", text):
        with contextlib.suppress(ValueError):
            return hint(text)
    raise UserError(f"--set {key}={text}: expected {_in_words(hint)}")


def _without_none(kinds: Iterable[Any]) -> Any:
    return next(kind for kind in kinds if kind is not types.NoneType)


def _in_words(hint: Any) -> str:
    """Describe a value of the type `hint`."""
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(typing.get_args(hint))}"
    if typing.get_origin(hint) is tuple:
        return "a list of texts" if str in typing.get_args(hint) else "a list of numbers"
    return {bool: "true or false", int: "an integer", float: "a number"}.get(hint, "text")
