import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from rich.console import Console
from tiers import parametrize

from speedyresnet.bench.pool import PoolPlan, read_pool
from speedyresnet.bench.record import Targets, clock_seconds, record_runs, report, verdicts
from speedyresnet.bench.statistics import summary
from speedyresnet.engine import UserError, recipe
from speedyresnet.engine.data import held_out
from speedyresnet.engine.pack_file import save_pack
from speedyresnet.engine.setup import place_recipe

TINY = ["batch_size=64", "width_multiplier=0.125", "epochs=0.5", "dtype=float32", "augmentation.crop=16"]
NO_TARGETS = Targets(accuracy=None, view="six_view", seconds=None, clock="total")
COMMAND = [sys.executable, "-c", "from speedyresnet.bench.cli import main; main()", "bench", "record"]


def record(pack, out, runs=3, settings=(), **plan):
    made = recipe("airbench94", [*TINY, *settings])
    plan = PoolPlan(**{"runs": runs, "first_seed": 0, "validation": 0} | plan)
    return record_runs(place_recipe(made, torch.device("cpu"), "eager"), pack, plan, out, Console(quiet=True))


@pytest.fixture(scope="module")
def pool(small_pack, tmp_path_factory):
    """The content of a finished pool of three runs."""
    path = tmp_path_factory.mktemp("pool") / "runs.jsonl"
    record(small_pack, path)
    return path.read_bytes()


def test_bounds_are_those_of_the_t_distribution():
    values = [0.94, 0.941, 0.9395, 0.9402, 0.9411]
    found = summary(values)
    margin = 2.131847 * np.std(values, ddof=1) / 5**0.5  # t table: 95 % one-sided, 4 degrees of freedom
    assert found.lower_bound == pytest.approx(np.mean(values) - margin, rel=1e-6)
    assert found.upper_bound == pytest.approx(np.mean(values) + margin, rel=1e-6)
    assert (found.n, found.minimum, found.median, found.maximum) == (5, 0.9395, 0.9402, 0.9411)


def test_the_bound_holds_19_times_in_20():
    """Coverage over 4,000 simulated pools of ten runs, within three standard errors of 95 %."""
    draws = np.random.default_rng(0).normal(94.0, 0.14, (4000, 10))
    below = np.mean([summary(row).lower_bound <= 94.0 for row in draws])
    assert abs(below - 0.95) < 0.0104


def test_one_run_has_no_bounds():
    found = summary([3.0])
    assert (found.mean, found.std, found.lower_bound, found.upper_bound) == (3.0, None, None, None)


