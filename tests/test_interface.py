"""Hold the options of every command and the keys of its JSON document to `stored/interface.json`.

Scripts rely on both. Where a change is meant, `python tests/test_interface.py` prints the options as they are now, and
a failing test prints the keys.
"""

import dataclasses
import functools
import json
from pathlib import Path

import pytest
import typer

from speedyresnet.bench.cli import app
from speedyresnet.engine.cli import add_debug_option
from speedyresnet.engine.pack_file import save_pack
from speedyresnet.kernels import resources

STORED = json.loads((Path(__file__).parent / "stored" / "interface.json").read_text())
TINY = ["batch_size=64", "width_multiplier=0.125", "epochs=1", "dtype=float32", "augmentation.crop=16"]
RUN = ["--recipe", "airbench94", *(word for each in TINY for word in ("--set", each)), "--device", "cpu"]
ANYTHING = {"missing", "class_names", "skipped"}
"""Keys of what has the keys that a machine or a data set gives it."""


def options_below(command, name=""):
    """The options and arguments of `command` and of all commands below it, by the words that call it."""
    found = {name: " ".join(word for each in command.params for word in (*each.opts, *each.secondary_opts))}
    for inner, each in getattr(command, "commands", {}).items():
        found |= options_below(each, f"{name} {inner}".strip())
    return found


def options():
    command = typer.main.get_command(app)
    add_debug_option(command)
    return options_below(command)


def keys(value, place=""):
    """The keys of each object in parsed JSON, by the place of the object; members of a list share one place."""
    if isinstance(value, list):
        return functools.reduce(merged, (keys(each, place) for each in value), {})
    if not isinstance(value, dict):
        return {}
    inner = [keys(part, f"{place}.{key}".strip(".")) for key, part in value.items() if key not in ANYTHING]
    return functools.reduce(merged, inner, {place: " ".join(value)})


def merged(first, second):
    """Two of these as one, in which an object has the keys that it has in either."""
    both = {place: dict.fromkeys(f"{first.get(place, '')} {second.get(place, '')}".split()) for place in first | second}
    return {place: " ".join(words) for place, words in both.items()}


def test_every_command_has_the_options_that_it_had():
    assert options() == STORED["options"]


@pytest.fixture
def check(speedyresnet):
    """A function that runs a command with `--json` and compares the keys of what it prints."""

    def run(name, *words):
        done = speedyresnet(*name.split(), *words, "--json")
        assert done.returncode in (0, 1), done.stderr
        found = keys(json.loads(done.stdout))
        assert found == STORED["keys"].get(name), json.dumps({name: found}, indent=1)

    return run


@pytest.fixture
def pack_file(small_pack, tmp_path):
    path = tmp_path / "small.safetensors"
    save_pack(small_pack, path)
    return path


def test_a_run_and_its_model_have_the_keys_that_they_had(check, pack_file, tmp_path):
    model, record = tmp_path / "model.safetensors", tmp_path / "run.json"
    check("train", *RUN, "--data", pack_file, "--save", model, "--out", record)
    assert keys(json.loads(record.read_text())) == STORED["keys"]["train"]
    check("evaluate", model, "--data", pack_file, "--device", "cpu")
    check("export", model, "--format", "torchscript", "--out", tmp_path / "net.pt")


def test_what_is_told_of_recipes_data_and_machine_has_the_keys_that_it_had(check, pack_file, cache):
    check("recipes", "pocket")
    check("data info", pack_file)
    check("data pack", "synthetic", "--size", "8")
    check("doctor")


def test_kernels_have_the_keys_that_they_had(check, monkeypatch):
    row = resources.Resources(**dict.fromkeys(each.name for each in dataclasses.fields(resources.Resources)))
    monkeypatch.setattr(resources, "all_resources", lambda operations, name: [row])
    check("kernels")


@pytest.mark.exhaustive
def test_what_bench_measures_has_the_keys_that_it_had(check, pack_file, tmp_path):
    own = [*RUN, "--data", pack_file]
    check("bench step", *own, "--backend", "eager", "--rounds", "1", "--steps", "2")
    check("bench profile", *own, "--steps", "4")
    check("bench kernels", *RUN, "--list")
    check("bench record", *own, "--runs", "1", "--out", tmp_path / "runs.jsonl", "--target", "1", "--seconds", "99")
    check("bench compare", *own, "--variant", "epochs=2", "--runs", "2", "--out", tmp_path / "both.jsonl")
    check("bench trim", *own, "--rounds", "2", "--steps", "1", "--what", "whitening")
    check("bench gpu-suite", "--list", "--out", tmp_path / "suite")


if __name__ == "__main__":
    print(json.dumps(options(), indent=1))
