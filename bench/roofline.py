"""Measured ceilings of this machine: copy bandwidth and matrix-multiplication rate.

The floor of anything is max(bytes / bandwidth, FLOPs / rate). The bandwidth is that of copies that move at least as
many bytes: where data fits a cache of a CPU, the cache's speed is the ceiling, not the memory's. On a GPU copies start
from a flushed cache, as the cases of `bench kernels` do (see `timers.py`); within a step an operation may find the
output of the previous one in the second-level cache, so a part of `bench profile` can be faster than its floor.
Ceilings are the best of several rounds, with random data (a GPU multiplies zeros faster than it ever multiplies
weights).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .timers import Stopwatch, stopwatch

_COPY_MEBIBYTES = {"cpu": (0.25, 1, 4, 16, 64, 256), "cuda": (16, 64, 256, 1024)}
_MATRIX_SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
_ROUNDS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """Measured limits of one device."""

    copies: tuple[tuple[int, float], ...]
    """(bytes moved, bytes per second) of copies, smallest first; a copy reads and writes, and both count."""
    rates: dict[str, float]
    """FLOPs per second of a matrix multiplication, by dtype."""

    def bandwidth(self, size: float) -> float:
        """Return the bytes per second for moving `size` bytes: those of the fastest copy of at least as many bytes."""
        return max([rate for moved, rate in self.copies if moved >= size] or [self.copies[-1][1]])

    def rate(self, dtype: str) -> float:
        """Return the FLOPs per second in `dtype`; for one that was not measured, those of the first measured dtype."""
        return self.rates.get(dtype, next(iter(self.rates.values())))

    def floor(self, size: float, flops: float, dtype: str) -> float:
        """Return the minimum seconds for moving `size` bytes and doing `flops`."""
        return max(size / self.bandwidth(size), flops / self.rate(dtype))


def _best(watch: Stopwatch) -> float:
    return min(watch.sample() for _ in range(_ROUNDS))


def copy_bandwidth(size: int, device: torch.device) -> float:
    """Return the bytes per second of a copy that reads and writes `size` bytes in total."""
    source = torch.rand(size // 8, device=device)
    target = torch.empty_like(source)
    return size / _best(stopwatch(lambda: target.copy_(source), device))


def multiplication_rate(sizes: Sequence[int], dtype: torch.dtype, device: torch.device) -> float:
    """Return the FLOPs per second of the fastest square matrix multiplication among `sizes`, on random data."""
    rates = []
    for size in sizes:
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(left)
        multiply = functools.partial(torch.mm, left, right, out=out)
        rates.append(2 * size**3 / _best(stopwatch(multiply, device)))
    return max(rates)


def measured_ceilings(device: torch.device, dtypes: Sequence[torch.dtype]) -> Ceilings:
    """Measure the ceilings of `device`; takes a few seconds."""
    sizes = [int(2 * mebibytes * 2**20) for mebibytes in _COPY_MEBIBYTES[device.type]]
    matrices = _MATRIX_SIZES[device.type]
    return Ceilings(
        copies=tuple((size, copy_bandwidth(size, device)) for size in sizes),
        rates={str(d).removeprefix("torch."): multiplication_rate(matrices, d, device) for d in dtypes},
    )
