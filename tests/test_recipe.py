import dataclasses
import json
import operator

import pytest

from speedyresnet.engine import Net, Optimizer, Recipe, UserError, recipe, with_settings
from speedyresnet.engine.recipe_checks import checked_recipe, recipe_from_dict
from speedyresnet.engine.recipes import registered_groups, registered_recipes
from speedyresnet.engine.schedules import plan
from speedyresnet.engine.settings import setting_names


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
        ("faithful=x", "unknown setting"),
        ("mended=x", "unknown setting"),
        ("epochs", "key=value"),
        ("epochs=two", "expected a number"),
        ("epochs=nan", r"epochs must be from 1e-06 to 1000000\.0, not nan"),
        ("batch_size=1.5", "expected an integer"),
        ("batch_size=0", "from 1 to 1000000, not 0"),
        ("dtype=int8", "expected one of auto, float16"),
        ("net.whitening_bias=maybe", "true or false"),
        ("net.widths=", "1 to 16 numbers, not 0"),
        ("net.widths=8,x", "expected an integer"),
        ("loss.label_smoothing=1", "from 0 to 0.999"),
        ("averaging.epochs=0", "from 1 to 1000000"),
        ("optimizer.muon=none", "unknown setting"),
        ("optimizer.muon.momentun=0.9", "did you mean optimizer.muon.momentum"),
        ("optimizer.muon.newton_schulz_coefficients=1,2", "must be 3 numbers, not 2"),
        ("optimizer.muon.newton_schulz_steps=0", "from 1 to 100"),
        ("augmentation.contrast=1.5", "from 0 to 1, not 1.5"),
        ("averaging.kind=none", "needs an averaging.kind"),
        ("epochs=1e400", "epochs must be from"),
        ("epochs=-inf", "epochs must be from"),
        ("epochs=", "expected a number"),
        ("epochs=1_0", "expected a number"),
        ("batch_size=\u0661\u0662", "expected an integer"),
        ("batch_size=99999999999999", "batch_size must be from"),
        ("batch_size=" + 5000 * "9", "expected an integer"),
        ("net.group_convolutions=1000000000", "from 1 to 32"),
        ("net.widths=" + ",".join(["8"] * 17), "not 17"),
        ("net.widths=8,,8", "expected an integer"),
        ("net.single_groups=1,3", "net.single_groups must be below 3, the number of groups"),
        ("net.pointwise_groups=1,3", "net.pointwise_groups must be below 3, the number of groups"),
        ("net.project_kernel=2", "net.project_kernel must be odd, not 2"),
        ("net.first_kernel=4", "net.first_kernel must be odd, not 4"),
        ("net.batch_norm_groups=3", "batch_size must be a multiple of net.batch_norm_groups, 3"),
        ("net.widths=8,-1", "from 1 to 65536, not -1"),
        ("optimizer.learning_rate=inf", "from 0 to"),
        ("schedule.start=-1", "from 0 to"),
        ("schedule.kind=piecewise", "schedule.knots must be one or more rising numbers"),
        ("schedule.knots=0,0.5", "schedule.values must be as many numbers as schedule.knots, 2"),
        ("averaging.power=-1", "from 0 to 100"),
        ("name=", "name must be one line"),
        ("name=two\nlines", "name must be one line"),
        ("summary=\udcff", "summary must be one line"),
        ("claim.accuracy=1", "unknown setting"),
    ],
)
def test_wrong_settings_say_what_is_wrong(setting, message):
    with pytest.raises(UserError, match=message) as caught:
        recipe("hlb-v0.7", [setting])
    assert "\n" not in str(caught.value)


def test_momentum_of_slow_weights_needs_a_lookahead():
    with pytest.raises(UserError, match=r"averaging.momentum=0.5 needs averaging.kind=lookahead: .* written back$"):
        recipe("hlb-v0.4", ["averaging.momentum=0.5"])


def test_an_unknown_recipe_names_its_neighbours():
    with pytest.raises(UserError, match="did you mean airbench94"):
        recipe("airbenc94")


