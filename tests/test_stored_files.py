"""Files that an earlier version wrote must go on being read, and recipes must keep their numbers.

stored/ holds a pack of 120 + 60 drawn images, a model and a checkpoint (30 of 90 steps) of a narrow pocket trained on
it, the losses and accuracies of that run, and the hash of every recipe. A new file format gets new files beside these.
"""

import json
from pathlib import Path

import pytest

from speedyresnet.engine import evaluate, load_data, read_model, train
from speedyresnet.engine.checkpoint import read_checkpoint
from speedyresnet.engine.recipes import group, recipe, registered_groups, registered_recipes

STORED = Path(__file__).with_name("stored")
RUN = json.loads((STORED / "run.json").read_text())


def test_a_stored_pack_is_read():
    pack = load_data(str(STORED / "pack.safetensors"))
    assert (pack.sha256, pack.name, pack.num_classes) == (RUN["sha256"], "stored", 10)
    assert (tuple(pack.train_images.shape), tuple(pack.test_images.shape)) == ((120, 16, 16, 3), (60, 16, 16, 3))


def test_a_stored_model_is_read_and_gives_its_accuracy():
    model = read_model(STORED / "model.safetensors")
    assert (model.recipe.name, model.image_size, len(model.class_names)) == ("pocket", (16, 16), 10)
    found = evaluate(model, str(STORED / "pack.safetensors"), device="cpu")
    for view in ("single_view", "mirror"):  # one image of 60 may fall the other way on another processor
        assert getattr(found, view) == pytest.approx(RUN["accuracy"][view], abs=1.5 / 60)


def test_a_stored_checkpoint_goes_on(tmp_path):
    begun = read_checkpoint(STORED / "checkpoint.safetensors")
    assert (begun.progress.steps, len(begun.progress.history)) == (30, 5)
    progress, pack = begun.progress, str(STORED / "pack.safetensors")
    run = train(
        progress.recipe, pack, device="cpu", backend="eager", seed=progress.seed, resume=begun,
        checkpoint=tmp_path / "checkpoint",
    )  # fmt: skip
    assert (run.record.status, run.record.steps, run.record.resumed_at_steps) == ("finished", 90, [30])
    assert [row.loss for row in run.record.history] == pytest.approx(RUN["losses"], rel=0.01)


def test_recipes_keep_their_hashes():
    members = [each for name in registered_groups() for each in group(name).members]
    hashes = {made.name: made.hash for made in (*map(recipe, registered_recipes()), *members)}
    assert hashes == json.loads((STORED / "recipe_hashes.json").read_text())
