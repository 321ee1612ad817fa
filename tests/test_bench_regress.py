import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from speedyresnet.bench import revisions
from speedyresnet.bench.cli import main
from speedyresnet.bench.regress import (
    Change,
    changed_cases,
    interleaved_change,
    separate_change,
    sitting_report,
    verdict,
)
from speedyresnet.bench.revisions import FEWEST_ROUNDS, Installed, Plan, Samples, Sitting, check_imports
from speedyresnet.engine import UserError

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 30
SITTINGS = 100


class Machine:
    """Machine that is at times `slow_mode` slower, and `drift` slower after `calls` measurements."""

    def __init__(self, generator, calls, noise=0.02, slow_mode=0.0, drift=0.0):
        self.random, self.calls, self.noise, self.slow_mode, self.drift = generator, calls, noise, slow_mode, drift
        self.done = 0

    def measured(self, seconds):
        self.done += 1
        mode = self.slow_mode * (self.random.random() < 0.3)
        now = 1 + self.drift * self.done / self.calls
        return seconds * (1 + self.noise * self.random.normal()) * (1 + mode) * now


class MachineWorker:
    """Stand-in for the process of a revision."""

    def __init__(self, machine, seconds):
        self.machine, self.seconds = machine, seconds

    def ask(self, request, deadline):
        return self.machine.measured(self.seconds) if "time" in request else None


def interleaved_samples(generator, slowdown=0.0, rounds=ROUNDS, **machine):
    """Return the samples of a case measured in the order of the command."""
    machine = Machine(generator, 2 * rounds, **machine)
    workers = [MachineWorker(machine, seconds) for seconds in (1.0, 1 + slowdown)]
    return revisions._samples(workers, ["case"], rounds, math.inf)["case"]


def verdicts(cases=5, slowdown=0.0, **machine):
    """Return the verdicts on the first of `cases`, the only slower one, in 100 sittings; count other changes."""
    generator, found, others = np.random.default_rng(0), [], 0
    for _ in range(SITTINGS):
        samples = [interleaved_samples(generator, slowdown * (case == 0), **machine) for case in range(cases)]
        first, *rest = (verdict(interleaved_change(each), 0.03, cases) for each in samples)
        found.append(first)
        others += any(each in ("slower", "faster") for each in rest)
    return found, others


def test_a_slowdown_of_5_percent_under_noise_of_2_is_found():
    found, others = verdicts(slowdown=0.05)
    assert found.count("slower") >= 95
    assert others <= 2


def test_where_time_is_short_it_is_found_too():
    found, _ = verdicts(slowdown=0.05, rounds=FEWEST_ROUNDS)
    assert found.count("slower") >= 95


def test_no_change_is_no_change():
    found, others = verdicts()
    assert found.count("same") >= 98
    assert others <= 2


@pytest.mark.parametrize("machine", [{"slow_mode": 0.1}, {"slow_mode": 1.0}, {"drift": 0.2}, {"drift": 2.0}])
def test_a_machine_of_two_speeds_or_one_that_drifts_fools_nobody(machine):
    found, others = verdicts(**machine)
    assert found.count("slower") + found.count("faster") + others <= 2


def test_a_slowdown_is_found_on_such_machines():
    assert verdicts(slowdown=0.05, drift=0.2)[0].count("slower") >= 95
    assert verdicts(slowdown=0.05, drift=2.0)[0].count("slower") >= 95
    assert verdicts(slowdown=0.10, slow_mode=0.1)[0].count("slower") >= 95


def test_between_two_sittings_drift_looks_like_a_change_but_noise_does_not():
    generator = np.random.default_rng(0)
    found = {"none": 0, "slower": 0, "drift": 0}
    for _ in range(SITTINGS):
        for name, factor in (("none", 1.0), ("slower", 1.05), ("drift", 1.2)):
            base, head = (list(each * (1 + 0.02 * generator.normal(size=15))) for each in (1.0, factor))
            found[name] += verdict(separate_change(Samples(base, head)), 0.03, 1) == "slower"
    assert found["none"] <= 2
    assert found["slower"] >= 95
    assert found["drift"] == SITTINGS  # therefore the report says that drift cannot be excluded


