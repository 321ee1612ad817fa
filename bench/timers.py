"""How long a function takes: three ways to time one, and rounds that are fair to all of several.

On a CPU it is wall-clock time over enough calls to fill a few milliseconds. On a GPU it is the time between two CUDA
events, with the second-level cache flushed before each call; a function faster than 20 us is captured as a graph of
many calls instead, because events around it would time its launch (there the cache is as the previous call left it).
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Function = Callable[[], object]
Sample = Callable[[], float]
"""Runs the function and returns its seconds a call."""

GRAPH_BELOW_SECONDS = 20e-6
CALLS_IN_A_GRAPH = 100
_ROUND_SECONDS = 5e-3
"""What a wall-clock round lasts at least: the clock and one interrupt no longer matter then."""


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


def cache_flusher(device: torch.device) -> Function:
    """A function that writes twice as many bytes as the GPU's second-level cache holds."""
    size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
    buffer = torch.empty(max(size, 1 << 26), dtype=torch.uint8, device=device)
    return buffer.zero_


def event_seconds(function: Function, flush: Function) -> float:
    """Seconds on the GPU's clock from before `function` to its last kernel, after a cache flush.

    The flush keeps the GPU busy while the host issues the function, so that launch latency stays out.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush()
    start.record()
    function()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e-3


def graph_stopwatch(function: Function, calls: int = CALLS_IN_A_GRAPH) -> Stopwatch:
    """A captured graph of `calls` calls, for functions that are faster than their own launch."""
    graph: Any = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            function()
    nothing: Function = lambda: None  # noqa: E731

    def sample() -> float:
        return event_seconds(graph.replay, nothing) / calls

    sample()
    return Stopwatch(sample, f"graph of {calls} calls, cache warm")


def cuda_stopwatch(function: Function, device: torch.device) -> Stopwatch:
    """CUDA events, or a graph where the function turns out to be faster than 20 us."""
    flush = cache_flusher(device)
    for _ in range(3):
        function()
    quickest = min(event_seconds(function, flush) for _ in range(5))
    if quickest < GRAPH_BELOW_SECONDS:
        return graph_stopwatch(function)
    return Stopwatch(lambda: event_seconds(function, flush), "CUDA events, cache flushed")


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
