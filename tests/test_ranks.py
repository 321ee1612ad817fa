"""Several processes of torchrun, on a CPU: runs that they share, and a net that they train together."""

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
from torch.distributed import HashStore

from speedyresnet.bench.fleet import Fleet
from speedyresnet.bench.pool import BASE
from speedyresnet.engine import UserError
from speedyresnet.engine.device import pick_device
from speedyresnet.engine.pack_file import save_pack
from speedyresnet.engine.ranks import Ranks, launched
from speedyresnet.engine.record import RANKS
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
