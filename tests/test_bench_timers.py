import time

import numpy as np
import pytest
import torch

from speedyresnet.bench import timers
from speedyresnet.bench.timers import SampledClock, Stopwatch, interleaved, median_interval, stopwatch, wall_stopwatch


def test_a_wall_clock_round_is_seconds_a_call():
    watch = wall_stopwatch(lambda: time.sleep(0.002))
    assert 0.002 <= watch.sample() < 0.004
    assert watch.method == "wall clock, 3 calls a round"


def test_quick_functions_are_called_many_times_a_round():
    calls = []
    watch = wall_stopwatch(lambda: calls.append(None))
    before = len(calls)
    seconds = watch.sample()
    assert len(calls) - before > 1000
    assert 0 < seconds < 1e-4


def test_the_interval_of_the_median_is_the_sign_tests():
    """Ranks from the published table of the sign test at 95 %: 1 and 6 of 6, 2 and 9 of 10, 6 and 15 of 20."""
    for n, first, last in ((3, 1, 3), (5, 1, 5), (6, 1, 6), (10, 2, 9), (20, 6, 15), (50, 18, 33)):
        values = list(range(n, 0, -1))
        assert median_interval(values) == (first, last)


def test_the_interval_holds_the_median_19_times_in_20():
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        low, high = median_interval(list(generator.exponential(size=15)))
        held += low <= np.log(2) <= high
    assert held >= 0.95 * 2000


def test_rounds_are_interleaved_and_every_other_one_runs_backwards():
    order = []

    def watch(name, seconds):
        return Stopwatch(lambda: order.append(name) or seconds, name)

    found = interleaved([watch("a", 1.0), watch("b", 2.0)], rounds=3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert [(each.seconds, each.rounds, each.method) for each in found] == [(1.0, 3, "a"), (2.0, 3, "b")]


def test_a_sampled_clock_moves_by_what_the_stopwatch_says():
    clock = SampledClock()
    samples = iter([0.25, 0.5])
    watch = Stopwatch(lambda: next(samples), "")
    assert clock.now() == 0.0
    clock.take(watch)
    assert clock.now() == 0.25
    clock.take(watch)
    assert clock.now() == 0.75


def test_a_cpu_gets_the_wall_clock():
    assert stopwatch(lambda: None, torch.device("cpu")).method.startswith("wall clock")


@pytest.mark.gpu
def test_small_kernels_are_timed_in_a_graph_and_large_ones_between_events():
    device = torch.device("cuda")
    small, large = torch.zeros(16, device=device), torch.zeros(1 << 28, device=device)
    with torch.cuda.stream(torch.cuda.Stream()):
        quick = stopwatch(lambda: small.add_(1), device)
        slow = stopwatch(lambda: large.add_(1), device)
        assert quick.method == f"graph of {timers.CALLS_IN_A_GRAPH} calls, cache warm"
        assert slow.method == "CUDA events, cache flushed"
        assert quick.sample() < 20e-6 < slow.sample() < 1e-2
