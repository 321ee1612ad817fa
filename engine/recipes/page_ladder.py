"""David Page's steps (https://github.com/davidcpage/cifar10-fast, myrtle.ai 2018) from DAWNBench's ResNet to DavidNet.

Each rung changes the one before it only as stated. The last one is followed by davidnet, whose notes apply here too.

Differences from the original: incomplete batches are dropped, so an epoch has 390 steps of 128 images (the original:
391), 97 of 512 (98) and 65 of 768 (66); crops, flips and cutouts are drawn anew for each image and epoch, but not with
NumPy.
"""

import dataclasses
from dataclasses import dataclass

from ..recipe import Claim, Group, Recipe
from ..settings import with_settings
from .davidnet import davidnet

_SOURCE = "https://github.com/davidcpage/cifar10-fast/blob/f79e8b8/experiments.ipynb"
_SLOW_BATCH_NORM = "batch norm is in float16, which is slow (--set net.batch_norm_precision=float32)"
_DRAWN_SCALES = (
    "batch-norm scales begin uniform in [0, 1), as with PyTorch 0.4; with one of today the notebook's begin at 1 "
    "(--set net.batch_norm_scale_init=one)"
)
_REFUSED_ARGUMENT = (
    "its net can be made; the notebook's needs an argument, bn_weight_init, that its module no longer takes"
)


@dataclass(frozen=True, slots=True)
class _Rung:
    """Changes of a rung and its result on a V100.

    Seconds are those of the notebook's headings, accuracies those of the headings or, if missing, of the log below
    them.
    """

    name: str
    summary: str
    accuracy: float
    seconds: float
    settings: tuple[str, ...]

    def over(self, before: Recipe) -> Recipe:
        """Return the recipe of this rung."""
        made = with_settings(before, self.settings)
        drawn = made.net.batch_norm_scale_init == "uniform"
        return dataclasses.replace(
            made,
            name=f"page-ladder/{self.name}",
            summary=self.summary,
            source=_SOURCE,
            claim=Claim(accuracy=self.accuracy, seconds=self.seconds, hardware="V100"),
            faithful=(_SLOW_BATCH_NORM,) if made.net.batch_norm_precision == "native" else (),
            mended=(*davidnet().mended, _DRAWN_SCALES if drawn else _REFUSED_ARGUMENT),
        )


_BASELINE = _Rung(
    "baseline",
    "ResNet of pre-activation blocks, all half-precision, crop and flip, batches of 128, 35 epochs",
    0.9412,
    297.0,
    (
        "batch_size=128",
        "epochs=35",
        "net.widths=64,128,256,256",
        "net.pre_activation_blocks=2",
        "net.group_convolutions=2",
        "net.single_groups=",
        "net.residual=none",
        "net.pool=before_norm",
        "net.batch_norm_precision=native",
        "net.batch_norm_scale_init=uniform",
        "net.head_pool=max_and_mean",
        "net.head_bias=true",
        "net.logit_scale=1",
        "augmentation.cutout=0",
        "optimizer.learning_rate=0.1",
        f"schedule.knots=0,{15 / 35},{30 / 35},1",
        "schedule.values=0,1,0.05,0",
    ),
)
_RUNGS = (
    _Rung(
        "mini-batches",
        "batches of 512",
        0.9412,
        256.0,
        ("batch_size=512", "optimizer.learning_rate=0.44", f"schedule.values=0,1,{0.005 / 0.44},0"),
    ),
    _Rung("fp32-batch-norm", "float32 batch norm", 0.9370, 186.0, ("net.batch_norm_precision=float32",)),
    _Rung(
        "cutout",
        "cutout and 30 epochs",
        0.9414,
        161.0,
        (
            "augmentation.cutout=8",
            "epochs=30",
            "optimizer.learning_rate=0.4",
            f"schedule.knots=0,{8 / 30},1",
            "schedule.values=0,1,0",
        ),
    ),
    _Rung("batch-768", "batches of 768", 0.9360, 154.0, ("batch_size=768", "optimizer.learning_rate=0.6")),
    _Rung(
        "backbone",
        "the shortcuts alone, batches of 512, 20 epochs",
        0.559,
        36.0,
        (
            "net.pre_activation_branches=false",
            "batch_size=512",
            "epochs=20",
            "optimizer.learning_rate=0.4",
            f"schedule.knots=0,{4 / 20},1",
        ),
    ),
    _Rung(
        "single-batch-norms",
        "one batch norm and ReLU behind each convolution",
        0.560,
        32.0,
        (
            "net.pre_activation_blocks=0",
            "net.pre_activation_branches=true",
            "net.widths=128,256,256",
            "net.group_convolutions=1",
            "net.first_kernel=1",
            "net.pool=none",
        ),
    ),
    _Rung("3x3", "3x3 convolutions that stride instead of 1x1", 0.856, 36.0, ("net.first_kernel=3",)),
    _Rung("max-pool", "convolution and max-pool instead of strides", 0.897, 43.0, ("net.pool=after_norm",)),
    _Rung(
        "global-max-pool",
        "global max-pool of 512 channels instead of maxima and means of 256",
        0.907,
        47.0,
        ("net.head_pool=max", "net.widths=128,256,512"),
    ),
    _Rung(
        "scale-1",
        "batch-norm scales begin at 1, logits divided by 8, no head bias",
        0.911,
        47.0,
        ("net.batch_norm_scale_init=one", "net.logit_scale=0.125", "net.head_bias=false"),
    ),
    _Rung(
        "residual",
        "residual branches behind the first and third group: davidnet's net, 20 epochs",
        0.937,
        66.0,
        ("net.group_convolutions=3", "net.single_groups=1", "net.residual=after_activation"),
    ),
)


def page_ladder() -> Group:
    """The rungs of experiments.ipynb as of f79e8b8, from 297 s to the net that trains to 94 % in 79 s."""
    rungs = [_BASELINE.over(davidnet())]
    for rung in _RUNGS:
        rungs.append(rung.over(rungs[-1]))
    return Group(
        name="page-ladder",
        summary="How to train your ResNet: David Page's steps from the baseline to DavidNet",
        base=rungs[0],
        variants=tuple(rungs[1:]),
    )


RECIPES = ()
GROUPS = (page_ladder,)
