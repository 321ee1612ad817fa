"""The Python API: its examples, and CONTRIBUTING's recipe, run as they stand there; its names and signatures stay."""

import doctest
import functools
import inspect
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiers import parametrize

from speedyresnet import engine
from speedyresnet.bench.cli import main
from speedyresnet.engine import data


@pytest.fixture(scope="module")
def drawn_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "make_synthetic", functools.cache(data.make_synthetic))
        yield


@parametrize("name", ["load_data", "recipe", "train", "evaluate"], default=["load_data", "recipe", "train"])
def test_examples_give_what_they_say(name, drawn_once, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(engine, name), name, module=False, globs={})
    assert 10 <= example.docstring[example.docstring.index("Examples:") :].count("\n") <= 20
    said = []
    failed, tried = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=said.append)
    assert tried >= 7
    assert not failed, "".join(said)


def test_the_recipe_of_your_own_trains_on_a_folder_of_images(small_pack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for index in (small_pack.train_labels < 3).nonzero()[:40, 0]:
        folder = tmp_path / "photos" / small_pack.class_names[small_pack.train_labels[index]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(small_pack.train_images[index].numpy()).save(folder / f"{index}.png")
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    section = text.partition("## A recipe of your own\n")[2].partition("\n## ")[0]
    (code,), (commands,) = (re.findall(f"```{kind}\n(.*?)```", section, re.DOTALL) for kind in ("python", "sh"))
    (tmp_path / "my_recipe.py").write_text(code)
    for command in commands.splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit, match=r"^0$"):
            main()
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["status"], run["recipe"]["name"], run["data"]["classes"]) == ("finished", "photos", 3)
    assert run["data"]["train_images"] + run["data"]["test_images"] == 40
    assert run["history"][-1]["loss"] < 0.8 * run["history"][0]["loss"]


def test_every_public_name_is_documented_and_stays():
    assert set(engine.__all__) >= {
        "Accuracy", "Augmentation", "Averaging", "Claim", "Evaluation", "Loss", "Model", "Net", "Optimizer", "Pack",
        "Recipe", "RunRecord", "Schedule", "SpeedyResNet", "TrainedRun", "UserError", "evaluate", "export_model",
        "load_data", "read_image", "read_model", "recipe", "save_model", "train", "with_settings",
    }  # fmt: skip
    assert all(inspect.getdoc(getattr(engine, name)) for name in engine.__all__)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("load_data", ["data"]),
        ("recipe", ["name", "settings"]),
        ("train", ["recipe", "data", "*device", "*backend", "*seed", "*display"]),
        ("evaluate", ["model", "data", "*device", "*view"]),
    ],
)
def test_calls_that_worked_go_on_working(name, parameters):
    """New parameters may come behind these, with defaults; `*` marks those given by name."""
    found = inspect.signature(getattr(engine, name)).parameters.values()
    names = [("*" if each.kind is each.KEYWORD_ONLY else "") + each.name for each in found]
    assert names[: len(parameters)] == parameters
    assert all(each.default is not each.empty for each in list(found)[len(parameters) :])
