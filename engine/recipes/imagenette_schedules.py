"""Learning rate study of hlb-imagenette by Louis Caubet (https://github.com/LouisCaubet/hlb-imagenette).

Eight schedules of 50 epochs, that is 450 steps, each run once; the accuracies are those of the slides. Only the
schedule of the non-bias optimizer changes: biases of batch norm keep the linear cycle of the base.

The notebook runs only the exponential schedule. The numbers of the others are read off the plots in the slides, where
all peaks are at the base's learning rate; the slides have the base at 90.52 %. Omitted: the notebook's commented-out
CyclicLR lines, whose numbers do not match the plots.
"""

import dataclasses
from typing import Any

from ..recipe import Claim, Group, Recipe
from .imagenette import imagenette

_SLIDES = "https://github.com/LouisCaubet/hlb-imagenette/blob/main/Project_presentation.pdf"
_STUDY: dict[str, tuple[float, str, dict[str, Any]]] = {
    "one-cycle-cosine": (0.9001, "up and down where the base does, in cosines", {"kind": "one_cycle_cosine"}),
    # The plot was drawn by hand: bulging triangles whose peaks, in steps 45, 135 and so on, halve from the base's rate.
    # PyTorch's exp_range has straight triangles and falls from the first step on, so its first peak is at 0.71.
    "exp-range": (
        0.8975,
        "five triangles, each peak half as high, the first at 0.71",
        {"kind": "cyclic_exp_range", "half_cycle": 0.1, "end": 1 / 32},
    ),
    "triangular2": (
        0.8939,
        "five triangles from zero, each half as high as the one before",
        {"kind": "cyclic_triangular2", "half_cycle": 0.1},
    ),
    "triangular": (0.8929, "five triangles from zero", {"kind": "cyclic_triangular", "half_cycle": 0.1}),
    # CosineAnnealingLR with T_max = 90.
    "oscillating-cosine": (0.8921, "two and a half cosines down to zero", {"kind": "cosine", "half_cycle": 0.2}),
    "cosine": (0.8901, "half a cosine from the first step down to zero", {"kind": "cosine"}),
    # The notebook's own run ended with 0.8591.
    "exponential": (0.8664, "one percent less each step of 450", {"kind": "exponential", "end": 0.99**450}),
}
"""Accuracy on the slides, summary and schedule of all but the base, the best first."""

_BIASES = "biases of batch norm keep the base's schedule (--set schedule.batch_norm_biases=shared)"
_MOMENTUM = "momentum stays as it is; the original's CyclicLR, by default, moves it between 0.8 and 0.9"
_MODE = "its mode exists; the original's, exp-range, is refused by PyTorch, which has exp_range"


def _variant(name: str, base: Recipe) -> Recipe:
    accuracy, summary, schedule = _STUDY[name]
    mended = [*base.mended]
    if schedule["kind"].startswith("cyclic"):
        mended.append(_MOMENTUM)
    if name == "exp-range":
        mended.append(_MODE)
    return dataclasses.replace(
        base,
        name=f"imagenette-schedules/{name}",
        summary=summary,
        source=_SLIDES,
        claim=Claim(accuracy=accuracy, seconds=None, hardware="unknown GPU"),
        faithful=(*base.faithful, _BIASES),
        mended=tuple(mended),
        schedule=dataclasses.replace(base.schedule, **schedule, batch_norm_biases="one_cycle"),
    )


def imagenette_schedules() -> Group:
    """The base, which has a linear cycle, and seven other schedules."""
    base = imagenette()
    return Group(
        name="imagenette-schedules",
        summary="eight learning rate schedules on Imagenette, hlb-imagenette's study of single runs",
        base=base,
        variants=tuple(_variant(name, base) for name in _STUDY),
    )


RECIPES = ()
GROUPS = (imagenette_schedules,)
