import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from speedyresnet.engine import nets, recipe, record
from speedyresnet.engine.nets import forward_flops_per_image
from speedyresnet.kernels.language import AVAILABLE

if AVAILABLE:
    from triton.backends import nvidia

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def nothing_kept():
    record._gpu.cache_clear()
    record._commit.cache_clear()
    yield
    record._gpu.cache_clear()
    record._commit.cache_clear()


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """A GPU and its nvidia-smi, which writes down how it was called."""
    program, calls = tmp_path / "nvidia-smi", tmp_path / "calls"
    program.write_text(f'#!/bin/sh\necho "$@" >> {calls}\necho "580.65.06, 700.00"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    properties = SimpleNamespace(name="NVIDIA H200", uuid="5c5ea0a9", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return calls


def test_the_gpu_is_asked_once_a_process(nvidia_smi):
    for _ in range(3):
        found = record.environment(GPU)
        assert (found["gpu"], found["driver"], found["power_limit_watts"]) == ("NVIDIA H200", "580.65.06", 700.0)
    (call,) = nvidia_smi.read_text().splitlines()
    assert call.startswith("--id=GPU-5c5ea0a9 ")


def test_a_driver_that_does_not_answer_ends_no_run(nvidia_smi, monkeypatch):
    run = subprocess.run

    def hang(command, *arguments, **options):
        if command[0] == "nvidia-smi":
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return run(command, *arguments, **options)

    monkeypatch.setattr(subprocess, "run", hang)
    found = record.environment(GPU)
    assert (found["gpu"], found["driver"], found["power_limit_watts"]) == ("NVIDIA H200", None, None)


def test_what_cudnn_may_do_is_recorded_of_a_gpu(nvidia_smi):
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        found = record.environment(GPU)
    assert (found["cudnn_benchmark"], found["cudnn_allow_tf32"]) == (True, False)
    here = record.environment(CPU)
    assert (here["cudnn_benchmark"], here["cudnn_allow_tf32"]) == (None, None)


@pytest.mark.skipif(not AVAILABLE, reason="needs Triton")
@pytest.mark.parametrize(
    ("capability", "variable"), [((8, 9), "TRITON_PTXAS_PATH"), ((10, 0), "TRITON_PTXAS_BLACKWELL_PATH")]
)
def test_the_ptxas_that_compiles_for_the_gpu_is_recorded(nvidia_smi, tmp_path, monkeypatch, capability, variable):
    """The one that Triton takes; as with Triton, a variable that names no working ptxas changes nothing."""
    for name in ("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    own = "ptxas-blackwell" if capability == (10, 0) else "ptxas"
    tool = Path(nvidia.__file__).parent / "bin" / own
    told = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout
    brought = record.environment(GPU)["ptxas"]
    assert brought.startswith(f"{own} 1")
    assert brought.removeprefix(f"{own} ") in told
    monkeypatch.setenv(variable, str(tmp_path / "nothing"))
    assert record.environment(GPU)["ptxas"] == brought
    mine = tmp_path / "my-ptxas"
    mine.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 99.1, V99.1.7'\n")
    mine.chmod(0o755)
    monkeypatch.setenv(variable, str(mine))
    assert record.environment(GPU)["ptxas"] == "my-ptxas 99.1.7"
    assert record.environment(CPU)["ptxas"] is None


def git(folder, *words):
    """Run git in a folder."""
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=folder, check=True)


def new_repository(folder):
    """A git repository with one commit, and that commit."""
    folder.mkdir(exist_ok=True)
    (folder / "setup.py").write_text(f"# {folder.name}")
    git(folder, "init", "--quiet")
    git(folder, "add", "setup.py")
    git(folder, "commit", "--quiet", "--message", "first")
    return subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=folder, text=True).strip()


