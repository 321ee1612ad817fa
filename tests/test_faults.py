"""Kills, full disks, concurrent processes and Ctrl-C: the old file stays, or the new one is whole."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tiers import parametrize
from trainers import trainer_of

from speedyresnet.bench.cli import main
from speedyresnet.bench.pool import BASE, PoolPlan, open_pool, read_pool
from speedyresnet.engine import UserError, data, downloads, export_model, read_model, recipe, save_model, tensor_file
from speedyresnet.engine.checkpoint import CheckpointFile, read_checkpoint
from speedyresnet.engine.display import FileProgress
from speedyresnet.engine.evaluate import Accuracy
from speedyresnet.engine.files import locked, write_atomically
from speedyresnet.engine.pack_file import read_pack, save_pack
from speedyresnet.engine.record import RunRecord, Seconds
from speedyresnet.engine.synthetic import make_synthetic
from speedyresnet.engine.trainer import Trainer

COMMAND = [sys.executable, "-m", "speedyresnet.bench"]
TINY = ["batch_size=64", "width_multiplier=0.125", "epochs=2", "dtype=float32", "augmentation.crop=16"]
TRAIN = ["train", "--recipe", "airbench94", *(word for each in TINY for word in ("--set", each)), "--device", "cpu"]
PLAN = PoolPlan(runs=3, first_seed=0, validation=0)


@pytest.fixture(scope="module")
def trainer(small_pack):
    made = trainer_of(recipe("airbench94", TINY), small_pack)
    made.prepare(seed=0)
    return made


@pytest.fixture(scope="module")
def other_pack():
    return make_synthetic(train_images=640, test_images=200, seed=1)


def ended_record(trainer, seed):
    """Return the record of a run as a pool stores it."""
    record = trainer.new_record(seed)
    record.status, record.accuracy = "finished", Accuracy(weights="live", single_view=0.5, mirror=0.5, six_view=0.5)
    record.seconds = Seconds(build=1.0, prepare=1.0, train=1.0, evaluate=1.0)
    return record


@contextmanager
def forked(work, processes=1):
    """Yield the ids of processes that call `work(number)` in an endless loop."""
    children = []
    for number in range(processes):
        child = os.fork()
        if child == 0:
            try:
                while True:
                    work(number)
            finally:
                os._exit(1)
        children.append(child)
    try:
        yield children
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            assert os.waitpid(child, 0)[1] == signal.SIGKILL  # none ended by itself with an error


# --- Kills and concurrent processes


def test_a_kill_while_packing_leaves_a_whole_pack(small_pack, other_pack, tmp_path):
    path, choose = tmp_path / "packs" / "p.safetensors", random.Random(0)
    save_pack(small_pack, path)
    seen = set()
    for _ in range(25):
        with forked(lambda _: (save_pack(other_pack, path), save_pack(small_pack, path))):
            time.sleep(choose.uniform(0.005, 0.05))
        seen.add(read_pack(path).sha256)  # checks every byte
    assert seen == {small_pack.sha256, other_pack.sha256}


def test_a_kill_while_a_record_is_written_leaves_a_whole_record(trainer, tmp_path):
    path, choose = tmp_path / "run.json", random.Random(1)
    record = trainer.new_record(seed=0)
    record.write(path)
    for _ in range(25):
        with forked(lambda _: record.write(path)):
            time.sleep(choose.uniform(0.002, 0.02))
        assert json.loads(path.read_text()) == json.loads(record.to_json())


def test_processes_that_write_the_same_file_do_each_other_no_harm(small_pack, other_pack, tmp_path):
    path, packs = tmp_path / "p.safetensors", (small_pack, other_pack)
    save_pack(small_pack, path)
    with forked(lambda number: save_pack(packs[number % 2], path), processes=4):
        read = {read_pack(path).sha256 for _ in range(30)}
    assert read <= {small_pack.sha256, other_pack.sha256}


def test_a_file_that_is_replaced_while_it_is_read_is_read_as_it_was(small_pack, other_pack, tmp_path, monkeypatch):
    path, other = tmp_path / "p.safetensors", tmp_path / "other"
    save_pack(small_pack, path)
    save_pack(other_pack, other)

    def replacing(name, **options):
        other.rename(path)
        return safe_open(name, **options)

    monkeypatch.setattr(tensor_file, "safe_open", replacing)
    assert read_pack(path).sha256 == small_pack.sha256


def test_what_a_killed_process_left_goes_when_the_file_is_written_again(tmp_path):
    digits = "0123456789abcdef" * 2
    old, young, others = (tmp_path / f".{name}.{digits}.tmp" for name in ("a", "a", "a.b"))
    young = young.with_name(f".a.{digits[::-1]}.tmp")
    for path in (old, young, others):
        path.write_bytes(b"half")
    for path in (old, others):
        os.utime(path, (time.time() - 7200,) * 2)
    write_atomically(tmp_path / "a", lambda part: part.write_bytes(b"whole"))
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "a", young, others])


def test_only_one_process_adds_to_a_pool(trainer, tmp_path):
    path = tmp_path / "runs.jsonl"
    firsts = {BASE: ended_record(trainer, seed=0)}
    with open_pool(path, PLAN, firsts) as pool:
        pool.add(json.loads(firsts[BASE].to_json()))
        with pytest.raises(UserError, match=r"runs\.jsonl is being written by another process"):
            open_pool(path, PLAN, firsts).__enter__()
        pool.add(json.loads(ended_record(trainer, seed=1).to_json()))
    with open_pool(path, PLAN, firsts) as pool:
        assert pool.missing_runs() == [(2, BASE)]


def test_only_one_process_downloads(cache, monkeypatch):
    """The waiting process begins when the other has ended, however it ended."""
    began = threading.Event()

    def download(**_):
        began.set()
        raise OSError("enough")

    monkeypatch.setattr("torchvision.datasets.CIFAR10.__init__", lambda self, **_: download())
    monkeypatch.setattr(downloads, "is_reachable", lambda *_: True)
    monkeypatch.setattr(downloads, "_is_downloaded", lambda *_: False)
    with ThreadPoolExecutor() as pool, locked(cache / "downloads" / ".lock", wait=True):
        waiting = pool.submit(data.load_data, "cifar10")
        assert not began.wait(0.5)
    with pytest.raises(UserError, match="enough"):
        waiting.result()
    with locked(cache / "downloads" / ".lock", wait=False):
        assert began.is_set()


# --- Full disks


@contextmanager
def limited(folder):
    """Let no file grow beyond 100 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def filled(folder):
    """Leave no more than 64 KiB in the file system."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(65536)):
                pass
        except OSError:
            file.truncate(file.tell() - 65536)
    yield
    filler.unlink()


@pytest.fixture(params=["tmpfs", "limit"])
def disk(request, tmp_path):
    """Yield a folder and a context in which its disk is full."""
    if request.param == "limit":
        yield tmp_path, limited
        return
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this test may not mount a tmpfs")
    yield folder, filled
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def large(small_pack):
    return trainer_of(recipe("airbench94", [*TINY, "width_multiplier=0.5"]), small_pack)


@pytest.mark.parametrize("what", ["pack", "record", "model", "checkpoint", "export"])
def test_a_full_disk_is_one_line_and_the_old_file_stays(what, disk, trainer, large, small_pack, tmp_path):
    (folder, full), path = disk, disk[0] / "file.pt2"
    record = trainer.new_record(seed=0)
    record.data["name"] = "x" * 70_000  # more than what is left
    save_model(tmp_path / "m", large.reported_state(), large.recipe, small_pack, torch.float32)
    model = read_model(tmp_path / "m")
    write = {
        "pack": lambda: save_pack(small_pack, path),
        "record": lambda: record.write(path),
        "model": lambda: save_model(path, large.reported_state(), large.recipe, small_pack, torch.float32),
        "checkpoint": lambda: CheckpointFile(path, 1).write(large.state, record),
        "export": lambda: export_model(model, path, "pt2"),
    }[what]
    write()
    before = path.read_bytes()
    with full(folder):
        with pytest.raises(UserError, match=r"cannot write .*file\.pt2: (No space|File too large)") as error:
            write()
        assert "\n" not in str(error.value)
        assert path.read_bytes() == before
        assert not list(folder.glob(".*.tmp"))
    write()


def test_a_pool_on_a_full_disk_goes_on_when_there_is_room(disk, trainer):
    folder, full = disk
    path, firsts = folder / "runs.jsonl", {BASE: ended_record(trainer, seed=0)}
    with open_pool(path, PLAN, firsts) as pool:
        pool.add(json.loads(firsts[BASE].to_json()))
        large = ended_record(trainer, seed=1)
        large.data["classes"] = "x" * 70_000
        with full(folder), pytest.raises(UserError, match=r"cannot write .*runs\.jsonl: (No space|File too large)"):
            pool.add(json.loads(large.to_json()))
    assert [record["seed"] for record in read_pool(path)] == [0]
    with open_pool(path, PLAN, firsts) as pool:
        assert pool.missing_runs() == [(1, BASE), (2, BASE)]
        pool.add(json.loads(ended_record(trainer, seed=1).to_json()))
    assert [json.loads(line)["seed"] for line in path.read_text().splitlines()] == [0, 1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@parametrize("options", [["pocket", "--json"], ["pocket"]], default=1)
def test_standard_output_on_a_full_disk_is_one_line(options):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "recipes", *options], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "No space left" in line


def test_a_reader_that_has_enough_is_no_error():
    command = [*COMMAND, "recipes", "pocket"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1


# --- Ctrl-C


def test_ctrl_c_during_the_imports_is_silent():
    command = [sys.executable, "-X", "importtime", *COMMAND[1:], "recipes"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while "torch" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert printed == ""
    assert all(line.startswith("import time:") for line in errors.splitlines())


def run_here(monkeypatch, *arguments):
    """Return the exit code of the command line in this process."""
    monkeypatch.setattr(sys, "argv", ["speedyresnet", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.fixture
def pack_file(small_pack, tmp_path):
    save_pack(small_pack, tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def interrupted_in(monkeypatch, owner, name):
    """Make the method `name` of `owner` begin with Ctrl-C."""
    method = getattr(owner, name)

    def interrupted(*arguments, **options):
        signal.raise_signal(signal.SIGINT)
        return method(*arguments, **options)

    monkeypatch.setattr(owner, name, interrupted)


@pytest.mark.parametrize("name", ["_warm_up", "prepare"])
def test_ctrl_c_before_training_leaves_nothing(name, pack_file, tmp_path, monkeypatch, capsys):
    interrupted_in(monkeypatch, Trainer, name)
    out = tmp_path / "run.json"
    assert run_here(monkeypatch, *TRAIN, "--data", pack_file, "--out", out) == 130
    assert capsys.readouterr().err == ""
    assert list(tmp_path.iterdir()) == [pack_file]


@pytest.mark.parametrize("owner", [FileProgress, Image.Image])
def test_ctrl_c_while_images_are_read_leaves_nothing(owner, tmp_path, cache, monkeypatch, capsys):
    """In the main thread between two tasks, and while it waits for the decoding threads."""
    for place in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "images" / place).mkdir(parents=True)
        for number in range(200):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "images" / place / f"{number}.png")
    interrupted_in(monkeypatch, owner, "__call__" if owner is FileProgress else "convert")
    assert run_here(monkeypatch, "data", "pack", tmp_path / "images", "--name", "a") == 130
    assert capsys.readouterr().err == ""
    assert not cache.exists()


def test_ctrl_c_during_the_evaluation_keeps_the_training(pack_file, tmp_path, monkeypatch):
    interrupted_in(monkeypatch, Trainer, "evaluate")
    out = tmp_path / "run.json"
    assert run_here(monkeypatch, *TRAIN, "--data", pack_file, "--out", out) == 130
    stored = json.loads(out.read_text())
    assert (stored["status"], stored["steps"], len(stored["history"])) == ("interrupted", 20, 2)


def test_ctrl_c_while_the_result_is_written_waits_for_it(pack_file, tmp_path, monkeypatch):
    out, model = tmp_path / "run.json", tmp_path / "model.safetensors"
    interrupted_in(monkeypatch, RunRecord, "write")
    assert run_here(monkeypatch, *TRAIN, "--data", pack_file, "--out", out, "--save", model) == 0
    assert json.loads(out.read_text())["status"] == "finished"
    assert read_model(model).recipe.name == "airbench94"


def test_the_result_is_printed_where_a_file_is_refused(pack_file, tmp_path, monkeypatch, capsys):
    def refused(self, path):
        raise UserError("the disk is full")

    monkeypatch.setattr(RunRecord, "write", refused)
    out = tmp_path / "run.json"
    assert run_here(monkeypatch, *TRAIN, "--data", pack_file, "--out", out, "--json") == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out)["status"] == "finished"
    assert printed.err.splitlines()[-1] == "speedyresnet: the disk is full"


def test_a_killed_run_goes_on_from_its_last_checkpoint(pack_file, tmp_path, monkeypatch, capsys):
    """From the file alone, which contains recipe, settings, seed and backend."""
    path = tmp_path / "run.checkpoint"
    run = [*TRAIN, "--set", "epochs=4", "--seed", "4", "--data", pack_file]
    endless = [*map(str, run), "--checkpoint", str(path), "--checkpoint-minutes", "0.01"]
    process = subprocess.Popen([*COMMAND, *endless], stdout=subprocess.DEVNULL)
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    steps = read_checkpoint(path).progress.steps
    assert 0 < steps < 40
    assert run_here(monkeypatch, "train", "--resume", path, "--seed", 5, "--data", pack_file) == 2
    assert "seed 4, not 5" in capsys.readouterr().err
    assert run_here(monkeypatch, "train", "--resume", path, "--data", pack_file, "--json") == 0
    resumed = json.loads(capsys.readouterr().out)
    assert run_here(monkeypatch, *run, "--json") == 0
    expected = json.loads(capsys.readouterr().out)
    assert resumed["resumed_at_steps"] == [steps]
    assert (resumed["accuracy"], resumed["seed"]) == (expected["accuracy"], 4)
    assert [row["loss"] for row in resumed["history"]] == [row["loss"] for row in expected["history"]]
    assert read_checkpoint(path).progress.steps == 40


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--resume", "none"], "does not exist"),
        (["--checkpoint-minutes", "0"], "--checkpoint-minutes"),
        (["--out", "x", "--checkpoint", "./x"], "written by the same command"),
        (["--checkpoint", "/"], "is a folder"),
    ],
)
def test_wrong_options_of_checkpoints_are_one_line(options, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_here(monkeypatch, "train", "--device", "cpu", "--data", "synthetic", *options) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert len(printed.err.splitlines()) == 1
