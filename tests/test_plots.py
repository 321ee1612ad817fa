import sys

import numpy as np
import pytest

from speedyresnet.engine import UserError, recipe
from speedyresnet.engine.cli import app
from speedyresnet.engine.plots import (
    check_plot,
    learning_rate_curves,
    matplotlib_pyplot,
    plot_learning_rates,
    save_learning_rates,
)
from speedyresnet.engine.recipes import group

IMAGES = 50_000


def test_curves_of_one_recipe_are_its_rates_over_the_epochs():
    whole, bias = learning_rate_curves({"it": recipe("airbench94")}, IMAGES)
    assert (whole.label, whole.dashed, bias.dashed, len(whole.epochs)) == ("it", False, True, 476)
    corners = (0, 109 / 48, 476 / 48), (0.2 * 1.5, 1.5, 0.07 * 1.5)
    assert whole.epochs[-1] == 475 / 48
    assert whole.rates == pytest.approx(np.interp(whole.epochs, *corners), rel=1e-4)
    assert bias.label == "whitening bias,\nscaled to the same peak"
    assert (bias.rates[:144], set(bias.rates[144:]), bias.color) == (whole.rates[:144], {0.0}, whole.color)
    for name, setting, peak in (("hlb-v0.4", "batch_size=1000", 2.1), ("airbench94", "net.whitening_kernel=0", 1.5)):
        (only,) = learning_rate_curves({"it": recipe(name, [setting])}, IMAGES)  # no bias there, no whitening
        assert max(only.rates) == pytest.approx(peak, rel=0.01)
    assert max(learning_rate_curves({"it": recipe("hiverge")}, IMAGES)[1].rates) == 0.205  # that of Muon


def test_a_schedule_that_several_recipes_share_is_drawn_once():
    study = group("imagenette-schedules")
    *curves, biases = learning_rate_curves({each.name: each for each in study.members}, IMAGES)
    assert [each.label for each in curves] == [each.name for each in study.members]
    assert len({each.color for each in curves}) == 8
    assert not any(each.dashed for each in curves)
    assert biases.label == "batch norm biases of 7 recipes,\nscaled to the same peak"
    assert (biases.dashed, biases.color) == (True, None)
    assert biases.rates == pytest.approx(curves[0].rates, abs=1e-9)
    changed = {name: recipe("airbench94", ["optimizer.learning_rate=3"] * (name == "b")) for name in "ab"}
    found = learning_rate_curves(changed, IMAGES)
    assert [each.label.split(",")[0] for each in found] == ["a", "b", "whitening bias of a", "whitening bias of b"]
    assert [each.color for each in found[:2]] == [each.color for each in found[2:]]
    assert max(found[3].rates) == max(found[1].rates) == 3.0


def test_a_plot_has_a_line_for_each_curve():
    figure, axes = matplotlib_pyplot().subplots()
    curves = learning_rate_curves({"$a_b": recipe("airbench94", ["epochs=1"])}, IMAGES)
    plot_learning_rates(axes, curves)
    assert [line.get_label() for line in axes.lines] == ["$a_b"]  # the whitening bias trains to the end
    assert axes.lines[0].get_xydata() == pytest.approx(np.transpose([curves[0].epochs, curves[0].rates]))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "learning rate of the convolutions")
    matplotlib_pyplot().close(figure)


@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("a.SVG", b"<?xml")])
def test_the_name_of_the_file_tells_the_format(name, begins, tmp_path):
    save_learning_rates("$\\frac$", {"$x^": recipe("airbench94")}, IMAGES, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begins)
    assert [each.name for each in tmp_path.iterdir()] == [name]


def recipes_command(*words):
    app(["recipes", *map(str, words)], standalone_mode=False)


def test_the_command_draws_a_recipe_or_a_group(tmp_path, capsys):
    for number, name in enumerate(("airbench94", "imagenette-schedules", "imagenette-schedules/cosine")):
        recipes_command(name, "--set", "epochs=2", "--picture", tmp_path / f"{number}.svg")
        assert name in capsys.readouterr().out
    sizes = [(tmp_path / f"{number}.svg").stat().st_size for number in range(3)]
    assert sizes[1] > max(sizes[0], sizes[2])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--picture", "a.png"), "--picture needs the name of a recipe or of a group"),
        (("pocket", "--picture", "a.pdf"), r"a.pdf as a picture; give a name that ends in .png or .svg"),
        (("pocket", "--picture", "file/a.png"), "file is not a folder"),
        (("nobody", "--picture", "a.png"), "unknown recipe 'nobody'"),
        (("pocket", "--set", "batch_size=60000", "--picture", "a.png"), "batch_size 60000 exceeds"),
    ],
)
def test_where_something_is_wrong_nothing_is_printed_or_written(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=message):
        recipes_command(*words)
    assert capsys.readouterr().out == ""
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_without_matplotlib_one_line_says_so(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'speedyresnet\[bench\]'"):
        check_plot(tmp_path / "a.png")
