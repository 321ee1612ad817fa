import copy
import json
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from tiers import parametrize

from speedyresnet.bench.cli import main
from speedyresnet.engine import UserError, export_model, read_model, train
from speedyresnet.engine.data import pack_source
from speedyresnet.engine.evaluate import view_logits
from speedyresnet.engine.export import FORMATS, folded_net
from speedyresnet.engine.init import reset_parameters
from speedyresnet.engine.model_file import Model
from speedyresnet.engine.nets import BatchNorm, make_net
from speedyresnet.engine.recipes import recipe
from speedyresnet.kernels.augment import normalisation

EXAMPLE = Path(__file__).parents[1] / "examples" / "classify.py"
TINY = ["batch_size=64", "width_multiplier=0.125", "epochs=1", "dtype=float32", "evaluation.every=0"]


@pytest.fixture(scope="module")
def model_file(small_pack, tmp_path_factory):
    """A function that gives the file of a recipe's net after ten steps of training."""
    folder = tmp_path_factory.mktemp("models")

    def trained(name):
        path = folder / f"{name}.safetensors"
        if not path.exists():
            train(recipe(name, TINY), small_pack, device="cpu").save(path)
        return path

    return trained


def load(path, file_format):
    """Net and metadata, as a program without this package gets them."""
    files = {"speedyresnet.json": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if file_format == "pt2":
            net = torch.export.load(path, extra_files=files).module()
        else:
            net = torch.jit.load(path, _extra_files=files)
    return net, json.loads(files["speedyresnet.json"])


@torch.no_grad()
def evaluated(model, pixels, dtype=torch.float32):
    """Logits of one view as `evaluate` computes them, for uint8 [N, H, W, C]."""
    scale, shift = normalisation(model.mean, model.std, dtype, torch.device("cpu"))
    images = (pixels.to(dtype) * scale + shift).permute(0, 3, 1, 2)
    return view_logits(copy.deepcopy(model.net).to(dtype).eval(), images, "single_view")["single_view"]


def as_input(pixels):
    return pixels.permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("file_format", FORMATS)
@parametrize("name", ["pocket", "airbench94", "hlb-v0.4", "hlb-v0.7"], default=["pocket"])
def test_logits_are_those_of_evaluate_at_any_batch_size(name, file_format, model_file, small_pack, tmp_path):
    model, path = read_model(model_file(name)), tmp_path / "net.pt2"
    export_model(model, path, file_format)
    net, _ = load(path, file_format)
    expected = evaluated(model, small_pack.test_images)
    assert expected.std(0).min() > 1e-3  # the bound means something
    for count in (1, 2, 7, 200):
        found = net(as_input(small_pack.test_images[:count]))
        assert found.dtype == torch.float32
        assert not found.requires_grad
        torch.testing.assert_close(found, expected[:count], atol=1e-5, rtol=0)
    large = net(as_input(small_pack.test_images).repeat(5, 1, 1, 1))
    torch.testing.assert_close(large, expected.repeat(5, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("file_format", FORMATS)
def test_files_hold_folded_weights_and_little_else(file_format, model_file, tmp_path):
    model, path = read_model(model_file("airbench94")), tmp_path / "net.pt2"
    export_model(model, path, file_format)
    net, _ = load(path, file_format)
    state = net.state_dict()
    norms = [module for module in model.net.modules() if isinstance(module, BatchNorm)]
    weights = sum(value.numel() for value in model.net.state_dict().values())
    # Of weight, bias, mean and variance the bias remains, in the convolution.
    assert sum(value.numel() for value in state.values()) == weights - 3 * sum(len(norm.bias) for norm in norms)
    assert {value.dtype for value in state.values()} == {torch.float32}
    with zipfile.ZipFile(path) as file:
        held = sum(entry.file_size for entry in file.infolist() if "/data/" in entry.filename)
    assert held < 4 * sum(value.numel() for value in state.values()) + 10_000


STRUCTURES = [
    ["net.residual=before_activation", "net.activation=celu", "net.group_convolutions=3", "net.single_groups=1"],
    ["net.residual=after_activation", "net.activation=silu", "net.whitening_kernel=3", "net.whitening_stride=2"],
    [
        "net.project_width=16",
        "net.project_kernel=3",
        "net.activation=relu",
        "net.group_convolutions=1",
        "net.pool=after_norm",
    ],
    ["net.whitening_kernel=0", "net.project_width=16", "net.project_kernel=3", "net.pool=after_norm"],
    ["net.whitening_kernel=0", "net.whitening_bias=false", "net.memory_format=contiguous"],
    ["net.whitening_padding=1", "net.whitening_kernel=3", "net.whitening_bias=false", "net.project_width=16"],
    ["net.pool=none", "net.first_kernel=1", "net.head_pool=max_and_mean", "net.head_bias=true"],
    ["net.squeeze_excite_ratio=16", "net.residual=before_activation", "net.group_convolutions=3"],
    ["net.project_width=16", "net.residual=before_activation", "net.whitening_bias=false", "net.activation=gelu_tanh"],
]


def random_model(settings, dtype=torch.float64):
    """A model with random weights and statistics, one channel of whose images is constant."""
    made = recipe("airbench94", ["width_multiplier=0.125", "net.batch_norm_epsilon=0.1", *settings])
    net = make_net(made, classes=10, channels=3, dtype=dtype, device="cpu")
    reset_parameters(net, made.net, 1)
    generator = torch.Generator().manual_seed(2)
    for name, value in net.state_dict().items():
        if not name.endswith(("norm.weight", "head.weight")) and "norms.0.weight" not in name:
            noise = torch.rand(value.shape, generator=generator, dtype=torch.float64)
            value.copy_(noise + 0.5 if "var" in name or "norm" in name else value + 0.3 * (noise - 0.5))
    return Model(
        net=net,
        recipe=made,
        class_names=tuple("abcdefghij"),
        mean=(0.2, 0.5, 0.9),
        std=(0.2, 0.3, 0.0),
        dtype=dtype,
        image_size=(32, 48),
    )


def check_folded(model):
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    pixels = torch.randint(0, 256, (5, 32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    expected = evaluated(model, pixels, torch.float64)
    with torch.no_grad():
        found = folded_net(model)(as_input(pixels))
    assert expected.std(0).min() > 1e-3 * expected.abs().max()
    torch.testing.assert_close(found.double(), expected, atol=2e-6 * float(expected.abs().max()), rtol=0)
    torch.testing.assert_close(model.net.state_dict(), before, atol=0, rtol=0)  # the model itself is not changed


@pytest.mark.parametrize("settings", STRUCTURES, ids=" ".join)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_every_structure_folds_exactly_whatever_its_dtype(settings, dtype):
    check_folded(random_model(settings, dtype))


def test_learned_scales_below_zero_fold_where_pooling_comes_last():
    model = random_model([*STRUCTURES[2], "net.batch_norm_scale=learned"])
    with torch.no_grad():
        for group in model.net.groups:
            group.norms[0].weight[::2] *= -1
    check_folded(model)


@pytest.mark.parametrize("file_format", FORMATS)
def test_images_need_not_be_square(file_format, tmp_path):
    model, path = random_model(STRUCTURES[0]), tmp_path / "net.pt2"
    assert export_model(model, path, file_format)["input"]["shape"] == ["N", 3, 32, 48]
    images = torch.rand(3, 3, 32, 48)
    torch.testing.assert_close(load(path, file_format)[0](images), folded_net(model)(images))


@parametrize("file_format", FORMATS, default=["torchscript"])
def test_command_writes_what_it_says_and_the_example_classifies_as_in_training(
    file_format, model_file, tmp_path, small_pack, speedyresnet
):
    model, out = model_file("hlb-v0.7"), tmp_path / "nets" / f"net.{file_format}"
    done = speedyresnet("export", model, "--format", file_format, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert done.stderr == ""
    assert (printed["file"], printed["bytes"]) == (str(out), out.stat().st_size)
    _, metadata = load(out, file_format)
    assert {key: value for key, value in printed.items() if key not in ("file", "bytes")} == metadata
    assert (metadata["schema"], metadata["format"]) == ("speedyresnet.export/1", file_format)
    assert metadata["input"]["shape"] == ["N", 3, 32, 32]
    assert metadata["output"] == {"dtype": "float32", "shape": ["N", 10], "meaning": "logits"}
    assert metadata["classes"] == list(small_pack.class_names)
    picture = tmp_path / f"{file_format}.png"
    draw(picture, wide=file_format == "pt2")
    assert classified(out, picture) == expected_classes(model, picture)
    assert_runs_alone(out)


def draw(path, *, wide):
    """A picture that other decoders read in another way: 16-bit grey, or transparent bars above another colour."""
    image = Image.effect_mandelbrot((50, 40), (-1.5, -1.2, 0.8, 1.2), 30)
    if wide:
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    else:
        image = image.convert("RGBA")
        image.paste((200, 30, 90, 255), (5, 8, 30, 33))
        image.paste((0, 0, 0, 0), (10, 0, 20, 40))
    image.save(path)


def assert_runs_alone(exported):
    """In a process where neither this package nor Triton is."""
    load = "torch.export.load(sys.argv[1]).module()" if exported.suffix == ".pt2" else "torch.jit.load(sys.argv[1])"
    code = "import sys; sys.modules.update(dict.fromkeys(['speedyresnet', 'triton'])); import torch; "
    code += f"print(tuple({load}(torch.zeros(3, 3, 32, 32)).shape))"
    command = [sys.executable, "-W", "ignore", "-c", code, str(exported)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "(3, 10)\n"


@pytest.mark.exhaustive
@pytest.mark.parametrize("file_format", FORMATS)
def test_the_same_model_gives_the_same_bytes_in_every_process(file_format, model_file, tmp_path):
    """Within one process torch.jit numbers the types of each trace on."""
    command = [sys.executable, "-m", "speedyresnet.engine", "export", model_file("pocket"), "--format", file_format]
    contents = []
    for seed in (1, 2):
        environment = os.environ | {"PYTHONHASHSEED": str(seed)}
        subprocess.run([*command, "--out", tmp_path / f"{seed}"], env=environment, check=True, capture_output=True)
        contents.append((tmp_path / f"{seed}").read_bytes())
    assert contents[0] == contents[1]


def classified(exported, picture):
    """What the example prints for a picture, in a process where Triton is not."""
    blocked = "import runpy, sys; sys.modules['triton'] = None; "
    blocked += "del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", blocked, str(EXAMPLE), str(exported), str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "arning" not in done.stderr  # PyTorch itself notes there that Triton is missing
    return [(" ".join(words[:-1]), float(words[-1])) for words in map(str.split, done.stdout.splitlines())]


def expected_classes(model_file, picture):
    """What the model says of the picture once it is packed, in colours."""
    model, folder = read_model(model_file), picture.parent / f"{picture.stem} folder"
    for part in ("train/a", "train/b", "test/a", "test/b"):
        (folder / part).mkdir(parents=True)
        Image.new("RGB", (32, 32), "red").save(folder / part / "0.png")
    shutil.copy(picture, folder / "test" / "b" / "0.png")
    pack = pack_source(str(folder), size=32)
    pixels = pack.test_images[pack.test_labels == 1]
    best = evaluated(model, pixels).softmax(1)[0].topk(3)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [(model.class_names[index], pytest.approx(value, abs=1e-4)) for index, value in pairs]


def command(monkeypatch, capsys, *arguments):
    """Exit code, standard output and standard error of `speedyresnet export`."""
    monkeypatch.setattr(sys, "argv", ["speedyresnet", "export", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


def test_without_json_it_prints_one_line(model_file, tmp_path, monkeypatch, capsys):
    out, shapes = tmp_path / "net.pt", "float32 [N, 3, 32, 32] in [0, 1] -> logits float32 [N, 10]"
    code, printed, _ = command(monkeypatch, capsys, model_file("pocket"), "--format", "torchscript", "--out", out)
    assert code == 0
    assert printed == f"{out}: torchscript, {out.stat().st_size:,} bytes, {shapes}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["MODEL", "--format", "onnx", "--out", "OLD"], "'onnx': choose torchscript or pt2"),
        (["MODEL", "--out", "OLD"], "--format"),
        (["MODEL", "--format", "pt2"], "--out"),
        (["none.safetensors", "--format", "pt2", "--out", "OLD"], "train --save"),
        (["OLD", "--format", "pt2", "--out", "new"], "is not a model file"),
        (["MODEL", "--format", "pt2", "--out", "MODEL"], "it is read by the same command"),
        (["MODEL", "--format", "pt2", "--out", "OLD", "--size", "5"], "too small"),
        (["MODEL", "--format", "pt2", "--out", "OLD", "--size", "0"], "--size"),
        (["MODEL", "--format", "pt2", "--out", "OLD/net.pt2"], "is not a folder"),
    ],
)
def test_wrong_input_is_one_line_and_changes_nothing(arguments, words, model_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    old, model = tmp_path / "old", model_file("pocket")
    old.write_bytes(b"as it was")
    content = model.read_bytes()
    arguments = [each.replace("MODEL", str(model)).replace("OLD", str(old)) for each in arguments]
    code, printed, error = command(monkeypatch, capsys, *arguments)
    assert (code, printed, len(error.splitlines())) == (2, "", 1)
    assert words in error
    assert old.read_bytes() == b"as it was"
    assert model.read_bytes() == content
    assert list(tmp_path.iterdir()) == [old]


def test_a_file_that_cannot_be_written_is_refused_before_any_work(tmp_path, monkeypatch, capsys):
    """Before the model is even looked for."""
    code, _, error = command(monkeypatch, capsys, "none.safetensors", "--format", "pt2", "--out", tmp_path)
    assert code == 2
    assert "is a folder" in error


@pytest.mark.parametrize(
    ("tensor", "value", "what"),
    [("weight", -1.0, "above 0"), ("weight", 0.0, "above 0"), ("running_var", float("nan"), "finite")],
)
def test_scales_that_do_not_commute_with_max_pooling_are_refused(tensor, value, what, tmp_path):
    model, path = random_model(STRUCTURES[0]), tmp_path / "net.pt2"
    path.write_bytes(b"as it was")
    with torch.no_grad():
        getattr(model.net.groups[1].norms[0], tensor)[3] = value
    with pytest.raises(UserError, match=rf"groups\.1\.norms\.0 .* not {what}"):
        export_model(model, path, "pt2")
    assert path.read_bytes() == b"as it was"
    assert list(tmp_path.iterdir()) == [path]


def test_a_torch_without_torchscript_is_named(tmp_path, monkeypatch):
    monkeypatch.delattr(torch.jit, "trace")
    with pytest.raises(UserError, match="no longer has; use --format pt2"):
        export_model(random_model(STRUCTURES[0]), tmp_path / "net.pt", "torchscript")
    assert not list(tmp_path.iterdir())


def test_a_model_file_of_before_the_image_size_needs_a_size(model_file, tmp_path, monkeypatch, capsys):
    with safe_open(model_file("pocket"), framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del metadata["image_size"]
    old, out = tmp_path / "old.safetensors", tmp_path / "net.pt2"
    save_file(tensors, old, metadata)
    code, _, error = command(monkeypatch, capsys, old, "--format", "pt2", "--out", out)
    assert code == 2
    assert "give --size" in error
    code, printed, _ = command(monkeypatch, capsys, old, "--format", "pt2", "--out", out, "--size", "40", "--json")
    assert code == 0
    assert json.loads(printed)["input"]["shape"] == ["N", 3, 40, 40]
    net, _ = load(out, "pt2")
    assert net(torch.rand(3, 3, 40, 40)).shape == (3, 10)
    with pytest.raises(RuntimeError, match="40"):
        net(torch.rand(3, 3, 32, 32))
