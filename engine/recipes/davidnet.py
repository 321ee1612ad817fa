"""cifar10-fast by David Page (https://github.com/davidcpage/cifar10-fast), MIT; its net is known as DavidNet.

Difference from the original in every recipe of this file: activations are in channels_last (the original: contiguous).
"""

import dataclasses

from ..recipe import Augmentation, Averaging, Claim, Evaluation, Loss, Net, Optimizer, Recipe, Schedule

GHOST_STATISTICS = (
    "statistics are those of all ghost groups; the original's average has those of the first from the second epoch on"
)


def davidnet() -> Recipe:
    """dawn.py as of f79e8b8, the DAWNBench entry: 24 epochs to 94 % with one view."""
    epochs, warm_up = 24, 5
    return Recipe(
        name="davidnet",
        summary="cifar10-fast: ResNet-9 without whitening, learned batch-norm scales, cutout, one view, 24 epochs",
        source="https://github.com/davidcpage/cifar10-fast/blob/f79e8b8/dawn.py",
        claim=Claim(accuracy=0.9408, seconds=74.0, hardware="V100"),
        mended=("it runs with today's NumPy; the original calls np.float, which is gone",),
        batch_size=512,
        epochs=float(epochs),
        net=Net(
            widths=(128, 256, 512),
            group_convolutions=3,
            single_groups=(1,),
            residual="after_activation",
            activation="relu",
            pool="after_norm",
            whitening_kernel=0,
            whitening_bias=False,
            project_width=64,
            project_kernel=3,
            batch_norm_momentum=0.1,
            batch_norm_epsilon=1e-5,
            batch_norm_scale="learned",
            convolution_init="default",
            logit_scale=1 / 8,
        ),
        augmentation=Augmentation(padding=4, flip="random", cutout=8),
        loss=Loss(label_smoothing=0.0),
        optimizer=Optimizer(
            learning_rate=0.4,
            momentum=0.9,
            learning_rate_inside=True,
            weight_decay=5e-4,
            batch_norm_bias_scale=1.0,
        ),
        schedule=Schedule(kind="piecewise", knots=(0.0, warm_up / epochs, 1.0), values=(0.0, 1.0, 0.0)),
        averaging=Averaging(kind="none"),
        evaluation=Evaluation(view="single_view", batch_size=1000),
    )


def davidnet_tpu() -> Recipe:
    """TPU port with fenwicks, whose weight decay is a quarter of davidnet's.

    Known only from a student's summary (raghavendragaleppa/eva_assignment_12), not from its code: batch, momentum,
    learning rate, warm-up, epochs and decay are from there, everything else is davidnet's. The summary says that a
    decay of 0.005 underfits, at 90 %; it probably means 0.0005, davidnet's.
    """
    base = davidnet()
    return dataclasses.replace(
        base,
        name="davidnet-tpu",
        summary="davidnet with a quarter of the weight decay, as it was ported to TPUs",
        source="https://github.com/fenwickslab/fenwicks, by way of a summary",
        claim=None,
        mended=(),
        optimizer=dataclasses.replace(base.optimizer, weight_decay=1.25e-4),
    )


def bag_of_tricks() -> Recipe:
    """new_dawn.py as of f79e8b8: 10 epochs to 94 % with two views of the averaged net.

    Difference from the original: crops and flips are drawn for each image (the original: for groups of equal size).
    """
    epochs, warm_up, falling = 10, 2, 8
    return Recipe(
        name="bag-of-tricks",
        summary="davidnet with whitening, ghost batch norm, CELU, smoothed labels, averaging, mirror view, 10 epochs",
        source="https://github.com/davidcpage/cifar10-fast/blob/f79e8b8/new_dawn.py",
        claim=Claim(accuracy=0.941, seconds=26.0, hardware="V100"),
        mended=(
            GHOST_STATISTICS,
            "the average moves after steps 5, 10, ..., 970; the original's after 1, 6, ..., 966, without the last 4",
            "it runs with today's NumPy and PyTorch; the original calls np.float and torch.symeig, which are gone",
        ),
        batch_size=512,
        epochs=float(epochs),
        net=Net(
            widths=(128, 256, 512),
            group_convolutions=3,
            single_groups=(1,),
            residual="after_activation",
            activation="celu",
            whitening_kernel=3,
            whitening_padding=1,
            whitening_sign_pairs=False,
            whitening_bias=False,
            whitening_images=10_000,
            whitening_epsilon=1e-2,
            project_width=64,
            batch_norm_momentum=0.1,
            batch_norm_epsilon=1e-5,
            batch_norm_groups=16,
            convolution_init="default",
            logit_scale=1 / 16,
        ),
        augmentation=Augmentation(padding=4, flip="random"),
        loss=Loss(label_smoothing=0.2),
        optimizer=Optimizer(
            learning_rate=1.0,
            momentum=0.9,
            learning_rate_inside=True,
            weight_decay=5e-4,
            batch_norm_bias_scale=64.0,
        ),
        schedule=Schedule(kind="piecewise", knots=(0.0, warm_up / epochs, falling / epochs), values=(0.0, 1.0, 0.1)),
        averaging=Averaging(kind="ema", every=5, decay=0.99, power=0.0, finish=False),
        evaluation=Evaluation(view="mirror", weights="averaged", batch_size=1000),
    )


RECIPES = (davidnet, davidnet_tpu, bag_of_tricks)
