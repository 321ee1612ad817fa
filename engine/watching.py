"""Whoever watches a run: what the training loop tells, and to whom. `display.py` has those that show it to a person."""

from typing import Protocol

from .record import HistoryRow


class Display(Protocol):
    """Who wants to know how a run goes. Called from the training loop: `step` has to be quick."""

    def start(self, steps: int) -> None:
        """Training begins."""

    def step(self, step: int) -> None:
        """So many steps are issued."""

    def epoch(self, row: HistoryRow) -> None:
        """An epoch ended."""

    def note(self, text: str) -> None:
        """Something else is going on."""


class Silent:
    """A display that shows nothing."""

    def start(self, steps: int) -> None:
        """Training begins."""

    def step(self, step: int) -> None:
        """So many steps are issued."""

    def epoch(self, row: HistoryRow) -> None:
        """An epoch ended."""

    def note(self, text: str) -> None:
        """Something else is going on."""
