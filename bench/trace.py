"""Conversion of a profiler's trace to seconds by part.

Works on the trace in Chrome's format that torch.profiler exports. On a GPU, work is what its streams did; on a CPU, it
is the innermost operation running at each moment. A piece of work belongs to the part

- in whose range (`part: NAME`, entered by `engine.parts`) its operation was issued, or
- for a backward operation outside such ranges, to the part of the forward operation that made its autograd node (both
  carry the same sequence number).

Gaps are the times between the first work of a step and the first of the next in which no work is recorded.
"""

import itertools
import json
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from speedyresnet.engine.errors import UserError

from .traffic import OTHER, backward_part

PART_PREFIX, STEP_RANGE = "part: ", "step"
GAPS = "gaps"
_DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
_HOST_CALLS = ("cuda_runtime", "cuda_driver")
_LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
_BACKWARD = "autograd::engine::evaluate_function"
_MICROSECOND = 1e-6


# The profiler's library prints internal messages, and an error for a missing GPU, unless told not to.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def recorded_trace(run: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Return the profiler's trace of `run`, which has to wait for the device itself, in Chrome's format.

    Raises:
        UserError: it holds nothing of the GPU, so that the host's work would be taken for the GPU's.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities, acc_events=True) as profiler:  # without it some versions warn
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        trace: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if device.type == "cuda" and not _device_events(_timed_events(trace)):
        raise UserError(
            "the profiler saw no kernel of the GPU: end other profilers (nsys, ncu, dcgm); KINETO_LOG_LEVEL=0 says why"
        )
    return trace


def _timed_events(trace: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in trace["traceEvents"] if each.get("ph") == "X" and "dur" in each]


def _device_events(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in events if each.get("cat") in _DEVICE_WORK]


