import dataclasses
import functools
import json

import pytest
import torch
import trainers
from rich.console import Console
from tiers import parametrize

from speedyresnet.bench import trim as trimming_module
from speedyresnet.bench.compare import arm_of
from speedyresnet.bench.ladder import RUNGS, convolution_inputs, rungs_of
from speedyresnet.bench.pool import read_pool
from speedyresnet.bench.statistics import Interval
from speedyresnet.bench.trim import (
    Change,
    Rounds,
    Trimming,
    _more_seconds,
    changes_of,
    check_effect,
    cut_first,
    print_trim,
    rounds_in_turns,
    row_of,
    step_seconds,
    trim,
)
from speedyresnet.engine import UserError, recipe
from speedyresnet.engine.fit import check_fit
from speedyresnet.engine.nets import Convolution, make_net
from speedyresnet.engine.pack_file import save_pack
from speedyresnet.engine.recipes import registered_recipes
from speedyresnet.engine.schedules import plan

TINY = ["batch_size=64", "width_multiplier=0.0625", "epochs=1", "dtype=float32", "augmentation.crop=16"]
CPU = torch.device("cpu")


def trainer_of(pack, *settings, name="airbench94", backend="eager"):
    trainer = trainers.trainer_of(recipe(name, [*TINY, *settings]), pack, backend=backend)
    trainer.prepare(seed=0)
    return trainer


@parametrize("name", sorted(registered_recipes()), default=["airbench94", "hlb-v0.7", "pocket", "speedy"])
def test_every_change_of_every_recipe_is_another_recipe_that_can_be_built(name):
    made = recipe(name)
    found = changes_of(made, (32, 32), CPU, "eager")
    hashes = {made.hash}
    for change in found:
        arm = arm_of(change.variant, name, [], "eager")
        if arm.backend == "eager":
            assert arm.recipe.hash not in hashes
            hashes.add(arm.recipe.hash)
        make_net(arm.recipe, classes=10, channels=3, dtype=torch.float32, device="meta")
        plan(arm.recipe, 50_000)
        check_fit(arm.recipe, 32, 32)
    what = {change.what for change in found}
    assert what >= {
        "crop", "flip", "whitening", "batch norm", "batch norm scale", "activation", "pool", "optimizer",
        "views", "dtype", "memory format", "kernels", "resolution", "width of group 1", "width of group 3",
    }  # fmt: skip


def test_only_what_a_recipe_has_can_go():
    plain, growing, early = (
        changes_of(recipe(name), (32, 32), CPU, "eager") for name in ("airbench94", "progressive", "hlb-v0.4")
    )
    assert {"averaging", "whitening bias", "label smoothing"} <= {change.what for change in plain}
    assert not {"ghost batch norm", "cutmix", "brightness", "projection", "residual", "cutout"} & {
        change.what for change in plain
    }
    assert {"projection", "residual"} <= {change.what for change in early}
    assert {"brightness", "contrast"} <= {change.what for change in growing}
    sizes = {change.variant for changes in (plain, growing) for change in changes if change.what == "resolution"}
    assert sizes == {"augmentation.sizes=24,24,24,28,28,28,0", "augmentation.sizes="}
    assert Change("width of group 2", "net.widths=64,192,256") in plain
    views = [change.variant for change in plain if change.what == "views"]
    assert views == ["evaluation.view=single_view", "evaluation.view=mirror"]


@pytest.mark.parametrize(
    ("settings", "change", "what", "changes"),
    [
        ([], "dtype=float32", "dtype", False),  # what auto is on a CPU
        ([], "dtype=float64", "dtype", True),
        ([], "kernels=reference", "kernels", False),
        (["dtype=bfloat16"], "net.batch_norm_precision=native", "batch norm", True),
        (["dtype=bfloat16", "optimizer.master_weights=true"], "net.batch_norm_precision=native", "batch norm", False),
        ([], "net.pool=after_norm", "pool", True),
    ],
)
def test_what_changes_nothing_here_is_not_measured(settings, change, what, changes):
    base, changed = recipe("airbench94", settings), recipe("airbench94", [*settings, change])
    if changes:
        check_effect(base, changed, what, CPU)
    else:
        with pytest.raises(UserError, match="nothing"):
            check_effect(base, changed, what, CPU)


def test_rounds_are_in_turns_and_paired():
    """Times that are 1, 2, 3, ... seconds tell which round ran when."""
    order = []

    def measured(trainer, steps):
        order.append(trainer)
        return float(len(order))

    found = rounds_in_turns(measured, "base", "changed", rounds=3, steps=5)
    assert order == ["changed", "base", "base", "changed", "changed", "base", "base", "changed"]
    assert found == Rounds([3.0, 6.0, 7.0], [4.0, 5.0, 8.0])
    assert found.saving.mean == pytest.approx(-1 / 3)


