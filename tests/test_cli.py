import json
import logging
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import typer
from PIL import Image

from speedyresnet.bench.cli import app
from speedyresnet.engine import recipe
from speedyresnet.engine.backends import LOG
from speedyresnet.engine.cli import add_debug_option
from speedyresnet.engine.pack_file import save_pack

COMMAND = [sys.executable, "-c", "from speedyresnet.bench.cli import main; main()"]
TINY = [
    "--set",
    "batch_size=64",
    "--set",
    "width_multiplier=0.125",
    "--set",
    "epochs=2",
    "--set",
    "augmentation.crop=16",
    "--device",
    "cpu",
]


def run(*arguments):
    command = [*COMMAND, *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}  # as users have it
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)


@pytest.fixture
def pack_file(small_pack, tmp_path):
    path = tmp_path / "small.safetensors"
    save_pack(small_pack, path)
    return path


def test_train_evaluate_and_info_work_together(pack_file, tmp_path, speedyresnet):
    model, record = tmp_path / "model.safetensors", tmp_path / "run.json"
    done = run("train", "--recipe", "airbench94", *TINY, "--data", pack_file, "--out", record, "--save", model)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("recipe airbench94")
    assert "six views" in done.stdout
    stored = json.loads(record.read_text())
    again = speedyresnet("evaluate", model, "--data", pack_file, "--device", "cpu", "--json")
    assert json.loads(again.stdout) == {"accuracy": stored["accuracy"]}
    info = json.loads(speedyresnet("data", "info", pack_file, "--json").stdout)
    assert info["sha256"] == stored["data"]["sha256"]


@pytest.mark.exhaustive
def test_json_is_one_document_and_nothing_else(pack_file):
    done = run("train", "--recipe", "airbench94", *TINY, "--data", pack_file, "--json")
    assert json.loads(done.stdout)["schema"] == "speedyresnet.run/1"
    assert "epoch   2" in done.stderr


def test_no_arguments_is_help(speedyresnet):
    done = speedyresnet()
    assert done.returncode == 0
    assert "train" in done.stdout


def test_recipes_lists_what_scripts_rely_on(speedyresnet):
    rows = json.loads(speedyresnet("recipes", "--json").stdout)
    by_name = {row["name"]: row for row in rows}
    assert by_name["airbench94"]["parameters"] == 1_972_792
    assert by_name["hlb-v0.4"]["parameters"] == 4_617_296
    assert by_name["hlb-v0.7"]["steps"] == 581
    assert (by_name["imagenette"]["data"], by_name["imagenette"]["steps"]) == ("imagenette", 450)
    assert by_name["hlb-v0.7-cifar100"]["parameters"] == 4_381_728
    assert by_name["airbench94"]["forward_flops_per_image"] == pytest.approx(236.3e6, rel=1e-3)
    assert by_name["airbench94"]["faithful"] == list(recipe("airbench94").faithful) != []
    assert 0.8e9 < by_name["airbench94"]["estimated_peak_bytes"] < 1.6e9
    one = speedyresnet("recipes", "airbench94", "--set", "epochs=2")
    small = json.loads(speedyresnet("recipes", "airbench94", "--set", "batch_size=256", "--json").stdout)[0]
    assert small["estimated_peak_bytes"] < 0.5 * by_name["airbench94"]["estimated_peak_bytes"]
    assert "optimizer.momentum" in one.stdout
    assert any(line.split() == ["steps", "96"] for line in one.stdout.splitlines())


def test_recipes_tells_bugs_of_the_original_one_by_one(speedyresnet):
    lines = speedyresnet("recipes", "hlb-v0.7-long").stdout.splitlines()
    first, last = (next(i for i, line in enumerate(lines) if line.startswith(key)) for key in ("claim", "parameters"))
    assert [line[:27].strip() for line in lines[first + 1 : last]] == ["faithful", *["mended"] * 5, ""]
    assert lines[first + 1].split() == ["faithful", "none"]
    assert max(map(len, lines[:last])) <= 160
    assert " ".join(line[27:] for line in lines[last - 2 : last]) == recipe("hlb-v0.7-long").mended[-1]
    assert lines[last - 1].strip().startswith("--set ")


def test_recipes_lists_groups_and_their_members(speedyresnet, monkeypatch):
    monkeypatch.setattr("speedyresnet.engine.cli.estimated_peak_bytes", lambda *_, **__: 0)  # takes longest
    listed = speedyresnet("recipes").stdout
    assert any(line.split()[1:4:2] == ["imagenette-schedules", "8"] for line in listed.splitlines())
    members = speedyresnet("recipes", "imagenette-schedules", "--set", "epochs=2").stdout
    rows = json.loads(speedyresnet("recipes", "imagenette-schedules", "--set", "epochs=2", "--json").stdout)
    names = [row["name"] for row in rows]
    assert (len(rows), names[1], names[7]) == (
        8, "imagenette-schedules/one-cycle-cosine", "imagenette-schedules/exponential",
    )  # fmt: skip
    assert all(name in members for name in names)
    assert {row["steps"] for row in rows} == {18}
    assert rows[1]["claim"]["seconds"] is None
    assert "90.01 %, unknown GPU" in members


def test_pack_by_name_is_found_by_name(tmp_path, speedyresnet):
    images = tmp_path / "images"
    for split in ("train", "test"):
        for label in ("a", "b"):
            (images / split / label).mkdir(parents=True)
    for index, path in enumerate(sorted(images.glob("*/*"))):
        Image.new("RGB", (8, 8), (40 * index, 0, 0)).save(path / "x.png")
    done = speedyresnet("data", "pack", images, "--name", "two", "--json")
    assert done.returncode == 0, done.stderr
    packed = json.loads(done.stdout)
    found = json.loads(speedyresnet("data", "info", "two", "--json").stdout)
    assert found["sha256"] == packed["sha256"]
    assert found["class_names"] == ["a", "b"]


