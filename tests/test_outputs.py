"""Finished work is kept: every file is tried, the result is printed, and one line says what was refused."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image
from tiers import parametrize
from trainers import trainer_of

from speedyresnet.bench import gpu_suite, pool, profiling, trim
from speedyresnet.engine import UserError, evaluate, read_model, recipe, train
from speedyresnet.engine import cli as engine_cli
from speedyresnet.engine.checkpoint import CheckpointFile, read_checkpoint
from speedyresnet.engine.errors import Note
from speedyresnet.engine.files import Outputs, write_atomically, write_text
from speedyresnet.engine.pack_file import save_pack
from speedyresnet.engine.trainer import Trainer

TINY = ["batch_size=64", "width_multiplier=0.125", "epochs=2", "dtype=float32", "augmentation.crop=16"]
SETTINGS = [word for each in TINY for word in ("--set", each)]
TRAIN = ["train", "--recipe", "airbench94", *SETTINGS, "--device", "cpu"]
COMMAND = [sys.executable, "-m", "speedyresnet.bench"]


@pytest.fixture
def pack_file(small_pack, tmp_path):
    save_pack(small_pack, tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def before(monkeypatch, owner, name, action):
    """Make the function `name` of `owner` begin with `action`."""
    function = getattr(owner, name)

    def changed(*arguments, **options):
        action()
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, changed)


def put_folders(*paths):
    """Return a function that replaces files by folders, which not even root can write."""

    def put():
        for path in paths:
            if not path.is_dir():
                path.unlink(missing_ok=True)
                path.mkdir()

    return put


def last_line(done):
    """Return the last line that says what went wrong."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("speedyresnet: ")]
    return lines[-1]


# --- Training


@parametrize("blocked", [{"out", "save", "checkpoint"}, {"out"}, {"save"}, {"checkpoint"}], default=1)
@parametrize("as_json", [True, False], default=1)
def test_train_tries_every_file_and_prints_the_result(blocked, as_json, pack_file, tmp_path, monkeypatch, speedyresnet):
    paths = {name: tmp_path / f"{name}.file" for name in ("out", "save", "checkpoint")}
    before(monkeypatch, Trainer, "prepare", put_folders(*(paths[name] for name in blocked)))
    options = [word for name, path in paths.items() for word in (f"--{name}", path)]
    done = speedyresnet(*TRAIN, "--data", pack_file, *options, *["--json"] * as_json)
    assert done.returncode == 2
    assert json.loads(done.stdout)["status"] == "finished" if as_json else "seed 0: finished" in done.stdout
    told = last_line(done)
    assert [name for name in paths if f"cannot write {paths[name]}: it is a folder" in told] == [
        name for name in paths if name in blocked
    ]
    if not as_json:
        assert len(done.stderr.splitlines()) == 1
    if "out" not in blocked:
        assert json.loads(paths["out"].read_text())["steps"] == 20
    if "save" not in blocked:
        assert read_model(paths["save"]).recipe.name == "airbench94"
    if "checkpoint" not in blocked:
        assert read_checkpoint(paths["checkpoint"]).progress.steps == 20
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_checkpoint_that_fails_on_the_way_is_told_once_and_tried_again(small_pack, tmp_path, monkeypatch):
    path, seen = tmp_path / "run.checkpoint", []
    write, calls = CheckpointFile.write, iter(range(10**6))

    def writing(self, state, record):
        seen.append(record.steps)
        (put_folders(path) if len(seen) < 3 else path.rmdir if len(seen) == 3 else list)()
        write(self, state, record)

    monkeypatch.setattr(CheckpointFile, "is_due", lambda self: next(calls) % 5 == 4)
    monkeypatch.setattr(CheckpointFile, "write", writing)
    with pytest.warns(Note, match="it is a folder.*tried again") as told:
        run = train(recipe("airbench94", TINY), small_pack, device="cpu", checkpoint=path)
    assert len(told) == 1
    assert len(seen) > 3
    assert (run.record.status, run.record.accuracy.six_view is not None, run.refused) == ("finished", True, None)
    assert read_checkpoint(path).progress.steps == 20


