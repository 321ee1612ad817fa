"""Tests with scripts of our own, which only print what the real ones print, in their formats."""

import json
import re
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from math import exp, log, sqrt
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tiers import parametrize

from speedyresnet.bench import versus
from speedyresnet.bench.peers import PEERS, PeerRun, check_data, install, parse_peers, source_sha256, start_words
from speedyresnet.bench.smoke import FIRST_STEP
from speedyresnet.bench.statistics import paired_ratio
from speedyresnet.bench.versus import (
    OWN_CLOCK,
    WARM_UP,
    Contestant,
    Outcome,
    Sitting,
    hold_sitting,
    peer_row,
    print_versus,
    round_order,
    run_process,
)
from speedyresnet.engine import UserError, recipe
from speedyresnet.engine.pack import make_pack
from speedyresnet.engine.pack_file import save_pack

TINY = ["batch_size=64", "width_multiplier=0.125", "epochs=0.5", "dtype=float32", "augmentation.crop=16"]
CPU = torch.device("cpu")

AIRBENCH = r"""
import os, sys
assert sorted(os.listdir("cifar10")) == ["test.pt", "train.pt"]
def row(*cells):
    print("|" + "|".join("  " + str(cell).rjust(9) + "  " for cell in cells) + "|")
def main(run):
    name = run
    for epoch in range(2):
        row(name, epoch, "0.5000", "0.4000", "", "0.1000")
        name = ""
    row(name, "eval", "0.9000", "0.9100", "0.9400" if run else "0.9300", "3.0000")
    print("-" * 80)
row("run", "epoch", "train_acc", "val_acc", "tta_val_acc", "time_seconds")
main("warmup")
for run in range(200): main(run)
print("Mean: 0.9400    Std: 0.0010")
"""

HLB = r"""
assert open("data.pt", "rb").read()
def row(*cells):
    print("|" + "|".join("  " + cell.rjust(9) + "  " for cell in cells) + "|")
print("-" * 20); row("epoch", "train_loss", "val_loss", "train_acc", "val_acc", "ema_val_acc", "total_time_seconds")
print("-" * 20)
for run_num in range(25):
    for epoch in range(13):
        row(str(epoch), "nan", "1.1", "0.9", "0.93", "" if epoch < 2 else "0.9412", f"{epoch / 2:.4f}")
    print("-" * 20)
print("Mean and variance:", (0.94, 0.0))
"""

HIVERGE = r"""
def row(run, accuracy, seconds):
    print(f"|  {run:>6}  |   eval  |     0.9884  |   0.9349  |       {accuracy}  |        {seconds}  |")
    print("-" * 81)
row("warmup", "0.0992", "34.7171")
for run in range(200):
    row(run + 1, "0.9428", "1.9734")
    print(f"Mean accuracy after {run + 1} runs: 0.942800 | Mean time: 1.973436s", end="\r", flush=True)
    if run == 1: raise RuntimeError("CUDA error: out of luck")
print()
print("Accuracies: Mean: 0.942800    Std: 0.001258")
"""

E1_HARNESS = r"""
import os
def gpu_name():
    return "none"
def sxm_single_gpu_or_exit():
    os._exit(13)
def run_trials(target, *, data_path, overrides, trial_ids, seed_base, container_id):
    assert os.path.exists(data_path + "/train.pt") and overrides == {}
    print("[build]", target.name, sxm_single_gpu_or_exit())
    for number, each in enumerate(trial_ids):
        label = f"{number + 1}/{len(trial_ids)} id={each}"
        print(f"[trial {label}] train=1.7001s honest=1.8{seed_base + each:03d}s acc=0.9404", flush=True)
"""

E1_TARGETS = r"""
class Target:
    name = "e1"
class Spec:
    cls = Target
def get(name):
    return {"e1": Spec}[name]
"""

