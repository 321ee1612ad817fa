"""A pool of runs in a JSON Lines file: one run record a line, all of one recipe, data set, machine and plan.

The number of runs is fixed when the pool is begun, and every seed is run once. A pool that was cut off, even by a kill,
goes on where it ended: a line that is not whole is a run that was not finished, and its seed is run again.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from speedyresnet.engine.errors import UserError
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


class Pool:
    """The file of a pool, open for further runs; use it as a context manager.

    Args:
        path: the JSON Lines file; made if it is not there.
        plan: what was decided beforehand.
        first: the record of a run that has not begun, to compare with what the file holds.

    Raises:
        UserError: the file holds runs of another recipe, data set, machine or plan.
    """

    def __init__(self, path: Path, plan: PoolPlan, first: RunRecord) -> None:
        self.path, self.plan = path, plan
        self.records = read_pool(path)
        wanted = _identity(first.to_dict() | {"pool": asdict(plan)})
        for record in self.records:
            for key, value in _identity(record).items():
                if value != wanted.get(key):
                    raise UserError(
                        f"{path} holds runs with {key} {value}, not {wanted.get(key)}: "
                        f"a pool is of one kind and its size is fixed beforehand; give another --out"
                    )
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._file.truncate(path.read_bytes().rfind(b"\n") + 1)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def missing_seeds(self) -> list[int]:
        """Seeds that have not been run yet."""
        done = {record["seed"] for record in self.records}
        return [seed for seed in self.plan.seeds if seed not in done]

    def add(self, record: RunRecord) -> None:
        """Append a run and wait until it is on the disk."""
        stored = json.loads(record.to_json()) | {"pool": asdict(self.plan)}
        self._file.write((json.dumps(stored) + "\n").encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.records.append(stored)
