import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from rich.console import Console
from test_bench_versus import TRAINS
from tiers import parametrize

from speedyresnet.bench import gpu_suite, kernel_losses, sheets, step_variants
from speedyresnet.bench.cli import main
from speedyresnet.bench.gpu_queue import QUEUE, Entry, by_value
from speedyresnet.bench.gpu_suite import Site, command_of, failures, listed, make_site, run_entry, run_queue
from speedyresnet.bench.peers import PEERS
from speedyresnet.engine import UserError
from speedyresnet.engine.cli import app, run_command_line
from speedyresnet.engine.data import pack_path
from speedyresnet.engine.pack import make_pack
from speedyresnet.engine.pack_file import read_pack, save_pack

ROOT = Path(__file__).resolve().parent.parent
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PLACES = {"out", "work", "tests", "noise", "synthetic", "cifar10", "imagenette", *PEERS}
COMMANDS = typer.main.get_command(app).commands
MODULES = {f"speedyresnet.bench.{module.__name__.split('.')[-1]}": module for module in (kernel_losses, step_variants)}


# --- The queue


def test_every_entry_says_all_there_is_to_say():
    assert len({entry.name for entry in QUEUE}) == len(QUEUE)
    files = [name for entry in QUEUE for name in entry.files]
    assert len(set(files)) == len(files)
    for entry in QUEUE:
        assert re.fullmatch(r"[a-z0-9._-]+", entry.name, re.IGNORECASE)
        assert "?" in entry.question
        assert entry.prediction
        assert 0 < entry.value <= 100
        assert entry.places <= PLACES
        ours = [command for command in entry.commands if "pytest" not in command]
        assert len(entry.files) == len(ours), f"{entry.name}: each command names the file that it writes"
        assert entry.seconds <= 600 or entry.least
        assert not (entry.together and entry.least)
    assert [entry.name for entry in by_value()][:2] == ["correctness", "record"]
    assert [entry.name for entry in QUEUE if entry.together] == ["correctness"]  # all others are timed


def site_of(device):
    return Site(device, dict.fromkeys(PLACES - {"out"}, "x") | {"tests": str(ROOT / "tests"), "hlb": "hlb=x"})


def parsed(words):
    """What the real command line, or the module, makes of the words that Python is given."""
    if words[0] == "-m":
        return typer.main.get_command(MODULES[words[1]].app).make_context(words[1], words[2:]).params
    assert words[0] == "-c"
    command, name, *rest = COMMANDS["bench"], *words[3:]
    return command.commands[name].make_context(name, rest).params


@pytest.mark.parametrize("device", [CPU, CUDA], ids=["rehearsed", "on a GPU"])
@pytest.mark.parametrize("entry", QUEUE, ids=lambda entry: entry.name)
def test_every_command_is_one_that_there_is(entry, device):
    written = []
    for text in entry.commands:
        command = command_of(text, site_of(device), Path("/results"))
        assert not any(re.search(r"\{\w+\}", word) for word in command.words)
        python, *words = command.words
        assert python == sys.executable
        if words[:2] == ["-m", "pytest"]:
            tests = [word for word in words if word.startswith(str(ROOT / "tests"))]
            assert tests
            assert all(Path(word).exists() for word in tests)
            assert ("--collect-only" in words) == (device is CPU)
            continue
        given = parsed(words)
        assert given["device"] == device.type
        written.append(str(given["out"]).removeprefix("/results/"))
        if device is CPU:
            assert given.get("backend") in ("eager", None)
            assert given.get("target") is None
            assert given.get("runs", 1) <= 2
            assert given.get("smoke") or "epochs=1" in given["settings"]
    assert tuple(written) == entry.files


