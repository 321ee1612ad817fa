"""Pictures of what was measured; they need matplotlib (extra `bench`), which is imported only to draw."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speedyresnet.engine.errors import UserError
from speedyresnet.engine.files import write_atomically

_MEASURED, _FLOOR, _LIMIT = "#c9d4e3", "#1f4e8c", "#444444"
_KINDS = {"forward": "#1b7837", "dgrad": "#d95f02", "wgrad": "#7570b3"}
_REST = "#1f4e8c"


def matplotlib_pyplot() -> Any:
    """The plotting module, drawing into files.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise UserError("pictures need matplotlib: pip install 'speedyresnet[bench]'") from error
    matplotlib.use("agg")
    import matplotlib.pyplot as pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    write_atomically(path, lambda part: figure.savefig(part, dpi=120, format="png"))
    matplotlib_pyplot().close(figure)


def _title(profile: dict[str, Any]) -> str:
    recipe, machine = profile["recipe"], profile["environment"]
    where = machine["gpu"] or f"{machine['processor']}, {machine['threads']} threads"
    return (
        f"{recipe['name']}, a step of {recipe['batch_size']} images: {1e3 * profile['step_seconds']:.2f} ms "
        f"({profile['backend']}, {profile['dtype']})\n{where}, PyTorch {machine['torch']}"
    )


def draw_parts(profile: dict[str, Any], path: Path) -> None:
    """Bars of the parts' milliseconds, longest first, with their floors in front."""
    parts = sorted((each for each in profile["parts"] if each["seconds"] > 0), key=lambda each: each["seconds"])
    figure, axes = matplotlib_pyplot().subplots(figsize=(10, 0.9 + 0.29 * len(parts)), layout="constrained")
    names = [each["name"] for each in parts]
    measured = [1e3 * each["seconds"] for each in parts]
    floors = [1e3 * each["floor_seconds"] for each in parts]
    axes.barh(names, measured, color=_MEASURED, height=0.8, label="measured")
    axes.barh(names, floors, color=_FLOOR, height=0.35, label="floor: max(bytes / bandwidth, FLOPs / rate)")
    for row, each in enumerate(parts):
        text = f"  {measured[row]:.2f} ms, {100 * each['share']:.1f} %"
        axes.text(max(measured[row], floors[row]), row, text, va="center", fontsize=8)
    axes.set_xlim(0, 1.18 * max(measured))
    axes.set_ylim(-0.6, len(parts) - 0.4)
    axes.set_xlabel("milliseconds a step")
    axes.set_title(_title(profile), fontsize=10)
    axes.legend(loc="lower right", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def draw_roofline(profile: dict[str, Any], path: Path) -> None:
    """FLOPs a second over FLOPs a byte of every part that computes, under the measured ceilings."""
    figure, axes = matplotlib_pyplot().subplots(figsize=(10, 6), layout="constrained")
    parts = [each for each in profile["parts"] if each["flops"] > 0 and each["bytes"] > 0 and each["seconds"] > 0]
    points = [(each["flops"] / each["bytes"], each["flops"] / each["seconds"]) for each in parts]
    _draw_ceilings(axes, profile, points)
    labels: dict[tuple[int, int], list[int]] = {}  # points that lie on one another share a label
    for number, (each, (intensity, reached)) in enumerate(zip(parts, points, strict=True), start=1):
        color = _KINDS.get(each["name"].rpartition(" ")[2], _REST)
        axes.scatter([intensity], [reached], color=color, s=20, zorder=3)
        labels.setdefault((round(20 * math.log10(intensity)), round(20 * math.log10(reached))), []).append(number)
    for numbers in labels.values():
        text = ", ".join(map(str, numbers))
        axes.annotate(text, points[numbers[0] - 1], xytext=(5, -3), textcoords="offset points", fontsize=8)
    legend = "\n".join(f"{number:2d}  {each['name']}" for number, each in enumerate(parts, start=1))
    axes.text(1.01, 1.0, legend, transform=axes.transAxes, va="top", fontsize=8, family="monospace")
    axes.set_title(_title(profile), fontsize=10)
    for kind, color in _KINDS.items():
        axes.scatter([], [], color=color, s=20, label=kind)
    axes.legend(loc="lower right", fontsize=8)
    _save(figure, path)


def _draw_ceilings(axes: Any, profile: dict[str, Any], points: Sequence[tuple[float, float]]) -> None:
    """The roof: the bandwidth of the largest copy up to the ridge, then the rate of a matrix multiplication."""
    bandwidth = profile["ceilings"]["copies"][-1][1]
    rate = profile["ceilings"]["rates"][profile["dtype"]]
    ridge = rate / bandwidth
    intensities = [ridge, *(intensity for intensity, _ in points)]
    left, right = min(intensities) / 3, max(intensities) * 3
    bottom = min([left * bandwidth, *(reached / 2 for _, reached in points)])
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(bottom, 2 * rate))
    axes.set(xlabel="FLOPs a byte moved", ylabel="FLOPs a second")
    axes.grid(True, which="major", alpha=0.25)
    axes.plot([left, ridge, right], [left * bandwidth, rate, rate], color=_LIMIT, linewidth=1.5)
    low = 3 * left
    axes.text(1.15 * low, low * bandwidth, f"{bandwidth / 1e9:,.0f} GB/s, largest copy", fontsize=8, va="top")
    text = f"{rate / 1e12:.3g} TFLOP/s, {profile['dtype']} matrix multiplication"
    axes.text(ridge, 1.07 * rate, text, fontsize=8)


def picture_paths(path: Path) -> tuple[Path, Path]:
    """Where the pictures of the profile `path` go: beside it."""
    return path.with_suffix(".parts.png"), path.with_suffix(".roofline.png")


def draw_profile(profile: dict[str, Any], path: Path) -> None:
    """Both pictures of the profile that is stored at `path`."""
    parts, roofline = picture_paths(path)
    draw_parts(profile, parts)
    draw_roofline(profile, roofline)