def test_a_refused_checkpoint_is_not_tried_at_every_step(small_pack, tmp_path, monkeypatch):
    """A minute counts from the attempt, whatever its outcome."""
    now = [0.0]
    monkeypatch.setattr("speedyresnet.engine.checkpoint.time.monotonic", lambda: now[0])
    made = trainer_of(recipe("airbench94", TINY), small_pack)
    (tmp_path / "folder").mkdir()
    file = CheckpointFile(tmp_path / "folder", minutes=1, tell=lambda text: None)
    file.wait()
    now[0] = 61.0
    assert file.is_due()
    file.attempt(made.state, made.new_record(0), again=True)
    assert "it is a folder" in file.refused
    assert not file.is_due()


def test_the_api_keeps_the_run_whose_last_checkpoint_is_refused(small_pack, tmp_path, monkeypatch):
    path = tmp_path / "run.checkpoint"
    before(monkeypatch, CheckpointFile, "write", put_folders(path))
    with pytest.warns(Note, match="cannot write .*it is a folder"):
        run = train(recipe("airbench94", TINY), small_pack, device="cpu", checkpoint=path)
    assert (run.record.status, run.record.steps) == ("finished", 20)
    assert run.refused.startswith(f"cannot write {path}: it is a folder")


@pytest.fixture(scope="module")
def trained(small_pack):
    """A finished run."""
    return train(recipe("airbench94", TINY), small_pack, device="cpu")


def no_training(monkeypatch):
    def never(*_, **__):
        raise AssertionError("it began to train")

    monkeypatch.setattr(Trainer, "__init__", never)


