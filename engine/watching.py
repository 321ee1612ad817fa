"""Interface between the training loop and displays; `display.py` implements it for people."""

from typing import Protocol

from .record import HistoryRow


class Display(Protocol):
    """Receiver of a run's progress. Called from the training loop, so `step` must be fast."""

    def start(self, steps: int) -> None:
        """Handle the start of training."""

    def step(self, step: int) -> None:
        """Handle progress; `step` steps have been issued."""

    def epoch(self, row: HistoryRow) -> None:
        """Handle the end of an epoch."""

    def note(self, text: str) -> None:
        """Handle any other message."""


class Silent:
    """Display that shows nothing."""

    def start(self, steps: int) -> None:
        """Ignore the start of training."""

    def step(self, step: int) -> None:
        """Ignore progress."""

    def epoch(self, row: HistoryRow) -> None:
        """Ignore the end of an epoch."""

    def note(self, text: str) -> None:
        """Ignore the message."""
