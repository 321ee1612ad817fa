"""Limits on the values of dataclass fields, annotated beside their types, and their check.

>>> @dataclass
... class Net:
...     widths: Annotated[tuple[int, ...], Within(1, 65_536), Length(1, 16)] = (64, 256, 256)
"""

import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from .errors import UserError


@dataclass(frozen=True, slots=True)
class Within:
    """Minimum and maximum of a number, or of each number in a list."""

    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Length:
    """Minimum and maximum length of a list of numbers."""

    least: int
    most: int


Limit = TypeVar("Limit", Within, Length)


def check_limits(made: Any) -> None:
    """Raise UserError if a field of the dataclass `made`, or of a nested one, has a value outside its limits."""
    for key, value, allowed in _limited(made, Length, ""):
        if not allowed.least <= len(value) <= allowed.most:
            wanted = f"{allowed.least} to {allowed.most}" if allowed.least < allowed.most else f"{allowed.most}"
            raise UserError(f"{key} must be {wanted} numbers, not {len(value)}")
    for key, value, within in _limited(made, Within, ""):
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not within.least <= number <= within.most:
                raise UserError(f"{key} must be from {within.least} to {within.most}, not {number}")


def _limited(made: Any, kind: type[Limit], prefix: str) -> Iterator[tuple[str, Any, Limit]]:
    """Yield dotted key, value and limit of each field that has a limit of this kind."""
    for name, hint in typing.get_type_hints(type(made), include_extras=True).items():
        value = getattr(made, name)
        if dataclasses.is_dataclass(hint):
            yield from _limited(value, kind, f"{prefix}{name}.")
        for limit in getattr(hint, "__metadata__", ()):
            if isinstance(limit, kind):
                yield prefix + name, value, limit
