import json
import subprocess
import sys
import time

import pytest
import torch
import typer

from speedyresnet.bench.cli import bench_app, main
from speedyresnet.bench.gpu_suite import Stage, run_gpu_suite, run_stage, stages
from speedyresnet.engine import UserError
from speedyresnet.engine.pack_file import save_pack

CPU = torch.device("cpu")
COMMAND = [sys.executable, "-c", "from speedyresnet.bench.cli import main; main()", "bench", "gpu-suite"]
FILES = {
    "suite.json", "steps-eager.json", "runs.jsonl", "profile.json", "profile.trace.json.gz", "kernels.json",
    "steps.json", "record.jsonl", "cuts.jsonl",
}  # fmt: skip


def python(name, code, share, *files):
    return Stage(name=name, arguments=("-c", code, "{}"), share=share, files=files)


def run(parts, out, seconds, asked=None):
    return run_gpu_suite(parts, asked or {}, CPU, seconds / 60, out)


def saved_parts(out):
    found = json.loads((out / "suite.json").read_text())["parts"]
    parts = {each["name"]: each for each in found}
    assert len(parts) == len(found)
    return parts


def test_a_part_is_cut_off_when_its_time_is_over_and_keeps_what_it_wrote(tmp_path):
    slow = "import sys, time; open(sys.argv[1] + '/a', 'w').write('1'); print('began', flush=True); time.sleep(60)"
    parts = [python("slow", slow, 0.5, "a", "b"), python("next", "print('done')", 0.5)]
    started = time.monotonic()
    first, second = run(parts, tmp_path, 10)
    assert time.monotonic() - started < 10
    assert first.exit_code is None
    assert first.output.startswith("began\n")
    assert 2.5 < first.seconds < 7
    assert (second.exit_code, second.output) == (0, "done\n")
    assert (tmp_path / "a").read_text() == "1"
    assert list(saved_parts(tmp_path)) == ["slow", "next"]
    assert saved_parts(tmp_path)["slow"]["environment"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    "start",
    [
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}])",
        "import sys; from speedyresnet.bench.processes import exit_code_within as run; "
        "run(60, [sys.executable, '-c', {child!r}])",
    ],
    ids=["beside it", "in a session of its own"],
)
def test_what_a_part_started_is_stopped_with_it(tmp_path, start):
    """A compiler's worker or a peer would go on and disturb the next measurement."""
    child = (
        f"import time; open({str(tmp_path / 'began')!r}, 'w'); time.sleep(4); open({str(tmp_path / 'alive')!r}, 'w')"
    )
    part = python("parent", start.format(child=child) + "; import time; time.sleep(60)", 1.0)
    (found,) = run([part], tmp_path, 3)
    assert found.exit_code is None
    assert (tmp_path / "began").exists()
    time.sleep(3)
    assert not (tmp_path / "alive").exists()


def test_a_part_that_fails_stops_nothing_and_leaves_its_time_to_the_next(tmp_path):
    parts = [
        python("fails", "import sys; print('why', file=sys.stderr); sys.exit(3)", 0.9),
        python("sleeps", "import time; time.sleep(2.2); print('awake')", 0.1),
    ]
    fails, sleeps = run(parts, tmp_path, 4)
    assert (fails.exit_code, fails.output) == (3, "why\n")
    assert (sleeps.exit_code, sleeps.output) == (0, "awake\n")  # 0.4 s of its own, and what was left over


def test_the_only_part_has_the_whole_time(tmp_path):
    (found,) = run([python("sleeps", "import time; time.sleep(1.5)", 0.1)], tmp_path, 4)
    assert found.exit_code == 0


def test_nothing_begins_with_less_than_half_its_share(tmp_path):
    parts = [
        python("most", "import time; time.sleep(60)", 0.6),
        python("late", "print('late')", 0.9),
        python("short", "print('short')", 0.5),
    ]
    assert [each.name for each in run(parts, tmp_path, 2)] == ["most", "short"]


APPENDS = "import sys; file = open(sys.argv[1] + '/order', 'a'); file.write({name!r} + ' '); file.flush(); "


def appending(name, rest, share=0.25, *files):
    return python(name, APPENDS.format(name=name) + rest, share, *files)


def test_the_next_call_goes_on(tmp_path, capsys):
    """One that ended is not repeated, what never began is first, and a crash does not come before what has waited."""
    twice = "import os, time; again = os.path.exists(sys.argv[1] + '/half'); open(sys.argv[1] + '/half', 'w'); "
    parts = [
        appending("crashes", "sys.exit(3)"),
        appending("half", twice + "time.sleep(0 if again else 60)"),
        appending("done", "open(sys.argv[1] + '/result', 'w')", 0.2, "result"),
        appending("missed", "sys.exit(1)", 0.2),
        appending("large", "", 1.0),
    ]
    run(parts, tmp_path, 10)
    assert (tmp_path / "order").read_text() == "crashes half done missed "
    assert "to go on with, by the same command: large, crashes, half\n" in capsys.readouterr().out
    run(parts, tmp_path, 10)
    assert (tmp_path / "order").read_text() == "crashes half done missed large crashes half "
    codes = {name: each["exit_code"] for name, each in saved_parts(tmp_path).items()}
    assert codes == {"done": 0, "missed": 1, "large": 0, "crashes": 3, "half": 0}
    parts[0] = appending("crashes", "")
    run(parts, tmp_path, 10)
    assert "all 5 parts have ended\n" in capsys.readouterr().out
    assert run(parts, tmp_path, 10) == []
    (tmp_path / "result").unlink()
    assert [each.name for each in run(parts, tmp_path, 10)] == ["done"]


