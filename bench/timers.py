"""Timing of functions: two ways to time one, and rounds that treat several of them fairly.

On a CPU it is wall-clock time over enough calls to fill a few milliseconds. On a GPU it is the time between two CUDA
events, with the second-level cache flushed before each call. The GPU is kept busy until the host has queued the whole
call; otherwise launches from Python, which take longer than most kernels, would be timed. The time that the GPU itself
takes to start a kernel is included.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

Function = Callable[[], object]
Sample = Callable[[], float]
"""Runs the function and returns its seconds per call."""

HOST_INCLUDED = "host included"
"""End of the method's name for a function that makes the GPU wait for the host."""
_ROUND_SECONDS = 5e-3
"""Minimum length of a wall-clock round, so that the clock's resolution and one interrupt do not matter."""
_PAUSES = tuple(100e-6 * 2**doublings for doublings in range(10))
"""Seconds that the GPU is kept busy: the next one if the host was late, the last one if none helps."""
_CYCLES_A_SECOND = 3e9
"""Upper bound of a GPU's clock rate; a slower GPU pauses longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds per call of one function."""

    seconds: float
    """Median over the rounds."""
    low: float
    """The true median is above this with 97.5 % confidence; the shortest round if there are fewer than six."""
    high: float
    """The true median is below this with 97.5 % confidence; the longest round if there are fewer than six."""
    rounds: int
    method: str
    """Description of how it was timed."""


@dataclass(frozen=True, slots=True)
class Stopwatch:
    """Function prepared for timing."""

    sample: Sample
    method: str


def wall_stopwatch(function: Function) -> Stopwatch:
    """Return a stopwatch by wall-clock time, for functions that have done their work when they return."""
    function()

    def seconds(calls: int) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - started) / calls

    quickest = min(seconds(1) for _ in range(3))
    calls = max(1, math.ceil(_ROUND_SECONDS / max(quickest, 1e-7)))
    return Stopwatch(lambda: seconds(calls), f"wall clock, {calls} calls a round")


@functools.cache
def cache_flusher(device: torch.device) -> Function:
    """Return a function that reads at least twice as many bytes as the GPU's second-level cache holds.

    It reads because written lines would stay in the cache and be written to memory while the timed function runs.
    """
    size = max(2 * torch.cuda.get_device_properties(device).L2_cache_size, 1 << 26)
    return torch.zeros(size // 4, device=device).sum


def event_seconds(function: Function, flush: Function, pause: float) -> tuple[float, bool]:
    """Return the seconds on the GPU's clock from before `function` to the end of its last kernel.

    Args:
        function: what to time.
        flush: called beforehand.
        pause: seconds that the GPU waits before it starts with the function.

    Returns:
        The seconds, and whether the host had queued everything by the start, so that the GPU never waited for the host.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush()
    torch.cuda._sleep(int(pause * _CYCLES_A_SECOND))  # a kernel that spins, on the same stream
    start.record()
    function()
    end.record()
    queued = not start.query()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e-3, queued


def cuda_stopwatch(function: Function, device: torch.device) -> Stopwatch:
    """Return a stopwatch by CUDA events.

    No pause is long enough for a function that itself waits for the GPU; the method says so.
    """
    flush, pauses = cache_flusher(device), list(_PAUSES)

    def sample() -> float:
        seconds, queued = event_seconds(function, flush, pauses[0])
        while not queued and len(pauses) > 1:
            del pauses[0]  # permanently
            seconds, queued = event_seconds(function, flush, pauses[0])
        return seconds

    for _ in range(3):
        function()
    sample()
    method = "CUDA events, cache flushed"
    return Stopwatch(sample, method if len(pauses) > 1 else f"{method}, {HOST_INCLUDED}")


def stopwatch(function: Function, device: torch.device) -> Stopwatch:
    """Return a stopwatch that suits `device` and the speed of `function`; calls `function` a few times."""
    return cuda_stopwatch(function, device) if device.type == "cuda" else wall_stopwatch(function)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return a distribution-free 95 % interval of the median (by order statistics), the extremes for fewer than six."""
    ordered, n = sorted(values), len(values)
    rank, outside = 0, 0.5**n  # probability that at most `rank` of n values lie below the median
    while outside <= 0.025:
        rank += 1
        outside += math.comb(n, rank) * 0.5**n
    lowest = max(rank - 1, 0)
    return ordered[lowest], ordered[n - 1 - lowest]


def timing(samples: Sequence[float], method: str) -> Timing:
    """Return the timing of one function from its samples."""
    low, high = median_interval(samples)
    return Timing(seconds=float(np.median(samples)), low=low, high=high, rounds=len(samples), method=method)


def interleaved(stopwatches: Sequence[Stopwatch], rounds: int) -> list[Timing]:
    """Time all stopwatches in turn, `rounds` times, in alternating order, so that drift affects all alike."""
    samples: list[list[float]] = [[] for _ in stopwatches]
    order = list(range(len(stopwatches)))
    for number in range(rounds):
        for index in order if number % 2 == 0 else reversed(order):
            samples[index].append(stopwatches[index].sample())
    return [timing(values, watch.method) for values, watch in zip(samples, stopwatches, strict=True)]


class SampledClock:
    """Clock that advances only by what stopwatches measure, for tools that time a call as a difference of two times.

    So pytest-benchmark records exactly what `stopwatch` measures, on a GPU too.
    """

    def __init__(self) -> None:
        self._seconds = 0.0

    def now(self) -> float:
        """Return the sum of all samples taken."""
        return self._seconds

    def take(self, watch: Stopwatch) -> None:
        """Take a sample."""
        self._seconds += watch.sample()
