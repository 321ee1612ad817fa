"""`bench profile`: times one eager training step by its named parts.

While profiling, each convolution computes its two gradients separately (natively one operation computes both), so that
each can be timed. `unprofiled_step_seconds`, the time of the unmodified step, shows the cost of that and of the
profiler.
"""

import gzip
import json
import statistics
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import record_function

from speedyresnet.engine.device import synchronize
from speedyresnet.engine.errors import UserError
from speedyresnet.engine.files import Outputs, write_atomically, write_text
from speedyresnet.engine.json_files import Schema, fault_in, read_json
from speedyresnet.engine.pack import Pack
from speedyresnet.engine.parts import listening
from speedyresnet.engine.record import environment
from speedyresnet.engine.setup import PlacedRecipe
from speedyresnet.engine.trainer import Trainer

from .net_parts import parts_of_net
from .pictures import draw_parts, draw_roofline, picture_paths
from .roofline import Ceilings, measured_ceilings
from .step_time import timed_round
from .trace import GAPS, PART_PREFIX, STEP_RANGE, StepParts, recorded_trace, step_parts
from .traffic import OTHER, Traffic, step_traffic

_ORDER = (
    "augment", "augment+stem", "stem", "group", "pool", "norm+activation", "head+loss", "optimizer", "averaging", OTHER,
    GAPS,
)  # fmt: skip
_PASSES = ("forward", "dgrad", "wgrad")
_WARM_UP_STEPS = 3
SCHEMA = "speedyresnet.profile/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Part of one step."""

    name: str
    seconds: float
    share: float
    """Fraction of the step."""
    calls: float
    """Kernels per step, or on a CPU operations that call no other."""
    bytes: int
    """Minimum bytes moved, see `traffic`."""
    flops: int
    bandwidth_share: float
    """Bytes per second relative to a copy of as many bytes per call."""
    rate_share: float
    """FLOPs per second relative to a matrix multiplication."""
    floor_seconds: float
    """Sum over its operations of max(bytes / bandwidth, FLOPs / rate)."""


def _part_range(name: str) -> AbstractContextManager[object]:
    return record_function(PART_PREFIX + name)


def trace_of_steps(trainer: Trainer, steps: int) -> dict[str, Any]:
    """Return the trace of `steps` whole steps and of one more, which marks the end of the last."""
    step = trainer.main_step
    trainer.state.counter.zero_()

    def run() -> None:
        for _ in range(steps + 1):
            with record_function(STEP_RANGE):
                step()
        synchronize(trainer.device)

    whitening_bias = trainer.main_variant.whitening_bias
    with listening(_part_range), parts_of_net(trainer.net, whitening_bias=whitening_bias):
        for _ in range(_WARM_UP_STEPS):
            step()
        trainer.state.counter.zero_()
        synchronize(trainer.device)
        return recorded_trace(run, trainer.device)


def middle_half(steps: Sequence[StepParts]) -> list[StepParts]:
    """Return the steps without the fastest and the slowest quarter."""
    ordered = sorted(steps, key=lambda each: each.seconds)
    cut = len(ordered) // 4
    return ordered[cut : len(ordered) - cut]


def _position(name: str) -> tuple[Any, ...]:
    """Return a sort key: parts in the order of the step; convolutions by layer, then pass."""
    kind = "group" if name.startswith("group") else name
    layer, _, which = name.rpartition(" ")
    place = _ORDER.index(kind if kind in _ORDER else OTHER)  # a stored profile may have parts of another version
    return place, layer, _PASSES.index(which) if which in _PASSES else 0


