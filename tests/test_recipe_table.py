"""What every recipe comes to, against the originals: numbers read or derived from their sources, not from this code."""

import dataclasses

import numpy as np
import pytest
import torch
from tiers import parametrize

from speedyresnet.engine import recipe, train
from speedyresnet.engine.nets import forward_flops_per_image, make_net, parameter_counts
from speedyresnet.engine.recipes import group as group_called
from speedyresnet.engine.recipes import registered_recipes
from speedyresnet.engine.schedules import plan
from speedyresnet.engine.step import TrainingState, training_window


def lookahead(steps, *moves):
    """What is kept at the moves, counted from 1: the decay of five steps at 0.95 grows with the cube of the steps."""
    return {move: 0.773781 * (move / steps) ** 3 for move in moves}


# Rates are peaks for the loss that the original sums, by what they are for; `curve` is where the corners of the
# learning rate lie and how high, `bias_steps` how long the whitening bias trains and `bias_curve` its own corners;
# `shrink` is learning rate times weight decay, the same for all parameters of SGD; `keep` is what the average keeps of
# itself at the k-th step, counted from 1. Augmentation: flip, padding, cutout, cutmix and its first epoch, jitter,
# sizes. Views: their kind, how many images get them, the weights. Net: residual, initialisation, momentum of batch
# norm, logit scale; at last label smoothing. Whitening: images, epsilon, whether they are centred. Momentum: of SGD.
# Megaflops: forward, of a training image. Where the data are not like CIFAR-10's: their images and side, the window
# that is cropped out, and the megaflops of a whole image, as it is evaluated.

AIRBENCH_K = 1024 * (1 + 1 / (1 - 0.85))  # the originals divide rates and decays by it


def airbench_rates(rate):
    rate /= AIRBENCH_K
    return {"convolutions": rate, "head": rate, "whitening_bias": rate, "batch_norm_biases": 64 * rate}


