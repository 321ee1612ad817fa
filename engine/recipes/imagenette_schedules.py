"""The study of learning rates of hlb-imagenette by Louis Caubet (https://github.com/LouisCaubet/hlb-imagenette).

Eight schedules of 50 epochs, that is 450 steps, each run once; the accuracies are those of the slides. Only the
schedule of the non-bias optimizer changes: biases of batch norm keep the linear cycle of the base.

The notebook runs the exponential schedule only. What the others had for numbers is read off the plots in the slides,
where all peaks are at the base's learning rate. Left out: its CyclicLR lines, commented out, have other numbers than
its plots, a mode that PyTorch refuses ("exp-range"), and change the momentum in step, as CyclicLR does by default.
"""

import dataclasses
from typing import Any

from ..recipe import Claim, Group, Recipe
from .hlb import v0_4

_SLIDES = "https://github.com/LouisCaubet/hlb-imagenette/blob/main/Project_presentation.pdf"


def _base() -> Recipe:
    """The net of hlb-v0.4 in 50 epochs."""
    return dataclasses.replace(
        v0_4(),
        name="imagenette",
        summary="hlb-v0.4 in 50 epochs for Imagenette (--data imagenette)",
        source=_SLIDES,
        claim=Claim(accuracy=0.9052, seconds=None, hardware="unknown GPU"),
        epochs=50.0,
    )


def _variant(name: str, summary: str, accuracy: float, **schedule: Any) -> Recipe:
    """The base with other numbers of its schedule."""
    base = _base()
    return dataclasses.replace(
        base,
        name=f"imagenette-schedules/{name}",
        summary=summary,
        source=_SLIDES,
        claim=Claim(accuracy=accuracy, seconds=None, hardware="unknown GPU"),
        schedule=dataclasses.replace(base.schedule, **schedule, batch_norm_biases="one_cycle"),
    )


def one_cycle_cosine() -> Recipe:
    """Up to step 67 and down to the last, as in the base, in cosines."""
    summary = "up and down where the base does, in cosines"
    return _variant("one-cycle-cosine", summary, 0.9001, kind="one_cycle_cosine")


def exp_range() -> Recipe:
    """Triangles under an exponential, which falls by half in each of five cycles.

    The plot was drawn by hand: bulging triangles whose peaks, in steps 45, 135 and so on, halve from the base's
    learning rate. PyTorch's exp_range has straight ones and falls from the first step on, so that the first peak is at
    0.71 of it.
    """
    summary = "five triangles, each peak half as high, the first at 0.71"
    return _variant("exp-range", summary, 0.8975, kind="cyclic_exp_range", half_cycle=0.1, end=1 / 32)


def triangular2() -> Recipe:
    """Five triangles of 45 steps up and 45 down, each half as high as the one before."""
    summary = "five triangles from zero, each half as high as the one before"
    return _variant("triangular2", summary, 0.8939, kind="cyclic_triangular2", half_cycle=0.1)


def triangular() -> Recipe:
    """Five triangles of 45 steps up and 45 down."""
    return _variant("triangular", "five triangles from zero", 0.8929, kind="cyclic_triangular", half_cycle=0.1)


def oscillating_cosine() -> Recipe:
    """CosineAnnealingLR with T_max = 90: down and up again two and a half times."""
    return _variant("oscillating-cosine", "two and a half cosines down to zero", 0.8921, kind="cosine", half_cycle=0.2)


def cosine() -> Recipe:
    """CosineAnnealingLR over all 450 steps."""
    return _variant("cosine", "half a cosine from the first step down to zero", 0.8901, kind="cosine")


def exponential() -> Recipe:
    """ExponentialLR with gamma = 0.99; the run in the notebook itself ended with 0.8591."""
    summary = "one percent less each step of 450"
    return _variant("exponential", summary, 0.8664, kind="exponential", end=0.99**450)


def imagenette_schedules() -> Group:
    """The base, which has a linear cycle, and seven other schedules, the best of the study first."""
    return Group(
        name="imagenette-schedules",
        summary="eight learning rate schedules on Imagenette, hlb-imagenette's study of single runs",
        base=_base(),
        variants=(
            one_cycle_cosine(),
            exp_range(),
            triangular2(),
            triangular(),
            oscillating_cosine(),
            cosine(),
            exponential(),
        ),
    )


RECIPES = ()
GROUPS = (imagenette_schedules,)
