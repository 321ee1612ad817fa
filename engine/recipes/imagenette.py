"""hlb-imagenette by LouisCaubet (https://github.com/LouisCaubet/hlb-imagenette), Apache-2.0: hlb-v0.4 on Imagenette.

Images are squashed to 64 x 64 pixels, as in `data pack imagenette`. Training uses random windows of 32 x 32, evaluation
whole images, which works because the net ends in a global max-pool.
"""

import dataclasses

from ..recipe import Claim, Group, Net, Recipe
from .davidnet import GHOST_STATISTICS
from .hlb import v0_4

_GPU = "a GPU of Colab, not named"


def imagenette() -> Recipe:
    """Commit 0c904b3 with the 50 epochs of its notebook and slides; its scripts use 25, as do the ablations."""
    base = v0_4()
    return dataclasses.replace(
        base,
        name="imagenette",
        summary="hlb-v0.4 for Imagenette: 32x32 windows of 64x64 images, 50 epochs of 9 steps",
        data="imagenette",
        source="https://github.com/LouisCaubet/hlb-imagenette/blob/0c904b3/main.py",
        claim=Claim(accuracy=0.9004, seconds=50.5, hardware=_GPU),
        faithful=(
            *base.faithful,
            "training sees windows of 32 pixels of 64: the crop size was never adapted (--set augmentation.crop=0)",
        ),
        mended=(
            *base.mended,
            "it runs; the original's scripts never import their data set: a NameError, unless data.pt is there already",
        ),
        epochs=50.0,
        augmentation=dataclasses.replace(base.augmentation, crop=32),
        evaluation=dataclasses.replace(base.evaluation, batch_size=785),
    )


def imagenette_ablations() -> Group:
    """The three ablations of the original, each a script of its own that changes one thing.

    Claims are those of the slides, means of five runs. In the notebook changes accumulated: "unmoved pool" ran without
    whitening, "ghost batch norm" and "without whitening" ran with both; the slides may have their figures from there.
    """
    name, made = "imagenette-ablations", imagenette()

    def member(variant: str, summary: str, script: str, claim: tuple[float, float], net: Net) -> Recipe:
        accuracy, seconds = claim
        return dataclasses.replace(
            made,
            name=f"{name}/{variant}",
            summary=summary,
            source=f"https://github.com/LouisCaubet/hlb-imagenette/blob/0c904b3/{script}.py",
            claim=Claim(accuracy=accuracy, seconds=seconds, hardware=_GPU),
            epochs=25.0,
            net=net,
        )

    net = made.net
    pool = dataclasses.replace(net, pool="after_norm")
    stem = dataclasses.replace(net, whitening_kernel=0, project_kernel=3)
    ghost = dataclasses.replace(net, batch_norm_groups=16, project_ghost_norm=False)
    batch_norm = member("batch-norm", "ghost batch norm", "main_with_ghostbatchnorm", (0.875, 38.1), ghost)
    return Group(
        name=name,
        summary="imagenette in 25 epochs, and three changes to it; published figures may be of changes added up",
        base=member("base", "imagenette in 25 epochs", "main", (0.879, 34.9), net),
        variants=(
            member("pool", "pools behind norm and activation", "main_without_moving_maxpool", (0.871, 41.8), pool),
            member("whitening", "a trained 3x3 stem", "main_without_whitening", (0.869, 40.3), stem),
            dataclasses.replace(batch_norm, mended=(*batch_norm.mended, GHOST_STATISTICS)),
        ),
    )


RECIPES = (imagenette,)
GROUPS = (imagenette_ablations,)
