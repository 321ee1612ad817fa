"""Charts for a page: <svg> elements in the colour of the surrounding text, so that they suit light and dark pages."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from speedyresnet.engine.plots import COLORS, matplotlib_pyplot

from .statistics import Interval

_INCHES = 5
"""Width of a chart: about 360 pixels, so that a phone shows its text unscaled."""
_LOGARITHMIC_FROM = 10
"""Ratio of the longest to the shortest time above which the time axis is logarithmic."""
_INK = "#010203"  # in an SVG, stands for the colour of the surrounding text
_INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
_SVG_STYLE = dict.fromkeys(_INKED, _INK) | {
    "svg.fonttype": "none",  # text stays text: it uses the browser's font and can be searched
    "svg.hashsalt": "speedyresnet",  # the same picture gives the same bytes
    "text.parse_math": False,  # a dollar sign in a name does not start a formula
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True, slots=True)
class Cloud:
    """Repeated measurements of one thing and their mean."""

    runs: Sequence[tuple[float, float]]
    """(x, y) of each run."""
    x: Interval
    y: Interval


def _margins(intervals: Sequence[Interval]) -> list[list[float]]:
    """Return how far each interval reaches below and above its mean; 0 where there is no interval."""
    return [
        [0.0 if each.lower is None else each.mean - each.lower for each in intervals],
        [0.0 if each.upper is None else each.upper - each.mean for each in intervals],
    ]


def plot_clouds(axes: Any, clouds: Sequence[Cloud]) -> None:
    """Plot each run as a pale point and each mean with its interval in both directions."""
    for cloud, color in zip(clouds, series_colors(len(clouds)), strict=True):
        if len(cloud.runs) > 1:
            axes.scatter(*zip(*cloud.runs, strict=True), color=color, alpha=0.35, s=12, linewidths=0)
        bars = {"xerr": _margins([cloud.x]), "yerr": _margins([cloud.y])}
        axes.errorbar([cloud.x.mean], [cloud.y.mean], **bars, fmt="o", color=color, markersize=5, capsize=3)
    middles = [cloud.x.mean for cloud in clouds]
    if max(middles) > _LOGARITHMIC_FROM * min(middles) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    axes.margins(0.1)
    axes.grid(True, alpha=0.2)


def plot_lines(
    axes: Any, lines: Sequence[tuple[str, Sequence[float], Sequence[float]]], labels: tuple[str, str]
) -> None:
    """Plot `lines`, each a (color, xs, ys) tuple; `labels` are those of the x and y axes."""
    axes.set(xlabel=labels[0], ylabel=labels[1])
    for color, xs, ys in lines:
        axes.plot(xs, ys, color=color, alpha=0.5, linewidth=1, marker="o", markersize=2)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(True, alpha=0.2)


def plot_history(axes: Any, series: Sequence[Sequence[tuple[str, Interval]]]) -> None:
    """Plot intervals by commit, with the commits in the order of their first appearance."""
    places = {name: None for line in series for name, _ in line}
    order = {name: place for place, name in enumerate(places)}
    for line, color in zip(series, series_colors(len(series)), strict=True):
        values = [value for _, value in line]
        xs, ys = [order[name] for name, _ in line], [value.mean for value in values]
        axes.errorbar(xs, ys, yerr=_margins(values), fmt="o-", color=color, markersize=4, capsize=3, linewidth=1.2)
    axes.set_xticks(range(len(order)), [name[:7] for name in order], rotation=30, ha="right")
    axes.margins(x=0.1, y=0.15)
    axes.grid(True, alpha=0.2)


def series_colors(count: int) -> list[str]:
    """Return `count` colors, starting over after the last."""
    return [COLORS[number % len(COLORS)] for number in range(count)]


def svg_picture(plot: Callable[[Any], None], height: float = 3.2) -> str:
    """Return what `plot` draws on the given axes as an <svg> element in the colour of the surrounding text.

    Raises:
        UserError: matplotlib is not installed.
    """
    pyplot, text = matplotlib_pyplot(), io.StringIO()
    with pyplot.rc_context(_SVG_STYLE):
        figure, axes = pyplot.subplots(figsize=(_INCHES, height), layout="constrained")
        plot(axes)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
        pyplot.close(figure)
    element = text.getvalue()[text.getvalue().index("<svg") :]
    return re.sub(r'<g id="[^"]*">', "<g>", element).replace(_INK, "currentColor")  # ids repeat across pictures
