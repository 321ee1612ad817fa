import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

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


class Calls(TorchDispatchMode):
    """Records operations and their first arguments."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        self.found.append((operation, arguments[0]))
        return operation(*arguments, **(options or {}))


def test_the_cache_is_flushed_by_reading_twice_its_size(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=40 << 20))
    flush = timers.cache_flusher.__wrapped__(torch.device("cpu"))
    with Calls() as calls:
        flush()
    ((operation, read),) = calls.found
    assert not operation._schema.is_mutable
    assert read.nbytes == 80 << 20
    assert read.is_contiguous()


class SimulatedGPU:
    """A host's clock and a stream that does one thing after another, both in seconds."""

    def __init__(self):
        self.now = self.free = 0.0

    def host(self, seconds):
        self.now += seconds

    def launch(self, seconds):
        self.free = max(self.free, self.now) + seconds

    def synchronize(self, device=None):
        self.now = max(self.now, self.free)

    def event(self, enable_timing):
        return SimulatedEvent(self)


class SimulatedEvent:
    def __init__(self, gpu):
        self.gpu, self.at = gpu, 0.0

    def record(self):
        self.at = max(self.gpu.free, self.gpu.now)

    def query(self):
        return self.at <= self.gpu.now

    def synchronize(self):
        self.gpu.now = max(self.gpu.now, self.at)

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


@pytest.fixture
def gpu(monkeypatch):
    """In the place of torch.cuda: 2 GHz, and a flush of 35 us."""
    made = SimulatedGPU()
    monkeypatch.setattr(torch.cuda, "Event", made.event)
    monkeypatch.setattr(torch.cuda, "synchronize", made.synchronize)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: made.launch(cycles / 2e9))
    monkeypatch.setattr(timers, "cache_flusher", lambda device: lambda: made.launch(35e-6))
    return made


@pytest.mark.parametrize(
    ("kernels", "host_seconds", "kernel_seconds"),
    [(1, 5e-6, 2e-6), (3, 40e-6, 10e-6), (3, 10e-3, 10e-6), (1, 1e-3, 5e-3), (300, 10e-6, 5e-6)],
)
def test_on_a_gpu_the_time_is_that_of_the_kernels_however_slow_the_host(gpu, kernels, host_seconds, kernel_seconds):
    def function():
        for _ in range(kernels):
            gpu.host(host_seconds)
            gpu.launch(kernel_seconds)

    watch = stopwatch(function, torch.device("cuda"))
    assert [watch.sample() for _ in range(3)] == [pytest.approx(kernels * kernel_seconds)] * 3
    assert watch.method == "CUDA events, cache flushed"


def test_of_a_function_that_waits_for_the_gpu_the_method_says_that_the_host_is_included(gpu):
    def function():
        gpu.launch(10e-6)
        gpu.synchronize()
        gpu.host(100e-6)

    watch = stopwatch(function, torch.device("cuda"))
    assert watch.method == "CUDA events, cache flushed, host included"
    assert gpu.now < 1.0
    assert watch.sample() == pytest.approx(110e-6)


def test_a_sample_for_which_the_host_was_late_is_taken_again(gpu):
    delays = [0.0, 0.0, 0.0, 0.0, 0.0, 1e-3]

    def function():
        gpu.host(delays.pop(0) if delays else 0.0)
        gpu.launch(10e-6)

    watch = stopwatch(function, torch.device("cuda"))
    assert [watch.sample() for _ in range(3)] == [pytest.approx(10e-6)] * 3
    assert not delays


@pytest.mark.gpu
def test_kernels_are_timed_without_the_host():
    device = torch.device("cuda")
    small, large = torch.zeros(16, device=device), torch.zeros(1 << 28, device=device)

    def late():
        time.sleep(0.002)
        small.add_(1)

    quick, slow, hosts, waits = (
        stopwatch(each, device)
        for each in (lambda: small.add_(1), lambda: large.add_(1), late, lambda: small.sum().item())
    )
    assert {each.method for each in (quick, slow, hosts)} == {"CUDA events, cache flushed"}
    assert waits.method == "CUDA events, cache flushed, host included"
    assert quick.sample() < 20e-6 < slow.sample() < 1e-2
    assert hosts.sample() < 50e-6
