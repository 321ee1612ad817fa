"""Learning rate plots, and helpers for plots; they need matplotlib (extra `bench`), imported only to draw."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import check_writable, write_atomically
from .recipe import Recipe
from .schedules import plan

COLORS = ("#3b82f6", "#e8690b", "#2f9e44", "#8b5cf6", "#db2777", "#0e9aa7", "#b08900", "#7c8794")
"""Colors of series: middle tones, visible on white and on black."""
PLOT_SUFFIXES = (".png", ".svg")
_INCHES = 10, 5


def matplotlib_pyplot() -> Any:
    """Return pyplot, set up to draw into files.

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


def check_plot(path: Path) -> None:
    """Raise UserError if no plot can be written to `path` or matplotlib is not installed."""
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise UserError(f"cannot write {path} as a picture; give a name that ends in {' or '.join(PLOT_SUFFIXES)}")
    check_writable(path)
    matplotlib_pyplot()


def save_figure(figure: Any, path: Path) -> None:
    """Write a matplotlib figure in the format given by the suffix of `path`, and close it."""
    picture_format = path.suffix[1:].lower()
    write_atomically(path, lambda part: figure.savefig(part, dpi=120, format=picture_format))
    matplotlib_pyplot().close(figure)


@dataclass(frozen=True, slots=True)
class Curve:
    """Learning rate at each step of a run."""

    label: str
    color: str | None
    """None uses the color of the text."""
    epochs: tuple[float, ...]
    rates: tuple[float, ...]
    dashed: bool = False


def learning_rate_curves(recipes: Mapping[str, Recipe], images: int) -> list[Curve]:
    """Return the curve of each recipe's convolutions, and dashed curves of parameters with their own schedule.

    The dashed ones are scaled to the peak of the convolutions; recipes with the same curve share it.

    Args:
        recipes: recipes by label.
        images: number of training images.

    Raises:
        UserError: there are fewer images than a batch has.
    """
    curves, own = [], dict[tuple[Any, ...], list[str]]()
    colors = dict(zip(recipes, itertools.cycle(COLORS), strict=False))
    for label, made in recipes.items():
        found, peak = plan(made, images), made.optimizer.convolution_learning_rate
        epochs = tuple(step / found.steps_per_epoch for step in range(found.steps))
        curves.append(Curve(label, colors[label], epochs, tuple(peak * part for part in found.learning_rate)))
        whitening_bias = made.net.whitening_kernel and made.net.whitening_bias
        for kind, table in found.own_learning_rates.items():
            if table != found.learning_rate and (kind != "whitening_bias" or whitening_bias):
                own.setdefault((kind, epochs, tuple(peak * part for part in table)), []).append(label)
    for (kind, epochs, rates), labels in own.items():
        share = f" of {' and '.join(labels) if len(labels) < 3 else f'{len(labels)} recipes'}" * (len(recipes) > 1)
        color = colors[labels[0]] if len(labels) == 1 else None
        label = f"{kind.replace('_', ' ')}{share},\nscaled to the same peak"
        curves.append(Curve(label, color, epochs, rates, dashed=True))
    return curves


def plot_learning_rates(axes: Any, curves: list[Curve]) -> None:
    """Plot learning rates over epochs, without a legend."""
    text = axes.xaxis.label.get_color()
    for curve in curves:
        style = {"dashes": (3, 4), "linewidth": 1.2} if curve.dashed else {"linewidth": 1.8}
        axes.plot(curve.epochs, curve.rates, color=curve.color or text, label=curve.label, **style)
    axes.set(xlabel="epoch", ylabel="learning rate of the convolutions")
    axes.margins(x=0.01)
    axes.grid(True, alpha=0.2)


def save_learning_rates(title: str, recipes: Mapping[str, Recipe], images: int, path: Path) -> None:
    """Draw `learning_rate_curves` into the file `path`, with a legend."""
    pyplot = matplotlib_pyplot()
    with pyplot.rc_context({"text.parse_math": False}):  # a dollar sign in a name does not start a formula
        figure, axes = pyplot.subplots(figsize=_INCHES, layout="constrained")
        plot_learning_rates(axes, learning_rate_curves(recipes, images))
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside right upper", fontsize=9, frameon=False)
        save_figure(figure, path)