def commit_in(package, variable, monkeypatch):
    """What a package in the folder `package` takes for its commit."""
    monkeypatch.setattr(record, "_PACKAGE", package)
    if variable is None:
        monkeypatch.delenv(record.COMMIT_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(record.COMMIT_VARIABLE, variable)
    return record._commit()


@pytest.mark.parametrize(
    ("files", "variable", "expected"),
    [
        ("checkout", None, "head"), ("checkout", "", "head"), ("changed", None, "head+changes"),
        ("checkout", "feed", "feed"), ("changed", "feed", "feed"),
        ("copy", "feed", "feed"), ("copy", "", None), ("wheel", "feed", "feed"), ("wheel", None, None),
    ],
)  # fmt: skip
def test_the_commit_is_what_the_variable_says_or_else_gits(tmp_path, monkeypatch, files, variable, expected):
    head = new_repository(tmp_path)
    if files == "changed":
        (tmp_path / "setup.py").write_text("1")
    if files == "copy":
        shutil.rmtree(tmp_path / ".git")
    if files == "wheel":
        (tmp_path / "setup.py").unlink()
    assert commit_in(tmp_path, variable, monkeypatch) == (expected and expected.replace("head", head))


@pytest.mark.parametrize("tracked", [False, True])
def test_a_copy_inside_another_repository_does_not_take_its_commit(tmp_path, monkeypatch, tracked):
    new_repository(tmp_path)
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "setup.py").touch()
    if tracked:
        git(tmp_path, "add", "copy")
        git(tmp_path, "commit", "--quiet", "--message", "second")
    assert commit_in(copy, None, monkeypatch) is None


def test_a_checkout_inside_another_repository_has_its_own_commit(tmp_path, monkeypatch):
    outer, inner = new_repository(tmp_path), new_repository(tmp_path / "inner")
    assert outer != inner
    assert commit_in(tmp_path / "inner", None, monkeypatch) == inner


def test_a_worktree_has_its_own_commit(tmp_path, monkeypatch):
    """There `.git` is a file that names the folder."""
    new_repository(tmp_path / "main")
    git(tmp_path / "main", "worktree", "add", "--quiet", "-b", "other", "../other")
    git(tmp_path / "other", "commit", "--quiet", "--allow-empty", "--message", "second")
    other = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=tmp_path / "other", text=True).strip()
    assert commit_in(tmp_path / "other", None, monkeypatch) == other


def test_the_repository_whose_hook_runs_us_is_not_taken_for_ours(tmp_path, monkeypatch):
    """Git sets GIT_DIR for its hooks."""
    inner = new_repository(tmp_path / "inner")
    new_repository(tmp_path / "outer")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "outer" / ".git"))
    assert commit_in(tmp_path / "inner", None, monkeypatch) == inner


def test_flops_are_counted_once_for_all_runs_of_a_recipe(monkeypatch):
    size = {"classes": 10, "channels": 3, "height": 32, "width": 32}
    found = forward_flops_per_image(recipe("airbench94", ["net.widths=8,8,8"]), **size)
    monkeypatch.setattr(nets, "make_net", None)
    assert forward_flops_per_image(recipe("airbench94", ["net.widths=8,8,8"]), **size) == found


@pytest.mark.parametrize(
    ("requested", "kernels", "told"),
    [
        (("graph", "triton"), {}, None),
        (("auto", "triton"), {}, "backend: auto was asked for, graph ran"),
        (
            ("graph", "triton"),
            {"stem": "reference"},
            "kernels: triton was asked for, triton ran for augment; reference ran for stem",
        ),
        (
            ("auto", "auto"),
            {},
            "backend: auto was asked for, graph ran. kernels: auto was asked for, triton ran for augment, stem",
        ),
    ],
)
def test_what_ran_is_told_where_it_is_not_what_was_asked_for(requested, kernels, told):
    found = {"backend": "graph", "kernels": {"augment": "triton", "stem": "triton"} | kernels}
    found["requested"] = dict(zip(("backend", "kernels"), requested, strict=True))
    assert record.differences_told(found) == told


def test_a_record_that_does_not_say_what_was_asked_for_has_no_differences():
    assert record.differences_told({"backend": "graph", "kernels": {"stem": "reference"}}) is None
