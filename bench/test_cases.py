"""Every case as a benchmark of pytest-benchmark: `pytest bench`, `pytest bench --recipe airbench94 -k pool`."""

from collections.abc import Callable
from typing import Any

import pytest

from speedyresnet.bench.cases import Case
from speedyresnet.bench.kernel_times import described
from speedyresnet.bench.roofline import Ceilings
from speedyresnet.bench.timers import SampledClock, stopwatch
from speedyresnet.engine.step import TrainingState

CLOCK = SampledClock()
ROUNDS = 15


@pytest.mark.benchmark(timer=CLOCK.now)
def test_case(benchmark: Any, case: Case, state: TrainingState, ceilings: Callable[[], Ceilings]) -> None:
    device = state.images.device
    call = case.make(state).call
    if benchmark.disabled:
        benchmark(call)
        return
    watch = stopwatch(call, device)
    benchmark.group = f"{case.operation} {case.layer} {case.direction}"
    floor = ceilings().floor(case.bytes, case.flops, case.dtype)
    benchmark.extra_info.update(described(case), method=watch.method, floor_seconds=floor)
    benchmark.pedantic(CLOCK.take, args=(watch,), rounds=ROUNDS, iterations=1, warmup_rounds=1)