def test_empty_folders_and_unreadable_images_are_named(tmp_path, speedyresnet):
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "bad" / folder).mkdir(parents=True)
        (tmp_path / "bad" / folder / "broken.png").write_bytes(b"no image")
    for source, words in ((empty, "empty"), (tmp_path / "bad", "broken.png")):
        done = speedyresnet("data", "pack", source)
        assert done.returncode == 2
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="there is a CUDA device")
def test_cuda_without_cuda_is_refused(speedyresnet):
    done = speedyresnet("train", "--device", "cuda")
    assert done.returncode == 2
    assert "no CUDA GPU" in done.stderr


def test_without_cifar10_train_falls_back_to_synthetic_with_one_warning(speedyresnet, monkeypatch):
    """A proxy that refuses stands for a machine without network."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    started = time.monotonic()
    done = speedyresnet("train", *TINY, "--set", "epochs=0.01", "--set", "evaluation.every=0", "--json")
    assert time.monotonic() - started < 60
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith("warning:") for line in done.stderr.splitlines()) == 1
    record = json.loads(done.stdout)
    assert record["data"]["name"] == "synthetic"
    assert record["recipe"]["name"] == "pocket"


def test_interruption_writes_the_record_and_exits_with_130(pack_file, tmp_path):
    record = tmp_path / "run.json"
    long_run = ["train", *TINY, "--set", "epochs=10000", "--data", pack_file, "--out", record]
    process = subprocess.Popen([*COMMAND, *map(str, long_run)], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch   2"):
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    stored = json.loads(record.read_text())
    assert stored["status"] == "interrupted"
    assert len(stored["history"]) >= 2


def test_a_full_gpu_is_one_line(monkeypatch, speedyresnet):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("speedyresnet.engine.cli.train_run", full)
    done = speedyresnet("train", "--data", "synthetic", "--device", "cpu")
    assert done.returncode == 2
    assert "memory is full" in done.stderr
    assert "--set batch_size" in done.stderr


def test_data_commands_check_where_they_write_before_they_read(tmp_path, cache, speedyresnet, monkeypatch):
    """The images cannot be read, which nobody gets to know."""
    for name in ("ant", "bee"):
        (tmp_path / "beasts" / name).mkdir(parents=True)
        (tmp_path / "beasts" / name / "0.png").write_text("no image")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SPEEDYRESNET_CACHE", str(tmp_path / "file" / "cache"))
    done = speedyresnet("data", "pack", tmp_path / "beasts", "--holdout", "0.5")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("speedyresnet: cannot write")
    assert done.stderr.endswith("SPEEDYRESNET_CACHE=FOLDER sets another cache\n")
    monkeypatch.setenv("SPEEDYRESNET_CACHE", str(cache))
    done = speedyresnet("data", "info", tmp_path / "beasts", "--picture", tmp_path / "file" / "sheet.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"speedyresnet: cannot write {tmp_path / 'file' / 'sheet.png'}: {tmp_path / 'file'} is not a folder; "
        "choose another place\n"
    )


def test_a_folder_with_holdout_is_packed_and_drawn(tmp_path, speedyresnet):
    for number, name in enumerate(("ant", "bee")):
        (tmp_path / "beasts" / name).mkdir(parents=True)
        for index in range(20):
            Image.new("L", (28, 28), 100 * number + index).save(tmp_path / "beasts" / name / f"{index}.png")
    done = speedyresnet("data", "pack", tmp_path / "beasts", "--holdout", "0.1", "--json")
    packed = json.loads(done.stdout)
    assert (packed["channels"], packed["test_images"], packed["train_images_per_class"]) == (1, 4, [18, 18])
    done = speedyresnet("data", "info", "beasts", "--json", "--picture", tmp_path / "sheet.png")
    assert json.loads(done.stdout)["sha256"] == packed["sha256"]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 800


@pytest.fixture
def tracebacks_end():
    """What `--debug` turns on is off again afterwards."""
    yield
    LOG.setLevel(logging.NOTSET)
    for handler in list(LOG.handlers):
        LOG.removeHandler(handler)


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--recipe", "nothing", "--debug"),
        ("--debug", "recipes", "nothing"),
        ("bench", "step", "--debug", "--recipe", "nothing"),
        ("data", "--debug", "info", "nothing"),
    ],
)
def test_debug_adds_the_traceback_and_changes_nothing_else(words, speedyresnet, tracebacks_end):
    plain = speedyresnet(*(word for word in words if word != "--debug"))
    told = speedyresnet(*words)
    assert (told.returncode, told.stdout) == (plain.returncode, plain.stdout) == (2, "")
    (line,) = plain.stderr.splitlines()
    assert told.stderr.splitlines()[-1] == line
    assert "Traceback (most recent call last)" in told.stderr
    assert "UserError" in told.stderr


def commands_below(command, name=""):
    yield name, command
    for inner, each in getattr(command, "commands", {}).items():
        yield from commands_below(each, f"{name} {inner}".strip())


def test_every_command_has_debug():
    command = typer.main.get_command(app)
    add_debug_option(command)
    found = dict(commands_below(command))
    assert {"", "train", "bench", "bench gpu-suite", "data pack", "kernels"} <= set(found)
    for name, each in found.items():
        assert [option for option in each.params if "--debug" in option.opts], name
