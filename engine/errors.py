"""Errors in user input, and notes about it. The command line prints either as one line.

After an error it exits with code 2.
"""

import difflib
import warnings
from collections.abc import Iterable


def one_line(text: str) -> str:
    """Return `text` with line breaks and non-printable characters replaced by spaces, and spaces collapsed."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


class UserError(ValueError):
    """Error in user input. The message is one line that names the fault and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class Note(UserWarning):
    """Warning about user input that is not an error."""


def note(message: str) -> None:
    """Give the user a one-line message: on standard error in the command line, as a warning in Python."""
    warnings.warn(one_line(message), Note, stacklevel=3)


def nearest_names(name: str, names: Iterable[str]) -> str:
    """Return a hint that lists those of `names` similar to `name`, or else the three least dissimilar ones."""
    name, names = name[:100], sorted(names)
    close = difflib.get_close_matches(name, names, n=3) or difflib.get_close_matches(name, names, n=3, cutoff=0.0)
    return f"did you mean {' or '.join(close)}?" if close else "there is none"
