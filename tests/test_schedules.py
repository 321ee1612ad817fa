import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from speedyresnet.engine import UserError, recipe
from speedyresnet.engine.backends import variant_of_step
from speedyresnet.engine.recipe import Averaging, Schedule
from speedyresnet.engine.schedules import SCHEDULES, averaging_tables, learning_rate_table, plan

IMAGES = 50_000


def test_airbench94_has_the_published_points():
    made = plan(recipe("airbench94"), IMAGES)
    assert (made.steps_per_epoch, made.steps, made.whitening_bias_steps) == (48, 476, 144)
    assert len(made.epoch_ends()) == 10
    rate = made.learning_rate
    assert rate[0] == pytest.approx(0.2)
    assert rate[109] == 1.0
    assert rate[475] == pytest.approx(0.07253, abs=1e-5)
    assert [k + 1 for k, keep in enumerate(made.averaging_keep) if keep < 1] == list(range(5, 476, 5))
    assert made.averaging_keep[474] == pytest.approx(0.95**5 * (475 / 476) ** 3)
    assert made.averaging_keep[475] == 1.0
    assert made.averaging_write_back[475] == 1.0  # the last step is thrown away, as in the original


def test_hlb_v0_7_has_the_published_points():
    made = plan(recipe("hlb-v0.7"), IMAGES)
    assert (made.steps, made.epoch_ends()[-2:], made.first_cutmix_epoch) == (581, [576, 581], 7)
    rate = made.learning_rate
    assert rate[0] == 0.0
    assert rate[133] == pytest.approx(0.9992, abs=1e-4)
    assert rate[580] == pytest.approx(0.07)
    moves = [k + 1 for k, keep in enumerate(made.averaging_keep) if keep < 1]
    assert moves == list(range(100, 581, 5))
    assert (made.averaging_keep[99], made.averaging_write_back[99]) == (0.0, 0.0)
    assert made.averaging_keep[104] == pytest.approx(0.0046, abs=1e-4)
    assert made.averaging_keep[579] == pytest.approx(0.7698, abs=1e-4)
    assert made.averaging_write_back[579] == 1.0
    assert made.averaging_write_back[580] == 0.0


def test_hlb_v0_4_has_the_published_points():
    made = plan(recipe("hlb-v0.4"), IMAGES)
    assert made.steps == 480
    assert max(range(480), key=made.learning_rate.__getitem__) == 71
    assert made.learning_rate[479] == pytest.approx(0.0, abs=1e-12)
    moves = [k + 1 for k, keep in enumerate(made.averaging_keep) if keep < 1]
    assert moves == list(range(50, 481, 5))
    assert made.averaging_keep[54] == pytest.approx(0.903921, abs=1e-6)
    assert not any(made.averaging_write_back)


@pytest.mark.parametrize(
    ("name", "steps", "rates"),
    [
        ("davidnet", 2328, {1: 0.4 / 485, 97: 0.08, 485: 0.4, 1406: 0.4 * 922 / 1843, 2328: 0.0}),
        ("bag-of-tricks", 970, {1: 1 / 194, 97: 0.5, 194: 1.0, 485: 0.55, 776: 0.1, 970: 0.1}),
    ],
)
def test_cifar10_fast_has_the_published_points(name, steps, rates):
    made, peak = plan(recipe(name), IMAGES), recipe(name).optimizer.learning_rate
    assert (made.steps_per_epoch, made.steps) == (97, steps)
    assert {k: peak * made.learning_rate[k - 1] for k in rates} == pytest.approx(rates, abs=1e-12)
    moves = [k + 1 for k, keep in enumerate(made.averaging_keep) if keep < 1]
    assert moves == (list(range(5, 971, 5)) if name == "bag-of-tricks" else [])
    assert [made.averaging_keep[k - 1] for k in moves] == pytest.approx([0.950990] * len(moves), abs=1e-6)
    assert not any(made.averaging_write_back)


def test_piecewise_counts_steps_from_one_and_is_constant_outside_its_knots():
    settings = ["schedule.kind=piecewise", "schedule.knots=0.2,0.6", "schedule.values=0.5,0.1", "epochs=1"]
    made = plan(recipe("airbench94", [*settings, "batch_size=5000"]), IMAGES)
    assert made.learning_rate == pytest.approx([0.5, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1])
    with pytest.raises(UserError, match="rising"):
        recipe("airbench94", [*settings, "schedule.knots=0.6,0.2"])


