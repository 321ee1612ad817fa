import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from speedyresnet.engine import UserError, read_model, recipe
from speedyresnet.engine.init import reset_parameters
from speedyresnet.engine.model_file import save_model
from speedyresnet.engine.nets import make_net
from speedyresnet.engine.tensor_file import save_tensors


@pytest.fixture
def model_file(small_pack, tmp_path):
    made = recipe("pocket", ["width_multiplier=0.01", "dtype=float32"])
    net = make_net(made, classes=10, channels=3, dtype=torch.float32, device="cpu")
    reset_parameters(net, made.net, 0)
    save_model(tmp_path / "model.safetensors", net.state_dict(), made, small_pack, torch.float32)
    return tmp_path / "model.safetensors"


def parts_of(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata(), {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


def test_a_model_comes_back(model_file, small_pack):
    model, (_, tensors) = read_model(model_file), parts_of(model_file)
    torch.testing.assert_close(dict(model.net.state_dict()), tensors, atol=0, rtol=0)
    assert model.recipe == recipe("pocket", ["width_multiplier=0.01", "dtype=float32"])
    assert (model.class_names, model.mean, model.std) == (small_pack.class_names, small_pack.mean, small_pack.std)
    assert model.image_size == (32, 32)


def test_the_same_model_gives_the_same_bytes(model_file, small_pack, tmp_path):
    model, expected = read_model(model_file), model_file.read_bytes()
    for number in range(5):  # safetensors' own writer has 720 orders for the metadata
        path = tmp_path / f"{number}.safetensors"
        save_model(path, model.net.state_dict(), model.recipe, small_pack, torch.float32)
        assert path.read_bytes() == expected


def test_files_of_safetensors_own_writer_are_read(model_file, tmp_path):
    metadata, tensors = parts_of(model_file)
    save_file(tensors, tmp_path / "other.safetensors", metadata)
    loaded = read_model(tmp_path / "other.safetensors")
    torch.testing.assert_close(dict(loaded.net.state_dict()), tensors, atol=0, rtol=0)


def test_tensors_of_every_dtype_and_layout_come_back(tmp_path):
    made = {
        "odd": torch.arange(3, dtype=torch.uint8), "whole": torch.tensor(7), "empty": torch.empty(0, 2),
        "half": torch.randn(3, 5).half().t(), "brain": torch.randn(2, 3, 4, 4).bfloat16(),
        "layout": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), "wide": torch.randn(2).double(),
    }  # fmt: skip
    save_tensors(tmp_path / "file", made, {"b": "1", "a": "ä"})
    metadata, found = parts_of(tmp_path / "file")
    assert metadata == {"b": "1", "a": "ä"}
    torch.testing.assert_close(found, made, atol=0, rtol=0)


def refused(path, words):
    with pytest.raises(UserError, match=words) as error:
        read_model(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("kept", [0, 7, 8, 500, -1])
def test_a_truncated_model_is_refused(model_file, kept):
    model_file.write_bytes(model_file.read_bytes()[:kept])
    refused(model_file, "is not a model file or is damaged .*; train it again")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": None}, "is not a SpeedyResNet model"),
        ({"format": "speedyresnet.model/2"}, "is not a SpeedyResNet model"),
        ({"recipe": None}, "damaged or of another version: KeyError\\('recipe'\\); train it again"),
        ({"recipe": "[" * 100_000}, "damaged or of another version"),
        ({"recipe": "3"}, "a recipe must be a Recipe"),
        ({"class_names": "{}"}, "class_names"),
        ({"class_names": "[]"}, "class_names"),
        ({"class_names": '["a", "a"]'}, "class_names"),
        ({"class_names": "[1, 2]"}, "class_names"),
        ({"class_names": '["\\ud800", "b"]'}, "is not Unicode"),
        ({"class_names": json.dumps(list(map(str, range(1_000_000))))}, "head.weight is not what its recipe makes"),
        ({"mean": "[NaN, 0.1, 0.1]"}, "is not a finite number"),
        ({"mean": "[1e400, 0.1, 0.1]"}, "is not a finite number"),
        ({"mean": '["0.1", "0.1", "0.1"]'}, "mean and std"),
        ({"mean": "[0.1]"}, "mean and std"),
        ({"mean": json.dumps([0.1] * 1000), "std": json.dumps([0.1] * 1000)}, "is not what its recipe makes"),
        ({"std": "[-0.1, 0.1, 0.1]"}, "mean and std"),
        ({"dtype": "float8"}, "damaged or of another version: KeyError"),
        ({"dtype": "float64"}, "is not what its recipe makes"),
        ({"image_size": "[32]"}, "image_size is not two numbers"),
        ({"image_size": "[0, 32]"}, "image_size is not two numbers"),
        ({"image_size": "[1000000000, 32]"}, "image_size is not two numbers"),
        ({"image_size": "[32.5, 32]"}, "image_size is not two numbers"),
    ],
    ids=lambda change: str(change)[:60],
)
def test_hostile_metadata_is_refused_before_a_tensor_is_made(change, words, model_file, headers_only):
    metadata, tensors = parts_of(model_file)
    save_file(tensors, model_file, {key: value for key, value in (metadata | change).items() if value is not None})
    refused(model_file, words)


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("net", {"widths": [8] * 1_000_000}, "net.widths must be 1 to 16 numbers, not 1000000"),
        ("net", {"widths": [10**9]}, "net.widths must be from 1 to 65536"),
        ("net", {"widths": [65536] * 16}, "is not what its recipe makes"),
        ("net", {"group_convolutions": 10**9}, "net.group_convolutions must be from 1 to 32"),
        ("net", {"group_convolutions": 32}, "is not what its recipe makes"),
        ("net", {"whitening_kernel": 10**6}, "net.whitening_kernel must be from 0 to 8"),
        ("net", {"project_width": -1}, "net.project_width must be from 0"),
        ("optimizer", {"momentum": None}, "optimizer.momentum must be a number, not None"),
        ("evaluation", {"batch_size": 0}, "evaluation.batch_size must be from 1"),
        (None, {"width_multiplier": 64.0}, "is not what its recipe makes"),
        (None, {"width_multiplier": 10**400}, "is not a finite number"),
        (None, {"name": "two\nlines"}, "name must be one line"),
    ],
    ids=lambda change: str(change)[:60],
)
def test_hostile_recipe_is_refused_before_a_tensor_is_made(part, change, words, model_file, headers_only):
    metadata, tensors = parts_of(model_file)
    stored = json.loads(metadata["recipe"])
    (stored[part] if part else stored).update(change)
    save_file(tensors, model_file, metadata | {"recipe": json.dumps(stored)})
    refused(model_file, words)


@pytest.mark.parametrize("change", ["dtype", "shape", "missing", "extra"])
def test_tensors_of_another_net_are_refused_before_one_is_made(change, model_file, headers_only):
    metadata, tensors = parts_of(model_file)
    name = "groups.1.norms.0.bias"
    changed = {
        "dtype": tensors[name].double(),
        "shape": tensors[name][:, None],
        "missing": None,
        "extra": tensors[name].clone(),
    }
    tensors["added" if change == "extra" else name] = changed[change]
    save_file({key: value.contiguous() for key, value in tensors.items() if value is not None}, model_file, metadata)
    refused(model_file, f"{'added' if change == 'extra' else name} is not what its recipe makes")
