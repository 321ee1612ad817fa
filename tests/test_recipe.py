import dataclasses
import json

import pytest

from speedyresnet.engine import Recipe, UserError, recipe, with_settings
from speedyresnet.engine.recipe import recipe_from_dict, setting_names
from speedyresnet.engine.recipes import registered_recipes


def test_the_recipes_are_there():
    assert {"hlb-v0.4", "hlb-v0.7", "airbench94", "airbench94-muon", "hiverge", "pocket"} <= set(registered_recipes())
    for name in registered_recipes():
        assert recipe(name).name == name


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("epochs=2", ("epochs",), 2.0),
        ("batch_size=64", ("batch_size",), 64),
        ("dtype=float32", ("dtype",), "float32"),
        ("net.widths=16,32", ("net", "widths"), (16, 32)),
        ("net.widths=(16,)", ("net", "widths"), (16,)),
        ("net.whitening_bias=False", ("net", "whitening_bias"), False),
        ("averaging.epochs=none", ("averaging", "epochs"), None),
        ("averaging.epochs=3", ("averaging", "epochs"), 3),
        ("optimizer.kind=muon", ("optimizer", "kind"), "muon"),
        ("optimizer.muon.momentum=0.7", ("optimizer", "muon", "momentum"), 0.7),
        (
            "optimizer.muon.newton_schulz_coefficients=2,-1.5,0.5",
            ("optimizer", "muon", "newton_schulz_coefficients"),
            (2.0, -1.5, 0.5),
        ),
        ("optimizer.learning_rate = 1e-2", ("optimizer", "learning_rate"), 0.01),
    ],
)
def test_settings_are_parsed_by_type(setting, path, value):
    changed = recipe("hlb-v0.7", [setting])
    for part in path:
        changed = getattr(changed, part)
    assert changed == value
    assert type(changed) is type(value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epoch=2", "did you mean epochs"),
        ("optimizer.momentun=0.9", "did you mean optimizer.momentum"),
        ("net.nothing_like_it=1", "unknown setting"),
        ("net=1", "unknown setting"),
        ("epochs.x=1", "unknown setting"),
        ("claim=1", "unknown setting"),
        ("epochs", "key=value"),
        ("epochs=two", "expected a number"),
        ("epochs=nan", "epochs must be above 0"),
        ("batch_size=1.5", "expected an integer"),
        ("batch_size=0", "at least 1"),
        ("dtype=int8", "expected one of auto, float16"),
        ("net.whitening_bias=maybe", "true or false"),
        ("net.widths=", "positive integers"),
        ("net.widths=8,x", "expected an integer"),
        ("loss.label_smoothing=1", "between 0 and 1"),
        ("averaging.epochs=0", "none or at least 1"),
        ("optimizer.muon=none", "unknown setting"),
        ("optimizer.muon.momentun=0.9", "did you mean optimizer.muon.momentum"),
        ("optimizer.muon.newton_schulz_coefficients=1,2", "three numbers"),
        ("optimizer.muon.newton_schulz_steps=0", "at least 1"),
        ("augmentation.contrast=1.5", "between 0 and 1"),
        ("averaging.kind=none", "needs an averaging.kind"),
    ],
)
def test_wrong_settings_say_what_is_wrong(setting, message):
    with pytest.raises(UserError, match=message) as caught:
        recipe("hlb-v0.7", [setting])
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_names_its_neighbours():
    with pytest.raises(UserError, match="did you mean airbench94"):
        recipe("airbench49")


def test_a_recipe_from_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import dataclasses\nfrom speedyresnet.engine import recipe\n"
        "def short():\n    return dataclasses.replace(recipe('airbench94'), name='short', epochs=1.0)\n"
        "def broken():\n    return 1 / 0\ndef other():\n    return 3\n"
    )
    assert recipe(f"{file}:short", ["epochs=3"]).epochs == 3.0
    for reference, message in (
        (f"{file}:shirt", "no function 'shirt'; did you mean short"),
        (f"{file}:broken", "ZeroDivisionError"),
        (f"{file}:other", "returned int"),
        (f"{tmp_path}/none.py:short", "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            recipe(reference)


def test_the_hash_follows_the_numbers_and_not_the_texts():
    base = recipe("airbench94")
    assert base.hash == recipe("airbench94").hash
    assert dataclasses.replace(base, name="other", claim=None).hash == base.hash
    hashes = {with_settings(base, [s]).hash for s in ("epochs=9.8", "net.logit_scale=0.1", "dtype=float32")}
    assert len(hashes | {base.hash}) == 4


@pytest.mark.parametrize("name", sorted(registered_recipes()))
def test_a_stored_recipe_comes_back(name):
    made = recipe(name)
    assert recipe_from_dict(json.loads(json.dumps(dataclasses.asdict(made)))) == made


def test_a_damaged_stored_recipe_is_refused():
    stored = dataclasses.asdict(recipe("airbench94"))
    for damage in ({"epochs": "many"}, {"net": {}}, {"surprise": 1}, {"batch_size": True}):
        with pytest.raises(UserError):
            recipe_from_dict(stored | damage)


def test_every_number_can_be_set():
    names = setting_names(Recipe)
    assert {"epochs", "net.widths", "schedule.peak", "evaluation.view", "optimizer.muon.learning_rate"} <= set(names)
    assert "claim" not in names