@pytest.mark.parametrize(
    ("module", "words", "said"),
    [
        (kernel_losses, ["--data", "nowhere"], "nowhere"),
        (step_variants, ["--data", "synthetic", "--variant", "speedy epoch=1"], "epoch"),
        (step_variants, ["--data", "synthetic", "--variant", "speedy", "--backend", "fast"], "fast"),
    ],
)
def test_a_module_refuses_bad_input_in_one_line(module, words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["module", *words, "--device", "cpu", "--out", str(tmp_path / "out.json")])
    with pytest.raises(SystemExit) as end:
        run_command_line(module.app)
    told = capsys.readouterr().err
    assert (end.value.code, told.count("\n"), said in told) == (2, 1, True)
    assert not list(tmp_path.iterdir())


def test_a_command_may_begin_with_variables():
    command = command_of("A=b=c speedyresnet recipes", Site(CUDA, {}), Path("/results"))
    assert (command.options["env"]["A"], command.words[-3:]) == ("b=c", ["recipes", "--device", "cuda"])
    assert "A" not in os.environ


# --- The runner


@pytest.fixture(autouse=True)
def anywhere(monkeypatch):
    """As if there were a GPU; what is run here is plain Python."""
    known = {"gpu": "a GPU", "torch": torch.__version__}
    monkeypatch.setattr(gpu_suite, "environment", lambda device: known)


def python(name, code, *files, seconds=2.0, value=50, **more):
    """An entry of a command that runs `code`, whose arguments are the folder of the results and its files."""
    words = " ".join(["{out}", *(f"{{out}}/{each}" for each in files)])
    commands = (f"python -c {shlex.quote(code)} {words}",)
    return Entry(
        name=name, question="?", prediction="!", value=value, seconds=seconds, commands=commands, **more
    )  # fmt: skip


def run(entries, out, seconds, chosen=None, values=None, told=None):
    console = Console(file=told, width=200) if told else Console(quiet=True)
    return run_queue(entries, chosen or entries, Site(CUDA, values or {}), seconds / 60, out, console)


def summary(out):
    found = json.loads((out / "suite.json").read_text())["entries"]
    rows = {each["name"]: each for each in found}
    assert len(rows) == len(found)
    return rows


def archived(out, name):
    with tarfile.open(out / "results.tar.gz") as archive:
        return archive.extractfile(f"./{name}").read().decode()


WRITES = "import sys; open(sys.argv[2], 'w').write('1'); "


def test_one_that_hangs_is_cut_off_with_what_it_wrote_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(Site, "limit", lambda self, entry, left: min(left, 2.0))
    hangs = python("hangs", WRITES + "print('began', flush=True); import time; time.sleep(60)", "a", "b")
    started = time.monotonic()
    out = tmp_path / "out"
    first, second = run([hangs, python("next", "print('done')")], out, 30)
    assert time.monotonic() - started < 15
    assert (first.exit_codes, first.verdict) == ([None], "cut off")
    assert first.outputs[0].startswith("began\n")
    assert (second.exit_codes, second.verdict, second.outputs) == ([0], "done", ["done\n"])
    assert sorted(each.name for each in out.iterdir()) == ["results.tar.gz", "suite.json"]
    assert archived(out, "a") == "1"
    assert archived(out, "hangs-1.log") == first.outputs[0]
    assert list(summary(out)) == ["hangs", "next"]
    assert summary(out)["hangs"]["environment"]["gpu"] == "a GPU"
    assert summary(out)["next"] | {"verdict": "done", "prediction": "!"} == summary(out)["next"]
    assert failures([first, second], [hangs]) == ["hangs"]
    assert failures([first, second], [replace(hangs, least=1.0)]) == []


def test_limits_are_of_what_is_expected_and_of_what_is_left():
    entry, site = python("a", "", seconds=100), Site(CUDA, {})
    assert (site.least_seconds(entry), site.limit(entry, 500), site.limit(entry, 120)) == (100, 230, 120)
    goes_on = replace(entry, least=20)
    assert (site.least_seconds(goes_on), site.limit(goes_on, 500)) == (20, 500)
    assert Site(CPU, {}).limit(entry, 500) == 500


