import json
import logging
import os
import signal
import sys

import pytest
import torch
from trainers import trainer_of

from speedyresnet.bench import step_time, step_variants
from speedyresnet.bench.cli import main
from speedyresnet.bench.report import read_source
from speedyresnet.bench.step_time import cold_and_warm_build_seconds, launches_and_idle, measure_steps
from speedyresnet.engine import UserError, recipe, setup, trainer
from speedyresnet.engine.backends import BackendError, make_step
from speedyresnet.engine.cli import run_command_line
from speedyresnet.engine.pack_file import save_pack

TINY = ["batch_size=64", "width_multiplier=0.125", "epochs=1", "dtype=float32", "augmentation.crop=16"]
CPU = torch.device("cpu")
FAILURE = "--backend {} failed at [step.py], which is told in one line, however wide the terminal; use --backend eager"


def test_a_step_is_timed_and_counted(small_pack):
    (found,), _ = measure_steps(recipe("airbench94", TINY), small_pack, CPU, ["eager"], rounds=4, steps=3)
    assert (found.backend, found.dtype, found.launches, found.idle_milliseconds) == ("eager", "float32", None, None)
    assert found.quartiles[0] <= found.milliseconds <= found.quartiles[1]
    assert found.images_per_second == pytest.approx(64 / found.milliseconds * 1e3)
    assert 0 < found.host_milliseconds <= found.milliseconds * 1.2
    assert found.build_seconds > 0
    assert found.peak_bytes > 1e8


class Answering:
    """Stands for the process of a backend: notes what it is asked, and fails at one request."""

    def __init__(self, name, asked, failing_at=None):
        self.name, self.asked, self.failing_at = name, asked, failing_at

    def ask(self, request, steps):
        """Seconds that count the requests."""
        self.asked.append(self.name if request == "round" else request)
        if self.asked.count(self.name) == self.failing_at:
            raise BackendError("gone")
        return (float(len(self.asked)), 0.5) if request == "round" else (None, None)

    def end(self):
        """It has ended."""
        self.asked.append(f"end of {self.name}")


def test_rounds_are_interleaved_and_the_order_alternates():
    """Times that are 1, 2, 3, ... seconds tell which round ran when."""
    asked, failed = [], {}
    processes = {name: Answering(name, asked) for name in ("first", "second")}
    rows = step_time._measured_rounds(processes, failed, 4, 2)
    assert asked == ["first", "second", "second", "first"] * 2 + ["launches"] * 2
    assert [[whole for whole, _ in times] for times, _ in rows.values()] == [[1, 4, 5, 8], [2, 3, 6, 7]]
    assert failed == {}


def test_a_backend_that_fails_in_a_round_leaves_the_turns_to_the_others():
    asked, failed = [], {}
    processes = {
        name: Answering(name, asked, failing_at=2 if name == "first" else None) for name in ("first", "second")
    }
    rows = step_time._measured_rounds(processes, failed, 3, 2)
    assert asked == ["first", "second", "second", "first", "end of first", "second", "launches"]
    assert (list(rows), failed) == (["second"], {"first": "gone"})


@pytest.mark.exhaustive
def test_steps_never_run_past_the_tables(small_pack):
    (found,), _ = measure_steps(recipe("airbench94", TINY), small_pack, CPU, ["eager"], rounds=3, steps=1000)
    assert found.milliseconds > 0  # ten steps make this run


SERVE = step_time.serve


def serve(connection, made, data, device, backend, debug):
    """What backends do in their processes: one fails, one is killed, one says nothing, and the others work."""

    def make(state, chosen, variant):
        if backend == "compile":
            raise BackendError(FAILURE.format("compile"))
        if backend == "graph":
            os.kill(os.getpid(), signal.SIGKILL)
        if backend == "capture":
            os._exit(7)
        print("a compiler's own words")
        return make_step(state, "eager", variant)

    setup.check_backend = lambda name, place: None
    trainer.make_step = make
    SERVE(connection, made, data, device, backend, debug)


