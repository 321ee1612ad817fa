"""airbench by Keller Jordan (https://github.com/KellerJordan/cifar10-airbench), MIT; paper: arXiv 2404.00498.

The originals give learning rate and decay decoupled, per 1,024 examples and divided by 1 + 1 / (1 - momentum), the
growth of a step by Nesterov momentum; the arithmetic below turns them into those of the mean loss.
"""

from ..recipe import Augmentation, Averaging, Claim, Evaluation, Loss, Net, Optimizer, Recipe, Schedule


def airbench94() -> Recipe:
    """legacy/airbench94.py as of f1c599c: 9.9 epochs to 94 % with six views."""
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


RECIPES = (airbench94,)
