"""Pictures of measurements."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from speedyresnet.engine.plots import COLORS, matplotlib_pyplot, save_figure
from speedyresnet.engine.record import machine_name

_MEASURED, _FLOOR = "#c9d4e3", "#1f4e8c"
_REST = COLORS[0]
_KINDS = dict(zip(("dgrad", "forward", "wgrad"), COLORS[1:], strict=False))


def _title(profile: dict[str, Any]) -> str:
    recipe = profile["recipe"]
    return (
        f"{recipe['name']}, a step of {recipe['batch_size']} images: {1e3 * profile['step_seconds']:.2f} ms "
        f"({profile['backend']}, {profile['dtype']})\n{machine_name(profile['environment'])}"
    )


def draw_parts(profile: dict[str, Any], path: Path) -> None:
    """Draw bars of the parts' milliseconds, the longest first, with their floors in front."""
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
    save_figure(figure, path)


def computing(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return those of `rows`, parts or cases, that have a place in a roofline plot."""
    return [each for each in rows if each["flops"] > 0 and each["bytes"] > 0 and each["seconds"] > 0]


def _share_a_label(point: tuple[float, float], other: tuple[float, float]) -> bool:
    """Return whether two points of a roofline plot are too close to each other for separate labels."""
    horizontal, vertical = (abs(math.log10(a / b)) for a, b in zip(point, other, strict=True))
    return horizontal < 0.25 and vertical < 0.12


def plot_roofline(axes: Any, measured: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Plot FLOPs per second over FLOPs per byte of `rows`, numbered from 1, under the measured ceilings.

    Args:
        axes: matplotlib axes.
        measured: holds `ceilings` and the `dtype` whose rate is the roof.
        rows: see `computing`; the last word of a name is its pass.
    """
    points = [(each["flops"] / each["bytes"], each["flops"] / each["seconds"]) for each in rows]
    _plot_ceilings(axes, measured, points)
    labels: dict[tuple[float, float], list[str]] = {}
    for number, (each, point) in enumerate(zip(rows, points, strict=True), start=1):
        axes.scatter(*point, color=_KINDS.get(each["name"].rpartition(" ")[2], _REST), s=20, zorder=3)
        near = next((other for other in labels if _share_a_label(point, other)), point)
        labels.setdefault(near, []).append(str(number))
    for point, numbers in labels.items():
        axes.annotate(", ".join(numbers), point, xytext=(5, -3), textcoords="offset points", fontsize=8)
    for kind, color in _KINDS.items():
        axes.scatter([], [], color=color, s=20, label=kind)
    axes.legend(loc="lower right", fontsize=8, framealpha=0)


def draw_roofline(profile: dict[str, Any], path: Path) -> None:
    """Draw the roofline plot of every part that computes."""
    figure, axes = matplotlib_pyplot().subplots(figsize=(10, 6), layout="constrained")
    parts = computing(profile["parts"])
    plot_roofline(axes, profile, parts)
    legend = "\n".join(f"{number:2d}  {each['name']}" for number, each in enumerate(parts, start=1))
    axes.text(1.01, 1.0, legend, transform=axes.transAxes, va="top", fontsize=8, family="monospace")
    axes.set_title(_title(profile), fontsize=10)
    save_figure(figure, path)


def _plot_ceilings(axes: Any, measured: dict[str, Any], points: Sequence[tuple[float, float]]) -> None:
    """Plot the roof: the bandwidth of the largest copy up to the ridge, then the rate of a matrix multiplication."""
    bandwidth = measured["ceilings"]["copies"][-1][1]
    rate = measured["ceilings"]["rates"][measured["dtype"]]
    ridge = rate / bandwidth
    intensities = [ridge, *(intensity for intensity, _ in points)]
    left, right = min(intensities) / 3, max(intensities) * 5
    bottom = min([left * bandwidth, *(reached / 2 for _, reached in points)])
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(bottom, 2.5 * rate))
    axes.set(xlabel="FLOPs a byte moved", ylabel="FLOPs a second")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter("")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter(matplotlib_pyplot().matplotlib.ticker.EngFormatter())
    axes.grid(True, which="major", alpha=0.2)
    axes.plot([left, ridge, right], [left * bandwidth, rate, rate], color=axes.xaxis.label.get_color(), linewidth=1.5)
    low = 3 * left
    axes.text(1.15 * low, low * bandwidth, f"{bandwidth / 1e9:,.0f} GB/s, largest copy", fontsize=8, va="top")
    text = f"{rate / 1e12:.3g} TFLOP/s, {measured['dtype']} matrix multiplication"
    axes.text(right, 1.25 * rate, text, fontsize=8, ha="right")


def picture_paths(path: Path) -> tuple[Path, Path]:
    """Return the paths of the pictures of the profile `path`, which are beside it."""
    return path.with_suffix(".parts.png"), path.with_suffix(".roofline.png")
