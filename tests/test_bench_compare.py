import json

import numpy as np
import pytest
import torch
from rich.console import Console
from tiers import parametrize

from speedyresnet.bench.compare import OWN_VIEW, Arm, arm_of, compare_runs, comparison, place_arms, print_comparison
from speedyresnet.bench.pool import BASE, PoolPlan, read_pool
from speedyresnet.bench.statistics import Interval, mean_interval
from speedyresnet.bench.verdicts import seconds_per_tenth_point, verdict_on
from speedyresnet.engine import UserError, recipe
from speedyresnet.engine.pack_file import save_pack

TINY = ["batch_size=64", "width_multiplier=0.0625", "epochs=0.5", "dtype=float32", "augmentation.crop=16"]
CPU = torch.device("cpu")
VARIANTS = ("epochs=0.3", "evaluation.view=mirror loss.label_smoothing=0")
PLAN = PoolPlan(runs=3, first_seed=5, validation=0, variants=VARIANTS)


def arms_of(variants=VARIANTS, settings=TINY):
    base = Arm(BASE, recipe("airbench94", settings), "eager")
    return [base, *(arm_of(each, "airbench94", settings, "eager") for each in variants)]


def compare(pack, out, plan=PLAN, settings=TINY):
    return compare_runs(place_arms(arms_of(plan.variants, settings), None, CPU), pack, plan, out, Console(quiet=True))


@pytest.fixture(scope="module")
def pool(small_pack, tmp_path_factory):
    """The content of a finished comparison of two variants over three seeds."""
    path = tmp_path_factory.mktemp("comparison") / "runs.jsonl"
    compare(small_pack, path)
    return path.read_bytes()


def interval(lower, upper):
    return Interval(mean=(lower + upper) / 2, lower=lower, upper=upper)


def test_the_interval_is_that_of_the_paired_t_test():
    from scipy.stats import ttest_rel

    one, other = np.random.default_rng(1).normal([[0.0], [0.3]], 1.0, (2, 12))
    found = mean_interval(list(one - other))
    low, high = ttest_rel(one, other).confidence_interval(0.95)
    assert (found.lower, found.upper) == (pytest.approx(low), pytest.approx(high))
    assert mean_interval([2.0]) == Interval(mean=2.0, lower=None, upper=None)


@pytest.mark.parametrize(
    ("accuracy", "seconds", "verdict", "word"),
    [
        ((0.0010, 0.0030), (-0.05, 0.05), "better", "gain"),
        ((-0.0009, 0.0012), (-0.60, -0.40), "better", "gain"),
        ((-0.0030, -0.0010), (-0.05, 0.05), "worse", "loss"),
        ((-0.0012, 0.0009), (0.40, 0.60), "worse", "loss"),
        ((-0.0020, 0.0020), (-0.60, -0.40), "cannot tell", "uncertain"),  # faster, but may have lost 0.2 points
        ((0.0010, 0.0030), (-0.50, 0.50), "cannot tell", "uncertain"),
        ((-0.0030, -0.0010), (-0.50, 0.50), "cannot tell", "uncertain"),  # less accurate, but may be faster
        ((0.0010, 0.0030), (0.40, 0.60), "cannot tell", "trade"),
        ((-0.0030, -0.0010), (-0.60, -0.40), "cannot tell", "trade"),
        ((-0.0005, 0.0005), (-0.05, 0.05), "cannot tell", "no difference"),
        ((0.0002, 0.0005), (0.02, 0.05), "cannot tell", "no difference"),
    ],
)
def test_verdicts_of_planted_differences(accuracy, seconds, verdict, word):
    """Of a base that takes 10 s, so that up to 0.1 s are no matter."""
    found, why = verdict_on(interval(*accuracy), interval(*seconds), 10.0)
    assert found == verdict
    assert word in why


@pytest.mark.parametrize(
    ("accuracy", "seconds", "expected"),
    [
        ((0.001, 0.003), (0.4, 0.6), 0.25),
        ((-0.003, -0.001), (-0.6, -0.4), 0.25),
        ((0.001, 0.003), (-0.6, -0.4), None),
        ((-0.001, 0.005), (0.4, 0.6), None),
    ],
)
def test_what_a_tenth_of_a_point_costs(accuracy, seconds, expected):
    assert seconds_per_tenth_point(interval(*accuracy), interval(*seconds)) == (expected and pytest.approx(expected))


