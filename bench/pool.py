"""A pool of runs in a JSON Lines file: one run record a line, all of one recipe, data set, machine and plan.

The number of runs is fixed when the pool is begun, and every seed is run once. A pool that was cut off, even by a kill,
goes on where it ended: a line that is not whole is a run that was not finished, and its seed is run again.
"""

import contextlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from speedyresnet.engine.errors import UserError
from speedyresnet.engine.files import locked, refusals_explained
from speedyresnet.engine.record import SCHEMA, RunRecord

_LINE_START = f'{{"schema": "{SCHEMA}"'.encode()
"""How every line of a pool begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """What was decided before the first run."""

    runs: int
    first_seed: int
    validation: int
    """Training images held out and tested on instead of the test set; 0: the test set."""

    @property
    def seeds(self) -> range:
        """All seeds of the pool."""
        return range(self.first_seed, self.first_seed + self.runs)


def read_pool(path: Path) -> list[dict[str, Any]]:
    """The run records in `path`, in their order; none where there is no file. An unfinished last line is left out.

    Raises:
        UserError: a line that is no run record of a pool.
    """
    if not path.exists():
        return []
    *lines, unfinished = path.read_bytes().split(b"\n")
    if not (unfinished.startswith(_LINE_START) or _LINE_START.startswith(unfinished)):
        raise UserError(f"{path} is no pool of runs; give another --out")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            whole = record["schema"] == SCHEMA and type(record["seed"]) is int and len(_identity(record)) > 0
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            whole = False
        if not whole:
            raise UserError(f"{path}: line {number} is no run of a pool; give another --out")
        records.append(record)
    return records


def _identity(record: dict[str, Any]) -> dict[str, Any]:
    """What all runs of a pool have in common, by the words a user knows it by."""
    return {
        "recipe hash": record["recipe"]["hash"],
        "data": record["data"]["sha256"],
        "device": record["device"],
        "GPU": record["environment"]["gpu"],
        "torch": record["environment"]["torch"],
        "backend": record["backend"],
        "dtype": record["dtype"],
        "kernels": record["kernels"],
    } | {f"--{key.replace('_', '-')}": value for key, value in record["pool"].items()}


@contextlib.contextmanager
def open_pool(path: Path, plan: PoolPlan, first: RunRecord) -> Iterator["Pool"]:
    """The pool in the file `path`, which is made if it is not there; nobody else can add to it within.

    Args:
        path: the JSON Lines file.
        plan: what was decided beforehand.
        first: the record of a run that has not begun, to compare with what the file holds.

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
        _check_kind(path, records, _identity(first.to_dict() | {"pool": asdict(plan)}))
        file.truncate(path.read_bytes().rfind(b"\n") + 1)
        yield Pool(path, plan, records, file)


def _check_kind(path: Path, records: list[dict[str, Any]], wanted: dict[str, Any]) -> None:
    """Raise UserError where a run is of another kind than `wanted`."""
    for record in records:
        for key, value in _identity(record).items():
            if value != wanted.get(key):
                raise UserError(
                    f"{path} holds runs with {key} {value}, not {wanted.get(key)}: "
                    f"a pool is of one kind and its size is fixed beforehand; give another --out"
                )


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool that is open for further runs; see `open_pool`."""

    path: Path
    plan: PoolPlan
    records: list[dict[str, Any]]
    file: io.FileIO

    def missing_seeds(self) -> list[int]:
        """Seeds that have not been run yet."""
        done = {record["seed"] for record in self.records}
        return [seed for seed in self.plan.seeds if seed not in done]

    def add(self, record: RunRecord) -> None:
        """Append a run and wait until it is on the disk. Raises UserError where the operating system refuses."""
        stored = json.loads(record.to_json()) | {"pool": asdict(self.plan)}
        rest = (json.dumps(stored) + "\n").encode()
        with refusals_explained(self.path):
            while rest:  # a disk that gets full takes a part
                rest = rest[self.file.write(rest) :]
            os.fsync(self.file.fileno())
        self.records.append(stored)
