"""Whatever is given wrongly: one line on standard error, exit code 2, and no file made or changed."""

import io
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from speedyresnet.bench.cli import main
from speedyresnet.engine import Recipe, UserError, evaluate, export_model, read_model, recipe, train
from speedyresnet.engine.data import make_pack
from speedyresnet.engine.init import reset_parameters
from speedyresnet.engine.model_file import save_model
from speedyresnet.engine.nets import make_net
from speedyresnet.engine.pack_file import save_pack

CLASSES = tuple("abcdefghij")
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
RECIPES = """
from speedyresnet.engine import recipe
import dataclasses, sys
def good(): return recipe("pocket")
def raises(): raise KeyError("why")
def leaves(): sys.exit(0)
def needs(argument): return recipe("pocket")
def number(): return 3
def words(): return dataclasses.replace(recipe("pocket"), batch_size="many")
def huge(): return dataclasses.replace(recipe("pocket"), net=dataclasses.replace(recipe("pocket").net, widths=(10**9,)))
"""


def write_pack(path, classes=CLASSES, size=16, channels=3):
    generator = np.random.default_rng(0)
    arrays = []
    for count in (40, 20):
        images = generator.integers(0, 256, (count, size, size, channels), dtype=np.uint8)
        arrays += [images, np.arange(count) % len(classes)]
    pack = make_pack("small", classes, *arrays)
    save_pack(pack, path)
    return pack


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Packs, a model and what is neither."""
    folder = tmp_path_factory.mktemp("input")
    pack = write_pack(folder / "pack.safetensors")
    write_pack(folder / "others.safetensors", (*CLASSES[:8], "y", "z"))
    write_pack(folder / "grey.safetensors", channels=1)
    write_pack(folder / "tiny.safetensors", size=6)
    made = recipe("pocket", ["width_multiplier=0.01", "dtype=float32"])
    net = make_net(made, classes=10, channels=3, dtype=torch.float32, device="cpu")
    reset_parameters(net, made.net, 0)
    save_model(folder / "model.safetensors", net.state_dict(), made, pack, torch.float32)
    (folder / "cut.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1])
    save_file({"weight": torch.zeros(3)}, folder / "foreign.safetensors")
    (folder / "words").write_text("these are some words")
    (folder / "recipes.py").write_text(RECIPES)
    (folder / "broken.py").write_text("def f(:\n")
    (folder / "empty").mkdir()
    (folder / "empty.py").mkdir()
    return folder


def content(folder):
    paths = [path for path in folder.rglob("*") if "__pycache__" not in path.parts]
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


def command(monkeypatch, capsys, *arguments):
    """Exit code, standard output and standard error."""
    monkeypatch.setattr(sys, "argv", ["speedyresnet", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


ROWS = [
    # commands and options
    ("trian", "Did you mean 'train'"),
    ("frobnicate", "frobnicate"),
    ("data", "Missing command"),
    ("bench", "speedyresnet bench --help"),
    ("bench stpe", "Did you mean 'step'"),
    ("data pak", "Did you mean 'pack'"),
    ("train --sede 3", "--seed"),
    ("train --recipe", "--recipe"),
    ("train airbench94", "airbench94"),
    ("kernels --dump words", "ttir, ptx, sass"),
    ("kernels augment --update", "--update"),
    # recipes
    ("train --recipe airbenc94", "did you mean airbench94"),
    ("recipes airbenc94", "did you mean airbench94"),
    ("recipes recipes.py:raises", "KeyError: 'why'"),
    ("recipes recipes.py:leaves", "SystemExit: 0"),
    ("recipes recipes.py:needs", "missing 1 required positional argument"),
    ("recipes recipes.py:number", "returned int, not a speedyresnet.engine.Recipe"),
    ("recipes recipes.py:words", "batch_size must be an integer, not 'many'"),
    ("recipes recipes.py:huge", "net.widths must be from 1 to 65536, not 1000000000"),
    ("recipes recipes.py:god", "did you mean good"),
    ("recipes broken.py:f", "SyntaxError"),
    ("recipes none.py:f", "none.py does not exist"),
    ("recipes empty.py:f", "empty.py does not exist"),
    ("recipes words.py", "unknown recipe 'words.py'"),
    # settings
    ("train --set epochz=1", "did you mean epochs"),
    ("train --set epochs", "key=value"),
    ("train --set epochs=x", "a number"),
    ("train --set epochs=nan", "epochs must be from"),
    ("train --set batch_size=1e3", "an integer"),
    ("train --set net.group_convolutions=1000000000", "from 1 to 32"),
    ("train --set dtype=int8", "one of auto, float16"),
    ("train --set kernels=triton --data pack.safetensors --device cpu", "kernels=auto"),
    ("recipes airbench94 --set batch_size=100000", "exceeds the 50000 training images"),
    ("recipes airbench94 --set epochs=1e6", "more than 1,000,000: lower epochs"),
    ("recipes airbench94 --set schedule.epochs=1e6", "lower schedule.epochs"),
    ("recipes airbench94 --set net.widths=8,8,8,8,8,8", "too small for 6 groups"),
    ("bench kernels --list --set net.widths=8,8,8,8,8,8", "too small for 6 groups"),
    ("bench kernels --list --set augmentation.padding=32", "augmentation.padding=32"),
    ("train --data pack.safetensors", "batch_size 256 exceeds the 40 training images"),
    ("train --data tiny.safetensors --set batch_size=8", "too small for 3 groups"),
    ("train --data pack.safetensors --set batch_size=1 --set augmentation.sizes=9", "batch_size=1 leaves"),
    (
        "train --data pack.safetensors --set batch_size=8 --set net.batch_norm_groups=8 --set augmentation.sizes=9",
        "set it to 16 or more",
    ),
    ("train --data pack.safetensors --set batch_size=8 --set augmentation.sizes=17", "cannot be scaled down to 17"),
    ("train --data pack.safetensors --set batch_size=8 --set augmentation.cutout=17", "augmentation.cutout=17"),
    ("train --data pack.safetensors --set batch_size=8 --set augmentation.crop=-1", "augmentation.crop must be from 0"),
    ("train --data pack.safetensors --set batch_size=8 --set augmentation.crop=21", "exceeds images of 16 x 16"),
    (
        "train --data pack.safetensors --set batch_size=8 --set augmentation.crop=12 --set augmentation.cutmix=13",
        "augmentation.cutmix=13 exceeds windows of 12",
    ),
    (
        "train --data pack.safetensors --set batch_size=8 --set augmentation.crop=12 --set augmentation.sizes=13",
        "windows of 12 x 12 pixels cannot be scaled down to 13",
    ),
    # seed, device, backend
    ("train --seed 1.5", "--seed"),
    ("train --seed x", "--seed"),
    ("train --seed 99999999999999999999", "--seed"),
    ("bench record --runs 1 --out new --seed 99999999999999999999", "--seed"),
    ("bench record --runs 2 --out new --seed 9223372036854775807", "give a smaller one"),
    ("data pack synthetic --seed -1", "--seed"),
    ("train --device gpu", "unknown device 'gpu'"),
    ("train --device mps", "choose auto, cpu, cuda or cuda:0"),
    ("train --device cpu:3", "choose auto, cpu, cuda or cuda:0"),
    ("train --backend magic", "choose eager, torchscript"),
    ("train --backend graph --device cpu", "use --backend eager"),
    ("bench step --backend magic", "choose eager, torchscript"),
    # data
    ("train --data nowhere", "data pack FOLDER --name nowhere"),
    ("train --data ~nobody-of-that-name/x", "~nobody-of-that-name/x"),
    ("train --data " + "x" * 5000, "make one with"),
    ("train --data /dev/null", "no data pack at /dev/null"),
    ("train --data words", "words is not a whole data pack"),
    ("train --data empty", "empty has no class folders"),
    ("train --data model.safetensors", "is not a data pack of format"),
    ("train --data cut.safetensors", "is not a whole data pack"),
    ("data info foreign.safetensors", "is not a data pack of format"),
    ("data info nowhere", "nowhere"),
    ("data pack nowhere", "nowhere"),
    ("data pack synthetic --size 0", "--size"),
    ("data pack synthetic --size 99999999", "--size"),
    ("data pack synthetic --name Upper", "is no pack name"),
    ("bench gpu-suite --out new --images nowhere", "no sheets there"),
    ("bench gpu-suite --out new --only nothing", "correctness, record"),
    ("bench profile --data nowhere", "nowhere"),
    ("bench step --data nowhere", "nowhere"),
    # models
    ("evaluate", "model"),
    ("evaluate none.safetensors", "`speedyresnet train --save none.safetensors` makes one"),
    ("evaluate " + "x" * 5000, "does not exist"),
    ("evaluate empty", "model empty does not exist"),
    ("evaluate words", "words is not a model file or is damaged"),
    ("evaluate cut.safetensors", "cut.safetensors is not a model file or is damaged"),
    ("evaluate foreign.safetensors", "foreign.safetensors is not a SpeedyResNet model"),
    ("evaluate pack.safetensors", "pack.safetensors is not a SpeedyResNet model"),
    ("evaluate model.safetensors --data nowhere", "nowhere"),
    ("evaluate model.safetensors --data others.safetensors", "the data small has others (y, z); give other --data"),
    ("evaluate model.safetensors --data empty", "empty has no class folders"),
    ("evaluate model.safetensors --data grey.safetensors", "channels, the data small has 1; give other --data"),
    ("export model.safetensors --format onnx --out new", "choose torchscript or pt2"),
    ("export model.safetensors --format pt2 --out new --size 5", "too small for 3 groups"),
    ("export model.safetensors --format pt2 --out new --size 999999", "--size"),
    ("export cut.safetensors --format pt2 --out new", "cut.safetensors is not a model file"),
    # outputs, before the data is even looked for
    ("train --data nowhere --out /", "cannot write /: it is a folder"),
    ("train --data nowhere --save words/model", "words is not a folder"),
    ("train --data nowhere --out /dev/null", "is no regular file"),
    ("train --data nowhere --out /proc/none/run.json", "cannot write /proc/none/run.json"),
    ("train --data nowhere --out " + "x" * 250, "File name too long"),
    ("train --data nowhere --out " + "x" * 300 + "/run.json", "File name too long"),
    ("train --data nowhere --out same --save ./same", "written by the same command"),
    ("train --data pack.safetensors --save pack.safetensors", "read by the same command"),
    ("train --recipe recipes.py:good --out recipes.py", "read by the same command"),
    ("evaluate none --out empty", "cannot write empty: it is a folder"),
    ("evaluate model.safetensors --out model.safetensors", "read by the same command"),
    ("evaluate model.safetensors --data pack.safetensors --out pack.safetensors", "read by the same command"),
    ("export model.safetensors --format pt2 --out ./model.safetensors", "read by the same command"),
    ("data pack nowhere --out /proc/none/pack", "cannot write /proc/none/pack"),
    ("bench step --data nowhere --out /", "it is a folder"),
    ("bench profile --data nowhere --out /", "it is a folder"),
    ("bench kernels --list --out /proc/none/x", "cannot write /proc/none/x"),
    ("bench record --runs 1 --data nowhere --out words", "words is no pool of runs"),
    ("bench gpu-suite --out words", "words is not a folder"),
    # numbers of the benchmarks
    ("bench record --runs 0 --out new", "--runs"),
    ("bench record --runs 1 --out new --target nan", "--target"),
    ("bench record --runs 1 --out new --target 940", "--target"),
    ("bench record --runs 1 --out new --seconds inf", "--seconds"),
    ("bench record --runs 1 --out new --view all", "choose single_view"),
    ("bench record --runs 1 --out new --clock wall", "choose train"),
    ("bench record --runs 1 --out new --validation -1", "--validation"),
    ("bench step --rounds 0", "--rounds"),
    ("bench profile --steps 0", "--steps"),
    ("bench kernels --operation x --list", "choose augment"),
    ("bench kernels --provider x --list", "choose reference"),
    ("bench versus --peer x", "give NAME=PATH"),
    ("bench versus --peer hlb=~nobody-of-that-name/x", "no ~nobody-of-that-name/x"),
    ("bench versus --peer hlb=. --timeout inf", "--timeout"),
    ("bench versus --peer hlb=. --compile-seconds inf", "--compile-seconds"),
    ("bench gpu-suite --out new --minutes inf", "--minutes"),
    pytest.param("train --device cuda", "--device cuda: PyTorch finds no CUDA GPU here", marks=NO_GPU),
    pytest.param("evaluate model.safetensors --device cuda:0", "finds no CUDA GPU here", marks=NO_GPU),
]
"""Arguments as one text, and what the line on standard error says."""


@pytest.mark.parametrize(("arguments", "words"), ROWS, ids=lambda text: text[:60])
def test_bad_input_is_one_line_and_changes_nothing(arguments, words, folder, cache, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("speedyresnet.engine.kernel_choice.INTERPRETED", False)  # as users have it
    before = content(folder)
    if arguments.startswith("train ") and "--data" not in arguments:
        # So that no training begins where something is not refused after all.
        arguments = arguments.replace("train", "train --data nowhere")
    code, printed, error = command(monkeypatch, capsys, *arguments.split())
    assert (code, printed, len(error.splitlines())) == (2, "", 1), error
    assert error.startswith("speedyresnet: ")
    assert words in error
    assert content(folder) == before
    assert not cache.exists()


@pytest.mark.parametrize("place", ["words", "/proc/none"])
@pytest.mark.parametrize("arguments", ["data pack synthetic", "data info cifar10", "train", "bench step"])
def test_a_cache_that_cannot_be_written_is_refused_before_any_work(place, arguments, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SPEEDYRESNET_CACHE", place)
    for work in ("download", "pack_source"):
        monkeypatch.setattr(f"speedyresnet.engine.data.{work}", lambda *_, **__: pytest.fail("work"))
    monkeypatch.setattr("speedyresnet.engine.cli.pack_source", lambda *_, **__: pytest.fail("work"))
    code, printed, error = command(monkeypatch, capsys, *arguments.split())
    assert (code, printed, len(error.splitlines())) == (2, "", 1)
    assert f"cannot write {place}/packs/" in error


@pytest.mark.parametrize(
    "allocate",
    [torch.empty, np.empty, bytearray],
)
def test_a_full_memory_is_one_line(allocate, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("speedyresnet.engine.cli.train_run", lambda *_, **__: allocate(2**50))
    arguments = "train --data pack.safetensors --device cpu --set batch_size=8"
    code, _, error = command(monkeypatch, capsys, *arguments.split())
    assert (code, len(error.splitlines())) == (2, 1)
    assert "the memory is full: lower --set batch_size" in error


def test_names_with_brackets_are_no_markup(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    settings = ["name=[/bold]:smile:", "batch_size=8", "width_multiplier=0.01", "epochs=0.2", "evaluation.every=0"]
    arguments = ["train", "--device", "cpu", "--data", "pack.safetensors"]
    for setting in settings:
        arguments += ["--set", setting]
    code, printed, _ = command(monkeypatch, capsys, *arguments)
    assert code == 0
    assert printed.count("[/bold]:smile:") == 2


def test_names_that_the_output_cannot_show_are_escaped(folder, monkeypatch, capsys):
    classes = ("fünf", *CLASSES[1:])
    write_pack(folder / "umlaut", classes)
    output = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", output)
    code, _, error = command(monkeypatch, capsys, "data", "info", str(folder / "umlaut"))
    output.flush()
    assert (code, error) == (0, "")
    assert b"f\\xfcnf,b,c" in output.buffer.getvalue()


# --- Python


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"recipe": 3}, "a recipe must be a Recipe, not int"),
        ({"recipe": "airbenc94"}, "did you mean airbench94"),
        ({"recipe": Recipe(name="x", summary="", source="", batch_size="8")}, "batch_size must be an integer, not '8'"),
        ({"recipe": Recipe(name="x", summary="", source="", net=None)}, "net must be a Net"),
        ({"recipe": Recipe(name="x", summary="", source="", epochs=float("inf"))}, "epochs must be a number, not inf"),
        ({"recipe": Recipe(name="x", summary="", source="", epochs=-1)}, "epochs must be from"),
        ({"data": "nowhere"}, "no pack file"),
        ({"seed": "x"}, "the seed 'x' must be an integer"),
        ({"seed": 1.0}, "the seed 1.0 must be an integer"),
        ({"seed": 2**63}, "must be an integer from"),
        ({"backend": None}, "unknown backend None"),
        ({"device": 5}, "unknown device '5'"),
    ],
)
def test_train_says_what_is_wrong(wrong, words, folder):
    given = {"recipe": "pocket", "data": str(folder / "pack.safetensors"), "device": "cpu"} | wrong
    with pytest.raises(UserError, match=words) as error:
        train(**given)
    assert "\n" not in str(error.value)


def test_evaluate_and_export_say_what_is_wrong(folder, tmp_path):
    model = read_model(folder / "model.safetensors")
    with pytest.raises(UserError, match="unknown view 'all': choose single_view"):
        evaluate(model, folder / "pack.safetensors", view="all")
    for size in ((16, 10**9), (5, 16)):
        with pytest.raises(UserError, match="pixels are too"):
            export_model(model, tmp_path / "new", "pt2", size)
    with pytest.raises(TypeError):
        evaluate(model, 3)


def test_a_message_is_one_line_whatever_is_in_it():
    message = "two\nlines,\ta \x1b[31mcolour, \udcff and \u2028 breaks\n"
    assert str(UserError(message)) == "two lines, a [31mcolour, and breaks"