AIRBENCH94 = {
    "parameters": (1_972_792, 1_971_352),
    "megaflops": 236.3,
    "steps": 476,
    "images": 487_424,
    "rates": airbench_rates(11.5),
    "shrink": 0.0153 * 1024 / AIRBENCH_K,
    "curve": ((0, 109, 476), (0.2, 1, 0.07)),
    "bias_steps": 144,
    "keep": lookahead(476, 5, 240, 475),
    "augmentation": ("alternating", 2, 0, (0, None), (0, 0), ()),
    "views": ("six_view", 1, "live"),
    "net": ("none", "dirac", 0.4, 1 / 9, 0.2),
    "whitening": (5000, 5e-4, False),
    "momentum": 0.85,
}
AIRBENCH93 = AIRBENCH94 | {
    "parameters": (569_656, 568_728),
    "megaflops": 108.4,
    "steps": 528,
    "images": 540_672,
    "curve": ((0, 121, 528), (0.2, 1, 0.07)),
    "keep": lookahead(528, 5, 265, 525),
}
AIRBENCH95 = AIRBENCH94 | {
    "parameters": (4_606_520, 4_604_440),
    "megaflops": 603.1,
    "steps": 720,
    "images": 737_280,
    "rates": airbench_rates(10.0),
    "curve": ((0, 165, 720), (0.2, 1, 0.07)),
    "keep": lookahead(720, 5, 360, 720),
}
AIRBENCH96 = AIRBENCH94 | {
    "parameters": (9_918_776, 9_915_416),
    "megaflops": 903.9,
    "steps": 1776,
    "images": 1_818_624,
    "rates": airbench_rates(9.0),
    "shrink": 0.012 * 1024 / AIRBENCH_K,
    "curve": ((0, 177, 1776), (0.2, 1, 0)),
    "keep": lookahead(1776, 5, 885, 1775),
    "augmentation": ("alternating", 4, 12, (0, None), (0, 0), ()),
    "net": ("before_activation", "dirac", 0.1, 1 / 9, 0.2),
}
AIRBENCH94_MUON = AIRBENCH94 | {
    "steps": 200,
    "images": 400_000,
    "rates": {"convolutions": 0.24, "head": 0.67, "whitening_bias": 0.053, "batch_norm_biases": 0.053},
    "shrink": 2e-6 * 2000,
    "curve": ((0, 200), (1, 0)),
    "bias_steps": 75,
    "bias_curve": ((0, 75), (1, 0)),
    "keep": {1: 1, 100: 1, 200: 1},
    "net": ("none", "dirac", 0.4, 1 / 256, 0.2),
}
HIVERGE = AIRBENCH94_MUON | {
    "steps": 245,
    "images": 376_320,
    "rates": {"convolutions": 0.205, "head": 0.5415, "whitening_bias": 0.0573, "batch_norm_biases": 0.0573},
    "shrink": 1.0418e-6 * 1536,
    "curve": ((0, 245), (1, 0)),
    "bias_steps": 7,
    "bias_curve": ((0, 7), (1, 0)),
    "keep": {1: 1, 100: 1, 245: 1},
    "augmentation": ("alternating", 2, 0, (0, None), (0.1399, 0.1308), ()),
    "views": ("six_view", 0.25, "live"),
    "net": ("none", "dirac", 0.4434, 1 / 256, 0.09),
    "whitening": (960, 5e-4, False),
    "momentum": 0.825,
}
PROGRESSIVE = HIVERGE | {
    "steps": 284,
    "images": 436_224,
    "rates": HIVERGE["rates"] | {"convolutions": 0.2255},
    "curve": ((0, 0.95 * 272, 284), (1, 0.05, 0.05)),  # linear to 0 at step 272, but never below 0.05
    "whitening": (5000, 5e-4, False),
    "keep": {264: 0, 268: 0.7, 284: 0.7},
    "augmentation": ("alternating", 2, 0, (0, None), (0.1399, 0.1308), (24, 24, 24, 28, 28, 28, 0)),
    "views": ("six_view", 1, "live"),
}
SPEEDY = PROGRESSIVE | {
    "steps": 300,
    "images": 460_800,
    "curve": ((0, 0.95 * 288, 300), (1, 0.05, 0.05)),
    "keep": {280: 0, 284: 0.7, 300: 0.7},
    "augmentation": ("alternating", 2, 0, (0, None), (0.1399, 0.1308), (20, 20, 20, 24, 24, 24, 0)),
}
HLB_V0_3 = {
    "parameters": (6_570_488, 6_568_136),
    "megaflops": 537.9,
    "steps": 970,
    "images": 496_640,
    "rates": {"convolutions": 1.5525 / 512, "head": 1.5525 / 512, "batch_norm_biases": 1.5525 * 32 / 512},
    "shrink": 1.5525 * 4.08e-4,
    "curve": ((0, 193, 775, 969), (0, 1, 0.135, 0.135)),
    "keep": {776: 1, 778: 0, 779: 1, 780: 0.972196, 970: 0.972196},
    "augmentation": ("random", 3, 0, (0, None), (0, 0), ()),
    "views": ("mirror", 1, "averaged"),
    "net": ("after_activation", "default", 0.8, 1 / 10, 0.2),
    "whitening": (50_000, 1e-2, True),
    "momentum": 0.85,
}
HLB_V0_3_LONG = HLB_V0_3 | {
    "parameters": (26_260_320, 26_255_760),
    "megaflops": 2149.3,
    "steps": 7760,
    "images": 3_973_120,
    "curve": ((0, 1551, 7565, 7759), (0, 1, 0.135, 0.135)),
    "keep": {7566: 1, 7568: 0, 7570: 0.972196, 7760: 0.972196},
}
HLB_V0_4 = {
    "parameters": (4_617_296, 4_615_328),
    "megaflops": 486.8,
    "steps": 480,
    "images": 491_520,
    "rates": {"convolutions": 2.1 / 512, "head": 2.1 / 512, "batch_norm_biases": 2.1 * 32 / 512},
    "shrink": 2.1 / 512 * 6.45e-4 * 1024,
    "curve": ((0, 0.15 * 480 - 1, 479), (0, 1, 0)),
    "keep": {50: 0, 55: 0.903921, 480: 0.903921},
    "augmentation": ("random", 2, 0, (0, None), (0, 0), ()),
    "views": ("mirror", 1, "live"),
    "net": ("after_activation", "default", 0.8, 1 / 10, 0.2),
    "whitening": (50_000, 1e-2, True),
    "momentum": 0.85,
}
HLB_V0_4_LONG = HLB_V0_4 | {
    "parameters": (18_450_448, 18_446_656),
    "megaflops": 1944.9,
    "steps": 4320,
    "images": 4_423_680,
    "curve": ((0, 647, 4319), (0, 1, 0)),
    "keep": {580: 0, 585: 0.903921, 4320: 0.903921},
    "augmentation": ("random", 2, 11, (0, None), (0, 0), ()),
    "views": ("mirror", 1, "averaged"),
}
HLB_V0_7 = {
    "parameters": (4_335_648, 4_333_696),
    "megaflops": 325.95,
    "steps": 581,
    "images": 594_944,
    "rates": {"convolutions": 1.525 / 512, "head": 1.525 / 512, "batch_norm_biases": 1.525 * 64 / 512},
    "shrink": 1.525 / 512 * 6.687e-4 * 1024,
    "curve": ((0, 0.23 * 581 - 1, 580), (0, 1, 0.07)),
    "keep": {100: 0} | lookahead(581, 105, 580),
    "augmentation": ("random", 2, 0, (3, 7), (0, 0), ()),
    "views": ("mirror", 1, "averaged"),
    "net": ("none", "dirac_blend", 0.4, 1 / 9, 0.2),
    "whitening": (50_000, 1e-2, True),
    "momentum": 0.85,
}
HLB_V0_7_LONG = HLB_V0_7 | {
    "parameters": (17_297_184, 17_293_568),
    "megaflops": 1248.99,
    # The original trains 4,272 of the 4,320 steps that its schedule is made for: none in the last epoch.
    "steps": 4320,
    "images": 4_423_680,
    "curve": ((0, 0.23 * 4320 - 1, 4319), (0, 1, 0.07)),
    "keep": {485: 0} | lookahead(4320, 490, 4270),
    "augmentation": ("random", 2, 0, (10, 10), (0, 0), ()),
}
DAVIDNET = {
    "parameters": (6_573_120, 6_573_120),
    "megaflops": 758.5,
    "steps": 2328,
    "images": 1_191_936,
    "rates": dict.fromkeys(("convolutions", "head", "batch_norm_scales", "batch_norm_biases"), 0.4 / 512),
    "shrink": 0.4 * 5e-4,
    "curve": ((-1, 484, 2327), (0, 1, 0)),  # its steps are counted from 1
    "keep": {1: 1, 2328: 1},
    "augmentation": ("random", 4, 8, (0, None), (0, 0), ()),
    "views": ("single_view", 1, "live"),
    "net": ("after_activation", "default", 0.1, 1 / 8, 0),
    "whitening": (5000, 5e-4, False),  # it has none
    "momentum": 0.9,
}
BAG_OF_TRICKS = DAVIDNET | {
    "parameters": (6_573_849, 6_570_880),
    "megaflops": 760.0,
    "steps": 970,
    "images": 496_640,
    "rates": {"convolutions": 1 / 512, "head": 1 / 512, "batch_norm_biases": 64 / 512},
    "shrink": 5e-4,
    "curve": ((-1, 193, 775, 969), (0, 1, 0.1, 0.1)),
    "keep": {4: 1, 5: 0.950990, 970: 0.950990},
    "augmentation": ("random", 4, 0, (0, None), (0, 0), ()),
    "views": ("mirror", 1, "averaged"),
    "net": ("after_activation", "default", 0.1, 1 / 16, 0.2),
    "whitening": (10_000, 1e-2, False),
}
POCKET = AIRBENCH94 | {  # has no original; its net counted by hand
    "parameters": (498_080, 497_216),
    "megaflops": 66.13,
    "steps": 1170,
    "images": 299_520,
    "rates": {"convolutions": 1 / 256, "head": 1 / 256, "batch_norm_biases": 64 / 256},
    "shrink": 1.33e-3,
    "curve": ((0, 269, 1170), (0.2, 1, 0.07)),
    "keep": lookahead(1170, 5, 585, 1170),
    "views": ("mirror", 1, "live"),
}
IMAGENETTE = HLB_V0_4 | {
    "data": "imagenette",
    "crop": 32,
    "whole_megaflops": 2174.5,
    "steps": 450,
    "images": 460_800,
    "curve": ((0, 66.5, 449), (0, 1, 0)),
    "keep": {365: 1, 370: 0, 375: 0.903921, 450: 0.903921},
}
IMAGENETTE_25 = IMAGENETTE | {
    "steps": 225,
    "images": 230_400,
    "curve": ((0, 32.75, 224), (0, 1, 0)),
    "keep": {140: 1, 145: 0, 150: 0.903921, 225: 0.903921},
}
TABLE = {
    "airbench93": AIRBENCH93,
    "airbench94": AIRBENCH94,
    "airbench94-muon": AIRBENCH94_MUON,
    "airbench95": AIRBENCH95,
    "airbench96": AIRBENCH96,
    "bag-of-tricks": BAG_OF_TRICKS,
    "davidnet": DAVIDNET,
    "davidnet-tpu": DAVIDNET | {"shrink": 0.4 * 1.25e-4},
    "hiverge": HIVERGE,
    "hlb-v0.3": HLB_V0_3,
    "hlb-v0.3-long": HLB_V0_3_LONG,
    "hlb-v0.4": HLB_V0_4,
    "hlb-v0.4-long": HLB_V0_4_LONG,
    "hlb-v0.4-cifar100": HLB_V0_4 | {"data": "cifar100", "parameters": (4_663_376, 4_661_408), "megaflops": 486.91},
    "hlb-v0.7": HLB_V0_7,
    "hlb-v0.7-long": HLB_V0_7_LONG,
    "hlb-v0.7-cifar100": HLB_V0_7 | {"data": "cifar100", "parameters": (4_381_728, 4_379_776), "megaflops": 326.05},
    "imagenette": IMAGENETTE,
    "imagenette-ablations/base": IMAGENETTE_25,
    "imagenette-ablations/pool": IMAGENETTE_25,
    "imagenette-ablations/whitening": IMAGENETTE_25
    | {"parameters": (4_617_632, 4_615_808), "megaflops": 605.8, "whole_megaflops": 2423.0},
    "imagenette-ablations/batch-norm": IMAGENETTE_25,
    "pocket": POCKET,
    "progressive": PROGRESSIVE,
    "speedy": SPEEDY,
}