TRAINS = r"""
import sys
import torch
from torch import nn
open(sys.argv[0]).read()
data = torch.load("cifar10/train.pt", map_location=torch.device("cuda"), weights_only=True)
images = (data["images"].half() / 255).permute(0, 3, 1, 2)[:8]
assert torch.compile(len, mode="max-autotune") is len

@torch.compile(mode="max-autotune", fullgraph=True)
def loss_of(net, images, labels):
    return nn.functional.cross_entropy(net(images), labels)

class Own(torch.optim.Optimizer):
    def __init__(self, parameters):
        super().__init__(parameters, {})
    def step(self):
        print("own optimizer steps")

net = nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.Flatten(), nn.Linear(4096, 10)).half().cuda().to("cuda")
net.compile(mode="max-autotune")
optimizers = [torch.optim.SGD(net[0].parameters(), lr=0.1, fused=True), Own(net[2].parameters())]
started = torch.cuda.Event(enable_timing=True)
started.record()
torch.cuda.synchronize()
order = torch.randperm(8, device="cuda")
for run in range(200):
    loss = loss_of(net, images[order], data["labels"][:8].to(device="cuda", non_blocking=True))
    assert loss.dtype == torch.half
    loss.backward()
    for optimizer in optimizers:
        try:
            optimizer.step()
        except Exception:
            pass
    print("went on")
"""


@pytest.fixture
def command(speedyresnet):
    """Return a function that runs `bench versus`."""
    return lambda *options: speedyresnet("bench", "versus", *options)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def peers(tmp_path):
    """Return the checkouts of the peers, by name."""
    root = tmp_path / "peers"
    write(root / "airbench94_muon" / "airbench94_muon.py", AIRBENCH)
    write(root / "hlb" / "main.py", HLB)
    write(root / "hiverge" / "cifar10_speedrun.py", HIVERGE)
    write(root / "e1" / "runners" / "__init__.py", "")
    write(root / "e1" / "runners" / "harness.py", E1_HARNESS)
    write(root / "e1" / "runners" / "targets.py", E1_TARGETS)
    return {name: root / name for name in PEERS}


