"""SIGTERM, with which schedulers ask a process to end, acts like Ctrl-C, with exit code 143 instead of 130."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from speedyresnet.bench.cli import main
from speedyresnet.bench.pool import read_pool
from speedyresnet.engine import recipe, train
from speedyresnet.engine.checkpoint import read_checkpoint
from speedyresnet.engine.pack_file import save_pack
from speedyresnet.engine.signals import STOPPING, handled, interrupt_flag, stop_at_once, stop_code
from speedyresnet.engine.trainer import Trainer
from speedyresnet.engine.watching import Silent

COMMAND = [sys.executable, "-m", "speedyresnet.bench"]
TINY = ["batch_size=64", "width_multiplier=0.125", "dtype=float32", "augmentation.crop=16"]
RECIPE = ["--recipe", "airbench94", *(word for each in TINY for word in ("--set", each)), "--device", "cpu"]


@pytest.fixture(autouse=True)
def handlers_as_before():
    """Remove the handlers left by tests that call `main` here."""
    before = {each: signal.getsignal(each) for each in STOPPING}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.fixture
def pack_file(small_pack, tmp_path):
    save_pack(small_pack, tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def started(*words):
    command = [*COMMAND, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(done, process):
    deadline = time.monotonic() + 120
    while not done():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def steps_told(line):
    """Return the steps done according to the line of an epoch; 0 for other lines."""
    found = re.match(r"epoch +\d+ +step +(\d+)", line)
    return int(found[1]) if found else 0


def has_ended(pid):
    """Return whether the process has ended (a zombie counts as ended)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.exhaustive
def test_sigterm_keeps_the_record_and_the_checkpoint_and_the_run_goes_on(pack_file, tmp_path):
    out, checkpoint = tmp_path / "run.json", tmp_path / "run.checkpoint"
    words = ["train", *RECIPE, "--set", "epochs=10000", "--data", pack_file]
    process = started(*words, "--out", out, "--checkpoint", checkpoint, "--checkpoint-minutes", "0.01")
    wait_until(checkpoint.exists, process)
    process.send_signal(signal.SIGTERM)
    printed, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (143, "")
    assert "interrupted" in printed
    stored = json.loads(out.read_text())
    steps = stored["steps"]
    assert (stored["status"], read_checkpoint(checkpoint).progress.steps) == ("interrupted", steps)
    assert not list(tmp_path.glob(".*.tmp"))
    process = started("train", "--resume", checkpoint, "--data", pack_file, "--out", out)
    next(line for line in process.stdout if steps_told(line) > steps)  # an epoch that ended at `steps` is printed again
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    stored = json.loads(out.read_text())
    assert (stored["resumed_at_steps"], stored["steps"] > steps) == ([steps], True)


