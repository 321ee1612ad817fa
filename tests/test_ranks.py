"""Several processes of torchrun, on a CPU: runs that they share, and a net that they train together."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from rank_steps import STEPS, all_steps, rank_state
from tiers import parametrize
from torch.distributed import HashStore

from speedyresnet.bench.fleet import Fleet
from speedyresnet.bench.pool import BASE
from speedyresnet.engine import UserError, evaluate, recipe, train
from speedyresnet.engine.checkpoint import read_checkpoint
from speedyresnet.engine.device import pick_device
from speedyresnet.engine.pack_file import save_pack
from speedyresnet.engine.ranks import Ranks, launched, summed
from speedyresnet.engine.record import RANKS
from speedyresnet.engine.setup import place_recipe
from speedyresnet.engine.synthetic import make_synthetic

TINY = ("batch_size=64", "width_multiplier=0.0625", "epochs=1", "dtype=float32", "evaluation.view=single_view")
WORKER = """
import os, pathlib
from speedyresnet.bench import cli, record
log = pathlib.Path(f"{os.environ['LOG']}-{os.environ.get('RANK', 0)}")
log.write_text(f"{os.getpid()}")
finished_run = record._finished_run
def noted(trainers, seed, arm):
    log.write_text(log.read_text() + f" {seed}")
    return finished_run(trainers, seed, arm)
record._finished_run = noted
cli.main()
"""
"""Runs the command, and writes the id of the process and the seeds that it begins into LOG-RANK."""
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {
    "OMP_NUM_THREADS": "1"
}


def settings(*words):
    return [word for each in (*TINY, *words) for word in ("--set", each)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a pack and a script that runs the command."""
    made = tmp_path_factory.mktemp("ranks")
    save_pack(make_synthetic(train_images=256, test_images=60), made / "tiny.safetensors")
    (made / "worker.py").write_text(WORKER)
    return made