def test_a_step_is_the_mean_over_a_run(small_pack, monkeypatch):
    """Kinds that take 1 s and 10 s: the whitening bias is trained in the first 3 of 4 epochs."""
    trainer = trainer_of(small_pack, "epochs=4")
    kinds = [step for step, _ in trainer.counted_steps]
    assert [count for _, count in trainer.counted_steps] == [30, 10]
    monkeypatch.setattr(
        trimming_module, "timed_round", lambda _, steps, step: ({kinds[0]: 1.0, kinds[1]: 10.0}[step], 0)
    )
    assert step_seconds(trainer, 5) == pytest.approx((30 * 1 + 10 * 10) / 40)


def planted(saving, accuracy=None, change=None):
    """A row of a base of 10 ms a step, 100 steps a run, and a change that saves so many ms."""
    base = [0.010, 0.011, 0.009, 0.010]
    rounds = Rounds(base, [one - saving / 1000 - noise for one, noise in zip(base, (0, 1e-6, -1e-6, 0), strict=True)])
    return row_of(change or Change("flip", "augmentation.flip=none"), rounds, 0.010, 100, accuracy)


def test_rows_say_what_a_change_saves_and_costs():
    fast, slow, same = (planted(saving) for saving in (2.0, -2.0, 0.0))
    assert [row["verdict"] for row in (fast, slow, same)] == ["faster", "slower", "cannot tell"]
    assert fast["saving_seconds"]["mean"] == pytest.approx(0.002)
    assert fast["saving_seconds"]["lower"] > 0.0019  # the base's own drift of 10 % cancels
    assert fast["step_seconds"] == pytest.approx(0.008)
    assert "20.0%" in fast["why"]
    no_loss, loss = (Interval(mean=m, lower=m - 0.0005, upper=m + 0.0005) for m in (0.0, -0.004))
    assert [planted(2.0, each)["verdict"] for each in (no_loss, loss)] == ["better", "cannot tell"]
    assert "trade" in planted(2.0, loss)["why"]
    assert planted(-2.0, loss)["verdict"] == "worse"
    views = planted(2.0, change=Change("views", "evaluation.view=mirror"))
    assert (views["step_seconds"], views["saving_seconds"]["mean"]) == (0.010, pytest.approx(0.002))
    assert "evaluation saves +0.2000 s" in views["why"]


def test_what_a_step_saves_a_run_takes_less():
    saving = Interval(mean=2.0, lower=1.0, upper=4.0)
    assert _more_seconds(saving, 10) == Interval(mean=-20.0, lower=-40.0, upper=-10.0)


def test_what_saves_most_for_what_it_costs_is_cut_first():
    def row(saving, loss=None):
        accuracy = None if loss is None else {"mean": -loss}
        return {"saving_seconds": {"mean": saving}, "accuracy_difference": accuracy}

    by_saving = [row(0.003), row(0.001), row(-0.001)]
    assert sorted(by_saving, key=cut_first) == by_saving[::-1]
    for_its_loss = [row(0.001, -0.002), row(0.002, 0.001), row(0.003, 0.010), row(-0.001, -0.01)]
    assert sorted(for_its_loss, key=cut_first) == for_its_loss[::-1]


@pytest.mark.parametrize("settings", [(), ("net.project_width=16", "net.whitening_bias=false")])
def test_the_rungs_of_the_ladder(settings, small_pack):
    trainer = trainer_of(small_pack, *settings)
    state = trainer.state
    rungs = rungs_of(trainer)
    assert len(rungs) == len(RUNGS) == 4
    wanted = [x.requires_grad for _, x in rungs[0].args[0]]  # the first convolution's only while the bias is trained
    assert wanted == [not settings] + [True] * (len(wanted) - 1)
    pairs = convolution_inputs(state, torch.randn(2, 3, 32, 32))
    trained = [each for each in trainer.net.modules() if isinstance(each, Convolution) and each.weight.requires_grad]
    assert [convolution for convolution, _ in pairs] == trained
    before = {name: tensor.clone() for name, tensor in state.changing_tensors().items()}

    def changed():
        tensors = state.changing_tensors()
        names = {name for name, old in before.items() if not torch.equal(tensors[name], old)}
        return {name for name in names if "running" not in name}

    rungs[0]()
    assert changed() == set()
    rungs[1]()
    assert {name.partition(".")[0] for name in changed()} == {"momentum"}
    rungs[2]()
    assert {"counter", "head.weight", "groups.0.convolutions.0.weight"} <= changed()
    assert state.counter == 1
    rungs[3]()
    assert state.counter == 2


