"""The one exception for mistakes in what the user gave; the command line prints it as one line and exits with 2."""


def one_line(text: str) -> str:
    """`text` without line breaks and whatever else a terminal would not just show; spaces are never doubled."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


class UserError(ValueError):
    """Wrong input. The message is one line that names the thing and what to do about it."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))