DATA = {"cifar10": (50_000, 32, 10), "cifar100": (50_000, 32, 100), "imagenette": (9_469, 64, 10)}
"""How many training images there are, their side, and the number of classes."""


def data_of(name):
    return DATA[TABLE.get(name, {}).get("data", "cifar10")]


def state_of(name):
    """Before a run on images that have a size but no pixels."""
    made, (count, side, classes) = recipe(name), data_of(name)
    net = make_net(made, classes=classes, channels=3, dtype=torch.float32, device="meta")
    images, labels = torch.empty(count, side, side, 3, device="meta"), torch.empty(count, device="meta")
    return TrainingState(net, made, plan(made, count), images, labels, (0.5,) * 3, (0.25,) * 3, torch.float32)


def test_the_table_has_every_recipe():
    assert set(registered_recipes()) <= set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_the_net_has_the_parameters_and_flops_of_the_original(name):
    made, row, (_, side, classes) = recipe(name), TABLE[name], data_of(name)
    assert made.data == row.get("data", "cifar10")
    window = training_window(made, side, side)
    assert window == (row.get("crop", side),) * 2
    for (height, width), megaflops in (
        (window, row["megaflops"]),
        ((side, side), row.get("whole_megaflops", row["megaflops"])),
    ):
        flops = forward_flops_per_image(made, classes=classes, channels=3, height=height, width=width)
        assert flops / 1e6 == pytest.approx(megaflops, abs=0.05)
    assert parameter_counts(state_of(name).net) == row["parameters"]
    net = made.net
    found = net.residual, net.convolution_init, net.batch_norm_momentum, net.logit_scale, made.loss.label_smoothing
    assert found == (*row["net"][:2], *map(pytest.approx, row["net"][2:]))
    assert (net.whitening_images, net.whitening_epsilon, net.whitening_centered) == row["whitening"]


