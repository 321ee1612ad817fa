"""Checks of options of public functions and modules; each raises ValueError that says what is allowed."""

import sys
from collections.abc import Iterable

_LARGEST = sys.float_info.max


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise ValueError if the option `name` is not one of `choices`."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{name} {value!r}: choose {', '.join(choices)}")


def check_integer(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raise ValueError if the option `name` is not an integer from `least` to `most`; None is no bound."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        bounds = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} {value!r}: give an integer {bounds}")


def check_number(name: str, value: object, most: float = _LARGEST) -> None:
    """Raise ValueError if the option `name` is not a finite number from 0 to `most`."""
    # Compared, because torch.compile cannot trace math.isfinite of a dynamic float; NaN fails every comparison.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        bounds = "of 0 or more" if most == _LARGEST else f"from 0 to {most:g}"
        raise ValueError(f"{name} {value!r}: give a finite number {bounds}")
