"""Ranks: the processes that a launcher such as torchrun starts, each with a device of its own.

The launcher tells a process its rank in environment variables, and holds a store through which ranks exchange small
values. Without a launcher there is one rank, and nothing is connected.
"""

import functools
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from .errors import UserError

CONNECT_SECONDS = 300.0
"""How long a rank waits for the others to start."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of how many processes this one is; one alone where there is no launcher."""

    rank: int = 0
    """The number of this process, from 0."""
    size: int = 1
    """The number of processes on all machines."""
    local_rank: int = 0
    """The number of this process on its machine, which is that of its GPU."""

    @property
    def leads(self) -> bool:
        """Whether this rank writes the files and prints; the others tell only errors."""
        return self.rank == 0


ALONE = Ranks()


def launched() -> Ranks:
    """The ranks of the launcher that started this process, from RANK, WORLD_SIZE and LOCAL_RANK.

    Raises:
        UserError: values that no launcher sets.
    """
    told = [os.environ.get(name) for name in ("RANK", "WORLD_SIZE")]
    if None in told:
        return ALONE
    rank, size, local_rank = (*told, os.environ.get("LOCAL_RANK", told[0]))
    try:
        ranks = Ranks(int(rank or ""), int(size or ""), int(local_rank or ""))
    except ValueError:
        raise UserError(f"RANK={rank} WORLD_SIZE={size} LOCAL_RANK={local_rank}: start ranks with torchrun") from None
    if not 0 <= ranks.rank < ranks.size or ranks.local_rank < 0:
        raise UserError(f"RANK={rank} WORLD_SIZE={size} LOCAL_RANK={local_rank}: start ranks with torchrun")
    return ranks


@functools.cache
def launchers_store() -> Any:
    """A connection to the store of the launcher, at MASTER_ADDR and MASTER_PORT, for which PyTorch has no public type.

    torchrun holds the store, so it outlives any rank; with other launchers rank 0 does.

    Raises:
        UserError: the launcher gives no address, or nobody answers there.
    """
    from torch.distributed.rendezvous import rendezvous

    try:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=CONNECT_SECONDS)))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the ranks find no store of their launcher ({error}); start them with torchrun") from error
    return store