def one_cycle_of_torch(optimizer, schedule, steps, anneal_strategy):
    start, end = max(schedule.start, 1e-16), max(schedule.end, 1e-24)
    return lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, pct_start=schedule.peak, total_steps=steps, anneal_strategy=anneal_strategy,
        cycle_momentum=False, div_factor=1 / start, final_div_factor=start / end,
    )  # fmt: skip


def cyclic_of_torch(optimizer, schedule, steps, mode):
    return lr_scheduler.CyclicLR(
        optimizer, base_lr=schedule.start, max_lr=1.0, step_size_up=schedule.half_cycle * steps, mode=mode,
        gamma=schedule.end ** (1 / steps), cycle_momentum=False,
    )  # fmt: skip


SCHEDULERS = {
    "one_cycle": functools.partial(one_cycle_of_torch, anneal_strategy="linear"),
    "one_cycle_cosine": functools.partial(one_cycle_of_torch, anneal_strategy="cos"),
    "exponential": lambda optimizer, schedule, steps: lr_scheduler.ExponentialLR(
        optimizer, schedule.end ** (1 / steps)
    ),
    "cosine": lambda optimizer, schedule, steps: lr_scheduler.CosineAnnealingLR(
        optimizer, round(schedule.half_cycle * steps), schedule.end
    ),
    "cyclic_triangular": functools.partial(cyclic_of_torch, mode="triangular"),
    "cyclic_triangular2": functools.partial(cyclic_of_torch, mode="triangular2"),
    "cyclic_exp_range": functools.partial(cyclic_of_torch, mode="exp_range"),
}


@pytest.mark.parametrize(
    ("numbers", "steps"),
    [
        ({"kind": "one_cycle", "start": 0.0, "peak": 0.23, "end": 0.07}, 581),
        ({"kind": "one_cycle", "start": 0.0, "peak": 0.15, "end": 0.0}, 480),
        ({"kind": "one_cycle_cosine", "start": 0.0, "peak": 0.15, "end": 0.0}, 450),
        ({"kind": "one_cycle_cosine", "start": 0.2, "peak": 0.23, "end": 0.07}, 581),
        ({"kind": "exponential", "end": 0.99**450}, 450),
        ({"kind": "cosine", "end": 0.0}, 450),
        ({"kind": "cosine", "end": 0.07, "half_cycle": 0.2}, 450),
        ({"kind": "cyclic_triangular", "start": 0.0, "half_cycle": 0.1}, 450),
        ({"kind": "cyclic_triangular2", "start": 0.2, "half_cycle": 0.1}, 581),
        ({"kind": "cyclic_exp_range", "start": 0.2, "end": 1 / 32, "half_cycle": 0.15}, 450),
    ],
)
def test_schedules_are_those_of_torch_at_every_step(numbers, steps):
    schedule, found = Schedule(**numbers), []
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = SCHEDULERS[schedule.kind](optimizer, schedule, steps)
    for step in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < steps - 1:
            scheduler.step()
    assert learning_rate_table(schedule, steps, steps) == pytest.approx(found, abs=1e-9)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_every_schedule_keeps_its_shape_in_a_run_of_another_length(kind):
    corners = ["schedule.knots=0,0.25,1", "schedule.values=0.2,1,0"] if kind == "piecewise" else []
    settings = [*corners, f"schedule.kind={kind}", "schedule.half_cycle=0.25", "batch_size=500"]
    long, short = (plan(recipe("airbench94", [*settings, f"epochs={epochs}"]), IMAGES) for epochs in (8, 2))
    assert (long.steps, short.steps) == (800, 200)
    assert short.learning_rate == pytest.approx(long.learning_rate[::4], abs=0.03)
    peak = 0.2 + 0.8 * 0.07**0.25 if kind == "cyclic_exp_range" else 1  # from a start at 0.2
    assert max(long.learning_rate) == pytest.approx(peak, abs=0.01)