def folded_parts(steps: Sequence[StepParts], traffic: dict[str, Traffic], ceilings: Ceilings) -> list[Part]:
    """Return means over `steps`, with the bytes and FLOPs of each part."""
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for step in steps:
        seconds.update(step.parts)
        calls.update(step.calls)
    whole = sum(step.seconds for step in steps)
    parts = []
    for name in sorted({*seconds, *traffic, OTHER}, key=_position):
        mean, counted = seconds[name] / len(steps), traffic.get(name, Traffic())
        bound_by_bytes = sum(each.bytes / ceilings.bandwidth(each.bytes) for each in counted.operations)
        bound_by_flops = sum(each.flops / ceilings.rate(each.dtype) for each in counted.operations)
        parts.append(
            Part(
                name=name,
                seconds=mean,
                share=seconds[name] / whole,
                calls=calls[name] / len(steps),
                bytes=counted.bytes,
                flops=counted.flops,
                bandwidth_share=bound_by_bytes / mean if mean > 0 else 0.0,
                rate_share=bound_by_flops / mean if mean > 0 else 0.0,
                floor_seconds=counted.floor(ceilings),
            )
        )
    return parts


def profile_step(placed: PlacedRecipe, pack: Pack, steps: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Profile the most frequent kind of step of a run.

    Args:
        placed: what to step, with the backend `eager`.
        pack: the data set.
        steps: number of steps to record; parts are means over the middle half of them.

    Returns:
        The result as plain values, and the trace.

    Raises:
        UserError: the recipe does not fit the data, or the profiler sees nothing of the GPU.
    """
    recipe, device = placed.recipe, placed.device
    trainer = Trainer(placed.with_data(pack.facts), pack)
    trainer.prepare(seed=0)
    trainer.net.train()
    steps = min(steps, trainer.plan.steps - 1)
    ceilings = measured_ceilings(device, list(dict.fromkeys((trainer.dtype, torch.float32))))
    timed_round(trainer, steps)
    alone = [timed_round(trainer, 1)[0] for _ in range(steps)]
    trace = trace_of_steps(trainer, steps)
    kept = middle_half(step_parts(trace))
    traffic = step_traffic(recipe, pack, trainer.dtype, trainer.main_variant, trainer.kernels)
    result = {
        "schema": SCHEMA,
        "recipe": {"name": recipe.name, "hash": recipe.hash, "batch_size": recipe.batch_size},
        "data": {"name": pack.name, "sha256": pack.sha256},
        "environment": environment(device),
        "device": str(device),
        "backend": trainer.backend,
        "dtype": str(trainer.dtype).removeprefix("torch."),
        "kernels": trainer.kernels,
        "variant": trainer.main_variant._asdict(),
        "step_seconds": statistics.fmean(step.seconds for step in kept),
        "unprofiled_step_seconds": statistics.median(alone),
        "steps": len(kept),
        "ceilings": asdict(ceilings),
        "parts": [asdict(part) for part in folded_parts(kept, traffic, ceilings)],
    }
    return result, trace


def profile_paths(path: Path) -> tuple[Path, ...]:
    """Return the files of a profile whose result is stored at `path`: the result, the trace and the two pictures."""
    return path, path.with_suffix(".trace.json.gz"), *picture_paths(path)


def save_profile(result: dict[str, Any], trace: dict[str, Any], path: Path, outputs: Outputs) -> None:
    """Try to write all files of a profile; the trace is for https://ui.perfetto.dev."""
    _, trace_path, parts, roofline = profile_paths(path)
    packed = gzip.compress(json.dumps(trace).encode(), mtime=0)
    outputs.attempt(path, lambda: write_text(path, json.dumps(result, indent=1) + "\n"))
    outputs.attempt(trace_path, lambda: write_atomically(trace_path, lambda part: part.write_bytes(packed)))
    outputs.attempt(parts, lambda: draw_parts(result, parts))
    outputs.attempt(roofline, lambda: draw_roofline(result, roofline))


_STORED: Schema = {
    "schema": str, "recipe": {"name": str, "hash": str}, "device": str, "backend": str, "dtype": str, "kernels": dict,
    "environment": dict, "step_seconds": float, "parts": [{"name": str, "seconds": float, "floor_seconds": float}],
}  # fmt: skip


def read_profile(path: Path) -> dict[str, Any]:
    """Return the result that `bench profile --out` stored at `path`.

    Raises:
        UserError: the file is missing or holds something else.
    """
    stored: dict[str, Any] = read_json(path, "make one with bench profile --out")
    if fault := fault_in(stored, _STORED) or (None if stored["schema"] == SCHEMA else f"its schema is no {SCHEMA}"):
        raise UserError(f"--against {path}: this is no {SCHEMA} ({fault}); make one with bench profile --out")
    return stored


def side_by_side(result: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Compare two profiles part by part; a part that one of them lacks takes no time there.

    Returns:
        Description of the other profile, and rows with the seconds and floors of both, the difference in seconds
        (`result` minus `other`) and the ratio of the seconds (None if the other lacks the part).
    """
    ours, theirs = ({part["name"]: part for part in each["parts"]} for each in (result, other))
    rows = []
    for name in sorted({*ours, *theirs}, key=_position):
        own, foreign = (
            {key: parts[name][key] if name in parts else 0.0 for key in ("seconds", "floor_seconds")}
            for parts in (ours, theirs)
        )
        rows.append(
            {"name": name}
            | own
            | {f"other_{key}": value for key, value in foreign.items()}
            | {"difference": own["seconds"] - foreign["seconds"]}
            | {"ratio": own["seconds"] / foreign["seconds"] if foreign["seconds"] else None}
        )
    kept = ("recipe", "device", "backend", "dtype", "kernels", "environment", "step_seconds")
    return {key: other[key] for key in kept} | {"parts": rows}


def print_side_by_side(console: Console, result: dict[str, Any]) -> None:
    """Print both profiles of a result with `against` as a table."""
    other = result["against"]
    names = [f"{each['recipe']['name']} {each['recipe']['hash'][:6]}, {each['device']}" for each in (result, other)]
    table = Table(title=f"{names[0]} against {names[1]}: {_milliseconds(result)} and {_milliseconds(other)} a step")
    table.add_column("part", no_wrap=True)
    for column in ("ms", "other, ms", "difference", "ratio", "floor, ms", "other floor"):
        table.add_column(column, justify="right", no_wrap=True)
    for part in other["parts"]:
        table.add_row(
            part["name"],
            f"{1e3 * part['seconds']:.3f}",
            f"{1e3 * part['other_seconds']:.3f}",
            f"{1e3 * part['difference']:+.3f}",
            "" if part["ratio"] is None else f"{part['ratio']:.2f}",
            f"{1e3 * part['floor_seconds']:.3f}",
            f"{1e3 * part['other_floor_seconds']:.3f}",
        )
    console.print(table)


def _milliseconds(result: dict[str, Any]) -> str:
    return f"{1e3 * result['step_seconds']:.2f} ms"


def print_profile(console: Console, result: dict[str, Any]) -> None:
    """Print the result as a table."""
    whole, alone = 1e3 * result["step_seconds"], 1e3 * result["unprofiled_step_seconds"]
    recipe = result["recipe"]
    table = Table(
        title=f"{recipe['name']}, a step of {recipe['batch_size']} images in {whole:.2f} ms "
        f"({alone:.2f} ms without the profiler), {result['backend']}, {result['dtype']}, {result['device']}"
    )
    table.add_column("part", no_wrap=True)
    for column in ("ms", "%", "calls", "MB", "GFLOP", "% bandwidth", "% FLOP rate", "floor, ms"):
        table.add_column(column, justify="right", no_wrap=True)
    for part in result["parts"]:
        table.add_row(
            part["name"],
            f"{1e3 * part['seconds']:.3f}",
            f"{100 * part['share']:.1f}",
            f"{part['calls']:.0f}",
            f"{part['bytes'] / 1e6:.2f}",
            f"{part['flops'] / 1e9:.3f}",
            f"{100 * part['bandwidth_share']:.0f}",
            f"{100 * part['rate_share']:.0f}",
            f"{1e3 * part['floor_seconds']:.3f}",
        )
    console.print(table)
    copies, rates = result["ceilings"]["copies"], result["ceilings"]["rates"]
    speeds = ", ".join(f"{rate / 1e9:,.0f} GB/s moving {moved / 2**20:g} MiB" for moved, rate in copies)
    console.print(f"measured ceilings: copy {speeds}", highlight=False)
    console.print(
        "matrix multiplication " + ", ".join(f"{rate / 1e12:.3g} TFLOP/s {name}" for name, rate in rates.items()),
        highlight=False,
    )