def test_results_of_another_suite_are_kept(tmp_path):
    parts = [python("part", "", 1.0)]
    run(parts, tmp_path, 3, {"--recipe": "pocket", "--peer": ["hlb=main.py"]})
    before = (tmp_path / "suite.json").read_text()
    for asked, words in [({"--recipe": "hiverge", "--peer": ["hlb=main.py"]}, "--recipe pocket, not hiverge"),
                         ({"--recipe": "pocket", "--peer": []}, "--peer .*main.py")]:  # fmt: skip
        with pytest.raises(UserError, match=words):
            run(parts, tmp_path, 3, asked)
    assert (tmp_path / "suite.json").read_text() == before
    for text in ("no JSON", "[]", '{"asked": {}, "parts": [{"name": "part"}]}'):
        (tmp_path / "suite.json").write_text(text)
        with pytest.raises(UserError, match="no result of bench gpu-suite"):
            run(parts, tmp_path, 3)


def test_a_crashed_command_is_no_missed_target(tmp_path, monkeypatch):
    (tmp_path / "typer.py").write_text("raise RuntimeError('broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    kernels = next(each for each in stages("airbench94", [], "cifar10", "cpu", 1, []) if each.name == "kernels")
    found = run_stage(kernels, 60, tmp_path, {})
    assert found.output.endswith("RuntimeError: broken\n")
    assert not found.ended


def test_the_parts_by_value():
    peers = ["hlb=main.py", "airbench94_muon=here"]
    small = stages("airbench94", ["epochs=2"], "cifar10", "cpu", 20, peers)
    first = ["tests", "steps, eager", "runs", "profile", "kernels", "steps of all backends", "tests of measuring"]
    claims = ["yardstick", "same mathematics", "record", "cuts"]
    assert [each.name for each in small] == first + claims
    ours = [name for name in (*first, "record", "cuts") if not name.startswith("tests")]
    assert [each.name for each in small if "epochs=2" in each.arguments] == ours
    parts = {each.name: each for each in stages("airbench94", ["epochs=2"], "cifar10", "cuda", 20, peers)}
    assert "epochs=2" not in parts["record"].arguments
    more = ["steps of airbench94-muon", "steps of speedy", "steps with every kernel", "kernels of all providers"]
    assert list(parts) == [*first[:3], "tests of the kernels", *first[3:], *more, *claims]
    markers = {name: each.arguments[6] for name, each in parts.items() if name.startswith("tests")}
    assert markers == {"tests": "gpu", "tests of the kernels": "not slow", "tests of measuring": "gpu"}
    files = [name for each in parts.values() for name in each.files]
    assert len(set(files)) == len(files) == len(parts) - 3
    assert [each.name for each in stages("airbench94", [], "cifar10", "cuda", 20, peers[:1])][-3:] == [
        "yardstick", "record", "cuts",
    ]  # fmt: skip
    assert [each.name for each in stages("airbench94", [], "cifar10", "cuda", 20, [])][-2:] == ["record", "cuts"]
    assert "hlb=main.py" not in parts["same mathematics"].arguments
    assert "--smoke" not in parts["yardstick"].arguments


def test_commands_take_what_the_parts_give_them(tmp_path):
    commands = typer.main.get_command(bench_app).commands
    for device in ("cpu", "cuda"):
        for part in stages("airbench94", ["epochs=2"], "cifar10", device, 20, ["airbench94_muon=here"]):
            if part.name.startswith("tests"):
                continue
            name, *words = part.arguments[part.arguments.index("bench") + 1 :]
            given = commands[name].make_context(name, words).params
            assert str(given["out"]).removeprefix("{}/") == part.files[0]


@pytest.mark.parametrize(
    ("given", "words"), [("--part yard", "'steps, eager'"), ("--peer hlb=nowhere", "nowhere/main.py")]
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


@pytest.mark.slow
def test_the_whole_suite_on_a_cpu(small_pack, tmp_path):
    data, out = tmp_path / "small.safetensors", tmp_path / "out"
    save_pack(small_pack, data)
    settings = ["batch_size=64", "width_multiplier=0.125", "epochs=1", "dtype=float32"]
    options = [word for each in settings for word in ("--set", each)]
    suite = [*COMMAND, "--minutes", "4", "--runs", "3", "--device", "cpu", "--data", data, "--out", out, *options]

    def call(*words):
        done = subprocess.run([*suite, *words], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "profile: exit code 0" in call("--part", "profile")
    if "to go on with" in call():  # where compilers are slow
        call()
    assert {each.name for each in out.iterdir()} >= FILES
    for name, count in (("runs.jsonl", 3), ("record.jsonl", 3), ("cuts.jsonl", 30)):
        assert len((out / name).read_text().splitlines()) == count
    assert json.loads((out / "profile.json").read_text())["parts"]
    assert json.loads((out / "kernels.json").read_text())["cases"]
    backends = [row["backend"] for row in json.loads((out / "steps.json").read_text())["backends"]]
    assert backends[0] == "eager"
    ended = {name: each["exit_code"] for name, each in saved_parts(out).items()}
    assert ended.pop("record") == 1  # so few and small runs reach no 94 %
    assert ended.pop("steps of all backends") in (0, None)
    assert set(ended.values()) == {0}
