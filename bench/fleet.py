"""A fleet: ranks that share the runs of a pool, each on its own device; see `engine.ranks`.

Runs are dealt through the launcher's store. Whoever is free takes the next number from a counter there, so that a slow
rank gets fewer runs. A finished run goes back through the store as its record. Rank 0, the leader, alone writes the
file: a thread of it adds each record as soon as it arrives, also while the leader trains. So every finished run is in
the file whichever rank dies.

A rank that dies costs its run. If the launcher lets the others go on, the leader does that run at the end. torchrun
stops all ranks instead: the leader adds what has arrived, and the pool goes on when the command is given again, with
any number of ranks.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from speedyresnet.engine.ranks import launchers_store

from .pool import check_kind

POLL_SECONDS = 0.1
"""From one look into the store to the next."""
PATIENCE_RUNS = 10.0
"""How long the leader waits for the last runs of the others before it does them too, in runs of its own."""
LEAST_PATIENCE_SECONDS = 60.0
UNKNOWN_PATIENCE_SECONDS = 600.0
"""The same where the leader has done no run and cannot know how long one takes."""

Run = tuple[int, str]
"""Seed and arm."""
Work = Callable[[int, str], dict[str, Any]]
"""Trains a seed of an arm and returns the record as it is stored. KeyboardInterrupt: it was interrupted."""
Keep = Callable[[dict[str, Any], str], None]
"""Adds the record of an arm to the pool."""
Kinds = Mapping[str, Mapping[str, Any]]
"""By arm what all its runs have in common."""


def _store_of(purpose: str) -> Any:
    """A part of the launcher's store."""
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # documented, but not in its __all__

    return PrefixStore(f"speedyresnet/{purpose}", launchers_store())


def _awaited(store: Any, key: str) -> Any:
    """The value that another rank sets, once it is there."""
    while not store.check([key]):
        time.sleep(POLL_SECONDS)
    return json.loads(store.get(key))


class Announcements:
    """What the leader of a command with several pools tells the others to do next, one thing after the other."""

    def __init__(self) -> None:
        self._store, self._count = _store_of("announcements"), 0

    def send(self, name: str | None) -> None:
        """Tell the others, who may still be busy, what comes next; none: there is nothing more to do."""
        self._store.set(str(self._count), json.dumps(name))
        self._count += 1

    def __iter__(self) -> Iterator[str]:
        """All that the leader sends, each when it is there."""
        while (name := _awaited(self._store, str(self._count))) is not None:
            self._count += 1
            yield name


class Fleet:
    """The part of this rank in the runs of one pool.

    Args:
        out: the file of the pool, by which the ranks of one command tell pools apart.
    """

    def __init__(self, out: Path) -> None:
        self._out, self._store = out, _store_of(f"pool/{out}")
        self._seconds = list[float]()
        """What the runs of this rank took, of the wall clock."""

    def follow(self, kinds: Kinds, work: Work) -> None:
        """Do the runs that are dealt to this rank, until there are none left.

        Raises:
            UserError: runs of this rank would be of another kind than those of the leader, as on another GPU.
        """
        plan = _awaited(self._store, "plan")
        for arm, kind in kinds.items():
            check_kind(self._out, "runs", plan["kinds"][arm], json.loads(json.dumps(kind)))
        self._do_dealt(plan["runs"], work)

    def lead(self, runs: Sequence[Run], kinds: Kinds, work: Work, keep: Keep) -> None:
        """Deal `runs`, do those that fall to this rank, and `keep` those of all ranks, in the order of their ends."""
        self._store.set("plan", json.dumps({"runs": runs, "kinds": kinds}))
        missing, over = dict(enumerate(runs)), threading.Event()
        with ThreadPoolExecutor(1) as threads:
            collecting = threads.submit(self._collect, missing, keep, over)
            try:
                self._do_dealt(runs, work)
                while missing and not collecting.done():
                    self._wait_for_others(missing, work)
            finally:
                over.set()
                collecting.result()

    def _do_dealt(self, runs: Sequence[Run], work: Work) -> None:
        """Take the next run of the pool and do it, until all are dealt."""
        while (number := self._store.add("dealt", 1) - 1) < len(runs):
            self._do(number, runs[number], work)

    def _do(self, number: int, run: Run, work: Work) -> None:
        started = time.monotonic()
        self._store.set(f"run/{number}", json.dumps(work(*run)))
        self._seconds.append(time.monotonic() - started)

    def _collect(self, missing: dict[int, Run], keep: Keep, over: threading.Event) -> None:
        """Keep each of the `missing` runs once it has arrived, and take it out; after `over` look a last time."""
        last = False
        while missing and not last:
            last = over.wait(POLL_SECONDS)
            for number in [each for each in missing if self._store.check([f"run/{each}"])]:
                keep(json.loads(self._store.get(f"run/{number}")), missing[number][1])
                del missing[number]

    def _wait_for_others(self, missing: Mapping[int, Run], work: Work) -> None:
        """Wait until one of the others has sent a run; after too long a time do the first that is missing here."""
        waits = max(LEAST_PATIENCE_SECONDS, PATIENCE_RUNS * max(self._seconds)) if self._seconds else None
        deadline, before = time.monotonic() + (waits or UNKNOWN_PATIENCE_SECONDS), len(missing)
        while len(missing) == before and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if len(missing) == before:
            number = next(iter(missing))
            self._do(number, missing[number], work)