@pytest.mark.parametrize("kind", ["exponential", "cyclic_exp_range"])
def test_what_falls_by_factors_needs_an_end(kind):
    with pytest.raises(UserError, match=f"schedule.kind={kind} needs a schedule.end above 0"):
        recipe("airbench94", [f"schedule.kind={kind}", "schedule.end=0"])


def test_biases_of_batch_norm_may_keep_a_cycle_of_their_own():
    settings = ["schedule.kind=cosine", "schedule.peak=0.15", "batch_size=500", "epochs=1"]
    shared, own = (
        plan(recipe("airbench94", [*settings, *more]), IMAGES)
        for more in ([], ["schedule.batch_norm_biases=one_cycle", "schedule.floor=0.3"])
    )
    assert set(shared.own_learning_rates) == {"whitening_bias"}
    corners = (0, 0.15 * 100 - 1, 99), (0, 1, 0)  # the floor is of the shared one
    assert own.own_learning_rates["batch_norm_biases"] == pytest.approx(np.interp(range(100), *corners))
    assert own.learning_rate[0] == own.own_learning_rates["whitening_bias"][0] == 1.0


def test_airbench94_muon_has_the_published_points():
    made = plan(recipe("airbench94-muon"), IMAGES)
    assert (made.steps_per_epoch, made.steps, made.whitening_bias_steps) == (25, 200, 75)
    assert made.steps * 2000 == 400_000
    assert (made.learning_rate[0], made.learning_rate[100]) == (1.0, 0.5)
    assert made.learning_rate[199] == pytest.approx(1 / 200)
    assert made.own_learning_rates["whitening_bias"][74] == pytest.approx(1 / 75)
    assert not any(made.own_learning_rates["whitening_bias"][75:])
    assert made.renormalise == [1.0] * 200
    assert made.averaging_keep == [1.0] * 200
    assert not any(made.averaging_write_back)


def test_hiverge_has_the_published_points():
    made = plan(recipe("hiverge"), IMAGES)
    assert (made.steps_per_epoch, made.steps, made.whitening_bias_steps) == (32, 245, 7)
    assert made.epoch_ends()[-2:] == [224, 245]
    assert made.steps * 1536 == 376_320
    assert made.learning_rate[244] == pytest.approx(1 / 245)
    assert made.own_learning_rates["whitening_bias"][:8] == pytest.approx(
        [1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7, 0]
    )
    assert [k + 1 for k, value in enumerate(made.renormalise) if value == 1] == [
        2, 4, 6, 8, 10, 12, 14, 16, 19, 22, 25, 28, 31, 35, 39, 43, 47, 52, 57, 62, 68, 74, 80, 87, 94, 102, 110, 119,
        128, 138, 149, 160, 172, 185, 199, 214, 230,
    ]  # fmt: skip
    assert sum(made.renormalise) == 37


def test_a_shared_schedule_is_that_of_the_whitening_bias_too():
    made = plan(recipe("airbench94"), IMAGES)
    assert made.own_learning_rates["whitening_bias"][:144] == made.learning_rate[:144]
    assert made.own_learning_rates["whitening_bias"][144:] == [0.0] * (476 - 144)


@pytest.mark.parametrize("kind", ["shared", "linear"])
def test_a_whitening_bias_may_outlive_the_run(kind):
    settings = ["epochs=1", "batch_size=500", f"schedule.whitening_bias={kind}"]
    made = plan(recipe("airbench94", settings), IMAGES)
    assert (made.steps, made.whitening_bias_steps, len(made.own_learning_rates["whitening_bias"])) == (100, 300, 100)
    expected = made.learning_rate[50] if kind == "shared" else 1 - 50 / 300
    assert made.own_learning_rates["whitening_bias"][50] == pytest.approx(expected)