@pytest.mark.parametrize("path", ["/dev/full", "folder", "", "/", "file/run", "n\0ul", "sur\ud800rogate", "x" * 300])
def test_the_api_refuses_a_path_that_cannot_work(path, trained, small_pack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").write_text("in the way")
    made, run = recipe("airbench94", TINY), trained
    for write in (run.save, run.record.write):
        with pytest.raises(UserError, match="cannot write"):
            write(path)
    no_training(monkeypatch)
    with pytest.raises(UserError, match="cannot write"):
        train(made, small_pack, device="cpu", checkpoint=path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder"]
    assert Path("/dev/full").is_char_device()


def test_the_api_refuses_a_checkpoint_in_the_place_of_the_data(pack_file, monkeypatch):
    no_training(monkeypatch)
    with pytest.raises(UserError, match="it is read by the same command"):
        train("pocket", pack_file, device="cpu", checkpoint=pack_file)


@pytest.mark.exhaustive
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_standard_output_hides_no_refused_file(pack_file, tmp_path):
    """One line names both."""
    blocked = tmp_path / "out.json"
    code = (
        "import sys; from pathlib import Path; from speedyresnet.bench.cli import main;"
        "from speedyresnet.engine.trainer import Trainer; prepare = Trainer.prepare\n"
        "def changed(self, seed):\n"
        f"    Path({str(blocked)!r}).mkdir(exist_ok=True)\n"
        "    return prepare(self, seed)\n"
        "Trainer.prepare = changed\n"
        "main()"
    )
    words = [*TRAIN, "--data", pack_file, "--out", blocked, "--save", tmp_path / "model", "--json"]
    command = [sys.executable, "-c", code, *map(str, words)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert f"cannot write {blocked}: it is a folder" in line
    assert "No space left" in line
    assert "Exception ignored" not in done.stderr
    assert read_model(tmp_path / "model").recipe.name == "airbench94"


# --- Other commands of the engine


def test_evaluate_prints_what_it_cannot_store(pack_file, small_pack, tmp_path, monkeypatch, speedyresnet):
    model, out = tmp_path / "model", tmp_path / "accuracy.json"
    run = train(recipe("airbench94", TINY), small_pack, device="cpu")
    run.save(model)
    before(monkeypatch, engine_cli, "evaluate_model", put_folders(out))
    done = speedyresnet("evaluate", model, "--data", pack_file, "--device", "cpu", "--out", out, "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["accuracy"]["six_view"] == evaluate(model, small_pack, device="cpu").six_view
    assert last_line(done).startswith(f"speedyresnet: cannot write {out}: it is a folder")


def test_data_commands_print_what_they_cannot_store(pack_file, tmp_path, monkeypatch, speedyresnet):
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            (tmp_path / "beasts" / split / name).mkdir(parents=True)
            Image.new("L", (8, 8)).save(tmp_path / "beasts" / split / name / "0.png")
    out, sheet = tmp_path / "pack.safetensors", tmp_path / "sheet.png"
    with monkeypatch.context() as patch:
        before(patch, engine_cli, "pack_source", put_folders(out))
        done = speedyresnet("data", "pack", tmp_path / "beasts", "--out", out, "--json")
    assert done.returncode == 2
    facts = json.loads(done.stdout)
    assert (facts["train_images"], "path" in facts) == (2, False)
    assert f"cannot write {out}: it is a folder" in last_line(done)
    before(monkeypatch, engine_cli, "load_data", put_folders(sheet))
    done = speedyresnet("data", "info", pack_file, "--picture", sheet)
    assert done.returncode == 2
    assert "train_images             640" in done.stdout
    assert f"cannot write {sheet}: it is a folder" in last_line(done)


def test_recipes_are_listed_where_the_picture_is_refused(tmp_path, monkeypatch, speedyresnet):
    picture = tmp_path / "rates.svg"
    before(monkeypatch, engine_cli, "_described", put_folders(picture))
    done = speedyresnet("recipes", "pocket", "--picture", picture, "--json")
    assert done.returncode == 2
    assert [row["name"] for row in json.loads(done.stdout)] == ["pocket"]
    assert f"cannot write {picture}: it is a folder" in last_line(done)


# --- Bench


def short(*words):
    return [*words, "--recipe", "airbench94", "--set", "epochs=0.5", *SETTINGS[:4], "--set", "dtype=float32"]


@pytest.mark.exhaustive
def test_record_goes_on_and_prints_all_runs(pack_file, tmp_path, monkeypatch, speedyresnet):
    """The disk refuses everything that is written from the second run on."""
    out, attempts = tmp_path / "runs.jsonl", []

    def append(self, line):
        attempts.append(line)
        if len(attempts) > 1:
            self.file.write(line[:100])
            raise OSError(28, "No space left on device")
        assert self.file.write(line) == len(line)

    with monkeypatch.context() as patch:
        patch.setattr(pool.Pool, "_append", append)
        words = short("bench", "record", "--runs", "3", "--data", pack_file, "--device", "cpu", "--out", out)
        done = speedyresnet(*words, "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["runs"] == 3
    told = [line for line in done.stderr.splitlines() if "No space left" in line]
    assert len(told) == 2  # when it happens, and at the end
    assert told[-1] == f"speedyresnet: cannot write {out}: No space left on device; choose another place"
    assert [json.loads(line)["seed"] for line in out.read_text().splitlines()] == [0]
    done = speedyresnet(*words)
    assert done.returncode == 0
    assert [json.loads(line)["seed"] for line in out.read_text().splitlines()] == [0, 1, 2]


@pytest.mark.exhaustive
def test_a_run_that_was_refused_is_written_with_the_next(pack_file, tmp_path, monkeypatch, speedyresnet):
    append, failing = pool.Pool._append, [OSError(28, "No space left on device")]

    def once(self, line):
        if failing:
            raise failing.pop()
        append(self, line)

    monkeypatch.setattr(pool.Pool, "_append", once)
    out = tmp_path / "runs.jsonl"
    words = short("bench", "compare", "--variant", "loss.label_smoothing=0", "--runs", "2", "--data", pack_file)
    done = speedyresnet(*words, "--device", "cpu", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    assert "tried again" in done.stderr
    assert len(out.read_text().splitlines()) == 4
    assert json.loads(done.stdout)["differences"]


def test_compare_prints_what_it_cannot_store(pack_file, tmp_path, monkeypatch, speedyresnet):
    def refused(self, line):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pool.Pool, "_append", refused)
    words = short("bench", "compare", "--variant", "loss.label_smoothing=0", "--runs", "2", "--data", pack_file)
    done = speedyresnet(*words, "--device", "cpu", "--out", tmp_path / "runs.jsonl", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["differences"]


@pytest.mark.exhaustive
def test_profile_tries_every_file(pack_file, tmp_path, monkeypatch, speedyresnet):
    out = tmp_path / "p.json"
    stored, trace, parts, roofline = profiling.profile_paths(out)
    before(monkeypatch, profiling, "step_traffic", put_folders(stored, parts))
    words = short("bench", "profile", "--steps", "4", "--data", pack_file, "--device", "cpu", "--out", out)
    done = speedyresnet(*words)
    assert done.returncode == 2
    assert all(f"cannot write {path}: it is a folder" in last_line(done) for path in (stored, parts))
    assert f"written: {trace}, {roofline}" in done.stdout
    assert trace.is_file()
    assert roofline.is_file()


@pytest.mark.exhaustive
@pytest.mark.parametrize("as_json", [True, False])
def test_kernels_prints_what_it_cannot_store(as_json, tmp_path, monkeypatch, speedyresnet):
    out = tmp_path / "kernels.json"
    before(monkeypatch, sys.modules["speedyresnet.bench.cli"], "cases_report", put_folders(out))
    done = speedyresnet("bench", "kernels", "--list", "--device", "cpu", "--out", out, *["--json"] * as_json)
    assert done.returncode == 2
    assert json.loads(done.stdout)["cases"] if as_json else "augment" in done.stdout
    assert last_line(done).startswith(f"speedyresnet: cannot write {out}: it is a folder")


def test_trim_prints_what_it_cannot_store(pack_file, tmp_path, monkeypatch, speedyresnet):
    out = tmp_path / "trim.json"
    before(monkeypatch, trim, "measured_rounds", put_folders(out))
    words = short("bench", "trim", "--what", "label smoothing", "--rounds", "2", "--steps", "1", "--data", pack_file)
    done = speedyresnet(*words, "--device", "cpu", "--out", out, "--json")
    assert done.returncode == 2, done.stderr
    assert json.loads(done.stdout)["rows"]
    assert last_line(done).startswith(f"speedyresnet: cannot write {out}: it is a folder")


def test_report_writes_the_files_that_are_not_refused(tmp_path, monkeypatch, speedyresnet, small_pack):
    run, page, readme = tmp_path / "run.json", tmp_path / "page.html", tmp_path / "README.md"
    train(recipe("airbench94", TINY), small_pack, device="cpu").record.write(run)
    root = Path(__file__).resolve().parent.parent
    readme.write_text((root / "README.md").read_text())
    before(monkeypatch, sys.modules["speedyresnet.bench.cli"], "readme_with_table", put_folders(page))
    done = speedyresnet("bench", "report", run, "--out", page, "--readme", readme)
    assert done.returncode == 2
    assert done.stdout == f"written: {readme}\n"
    assert "airbench94" in readme.read_text()
    assert f"cannot write {page}: it is a folder" in last_line(done)


def test_gpu_suite_keeps_its_results_where_the_archive_is_refused(tmp_path):
    files, out, outputs = tmp_path / "out" / "unpacked", tmp_path / "out", Outputs()
    with warnings.catch_warnings(), gpu_suite.unpacked_results(out, {}, outputs) as found:
        warnings.simplefilter("ignore", Note)
        assert found == files
        gpu_suite._write_summary(files / gpu_suite.SUMMARY, {}, [], [])
        (files / "kept.txt").write_text("1")
        put_folders(out / gpu_suite.ARCHIVE)()
        warnings.simplefilter("ignore", Note)
    assert outputs.refuses(out / gpu_suite.ARCHIVE)
    assert json.loads((out / gpu_suite.SUMMARY).read_text())["entries"] == []
    assert (files / "kept.txt").read_text() == "1"
    (out / gpu_suite.ARCHIVE).rmdir()
    outputs = Outputs()
    with gpu_suite.unpacked_results(out, {}, outputs):
        assert json.loads((files / gpu_suite.SUMMARY).read_text())["entries"] == []
    assert not outputs.refused
    assert not files.exists()
    assert (out / gpu_suite.ARCHIVE).is_file()


# --- The files themselves


def test_every_refusal_is_counted_until_it_is_written(tmp_path):
    path, other = tmp_path / "a", tmp_path / "b"
    path.mkdir()
    outputs = Outputs()
    for each in (path, other, other / "c"):
        outputs.attempt(each, lambda each=each: write_text(each, "x"))
    path.rmdir()
    outputs.attempt(path, lambda: write_text(path, "y"))
    outputs.count("cannot write d")
    with pytest.raises(UserError) as error, outputs:
        pass
    assert str(error.value) == f"cannot write {other / 'c'}: File exists; choose another place; cannot write d"
    assert (path.read_text(), other.read_text()) == ("y", "x")


def test_a_device_is_not_replaced_by_a_file(tmp_path):
    with pytest.raises(UserError, match="it is no regular file"):
        write_atomically(Path("/dev/full"), lambda part: part.write_bytes(b"x"))
    assert Path("/dev/full").is_char_device()