@pytest.mark.parametrize("name", TABLE)
def test_the_run_is_that_of_the_original(name):
    made, row = recipe(name), TABLE[name]
    found, augmentation = plan(made, data_of(name)[0]), made.augmentation
    assert (found.steps, found.steps * made.batch_size) == (row["steps"], row["images"])
    assert {k: found.averaging_keep[k - 1] for k in row["keep"]} == pytest.approx(row["keep"], rel=1e-5)
    assert (
        augmentation.flip,
        augmentation.padding,
        augmentation.cutout,
        (augmentation.cutmix, found.first_cutmix_epoch),
        (augmentation.brightness, augmentation.contrast),
        augmentation.sizes,
    ) == row["augmentation"]
    assert (made.evaluation.view, made.evaluation.share, made.evaluation.weights) == row["views"]


@pytest.mark.parametrize("name", TABLE)
def test_learning_rates_and_decay_are_those_of_the_original(name):
    state, row, steps = state_of(name), TABLE[name], TABLE[name]["steps"]
    assert set(state.groups) == set(row["rates"])
    assert state.recipe.optimizer.momentum == row["momentum"]
    for kind, group in state.groups.items():
        whitening = kind == "whitening_bias"
        table = state.plan.own_learning_rates.get(kind, state.plan.learning_rate)
        curve = row.get("bias_curve", row["curve"]) if whitening else row["curve"]
        last = row["bias_steps"] if whitening else steps
        for step in (0, steps // 4, steps // 2, 3 * steps // 4, last - 1, min(last, steps - 1)):
            expected = row["rates"][kind] * np.interp(step, *curve) * (step < last)
            assert group.learning_rate * table[step] == pytest.approx(expected, rel=1e-6, abs=1e-9), (kind, step)
        if kind != "convolutions" or state.recipe.optimizer.kind == "sgd":
            assert group.learning_rate * group.weight_decay == pytest.approx(row["shrink"], rel=1e-6)


def test_each_ablation_of_imagenette_changes_what_its_name_says():
    """Of the original's ghost batch norm, 16 splits, the stem has none."""
    ablations = group_called("imagenette-ablations")
    base = dataclasses.asdict(ablations.base.net)
    assert ablations.base.hash == recipe("imagenette", ["epochs=25"]).hash
    changes = {
        "pool": {"pool": "after_norm"},
        "whitening": {"whitening_kernel": 0, "project_kernel": 3},
        "batch-norm": {"batch_norm_groups": 16, "project_ghost_norm": False},
    }
    assert [each.name for each in ablations.variants] == [f"imagenette-ablations/{name}" for name in changes]
    for variant, change in zip(ablations.variants, changes.values(), strict=True):
        assert dataclasses.asdict(variant.net) == base | change
        assert dataclasses.replace(variant, net=ablations.base.net).hash == ablations.base.hash
        net = make_net(variant, classes=10, channels=3, dtype=torch.float32, device="meta")
        norms = [net.stem.norm, *(norm for group in net.groups for norm in group.norms)]
        assert [norm.groups for norm in norms] == [1] + [change.get("batch_norm_groups", 1)] * 6
        assert variant.claim.accuracy < ablations.base.claim.accuracy


@pytest.mark.parametrize("name", ["airbench94", "hlb-v0.4", "davidnet", "imagenette", "pocket"])
def test_a_recipe_learns(name, small_pack):
    """One of each family: 20 steps of a narrow net on 640 images, with a learning rate that falls in them.

    Where a recipe is for 100 classes, 90 of them are empty. `test_every_recipe.py` trains all recipes.
    """
    small = ["width_multiplier=0.125", "batch_size=64", "dtype=float32", "evaluation.every=0"]
    settings = [*small, "epochs=2", "schedule.epochs=2"]
    _, _, classes = data_of(name)
    names = tuple(f"class {i}" for i in range(classes))
    run = train(recipe(name, settings), dataclasses.replace(small_pack, class_names=names), device="cpu")
    record, outputs = run.record, run.state["head.weight"].shape[0]
    assert (record.status, record.steps, record.images_seen, outputs) == ("finished", 20, 1280, classes)
    assert record.history[-1].loss < record.history[0].loss
    assert record.accuracy.weights == TABLE[name]["views"][2]


# Of David Page's rungs: parameters, megaflops, steps (those of whole batches), peak learning rate and the step, counted
# from 1, which has it, accuracy and seconds. Steps: epochs times 50,000 // batch.
PAGE_LADDER = {
    "baseline": (5_205_834, 920.0, 13_650, 0.1, 5850, 0.9412, 297),
    "mini-batches": (5_205_834, 920.0, 3395, 0.44, 1455, 0.9412, 256),
    "fp32-batch-norm": (5_205_834, 920.0, 3395, 0.44, 1455, 0.9370, 186),
    "cutout": (5_205_834, 920.0, 2910, 0.4, 776, 0.9414, 161),
    "batch-768": (5_205_834, 920.0, 1950, 0.6, 520, 0.9360, 154),
    "backbone": (115_786, 14.03, 1940, 0.4, 388, 0.559, 36),
    "single-batch-norms": (114_762, 14.03, 1940, 0.4, 388, 0.560, 32),
    "3x3": (966_730, 97.92, 1940, 0.4, 388, 0.856, 36),
    "max-pool": (966_730, 381.04, 1940, 0.4, 388, 0.897, 43),
    "global-max-pool": (1_557_066, 456.53, 1940, 0.4, 388, 0.907, 47),
    "scale-1": (1_557_056, 456.53, 1940, 0.4, 388, 0.911, 47),
    "residual": (6_573_120, 758.52, 1940, 0.4, 388, 0.937, 66),
}


def test_page_ladder_has_the_rungs_of_the_story_in_its_order():
    ladder = group_called("page-ladder")
    assert [each.name for each in (ladder.base, *ladder.variants)] == [f"page-ladder/{name}" for name in PAGE_LADDER]


@parametrize("rung", PAGE_LADDER, default=3)
def test_a_rung_of_page_ladder_is_that_of_the_notebook(rung):
    name, (parameters, megaflops, steps, rate, peak, accuracy, seconds) = f"page-ladder/{rung}", PAGE_LADDER[rung]
    made, state = recipe(name), state_of(name)
    assert parameter_counts(state.net) == (parameters, parameters)
    flops = forward_flops_per_image(made, classes=10, channels=3, height=32, width=32)
    assert flops / 1e6 == pytest.approx(megaflops, abs=0.005)
    assert (state.plan.steps, made.claim.accuracy, made.claim.seconds) == (steps, accuracy, seconds)
    corners = [(0, 0), (peak, rate), (steps, 0)]
    if made.epochs == 35:
        corners.insert(2, (peak * 2, 0.005))  # at epochs 0, 15, 30 and 35
    expected = np.interp(range(1, steps + 1), *zip(*corners, strict=True)) / made.batch_size
    assert sum(each.numel() for kind in state.groups.values() for each in kind.parameters) == parameters
    for kind in state.groups.values():
        assert [kind.learning_rate * value for value in state.plan.learning_rate] == pytest.approx(expected, abs=1e-12)
        assert kind.learning_rate * kind.weight_decay == pytest.approx(rate * 5e-4)
    augmentation = made.augmentation
    whole = list(PAGE_LADDER).index(rung) < 3
    assert (augmentation.padding, augmentation.flip, augmentation.cutout) == (4, "random", 0 if whole else 8)
    assert (made.optimizer.momentum, made.loss.label_smoothing, made.averaging.kind) == (0.9, 0.0, "none")
    assert (made.net.batch_norm_precision == "native") == (rung in ("baseline", "mini-batches"))


# The schedules of hlb-imagenette's study, 450 steps on Imagenette's 9,469 images: by variant the accuracy of its slides
# and the learning rate as a part of the peak, read off their plots where no formula is known, by the step from 0.
# The base, one cycle with its top at step 66.5, is what the biases of all keep.
IMAGENETTE_CYCLE = {0: 0, 33: 33 / 66.5, 67: 382 / 382.5, 258: 191 / 382.5, 449: 0}
IMAGENETTE_SCHEDULES = {
    "one-cycle-cosine": (0.9001, {0: 0, 33: 0.494095, 66: 0.99986, 258: 0.498973, 449: 0}),
    "exp-range": (0.8975, {0: 0, 45: 0.5**0.5, 90: 0, 135: 0.5**1.5, 225: 0.5**2.5, 315: 0.5**3.5, 405: 0.5**4.5}),
    "triangular2": (0.8939, {0: 0, 45: 1, 90: 0, 112: 11 / 45, 135: 1 / 2, 225: 1 / 4, 315: 1 / 8, 405: 1 / 16}),
    "triangular": (0.8929, {0: 0, 9: 0.2, 45: 1, 54: 0.8, 90: 0, 135: 1, 225: 1, 405: 1, 449: 1 / 45}),
    "oscillating-cosine": (0.8921, {0: 1, 45: 0.5, 90: 0, 180: 1, 225: 0.5, 270: 0, 360: 1, 420: 0.25}),
    "cosine": (0.8901, {0: 1, 150: 0.75, 225: 0.5, 300: 0.25, 449: 1.2e-5}),
    "exponential": (0.8664, {0: 1, 1: 0.99, 100: 0.36603, 225: 0.104212, 449: 0.0109699}),
}


def test_the_schedules_of_imagenette_are_those_of_the_study():
    study = group_called("imagenette-schedules")
    assert [each.name for each in study.variants] == [f"{study.name}/{name}" for name in IMAGENETTE_SCHEDULES]
    members = {"": (0.9004, IMAGENETTE_CYCLE)} | IMAGENETTE_SCHEDULES
    for made, (accuracy, rates) in zip(study.members, members.values(), strict=True):
        found = plan(made, 9_469)
        assert (made.claim.accuracy, found.steps) == (accuracy, 450)
        assert {k: found.learning_rate[k] for k in rates} == pytest.approx(rates, rel=1e-4, abs=1e-6)
        biases = found.own_learning_rates.get("batch_norm_biases", found.learning_rate)
        assert {k: biases[k] for k in IMAGENETTE_CYCLE} == pytest.approx(IMAGENETTE_CYCLE, abs=1e-9)
        assert dataclasses.replace(made, schedule=study.base.schedule).hash == study.base.hash