def simulated(differences, *, runs=20, deviation=0.0004, status="finished", seed=0):
    """Records of a base and of variants that differ from it by (accuracy, seconds), seeds correlated."""
    random = np.random.default_rng(seed)
    shared = random.normal(0.94, 0.002, runs), random.normal(10.0, 0.5, runs)
    records = []
    for arm, (accuracy, seconds) in {BASE: (0.0, 0.0), **differences}.items():
        for number in range(runs):
            value = float(shared[0][number] + accuracy + random.normal(0, deviation))
            time = float(shared[1][number] + seconds + random.normal(0, 0.05))
            records.append(
                {
                    "arm": arm, "seed": number, "status": "finished" if arm == BASE else status,
                    "recipe": {"name": "r", "hash": arm, "evaluation": {"view": "mirror"}},
                    "data": {"name": "d"}, "environment": {}, "device": "cpu", "backend": "eager",
                    "accuracy": {"single_view": 0.5, "mirror": value},
                    "seconds": {"prepare": 1.0, "train": time, "evaluate": 1.0, "total": time + 2.0},
                }
            )  # fmt: skip
    return records


def judged(differences, rate=None, **options):
    runs = options.get("runs", 20)
    plan = PoolPlan(runs=runs, first_seed=0, validation=0, variants=tuple(differences))
    found = comparison(simulated(differences, **options), plan, None, "total", rate)
    return {each["name"]: each for each in found["differences"]}, found


def test_planted_differences_are_found_by_pairing():
    """The spread between seeds hides them: 0.2 points and 0.5 s, against differences of 0.2 points and 0.3 s."""
    found, whole = judged({"up": (0.002, 0.0), "down": (-0.002, 0.3), "fast": (0.0, -0.3), "same": (0.0, 0.0)})
    assert [found[name]["verdict"] for name in ("up", "down", "fast", "same")] == [
        "better", "worse", "better", "cannot tell",
    ]  # fmt: skip
    assert found["up"]["accuracy"]["lower"] < 0.002 < found["up"]["accuracy"]["upper"]
    assert found["fast"]["seconds"]["lower"] < -0.3 < found["fast"]["seconds"]["upper"]
    assert (whole["view"], whole["clock"], whole["seeds"]) == ("mirror", "total", list(range(20)))
    assert whole["arms"][0]["accuracy"]["upper"] - whole["arms"][0]["accuracy"]["lower"] > 0.0015


def test_no_difference_is_seldom_called_one():
    """Two arms that are the same, 300 times: a false verdict needs one of two intervals of 95 % to miss zero."""
    false = [
        judged({"same": (0.0, 0.0)}, runs=8, seed=seed)[0]["same"]["verdict"] != "cannot tell" for seed in range(300)
    ]
    assert np.mean(false) < 0.1


def test_a_price_of_accuracy_settles_a_trade():
    trade = {"slow": (0.003, 0.6)}  # 0.2 s per 0.1 point
    assert judged(trade)[0]["slow"]["verdict"] == "cannot tell"
    assert judged(trade)[0]["slow"]["seconds_per_tenth_point"] == pytest.approx(0.2, rel=0.2)
    assert [judged(trade, rate)[0]["slow"]["verdict"] for rate in (0.1, 0.2, 0.4)] == ["worse", "cannot tell", "better"]


def test_a_variant_that_diverges_is_not_faster():
    options = {"status": "diverged"}
    fast, slow = (judged({"cut": (loss, -5.0)}, **options)[0]["cut"] for loss in (0.0, -0.84))
    assert (fast["verdict"], slow["verdict"]) == ("cannot tell", "worse")
    assert "20 of the variant's 20 runs diverged" in slow["why"]
    assert slow["seconds_per_tenth_point"] is None


def test_one_seed_cannot_tell():
    found, whole = judged({"up": (0.5, -5.0)}, runs=1)
    assert found["up"]["verdict"] == "cannot tell"
    assert "more seeds" in found["up"]["why"]
    print_comparison(Console(quiet=True), whole)


