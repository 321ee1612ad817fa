"""How long a function takes: two ways to time one, and rounds that are fair to all of several.

On a CPU it is wall-clock time over enough calls to fill a few milliseconds. On a GPU it is the time between two CUDA
events, with the second-level cache flushed before each call. The GPU is kept busy until the host has queued all of the
call, or launches from Python, which take longer than most kernels, would be what is timed. What the GPU itself takes to
start a kernel is in the time.
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
"""Runs the function and returns its seconds a call."""

HOST_INCLUDED = "host included"
"""How the method ends of a function that makes the GPU wait for the host."""
_ROUND_SECONDS = 5e-3
"""What a wall-clock round lasts at least: the clock and one interrupt no longer matter then."""
_PAUSES = tuple(100e-6 * 2**doublings for doublings in range(10))
"""Seconds that the GPU is kept busy: the next where the host was late, and the last where none helps."""
_CYCLES_A_SECOND = 3e9
"""No GPU's clock is faster; a slower one pauses longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds a call of one function."""

    seconds: float
    """Median over the rounds."""
    low: float
    """The true median is above this with 97.5 % confidence; the least round where there are fewer than six."""
    high: float
    """The true median is below this with 97.5 % confidence; the longest round where there are fewer than six."""
    rounds: int
    method: str
    """How it was timed."""


@dataclass(frozen=True, slots=True)
class Stopwatch:
    """A function made ready to be timed."""

    sample: Sample
    method: str


def wall_stopwatch(function: Function) -> Stopwatch:
    """Wall-clock time, for functions that have done their work when they return."""
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
    """A function that reads twice as many bytes as the GPU's second-level cache holds.

    It reads because written lines would stay in the cache, to be carried to memory while the timed function runs.
    """
    size = max(2 * torch.cuda.get_device_properties(device).L2_cache_size, 1 << 26)
    return torch.zeros(size // 4, device=device).sum


def event_seconds(function: Function, flush: Function, pause: float) -> tuple[float, bool]:
    """Seconds on the GPU's clock from before `function` to its last kernel.

    Args:
        function: what to time.
        flush: called beforehand.
        pause: seconds that the GPU waits before it begins with the function.

    Returns:
        Also whether the host had queued all of it by then, so that the GPU never waited for the host.
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
    """CUDA events; no pause is long enough for a function that waits for the GPU itself, and the method says so."""
    flush, pauses = cache_flusher(device), list(_PAUSES)

    def sample() -> float:
        seconds, queued = event_seconds(function, flush, pauses[0])
        while not queued and len(pauses) > 1:
            del pauses[0]  # for good
            seconds, queued = event_seconds(function, flush, pauses[0])
        return seconds

    for _ in range(3):
        function()
    sample()
    method = "CUDA events, cache flushed"
    return Stopwatch(sample, method if len(pauses) > 1 else f"{method}, {HOST_INCLUDED}")


def stopwatch(function: Function, device: torch.device) -> Stopwatch:
    """The way to time `function` that suits `device` and its speed; calls it a few times."""
    return cuda_stopwatch(function, device) if device.type == "cuda" else wall_stopwatch(function)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """A distribution-free 95 % interval of the median (from order statistics), or the extremes of fewer than six."""
    ordered, n = sorted(values), len(values)
    rank, outside = 0, 0.5**n  # probability that at most `rank` of n values lie below the median
    while outside <= 0.025:
        rank += 1
        outside += math.comb(n, rank) * 0.5**n
    lowest = max(rank - 1, 0)
    return ordered[lowest], ordered[n - 1 - lowest]


def timing(samples: Sequence[float], method: str) -> Timing:
    """What the samples of one function say."""
    low, high = median_interval(samples)
    return Timing(seconds=float(np.median(samples)), low=low, high=high, rounds=len(samples), method=method)


def interleaved(stopwatches: Sequence[Stopwatch], rounds: int) -> list[Timing]:
    """Time all of them in turn, `rounds` times; every other round runs backwards, so that drift hits all alike."""
    samples: list[list[float]] = [[] for _ in stopwatches]
    order = list(range(len(stopwatches)))
    for number in range(rounds):
        for index in order if number % 2 == 0 else reversed(order):
            samples[index].append(stopwatches[index].sample())
    return [timing(values, watch.method) for values, watch in zip(samples, stopwatches, strict=True)]


class SampledClock:
    """A clock that moves on only by what stopwatches measure, for tools that time a call as a difference of two times.

    So pytest-benchmark records exactly what `stopwatch` says, on a GPU too.
    """

    def __init__(self) -> None:
        self._seconds = 0.0

    def now(self) -> float:
        """Sum of all samples taken."""
        return self._seconds

    def take(self, watch: Stopwatch) -> None:
        """Take a sample."""
        self._seconds += watch.sample()