def test_a_recipe_from_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import dataclasses\nfrom speedyresnet.engine import recipe\n"
        "def short():\n    return dataclasses.replace(recipe('airbench94'), name='short', epochs=1.0)\n"
        "def broken():\n    return 1 / 0\ndef other():\n    return 3\ndef leaves():\n    raise SystemExit\n"
        "def needs(argument):\n    pass\nnumber = 3\n"
        "def words():\n    return dataclasses.replace(short(), batch_size='many')\n"
    )
    assert recipe(f"{file}:short", ["epochs=3"]).epochs == 3.0
    (tmp_path / "folder.py").mkdir()
    for reference, message in (
        (f"{file}:shirt", "no function 'shirt'; did you mean short"),
        (f"{file}:broken", "ZeroDivisionError"),
        (f"{file}:other", "returned int"),
        (f"{file}:leaves", "SystemExit"),
        (f"{file}:needs", "missing 1 required positional argument: 'argument'"),
        (f"{file}:number", "no function 'number'"),
        (f"{file}:words", "batch_size must be an integer, not 'many'"),
        (f"{file}:", "no function ''"),
        (f"{tmp_path}/folder.py:short", "does not exist"),
        (f"{tmp_path}/none.py:short", "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            recipe(reference)
    for source, message in (
        ("def f(:", "SyntaxError"),
        ("\0", "null bytes"),
        ("import sys\nsys.exit(0)", "SystemExit"),
    ):
        file.write_text(source + "\n")
        with pytest.raises(UserError, match=message):
            recipe(f"{file}:short")


def test_the_hash_follows_the_numbers_and_not_the_texts():
    base = recipe("airbench94")
    assert base.hash == recipe("airbench94").hash
    assert dataclasses.replace(base, name="other", claim=None, faithful=("x",), mended=("y", "z")).hash == base.hash
    hashes = {with_settings(base, [s]).hash for s in ("epochs=9.8", "net.logit_scale=0.1", "dtype=float32")}
    assert len(hashes | {base.hash}) == 4


@pytest.mark.parametrize("name", sorted(registered_recipes()))
def test_a_stored_recipe_comes_back(name):
    made = recipe(name)
    assert recipe_from_dict(json.loads(json.dumps(dataclasses.asdict(made)))) == made


def test_a_stored_recipe_that_lacks_a_setting_has_its_default():
    stored = dataclasses.asdict(recipe("airbench94", ["net.residual=after_activation", "epochs=3"]))
    del stored["net"]["residual"], stored["optimizer"]["muon"], stored["kernels"], stored["faithful"], stored["mended"]
    assert recipe_from_dict(stored) == dataclasses.replace(recipe("airbench94", ["epochs=3"]), faithful=(), mended=())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"epochs": "many"}, "epochs must be a number, not 'many'"),
        ({"epochs": 10**400}, "epochs must be a number"),
        ({"epochs": float("nan")}, "epochs must be a number"),
        ({"batch_size": True}, "batch_size must be an integer"),
        ({"batch_size": 2.0}, "batch_size must be an integer"),
        ({"dtype": ["auto"]}, "dtype must be one of auto"),
        ({"net": {"width": 3}}, "net has an unknown setting 'width'"),
        ({"net": None}, "net must be a Net, not NoneType"),
        ({"net": Net(widths=(8, "x"))}, "net.widths must be an integer, not 'x'"),
        ({"net": Net(widths=8)}, "net.widths must be a list of numbers"),
        ({"optimizer": Optimizer(muon=Net())}, "optimizer.muon must be a Muon"),
        ({"surprise": 1}, "a recipe has an unknown setting 'surprise'"),
        ({"name": "\ud800"}, "name must be one line"),
        ({"faithful": "a text"}, "faithful must be a list of texts, not 'a text'"),
        ({"mended": [3]}, "mended must be text, not 3"),
        ({"faithful": ["one", "two\nlines"]}, "faithful must be one line"),
        ({"mended": (1001 * "x",)}, "mended must be one line"),
    ],
)
def test_wrong_types_are_refused_wherever_a_recipe_comes_from(damage, message):
    made = recipe("airbench94")
    for refused in (recipe_from_dict, checked_recipe):
        with pytest.raises(UserError, match=message):
            refused(dataclasses.asdict(made) | damage)
    if "surprise" not in damage:
        with pytest.raises(UserError, match=message):
            with_settings(dataclasses.replace(made, **damage), ["epochs=2"])


