"""Ranks: the processes that a launcher such as torchrun starts, each with a device of its own.

The launcher tells a process its rank in environment variables, and holds a store through which ranks exchange small
values. Without a launcher there is one rank, and nothing is connected.

Ranks may train one net together. Each takes every size-th image of a batch, from the number of its rank on, and
computes the gradients of these. The sums over the ranks are the gradients of the batch, so all ranks take the same step
and keep the same weights. Batch norm normalises with the statistics of the images of a rank; the mean over the ranks
becomes the running statistics. That is, to rounding, one process with ghost batch norm of as many groups as ranks.
"""

import contextlib
import dataclasses
import functools
import gc
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from .errors import UserError
from .recipe import Recipe

CONNECT_SECONDS = 300.0
"""How long a rank waits for the others to start."""
EXCHANGE_SECONDS = 1800.0
"""How long a rank waits for the others in an exchange of tensors, such as the first, before which they compile."""


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

    def batch_norm_groups(self, recipe: Recipe) -> int:
        """The groups of ghost batch norm in a whole batch: at least one a rank, and as many on each."""
        return math.lcm(recipe.net.batch_norm_groups, self.size)

    def share_of(self, recipe: Recipe) -> Recipe:
        """What a rank does of `recipe`: its share of the images of a batch, and of the groups of batch norm.

        Raises:
            UserError: the ranks cannot have equal shares.
        """
        if self.size == 1:
            return recipe
        groups = self.batch_norm_groups(recipe)
        if recipe.batch_size % groups:
            raise UserError(
                f"batch_size={recipe.batch_size} cannot be divided among {self.size} ranks with "
                f"{groups // self.size} groups of batch norm each; set it to a multiple of {groups}"
            )
        net = dataclasses.replace(recipe.net, batch_norm_groups=groups // self.size)
        return dataclasses.replace(recipe, batch_size=recipe.batch_size // self.size, net=net)


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


@contextlib.contextmanager
def connected(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """Within, the ranks can exchange tensors: on `device` and, with Gloo, on CPUs. One rank is not connected."""
    if ranks.size == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(seconds=EXCHANGE_SECONDS))
    try:
        yield
    finally:
        gc.collect()  # NCCL does not end while there are CUDA graphs with its kernels
        distributed.destroy_process_group()


def summed(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The sum over all ranks of each of the tensors, in one exchange of a buffer of `dtype`; torch.compile traces it.

    Args:
        tensors: of the same shapes on all ranks.
        dtype: to sum in.

    Returns:
        Tensors of the dtypes, shapes and memory formats of those given.
    """
    buffer = torch.cat([each.flatten().to(dtype) for each in tensors])
    distributed.all_reduce(buffer)
    parts = buffer.split([each.numel() for each in tensors])
    return [torch.empty_like(each).copy_(part.view(each.shape)) for each, part in zip(tensors, parts, strict=True)]


def give_to_all(tensors: Iterable[Tensor]) -> None:
    """Let the tensors of all ranks be those of rank 0."""
    for each in tensors:
        distributed.broadcast(each, 0)


def any_rank(value: bool) -> bool:
    """Whether `value` is true on any rank; the same on all of them."""
    found = torch.tensor([value], dtype=torch.int32)
    distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
    return bool(found)


def check_same(tensors: Iterable[Tensor]) -> None:
    """Raise UserError where the tensors are not the same, bit for bit, on all ranks."""
    digest = hashlib.sha256()
    for each in tensors:
        digest.update(each.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    digests: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(digests, digest.hexdigest())
    others = [str(rank) for rank, each in enumerate(digests) if each != digests[0]]
    if others:
        raise UserError(
            f"the weights of ranks {', '.join(others)} are no longer those of rank 0: their devices compute "
            f"differently; train on devices of one kind"
        )
