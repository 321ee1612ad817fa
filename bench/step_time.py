"""`bench step`: how long a step takes by backend, and what of it is the host's."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from speedyresnet.engine.backends import BackendError
from speedyresnet.engine.data import Pack, load_data
from speedyresnet.engine.errors import UserError
from speedyresnet.engine.recipe import Recipe
from speedyresnet.engine.recipe import recipe as recipe_called
from speedyresnet.engine.record import peak_bytes
from speedyresnet.engine.trainer import Trainer, pick_device, synchronize

from .trace import launches_and_idle_seconds, recorded_trace


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Of one backend; medians over rounds."""

    backend: str
    dtype: str
    milliseconds: float
    """From the first issue to the device's end, a step."""
    quartiles: tuple[float, float]
    """Of the rounds' milliseconds."""
    images_per_second: float
    host_milliseconds: float
    """Until the host has issued a step; on a CPU the host does the work itself."""
    idle_milliseconds: float | None
    """Time a step in which the GPU runs nothing; none on a CPU, or where the profiler does not work."""
    launches: float | None
    """Kernels or graphs launched a step; none likewise."""
    peak_bytes: int
    """Of the device while this backend was built and stepped; on a CPU of the process so far."""
    build_seconds: float


def timed_round(trainer: Trainer, steps: int, step: Callable[[], None] | None = None) -> tuple[float, float]:
    """Seconds a step, whole and of the host alone, over `steps` steps issued without waiting in between.

    Without `step` of the kind that a run takes most often.
    """
    step = step or trainer.main_step
    trainer.state.counter.zero_()  # the tables end where a run ends
    synchronize(trainer.device)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    issued = time.perf_counter()
    synchronize(trainer.device)
    return (time.perf_counter() - started) / steps, (issued - started) / steps


def launches_and_idle(trainer: Trainer, steps: int) -> tuple[float | None, float | None]:
    """Launches a step, and milliseconds a step between its first and last kernel in which none runs."""
    if trainer.device.type != "cuda":
        return None, None
    try:
        trace = recorded_trace(lambda: timed_round(trainer, steps), trainer.device)
    except UserError as error:  # the times are worth having all the same
        warnings.warn(f"no launches and idle time: {error}", stacklevel=2)
        return None, None
    launches, idle = launches_and_idle_seconds(trace)
    return launches / steps, 1e3 * idle / steps


def measure_steps(
    recipe: Recipe, pack: Pack, device: torch.device, backends: Sequence[str], *, rounds: int = 10, steps: int = 10
) -> tuple[list[StepTime], dict[str, str]]:
    """Times of `backends`, their rounds interleaved so that a slow moment of the machine hits all of them.

    Args:
        recipe: what to step; the kind of step that a run takes most often is timed.
        pack: the data set.
        device: where.
        backends: their names.
        rounds: medians are over so many, after one that is thrown away.
        steps: a round, at most those of a run.

    Returns:
        Also why those failed that could not be built, by name.

    Raises:
        UserError: a recipe that does not fit the data, or not one of the backends can be built.
    """
    trainers, peaks, failed = dict[str, Trainer](), dict[str, int](), dict[str, str]()
    for backend in backends:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            trainers[backend] = Trainer(recipe, pack, device, backend)
        except BackendError as error:
            failed[backend] = str(error)
            continue
        trainers[backend].prepare(seed=0)
        trainers[backend].net.train()
        steps = min(steps, trainers[backend].plan.steps)
        timed_round(trainers[backend], steps)
        peaks[backend] = peak_bytes(device)
    if not trainers:
        raise UserError("; ".join(failed.values()))
    times: dict[str, list[tuple[float, float]]] = {backend: [] for backend in trainers}
    for number in range(rounds):
        for backend in trainers if number % 2 == 0 else reversed(trainers):
            times[backend].append(timed_round(trainers[backend], steps))
    return [_step_time(trainers[name], times[name], peaks[name], steps) for name in trainers], failed


