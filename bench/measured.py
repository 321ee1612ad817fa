"""Measurements of runs, one row per group; README's table of them is generated here from the committed records."""

import html
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from speedyresnet.engine.errors import UserError
from speedyresnet.engine.record import claim_told, machine_name

from .record import VIEWS, Clock, clock_seconds
from .statistics import Interval, mean_interval

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
COLUMNS = ("recipe", "machine", "accuracy, mean of n (± 95 %)", "claimed", "train", "n", "record")


@dataclass(frozen=True, slots=True)
class RunGroup:
    """Runs that share recipe, data set, machine, way of running and commit."""

    records: list[dict[str, Any]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    """Files that hold the runs, without duplicates."""

    @property
    def recipe(self) -> str:
        """Name of the recipe with its hash, which distinguishes modified versions."""
        recipe = self.records[0]["recipe"]
        return f"{recipe['name']} {recipe['hash'][:8]}"

    @property
    def machine(self) -> str:
        """Name of the machine, see `machine_name`."""
        return machine_name(self.records[0]["environment"])

    @property
    def commit(self) -> str | None:
        """Commit of the code; None for an installed wheel."""
        commit: str | None = self.records[0]["environment"]["commit"]
        return commit

    @property
    def view(self) -> str:
        """The recipe's evaluation view."""
        return str(self.records[0]["recipe"]["evaluation"]["view"])

    def accuracies(self, view: str) -> list[float]:
        """Return accuracies in percent of the test images; empty if the view was not measured."""
        return [100 * float(each["accuracy"][view]) for each in self.records if each["accuracy"][view] is not None]

    def seconds(self, clock: Clock) -> list[float]:
        """Return the seconds of each run by `clock`."""
        return [clock_seconds(each, clock) for each in self.records]

    @property
    def count(self) -> str:
        """Number of runs; for a pool that was cut off, also how many were planned."""
        done, pool = len(self.records), self.records[0].get("pool")
        return f"{done} of {pool['runs']}" if pool and pool["runs"] > done else str(done)


def run_groups(pools: Iterable[tuple[Path, list[dict[str, Any]]]]) -> list[RunGroup]:
    """Group the completed runs of files by what they have in common; diverged runs count, interrupted ones do not."""
    groups: dict[tuple[str, ...], RunGroup] = {}
    for path, records in pools:
        for each in records:
            if each["status"] != "interrupted":
                what = (each["recipe"]["name"], each["recipe"]["hash"], each["data"]["sha256"])
                how = (each["device"], each["backend"], each["dtype"], machine_name(each["environment"]))
                group = groups.setdefault((*what, *how, str(each["environment"]["commit"])), RunGroup())
                group.records.append(each)
                if path not in group.files:
                    group.files.append(path)
    return list(groups.values())


def told(interval: Interval) -> str:
    """Format the mean with four digits, with its margin if there is one."""
    digits = max(0, 4 - len(str(int(abs(interval.mean)))))
    margin = "" if interval.upper is None else f" ± {interval.upper - interval.mean:.{digits}f}"
    return f"{interval.mean:.{digits}f}{margin}"


def _range(values: Sequence[float]) -> str:
    """Format the minimum and maximum with three digits."""
    return " to ".join(dict.fromkeys(f"{value:.3g}" for value in (min(values), max(values))))


def measured_rows(groups: Sequence[RunGroup]) -> list[list[str]]:
    """Return the cells under all COLUMNS but the last, one row per group.

    Recipes that share a name but differ otherwise show their hash. A machine's name is followed by the backend if that
    is not "eager".
    """
    kinds = {group.recipe for group in groups}
    rows = []
    for group in groups:
        name = group.records[0]["recipe"]["name"]
        alone = sum(kind.rpartition(" ")[0] == name for kind in kinds) == 1
        found = {view.replace("_", " "): group.accuracies(view) for view in VIEWS}
        accuracies = [f"{told(mean_interval(values))} % {view}" for view, values in found.items() if values]
        backend = group.records[0]["backend"]
        machine = group.machine if backend == "eager" else f"{group.machine}, {backend}"
        cells = [name if alone else group.recipe, machine, ", ".join(accuracies)]
        cells.append(claim_told(group.records[0]["recipe"]["claim"]))
        rows.append([*cells, f"{_range(group.seconds('train'))} s", group.count])
    return rows


def _markdown(text: str) -> str:
    """Return `text`, which may come from anyone, as the content of one cell."""
    return " ".join(html.escape(text, quote=False).replace("|", "&#124;").split())


def measured_markdown(groups: Sequence[RunGroup], folder: Path) -> str:
    """Return the table as Markdown for a file in `folder`, the fastest runs first."""
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    groups = sorted(groups, key=lambda group: min(group.seconds("train")))
    for group, cells in zip(groups, measured_rows(groups), strict=True):
        links = [f"[runs]({quote(os.path.relpath(file, folder))})" for file in group.files]
        lines.append([*map(_markdown, cells), ", ".join(links)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def readme_with_table(readme: Path, groups: Sequence[RunGroup]) -> str:
    """Return the content of the Markdown file `readme` with a new table between its two markers.

    Raises:
        UserError: the file cannot be read or does not have each marker once, or there are no groups.
    """
    if not readme.is_file():
        raise UserError(f"--readme {readme}: no such file")
    before, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in before + after:
        raise UserError(f"--readme {readme}: put {BEGIN} and, below, {END} into it, once each")
    if not groups:
        raise UserError(f"--readme {readme}: none of the files holds completed runs; give some")
    return "\n".join([before + BEGIN, measured_markdown(groups, readme.parent), END + after])
