"""Compiled code is kept between processes, by everything that it depends on; what is damaged is compiled anew."""

import contextlib
import json
import subprocess
import sys
import types

import pytest
import torch

from speedyresnet.engine import compiler_cache, recipe
from speedyresnet.engine.compiler_cache import artifacts_path, compiled_code

CPU = torch.device("cpu")


class Compiler:
    """Stands for torch.compiler: it remembers what it was handed and has made `keys`."""

    def __init__(self, keys):
        self.keys, self.loaded = keys, []

    @staticmethod
    def info(keys):
        return types.SimpleNamespace(artifacts={"inductor": list(keys), "pgo": []})

    def save_cache_artifacts(self):
        return (" ".join(self.keys).encode(), self.info(self.keys)) if self.keys else None

    def load_cache_artifacts(self, content):
        self.loaded.append(content)
        return self.info(content.decode().split())


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function: one process that compiles `keys`; returns what it was handed first."""
    monkeypatch.setenv("SPEEDYRESNET_CACHE", str(tmp_path))
    monkeypatch.delenv("SPEEDYRESNET_COMPILED", raising=False)

    def process(*keys, backend="compile", made=None):
        compiler = Compiler(keys)
        monkeypatch.setattr(compiler_cache.torch, "compiler", compiler)
        with compiled_code(made or recipe("pocket", []), backend, CPU):
            pass
        return compiler.loaded

    return process


def files(folder):
    return {path: path.read_bytes() for path in (folder / "compiled").glob("*")}


def test_the_next_process_is_handed_what_this_one_made(run, tmp_path):
    assert run("a", "b") == []
    assert run("a", "b") == [b"a b"]
    (path,) = files(tmp_path)
    assert path == artifacts_path(recipe("pocket", []), "compile", CPU)
    before = path.stat().st_mtime_ns
    run("b", "a")  # the same, in another order
    assert path.stat().st_mtime_ns == before
    run("a", "b", "c")
    assert run() == [b"a b c"]


def test_another_recipe_or_backend_has_a_file_of_its_own(run, tmp_path):
    run("a")
    assert run("b", made=recipe("pocket", ["net.activation=relu"])) == []
    assert run("c", backend="graph") == []
    assert len(files(tmp_path)) == 3
    assert run("d", backend="eager") == []  # compiles nothing
    assert len(files(tmp_path)) == 3


@pytest.mark.parametrize("change", ["torch", "triton", "machine"])
def test_another_version_or_machine_has_a_file_of_its_own(run, change, monkeypatch):
    run("a")
    if change == "torch":
        monkeypatch.setattr(torch, "__version__", "2.99")
    elif change == "triton":
        monkeypatch.setattr(compiler_cache, "triton", types.SimpleNamespace(__version__="9.9"))
        monkeypatch.setattr(compiler_cache, "AVAILABLE", True)
    else:
        monkeypatch.setattr(compiler_cache.platform, "machine", lambda: "riscv64")
    assert run("a") == []


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: b"x" + content[1:], lambda _: b""])
def test_a_damaged_file_is_never_handed_on_and_is_replaced(run, damage, tmp_path):
    run("a")
    ((path, content),) = files(tmp_path).items()
    path.write_bytes(damage(content))
    assert run("a") == []
    assert files(tmp_path) == {path: content}


def test_a_cache_that_cannot_be_written_is_told_in_one_line(run, tmp_path):
    (tmp_path / "compiled").write_text("no folder")
    with pytest.warns(UserWarning, match="compiled code is not kept: .*compiled") as told:
        run("a")
    assert len(told) == 1
    assert "\n" not in str(told[0].message)


def test_a_failure_within_keeps_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(compiler_cache.torch, "compiler", Compiler(["a"]))
    with contextlib.suppress(ZeroDivisionError), compiled_code(recipe("pocket", []), "compile", CPU):
        1 / 0  # noqa: B018
    assert not (tmp_path / "compiled").exists()


def test_compiled_code_may_have_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("SPEEDYRESNET_COMPILED", str(tmp_path / "kept"))
    assert artifacts_path(recipe("pocket", []), "graph", CPU).parent == tmp_path / "kept"


PROGRAM = """
import json, torch
from torch._dynamo.utils import counters
from speedyresnet.engine import recipe
from speedyresnet.engine.compiler_cache import compiled_code
layer = torch.nn.Linear(8, 10)
with compiled_code(recipe("pocket", []), "graph", torch.device("cpu")):
    torch.compile(lambda x: layer(x).log_softmax(1).sum(), fullgraph=True, dynamic=False)(torch.ones(4, 8)).backward()
print(json.dumps({key: counters["inductor"][f"fxgraph_cache_{key}"] for key in ("hit", "miss")}))
"""


@pytest.mark.exhaustive
def test_a_new_process_with_an_empty_inductor_cache_compiles_no_graph_again(tmp_path, monkeypatch):
    """The second process has another folder for Inductor, whose content only the kept file can bring."""
    for variable in ("TORCHINDUCTOR_CACHE_DIR", "SPEEDYRESNET_COMPILED"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("SPEEDYRESNET_CACHE", str(tmp_path / "cache"))
    found = []
    for name in ("first", "second"):
        monkeypatch.setenv("TMPDIR", str(tmp_path / name))  # where Inductor keeps what it compiles
        (tmp_path / name).mkdir()
        done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert found == [{"hit": 0, "miss": 2}, {"hit": 2, "miss": 0}]  # forward and backward
