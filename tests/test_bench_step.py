import json
import sys

import pytest
import torch

from speedyresnet.bench import step_time
from speedyresnet.bench.cli import main
from speedyresnet.bench.report import read_source
from speedyresnet.bench.step_time import cold_and_warm_build_seconds, launches_and_idle, measure_steps
from speedyresnet.engine import UserError, recipe, trainer
from speedyresnet.engine.backends import BackendError
from speedyresnet.engine.pack_file import save_pack

TINY = ["batch_size=64", "width_multiplier=0.125", "epochs=1", "dtype=float32"]
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


def test_rounds_are_interleaved_and_the_order_alternates(small_pack, monkeypatch):
    """Times that are 1, 2, 3, ... seconds tell which round ran when."""
    order = []
    original = step_time.timed_round

    def numbered(trainer, steps):
        order.append(trainer.net)
        original(trainer, 1)
        return float(len(order)), 0.5

    monkeypatch.setattr(step_time, "timed_round", numbered)
    monkeypatch.setattr("speedyresnet.engine.backends.BACKENDS", ("eager", "second"))
    monkeypatch.setattr("speedyresnet.engine.trainer.make_step", lambda state, *_: lambda: None)
    found, _ = measure_steps(recipe("airbench94", TINY), small_pack, CPU, ["eager", "second"], rounds=4, steps=2)
    first, second = order[0], order[1]
    assert order[2:] == [first, second, second, first, first, second, second, first]
    assert [each.milliseconds for each in found] == [6500.0, 6500.0]  # medians of 3, 6, 7, 10 and of 4, 5, 8, 9


def test_steps_never_run_past_the_tables(small_pack):
    (found,), _ = measure_steps(recipe("airbench94", TINY), small_pack, CPU, ["eager"], rounds=3, steps=1000)
    assert found.milliseconds > 0  # ten steps make this run


def broken_on(name, make_step):
    """A `make_step` whose backend `name` fails when it is built."""

    def make(state, backend, variant):
        if backend == name:
            raise BackendError(FAILURE.format(name))
        return make_step(state, "eager", variant)

    return make


def test_a_backend_that_fails_is_named_and_the_others_are_timed(small_pack, tmp_path, monkeypatch, capsys):
    data, out = tmp_path / "small.safetensors", tmp_path / "steps.json"
    save_pack(small_pack, data)
    monkeypatch.setattr("speedyresnet.engine.trainer.make_step", broken_on("compile", trainer.make_step))
    monkeypatch.setattr("speedyresnet.bench.cli.backends_of", lambda device: ["eager", "compile", "torchscript"])
    monkeypatch.setattr("speedyresnet.bench.cli.check_backend", lambda backend, device: None)
    monkeypatch.setattr("speedyresnet.engine.trainer.check_backend", lambda backend, device: None)
    settings = [word for each in TINY for word in ("--set", each)]
    words = ["bench", "step", "--recipe", "airbench94", *settings, "--data", str(data), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["speedyresnet", *words, "--rounds", "2", "--steps", "2", "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    result, reason = json.loads(out.read_text()), FAILURE.format("compile")
    assert [row["backend"] for row in result["backends"]] == ["eager", "torchscript"]
    assert result["failed"] == [{"backend": "compile", "reason": reason}]
    assert capsys.readouterr().out.rstrip().endswith(f"compile: {reason}")
    (times, failed) = read_source(out).blocks
    assert len(times.rows) == 2
    assert failed.rows[0][1:] == ("compile", reason)


def test_where_no_backend_can_be_built_the_user_is_told_why(small_pack, monkeypatch):
    monkeypatch.setattr("speedyresnet.engine.trainer.make_step", broken_on("eager", trainer.make_step))
    with pytest.raises(UserError, match="--backend eager failed"):
        measure_steps(recipe("airbench94", TINY), small_pack, CPU, ["eager"])


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_without_a_working_profiler_launches_are_unknown(small_pack, monkeypatch):
    """What a GPU is without CUPTI: the profiler only has the host's side."""
    made = trainer.Trainer(recipe("airbench94", TINY), small_pack, CPU, "eager")
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


@pytest.mark.slow
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