def test_every_arm_takes_every_place_equally_often():
    order = PoolPlan(runs=3, first_seed=5, validation=0, variants=("b", "c")).ordered_runs()
    assert [seed for seed, _ in order] == [5, 5, 5, 6, 6, 6, 7, 7, 7]
    rounds = [[arm for _, arm in order[at : at + 3]] for at in (0, 3, 6)]
    assert rounds == [["base", "b", "c"], ["b", "c", "base"], ["c", "base", "b"]]


@pytest.mark.exhaustive
def test_all_arms_run_all_seeds(pool, tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_bytes(pool)
    records = read_pool(path)
    assert [(each["seed"], each["arm"]) for each in records] == PLAN.ordered_runs()
    assert {each["arm"]: each["recipe"]["epochs"] for each in records} == {
        BASE: 0.5,
        VARIANTS[0]: 0.3,
        VARIANTS[1]: 0.5,
    }
    result = comparison(records, PLAN, None, "total")
    assert result["view"] == OWN_VIEW
    base, _, mirror = result["arms"]
    assert [run["accuracy"] for run in base["runs"]] == [
        each["accuracy"]["six_view"] for each in records if each["arm"] == BASE
    ]
    assert [run["accuracy"] for run in mirror["runs"]] == [
        each["accuracy"]["mirror"] for each in records if each["arm"] == VARIANTS[1]
    ]
    steps = {each["arm"]: each["steps"] for each in records}
    assert steps[VARIANTS[0]] < steps[BASE]


@parametrize("cut", [1, 2000, -20], default=1)
def test_a_comparison_that_was_cut_off_goes_on(cut, pool, small_pack, tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_bytes(pool[:-cut])
    whole = path.read_bytes().count(b"\n")
    records = compare(small_pack, path)
    assert [(each["seed"], each["arm"]) for each in records] == PLAN.ordered_runs()
    lines = path.read_bytes().splitlines()
    assert lines[:whole] == pool.splitlines()[:whole]
    assert [json.loads(line)["accuracy"] for line in lines] == [
        json.loads(line)["accuracy"] for line in pool.splitlines()
    ]


@parametrize(
    ("plan", "settings", "words"),
    [
        ({"variants": VARIANTS[:1]}, [], "--variants"),
        ({"runs": 4}, [], "--runs 3, not 4"),
        ({}, ["batch_size=32"], "recipe hash"),
    ],
    default=1,
)
def test_arms_and_seeds_are_fixed_when_the_file_is_begun(plan, settings, words, pool, small_pack, tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_bytes(pool)
    changed = PoolPlan(**{"runs": 3, "first_seed": 5, "validation": 0, "variants": VARIANTS} | plan)
    with pytest.raises(UserError, match=words):
        compare(small_pack, path, changed, [*TINY, *settings])
    assert path.read_bytes() == pool


def test_what_a_variant_says(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from speedyresnet.engine import recipe\ndef half():\n    return recipe('pocket', ['epochs=3'])\n")
    arm = arm_of(f"  {file}:half  backend=compile net.widths=8,16", "airbench94", ["dtype=float32"], "eager")
    assert (arm.recipe.name, arm.recipe.epochs, arm.recipe.net.widths, arm.recipe.dtype, arm.backend) == (
        "pocket", 3.0, (8, 16), "float32", "compile",
    )  # fmt: skip
    assert arm.name == f"{file}:half backend=compile net.widths=8,16"
    assert arm_of("epochs=8", "airbench94", ["epochs=2"], "eager").recipe.epochs == 8
    for wrong in ("", "pocket airbench94", "epoch=8", "nobody"):
        with pytest.raises(UserError):
            arm_of(wrong, "airbench94", [], "eager")


def test_arms_that_are_the_same_are_refused():
    with pytest.raises(UserError, match=r"'net.residual=none' is the same as 'base'"):
        place_arms(arms_of(["net.residual=none"]), None, CPU)
    with pytest.raises(UserError, match="the same as"):
        place_arms(arms_of(["backend=auto"]), None, CPU)  # which is eager here
    with pytest.raises(UserError, match="six_view is not measured"):
        place_arms(arms_of(), "six_view", CPU)
    place_arms(arms_of(), "mirror", CPU)


@pytest.fixture
def compared(small_pack, tmp_path, speedyresnet, monkeypatch):
    """A function that runs the command in a folder of its own."""
    save_pack(small_pack, tmp_path / "small.safetensors")
    monkeypatch.chdir(tmp_path)
    settings = [word for each in TINY for word in ("--set", each)]
    given = [*settings, "--device", "cpu", "--data", "./small.safetensors"]
    return lambda *options, of=("--recipe", "airbench94"): speedyresnet("bench", "compare", *of, *given, *options)


def test_the_command_prints_one_document(compared, tmp_path):
    options = ["--variant", "epochs=0.3", "--variant", "net.activation=relu", "--runs", "2"]
    done = compared(*options, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["schema"] == "speedyresnet.comparison/1"
    assert [each["name"] for each in result["arms"]] == ["base", "epochs=0.3", "net.activation=relu"]
    assert [each["runs"] for each in result["differences"]] == [2, 2]
    assert len((tmp_path / "comparison.jsonl").read_text().splitlines()) == 6
    again = compared(*options)
    assert again.returncode == 0, again.stderr
    assert "6 of 6 runs" in again.stdout
    assert all(f"{each['name']}: {each['verdict']}" in again.stdout for each in result["differences"])


@pytest.mark.exhaustive
def test_a_group_is_compared_whole_and_may_get_more_variants(compared, tmp_path):
    options = ["--variant", "schedule.peak=0.5", "--runs", "1", "--json"]
    done = compared(*options, of=("--group", "imagenette-schedules"))
    assert done.returncode == 0, done.stderr
    result, records = json.loads(done.stdout), read_pool(tmp_path / "comparison.jsonl")
    names = [
        "base", "one-cycle-cosine", "exp-range", "triangular2", "triangular", "oscillating-cosine", "cosine",
        "exponential", "schedule.peak=0.5",
    ]  # fmt: skip
    assert [each["name"] for each in result["arms"]] == [each["arm"] for each in records] == names
    assert [each["recipe"] for each in result["arms"]] == [each["recipe"] for each in records]
    schedules = {each["arm"]: each["recipe"]["schedule"] for each in records}
    assert (schedules["base"]["kind"], schedules["schedule.peak=0.5"]["peak"]) == ("one_cycle", 0.5)
    assert (schedules["cosine"]["kind"], schedules["triangular2"]["kind"]) == ("cosine", "cyclic_triangular2")
    assert {each["recipe"]["epochs"] for each in records} == {0.5}
    assert {each["recipe"]["net"]["project_width"] for each in records} == {32}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--variant, or --group"),
        (["--group", "imagenette-schedules"], "--group has a base of its own: leave --recipe out"),
        (["--variant", "net.residual=none"], "the same as"),
        (["--variant", "epochs=1", "--view", "seven"], "single_view, mirror, six_view"),
        (["--variant", "epochs=1", "--clock", "wall"], "prepare+train"),
        (["--variant", "epochs=1", "--out", ".."], "folder"),
    ],
)
def test_wrong_options_are_one_line(options, words, compared, tmp_path):
    done = compared(*options)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert not (tmp_path / "comparison.jsonl").exists()


MUTATIONS = {
    "bench/statistics.py": [
        ("student_t_quantile((1 + CONFIDENCE) / 2, n - 1)", "student_t_quantile(CONFIDENCE, n - 1)"),
        ("* float(array.std(ddof=1)) / n**0.5", "* float(array.std(ddof=1))"),
    ],
    "bench/pool.py": [
        ("index % len(self.arms)", "0"),
        ('stored["arm"] = arm', 'stored["arm"] = BASE'),
    ],
    "bench/verdicts.py": [
        ("TIME_TOLERANCE = 0.01", "TIME_TOLERANCE = 0.1"),
        ("ACCURACY_TOLERANCE = 0.001", "ACCURACY_TOLERANCE = 0.01"),
        ("accuracy.lower > 0 or seconds.upper < 0,", "accuracy.lower > 0,"),
        ("accuracy.upper < 0 or seconds.lower > 0\n", "accuracy.upper < 0\n"),
        ("and seconds.upper < limit", "and seconds.mean < limit"),
        ("and seconds.lower > -limit", "and seconds.mean > -limit"),
        ("(accuracy.mean * 1000)", "(accuracy.mean * 100)"),
        ("ratio if ratio >= 0 else None", "ratio"),
        ("if seconds_worth.lower > 0:", "if seconds_worth.mean > 0:"),
        ("accuracy.lower is not None and accuracy.lower > 0:", "accuracy.lower is not None and accuracy.mean > 0:"),
    ],
}