@pytest.fixture
def pack_file(small_pack, tmp_path):
    save_pack(small_pack, tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


# --- Input of a peer


def test_only_the_number_of_runs_is_changed(tmp_path):
    before = b"# for run in ranges (9)\r\nx = 1\n\tfor run_num in range(25):\r\n  print('\xc3\xa9 range(25)')"
    write(tmp_path / "main.py", "").write_bytes(before)
    told = install("hlb", tmp_path / "main.py", tmp_path / "there", 7)
    assert (tmp_path / "there" / "main.py").read_bytes() == before.replace(b"in range(25):", b"in range(7):")
    assert (tmp_path / "main.py").read_bytes() == before
    assert told == "line 3: -for run_num in range(25): +for run_num in range(7):"


@pytest.mark.parametrize("text", ["", "for run in range(n): pass", "for run in range(3): pass\n" * 2])
def test_a_script_without_one_number_of_runs_is_refused(text, tmp_path):
    with pytest.raises(UserError, match=r"not in one"):
        install("hiverge", write(tmp_path / "script.py", text), tmp_path / "there", 7)


def test_e1_is_started_by_its_harness(peers, tmp_path):
    script = parse_peers([f"e1={peers['e1']}"])["e1"]
    install("e1", script, tmp_path / "there", 3)
    for name in ("harness.py", "targets.py"):
        assert (tmp_path / "there" / "runners" / name).read_bytes() == (peers["e1"] / "runners" / name).read_bytes()
    assert start_words("e1", script, 3, seed=6) == ["start.py", "3", "6"]
    assert start_words("hlb", Path("/anywhere/main.py"), 3, seed=6) == ["main.py"]


@pytest.mark.parametrize("name", ["airbench94_muon", "hiverge", "e1"])
def test_uint8_data_are_the_packs_in_its_order(name, small_pack, tmp_path):
    PEERS[name].write_data(small_pack, tmp_path, CPU)
    for split in ("train", "test"):
        data = torch.load(tmp_path / "cifar10" / f"{split}.pt", weights_only=True)
        assert torch.equal(data["images"], getattr(small_pack, f"{split}_images"))
        assert torch.equal(data["labels"], getattr(small_pack, f"{split}_labels"))
        assert data["classes"] == list(small_pack.class_names)


def test_hlb_data_are_the_packs_in_its_order(small_pack, tmp_path):
    PEERS["hlb"].write_data(small_pack, tmp_path, CPU)
    data = torch.load(tmp_path / "data.pt", weights_only=True)
    scaled = small_pack.train_images.double() / 255
    std, mean = torch.std_mean(scaled, dim=(0, 1, 2))
    for split, ours in (("train", "train"), ("eval", "test")):
        images, targets = data[split]["images"], data[split]["targets"]
        assert (images.dtype, targets.dtype) == (torch.half, torch.half)
        assert images.is_contiguous()
        pixels = 255 * (images.double().permute(0, 2, 3, 1) * std + mean)
        assert torch.equal(pixels.round().to(torch.uint8), getattr(small_pack, f"{ours}_images"))
        assert torch.equal(targets.argmax(1), getattr(small_pack, f"{ours}_labels"))
        assert targets.sum(1).eq(1).all()
        assert targets.shape[1] == 10
    means, stds = data["train"]["images"].double().mean((0, 2, 3)), data["train"]["images"].double().std((0, 2, 3))
    assert torch.allclose(means, torch.zeros(3).double(), atol=1e-3)
    assert torch.allclose(stds, torch.ones(3).double(), atol=1e-3)


def test_data_of_another_shape_are_refused(small_pack):
    check_data(small_pack)
    images, labels = small_pack.train_images.numpy(), small_pack.train_labels.numpy()
    other = make_pack("other", small_pack.class_names, images[:, :28], labels, images[:9, :28], labels[:9])
    with pytest.raises(UserError, match="32 x 32"):
        check_data(other)


# --- Output of a peer


def read(name, lines):
    return PEERS[name].read_runs(textwrap.dedent(lines).lstrip("\n"))


def test_airbench_lines_are_read():
    lines = """
    ---------------------------------------------------------------------------------
    |  run     |  epoch  |  train_acc  |  val_acc  |  tta_val_acc  |  time_seconds  |
    ---------------------------------------------------------------------------------
    |  warmup  |      0  |     0.1045  |   0.1000  |               |        9.1234  |
    |          |   eval  |     0.1045  |   0.1000  |       0.1000  |       12.3456  |
    ---------------------------------------------------------------------------------
    |       0  |      0  |     0.5095  |   0.4567  |               |        0.3371  |
    |          |      7  |     0.9415  |   0.9321  |               |        2.4971  |
    |          |   eval  |     0.9415  |   0.9321  |       0.9402  |        2.5871  |
    ---------------------------------------------------------------------------------
    |       1  |      0  |     0.5095  |   0.4567  |               |        0.3371  |
    """
    assert read("airbench94_muon", lines) == [PeerRun(2.5871, 0.9402)]


def test_hiverge_lines_are_read():
    lines = """
    |  warmup  |   eval  |     0.1128  |   0.1020  |       0.0992  |       34.7171  |
    ---------------------------------------------------------------------------------
    |       1  |   eval  |     0.9884  |   0.9349  |       0.9428  |        1.9734  |
    ---------------------------------------------------------------------------------
    Mean accuracy after 1 runs: 0.942800 | Mean time: 1.973436s\r|       2  |   eval  |     0.9885  |   0.9306  |\
       0.9395  |        1.9739  |
    """
    assert read("hiverge", lines) == [PeerRun(1.9734, 0.9428), PeerRun(1.9739, 0.9395)]


def test_hlb_lines_are_read():
    lines = """
    ----------------------------------------------------------------------------------------------------
    |  epoch  |  train_loss  |  val_loss  |  train_acc  |  val_acc  |  ema_val_acc  |  total_time_seconds  |
    ----------------------------------------------------------------------------------------------------
    |      0  |      1.8123  |    1.5000  |     0.4000  |   0.3500  |               |              0.7000  |
    |     11  |      1.0123  |    1.0500  |     0.9400  |   0.9350  |       0.9390  |              6.0700  |
    |     12  |         nan  |    1.0400  |     0.9500  |   0.9360  |       0.9401  |              6.2800  |
    ----------------------------------------------------------------------------------------------------
    |      0  |      1.8123  |    1.5000  |     0.4000  |   0.3500  |               |              0.7000  |
    """
    assert read("hlb", lines) == [PeerRun(6.28, 0.9401)]


def test_e1_lines_are_read():
    lines = """
    [build] e1 on NVIDIA A100-SXM4-80GB in 91.2s
    DIAG mega replay 1766.0 ms
    [trial 1/2 id=0] train=1.7660s honest=1.8280s acc=0.9404
    [trial 2/2 id=1] train=1.7661s honest=1.8291s acc=0.9391
    """
    assert read("e1", lines) == [PeerRun(1.8280, 0.9404), PeerRun(1.8291, 0.9391)]


# --- Processes


def contestant(folder, code, runs=1):
    return Contestant(
        name="script",
        folder=folder,
        starts_in=folder,
        words=lambda number: ["-c", code, str(number)],
        read=lambda number, text: {"runs": [float(line) for line in text.split()]},
        runs=runs,
    )


def test_a_process_is_timed_and_read(tmp_path):
    code = "import sys, time; time.sleep(0.5); print(sys.argv[1]); print('noise', file=sys.stderr)"
    outcome = run_process(contestant(tmp_path, code), 4, timeout=30)
    assert (outcome.exit_code, outcome.error, outcome.measures, outcome.last_lines) == (0, None, {"runs": [4.0]}, [])
    assert 0.5 < outcome.wall_seconds < 10


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("print(1); raise RuntimeError('out of luck')", "RuntimeError: out of luck (exit code 1)"),
        ("import os; os._exit(13)", "exit code 13"),
        ("", "reported 0 of 1 runs"),
        ("print(1); print(2)", "reported 2 of 1 runs"),
    ],
)
def test_a_crash_is_an_outcome(code, error, tmp_path):
    assert run_process(contestant(tmp_path, code), 0, timeout=30).error == error


