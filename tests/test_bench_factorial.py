"""`bench compare --design factorial`: the design is balanced, planted effects are found, and confounding is told."""

import itertools
import json

import numpy as np
import pytest
from rich.console import Console

from speedyresnet.bench.factorial import confounding_told, design_of, print_screening, screening
from speedyresnet.bench.pool import BASE, PoolPlan
from speedyresnet.engine import UserError
from speedyresnet.engine.pack_file import save_pack


def design(factors, folded=False):
    return design_of([f"loss.{chr(97 + number)}=1" for number in range(factors)], folded=folded)


@pytest.mark.parametrize("factors", range(2, 16))
def test_every_factor_is_on_in_half_and_any_two_meet_in_all_ways_equally_often(factors):
    made = design(factors)
    levels = np.array(made.levels)
    assert len(levels) == {2: 4, 3: 4, 4: 8, 5: 8, 6: 8, 7: 8}.get(factors, 16)
    assert not levels[0].any()
    assert len(set(made.names)) == len(levels)
    assert made.names[0] == BASE
    for first, second in itertools.combinations(range(factors), 2):
        for one, other in itertools.product((False, True), repeat=2):
            assert ((levels[:, first] == one) & (levels[:, second] == other)).sum() == len(levels) / 4


def signs(made):
    return 2.0 * np.array(made.levels) - 1


@pytest.mark.parametrize("factors", [3, 7, 9, 11, 15])
@pytest.mark.parametrize("folded", [False, True])
def test_confounding_is_what_the_columns_say(factors, folded):
    """A pair is named exactly where the product of its columns is the column of the factor, up to the sign."""
    made = design(factors, folded)
    columns = signs(made).T
    for number in range(factors):
        named = set(made.confounded(number))
        for first, second in itertools.combinations(range(factors), 2):
            correlation = abs((columns[first] * columns[second] * columns[number]).sum()) / columns.shape[1]
            assert correlation in (0, 1)
            assert (correlation == 1) == ((made.factors[first].name, made.factors[second].name) in named)
    assert any(map(made.confounded, range(factors))) == (not folded)


@pytest.mark.parametrize("factors", [2, 4, 8])
def test_half_of_the_columns_leave_main_effects_free_of_interactions_of_two(factors):
    assert not any(map(design(factors).confounded, range(factors)))
    with pytest.raises(UserError, match="free of interactions of two factors already"):
        design(factors, folded=True)


def planted(made, seeds, effects, interaction=0.0, deviation=0.0):
    """Records in which each factor adds its effect to the accuracy and ten times that to the time."""
    random, records = np.random.default_rng(3), []
    by_seed = random.normal(0, 0.002, seeds)
    for name, row in zip(made.names, made.levels, strict=True):
        for seed in range(seeds):
            gain = float(np.dot(row, effects)) + interaction * (row[0] and row[1])
            accuracy = 0.9 + by_seed[seed] + gain + random.normal(0, deviation)
            clocks = {"prepare": 0.0, "train": 5.0 + 10 * float(np.dot(row, effects)), "evaluate": 0.0, "total": 5.0}
            records.append(
                {
                    "arm": name, "seed": seed, "status": "finished", "accuracy": {"mirror": accuracy},
                    "recipe": {"name": "r", "hash": name, "evaluation": {"view": "mirror"}}, "data": {"name": "d"},
                    "environment": {}, "device": "cpu", "backend": "eager", "seconds": clocks,
                }
            )  # fmt: skip
    return records


def screened(made, seeds, effects, rate=None, **options):
    plan = PoolPlan(runs=seeds, first_seed=0, validation=0, variants=made.names[1:])
    return screening(planted(made, seeds, effects, **options), plan, made, None, "train", rate)


@pytest.mark.parametrize("folded", [False, True])
def test_planted_effects_are_found_exactly_where_nothing_is_random(folded):
    made, effects = design(11, folded), np.linspace(-0.004, 0.006, 11)
    found = screened(made, 4, effects)["effects"]
    assert [each["accuracy"]["mean"] for each in found] == pytest.approx(effects)
    assert [each["seconds"]["mean"] for each in found] == pytest.approx(10 * effects)
    assert found[0]["seconds_per_tenth_point"] == pytest.approx(0.01)
    assert [each["name"] for each in found] == [each.name for each in made.factors]


def test_sixteen_configurations_of_twenty_seeds_tell_a_tenth_of_a_point():
    """Runs that deviate by 0.2 points, as on 5,000 images: 15 intervals of half-width 0.05 points, nearly all true."""
    effects = np.array([0.001] * 5 + [0.0] * 5 + [-0.001] * 5)
    found = screened(design(15), 20, effects, deviation=0.002)["effects"]
    widths = [(each["accuracy"]["upper"] - each["accuracy"]["lower"]) / 2 for each in found]
    assert np.mean(widths) == pytest.approx(0.00046, rel=0.15)
    inside = [
        each["accuracy"]["lower"] < true < each["accuracy"]["upper"] for each, true in zip(found, effects, strict=True)
    ]
    assert sum(inside) >= 13
    assert all(each["accuracy"]["lower"] > 0 for each in found[:5])
    assert all(each["accuracy"]["upper"] < 0 for each in found[10:])