def device_events(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what the streams of a GPU did: kernels, copies and fills."""
    return _device_events(_timed_events(trace))


@dataclass(slots=True)
class Host:
    """Event on a thread of the host: an operation, a range, or a call of the CUDA runtime."""

    event: dict[str, Any]
    start: float
    end: float
    """Microseconds, as in the trace."""
    outer: "Host | None"
    part: str = OTHER
    leaf: bool = True
    """Whether no operation ran inside it."""

    @property
    def is_operation(self) -> bool:
        """Whether it is an operation; ranges only name what runs in them."""
        return bool(self.event["cat"] == "cpu_op")

    @property
    def is_backward(self) -> bool:
        """Whether it is a node of the autograd graph at work."""
        return str(self.event["name"]).startswith(_BACKWARD)

    def ancestors(self) -> Iterable["Host"]:
        """Yield itself and everything around it, innermost first."""
        each: Host | None = self
        while each is not None:
            yield each
            each = each.outer


@dataclass(frozen=True, slots=True)
class Work:
    """Piece of work, in microseconds."""

    start: float
    end: float
    part: str


@dataclass(frozen=True, slots=True)
class StepParts:
    """Times and calls of one step, by part."""

    seconds: float
    """Time from its first work to the first of the next step."""
    parts: dict[str, float]
    """Seconds of each part and of the gaps."""
    calls: Counter[str]
    """Kernels of each part, or on a CPU operations that call no other."""


def nested(events: Sequence[dict[str, Any]]) -> list[Host]:
    """Return the host events of one thread, each with the event around it."""
    found: list[Host] = []
    around: list[Host] = []
    for event in sorted(events, key=lambda each: (each["ts"], -each["dur"])):
        start, end = float(event["ts"]), float(event["ts"]) + float(event["dur"])
        while around and around[-1].end <= start:
            around.pop()
        host = Host(event, start, end, around[-1] if around else None)
        if host.is_operation:
            for each in around:
                each.leaf = False
        found.append(host)
        around.append(host)
    return found


def _range_part(host: Host) -> str | None:
    """Return the innermost part range around `host`, within its backward node if it is in one."""
    for each in host.ancestors():
        name = str(each.event["name"])
        if name.startswith(PART_PREFIX):
            return name.removeprefix(PART_PREFIX)
        if each.is_backward:
            return None
    return None


def _sequence_number(host: Host) -> int | None:
    number = host.event.get("args", {}).get("Sequence number")
    return None if number is None else int(number)


def assign_parts(hosts: Sequence[Host]) -> None:
    """Assign a part to each host event of one step."""
    made_by: dict[int, str] = {}
    waiting: list[tuple[Host, int | None]] = []
    for host in sorted(hosts, key=lambda each: each.start):
        named, number = _range_part(host), _sequence_number(host)
        backward = next((each for each in host.ancestors() if each.is_backward), None)
        if named is not None:
            host.part = named
            if number is not None and backward is None and host.is_operation:
                made_by[number] = named
        elif backward is not None:
            waiting.append((host, _sequence_number(backward)))
    for host, number in waiting:
        host.part = backward_part(made_by[number]) if number in made_by else OTHER


def _split_by_step(hosts: Sequence[Host], steps: Sequence[Host]) -> list[list[Host]]:
    """Return, for each step, the host events of all threads that began while it was being issued."""
    return [[each for each in hosts if step.start <= each.start < step.end] for step in steps]


def _correlation(event: dict[str, Any]) -> int | None:
    number: int | None = event.get("args", {}).get("correlation")
    return number


def device_work(hosts: Sequence[Host], events: Sequence[dict[str, Any]]) -> list[Work]:
    """Return the GPU's work for the calls among `hosts`; a kernel carries the correlation number of its launch."""
    calls = [host for host in hosts if host.event["cat"] in _HOST_CALLS]
    launched = {number: host.part for host in calls if (number := _correlation(host.event)) is not None}
    return [
        Work(float(each["ts"]), float(each["ts"]) + float(each["dur"]), launched[number])
        for each in events
        if (number := _correlation(each)) in launched
    ]


def host_work(hosts: Sequence[Host]) -> list[Work]:
    """Return the operations as work; where they are nested, `covered` gives the time to the innermost."""
    return [Work(each.start, each.end, each.part) for each in hosts if each.is_operation]


def covered(work: Sequence[Work], start: float, end: float) -> tuple[dict[str, float], float]:
    """Return the seconds of each part between `start` and `end`, and of the gaps.

    Of overlapping work, the latest begun counts.
    """
    boundaries = sorted({start, end, *(t for each in work for t in (each.start, each.end) if start < t < end)})
    begins = sorted(work, key=lambda each: (each.start, -each.end))
    parts: defaultdict[str, float] = defaultdict(float)
    gaps, active, index = 0.0, list[Work](), 0
    for left, right in itertools.pairwise(boundaries):
        while index < len(begins) and begins[index].start <= left:
            active.append(begins[index])
            index += 1
        while active and active[-1].end <= left:
            active.pop()
        running = next((each for each in reversed(active) if each.end > left), None)
        if running is None:
            gaps += (right - left) * _MICROSECOND
        else:
            parts[running.part] += (right - left) * _MICROSECOND
    return dict(parts), gaps


def step_parts(trace: dict[str, Any]) -> list[StepParts]:
    """Return all steps of a trace but the last, whose end is not marked by another step.

    Args:
        trace: as torch.profiler exports it, with ranges `step` around the steps and `part: NAME` inside them.
    """
    events = _timed_events(trace)
    threads: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("cat") in ("cpu_op", "user_annotation", *_HOST_CALLS):
            threads[event["pid"], event["tid"]].append(event)
    hosts = [host for thread in threads.values() for host in nested(thread)]
    device = _device_events(events)
    ranges = [each for each in hosts if each.event["name"] == STEP_RANGE]
    by_step: list[tuple[list[Work], Counter[str]]] = []
    for of_step in _split_by_step(hosts, sorted(ranges, key=lambda each: each.start)):
        assign_parts(of_step)
        if device:
            work = device_work(of_step, device)
            calls = Counter(each.part for each in work)
        else:
            work = host_work(of_step)
            calls = Counter(each.part for each in of_step if each.is_operation and each.leaf)
        by_step.append((work, calls))
    return _windows(by_step)


def launches_and_idle_seconds(trace: dict[str, Any]) -> tuple[int, float]:
    """Return the number of kernels and graphs launched, and the GPU's idle seconds between its first and last work."""
    events = _timed_events(trace)
    work = [Work(float(each["ts"]), float(each["ts"]) + float(each["dur"]), OTHER) for each in _device_events(events)]
    _, idle = covered(work, min(each.start for each in work), max(each.end for each in work))
    return sum(each["name"] in _LAUNCHES for each in events if each.get("cat") in _HOST_CALLS), idle


def _windows(by_step: Sequence[tuple[list[Work], Counter[str]]]) -> list[StepParts]:
    firsts = [min(each.start for each in work) for work, _ in by_step]
    found = []
    for (work, calls), start, end in zip(by_step, firsts, firsts[1:], strict=False):
        parts, gaps = covered(work, start, end)
        found.append(StepParts((end - start) * _MICROSECOND, parts | {GAPS: gaps}, calls))
    return found
