"""This project's own way to 94 % with six views: `progressive` with less work where it appears to matter least.

Nothing here has been measured on a GPU yet; CPU results are in bench/LOG.md. `bench compare --group speedy-cuts
--validation 5000` compares what might be omitted from progressive; successful cuts go into `speedy`.
"""

import dataclasses

from ..recipe import Group, Recipe
from ..settings import with_settings
from .hiverge import progressive

_CUTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "pointwise-1": ("group 1 has a 1x1 convolution behind its first", ("net.pointwise_groups=0",)),
    "pointwise-2": ("group 2 has one", ("net.pointwise_groups=1",)),
    "pointwise-1-2": ("groups 1 and 2 have one", ("net.pointwise_groups=0,1",)),
    "from-20-pixels": ("three epochs at 20 pixels, three at 24", ("augmentation.sizes=20,20,20,24,24,24,0",)),
    "four-sizes": ("two epochs each at 20, 24 and 28 pixels", ("augmentation.sizes=20,20,24,24,28,28,0",)),
    "narrow-wide": ("fewer channels in group 2, more in group 3", ("net.widths=64,192,384",)),
    "max-and-mean": ("the head sees means beside maxima", ("net.head_pool=max_and_mean",)),
    "whitening-960": ("whitening from 960 images, as hiverge", ("net.whitening_images=960",)),
    "no-tail": (
        "no average and no floor under the learning rate",
        ("schedule.floor=0", "averaging.kind=none", "evaluation.weights=live"),
    ),
}
"""Summary and settings of possible omissions, and of additions that cost nothing."""


def _ours(made: Recipe, name: str, summary: str) -> Recipe:
    """Return `made` under a name of this project, without progressive's notes on its original."""
    source = "this project; progressive changed"
    return dataclasses.replace(made, name=name, summary=summary, source=source, claim=None, faithful=(), mended=())


def speedy() -> Recipe:
    """94 % with six views: progressive from 20 pixels on, with half an epoch more and 89 % of its FLOPs."""
    sizes = "augmentation.sizes=20,20,20,24,24,24,0"
    made = with_settings(progressive(), (sizes, "epochs=9.375", "schedule.epochs=9"))
    return _ours(made, "speedy", "progressive from 20 over 24 to 32 pixels, 9.375 epochs")


def speedy_cuts() -> Group:
    """Possible omissions from progressive, one change each."""
    base = progressive()
    return Group(
        name="speedy-cuts",
        summary="what might be left out of progressive for speed, one change each",
        base=base,
        variants=tuple(
            _ours(with_settings(base, settings), f"speedy-cuts/{name}", summary)
            for name, (summary, settings) in _CUTS.items()
        ),
    )


RECIPES = (speedy,)
GROUPS = (speedy_cuts,)