@pytest.mark.exhaustive
def test_sigterm_keeps_the_finished_runs_of_record(pack_file, tmp_path):
    out = tmp_path / "runs.jsonl"
    words = ["bench", "record", *RECIPE, "--set", "epochs=2", "--data", pack_file, "--out", out, "--runs", "100000"]
    process = started(*words)
    wait_until(lambda: out.exists() and out.read_bytes().count(b"\n") >= 2, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (143, "")
    assert [run["seed"] for run in read_pool(out)] == list(range(len(read_pool(out))))
    assert out.read_bytes().endswith(b"\n")


PEER = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open({pids!r}, "w") as file:
    file.write(f"{{os.getpid()}} {{child.pid}} ")
time.sleep(600)
for run in range(200): pass
"""


def test_sigterm_ends_the_processes_of_versus(pack_file, tmp_path):
    """They lead sessions of their own, so that the signal does not reach them."""
    pids, peer, out = tmp_path / "pids", tmp_path / "airbench94_muon.py", tmp_path / "versus.json"
    peer.write_text(PEER.format(pids=str(pids)))
    words = ["bench", "versus", "--peer", f"airbench94_muon={peer}", *RECIPE, "--data", pack_file, "--out", out]
    process = started(*words, "--set", "epochs=1", "--work", tmp_path / "work")
    wait_until(lambda: pids.exists() and pids.read_text().endswith(" "), process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (143, "")
    assert json.loads(out.read_text())["interrupted"]["name"] == "airbench94_muon"
    wait_until_ended = time.monotonic() + 10
    while not all(map(has_ended, pids.read_text().split())):
        assert time.monotonic() < wait_until_ended
        time.sleep(0.05)


SLEEPS = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print(__import__("os").getpid(), flush=True)
time.sleep(600)
"""
PARENT = """
import signal, sys
from speedyresnet.bench.processes import exit_code_within
from speedyresnet.engine.signals import handle_stopping, stop_code
handle_stopping()
try:
    exit_code_within(600, [sys.executable, "-c", {sleeps!r}], grace={grace}, stdout=sys.stdout)
except KeyboardInterrupt:
    sys.exit(stop_code())
"""


@pytest.mark.exhaustive
def test_a_second_sigterm_in_the_time_of_grace_leaves_no_process():
    """The child ignores Ctrl-C, so its parent waits for it."""
    code = PARENT.format(sleeps=SLEEPS, grace=600.0)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    assert has_ended(child)


@pytest.mark.parametrize("each", STOPPING)
def test_each_signal_has_its_exit_code(each, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["speedyresnet", "doctor"])
    monkeypatch.setattr("speedyresnet.engine.cli.examination", lambda *_: signal.raise_signal(each))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 128 + each
    assert stop_code() == 128 + each


def test_a_keyboard_interrupt_that_no_signal_raised_is_ctrl_c(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    test_each_signal_has_its_exit_code(signal.SIGTERM, monkeypatch)  # leaves nothing behind
    monkeypatch.setattr("speedyresnet.engine.cli.examination", interrupted)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130


@pytest.mark.parametrize("first", STOPPING)
@pytest.mark.parametrize("second", STOPPING)
def test_a_second_signal_of_either_kind_stops_at_once(first, second):
    with interrupt_flag() as flag:
        signal.raise_signal(first)
        assert flag.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(second)
    assert stop_code() == 128 + second


def test_handlers_are_put_back():
    signal.signal(signal.SIGTERM, stop_at_once)
    before = [signal.getsignal(each) for each in STOPPING]
    with interrupt_flag(), handled(signal.SIG_IGN, signal.SIGINT):
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    assert [signal.getsignal(each) for each in STOPPING] == before


def test_outside_the_main_thread_nothing_is_installed():
    before, seen = [signal.getsignal(each) for each in STOPPING], []

    def enter():
        with interrupt_flag() as flag:
            seen.append((flag.is_set(), [signal.getsignal(each) for each in STOPPING]))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


class TerminateAt(Silent):
    def step(self, step):
        if step == 13:
            os.kill(os.getpid(), signal.SIGTERM)


def test_in_the_api_sigterm_ends_the_training_with_what_is_done(small_pack):
    made = recipe("airbench94", [*TINY, "epochs=2"])
    run = train(made, small_pack, device="cpu", display=TerminateAt())
    assert (run.record.status, run.record.steps) == ("interrupted", 13)


def test_sigterm_while_packing_leaves_nothing(tmp_path, cache, monkeypatch, capsys):
    monkeypatch.setattr("speedyresnet.engine.cli.pack_source", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(sys, "argv", ["speedyresnet", "data", "pack", "synthetic", "--out", str(tmp_path / "p")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 143
    assert capsys.readouterr().err == ""
    assert list(tmp_path.iterdir()) == []


def test_sigterm_during_the_evaluation_keeps_the_training(pack_file, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "evaluate", lambda self: signal.raise_signal(signal.SIGTERM))
    out = tmp_path / "run.json"
    words = ["train", *RECIPE, "--set", "epochs=2", "--data", pack_file, "--out", out]
    monkeypatch.setattr(sys, "argv", ["speedyresnet", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 143
    stored = json.loads(out.read_text())
    assert (stored["status"], stored["steps"]) == ("interrupted", 20)


def test_sigterm_during_the_imports_has_its_exit_code():
    command = [sys.executable, "-X", "importtime", *COMMAND[1:], "recipes"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while "torch" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


@pytest.mark.exhaustive
def test_the_processes_of_step_end_with_their_parent(pack_file):
    """They are built by a process that then sleeps, so that they exist when the signal comes."""
    code = textwrap.dedent(f"""
        import sys
        from speedyresnet.bench import step_time
        from speedyresnet.bench.cli import main
        def ask(self, *_):
            print(self._process.pid, flush=True)
            import time
            time.sleep(600)
        step_time.BackendProcess.ask = ask
        sys.argv = ["speedyresnet", "bench", "step", "--backend", "eager", "--data", {str(pack_file)!r}, *{RECIPE!r}]
        if __name__ == "__main__":
            main()
    """)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert has_ended(child)
