"""The one exception for mistakes in what the user gave; the command line prints it as one line and exits with 2."""


class UserError(ValueError):
    """Wrong input. The message is one line that names the thing and what to do about it."""
