"""airbench by Keller Jordan (https://github.com/KellerJordan/cifar10-airbench), MIT; paper: arXiv 2404.00498.

The arithmetic below converts the originals' learning rates and decays to those for the mean loss.
"""

import dataclasses

from ..recipe import Augmentation, Averaging, Claim, Evaluation, Loss, Muon, Net, Optimizer, Recipe, Schedule

_LAST_STEPS = "what is trained behind the last lookahead, every 5th step, is thrown away (--set averaging.finish=False)"
_WHITENING = "whitening filters stay out of the average; the original's begins with random ones, of which 1e-6 stays"


def _sgd(rate: float, decay: float) -> Optimizer:
    """Return the originals' SGD from their decoupled learning rate and decay.

    Both are per 1,024 examples and divided by 1 + 1 / (1 - momentum), the growth of a step due to Nesterov momentum.
    """
    momentum = 0.85
    return Optimizer(
        learning_rate=rate / (1 + 1 / (1 - momentum)),
        momentum=momentum,
        weight_decay=decay / rate,
        batch_norm_bias_scale=64.0,
        whitening_bias_epochs=3.0,
    )


def airbench94() -> Recipe:
    """legacy/airbench94.py as of f1c599c: 9.9 epochs to 94 % with six views."""
    return Recipe(
        name="airbench94",
        summary="airbench94: 64/256/256 groups, alternating flip, lookahead, six views, 9.9 epochs",
        source="https://github.com/KellerJordan/cifar10-airbench/blob/f1c599c/legacy/airbench94.py",
        claim=Claim(accuracy=0.9401, seconds=3.83, hardware="A100-SXM4-80GB"),
        faithful=(_LAST_STEPS,),
        mended=(_WHITENING,),
        batch_size=1024,
        epochs=9.9,
        net=Net(
            widths=(64, 256, 256),
            whitening_images=5000,
            whitening_epsilon=5e-4,
            batch_norm_momentum=0.4,
            convolution_init="dirac",
            logit_scale=1 / 9,
        ),
        augmentation=Augmentation(padding=2, flip="alternating"),
        loss=Loss(label_smoothing=0.2),
        optimizer=_sgd(rate=11.5, decay=0.0153),
        schedule=Schedule(kind="triangle", start=0.2, peak=0.23, end=0.07),
        averaging=Averaging(kind="lookahead", every=5, decay=0.95, power=3.0),
        evaluation=Evaluation(view="six_view", batch_size=2000),
    )


def airbench94_muon() -> Recipe:
    """airbench94_muon.py as of f1c599c: 8 epochs to 94 % with six views; Muon instead of averaging and warm-up.

    The original's learning rates are for the summed loss; Muon's does not depend on its scale.

    Differences from the original: Muon computes in float32 and rounds a weight once per step (the original: each
    operation in float16). Omitted because they have no effect: the order of the whitening filters, and the
    transposition of matrices with more rows than columns, of which there are none.
    """
    batch_size, rate, head_rate = 2000, 0.053, 0.67
    return Recipe(
        name="airbench94-muon",
        summary="airbench94 with Muon: batches of 2,000, linear decay from the first step, six views, 8 epochs",
        source="https://github.com/KellerJordan/cifar10-airbench/blob/f1c599c/airbench94_muon.py",
        claim=Claim(accuracy=0.9401, seconds=2.59, hardware="A100"),
        batch_size=batch_size,
        epochs=8.0,
        net=Net(
            widths=(64, 256, 256),
            whitening_bias_init="uniform",
            whitening_images=5000,
            whitening_epsilon=5e-4,
            batch_norm_momentum=0.4,
            convolution_init="dirac",
            head_init="unit_deviation",
            logit_scale=1 / 256,
        ),
        augmentation=Augmentation(padding=2, flip="alternating"),
        loss=Loss(label_smoothing=0.2),
        optimizer=Optimizer(
            kind="muon",
            learning_rate=rate * batch_size,
            momentum=0.85,
            weight_decay=2e-6 / rate,
            batch_norm_bias_scale=1.0,
            head_scale=head_rate / rate,
            whitening_bias_epochs=3.0,
            muon=Muon(
                learning_rate=0.24,
                momentum=0.6,
                newton_schulz_steps=3,
                newton_schulz_coefficients=(3.4445, -4.7750, 2.0315),
                newton_schulz_dtype="bfloat16",
                renormalise_every=1,
            ),
        ),
        schedule=Schedule(kind="linear", end=0.0, whitening_bias="linear"),
        averaging=Averaging(kind="none"),
        evaluation=Evaluation(view="six_view", batch_size=2000),
    )


def airbench93() -> Recipe:
    """airbench/lib_airbench93.py as of f1c599c: narrower, 11 epochs to 93.00 % (mean of 50 runs, no time published)."""
    base = airbench94()
    return dataclasses.replace(
        base,
        name="airbench93",
        summary="airbench94 with 64/128/128 groups, 11 epochs",
        source="https://github.com/KellerJordan/cifar10-airbench/blob/f1c599c/airbench/lib_airbench93.py",
        claim=None,
        epochs=11.0,
        net=dataclasses.replace(base.net, widths=(64, 128, 128)),
    )


def airbench95() -> Recipe:
    """legacy/airbench95.py as of f1c599c: wider, slower, 15 epochs to 95 % with six views."""
    base = airbench94()
    return dataclasses.replace(
        base,
        name="airbench95",
        summary="airbench94 with 128/384/384 groups and a lower learning rate, 15 epochs",
        source="https://github.com/KellerJordan/cifar10-airbench/blob/f1c599c/legacy/airbench95.py",
        claim=Claim(accuracy=0.9501, seconds=10.4, hardware="A100-SXM4-80GB"),
        faithful=(),
        epochs=15.0,
        net=dataclasses.replace(base.net, widths=(128, 384, 384)),
        optimizer=_sgd(rate=10.0, decay=0.0153),
    )


def airbench96() -> Recipe:
    """legacy/airbench96.py as of f1c599c: three convolutions per group, residuals, cutout, 37 epochs to 96 %.

    Its successor, airbench96_faster.py, cannot be expressed by settings: a small net selects its training examples.
    """
    base = airbench94()
    return dataclasses.replace(
        base,
        name="airbench96",
        summary="airbench94 with 128/384/512 residual groups of three convolutions, crops by 4, cutout, 37 epochs",
        source="https://github.com/KellerJordan/cifar10-airbench/blob/f1c599c/legacy/airbench96.py",
        claim=Claim(accuracy=0.9603, seconds=34.7, hardware="A100-SXM4-80GB"),
        epochs=37.0,
        net=dataclasses.replace(
            base.net,
            widths=(128, 384, 512),
            group_convolutions=3,
            residual="before_activation",
            batch_norm_momentum=0.1,
        ),
        augmentation=Augmentation(padding=4, flip="alternating", cutout=12),
        optimizer=_sgd(rate=9.0, decay=0.012),
        schedule=Schedule(kind="triangle", start=0.2, peak=0.1, end=0.0),
    )


RECIPES = (airbench93, airbench94, airbench94_muon, airbench95, airbench96)