@parametrize(
    "start",
    [
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}])",
        "import sys; from speedyresnet.bench.processes import exit_code_within as run; "
        "run(60, [sys.executable, '-c', {child!r}])",
    ],
    default=1,
    ids=["beside it", "in a session of its own"],
)
def test_what_an_entry_started_is_stopped_with_it(tmp_path, start):
    """A compiler's worker or a peer would go on and disturb the next measurement."""
    child = (
        f"import time; open({str(tmp_path / 'began')!r}, 'w'); time.sleep(4); open({str(tmp_path / 'alive')!r}, 'w')"
    )
    entry = python("parent", start.format(child=child) + "; import time; time.sleep(60)", least=1.0)
    (found,) = run([entry], tmp_path / "out", 3)
    assert found.exit_codes == [None]
    assert (tmp_path / "began").exists()
    time.sleep(3)
    assert not (tmp_path / "alive").exists()


def test_commands_run_together_or_one_after_the_other(tmp_path):
    meets = (
        "import os, sys, time; here, other = sys.argv[2:4]; open(here, 'w')\n"
        "while not os.path.exists(other): time.sleep(0.05)"
    )
    both = tuple(f"python -c {shlex.quote(meets)} . {{out}}/{a} {{out}}/{b}" for a, b in ("ab", "ba"))
    entry = Entry(name="meet", question="?", prediction="!", value=1, seconds=8, commands=both, together=True)
    (found,) = run([entry], tmp_path, 20)
    assert found.exit_codes == [0, 0]
    site = Site(CUDA, {})
    (tmp_path / "files").mkdir()
    alone = run_entry(replace(entry, together=False), 2, site, tmp_path / "files", {})
    assert (alone.exit_codes, alone.outputs) == ([None], [alone.outputs[0], ""])
    assert not (tmp_path / "files" / "b").exists()  # the second never began


def test_nothing_begins_that_does_not_fit(tmp_path):
    entries = [
        python("slow", "import time; time.sleep(2.5)", seconds=1),
        python("late", "", seconds=9),
        python("goes on", "", seconds=9, least=1.0),
        python("short", "", seconds=2),
    ]
    with (tmp_path / "told").open("w") as told:
        ran = run(entries, tmp_path / "out", 10, told=told)
    assert [each.name for each in ran] == ["slow", "goes on", "short"]
    text = (tmp_path / "told").read_text()
    assert "slow: about 1 s; 10 s are left" in text
    assert "waits: late, needs 9 s" in text


def test_what_needs_something_waits_for_it(tmp_path):
    entry = replace(python("asks", ""), commands=("python -c '' {hlb} {cifar10}",))
    with (tmp_path / "told").open("w") as told:
        assert run([entry], tmp_path / "out", 10, values={"hlb": "hlb=x"}, told=told) == []
    assert "waits: asks, needs cifar10" in (tmp_path / "told").read_text()
    values = {"hlb": "hlb=x", "cifar10": "cifar10"}
    assert [each.verdict for each in run([entry], tmp_path / "out", 10, values=values)] == ["done"]


APPENDS = "import sys; file = open({log!r}, 'a'); file.write({name!r} + ' '); file.flush(); "