def test_an_interaction_lands_where_it_is_told_to_and_a_fold_over_frees_it():
    effects = np.zeros(7)
    found = screened(design(7), 2, effects, interaction=0.008)["effects"]
    pair = [design(7).factors[0].name, design(7).factors[1].name]
    moved = [each for each in found[2:] if abs(each["accuracy"]["mean"]) > 1e-9]
    assert [each["accuracy"]["mean"] for each in moved] == pytest.approx([-0.004])
    assert pair in moved[0]["confounded_with"]
    freed = screened(design(7, folded=True), 2, effects, interaction=0.008)["effects"]
    assert [each["accuracy"]["mean"] for each in freed] == pytest.approx([0.004, 0.004, 0, 0, 0, 0, 0], abs=1e-12)
    assert not any(each["confounded_with"] for each in freed)


def test_a_price_of_accuracy_gives_the_verdict():
    found = screened(design(3), 5, np.array([0.002, 0.0, -0.002]), rate=0.02, deviation=1e-5)["effects"]
    assert [each["verdict"] for each in found[::2]] == ["better", "worse"]  # 0.02 s for what costs 0.01 s
    found = screened(design(3), 5, np.array([0.002, 0.0, -0.002]), rate=0.005, deviation=1e-5)["effects"]
    assert [each["verdict"] for each in found[::2]] == ["worse", "better"]


@pytest.mark.parametrize(
    ("variants", "words"),
    [
        (["loss.scale=1"], "2 to 15 factors"),
        ([f"loss.a{number}=1" for number in range(16)], "not 16"),
        (["loss.scale=1", "pocket"], "settings only"),
        (["loss.scale=1", "backend=compile"], "settings only"),
        (["loss.scale=1", ""], "settings only"),
        (["loss.scale=1 epochs=2", "epochs=3"], "both set epochs"),
    ],
)
def test_what_is_no_factor(variants, words):
    with pytest.raises(UserError, match=words):
        design_of(variants, folded=False)


def test_confounding_is_told():
    def told(made):
        return confounding_told(screened(made, 2, np.zeros(len(made.factors))))

    assert "Interactions are confounded" in told(design(7))
    assert "free of interactions of two" in told(design(4))
    assert "free of interactions of two" in told(design(7, folded=True))
    print_screening(Console(quiet=True), screened(design(7), 1, np.zeros(7)))


@pytest.fixture
def compared(small_pack, tmp_path, speedyresnet, monkeypatch):
    """A function that runs the command in a folder of its own."""
    save_pack(small_pack, tmp_path / "small.safetensors")
    monkeypatch.chdir(tmp_path)
    tiny = ["batch_size=64", "width_multiplier=0.0625", "epochs=0.3", "dtype=float32"]
    given = [word for each in tiny for word in ("--set", each)] + ["--device", "cpu", "--data", "./small.safetensors"]
    return lambda *options: speedyresnet("bench", "compare", "--recipe", "airbench94", *given, *options)


FACTORS = ["--variant", "loss.label_smoothing=0", "--variant", "net.activation=relu epochs=0.2"]


def test_the_command_screens_and_goes_on_after_an_interruption(compared, tmp_path):
    options = ["--design", "factorial", *FACTORS, "--runs", "2", "--json"]
    done = compared(*options)
    assert done.returncode == 0, done.stderr
    result, path = json.loads(done.stdout), tmp_path / "comparison.jsonl"
    assert (result["schema"], result["folded_over"], result["diverged"]) == ("speedyresnet.screening/1", False, 0)
    assert [each["name"] for each in result["effects"]] == ["loss.label_smoothing=0", "net.activation=relu epochs=0.2"]
    assert [each["name"] for each in result["arms"]] == [
        "base", "loss.label_smoothing=0", "net.activation=relu epochs=0.2",
        "loss.label_smoothing=0 net.activation=relu epochs=0.2",
    ]  # fmt: skip
    assert {each["recipe"]["epochs"] for each in result["arms"]} == {0.3, 0.2}
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    again = compared(*options)
    assert again.returncode == 0, again.stderr
    assert len(path.read_bytes().splitlines()) == 8
    accuracies = [
        [each["accuracy"]["mean"] for each in document["effects"]] for document in (result, json.loads(again.stdout))
    ]
    assert accuracies[0] == accuracies[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fold-over", *FACTORS], "--design factorial"),
        (["--design", "factorial", "--group", "speedy-cuts"], "instead of --group"),
        (["--design", "factorial", "--variant", "epochs=0.2"], "2 to 15 factors"),
        (["--design", "factorial", "--variant", "epochs=0.2", "--variant", "net.residual=none"], "the same as"),
    ],
)
def test_wrong_options_are_one_line(options, words, compared, tmp_path):
    done = compared(*options)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert not (tmp_path / "comparison.jsonl").exists()
