"""A pool of runs in a JSON Lines file: one run record a line, all of one data set, machine and plan.

All are of one recipe or, where variants are compared, of one recipe an arm. The number of runs and the arms are fixed
when the pool is begun, and every arm runs every seed once. A pool that was cut off, even by a kill, goes on where it
ended: a line that is not whole is a run that was not finished, and is run again.
"""

import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from speedyresnet.engine.errors import UserError
from speedyresnet.engine.files import locked, refusals_explained
from speedyresnet.engine.json_files import Schema, fault_in, json_lines, read_content
from speedyresnet.engine.record import SCHEMA, RunRecord

BASE = "base"
"""The arm that all others are compared with, and the only one where nothing is compared."""
_LINE_START = f'{{"schema": "{SCHEMA}"'.encode()
"""How every line of a pool begins."""
_NUMBER = float | None
_RUN: Schema = {
    "schema": str,
    "status": str,
    "recipe": {"name": str, "hash": str, "evaluation": {"view": str}},
    "data": {"name": str, "sha256": str},
    "seed": int,
    "device": str,
    "backend": str,
    "dtype": str,
    "kernels": dict,
    "environment": {"gpu": str | None, "torch": str},
    "seconds": {"prepare": _NUMBER, "train": _NUMBER, "total": _NUMBER},
    "accuracy": {"single_view": _NUMBER, "mirror": _NUMBER, "six_view": _NUMBER, "weights": str},
    "pool": {"runs": int, "first_seed": int, "validation": int},
}
"""What is read of a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """What was decided before the first run."""

    runs: int
    first_seed: int
    validation: int
    """Training images held out and tested on instead of the test set; 0: the test set."""
    variants: tuple[str, ...] = ()
    """Names of the other arms of a comparison."""

    @property
    def seeds(self) -> range:
        """All seeds of the pool."""
        return range(self.first_seed, self.first_seed + self.runs)

    @property
    def arms(self) -> tuple[str, ...]:
        """Of which each runs all seeds."""
        return BASE, *self.variants

    def ordered_runs(self) -> list[tuple[int, str]]:
        """Seed and arm of every run: seed by seed, each time another arm first, so that drift hits all arms alike."""
        shifts = ((seed, index % len(self.arms)) for index, seed in enumerate(self.seeds))
        return [(seed, arm) for seed, first in shifts for arm in self.arms[first:] + self.arms[:first]]

    def to_dict(self) -> dict[str, Any]:
        """What every run of the pool keeps of it; without variants where nothing is compared."""
        stored = asdict(self)
        variants = list(stored.pop("variants"))
        return stored | {"variants": variants} if variants else stored


def read_pool(path: Path) -> list[dict[str, Any]]:
    """The run records in `path`, in their order; none where there is no file. An unfinished last line is left out.

    Raises:
        UserError: a line that is no run record of a pool.
    """
    if not path.exists():
        return []
    *lines, unfinished = read_content(path).split(b"\n")
    if not (unfinished.startswith(_LINE_START) or _LINE_START.startswith(unfinished)):
        raise UserError(f"{path} is no pool of runs; give another --out")
    records = json_lines(path, lines, "it is no pool of runs; give another --out")
    for number, record in enumerate(records, start=1):
        fault = _fault_of_run(record)
        if fault:
            raise UserError(f"{path}: line {number} is no run of a pool: {fault}; give another --out")
    return records


def _fault_of_run(record: Any) -> str | None:
    """What keeps a line from being a run that ended; none where nothing does."""
    fault = fault_in(record, _RUN)
    if fault:
        return fault
    if record["schema"] != SCHEMA or record["status"] not in ("finished", "diverged"):
        return f"its schema is {record['schema']!r} and its status {record['status']!r}"
    variants = record["pool"].get("variants", [])
    fault = fault_in(variants, [str], "pool.variants")
    if fault is None and record.get("arm", None if variants else BASE) not in (BASE, *variants):
        fault = f"its arm is {record.get('arm')!r}"
    ended = {"seconds": dict.fromkeys(("prepare", "train", "evaluate", "total"), float)}
    return fault or fault_in(record, ended | {"accuracy": {record["recipe"]["evaluation"]["view"]: float}})


def _identity(record: dict[str, Any]) -> dict[str, Any]:
    """What all runs of an arm have in common, by the words a user knows it by.

    That is the kind of device, not its number, which differs between the ranks of a launcher.
    """
    return {
        "recipe hash": record["recipe"]["hash"],
        "data": record["data"]["sha256"],
        "device": record["device"].partition(":")[0],
        "GPU": record["environment"]["gpu"],
        "torch": record["environment"]["torch"],
        "backend": record["backend"],
        "dtype": record["dtype"],
        "kernels": record["kernels"],
    } | {f"--{key.replace('_', '-')}": value for key, value in record["pool"].items()}


@contextlib.contextmanager
def open_pool(path: Path, plan: PoolPlan, firsts: Mapping[str, RunRecord]) -> Iterator["Pool"]:
    """The pool in the file `path`, which is made if it is not there; nobody else can add to it within.

    Args:
        path: the JSON Lines file.
        plan: what was decided beforehand.
        firsts: by arm the record of a run that has not begun, to compare with what the file holds.

    Raises:
        UserError: another process has it open, or it holds runs of another recipe, data set, machine or plan.
    """
    with contextlib.ExitStack() as stack:
        with refusals_explained(path):
            try:
                file = stack.enter_context(locked(path, wait=False))
            except BlockingIOError:
                raise UserError(f"{path} is being written by another process; give another --out") from None
        records = read_pool(path)
        _check_runs(path, plan, records, kinds_of(plan, firsts))
        file.truncate(path.read_bytes().rfind(b"\n") + 1)
        yield Pool(path, plan, records, file)


def kinds_of(plan: PoolPlan, firsts: Mapping[str, RunRecord]) -> dict[str, dict[str, Any]]:
    """By arm what all its runs have in common; `firsts` are the records of runs that have not begun."""
    return {arm: _identity(first.to_dict() | {"pool": plan.to_dict()}) for arm, first in firsts.items()}


def _check_runs(
    path: Path, plan: PoolPlan, records: list[dict[str, Any]], wanted: Mapping[str, dict[str, Any]]
) -> None:
    """Raise UserError where a run is of another kind than is `wanted` of its arm, is not planned, or is there twice."""
    open_runs = set(plan.ordered_runs())
    for record in records:
        arm, seed = record.get("arm", BASE), record["seed"]
        check_kind(path, "runs", _identity(record), wanted.get(arm, wanted[BASE]))
        if (seed, arm) not in open_runs:
            raise UserError(f"{path} holds seed {seed} of {arm} twice, or it is not planned; give another --out")
        open_runs.remove((seed, arm))


def check_kind(path: Path, what: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise UserError where `found`, of `what` the file `path` holds, is not as `wanted`, key by key."""
    for key, value in found.items():
        if value != wanted.get(key):
            raise UserError(
                f"{path} holds {what} with {key} {value}, not {wanted.get(key)}: "
                f"what goes on there is of one kind and its size is fixed beforehand; give another --out"
            )


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool that is open for further runs; see `open_pool`."""

    path: Path
    plan: PoolPlan
    records: list[dict[str, Any]]
    file: io.FileIO
    unsaved: list[bytes] = field(default_factory=list)
    """Lines that the file was to hold, and lacks."""

    def missing_runs(self) -> list[tuple[int, str]]:
        """Seed and arm of the runs that are not in the file yet."""
        done = {(record["seed"], record.get("arm", BASE)) for record in self.records}
        return [run for run in self.plan.ordered_runs() if run not in done]

    def add(self, record: dict[str, Any], arm: str = BASE) -> None:
        """Append a run of an arm, the record as `to_json` stores it, and `save` it."""
        stored = record | {"pool": self.plan.to_dict()}
        if self.plan.variants:
            stored["arm"] = arm
        self.records.append(stored)
        self.unsaved.append((json.dumps(stored) + "\n").encode())
        self.save()

    def save(self) -> None:
        """Write the runs that the file lacks, and wait until they are on the disk.

        Raises:
            UserError: the system refuses. The file is as before, and the next call tries again.
        """
        with refusals_explained(self.path):
            while self.unsaved:
                end = os.fstat(self.file.fileno()).st_size
                try:
                    self._append(self.unsaved[0])
                except OSError:
                    self.file.truncate(end)
                    raise
                del self.unsaved[0]

    def _append(self, line: bytes) -> None:
        while line:  # a disk that gets full takes a part
            line = line[self.file.write(line) :]
        os.fsync(self.file.fileno())