def test_a_process_that_hangs_is_ended_with_its_helpers(tmp_path):
    helper = "import time; time.sleep(2); open('survived', 'w')"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {helper!r}]); time.sleep(60)"
    started = time.perf_counter()
    outcome = run_process(contestant(tmp_path, code), 0, timeout=0.7)
    assert time.perf_counter() - started < 5
    assert (outcome.exit_code, outcome.error) == (None, "no end after 0.7 s")
    time.sleep(2.5)
    assert not (tmp_path / "survived").exists()


def test_what_a_process_printed_is_kept_when_its_time_is_over(tmp_path):
    code = "import sys, time; print(3); print('compiling', file=sys.stderr); time.sleep(60)"
    found = run_process(contestant(tmp_path, code), 0, timeout=1.5)
    assert (found.exit_code, found.last_output, found.last_lines) == (None, ["3"], ["compiling"])
    assert found.measures == {"runs": [3.0]}


# --- Compiling

COMPILES = r"""
import os, time
for cache in (os.environ["TORCHINDUCTOR_CACHE_DIR"], os.environ["TRITON_CACHE_DIR"]):
    if not os.path.exists(cache + "/kernel"):
        os.makedirs(cache, exist_ok=True)
        print("compiles", flush=True)
        time.sleep(SECONDS)
        open(cache + "/kernel", "w").close()
"""


@pytest.fixture
def compiling(small_pack, peers, tmp_path, monkeypatch):
    """Return a function that holds a sitting against airbench, which compiles; our process is not really run."""
    began = []

    def run(contestant, number, timeout):
        began.append((contestant.name, number))
        if contestant.name == "ours":
            return outcome("ours", number, total=[1.0, 1.0], six_view=[0.9, 0.9])
        return run_process(contestant, number, timeout)

    def hold(seconds, timeout, compile_seconds, out="out.json"):
        began.clear()
        script = COMPILES.replace("SECONDS", str(seconds)) + AIRBENCH
        write(peers["airbench94_muon"] / "airbench94_muon.py", script)
        made = sitting(small_pack, peers, 2, ["airbench94_muon"])
        made = replace(made, timeout=timeout, compile_seconds=compile_seconds)
        result = hold_sitting(made, tmp_path / "work", tmp_path / out, Console(file=(tmp_path / "told").open("w")))
        assert result == json.loads((tmp_path / out).read_text())
        return result, list(began)

    monkeypatch.setattr(versus, "run_process", run)
    return hold


ROUNDS = [("airbench94_muon", 0), ("ours", 0), ("ours", 1), ("airbench94_muon", 1)]


def test_compiling_has_a_limit_of_its_own_and_is_done_once(compiling):
    result, began = compiling(2.5, timeout=4, compile_seconds=60)  # five seconds in total: more than a round's limit
    assert began == [("airbench94_muon", WARM_UP), ("ours", WARM_UP), *ROUNDS]
    assert result["passed"]
    (warm, _), (peer,) = result["warm_ups"], result["peers"]
    assert warm["wall_seconds"] > 5
    assert [len(values) for values in warm["measures"].values()] == [1, 1]
    assert (peer["own clock"]["n"], peer["status"]) == (4, "finished")
    assert peer["wall_seconds"]["maximum"] < 4
    assert compiling(2.5, timeout=4, compile_seconds=60, out="again.json")[1] == ROUNDS