def test_what_is_no_recipe_is_refused():
    for wrong in (None, 3, [], "airbench94", dataclasses.asdict(Net())):
        for refused in (recipe_from_dict, checked_recipe):
            with pytest.raises(UserError, match="a recipe must be a Recipe"):
                refused(wrong)


def test_every_number_can_be_set_and_has_a_range():
    names = setting_names(Recipe)
    assert {"epochs", "net.widths", "schedule.peak", "evaluation.view", "optimizer.muon.learning_rate"} <= set(names)
    assert "claim" not in names
    made = recipe("airbench94")
    for key in names:
        kind = operator.attrgetter(key)(made)
        if not isinstance(kind, str | bool):
            with pytest.raises(UserError, match=f"{key} must be from"):
                with_settings(made, [f"{key}={','.join(['-9999'] * 3)}" if isinstance(kind, tuple) else f"{key}=-9999"])


def named_settings(line):
    """The settings in the parentheses that a line about a bug ends with."""
    text, _, end = line.partition(" (--set ")
    assert text
    assert "--set" not in text
    assert not end or end.endswith(")")
    return end.removesuffix(")").split(" --set ") if end else []


NO_KNOWN_BUG = ("airbench94-muon", "davidnet-tpu")
"""Of the second the code is not known."""
MEMBERS = {made.name for function in registered_groups().values() for made in (function().base, *function().variants)}


@pytest.mark.parametrize("name", sorted(MEMBERS | set(registered_recipes())))
def test_settings_that_mend_a_bug_or_bring_it_back_change_the_run(name):
    made = recipe(name)
    lines = made.faithful + made.mended
    assert bool(lines) == (name not in NO_KNOWN_BUG and not made.source.startswith("this project"))
    assert len(set(lines)) == len(lines)
    for settings in filter(None, map(named_settings, lines)):
        for left_out in settings:
            changed = with_settings(made, settings).hash
            assert changed not in (made.hash, with_settings(made, set(settings) - {left_out}).hash)


def plan_with_settings_against(bug, name):
    """The plan of a recipe on CIFAR-10 without and with the settings that its line about `bug` names."""
    made = recipe(name)
    (line,) = [each for each in made.faithful + made.mended if each.startswith(bug)]
    return plan(made, 50_000), plan(with_settings(made, named_settings(line)), 50_000)


def moves(found):
    return [k + 1 for k, keep in enumerate(found.averaging_keep) if keep != 1]


def test_settings_bring_the_last_epoch_that_does_no_step_back():
    """Numbers of the original's run: 4,272 steps on a schedule, and with averages, that are made for 4,320."""
    mended, back = plan_with_settings_against("the last epoch trains", "hlb-v0.7-long")
    assert (mended.steps, back.steps) == (4320, 4272)
    assert mended.learning_rate[-1] == pytest.approx(0.07)
    assert back.learning_rate == mended.learning_rate[:4272]
    assert back.learning_rate[-1] == pytest.approx(0.0834, abs=5e-5)
    assert back.averaging_keep == pytest.approx(mended.averaging_keep[:4272], rel=1e-6)
    assert back.averaging_keep[4269] == pytest.approx(0.7472, abs=5e-5)
    assert back.averaging_write_back == mended.averaging_write_back[:4272]
    assert back.first_cutmix_epoch == mended.first_cutmix_epoch == 10


def test_settings_mend_what_the_originals_average_and_mix():
    thrown_away, kept = plan_with_settings_against("what is trained behind", "airbench94")
    assert (thrown_away.steps, moves(thrown_away)[-1]) == (476, 475)
    assert (thrown_away.averaging_write_back[-1], kept.averaging_write_back[-1]) == (1, 0)
    only_evaluated, written_back = plan_with_settings_against("the average is not written back", "hlb-v0.4")
    assert sum(only_evaluated.averaging_write_back) == 0
    assert [k + 1 for k, back in enumerate(written_back.averaging_write_back) if back] == list(range(55, 481, 5))
    more, ten_epochs = plan_with_settings_against("averaging covers", "hlb-v0.7")
    assert (moves(more)[0], moves(ten_epochs)[0]) == (100, 105), "ten epochs before the end are 101 steps"
    five, six = plan_with_settings_against("cutmix covers", "hlb-v0.7")
    assert (five.first_cutmix_epoch, six.first_cutmix_epoch) == (7, 6)