def test_the_first_group_is_frozen_at_the_end_and_the_whitening_bias_with_it():
    base = ["epochs=2.5", "batch_size=500", "schedule.whitening_bias=linear"]  # 100 steps an epoch, 250 in all
    assert plan(recipe("airbench94", base), IMAGES).first_group_steps is None
    late = plan(recipe("airbench94", [*base, "optimizer.first_group_frozen_epochs=0.75"]), IMAGES)
    assert (late.first_group_steps, late.whitening_bias_steps) == (175, 175)
    assert late.own_learning_rates["whitening_bias"][:176] == pytest.approx([1 - step / 175 for step in range(176)])
    early = ["optimizer.whitening_bias_epochs=0.5", "optimizer.first_group_frozen_epochs=9"]
    always = plan(recipe("airbench94", [*base, *early]), IMAGES)
    assert (always.first_group_steps, always.whitening_bias_steps) == (0, 0)
    made = recipe("airbench94", [*base, "optimizer.whitening_bias_epochs=1", early[1].replace("9", "0.75")])
    kinds = [variant_of_step(made, plan(made, IMAGES), step) for step in range(250)]
    assert [each.whitening_bias for each in kinds] == [True] * 100 + [False] * 150
    assert [each.first_group for each in kinds] == [True] * 175 + [False] * 75


def test_filter_banks_may_never_be_renormalised():
    assert not any(plan(recipe("hiverge", ["optimizer.muon.renormalise_every=0"]), IMAGES).renormalise)


def test_an_average_of_the_last_epochs_begins_after_their_first_step():
    averaging = Averaging(kind="lookahead", every=5, decay=0.9, power=0.0, epochs=1, finish=False)
    keep, write_back = averaging_tables(averaging, first_step=10, steps=21)
    assert [k + 1 for k, value in enumerate(keep) if value < 1] == [15, 20]
    assert (keep[14], write_back[14]) == (0.0, 0.0)
    assert (keep[19], write_back[19]) == (pytest.approx(0.9**5), 1.0)


def test_a_run_may_end_between_its_live_weights_and_its_average():
    """The last step is a move of this average: its whole write-back becomes the blend."""
    averaging = Averaging(kind="lookahead", every=5, decay=0.9, power=0.0)
    whole, blended = (averaging_tables(replace(averaging, blend=each), 0, 10) for each in (1.0, 0.25))
    assert whole[0] == blended[0]
    assert (whole[1][-1], blended[1][-1], whole[1][:-1]) == (1.0, 0.25, blended[1][:-1])
    off = averaging_tables(replace(averaging, blend=0.25, finish=False), 0, 10)
    assert off[1][-1] == 1.0  # written back as at any other move


def test_everything_follows_epochs_and_batch_size():
    made = plan(recipe("airbench94", ["epochs=2.5", "batch_size=500"]), IMAGES)
    assert (made.steps_per_epoch, made.steps) == (100, 250)
    assert made.epoch_ends() == [100, 200, 250]
    assert len(made.learning_rate) == len(made.averaging_keep) == 250


def test_fewer_images_than_a_batch_is_refused():
    with pytest.raises(UserError, match="batch_size 1024 exceeds the 100 training images"):
        plan(recipe("airbench94"), 100)


def test_progressive_has_the_tables_of_the_original():
    """E1 as described: D = 272 of 284 steps, floor from step 259, snapshot after 264 steps, then five moves."""
    found = plan(recipe("progressive"), 50_000)
    assert (found.steps_per_epoch, found.steps) == (32, 284)
    for step in (0, 100, 258):
        assert found.learning_rate[step] == pytest.approx(1 - step / 272)
    assert found.learning_rate[258] > 0.05
    assert found.learning_rate[259:] == [0.05] * 25
    assert found.own_learning_rates["whitening_bias"][:9] == pytest.approx([1 - s / 7 for s in range(7)] + [0, 0])
    moves = {k + 1: keep for k, keep in enumerate(found.averaging_keep) if keep != 1.0}
    assert moves == pytest.approx({264: 0.0, 268: 0.7, 272: 0.7, 276: 0.7, 280: 0.7, 284: 0.7})
    written = [k + 1 for k, value in enumerate(found.averaging_write_back) if value]
    assert written == [268, 272, 276, 280, 284]
    renormalised = [k + 1 for k, value in enumerate(found.renormalise) if value]
    assert renormalised == [
        *range(2, 19, 2), *range(21, 37, 3), *range(40, 53, 4), 57, 62, 67, 72, 78, 84, 90, 97, 104, 112, 120, 129, 138,
        148, 158, 169, 180, 192, 205, 219, 233, 248, 264, 281,
    ]  # fmt: skip
    sizes = [variant_of_step(recipe("progressive"), found, step).size for step in (0, 95, 96, 191, 192, 283)]
    assert sizes == [24, 24, 28, 28, 0, 0]
