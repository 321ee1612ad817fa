"""Entry point of `python -m speedyresnet.engine`: the command line without the bench commands."""

from .cli import app, run_command_line

run_command_line(app)
