"""Recordings of `bench profile --backend graph`: the kernels of each kind of step, of prepare and of evaluate.

The profiler records when each kernel began. A step is replayed repeatedly, with a synchronization after each replay, so
the kernels of a replay are those between two pauses, and their order is the order of the step.
"""

import dataclasses
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from speedyresnet.engine.device import synchronize
from speedyresnet.engine.errors import UserError
from speedyresnet.engine.pack import Pack
from speedyresnet.engine.record import environment
from speedyresnet.engine.setup import PlacedRecipe
from speedyresnet.engine.trainer import Trainer

from .kernel_profile import step_counts
from .kernel_table import KernelTable, Launch, Phase
from .roofline import measured_ceilings
from .step_time import timed_round
from .trace import device_events, recorded_trace

BACKENDS = ("graph", "capture", "compile")
"""Backends whose kernels are told apart by names and order, because no host code enters a part."""
_ROUNDS = 5
"""Rounds timed without the profiler; their median counts."""


def check_device(backend: str, device: torch.device) -> None:
    """Raise UserError if the kernels of `backend` on `device` cannot be told apart."""
    if backend not in BACKENDS:
        raise UserError(f"--backend {backend}: bench profile takes eager, {', '.join(BACKENDS)}")
    if device.type != "cuda":
        raise UserError(f"--backend {backend}: its kernels are profiled on a CUDA GPU only; use --backend eager")


def launches_of(events: Iterable[dict[str, Any]], calls: int) -> tuple[list[Launch], float]:
    """Return the kernels of a call and the seconds in which at least one ran, means over `calls` but the first.

    Args:
        events: device events of all calls, on any stream; each call has to end before the next begins.
        calls: at least two.

    Returns:
        Kernels in the order of the second call. Where streams overlap and the order varies between calls, the first
        kernel of a name is averaged with the first of that name.

    Raises:
        UserError: the calls did not run the same kernels, or the profiler lost some.
    """
    ordered = sorted(events, key=lambda each: float(each["ts"]))
    each_call, rest = divmod(len(ordered), calls)
    parts = [ordered[start : start + each_call] for start in range(each_call, each_call * calls, each_call or 1)]
    if rest or not parts or any(_names(part) != _names(parts[0]) for part in parts):
        raise UserError("the profiler did not see the same kernels in every call: it lost some; try again")
    durations = [_durations(part) for part in parts]
    streams: dict[Any, int] = {}
    seen, launches = Counter[str](), []
    for event in parts[0]:
        name = str(event["name"])
        mean = statistics.fmean(by_name[name][seen[name]] for by_name in durations)
        stream = streams.setdefault(event.get("args", {}).get("stream"), len(streams))
        launches.append(Launch(name, 1.0, mean, stream))
        seen[name] += 1
    return launches, statistics.fmean(map(_busy_microseconds, parts)) / 1e6


def _names(events: Sequence[dict[str, Any]]) -> Counter[str]:
    return Counter(str(each["name"]) for each in events)


def _durations(events: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for each in events:
        found.setdefault(str(each["name"]), []).append(float(each["dur"]))
    return found


def _busy_microseconds(events: Sequence[dict[str, Any]]) -> float:
    """Return the length of the union of `events`, which are sorted by their start."""
    busy, end = 0.0, float("-inf")
    for each in events:
        start, stop = float(each["ts"]), float(each["ts"]) + float(each["dur"])
        busy += max(stop - max(start, end), 0.0)
        end = max(end, stop)
    return busy


def recorded_launches(call: Callable[[], object], device: torch.device, calls: int) -> tuple[list[Launch], float]:
    """Return `launches_of` for `calls` calls and one more before them, each followed by a synchronization."""

    def run() -> None:
        for _ in range(calls + 1):
            call()
            synchronize(device)

    return launches_of(device_events(recorded_trace(run, device)), calls + 1)


def _recorded_step(trainer: Trainer, step: Callable[[], None], replays: int) -> tuple[list[Launch], float, float]:
    """Return the kernels, busy seconds and wall-clock seconds of one kind of step."""
    calls = min(replays, trainer.plan.steps - 1)
    seconds = statistics.median(timed_round(trainer, calls, step)[0] for _ in range(_ROUNDS))
    trainer.state.counter.zero_()
    synchronize(trainer.device)
    return *recorded_launches(step, trainer.device, calls), seconds


def record_table(placed: PlacedRecipe, pack: Pack, replays: int) -> KernelTable:
    """Record the kernels of every kind of step, of prepare and of evaluate.

    Args:
        placed: what to step, on a CUDA GPU; see `check_device`.
        pack: the data set.
        replays: number of steps of each kind that count.

    Raises:
        UserError: the recipe does not fit the data or takes one step, or the profiler sees nothing of the GPU.
    """
    setup, recipe, device = placed.with_data(pack.facts), placed.recipe, placed.device
    if setup.plan.steps < 2:
        raise UserError("a run of one step cannot be profiled, since the first does not count: give more epochs")
    trainer = Trainer(setup, pack)
    trainer.prepare(seed=0)
    trainer.net.train()
    ceilings = measured_ceilings(device, list(dict.fromkeys((trainer.dtype, torch.float32))))
    variants = []
    for variant, (step, steps) in zip(step_counts(recipe, trainer.plan), trainer.counted_steps, strict=True):
        kernels, busy, seconds = _recorded_step(trainer, step, replays)
        times = Phase(seconds=seconds, busy_seconds=busy, kernels=kernels, ordered=True)
        variants.append(dataclasses.replace(times, steps=steps, variant=variant))
    prepare = _recorded_phase(lambda: trainer.prepare(seed=1), device, replays)
    trainer.evaluate()
    evaluate = _recorded_phase(lambda: trainer.evaluate()[1], device, replays)
    shapes = {f"{split}_images": list(getattr(pack, f"{split}_images").shape) for split in ("train", "test")}
    return KernelTable(
        backend=trainer.backend,
        kernels=trainer.kernels,
        variants=variants,
        prepare=prepare,
        evaluate=evaluate,
        recipe=recipe,
        dtype=str(trainer.dtype).removeprefix("torch."),
        data={"name": pack.name, "sha256": pack.sha256} | shapes | {"classes": pack.num_classes},
        device=str(device),
        environment=environment(device),
        ceilings=ceilings,
    )


def _recorded_phase(call: Callable[[], float], device: torch.device, calls: int) -> Phase:
    """Record a phase; `call` returns the seconds that it took."""
    call()
    seconds = statistics.median(call() for _ in range(_ROUNDS))
    kernels, busy = recorded_launches(call, device, calls)
    return Phase(seconds=seconds, busy_seconds=busy, kernels=kernels, ordered=True)