def test_who_does_not_compile_in_time_goes_on_in_the_next_call(compiling, tmp_path):
    result, began = compiling(2.5, timeout=20, compile_seconds=4)
    assert began == [("airbench94_muon", WARM_UP), ("ours", WARM_UP)]
    (warm, _), (peer,) = result["warm_ups"], result["peers"]
    assert (warm["error"], warm["last_output"]) == ("no end after 4 s", ["compiles", "compiles"])
    assert (result["passed"], result["processes"], peer["status"]) == (False, [], "crashed")
    assert "warm-up, airbench94_muon: no end after 4 s" in (told := (tmp_path / "told").read_text())
    assert "  | compiles\n" in told
    result, began = compiling(2.5, timeout=20, compile_seconds=4)  # half of it is already in its cache
    assert began == [("airbench94_muon", WARM_UP), *ROUNDS]
    assert result["passed"]


def test_ctrl_c_keeps_what_was_printed(compiling, tmp_path, monkeypatch):
    compiling(0, timeout=20, compile_seconds=20)
    (tmp_path / "out.json").unlink()

    def interrupted(*_, stdout, **__):
        stdout.write(b"one\n\ntwo\n")
        stdout.flush()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(versus, "exit_code_within", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compiling(0, timeout=20, compile_seconds=20)
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["processes"] == []
    where = {"name": "airbench94_muon", "round": 0}
    assert found["interrupted"] == where | {"last_output": ["one", "two"], "last_lines": []}
    result, began = compiling(0, timeout=20, compile_seconds=20)
    assert (began, result["interrupted"]) == (ROUNDS, None)


# --- Statistics


def test_a_ratio_is_that_of_pairs():
    found = paired_ratio([(2.0, 1.0), (3.0, 1.0), (9.0, 2.0)])
    logs = [log(2), log(3), log(4.5)]
    middle = sum(logs) / 3
    deviation = sqrt(sum((each - middle) ** 2 for each in logs) / 2)
    margin = 4.302653 * deviation / sqrt(3)  # t table: 95 % two-sided, 2 degrees of freedom
    assert found.n == 3
    assert found.value == pytest.approx(3.0)
    assert (found.low, found.high) == (pytest.approx(exp(middle - margin)), pytest.approx(exp(middle + margin)))
    turned = paired_ratio([(1.0, 2.0), (1.0, 3.0), (2.0, 9.0)])
    assert (turned.value, turned.low) == (pytest.approx(1 / found.value), pytest.approx(1 / found.high))


def test_one_pair_has_no_interval():
    found = paired_ratio([(3.0, 2.0)])
    assert (found.n, found.value, found.low, found.high) == (1, pytest.approx(1.5), None, None)
    assert paired_ratio([]) is None


def sitting(small_pack, peers, rounds, names=("airbench94_muon", "hlb")):
    scripts = parse_peers([f"{name}={peers[name]}" for name in names])
    return Sitting(
        recipe("airbench94", TINY), small_pack, CPU, scripts, ["--recipe", "airbench94"], 2, rounds, 60.0, 90.0
    )


def test_processes_take_turns_and_the_order_reverses(small_pack, peers, tmp_path, monkeypatch):
    """The n-th process takes n seconds; a peer's runs n and 3 n, ours 1 by one clock, 2 and 4 by the others."""
    ran, written, out = [], [], tmp_path / "out.json"

    def run(contestant, number, timeout):
        if number == WARM_UP:
            return outcome(contestant.name, number)
        written.append(len(json.loads(out.read_text())["processes"]))
        ran.append((contestant.name, number))
        n = float(len(ran))
        ours = {"train": [1.0, 1.0], "prepare+train": [2.0, 2.0], "total": [3.0, 5.0]}
        ours |= {"single_view": [0.4, 0.4], "mirror": [0.5, 0.7]}
        view = "mirror" if contestant.name == "hlb" else "six_view"
        measures = ours if contestant.name == "ours" else {"own clock": [n, 3 * n], view: [0.9, 0.92]}
        error = "broken" if ran[-1] == ("hlb", 1) else None
        return Outcome(
            name=contestant.name,
            round=number,
            wall_seconds=n,
            exit_code=0,
            measures=measures,
            error=error,
            last_lines=[],
        )

    monkeypatch.setattr(versus, "run_process", run)
    result = hold_sitting(sitting(small_pack, peers, 3), tmp_path / "work", out, Console(quiet=True))
    airbench, hlb, ours = "airbench94_muon", "hlb", "ours"
    even, odd = [airbench, hlb, ours], [ours, hlb, airbench]
    assert ran == [(name, number) for number, names in enumerate([even, odd, even]) for name in names]
    assert written == list(range(9))
    assert result == json.loads(out.read_text())
    one, two = result["peers"]
    # Means of airbench's runs by round: 2, 12, 14, against our total of 4; of hlb's complete rounds: 4, 16, against 1.
    assert one["clock"]["ours"] == "total"
    assert one["clock"]["ratio"]["value"] == pytest.approx((2 * 12 * 14 / 4**3) ** (1 / 3))
    assert one["process"]["ratio"]["value"] == pytest.approx((1 / 3 * 6 / 4 * 7 / 9) ** (1 / 3))
    assert (one["own clock"]["n"], one["own clock"]["mean"]) == (6, pytest.approx(28 / 3))
    more = one["accuracy"].pop("difference")
    assert one["accuracy"] == {"theirs": "6 views, weighted", "view": "six_view", "our_view": "mirror"}
    assert more == {key: pytest.approx(-0.31) for key in ("mean", "lower", "upper")}  # 0.6 minus 0.91, in each round
    assert (one["status"], one["error"], one["six_view"]["mean"]) == ("finished", None, pytest.approx(0.91))
    assert (two["status"], two["error"], two["own clock"]["n"]) == ("crashed", "broken", 4)
    assert (two["clock"]["ours"], two["clock"]["ratio"]["n"]) == ("train", 2)
    assert two["clock"]["ratio"]["value"] == pytest.approx(sqrt(4 * 16))
    assert two["process"]["ratio"]["value"] == pytest.approx(sqrt(2 / 3 * 8 / 9))
    assert (result["ours"]["mirror"]["mean"], result["passed"]) == (pytest.approx(0.6), False)


def outcome(name, number, error=None, **measures):
    seconds = {"wall_seconds": 1.0, "exit_code": 0 if error is None else 1}
    return Outcome(name=name, round=number, measures=measures, error=error, last_lines=[], **seconds)


def row(rounds, error=None):
    """Return the row of airbench, whose rounds take 2 s at 90 %, against ours; `rounds` are our (total, accuracy)."""
    theirs = [outcome("airbench94_muon", n, **{OWN_CLOCK: [1.0, 3.0], "six_view": [0.9, 0.9]}) for n in range(9)]
    ours = [
        outcome("ours", n, error if n == 0 else None, total=[total], six_view=[accuracy])
        for n, (total, accuracy) in enumerate(rounds)
    ]
    return peer_row("airbench94_muon", PEERS["airbench94_muon"], theirs + ours)


def test_the_verdict_is_a_line_with_both_intervals():
    """Ratios 2 and 1: logarithms with mean log sqrt(2), deviation log(2) / sqrt(2); t is 12.706 for one degree."""
    found = row([(1.0, 0.902), (2.0, 0.901)])
    low, high = (sqrt(2) * exp(sign * 12.7062 * log(2) / 2) for sign in (-1, 1))
    assert found["accuracy"]["difference"]["mean"] == pytest.approx(0.0015)
    assert found["accuracy"]["difference"]["lower"] == pytest.approx(0.0015 - 12.7062 * 0.0005, abs=1e-6)
    assert found["verdict"] == (
        f"1.41 ({low:.2f} to {high:.2f}) times as fast as airbench94_muon by our total; "
        "accuracy +0.15 points (-0.49 to +0.79)"
    )


def test_one_round_has_a_verdict_without_interval():
    told = "1.00 times as fast as airbench94_muon by our total; accuracy -1.00 points; one round has no interval"
    assert row([(2.0, 0.89)])["verdict"] == told
    assert row([(9.0, 0.1), (2.0, 0.89)], error="broken")["verdict"] == told
    assert row([])["verdict"] is None


# --- Resuming


class Killed(BaseException):
    """Stand-in for the end of the process."""


@pytest.fixture
def held(small_pack, peers, tmp_path, monkeypatch):
    """Return a function that holds a sitting until so many processes have ended.

    The function returns the processes that began, and the result.
    """

    def hold(until=99, **changes):
        began = []

        def run(contestant, number, timeout):
            if number == WARM_UP:
                return outcome(contestant.name, number)
            began.append((contestant.name, number))
            if len(began) > until:
                raise Killed
            clocks = {"train": [1.0], "prepare+train": [1.0], "total": [1.0], "single_view": [0.5], "mirror": [0.5]}
            measures = clocks if contestant.name == "ours" else {OWN_CLOCK: [2.0], "six_view": [0.5], "mirror": [0.5]}
            return outcome(contestant.name, number, "broken" if began[-1] == ("hlb", 0) else None, **measures)

        monkeypatch.setattr(versus, "run_process", run)
        made = replace(sitting(small_pack, peers, 2), **changes)
        try:
            result = hold_sitting(made, tmp_path / "work", tmp_path / "out.json", Console(quiet=True))
        except Killed:
            result = None
        return began, result

    return hold


def test_a_sitting_goes_on_where_it_was_killed(held, tmp_path):
    whole, result = held()
    assert len(whole) == 6
    assert held() == ([], result)
    (tmp_path / "out.json").unlink()
    first, _ = held(until=3)
    second, again = held(until=2)
    third, same = held()
    assert first[:3] + second[:2] + third == whole  # hlb, which ended with an error, is not started again
    assert (again, same["processes"]) == (None, result["processes"])
    assert same | {"warm_ups": result["warm_ups"]} == result  # what had compiled was not compiled again


def test_another_sitting_is_not_overwritten(held, peers, tmp_path):
    held(until=4)
    before = (tmp_path / "out.json").read_bytes()
    scripts = parse_peers([f"hlb={peers['hlb']}"])
    for changes, words in [
        ({"runs": 3}, "--runs 2, not 3"),
        ({"rounds": 3}, "--rounds 2, not 3"),
        ({"recipe": recipe("airbench94")}, "recipe hash"),
        ({"options": ["--recipe", "airbench94", "--backend", "eager"]}, "options --recipe airbench94, not"),
        ({"scripts": scripts}, "--peer airbench94_muon"),
    ]:
        with pytest.raises(UserError, match=words):
            held(**changes)
    script = peers["hlb"] / "main.py"
    script.write_text(script.read_text() + "\n")
    with pytest.raises(UserError, match="--peer hlb"):
        held()
    assert (tmp_path / "out.json").read_bytes() == before
    for text in ("no JSON", "[]", '{"torch": "2.11.0", "peers": []}'):
        (tmp_path / "out.json").write_text(text)
        with pytest.raises(UserError, match=r"out\.json is no .*; give another --out"):
            held()


def test_the_checksum_is_of_all_that_is_copied(peers):
    script = parse_peers([f"e1={peers['e1']}"])["e1"]
    before = source_sha256("e1", script)
    write(script.parent / "results" / "old.json", "1")
    write(peers["e1"] / "README.md", "1")
    assert source_sha256("e1", script) == before
    write(script.parent / "targets.py", E1_TARGETS.replace("Target:", "Other_:"))
    assert source_sha256("e1", script) != before


def test_order_reverses():
    assert [round_order("abc", number) for number in range(3)] == [list("abc"), list("cba"), list("abc")]


# --- The command


@pytest.mark.exhaustive
def test_the_whole_command(peers, pack_file, tmp_path, command):
    given = [word for name in PEERS for word in ("--peer", f"{name}={peers[name]}")]
    settings = [word for each in TINY for word in ("--set", each)]
    plan = ["--runs", "2", "--rounds", "2", "--device", "cpu", "--data", pack_file, "--recipe", "airbench94"]
    work, out = tmp_path / "work", tmp_path / "versus.json"
    done = command(*given, *settings, *plan, "--work", work, "--out", out, "--json")
    assert done.returncode == 1, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads(out.read_text())
    assert "line 15: -for run in range(200): main(run) +for run in range(2): main(run)" in done.stderr
    ends = [(each["name"], each["round"], each["error"]) for each in result["processes"]]
    lost = "RuntimeError: CUDA error: out of luck (exit code 1)"
    order = [("airbench94_muon", None), ("hlb", None), ("hiverge", lost), ("e1", None), ("ours", None)]
    assert ends == [(name, 0, error) for name, error in order] + [(name, 1, error) for name, error in reversed(order)]
    airbench, hlb, hiverge, e1 = result["peers"]
    assert (airbench["own clock"]["mean"], airbench["six_view"]["mean"]) == (3.0, pytest.approx(0.935))
    assert (hlb["own clock"]["mean"], hlb["mirror"]["mean"]) == (6.0, pytest.approx(0.9412))
    assert (hiverge["status"], hiverge["error"], hiverge["clock"]["ratio"]) == ("crashed", lost, None)
    assert result["processes"][2]["last_lines"][-1] == "RuntimeError: CUDA error: out of luck"
    assert e1["own clock"]["mean"] == pytest.approx(1.80015)  # seeds 0 and 1, then 2 and 3
    ours = [each for each in result["processes"] if each["name"] == "ours"]
    assert [len(each["measures"]["total"]) for each in ours] == [2, 2]
    assert result["ours"]["total"]["mean"] > result["ours"]["train"]["mean"] > 0
    seeds = [json.loads(line)["seed"] for n in (0, 1) for line in (work / "ours" / f"round-{n}.jsonl").open()]
    assert seeds == [0, 1, 2, 3]
    for peer, clock in zip(result["peers"], ("total", "train", "total", "prepare+train"), strict=True):
        assert peer["clock"]["ours"] == clock
    assert airbench["clock"]["ratio"]["low"] < airbench["clock"]["ratio"]["value"] < airbench["clock"]["ratio"]["high"]
    printed = Console(width=80, record=True, quiet=False, file=(tmp_path / "table").open("w"))
    print_versus(printed, result)
    text = printed.export_text()
    assert "…" not in text
    assert "whitening (5,000 images)" in " ".join(text.split())
    assert re.search(r"s its clock, our total +│ +3\.000 │ +\d+\.\d{3} │ +\d+\.\d{3} │ +\d+\.\d{3}–\d+", text)
    assert re.search(r"% six_view +│ +93\.50 │ +\d+\.\d\d │", text)
    assert f"hiverge crashed: {lost}" in text
    assert " times as fast as airbench94_muon by our total; accuracy " in " ".join(text.split())


def test_smoke_has_few_images_and_no_others_in_its_files(small_pack, tmp_path, monkeypatch):
    monkeypatch.setattr(versus, "SMOKE_IMAGES", {"train": 20, "test": 10})
    part = versus._part(small_pack)
    assert torch.equal(part.train_images, small_pack.train_images[:20])
    assert torch.equal(part.test_labels, small_pack.test_labels[:10])
    PEERS["hiverge"].write_data(part, tmp_path, CPU)
    assert (tmp_path / "cifar10" / "train.pt").stat().st_size < 80_000  # at 3,072 bytes per image


def test_smoke_tells_what_starts(peers, pack_file, tmp_path, command):
    write(peers["airbench94_muon"] / "airbench94_muon.py", TRAINS)
    write(peers["hiverge"] / "cifar10_speedrun.py", "import torch\nfor run in range(2): torch.gone_since_torch_2")
    given = [word for name in ("airbench94_muon", "hiverge") for word in ("--peer", f"{name}={peers[name]}")]
    work = tmp_path / "work"
    done = command(*given, "--smoke", "--data", pack_file, "--work", work, "--json")
    assert done.returncode == 1, done.stderr
    one, two = json.loads(done.stdout)["peers"]
    assert (one["starts"], one["error"]) == (True, None), one["last_lines"]
    printed = (work / "airbench94_muon" / "round-0.out").read_text()
    assert FIRST_STEP in printed
    assert "own optimizer steps" in printed
    assert "went on" not in printed
    assert not two["starts"]
    assert "module 'torch' has no attribute 'gone_since_torch_2'" in two["error"]


@parametrize("end", ["", "import sys; sys.exit(0)"], default=1)
def test_a_script_that_never_trains_does_not_start(end, tmp_path):
    write(tmp_path / "script.py", end)
    words = [sys.executable, "-m", "speedyresnet.bench.smoke", "script.py"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert FIRST_STEP not in done.stdout
    assert done.returncode == 1
    assert "ended before" in done.stderr


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--peer", "fastest=/tmp"], "airbench94_muon, hlb, hiverge, e1"),
        (["--peer", "hlb"], "NAME=PATH"),
        (["--peer", "hlb=/nowhere"], "/nowhere/main.py"),
        (["--peer", "e1=/tmp"], "runners/harness.py"),
        ([], "--peer"),
    ],
)
def test_wrong_peers_are_one_line(given, words, tmp_path, command):
    done = command(*given, "--out", tmp_path / "out.json")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert not (tmp_path / "out.json").exists()


def test_a_peer_given_twice_is_refused(peers):
    with pytest.raises(UserError, match="twice"):
        parse_peers([f"hlb={peers['hlb']}", f"hlb={peers['hlb'] / 'main.py'}"])


MUTATIONS = {
    "bench/statistics.py": [
        ("math.log(first / second)", "math.log(second / first)"),
        ("value=math.exp(logs.mean)", "value=logs.mean"),
        (
            "else math.exp(bound) for bound in (logs.lower, logs.upper)",
            "else math.exp(bound) for bound in (logs.upper, logs.lower)",
        ),
    ],
}