def started(folder, ranks, log, *words):
    """The command in so many processes of torchrun; without torchrun where that is none."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [sys.executable, *(torchrun if ranks else ()), "worker.py", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT | {"LOG": log}, **pipes)


def done(folder, ranks, log, *words):
    """What `started` came to: exit code, standard output and standard error."""
    process = started(folder, ranks, log, *words)
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def begun(folder, log, rank):
    """The id of a process and the seeds that it has begun."""
    path = folder / f"{log}-{rank}"
    number, *seeds = map(int, path.read_text().split()) if path.exists() and path.read_text() else [0]
    return number, seeds


def pool_words(kind, out, *more):
    shared = ["--recipe", "airbench94", "--device", "cpu", "--data", "./tiny.safetensors"]
    return ["bench", kind, *shared, *settings(), "--out", out, *more]


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_measurements(record):
    """A record without what differs between two runs of the same seed."""
    kept = {name: value for name, value in record.items() if name not in ("seconds", "memory", "environment")}
    history = [{name: value for name, value in row.items() if name != "seconds"} for row in record["history"]]
    return kept | {"history": history}


def test_two_ranks_share_the_runs_of_a_pool_and_give_the_same_records(folder):
    code, output, errors = done(folder, 2, "shared", *pool_words("record", "shared.jsonl", "--runs", 8))
    assert code == 0, errors
    assert "0 of 8 runs" in output
    assert output.count("8 runs, 0 diverged") == 1
    assert "up to 2 devices ran at once" in output
    shared = sorted(read_lines(folder / "shared.jsonl"), key=lambda each: each["seed"])
    assert sorted(begun(folder, "shared", 0)[1] + begun(folder, "shared", 1)[1]) == list(range(8))
    code, output, errors = done(folder, 0, "alone", *pool_words("record", "alone.jsonl", "--runs", 8))
    assert code == 0, errors
    assert "at once" not in output
    alone = read_lines(folder / "alone.jsonl")
    assert list(map(without_measurements, shared)) == list(map(without_measurements, alone))
    assert list(shared[0]) == list(alone[0])
    assert [each["environment"].pop(RANKS) for each in shared] == [2] * 8
    assert shared[0]["environment"] == alone[0]["environment"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_costs_unfinished_runs_only_and_one_process_goes_on(victim, folder):
    out, log = f"killed-{victim}.jsonl", f"killed-{victim}"
    words = pool_words("record", out, "--runs", 24)
    process = started(folder, 2, log, *words)
    while any(len(begun(folder, log, rank)[1]) < 4 for rank in range(2)):
        time.sleep(0.02)
        assert process.poll() is None
    ended = [seed for rank in range(2) for seed in begun(folder, log, rank)[1][:-2]]
    os.kill(begun(folder, log, victim)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    before = (folder / out).read_bytes()
    seeds = [json.loads(line)["seed"] for line in before.splitlines()]
    assert before.endswith(b"\n")
    assert set(ended) <= set(seeds)
    assert len(seeds) < 24
    code, output, errors = done(folder, 0, "resumed", *words)
    assert code == 0, errors
    assert f"{len(seeds)} of 24 runs are in" in output
    assert (folder / out).read_bytes().startswith(before)
    assert sorted(each["seed"] for each in read_lines(folder / out)) == list(range(24))


@pytest.mark.exhaustive
def test_a_comparison_and_the_runs_of_trim_are_shared(folder):
    words = pool_words("compare", "compare.jsonl", "--runs", 4, "--variant", "loss.label_smoothing=0", "--json")
    code, output, errors = done(folder, 2, "compare", *words)
    assert code == 0, errors
    result = json.loads(output)
    assert result["devices_at_once"] == 2
    assert [each["runs"] for each in result["differences"]] == [4]
    assert sorted(begun(folder, "compare", 0)[1] + begun(folder, "compare", 1)[1]) == sorted(2 * [0, 1, 2, 3])
    trimmed = ["--what", "flip", "--accuracy", 4, "--rounds", 2, "--steps", 1, "--json"]
    code, output, errors = done(folder, 2, "trim", *pool_words("trim", "trim.json", *trimmed))
    assert code == 0, errors
    assert [row["change"] for row in json.loads(output)["rows"]] == ["augmentation.flip=none"]
    assert json.loads(output)["rows"][0]["accuracy_difference"] is not None
    assert sorted(begun(folder, "trim", 0)[1] + begun(folder, "trim", 1)[1]) == sorted(2 * [0, 1, 2, 3])


@pytest.fixture
def fleet(monkeypatch):
    """A function that makes the part of another rank, as all are here in one process."""
    store = HashStore()
    monkeypatch.setattr("speedyresnet.bench.fleet.launchers_store", lambda: store)
    return lambda: Fleet(Path("runs.jsonl"))


RUNS = [(seed, BASE) for seed in range(12)]
KINDS = {BASE: {"recipe hash": "1"}}


def work_of(name, log, seconds=0.0):
    """Work that takes some time and notes who does it."""

    def work(seed, arm):
        time.sleep(seconds)
        log.append((name, seed))
        return {"seed": seed, "by": name}

    return work


def test_a_slow_rank_gets_fewer_runs(fleet):
    log, kept = [], []
    with ThreadPoolExecutor(1) as threads:
        follower = threads.submit(fleet().follow, KINDS, work_of("slow", log, 0.2))
        fleet().lead(RUNS, KINDS, work_of("fast", log, 0.02), lambda record, arm: kept.append(record["seed"]))
        follower.result()
    assert sorted(kept) == sorted(seed for _, seed in log) == list(range(12))
    counts = Counter(name for name, _ in log)
    assert 0 < counts["slow"] < counts["fast"]


def test_the_leader_does_the_run_of_a_rank_that_is_gone_and_ignores_what_comes_late(fleet, monkeypatch):
    monkeypatch.setattr("speedyresnet.bench.fleet.LEAST_PATIENCE_SECONDS", 0.5)
    log, kept, dealt = [], [], threading.Event()

    def stuck(seed, arm):
        dealt.set()
        time.sleep(1.5)  # longer than the leader waits
        return {"seed": seed, "by": "stuck"}

    def work(seed, arm):
        assert dealt.wait(10)
        return work_of("leader", log)(seed, arm)

    with ThreadPoolExecutor(1) as threads:
        follower = threads.submit(fleet().follow, KINDS, stuck)
        fleet().lead(RUNS, KINDS, work, lambda record, arm: kept.append((record["seed"], record["by"])))
        follower.result()
    assert sorted(kept) == [(seed, "leader") for seed in range(12)]


def test_what_goes_wrong_where_runs_are_kept_ends_the_leader(fleet):
    def refuse(record, arm):
        raise ValueError("the file is gone")

    with pytest.raises(ValueError, match="the file is gone"):
        fleet().lead(RUNS, KINDS, work_of("leader", [], 0.05), refuse)


def test_a_rank_of_another_kind_is_refused(fleet):
    fleet().lead([], KINDS, work_of("leader", []), lambda record, arm: None)
    with pytest.raises(UserError, match=r"runs\.jsonl holds runs with recipe hash 1, not 2"):
        fleet().follow({BASE: {"recipe hash": "2"}}, work_of("other", []))


@pytest.mark.exhaustive
def test_the_package_bench_takes_its_commands_by_their_own_names(folder):
    command = [sys.executable, "-m", "speedyresnet.bench"]
    told = [
        subprocess.run([*command, *words, "--help"], capture_output=True, text=True, env=ENVIRONMENT, check=True).stdout
        for words in (["record"], ["bench", "record"], ["kernels"])
    ]
    assert told[0] == told[1]
    assert "speedyresnet bench record" in told[0]
    assert "speedyresnet kernels" in told[2]


MUON, SGD = ("progressive", "averaging.every=2", "averaging.tail=2"), ("airbench94", "averaging.every=2")


def stepped(folder, out, backend, name, *changes):
    """What each step left on each of two ranks."""
    script = str(Path(__file__).with_name("rank_steps.py"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, script, str(folder / out), backend, name, *changes]
    subprocess.run(command, env=ENVIRONMENT, check=True, timeout=300)
    return [torch.load(folder / f"{out}-{rank}") for rank in range(2)]


@parametrize(
    ("backend", "words"),
    [("eager", MUON), ("eager", SGD), ("compile", SGD)],
    default=1,
    ids=["muon", "sgd", "sgd-compiled"],
)
def test_two_ranks_are_one_process_with_ghost_batch_norm_of_two_groups(backend, words, folder):
    """Weights, running statistics, momentum, averages and logs after each of nine steps, in float64."""
    name, *changes = words
    alone = all_steps(rank_state(name, [*changes, "net.batch_norm_groups=2"]))
    ranks = stepped(folder, f"{name}-{backend}", backend, name, *changes)
    assert len(alone) == len(ranks[0]) == len(ranks[1]) == STEPS
    for expected, first, second in zip(alone, *ranks, strict=True):
        assert expected.keys() == first.keys() == second.keys()
        for key, value in expected.items():
            torch.testing.assert_close(first[key], value, rtol=1e-10, atol=1e-10, msg=key)
            assert torch.equal(first[key], second[key]), key
    assert not torch.equal(alone[0]["average.0.0"], alone[-1]["average.0.0"])


def test_the_groups_of_batch_norm_change_the_weights():
    """Else the test above would not see how batch norm is done."""
    one, two = (all_steps(rank_state("airbench94", [f"net.batch_norm_groups={count}"]))[-1] for count in (1, 2))
    assert (one["head.weight"] - two["head.weight"]).abs().max() > 1e-6


FLOAT64 = ["batch_size=32", "width_multiplier=0.0625", "epochs=2", "dtype=float64"]
TRAINING = """
import os, signal
from speedyresnet.engine import recipe, train
from speedyresnet.engine.watching import Silent