def _step_time(trainer: Trainer, rounds: list[tuple[float, float]], peak: int, steps: int) -> StepTime:
    whole = [1e3 * seconds for seconds, _ in rounds]
    low, middle, high = statistics.quantiles(whole, n=4) if len(whole) > 1 else whole * 3
    launches, idle = launches_and_idle(trainer, steps)
    return StepTime(
        backend=trainer.backend,
        dtype=str(trainer.dtype).removeprefix("torch."),
        milliseconds=middle,
        quartiles=(low, high),
        images_per_second=1e3 * trainer.recipe.batch_size / middle,
        host_milliseconds=statistics.median(1e3 * host for _, host in rounds),
        idle_milliseconds=idle,
        launches=launches,
        peak_bytes=peak,
        build_seconds=trainer.build_seconds,
    )


def cold_and_warm_build_seconds(
    recipe: str, settings: Sequence[str], data: str, device: str, backend: str
) -> tuple[float, float]:
    """Build seconds of a new process with an empty compiler cache, and of the next one, which finds it filled.

    Raises:
        subprocess.CalledProcessError: a process failed; what it printed is on standard error.
    """
    code = "import sys; from speedyresnet.bench.step_time import print_build_seconds; print_build_seconds(sys.argv[1])"
    arguments = json.dumps([recipe, list(settings), data, device, backend])
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": f"{cache}/triton"}
        cold, warm = (
            float(
                subprocess.run(
                    [sys.executable, "-c", code, arguments],
                    env=environment,
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                ).stdout.split()[-1]
            )
            for _ in range(2)
        )
    return cold, warm


def print_build_seconds(arguments: str) -> None:
    """What `cold_and_warm_build_seconds` runs in its processes."""
    recipe, settings, data, device, backend = json.loads(arguments)
    trainer = Trainer(recipe_called(recipe, settings), load_data(data), pick_device(device), backend)
    print(trainer.build_seconds)


def step_report(
    recipe: Recipe,
    pack: Pack,
    environment: dict[str, Any],
    times: Sequence[StepTime],
    failed: dict[str, str],
    builds: dict[str, Any],
) -> dict[str, Any]:
    """The whole result as plain values.

    Args:
        recipe: what was stepped.
        pack: the data set.
        environment: where.
        times: of the backends that could be built.
        failed: why the others could not, by name.
        builds: (cold, warm) build seconds of backends that compile, by name.
    """
    rows = []
    for each in times:
        cold, warm = builds.get(each.backend, (None, None))
        rows.append(asdict(each) | {"cold_build_seconds": cold, "warm_build_seconds": warm})
    return {
        "recipe": {"name": recipe.name, "hash": recipe.hash, "batch_size": recipe.batch_size},
        "data": {"name": pack.name, "sha256": pack.sha256},
        "environment": environment,
        "backends": rows,
        "failed": [{"backend": name, "reason": reason} for name, reason in failed.items()],
    }


def print_steps(console: Console, result: dict[str, Any]) -> None:
    """The result as a table."""
    recipe = result["recipe"]
    table = Table(title=f"{recipe['name']} on {result['data']['name']}, batch {recipe['batch_size']}")
    table.add_column("", no_wrap=True)
    for row in result["backends"]:
        table.add_column(row["backend"], justify="right", no_wrap=True)
    lines: list[tuple[str, str, float]] = [
        ("ms/step", "milliseconds", 1.0),
        ("images/s", "images_per_second", 1.0),
        ("host ms/step", "host_milliseconds", 1.0),
        ("idle GPU ms/step", "idle_milliseconds", 1.0),
        ("launches/step", "launches", 1.0),
        ("peak memory, GB", "peak_bytes", 1e-9),
        ("build, s", "build_seconds", 1.0),
        ("build, cold cache, s", "cold_build_seconds", 1.0),
        ("build, warm cache, s", "warm_build_seconds", 1.0),
    ]
    for title, key, factor in lines:
        values = [row[key] for row in result["backends"]]
        table.add_row(title, *("" if value is None else f"{factor * value:,.2f}" for value in values))
    console.print(table)
    for each in result["failed"]:
        console.print(f"{each['backend']}: {each['reason']}", markup=False, highlight=False, soft_wrap=True)
