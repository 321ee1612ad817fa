"""Imports between our modules, those inside functions too: one way from bench to engine to kernels, and no circle."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("kernels", "engine", "bench")
"""Each may import those before it."""


def module_name(path):
    parts = ("speedyresnet", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for layer in LAYERS for path in (ROOT / layer).rglob("*.py")}


def imported(name, path, modules):
    """Which of `modules` the source of one names; a package only where it asks the package for what is no module."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *filter(None, [node.module])])
            inner = [f"{source}.{each.name}" for each in node.names]
            found |= {each if each in modules else source for each in inner}
    return found & set(modules)


def circle_in(graph):
    """The modules of a circle of imports; none where there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


@pytest.fixture(scope="module")
def graph():
    return {name: imported(name, path, MODULES) for name, path in MODULES.items()}


def test_there_is_no_circle(graph):
    assert circle_in(graph) is None


def test_imports_go_one_way(graph):
    layers = {name: LAYERS.index(name.split(".")[1]) for name in graph}
    assert [(name, each) for name, found in graph.items() for each in found if layers[each] > layers[name]] == []


def test_circles_and_imports_inside_functions_are_seen(tmp_path):
    sources = {
        "p": "from .a import x\n",
        "p.a": "def f():\n    from .b import y\n",
        "p.b": "import p.c\n",
        "p.c": "from . import a, z\n",
    }
    (tmp_path / "p").mkdir()
    paths = {name: tmp_path / "p" / f"{name.partition('.')[2] or '__init__'}.py" for name in sources}
    for name, source in sources.items():
        paths[name].write_text(source)
    graph = {name: imported(name, path, paths) for name, path in paths.items()}
    assert graph == {"p": {"p.a"}, "p.a": {"p.b"}, "p.b": {"p.c"}, "p.c": {"p.a", "p"}}
    assert set(circle_in(graph)) >= {"p.a", "p.c"}
    assert circle_in(graph | {"p.c": set()}) is None
