"""Mistakes in what the user gave, and notes about it. The command line prints either as one line.

After a mistake it exits with 2.
"""

import difflib
import warnings
from collections.abc import Iterable


def one_line(text: str) -> str:
    """`text` without line breaks and whatever else a terminal would not just show; spaces are never doubled."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


class UserError(ValueError):
    """Wrong input. The message is one line that names the thing and what to do about it."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class Note(UserWarning):
    """What the user should know about their input, though it is no mistake."""


def note(message: str) -> None:
    """Tell the user something of one line: on standard error in the command line, in Python as a warning."""
    warnings.warn(one_line(message), Note, stacklevel=3)


def nearest_names(name: str, names: Iterable[str]) -> str:
    """A hint that lists those of `names` that are like `name`, or else the three that are least unlike it."""
    name, names = name[:100], sorted(names)
    close = difflib.get_close_matches(name, names, n=3) or difflib.get_close_matches(name, names, n=3, cutoff=0.0)
    return f"did you mean {' or '.join(close)}?" if close else "there is none"
