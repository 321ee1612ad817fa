"""What the command line does and says on machines that lack something."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from tiers import parametrize

from speedyresnet.bench.cli import main
from speedyresnet.engine import doctor, recipe
from speedyresnet.engine.doctor import examination, examination_text
from speedyresnet.engine.fit import expected_data
from speedyresnet.engine.pack_file import save_pack
from speedyresnet.engine.setup import set_up
from speedyresnet.kernels.language import AVAILABLE

COMMAND = [sys.executable, "-c", "from speedyresnet.bench.cli import main; main()"]
TESTS = Path(__file__).parent
HIDDEN = "import sys; sys.modules['triton'] = None"
"""As a first line: in this process `import triton` fails, as where it is not installed."""


def environment(**changes):
    """As users have it: no interpreter."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | changes


def hidden_process(code, *arguments, hidden=HIDDEN, **changes):
    command = [sys.executable, "-c", f"{hidden}\n{textwrap.dedent(code)}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment(**changes), timeout=300)


def examined():
    return examination(set_up(recipe("pocket"), expected_data(recipe("pocket")), torch.device("cpu")))


def run_here(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["speedyresnet", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr()


def test_every_module_imports_and_the_cpu_trains_on_plain_pytorch_alone(small_pack, tmp_path):
    save_pack(small_pack, tmp_path / "small.safetensors")
    code = """
        import importlib, pkgutil
        import speedyresnet.bench, speedyresnet.engine, speedyresnet.kernels
        for package in (speedyresnet.bench, speedyresnet.engine, speedyresnet.kernels):
            for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
                if not module.name.endswith(("__main__", "conftest")):
                    importlib.import_module(module.name)
        run = speedyresnet.engine.train(
            speedyresnet.engine.recipe("pocket", ["batch_size=64", "width_multiplier=0.125", "epochs=1"]), sys.argv[1]
        )
        assert set(run.record.kernels.values()) == {"reference"}
        print(run.record.status)
    """
    done = hidden_process(code, tmp_path / "small.safetensors", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "finished\n"


@pytest.mark.exhaustive
def test_the_engine_works_without_what_only_unix_has(small_pack, tmp_path):
    """Windows has neither `fcntl` nor `resource`: nothing is locked, which a note says, and no memory is counted."""
    save_pack(small_pack, tmp_path / "small.safetensors")
    code = """
        import os
        from pathlib import Path
        from speedyresnet.engine import evaluate, load_data, recipe, train
        from speedyresnet.engine.files import locked
        made = recipe("pocket", ["batch_size=64", "width_multiplier=0.125", "epochs=1"])
        os.chdir(sys.argv[1])
        pack = load_data("small.safetensors")
        run = train(made, pack, device="cpu", checkpoint="checkpoint.safetensors")
        run.save("model.safetensors")
        run.record.write("run.json")
        assert evaluate("model.safetensors", pack, device="cpu") == run.record.accuracy
        with locked(Path("lock"), wait=False):
            print(run.record.status, run.record.memory)
    """
    hidden = "import sys; sys.modules |= {'fcntl': None, 'resource': None}"
    done = hidden_process(code, tmp_path, hidden=hidden)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "finished {'peak_bytes': None}\n"
    assert "Note: lock cannot be locked on this system: let no other process use it meanwhile" in done.stderr


@parametrize(
    ("command", "code", "words"), [("doctor", 0, "pip install triton"), ("kernels", 2, "pip install triton")], default=1
)
def test_commands_say_how_to_get_it(command, code, words):
    run = f"from speedyresnet.bench.cli import main; sys.argv[1:] = ['{command}']; main()"
    done = hidden_process(run)
    assert done.returncode == code, done.stderr
    assert words in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == (1 if code else 0)


@pytest.mark.exhaustive
def test_the_suite_skips_what_needs_it():
    code = "import pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *sys.argv[1:]]))"
    done = hidden_process(code, TESTS, "-k", "test_kernel_resources")  # all files are imported
    assert done.returncode == 0, done.stdout
    assert " skipped" in done.stdout
    assert "passed" not in done.stdout


def test_compile_without_a_compiler_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, printed = run_here(monkeypatch, capsys, "train", "--backend", "compile", "--device", "cpu")
    assert (code, printed.out) == (2, "")
    assert len(printed.err.splitlines()) == 1
    assert "needs a C++ compiler on a CPU (apt install g++); use --backend eager" in printed.err
    facts = examined()
    assert facts["compiler"] is None
    assert "apt install g++" in facts["missing"]["compiler"]
    assert facts["backends"]["eager"] is None
    assert "C++ compiler" in facts["backends"]["compile"]


def assert_fits(text):
    lines = text.splitlines()
    assert len(lines) <= 24
    assert all(len(line) <= 80 or max(map(len, line.split())) > 69 for line in lines)  # a word is never broken


def test_doctor_tells_this_machine_on_one_screen(monkeypatch, capsys, cache, small_pack):
    save_pack(small_pack, cache / "packs" / "small.safetensors")
    (cache / "packs" / "Odd [name]!.safetensors").write_bytes(b"")
    code, printed = run_here(monkeypatch, capsys, "doctor")
    assert (code, printed.err) == (0, "")
    assert_fits(printed.out)
    for words in (torch.__version__, "small (2.6 MB)", "Odd [name]! (0.0 MB)", "SPEEDYRESNET_CACHE moves it"):
        assert words in printed.out
    code, printed = run_here(monkeypatch, capsys, "doctor", "--json")
    facts = json.loads(printed.out)
    assert code == 0
    assert facts["environment"]["torch"] == torch.__version__
    assert facts["cache"]["folder"] == str(cache)
    assert [pack["name"] for pack in facts["cache"]["packs"]] == ["Odd [name]!", "small"]
    assert set(facts["backends"]) == {"eager", "torchscript", "compile", "capture", "graph"}
    assert ("GPU" in facts["missing"]) == (not torch.cuda.is_available())
    assert "gloo" in facts["distributed"]["backends"]
    assert len(facts["distributed"]["devices"]) == max(torch.cuda.device_count(), 1)


def test_doctor_names_a_cache_that_cannot_be_used(monkeypatch, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"")
    monkeypatch.setenv("SPEEDYRESNET_CACHE", str(file))
    facts = examined()
    assert "is not a folder" in facts["cache"]["problem"]
    assert "set SPEEDYRESNET_CACHE to a folder that you may write" in examination_text(facts)


def test_doctor_tells_a_gpu_and_asks_for_nothing_where_all_is_there(monkeypatch):
    found = examined()["environment"] | {"gpu": "NVIDIA H200", "driver": "570.1", "power_limit_watts": 700.0}
    found |= {"triton": "3.6.0", "ptxas": "ptxas 12.8.93"}
    monkeypatch.setattr(doctor, "environment", lambda _: found | {"cuda": "13.2"})
    monkeypatch.setattr(doctor, "cpp_compiler", lambda: "/usr/bin/c++")
    facts = examined()
    distributed = {"devices": ["NVIDIA H200"] * 8, "backends": ["gloo", "nccl"]}
    text = examination_text(facts | {"gpu_bytes": 150_000_000_000, "distributed": distributed})
    assert "torchrun   8 x NVIDIA H200; connected by gloo, nccl" in text
    assert "NVIDIA H200, 150.0 GB" in text
    assert "570.1, power limit 700 W" in text
    assert ("3.6.0, ptxas 12.8.93" in text) == AVAILABLE
    assert set(facts["missing"]) <= {"triton"}  # the one thing that is truly asked of this machine
    monkeypatch.setattr(doctor, "environment", lambda _: found | {"driver": None})
    assert "nvidia-smi" in examined()["missing"]["driver"]