def test_the_interval_holds_the_change_99_times_in_100():
    generator, held, floors = np.random.default_rng(0), 0, []
    for _ in range(1000):
        change = interleaved_change(interleaved_samples(generator, slowdown=0.05))
        held += change.low < 0.05 < change.high
        floors.append(change.noise_floor)
    assert held >= 980
    of_a_normal_mean = 1.05 * 2.576 * 0.02 * (2 / ROUNDS) ** 0.5
    assert of_a_normal_mean < np.median(floors) < 1.2 * of_a_normal_mean


def test_what_there_is_no_time_for_is_left_out(monkeypatch):
    """In 420 seconds, the augmentation takes half, the step is left out after one round, and the pool follows."""
    clock, seconds = [0.0], {"augment-1": 2.0, "step-eager": 5.0, "pool-1": 1.0, "head-1": 500.0, "averaging-1": 0.1}
    monkeypatch.setattr(revisions.time, "monotonic", lambda: clock[0])

    class Clocked:
        def ask(self, request, deadline):
            clock[0] += seconds.get(request.get("time"), 0.0)
            if clock[0] > deadline:
                raise TimeoutError
            return 0.001

    left_out, plan = [], Plan(subject={}, operations=[], rounds=60, deadline=420.0)
    cases = {name: name.split("-")[0] for name in seconds}
    found = revisions._measured([Clocked(), Clocked()], cases, plan, left_out, Console(quiet=True))
    assert {name: len(each.base) for name, each in found.items()} == {"augment-1": 53, "pool-1": 50}
    assert {name: len(each.head) for name, each in found.items()} == {"augment-1": 53, "pool-1": 50}
    assert left_out == ["step", "head", "averaging"]


def test_a_change_is_one_over_the_other():
    samples = Samples(base=[2.0, 4.0, 2.0, 4.0], head=[3.0, 6.0, 3.0, 6.0])
    assert interleaved_change(samples).value == pytest.approx(0.5)
    assert separate_change(samples).value == pytest.approx(0.5)
    assert interleaved_change(Samples(samples.head, samples.base)).value == pytest.approx(-1 / 3)


def test_of_many_samples_some_are_enough(monkeypatch):
    base = list(np.linspace(1.0, 1.1, 3000))
    whole = separate_change(Samples(base, [2 * each for each in base]))
    monkeypatch.setattr("speedyresnet.bench.regress._MOST_SAMPLES", 100)
    part = separate_change(Samples(base, [2 * each for each in base]))
    assert whole.value == pytest.approx(part.value) == pytest.approx(1.0)
    assert part.noise_floor > 2 * whole.noise_floor


def test_too_few_samples_tell_nothing():
    change = interleaved_change(Samples([1.0] * 8, [2.0] * 8))
    assert change.noise_floor == np.inf
    assert verdict(change, 0.03, 1) == "cannot tell"


def change_of(value, floor, p=1e-9):
    return Change(value=value, low=value - floor, high=value + floor, p=p)


@pytest.mark.parametrize(
    ("change", "cases", "told"),
    [
        (change_of(0.05, 0.01), 1, "slower"),
        (change_of(0.02, 0.01), 1, "same"),  # less than the effect
        (change_of(0.05, 0.01, p=0.02), 1, "same"),
        (change_of(0.05, 0.01, p=0.001), 9, "slower"),
        (change_of(0.05, 0.01, p=0.001), 11, "same"),  # expected by chance in one of eleven cases
        (change_of(0.05, 0.04), 1, "cannot tell"),
        (change_of(0.01, 0.04), 1, "cannot tell"),
        (change_of(0.50, 0.04), 1, "slower"),  # despite the noise
        (change_of(-0.05, 0.01), 1, "faster"),
        (change_of(-0.05, 0.04), 1, "cannot tell"),
    ],
)
def test_verdicts(change, cases, told):
    assert verdict(change, 0.03, cases) == told


