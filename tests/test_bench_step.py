import json

import pytest
import torch

from speedyresnet.bench import step_time
from speedyresnet.bench.step_time import cold_and_warm_build_seconds, measure_steps
from speedyresnet.engine import recipe
from speedyresnet.engine.pack_file import save_pack

TINY = ["batch_size=64", "width_multiplier=0.125", "epochs=1", "dtype=float32"]
CPU = torch.device("cpu")


def test_a_step_is_timed_and_counted(small_pack):
    (found,) = measure_steps(recipe("airbench94", TINY), small_pack, CPU, ["eager"], rounds=4, steps=3)
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
    found = measure_steps(recipe("airbench94", TINY), small_pack, CPU, ["eager", "second"], rounds=4, steps=2)
    first, second = order[0], order[1]
    assert order[2:] == [first, second, second, first, first, second, second, first]
    assert [each.milliseconds for each in found] == [6500.0, 6500.0]  # medians of 3, 6, 7, 10 and of 4, 5, 8, 9


def test_steps_never_run_past_the_tables(small_pack):
    (found,) = measure_steps(recipe("airbench94", TINY), small_pack, CPU, ["eager"], rounds=3, steps=1000)
    assert found.milliseconds > 0  # ten steps make this run


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
    (found,) = measure_steps(made, small_pack, torch.device("cuda"), [backend], rounds=4, steps=5)
    assert found.launches > 10
    assert 0 <= found.idle_milliseconds < 10 * found.milliseconds
    assert found.host_milliseconds <= found.milliseconds
    assert found.peak_bytes > 1e6