def test_the_next_call_goes_on_also_on_another_machine(tmp_path):
    """One that ended is not repeated; one that goes on by itself is first, and a crash after what has waited."""
    log, seen = tmp_path / "order", []

    def appending(name, rest="", *files, **more):
        return python(name, APPENDS.format(log=str(log), name=name) + rest, *files, **more)

    def began(out, entries):
        run(entries, out, 12)
        text, _ = log.read_text(), log.unlink()
        seen.append(text.split())
        return seen[-1]

    half = "import os, time; again = os.path.exists(sys.argv[2]); open(sys.argv[2], 'a').write('x'); "
    entries = [
        appending("crashes", "sys.exit(3)"),
        appending("half", half + "time.sleep(0 if again else 2.5); sys.exit(0 if again else 3)", "half"),
        appending("done", "open(sys.argv[2], 'w')", "result"),
        appending("missed", "sys.exit(1)"),
        appending("large", seconds=99.0),
    ]
    assert began(tmp_path / "a", entries) == ["crashes", "half", "done", "missed"]
    assert {name: each["verdict"] for name, each in summary(tmp_path / "a").items()} == {
        "crashes": "crashed", "half": "crashed", "done": "done", "missed": "failed",
    }  # fmt: skip
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    entries[4] = appending("large", seconds=1.0)
    assert began(tmp_path / "b", entries) == ["large", "crashes", "half"]
    assert archived(tmp_path / "b", "half") == "xx"
    assert run(entries[1:], tmp_path / "b", 12) == []
    with tarfile.open(tmp_path / "b" / "results.tar.gz") as archive:
        archive.extractall(tmp_path / "c", filter="data")
    (tmp_path / "c" / "result").unlink()
    with tarfile.open(tmp_path / "b" / "results.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "c", ".")
    assert began(tmp_path / "b", entries[1:]) == ["done"]


def test_one_that_was_cut_off_and_goes_on_is_in_its_turn_again(tmp_path, monkeypatch):
    monkeypatch.setattr(Site, "limit", lambda self, entry, left: min(left, 1.5))
    entries = [python("record", "import time; time.sleep(60)", least=1.0), python("crashes", "import sys; sys.exit(4)")]
    names = [[each.name for each in run(entries, tmp_path, 30)] for _ in range(2)]
    assert names == [["record", "crashes"]] * 2


def test_ctrl_c_keeps_what_is_done(tmp_path, monkeypatch):
    entries, out = [python("first", WRITES, "a"), python("second", WRITES, "b")], tmp_path / "out"
    really = gpu_suite.run_entry

    def interrupted(entry, *rest):
        if entry.name == "second":
            really(entry, *rest)
            raise KeyboardInterrupt
        return really(entry, *rest)

    monkeypatch.setattr(gpu_suite, "run_entry", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(entries, out, 20)
    assert sorted(each.name for each in out.iterdir()) == ["results.tar.gz", "suite.json"]
    assert list(summary(out)) == ["first"]
    assert (archived(out, "a"), archived(out, "b")) == ("1", "1")  # what had been written, too


def test_a_call_that_was_killed_left_its_files(tmp_path):
    run([python("first", WRITES, "a")], tmp_path, 20)
    (tmp_path / "unpacked").mkdir()
    with tarfile.open(tmp_path / "results.tar.gz") as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (tmp_path / "unpacked" / "later").write_text("2")
    assert run([python("first", WRITES, "a")], tmp_path, 20) == []
    assert archived(tmp_path, "later") == "2"
    assert not (tmp_path / "unpacked").exists()


def test_results_of_something_else_are_kept(tmp_path):
    entries = [python("entry", "")]
    run(entries, tmp_path, 10)
    before = (tmp_path / "suite.json").read_text()
    with pytest.raises(UserError, match="--device cuda, not cpu"):
        run_queue(entries, entries, Site(CPU, {}), 1, tmp_path, Console(quiet=True))
    assert (tmp_path / "suite.json").read_text() == before
    (tmp_path / "results.tar.gz").write_text("no archive")
    shutil.rmtree(tmp_path / "unpacked")
    with pytest.raises(UserError, match="no archive of bench gpu-suite"):
        run(entries, tmp_path, 10)
    (tmp_path / "results.tar.gz").unlink()
    for text in ("no JSON", "[]", '{"asked": {}, "entries": [{"name": "entry"}]}', '{"asked": {}, "parts": []}'):
        shutil.rmtree(tmp_path / "unpacked", ignore_errors=True)
        (tmp_path / "suite.json").write_text(text)
        with pytest.raises(UserError, match=r"suite\.json is no .*; give another --out"):
            run(entries, tmp_path, 10)
        assert (tmp_path / "suite.json").read_text() == text


def test_two_suites_do_not_disturb_each_other(tmp_path):
    with gpu_suite._alone(), pytest.raises(UserError, match="another bench gpu-suite runs"):
        run([python("entry", "")], tmp_path, 10)


def test_a_crashed_command_is_no_missed_target(tmp_path, monkeypatch):
    (tmp_path / "typer.py").write_text("raise RuntimeError('broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    kernels = next(entry for entry in QUEUE if entry.name == "kernels")
    found = run_entry(kernels, 60, Site(CUDA, {}), tmp_path, {})
    assert found.outputs[0].endswith("RuntimeError: broken\n")
    assert (found.exit_codes, found.verdict) == ([3], "crashed")


# --- Images


@pytest.fixture
def halves(tmp_path, monkeypatch):
    """Two folders with half of a small CIFAR-10 each, and its pack."""
    generator, made = np.random.default_rng(2), {}
    names, counts = ["bee", "cow"], {"train": 6, "test": 4}
    for split, count in counts.items():
        made[split] = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), np.arange(count) % 2
    for half, label in enumerate(names):
        for split, (images, labels) in made.items():
            folder = tmp_path / str(half) / split
            folder.mkdir(parents=True)
            for number, part in enumerate(np.array_split(images[labels == half], 2)):
                Image.fromarray(part.reshape(-1, 32, 3)).save(folder / f"{label}-{number:02}.webp", lossless=True)
    pack = make_pack("cifar10", names, *made["train"], *made["test"])
    for module in (sheets, gpu_suite):
        monkeypatch.setattr(module, "CIFAR10_IMAGES", counts)
    monkeypatch.setattr(sheets, "CIFAR10_SHA256", pack.sha256)
    return [tmp_path / "0", tmp_path / "1"], pack


def test_images_come_in_two_calls(halves):
    (one, other), pack = halves
    first = make_site(CUDA, [one], [])
    assert "cifar10" not in first.values
    assert first.notes[0].startswith("cifar10: 3 of 6 train and 2 of 4 test images are here; ")
    second = make_site(CUDA, [other], ["hlb=there"])
    assert (second.values["cifar10"], second.values["hlb"], second.notes) == ("cifar10", "hlb=there", ())
    assert read_pack(pack_path("cifar10")).sha256 == pack.sha256
    assert make_site(CUDA, [], []).values["cifar10"] == "cifar10"
    noise = read_pack(Path(second.values["noise"]))
    assert noise.train_images.shape == (6, 32, 32, 3)


def test_other_images_are_refused(halves, tmp_path, monkeypatch):
    (one, other), pack = halves
    with pytest.raises(UserError, match="no sheets there"):
        make_site(CUDA, [tmp_path], [])
    monkeypatch.setattr(sheets, "CIFAR10_SHA256", "another")
    with pytest.raises(UserError, match=f"is not CIFAR-10 .checksum {pack.sha256}"):
        make_site(CUDA, [one, other], [])
    assert not pack_path("cifar10").exists()
    save_pack(pack, pack_path("cifar10"))
    with pytest.raises(UserError, match="is not CIFAR-10"):
        make_site(CUDA, [], [])
    pack_path("cifar10").unlink()
    (one / "train" / "bee-00.webp").write_text("no image")
    with pytest.raises(UserError, match=r"bee-00\.webp is no image sheet"):
        make_site(CUDA, [one], [])


def test_a_sheet_that_is_cut_off_or_no_column_is_named(halves):
    (one, other), _ = halves
    path = one / "train" / "bee-00.webp"
    with Image.open(path) as sheet:
        height = sheet.height
        sheet.save(path, format="png")  # of which the beginning is enough to tell its size
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(UserError, match=r"bee-00\.webp is no whole image sheet"):
        make_site(CUDA, [one, other], [])
    Image.new("RGB", (32, height + 5)).save(path, lossless=True)
    with pytest.raises(UserError, match=r"bee-00\.webp is 32 x \d+ pixels, no column of squares"):
        make_site(CUDA, [one, other], [])


# --- The command


def test_the_list_says_how_entries_ended(tmp_path, speedyresnet):
    found = speedyresnet("bench", "gpu-suite", "--list", "--out", tmp_path / "none", "--json")
    assert found.returncode == 0
    rows = json.loads(found.stdout)
    assert [row["name"] for row in rows] == [entry.name for entry in by_value()]
    assert {row["state"] for row in rows} == {"waits"}
    assert not (tmp_path / "none").exists()
    record = next(row for row in rows if row["name"] == "record")
    assert (record["files"], record["needs"], record["least"]) == (["record.jsonl"], ["cifar10"], 120)
    entries = [python("fine", ""), python("fails", "import sys; sys.exit(1)"), python("other", "", seconds=99)]
    run(entries, tmp_path, 20)
    assert [row["state"] for row in listed(entries, tmp_path)] == ["done", "failed", "waits"]
    text = speedyresnet("bench", "gpu-suite", "--list", "--only", "record", "--out", tmp_path).stdout
    assert text.splitlines()[0] == " 95  record: waits; about 290 s"
    assert "     $ speedyresnet bench record " in text
    assert text.endswith("1 of 1 wait, about 5 minutes\n")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--only yard", "correctness, record"),
        ("--peer hlb=nowhere", "nowhere/main.py"),
        ("--images nowhere", "no sheets"),
    ],
)
def test_wrong_words_are_one_line(given, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["speedyresnet", "bench", "gpu-suite", "--out", str(tmp_path / "x"), *given.split()]
    )
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not (tmp_path / "x").exists()


