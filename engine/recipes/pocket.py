"""Recipe for CPUs: a laptop trains it in about two minutes."""

from ..recipe import Augmentation, Averaging, Evaluation, Loss, Net, Optimizer, Recipe, Schedule


def pocket() -> Recipe:
    """airbench94 at half its width, in bfloat16 with master weights on CPUs that compute it fast.

    The whitening has no bias: training one requires the input gradient of the widest convolution.
    """
    return Recipe(
        name="pocket",
        summary="for CPUs: 32/128/128 groups, alternating flip, lookahead, 6 epochs",
        source="this project; airbench94 scaled down",
        batch_size=256,
        epochs=6.0,
        net=Net(
            widths=(32, 128, 128),
            whitening_bias=False,
            batch_norm_momentum=0.4,
            convolution_init="dirac",
            logit_scale=1 / 9,
        ),
        augmentation=Augmentation(padding=2, flip="alternating"),
        loss=Loss(label_smoothing=0.2),
        optimizer=Optimizer(
            learning_rate=1.0,
            momentum=0.85,
            weight_decay=1.33e-3,
            batch_norm_bias_scale=64.0,
            master_weights=True,
        ),
        schedule=Schedule(kind="triangle", start=0.2, peak=0.23, end=0.07),
        averaging=Averaging(kind="lookahead", every=5, decay=0.95, power=3.0),
        evaluation=Evaluation(view="mirror", batch_size=500),
    )


RECIPES = (pocket,)