def test_the_rungs_take_no_gradient_of_what_is_frozen_in_most_steps(small_pack):
    trainer = trainer_of(small_pack, "optimizer.first_group_frozen_epochs=9")
    rungs = rungs_of(trainer)
    pairs, kept = rungs[0].args
    assert [buffer is None for buffer in kept] == [True] * 2 + [False] * 4
    assert [x.requires_grad for _, x in pairs] == [False] * 3 + [True] * 3
    frozen = trainer.net.groups[0].convolutions[0].weight
    before = frozen.detach().clone()
    for rung in rungs:
        rung()
    assert torch.equal(frozen, before)


@pytest.mark.exhaustive
def test_the_rungs_compile_as_one_graph_each(small_pack, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    for rung in rungs_of(trainer_of(small_pack, backend="compile")):
        rung()


@pytest.mark.exhaustive
def test_the_rungs_are_captured_where_the_step_is(small_pack, cuda, monkeypatch):
    monkeypatch.setattr("speedyresnet.engine.backends.backend_obstacle", lambda *_: None)
    trainer = trainer_of(small_pack, backend="capture")
    before = len(cuda.graphs)
    for rung in rungs_of(trainer):
        rung()
    assert len(cuda.graphs) == before + 3  # the step was captured already


@pytest.mark.exhaustive
def test_accuracies_come_from_pools_that_go_on(small_pack, tmp_path):
    out = tmp_path / "trim.json"
    trimming = Trimming(
        recipe="pocket", settings=tuple(TINY), pack=small_pack, device=CPU, backend="eager", rounds=2, steps=1,
        what=("flip",), seeds=2, validation=0, out=out,
    )  # fmt: skip
    result = trim(trimming, Console(quiet=True))
    assert json.loads(out.read_text()) == json.loads(json.dumps(result))
    print_trim(Console(quiet=True), result)
    pools = {pool: pool.read_bytes() for pool in (tmp_path / "trim.runs").iterdir()}
    base, changed = sorted(map(read_pool, pools), key=lambda runs: runs[0]["recipe"]["augmentation"]["flip"])
    pairs = [(one["accuracy"]["mirror"], other["accuracy"]["mirror"]) for one, other in zip(changed, base, strict=True)]
    assert [run["seed"] for run in base] == [run["seed"] for run in changed] == [0, 1]
    (row,) = result["rows"]
    assert row["accuracy_difference"]["mean"] == pytest.approx(sum(one - other for one, other in pairs) / 2)
    (row_again,) = trim(trimming, Console(quiet=True))["rows"]
    assert {pool: pool.read_bytes() for pool in pools} == pools
    assert row_again["accuracy_difference"] == row["accuracy_difference"]
    with pytest.raises(UserError, match="--runs 2, not 3"):
        trim(dataclasses.replace(trimming, seeds=3), Console(quiet=True))


def test_a_recipe_is_trimmed(small_pack, tmp_path, speedyresnet):
    data, out = tmp_path / "small.safetensors", tmp_path / "trim.json"
    save_pack(small_pack, data)
    words = [word for each in TINY for word in ("--set", each)]
    words += [word for each in ("whitening", "kernels", "views", "width of group 2") for word in ("--what", each)]
    words += ["--data", str(data), "--device", "cpu", "--rounds", "2", "--steps", "1", "--json", "--out", str(out)]
    done = speedyresnet("bench", "trim", "--recipe", "pocket", *words)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert json.loads(out.read_text()) == result
    assert result["schema"] == "speedyresnet.trim/1"
    changes = {row["change"]: row for row in result["rows"]}
    assert set(changes) == {
        "net.whitening_kernel=3 net.whitening_padding=1", "net.widths=32,96,128", "evaluation.view=single_view",
        "net.whitening_kernel=0 net.whitening_padding=0 net.whitening_bias=false", "evaluation.view=six_view",
    }  # fmt: skip
    assert {each["change"] for each in result["impossible"]} == {
        "of one convolution alone", "kernels=triton", "kernels=reference",
    }  # fmt: skip
    assert result["base_step_seconds"] > 0
    assert [rung["name"] for rung in result["ladder"]] == list(RUNGS)
    assert changes["evaluation.view=six_view"]["saving_seconds"]["mean"] < 0
    assert all(row["accuracy_difference"] is None for row in result["rows"])


@pytest.mark.parametrize(
    ("options", "words"), [(["--accuracy", "2"], "--out"), (["--what", "cutmix", "--data", "{}"], "label smoothing")]
)
def test_wrong_options_are_one_line(options, words, small_pack, tmp_path, speedyresnet):
    data = tmp_path / "small.safetensors"
    save_pack(small_pack, data)
    done = speedyresnet("bench", "trim", "--recipe", "pocket", *(each.format(data) for each in options))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
