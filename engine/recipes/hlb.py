"""hlb-CIFAR10 by tysam-code (https://github.com/tysam-code/hlb-CIFAR10), Apache-2.0."""

import dataclasses

from ..recipe import Augmentation, Averaging, Claim, Evaluation, Loss, Net, Optimizer, Recipe, Schedule

FLOAT32_BATCH_NORM = (
    "batch norm keeps parameters and statistics in float32; the original in float16 "
    "(--set net.batch_norm_precision=native)"
)
_MENDED = (
    "crops, and squares with an even side, reach all places; the original leaves out the last row and column",
    "whitening is by the covariance of all images; the original averages eigenvectors, whose signs are arbitrary",
    FLOAT32_BATCH_NORM,
    "the first of equal maxima of a map gets the gradient; the original's amax shares it, and gives NaN if compiled",
)
_FLOAT32_LOSS = "the loss is that of float32 logits; the original casts them and drops the result"


def _v0_3_schedule(epochs: int, averaged_epochs: int) -> Schedule:
    """Return a schedule that peaks at a fifth of all epochs; the averaged last epochs keep the curve's final rate."""
    falling = epochs - averaged_epochs
    return Schedule(kind="one_cycle", start=0.0, peak=0.2 * epochs / falling, end=0.135, epochs=float(falling))


def v0_3() -> Recipe:
    """Version 0.3.0 (commit cb53b42): squeeze-and-excite, 10 epochs, the average of the last two is reported.

    Normalises with the data's own mean and deviation (the original: with constants, those of CIFAR-10).
    """
    epochs, averaged_epochs = 10, 2
    return Recipe(
        name="hlb-v0.3",
        summary="hlb-CIFAR10 v0.3: groups of three, one and three convolutions, squeeze-and-excite, 10 epochs",
        source="https://github.com/tysam-code/hlb-CIFAR10/blob/v0.3.0/main.py",
        claim=Claim(accuracy=0.94, seconds=10.0, hardware="A100"),
        mended=(
            *_MENDED,
            _FLOAT32_LOSS,
            "it tells its mean; the original ends, after its 25 runs, in an AttributeError: a tuple has no item()",
        ),
        batch_size=512,
        epochs=float(epochs),
        net=Net(
            widths=(128, 256, 512),
            group_convolutions=3,
            single_groups=(1,),
            residual="after_activation",
            squeeze_excite_ratio=16,
            whitening_sign_pairs=False,
            whitening_bias=False,
            whitening_images=50_000,
            whitening_centered=True,
            whitening_epsilon=1e-2,
            project_width=32,
            batch_norm_momentum=0.8,
            convolution_init="default",
            logit_scale=1 / 10,
        ),
        augmentation=Augmentation(padding=3, flip="random"),
        loss=Loss(label_smoothing=0.2),
        optimizer=Optimizer(
            learning_rate=1.15 * 1.35, momentum=0.85, weight_decay=0.85 * 4.8e-4, batch_norm_bias_scale=32.0
        ),
        schedule=_v0_3_schedule(epochs, averaged_epochs),
        averaging=Averaging(kind="ema", every=2, decay=0.986, power=0.0, epochs=averaged_epochs, finish=False),
        evaluation=Evaluation(view="mirror", weights="averaged", batch_size=1000),
    )


def v0_4() -> Recipe:
    """Version 0.4.0 (commit 353641a): 10 epochs, residual groups, the average is only evaluated."""
    return Recipe(
        name="hlb-v0.4",
        summary="hlb-CIFAR10 v0.4: 1x1-projected whitening, 128/256/512 residual groups, 10 epochs",
        source="https://github.com/tysam-code/hlb-CIFAR10/blob/v0.4.0/main.py",
        claim=Claim(accuracy=0.94, seconds=7.7, hardware="A100"),
        faithful=(
            "the average is not written back to the net, though the notes say it is (--set averaging.kind=lookahead)",
        ),
        mended=(*_MENDED, _FLOAT32_LOSS),
        batch_size=1024,
        epochs=10.0,
        net=Net(
            widths=(128, 256, 512),
            residual="after_activation",
            whitening_sign_pairs=False,
            whitening_bias=False,
            whitening_images=50_000,
            whitening_centered=True,
            whitening_epsilon=1e-2,
            project_width=32,
            batch_norm_momentum=0.8,
            convolution_init="default",
            logit_scale=1 / 10,
        ),
        augmentation=Augmentation(padding=2, flip="random"),
        loss=Loss(label_smoothing=0.2, scale=512 / 1024),
        optimizer=Optimizer(learning_rate=2.1, momentum=0.85, weight_decay=6.45e-4 * 2, batch_norm_bias_scale=32.0),
        schedule=Schedule(kind="one_cycle", start=0.0, peak=0.15, end=0.0),
        averaging=Averaging(kind="ema", every=5, decay=0.98, power=0.0, epochs=9, finish=False),
        evaluation=Evaluation(view="mirror", weights="live", batch_size=1000),
    )