@pytest.mark.exhaustive
def test_a_backend_that_fails_or_is_killed_is_named_and_the_others_are_timed(small_pack, tmp_path, monkeypatch, capfd):
    data, out = tmp_path / "small.safetensors", tmp_path / "steps.json"
    save_pack(small_pack, data)
    monkeypatch.setattr(step_time, "serve", serve)
    names = ["compile", "graph", "capture", "eager"]
    monkeypatch.setattr("speedyresnet.bench.cli.backends_of", lambda device: names)
    settings = [word for each in TINY for word in ("--set", each)]
    words = ["bench", "step", "--recipe", "airbench94", *settings, "--data", str(data), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["speedyresnet", *words, "--rounds", "2", "--steps", "2", "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    result, reason = json.loads(out.read_text()), FAILURE.format("compile")
    assert [row["backend"] for row in result["backends"]] == ["eager"]
    assert {each["backend"]: each["reason"] for each in result["failed"]} == {
        "compile": reason,
        "graph": "its process was ended by SIGKILL, as the system does where memory is full",
        "capture": "its process ended with exit code 7",
    }
    said = capfd.readouterr()
    assert f"compile: {reason}" in said.out.splitlines()
    assert "own words" not in said.out  # standard output is for the result
    assert "own words" in said.err
    assert "Traceback" not in said.err
    (times, failed) = read_source(out).blocks
    assert len(times.rows) == 1
    assert failed.rows[0][1:] == ("compile", reason)


def failing_serve(connection, made, data, device, backend, debug):
    """Every backend fails in a way that nobody foresaw."""

    def make(state, chosen, variant):
        raise TypeError("no\nstep")

    trainer.make_step = make
    SERVE(connection, made, data, device, backend, debug)


@pytest.mark.exhaustive
def test_where_no_backend_can_be_built_the_user_is_told_why(small_pack, monkeypatch, capfd, caplog):
    """And with --debug where in the code, too."""
    monkeypatch.setattr(step_time, "serve", failing_serve)
    caplog.set_level(logging.DEBUG, "speedyresnet")
    with pytest.raises(UserError, match=r"^TypeError: no step$"):
        measure_steps(recipe("airbench94", TINY), small_pack, CPU, ["eager"])
    said = capfd.readouterr().err
    assert "Traceback" in said
    assert 'raise TypeError("no' in said


def test_a_recipe_that_does_not_fit_starts_no_process(small_pack, monkeypatch):
    monkeypatch.setattr(step_time, "BackendProcess", None)
    with pytest.raises(UserError, match="exceeds images"):
        measure_steps(recipe("airbench94", [*TINY, "augmentation.crop=99"]), small_pack, CPU, ["eager"])


def test_a_build_that_fails_with_an_empty_cache_is_named(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    found, failed = step_time.all_build_seconds("pocket", [], "synthetic", "cpu", ["compile"])
    assert found == {}
    assert failed == {"compile": "with an empty compiler cache its process ended with exit code 1"}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (BackendError("--backend graph failed"), "--backend graph failed"),
        (torch.OutOfMemoryError("CUDA out of memory"), "the GPU's memory is full: lower --set batch_size"),
        (KeyError("x"), "KeyError: 'x'"),
    ],
)
def test_a_failure_is_one_line(error, told):
    assert step_time.failure_told(error) == told


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_without_a_working_profiler_launches_are_unknown(small_pack, monkeypatch):
    """What a GPU is without CUPTI: the profiler only has the host's side."""
    made = trainer_of(recipe("airbench94", TINY), small_pack)
    made.device = torch.device("cuda")
    monkeypatch.setattr(step_time, "synchronize", lambda device: None)
    with pytest.warns(UserWarning, match="saw no kernel"):
        found = launches_and_idle(made, 1)
    assert found == (None, None)


def test_the_command_prints_one_document(small_pack, tmp_path, speedyresnet):
    data, out = tmp_path / "small.safetensors", tmp_path / "steps.json"
    save_pack(small_pack, data)
    settings = [word for each in TINY for word in ("--set", each)]
    options = ["--recipe", "airbench94", *settings, "--data", data, "--device", "cpu", "--backend", "eager"]
    options += ["--rounds", "2", "--steps", "2", "--json", "--out", out]
    done = speedyresnet("bench", "step", *options)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads(out.read_text())
    assert result["recipe"]["name"] == "airbench94"
    assert [row["backend"] for row in result["backends"]] == ["eager"]
    assert result["backends"][0]["milliseconds"] > 0
    assert result["failed"] == []


def test_variants_are_measured_on_one_stream_and_on_two(small_pack, tmp_path, monkeypatch, capsys):
    data, out = tmp_path / "small.safetensors", tmp_path / "variants.json"
    save_pack(small_pack, data)
    settings = [word for each in (*TINY, "epochs=0.2") for word in ("--set", each)]
    words = ["--data", str(data), "--variant", "airbench94", *settings, "--device", "cpu", "--overlap"]
    monkeypatch.setattr(sys, "argv", ["step_variants", *words, "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        run_command_line(step_variants.app)
    assert ended.value.code == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["variant"], row["overlap"]) for row in rows] == [("airbench94", False), ("airbench94", True)]
    assert all(row["run_seconds"] > 0 for row in rows)
    told = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in told] == ["airbench94", "airbench94 on two streams"]


@pytest.mark.hour
def test_a_warm_compiler_cache_builds_faster(small_pack, tmp_path):
    data = tmp_path / "small.safetensors"
    save_pack(small_pack, data)
    settings = [*TINY, "net.whitening_bias=false", "net.widths=64,64"]
    cold, warm = cold_and_warm_build_seconds("airbench94", settings, str(data), "cpu", "compile")
    assert warm < cold / 1.5


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["eager", "compile"])
def test_launches_and_idle_time_are_seen_on_the_gpu(small_pack, backend):
    made = recipe("airbench94", ["batch_size=64", "epochs=1"])
    (found,), _ = measure_steps(made, small_pack, torch.device("cuda"), [backend], rounds=4, steps=5)
    assert found.launches > 10
    assert 0 <= found.idle_milliseconds < 10 * found.milliseconds
    assert found.host_milliseconds <= found.milliseconds
    assert found.peak_bytes > 1e6