class InterruptRank1(Silent):
    def step(self, step):
        if step == 5 and os.environ["RANK"] == "1":
            signal.raise_signal(signal.SIGINT)

made = recipe("airbench94", SETTINGS)
run = train(made, "./tiny.safetensors", device="cpu", seed=5, display=InterruptRank1(), checkpoint="stopped.checkpoint")
assert (run.record.status, run.record.steps) == ("interrupted", 8), run.record
"""


def trained_alone(folder, settings, **options):
    return train(recipe("airbench94", settings), folder / "tiny.safetensors", device="cpu", seed=5, **options)


@pytest.mark.exhaustive
def test_a_signal_to_one_rank_stops_both_at_one_step_and_one_process_goes_on(folder):
    settings = [*FLOAT64, "net.batch_norm_groups=2"]
    (folder / "training.py").write_text(TRAINING.replace("SETTINGS", repr(settings)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "training.py"]
    subprocess.run(command, cwd=folder, env=ENVIRONMENT, check=True, timeout=300)
    stopped = folder / "stopped.checkpoint"
    whole, resumed = trained_alone(folder, settings), trained_alone(folder, settings, resume=stopped)
    assert (resumed.record.status, resumed.record.resumed_at_steps) == ("finished", [8])
    for name, value in whole.state.items():
        torch.testing.assert_close(resumed.state[name], value, rtol=1e-9, atol=1e-9, msg=name)
    losses = [[row.loss for row in run.record.history] for run in (whole, resumed)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)


@pytest.mark.exhaustive
def test_ranks_of_other_groups_of_batch_norm_do_not_go_on(folder, small_pack, tmp_path):
    path, made = tmp_path / "run.checkpoint", recipe("airbench94", [*FLOAT64, "net.batch_norm_groups=2"])
    train(made, small_pack, device="cpu", checkpoint=path)
    begun, placed = read_checkpoint(path), place_recipe(made, torch.device("cpu"))
    for size in (1, 2, 4):
        setup = dataclasses.replace(placed, ranks=Ranks(0, size)).with_data(small_pack.facts)
        if size == 4:
            with pytest.raises(UserError, match="groups of batch norm on all ranks 2, not 4"):
                begun.check_same_run(setup, small_pack, 0)
        else:
            begun.check_same_run(setup, small_pack, 0)


def test_a_rank_has_its_share_of_images_and_groups():
    made = recipe("airbench94", ["batch_size=96", "net.batch_norm_groups=3"])
    assert Ranks().share_of(made) is made
    shares = {size: Ranks(1, size).share_of(made) for size in (2, 3, 4)}
    assert {size: (each.batch_size, each.net.batch_norm_groups) for size, each in shares.items()} == {
        2: (48, 3), 3: (32, 1), 4: (24, 3),
    }  # fmt: skip
    with pytest.raises(UserError, match=r"batch_size=96 cannot be divided among 5 ranks .* set it to a multiple of 15"):
        Ranks(0, 5).share_of(made)


@pytest.mark.exhaustive
def test_a_net_is_trained_by_two_ranks_from_the_command_line(folder):
    words = ["--recipe", "airbench94", "--device", "cpu", "--data", "./tiny.safetensors", "--seed", 5]
    words += [word for each in FLOAT64 for word in ("--set", each)]
    code, output, errors = done(folder, 2, "train", "train", *words, "--json", "--save", "two.safetensors")
    assert code == 0, errors
    record = json.loads(output)
    assert (record["status"], record["steps"], record["images_seen"]) == ("finished", 16, 512)
    assert record["environment"][RANKS] == 2
    alone = trained_alone(folder, [*FLOAT64, "net.batch_norm_groups=2"])
    assert record["accuracy"] == dataclasses.asdict(alone.record.accuracy)
    losses = [row["loss"] for row in record["history"]], [row.loss for row in alone.record.history]
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)
    accuracies = [row["train_accuracy"] for row in record["history"]]
    assert accuracies == [row.train_accuracy for row in alone.record.history]
    assert dataclasses.asdict(evaluate(folder / "two.safetensors", folder / "tiny.safetensors")) == record["accuracy"]
    code, _, errors = done(folder, 3, "train", "train", *words)
    assert code == 1
    assert errors.count("batch_size=32 cannot be divided among 3 ranks") >= 1


def test_ranks_are_those_of_the_launcher(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert launched() == Ranks(0, 1, 0)
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert launched() == Ranks(5, 8, 1)
    assert not launched().leads
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert [str(pick_device(name)) for name in ("auto", "cuda", "cuda:0")] == ["cuda:1", "cuda:1", "cuda:0"]
    assert list(map(str, chosen)) == ["cuda:1", "cuda:1", "cuda:0"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="rank 5 takes cuda:1: there are only 1 CUDA GPUs"):
        pick_device("auto")
    monkeypatch.setenv("RANK", "8")
    with pytest.raises(UserError, match="RANK=8 WORLD_SIZE=8"):
        launched()
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(UserError, match="RANK=first"):
        launched()


def test_commands_that_ranks_do_not_share_are_refused(monkeypatch, speedyresnet):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    done = speedyresnet("bench", "step", "--recipe", "pocket")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "torchrun is for the commands compare, record, train, trim" in done.stderr


@pytest.mark.gpu
def test_nccl_sums_inside_a_cuda_graph(monkeypatch):
    """Of one rank, whose sums are its own tensors: the exchange is captured, and replayed on what is there then."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl")
    tensors = [torch.ones(3, 2, device="cuda", dtype=torch.float16), torch.full((), 5, device="cuda")]
    graph = torch.cuda.CUDAGraph()
    summed(tensors, torch.float32)  # connects
    with torch.cuda.graph(graph):
        found = summed(tensors, torch.float32)
    tensors[0].fill_(2)
    graph.replay()
    assert [each.dtype for each in found] == [torch.float16, torch.int64]
    assert torch.equal(found[0], torch.full_like(found[0], 2))
    assert int(found[1]) == 5
    graph.reset()
    torch.distributed.destroy_process_group()