def v0_7() -> Recipe:
    """Version 0.7.0 (commit ad103b4): no residuals, identity initialisation, lookahead, late cutmix."""
    return Recipe(
        name="hlb-v0.7",
        summary="hlb-CIFAR10 v0.7: 64/256/512 plain groups from identities, lookahead, late cutmix, 12.1 epochs",
        source="https://github.com/tysam-code/hlb-CIFAR10/blob/v0.7.0/main.py",
        claim=Claim(accuracy=0.94, seconds=6.3, hardware="A100"),
        faithful=(
            "the average that is evaluated lacks step 581, the last: it moves every 5 (--set evaluation.weights=live)",
            "averaging covers 10.1 epochs, not 10: the part of one comes on top (--set averaging.tail=10)",
            "cutmix covers 5.1 epochs, not 6: those that begin in the last 6 (--set augmentation.cutmix_epochs=7)",
        ),
        mended=_MENDED,
        batch_size=1024,
        epochs=12.1,
        net=Net(
            widths=(64, 256, 512),
            whitening_bias=False,
            whitening_images=50_000,
            whitening_centered=True,
            whitening_epsilon=1e-2,
            batch_norm_momentum=0.4,
            convolution_init="dirac_blend",
            logit_scale=1 / 9,
        ),
        augmentation=Augmentation(padding=2, flip="random", cutmix=3, cutmix_epochs=6.0),
        loss=Loss(label_smoothing=0.2, scale=512 / 1024),
        optimizer=Optimizer(learning_rate=1.525, momentum=0.85, weight_decay=6.687e-4 * 2, batch_norm_bias_scale=64.0),
        schedule=Schedule(kind="one_cycle", start=0.0, peak=0.23, end=0.07),
        averaging=Averaging(kind="lookahead", every=5, decay=0.95, power=3.0, epochs=10, finish=False),
        evaluation=Evaluation(view="mirror", weights="averaged", batch_size=2500),
    )


def v0_3_long() -> Recipe:
    """The long run of v0.3.0: twice as wide, 80 epochs."""
    base, epochs = v0_3(), 80
    return dataclasses.replace(
        base,
        name="hlb-v0.3-long",
        summary="hlb-v0.3 twice as wide, 80 epochs",
        claim=Claim(accuracy=0.9577, seconds=188.0, hardware="A100"),
        epochs=float(epochs),
        net=dataclasses.replace(base.net, widths=(256, 512, 1024), project_width=64),
        schedule=_v0_3_schedule(epochs, averaged_epochs=2),
    )


def v0_4_long() -> Recipe:
    """The long run of v0.4.0: twice as wide, 90 epochs, cutout; the average is reported."""
    base = v0_4()
    return dataclasses.replace(
        base,
        name="hlb-v0.4-long",
        summary="hlb-v0.4 twice as wide, with cutout, averaged weights evaluated, 90 epochs",
        claim=Claim(accuracy=0.9584, seconds=172.0, hardware="A100"),
        epochs=90.0,
        net=dataclasses.replace(base.net, widths=(256, 512, 1024), project_width=64),
        augmentation=dataclasses.replace(base.augmentation, cutout=11),
        averaging=dataclasses.replace(base.averaging, epochs=78),
        evaluation=dataclasses.replace(base.evaluation, weights="averaged"),
    )


def v0_7_long() -> Recipe:
    """The long run of v0.7.0: twice as wide, 90 epochs, larger and earlier cutmix."""
    base = v0_7()
    return dataclasses.replace(
        base,
        name="hlb-v0.7-long",
        summary="hlb-v0.7 twice as wide, with cutmix of 10 pixels from epoch 10 on, 90 epochs",
        claim=Claim(accuracy=0.9579, seconds=110.0, hardware="A100"),
        faithful=(),
        mended=(
            *_MENDED,
            "the last epoch trains; the original does no step in one that is whole and stops at 0.083 of the peak rate "
            "(--set epochs=89 --set schedule.epochs=90 --set averaging.epochs=79 --set averaging.decay=0.9436525 "
            "--set augmentation.cutmix_epochs=79)",
        ),
        epochs=90.0,
        net=dataclasses.replace(base.net, widths=(128, 512, 1024)),
        augmentation=dataclasses.replace(base.augmentation, cutmix=10, cutmix_epochs=80.0),
        averaging=dataclasses.replace(base.averaging, epochs=80),
    )


def v0_4_cifar100() -> Recipe:
    """v0.4.0 on CIFAR-100: its release notes say to change only the data; they give no figure."""
    return dataclasses.replace(
        v0_4(),
        name="hlb-v0.4-cifar100",
        summary="hlb-v0.4 for CIFAR-100",
        data="cifar100",
        source="https://github.com/tysam-code/hlb-CIFAR10/releases/tag/v0.4.0",
        claim=None,
    )


def v0_7_cifar100() -> Recipe:
    """v0.7.0 on CIFAR-100, derived as in the release notes of v0.4.0: only the data change; no figure either."""
    return dataclasses.replace(
        v0_7(), name="hlb-v0.7-cifar100", summary="hlb-v0.7 for CIFAR-100", data="cifar100", claim=None
    )


RECIPES = (v0_3, v0_3_long, v0_4, v0_4_long, v0_4_cifar100, v0_7, v0_7_long, v0_7_cifar100)