def test_what_new_processes_do_not_show_again_is_no_change():
    generator = np.random.default_rng(0)
    one, two, three = (interleaved_samples(generator, slowdown) for slowdown in (0.1, 0.1, 0.0))
    assert changed_cases({"one": one, "two": two, "three": three}, 0.03) == ["one", "two"]
    again = {"one": interleaved_samples(generator, 0.1), "two": interleaved_samples(generator)}
    sitting = Sitting({}, {}, [], [], samples={"one": one, "two": two, "three": three}, again=again)
    rows = sitting_report(sitting, 0.03)["cases"]
    assert {row["name"]: row["verdict"] for row in rows} == {"one": "slower", "two": "cannot tell", "three": "same"}
    assert abs(rows[1]["again"]["change"]) < 0.03


def command(*words, folder=ROOT, **options):
    words = [sys.executable, "-c", "from speedyresnet.bench.cli import main; main()", "bench", "regress", *words]
    return subprocess.run(list(map(str, words)), cwd=folder, capture_output=True, text=True, check=False, **options)


def regress(capsys, monkeypatch, *words):
    """Return exit code, standard output and standard error of the command in this process."""
    monkeypatch.setattr(sys, "argv", ["speedyresnet", "bench", "regress", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    return end.value.code, printed.out, printed.err


def benchmark_file(path, cases, **environment):
    benchmarks = [{"name": name, "fullname": f"bench/{name}", "stats": {"data": data}} for name, data in cases.items()]
    path.write_text(json.dumps({"machine_info": {"speedyresnet": environment}, "benchmarks": benchmarks}))
    return path


def noisy(seconds, seed, noise=0.02):
    return list(seconds * (1 + noise * np.random.default_rng(seed).normal(size=15)))


def test_two_files(tmp_path, capsys, monkeypatch):
    base = benchmark_file(tmp_path / "a.json", {"pool": noisy(1.0, 0), "stem": noisy(2.0, 1), "gone": [1.0]})
    head = benchmark_file(tmp_path / "b.json", {"pool": noisy(1.1, 2), "stem": noisy(2.0, 3), "new": [1.0]})
    code, out, _ = regress(capsys, monkeypatch, base, head, "--out", tmp_path / "out.json")
    assert code == 1
    assert "drift of the machine between the two sittings cannot be excluded" in out
    assert "only base has: bench/gone" in out
    assert "only head has: bench/new" in out
    result = json.loads((tmp_path / "out.json").read_text())
    (pool, stem) = result["cases"]
    assert out.splitlines()[-1] == f"slower: bench/pool by {100 * pool['change']:.1f} %"
    assert pool["change"] == pytest.approx(0.1, abs=0.03)
    assert (pool["verdict"], stem["verdict"]) == ("slower", "same")
    assert regress(capsys, monkeypatch, base, head, "--effect", 20)[0] == 0
    code, out, _ = regress(capsys, monkeypatch, head, base)
    assert code == 0
    assert out.splitlines()[-1] == "nothing seen to be slower by 3 % or more"


def test_noise_above_the_effect_cannot_tell(tmp_path, capsys, monkeypatch):
    base, head = (
        benchmark_file(tmp_path / f"{seed}.json", {"pool": noisy(1.0 + seed / 50, seed, noise=0.2)})
        for seed in range(2)
    )
    code, out, _ = regress(capsys, monkeypatch, base, head, "--json")
    (row,) = json.loads(out)["cases"]
    assert (code, row["verdict"]) == (0, "cannot tell")
    _, out, _ = regress(capsys, monkeypatch, base, head)
    assert f"noise floor up to {100 * row['noise_floor']:.1f} %, above 3 %" in out
    assert out.splitlines()[-1] == "cannot tell whether anything got slower"


def test_files_that_cannot_be_compared_are_one_line(tmp_path, capsys, monkeypatch):
    here = benchmark_file(tmp_path / "here.json", {"pool": [1.0]}, processor="A", threads=2)
    there = benchmark_file(tmp_path / "there.json", {"pool": [1.0]}, processor="B", threads=2)
    other = benchmark_file(tmp_path / "other.json", {"stem": [1.0]}, processor="A", threads=2)
    empty = benchmark_file(tmp_path / "empty.json", {"pool": None}, processor="A", threads=2)
    (tmp_path / "text.json").write_text("[1")
    for path, words in (
        (there, "processor A"),
        (other, "no case in common"),
        (empty, "--benchmark-save-data"),
        (tmp_path / "text.json", "is no file of pytest-benchmark"),
        (tmp_path / "gone.json", "No such file"),
    ):
        code, out, err = regress(capsys, monkeypatch, here, path)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert words in err


@pytest.mark.parametrize(
    "data", ["abc", ["a"], 5, [None, 1.0], [True], {"a": 1}, [[1.0]], [0.0], [-1.0], [10**400], [], None]
)
def test_data_that_are_no_times_are_one_line(data, tmp_path, capsys, monkeypatch):
    good = benchmark_file(tmp_path / "good.json", {"pool": [1.0, 1.1]})
    bad = benchmark_file(tmp_path / "bad.json", {"pool": data})
    for files in ((good, bad), (bad, good)):
        code, out, err = regress(capsys, monkeypatch, *files)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert str(bad) in err


@pytest.mark.parametrize(
    "content",
    [
        100_000 * "[",
        "[]",
        "null",
        '{"benchmarks": [{}]}',
        '{"benchmarks": [{"name": [], "stats": {}}]}',
        '{"benchmarks": [{"name": "a", "stats": []}]}',
        '{"benchmarks": {"name": 1}}',
        '{"machine_info": [], "benchmarks": []}',
        '{"machine_info": {"speedyresnet": 3}, "benchmarks": []}',
    ],
)
def test_a_file_of_another_kind_is_one_line(content, tmp_path, capsys, monkeypatch):
    good = benchmark_file(tmp_path / "good.json", {"pool": [1.0, 1.1]})
    (tmp_path / "bad.json").write_text(content)
    code, out, err = regress(capsys, monkeypatch, good, tmp_path / "bad.json")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert str(tmp_path / "bad.json") in err


def plain_file(path, seconds, **machine):
    """Write a file as pytest-benchmark does without this package."""
    machine_info = {"node": "a", "machine": "x86_64", "cpu": {"brand_raw": "A", "count": 2}} | machine
    cases = [{"name": "sum", "fullname": "test_it.py::sum", "stats": {"data": noisy(seconds, 0)}}]
    path.write_text(json.dumps({"machine_info": machine_info, "benchmarks": cases}))
    return path


@pytest.mark.parametrize(
    ("machine", "key"),
    [
        ({"node": "b"}, "node"),
        ({"machine": "aarch64"}, "machine"),
        ({"system": "Darwin"}, "system"),
        ({"cpu": {"brand_raw": "B", "count": 2}}, "cpu.brand_raw"),
        ({"cpu": {"brand_raw": "A", "count": 4}}, "cpu.count"),
        ({"cpu": None}, "cpu.brand_raw"),
    ],
)
def test_files_of_two_machines_cannot_tell(machine, key, tmp_path, capsys, monkeypatch):
    base = plain_file(tmp_path / "a.json", 1.0)
    same, other = plain_file(tmp_path / "b.json", 2.0), plain_file(tmp_path / "c.json", 2.0, **machine)
    assert regress(capsys, monkeypatch, base, same)[0] == 1
    code, out, _ = regress(capsys, monkeypatch, base, other)
    assert code == 0
    assert f"base was measured with {key} " in " ".join(out.split())
    assert out.splitlines()[-1] == "cannot tell whether anything got slower"
    assert "noise" not in out.splitlines()[-2]
    _, out, _ = regress(capsys, monkeypatch, base, other, "--json")
    assert [row["verdict"] for row in json.loads(out)["cases"]] == ["cannot tell"]


def test_files_that_pytest_benchmark_wrote_are_read(tmp_path, capsys, monkeypatch):
    (tmp_path / "test_it.py").write_text("def test_sum(benchmark):\n    benchmark(sum, range(1000))\n")
    words = ["-m", "pytest", "-q", "test_it.py", "--benchmark-max-time=0.1", "--benchmark-json=it.json"]
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # pytest-benchmark would measure nothing
    subprocess.run([sys.executable, *words], cwd=tmp_path, check=True, capture_output=True)
    code, out, _ = regress(capsys, monkeypatch, tmp_path / "it.json", tmp_path / "it.json", "--json")
    assert code == 0
    (row,) = json.loads(out)["cases"]
    assert row["name"] == "test_it.py::test_sum"
    assert len(row["base"]) > 1000
    assert row["change"] == 0


@pytest.mark.parametrize("revision", ["no-such-branch", "HEAD:README.md", "--all"])
def test_an_unknown_revision_is_one_line(revision, capsys, monkeypatch):
    code, out, err = regress(capsys, monkeypatch, "--", "HEAD", revision)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert f"revision {revision}: git knows no such commit" in err


def test_equal_paths_are_refused(tmp_path):
    own = [Installed(name, "", tmp_path / name) for name in ("base", "head")]
    told = [{"path": str(each.environment / "engine"), "loaded": [str(each.environment / "engine")]} for each in own]
    check_imports(own, told)
    with pytest.raises(UserError, match="both revisions import"):
        check_imports(own, [told[0], told[0]])
    stranger = told[1] | {"loaded": [told[1]["path"], "/elsewhere/cases.py"]}
    with pytest.raises(UserError, match=r"head lacks .*elsewhere"):
        check_imports(own, [told[0], stranger])


def git(folder, *words):
    identity = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.org"]
    done = subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout


def test_the_repository_around_a_copy_is_not_taken_for_ours(tmp_path, monkeypatch):
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "first")
    (tmp_path / "copy" / "engine").mkdir(parents=True)
    (tmp_path / "copy" / "engine" / "step.py").touch()
    monkeypatch.chdir(tmp_path / "copy")
    with pytest.raises(UserError, match="revision HEAD is not of SpeedyResNet; start in a checkout"):
        revisions.commit_of("HEAD")
    monkeypatch.chdir(ROOT)
    assert revisions.commit_of("HEAD") == git(ROOT, "rev-parse", "HEAD").strip()


@pytest.fixture
def slower_clone(tmp_path):
    """Return a clone of this repository whose last commit makes the optimizer slower."""
    clone = tmp_path / "clone"
    git(ROOT, "clone", "--quiet", str(ROOT), str(clone))
    step = clone / "engine" / "step.py"
    line = "    settings, left = state.recipe.optimizer, iter(gradients)\n"
    assert step.read_text().count(line) == 1
    planted = "    for _ in range(30):\n        gradients = [each.clone() for each in gradients]\n"
    step.write_text(step.read_text().replace(line, planted + line))
    git(clone, "commit", "--quiet", "--all", "--message", "Slower")
    return clone


@pytest.mark.exhaustive
def test_a_slowdown_planted_in_the_code_is_found(slower_clone, tmp_path):
    """Only the optimizer, which is slower, and the averaging, which is not, are timed."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    out = tmp_path / "out.json"
    options = [
        "--recipe",
        "pocket",
        "--device",
        "cpu",
        "--operation",
        "optimizer",
        "--operation",
        "averaging",
        "--quick",
    ]
    done = command(
        "HEAD~1", "HEAD", *options, "--out", out, folder=slower_clone, env=os.environ | {"TMPDIR": str(scratch)}
    )
    assert done.returncode == 1, done.stderr
    result = json.loads(out.read_text())
    optimizer, averaging = result["cases"]
    assert (optimizer["name"].split("-")[0], averaging["name"].split("-")[0]) == ("optimizer", "averaging")
    assert optimizer["verdict"] == optimizer["again"]["verdict"] == "slower"
    assert averaging["verdict"] in ("same", "cannot tell")
    assert done.stdout.splitlines()[-1] == f"slower: {optimizer['name']} by {100 * optimizer['change']:.1f} %"
    paths = [result[side]["path"] for side in ("base", "head")]
    assert paths[0] != paths[1]
    for path, revision in zip(paths, ("HEAD~1", "HEAD"), strict=True):
        assert Path(path).is_relative_to(scratch)
        assert f"{revision} imports {path}" in done.stdout
    assert list(scratch.iterdir()) == []
    assert len(git(slower_clone, "worktree", "list").splitlines()) == 1