def test_a_pool_keeps_every_seed_once(pool, tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_bytes(pool)
    records = read_pool(path)
    assert [each["seed"] for each in records] == [0, 1, 2]
    assert records[0]["pool"] == {"runs": 3, "first_seed": 0, "validation": 0}
    assert all(each["status"] == "finished" and each["seconds"]["total"] > 0 for each in records)
    assert records[0]["history"][0]["val_accuracy"] is None


def test_a_finished_pool_runs_nothing_again(pool, small_pack, tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_bytes(pool)
    assert len(record(small_pack, path)) == 3
    assert path.read_bytes() == pool


@parametrize("cut", [1, 200, 3000, -12], default=1)
def test_a_pool_cut_in_the_middle_of_a_line_goes_on(cut, pool, small_pack, tmp_path):
    path = tmp_path / "runs.jsonl"
    left = pool[:-cut]  # a negative cut leaves only the first few bytes
    path.write_bytes(left)
    whole = left.count(b"\n")
    records = record(small_pack, path)
    assert [each["seed"] for each in records] == [0, 1, 2]
    lines = path.read_bytes().splitlines(keepends=True)
    assert lines[:whole] == pool.splitlines(keepends=True)[:whole]
    assert [json.loads(line)["seed"] for line in lines] == [0, 1, 2]
    old = [json.loads(line)["accuracy"] for line in pool.splitlines()]
    assert [json.loads(line)["accuracy"] for line in lines] == old


@pytest.mark.parametrize(
    ("settings", "plan", "words"),
    [
        (["epochs=0.6"], {}, "recipe hash"),
        ([], {"runs": 4}, "--runs 3, not 4"),
        ([], {"first_seed": 5}, "--first-seed"),
        ([], {"validation": 64}, "data"),
    ],
)
def test_a_pool_is_of_one_kind(settings, plan, words, pool, small_pack, tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_bytes(pool)
    with pytest.raises(UserError, match=words):
        record(small_pack, path, settings=settings, **plan)
    assert path.read_bytes() == pool


@pytest.mark.parametrize("text", ["my notes\nmore of them\n", "one line without an end", '{"schema": "other/1"'])
def test_a_file_that_is_no_pool_is_left_alone(text, small_pack, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=r"no (run of a )?pool"):
        record(small_pack, path)
    assert path.read_text() == text


@parametrize(
    ("changes", "words"),
    [
        ({"status": "interrupted"}, "its status 'interrupted'"),
        ({"schema": "speedyresnet.run/9"}, "its schema is"),
        ({"seed": True}, "seed is not an integer"),
        ({"seconds": {"prepare": 1.0, "train": 1.0, "evaluate": 1.0, "total": None}}, "seconds.total"),
        ({"accuracy": {"weights": "live", "single_view": 0.9, "mirror": None, "six_view": None}}, "accuracy.six_view"),
        ({"environment": []}, "environment is not an object"),
        ({"pool": {"runs": 3}}, "pool.first_seed"),
        ({"arm": "narrow"}, "its arm is 'narrow'"),
        ({"seed": 7}, "seed 7 of base twice, or it is not planned"),
        ({"seed": 0}, "seed 0 of base twice, or it is not planned"),
    ],
    default=3,
)
def test_a_line_that_is_no_run_is_named_before_anything_runs(changes, words, pool, small_pack, tmp_path):
    path = tmp_path / "runs.jsonl"
    first, second, *_ = map(json.loads, pool.splitlines())
    path.write_text("".join(json.dumps(each) + "\n" for each in (first, second | changes)))
    with pytest.raises(UserError, match=words):
        record(small_pack, path)
    assert len(path.read_text().splitlines()) == 2


def test_targets_are_held_against_the_bounds(pool, tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_bytes(pool)
    records = read_pool(path)
    for each, value in zip(records, (0.941, 0.942, 0.943), strict=True):
        each["accuracy"]["six_view"] = value
        each["seconds"] |= {"prepare": 1.0, "train": value, "evaluate": 1.0, "total": value + 2}
    result = report(records, NO_TARGETS)
    bound = result["accuracy"]["six_view"]["lower_bound"]
    assert 0.94 < bound < 0.941
    assert clock_seconds(records[0], "prepare+train") == pytest.approx(1.941)
    found = {view: summary([r["accuracy"][view] for r in records]) for view in ("single_view", "six_view")}
    found["train"] = summary([r["seconds"]["train"] for r in records])
    for accuracy, seconds, met in ((bound, 0.95, [True, True]), (bound + 1e-6, 0.9431, [False, False])):
        targets = Targets(accuracy=accuracy, view="six_view", seconds=seconds, clock="train")
        assert [row["met"] for row in verdicts(found, targets)] == met


def test_a_diverged_run_counts(small_pack, tmp_path):
    settings = ["optimizer.learning_rate=1e6", "optimizer.weight_decay=1"]
    records = record(small_pack, tmp_path / "runs.jsonl", runs=2, settings=settings)
    result = report(records, NO_TARGETS)
    assert (result["runs"], result["diverged"]) == (2, 2)
    assert result["accuracy"]["six_view"]["mean"] < 0.3


def test_validation_never_touches_the_test_set(small_pack, tmp_path):
    held = held_out(small_pack, 64)
    assert (len(held.train_labels), len(held.test_labels)) == (576, 64)
    together = torch.cat([held.train_images, held.test_images]).flatten(1)
    original = small_pack.train_images.flatten(1)
    assert torch.equal(together.unique(dim=0), original.unique(dim=0))
    records = record(small_pack, tmp_path / "runs.jsonl", runs=1, validation=64)
    assert records[0]["data"]["name"] == "synthetic-validation-64"
    assert records[0]["data"]["test_images"] == 64
    with pytest.raises(UserError, match="between 1 and 639"):
        held_out(small_pack, 640)


@pytest.mark.exhaustive
def test_the_command_exits_with_1_when_a_target_is_missed_and_survives_a_kill(small_pack, tmp_path):
    data, out = tmp_path / "small.safetensors", tmp_path / "runs.jsonl"
    save_pack(small_pack, data)
    settings = [word for each in TINY for word in ("--set", each)]
    command = [*COMMAND, "--recipe", "airbench94", *settings, "--device", "cpu", "--data", data, "--out", out]
    command = [str(word) for word in [*command, "--runs", "6"]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not out.exists() or out.read_bytes().count(b"\n") < 2:
        time.sleep(0.05)
        assert process.poll() is None
    process.kill()
    process.wait()
    before = out.read_bytes()
    options = ["--target", "99.9", "--seconds", "1000", "--clock", "total", "--json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    result = json.loads(done.stdout)
    assert [row["met"] for row in result["targets"]] == [False, True]
    seeds = [json.loads(line)["seed"] for line in out.read_text().splitlines()]
    assert seeds == list(range(6))
    assert out.read_bytes().startswith(before[: before.rindex(b"\n") + 1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--runs", "0"], "--runs"),
        (["--runs", "2", "--view", "seven"], "single_view, mirror, six_view"),
        (["--runs", "2", "--clock", "wall"], "prepare+train"),
        (["--runs", "2", "--recipe", "pocket", "--view", "six_view"], "evaluation.view=six_view"),
        (["--runs", "2", "--data", "nowhere"], "nowhere"),
    ],
)
def test_wrong_options_are_one_line(options, words, tmp_path, speedyresnet):
    done = speedyresnet("bench", "record", "--out", tmp_path / "runs.jsonl", *options)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert not (tmp_path / "runs.jsonl").exists()


def test_a_summary_has_the_twentieth_from_either_end():
    found = summary(list(range(101)))
    assert (found.quantile_05, found.median, found.quantile_95) == (5, 50, 95)


MUTATIONS = {
    "bench/statistics.py": [
        ("std = float(array.std(ddof=1))", "std = float(array.std(ddof=0))"),
        ("student_t_quantile(CONFIDENCE, n - 1) * std / n**0.5", "student_t_quantile(CONFIDENCE, n - 1) * std"),
        ("student_t_quantile(CONFIDENCE, n - 1)", "student_t_quantile((1 + CONFIDENCE) / 2, n - 1)"),
        ("margin is None else mean - margin", "margin is None else mean + margin"),
        ("margin is None else mean + margin", "margin is None else mean - margin"),
        ("[0.0, 0.05, 0.5, 0.95, 1.0]", "[0.0, 0.1, 0.5, 0.9, 1.0]"),
    ],
    "bench/pool.py": [
        ("if run not in done", "if run[0] > max((seed for seed, _ in done), default=-1)"),
        ("open_runs.remove((seed, arm))", "pass"),
        ('not in ("finished", "diverged")', 'not in ("finished",)'),
        ('file.truncate(path.read_bytes().rfind(b"\\n") + 1)', "pass"),
        ('"data": record["data"]["sha256"]', '"data": record["data"]["name"]'),
        ("self.records.append(stored)", "pass"),
        ("                    self.file.truncate(end)", "                    pass"),
    ],
}
