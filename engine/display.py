"""Output of a run for people: a live display on a terminal, plain lines elsewhere, and a final table."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from .record import HistoryRow, RunRecord, differences_told
from .watching import Display, Silent

_SECONDS_BETWEEN_LINES = 10.0


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def epoch_line(row: HistoryRow) -> str:
    """Format one line about an epoch."""
    parts = [
        f"epoch {row.epoch:3d}",
        f"step {row.step:5d}",
        f"loss {row.loss:.4f}",
        f"lr {row.lr:.4f}",
        f"train {_percent(row.train_accuracy)} %",
    ]
    if row.val_accuracy is not None:
        parts.append(f"val {_percent(row.val_accuracy)} %")
    if row.averaged_accuracy is not None:
        parts.append(f"averaged {_percent(row.averaged_accuracy)} %")
    return "  ".join([*parts, f"{row.seconds:7.2f} s"])


class PlainDisplay:
    """Display that prints a line after each epoch and one every ten seconds in between."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.steps = 0
        self.last_line = 0.0

    def start(self, steps: int) -> None:
        """Record the number of steps as training begins."""
        self.steps, self.last_line = steps, time.monotonic()

    def step(self, step: int) -> None:
        """Print the number of issued steps if the last line is ten seconds old."""
        if time.monotonic() - self.last_line >= _SECONDS_BETWEEN_LINES:
            self.note(f"step {step} of {self.steps}")

    def epoch(self, row: HistoryRow) -> None:
        """Print the line of a finished epoch."""
        self.note(epoch_line(row))

    def note(self, text: str) -> None:
        """Print `text`."""
        self.last_line = time.monotonic()
        print(text, file=self.file, flush=True)


class LiveDisplay:
    """Display with a progress bar below the lines of the epochs."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task = progress.add_task("getting ready", total=None)

    def start(self, steps: int) -> None:
        """Set the length of the bar as training begins."""
        self.progress.update(self.task, description="training", total=steps)

    def step(self, step: int) -> None:
        """Move the bar to the number of issued steps."""
        self.progress.update(self.task, completed=step)

    def epoch(self, row: HistoryRow) -> None:
        """Print the line of a finished epoch."""
        self.note(epoch_line(row))

    def note(self, text: str) -> None:
        """Print `text` above the bar."""
        self.progress.console.print(text, highlight=False)


class FileProgress:
    """Progress over a known number of items: a bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None
        self.last_line = time.monotonic()

    def __call__(self, done: int, total: int, text: str) -> None:
        """Show that `done` of `total` items are finished; `text` names the activity."""
        if self.console.is_terminal:
            self._show(done, total, text)
        elif time.monotonic() - self.last_line >= _SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            self.console.print(f"{text}: {done} of {total}", highlight=False)

    def _show(self, done: int, total: int, text: str) -> None:
        if self.bar is None:
            self.bar = _bar(self.console)
            self.bar.start()
            self.bar.add_task(text, total=total)
        self.bar.update(self.bar.task_ids[0], completed=done, total=total, description=text)

    def close(self) -> None:
        """Remove the bar from the terminal."""
        if self.bar is not None:
            self.bar.stop()


def _bar(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, refresh_per_second=4)


@contextmanager
def training_display(console: Console) -> Iterator[Display]:
    """Provide the display that suits `console`."""
    if console.quiet:
        yield Silent()
        return
    if not console.is_terminal:
        yield PlainDisplay(console.file)  # type: ignore[arg-type]
        return
    with _bar(console) as progress:
        yield LiveDisplay(progress)


def print_result(console: Console, record: RunRecord) -> None:
    """Print the final table of clocks and accuracies."""
    seconds, accuracy = record.seconds, record.accuracy
    names = ("build", "prepare", "train", "evaluate", "total", "wall")
    clocks = {name: _seconds(getattr(seconds, name)) for name in names}
    views = {"single view": accuracy.single_view, "mirror": accuracy.mirror, "six views": accuracy.six_view}
    found = {view: _percent(value) for view, value in views.items() if value is not None}
    ended = record.status + (f" at step {record.diverged_at_step}" if record.diverged_at_step else "")
    table = Table(title=f"{record.recipe.name} on {record.data['name']}, seed {record.seed}: {ended}")
    for name in ("clock", "seconds", "accuracy", "percent"):
        table.add_column(name, justify="right" if name in ("seconds", "percent") else "left")
    for clock, view in zip_longest(clocks.items(), found.items(), fillvalue=("", "")):
        table.add_row(*clock, *view)
    console.print(table)
    peak = record.memory["peak_bytes"]
    memory = f", {peak / 1e9:.2f} GB at most" if peak else ""
    rate = f", {record.images_seen / seconds.train:,.0f} images/s" if seconds.train else ""
    console.print(
        f"{record.steps} steps, {record.images_seen:,} images{rate}{memory}; accuracy of the "
        f"{accuracy.weights} weights; total = prepare + train + evaluate; wall: from the first of them to the last",
        highlight=False,
        soft_wrap=True,
    )
    if told := differences_told(record.to_dict()):
        console.print(told, highlight=False, soft_wrap=True)