@pytest.mark.exhaustive
def test_a_checkout_is_enough(tmp_path):
    for folder in ("engine", "kernels", "bench"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "evidence"))
    queue = tmp_path / "bench" / "gpu_queue.py"
    queue.write_text(queue.read_text().replace('question="', 'question="Here, ', 1))
    start = [sys.executable, tmp_path / "bench" / "from_checkout.py", "bench", "gpu-suite", "--list", "--json"]
    for _ in range(2):  # the links are there already
        done = subprocess.run(start, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert any(row["question"].startswith("Here, ") for row in json.loads(done.stdout))


def suite(tmp_path, *words):
    command = [sys.executable, "-c", "from speedyresnet.bench.cli import main; main()", "bench", "gpu-suite"]
    return [*command, "--device", "cpu", "--out", tmp_path / "out", *words]


@pytest.mark.exhaustive
def test_the_end_from_outside_keeps_the_results(tmp_path):
    with subprocess.Popen(suite(tmp_path, "--only", "kernels", "--only", "kernels-all")) as process:
        while not (tmp_path / "out" / "suite.json").exists():  # kernels has ended
            time.sleep(0.2)
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["results.tar.gz", "suite.json"]
    assert json.loads(archived(tmp_path / "out", "kernels.json"))["cases"]


@pytest.mark.hour
def test_the_whole_queue_is_rehearsed_on_a_cpu(tmp_path):
    peer = tmp_path / "airbench94_muon.py"
    peer.write_text(TRAINS)
    left_out = PEERS.keys() - {"airbench94_muon"}
    entries = [entry for entry in QUEUE if not entry.places & left_out]
    claims = [entry for entry in entries if entry.name.startswith("claim-")][1:-1]  # all alike but for the recipe,
    entries = [entry for entry in entries if entry not in claims]  # and tests/test_every_recipe.py trains each
    words = [word for entry in entries for word in ("--only", entry.name)]
    command = suite(tmp_path, "--minutes", "30", "--peer", f"airbench94_muon={peer}", "--json", *words)
    done = subprocess.run(command, capture_output=True, text=True, timeout=1900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row["name"]: row["state"] for row in json.loads(done.stdout)} == {e.name: "done" for e in entries}
    for entry in entries:
        for name in entry.files:
            text = archived(tmp_path / "out", name)
            assert [json.loads(line) for line in text.splitlines()] if name.endswith("l") else json.loads(text)
    losses = json.loads(archived(tmp_path / "out", "correctness-losses.json"))["recipes"]
    assert [len(row["losses"]["reference"]) for row in losses] == [6, 6, 6]
    rows = json.loads(archived(tmp_path / "out", "step-variants.json"))["rows"]
    assert all(row["run_seconds"] > 0 for row in rows)
