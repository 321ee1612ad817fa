"""airbench by Keller Jordan (https://github.com/KellerJordan/cifar10-airbench), MIT; paper: arXiv 2404.00498.

The arithmetic below turns the originals' learning rates and decays into those of the mean loss.
"""

from ..recipe import Augmentation, Averaging, Claim, Evaluation, Loss, Muon, Net, Optimizer, Recipe, Schedule


def airbench94() -> Recipe:
    """legacy/airbench94.py as of f1c599c: 9.9 epochs to 94 % with six views.

    The original gives learning rate and decay decoupled, per 1,024 examples and divided by 1 + 1 / (1 - momentum), the
    growth of a step by Nesterov momentum.
    """
    momentum = 0.85
    return Recipe(
        name="airbench94",
        summary="airbench94: 64/256/256 groups, alternating flip, lookahead, six views, 9.9 epochs",
        source="https://github.com/KellerJordan/cifar10-airbench/blob/f1c599c/legacy/airbench94.py",
        claim=Claim(accuracy=0.9401, seconds=3.83, hardware="A100-SXM4-80GB"),
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
        optimizer=Optimizer(
            learning_rate=11.5 / (1 + 1 / (1 - momentum)),
            momentum=momentum,
            weight_decay=0.0153 / 11.5,
            batch_norm_bias_scale=64.0,
            whitening_bias_epochs=3.0,
        ),
        schedule=Schedule(kind="triangle", start=0.2, peak=0.23, end=0.07),
        averaging=Averaging(kind="lookahead", every=5, decay=0.95, power=3.0),
        evaluation=Evaluation(view="six_view", batch_size=2000),
    )


def airbench94_muon() -> Recipe:
    """airbench94_muon.py as of f1c599c: 8 epochs to 94 % with six views; Muon instead of averaging and warm-up.

    The original's learning rates are those of the summed loss; Muon's does not depend on it.

    Different here: Muon computes in float32 and rounds a weight once a step (the original: each operation in float16).
    Left out, because they change nothing: the order of the whitening filters, and the transposition of matrices with
    more rows than columns, of which there are none.
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


RECIPES = (airbench94, airbench94_muon)
